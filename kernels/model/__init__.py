"""A model of a launch: what its compiled code executes, what that keeps busy, and how long it should take.

    python -m s2vfast.kernels.aot attention --model --device h200

Instructions come from SASS, how often loops go round from the launch's sizes, rates from devices/*.json. `pipeline`
follows the blocks of one multiprocessor; beside it, bytes that must cross the device's memory bound a launch from
below. Nothing is measured.
"""

from s2vfast.kernels.model.devices import NAMES, Device, device
from s2vfast.kernels.model.launches import Modelled, model_launch
from s2vfast.kernels.model.work import Work, needed_work

__all__ = ["NAMES", "Device", "Modelled", "Work", "device", "model_launch", "needed_work"]
