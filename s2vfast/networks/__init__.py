"""Networks: one a file, which registers itself (`s2vfast.networks.base`)."""

import importlib
import pkgutil

from s2vfast.networks.base import Network, build_network, register

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Network", "build_network", "register"]
