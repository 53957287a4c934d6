"""Names in a config and the classes that they stand for; each class brings its own section.

Built-in networks and objectives are found because their files are there. Others register themselves when their module
is imported: from Python, or by ``--plugin FILE`` on the command line.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import os
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from s2vfast.config.fields import Section
from s2vfast.errors import ConfigError

Class = TypeVar("Class", bound=type)


class Registry:
    """Classes by the name that a config calls them.

    Args:
        path: the config's field, for messages.
        package: whose modules register the built-in classes; imported at the first question.
    """

    def __init__(self, path: str, package: str) -> None:
        self.path, self.package = path, package
        self._classes: dict[str, Any] = {}

    def register(self, name: str) -> Callable[[Class], Class]:
        """Enter a class under a name, which must be free.

        The class has a dataclass ``Section``, the fields of its section of a config. Its own copy of that dataclass
        gets the name, so that ``section.name`` says whose it is.
        """

        def enter(registered: Any) -> Any:
            other = self._classes.get(name, registered)
            # A cell of a notebook that runs again defines its class again.
            if (other.__module__, other.__qualname__) != (registered.__module__, registered.__qualname__):
                raise ValueError(f"{self.path}: {name} is the name of {other.__module__}.{other.__qualname__}")
            section = registered.Section
            if not (isinstance(section, type) and dataclasses.is_dataclass(section)):
                raise TypeError(f"{registered.__qualname__}.Section: a dataclass of the config's fields is expected")
            registered.Section = type(
                section.__name__,
                (section,) if issubclass(section, Section) else (section, Section),
                {
                    "name": property(lambda self: name, doc="Whose section this is."),
                    "__module__": registered.__module__,
                    "__qualname__": f"{registered.__qualname__}.Section",
                    "__doc__": section.__doc__,
                },
            )
            self._classes[name] = registered
            return registered

        return enter

    def names(self) -> list[str]:
        """All names, sorted."""
        importlib.import_module(self.package)
        return sorted(self._classes)

    def get(self, name: Any) -> Any:
        """The class of a name; `ConfigError` names those that there are."""
        if not isinstance(name, str):
            raise ConfigError(f"{self.path}: {name!r}; text is expected")
        if name not in self._classes and name not in self.names():
            raise ConfigError(
                f"{self.path}: {name!r} is not one of {', '.join(self.names())}; one of your own needs --plugin FILE.py"
            )
        return self._classes[name]


NETWORKS = Registry("model.name", "s2vfast.networks")
"""By model.name: subclasses of `s2vfast.networks.Network`."""
OBJECTIVES = Registry("objective.name", "s2vfast.objectives")
"""By objective.name: subclasses of `s2vfast.objectives.Objective`."""
PLUGIN = "s2vfast_plugin_"
"""How the names of modules begin that `load_plugin` has imported."""


def load_plugin(path: str | Path) -> None:
    """Import a Python file, which registers networks, objectives or implementations of operations.

    Raises:
        ConfigError: no such file, or it cannot be imported; the message has the file's own error.
    """
    file = Path(path).resolve()
    name = f"{PLUGIN}{file.stem}_{zlib.crc32(os.fsencode(file)):08x}"
    if name in sys.modules:
        return
    if not file.is_file():
        raise ConfigError(f"--plugin {path}: no such file")
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--plugin {path}: a Python file (FILE.py) is expected")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look their modules up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(f"--plugin {path}: {type(error).__name__}: {error}") from error
