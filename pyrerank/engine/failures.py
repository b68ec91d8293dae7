"""Failures decide whether an engine can still be used, and which error says what happened."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from pyrerank.devices.base import Accelerator, Device
from pyrerank.devices.select import check_process, is_out_of_memory
from pyrerank.errors import DeviceError, EngineClosed, OutOfMemory


class Failures:
    """Has the lock of one engine, knows whether it can be used, and names errors of its device.

    Attributes:
        lock: whoever holds it may use the model, the graphs and the features.
        lost: why the engine can never be used again; None while it can.
        loaded: whether the engine is complete, which messages about memory tell.
    """

    def __init__(self, device: Device, token_budget: int) -> None:
        check_process(claim=True)
        self.lost: str | None = None
        self.loaded = False
        self._device = device
        self._token_budget = token_budget
        # One thread may take it twice, because a finaliser that the garbage collector runs in a
        # pass may close the engine.
        self.lock = threading.RLock()

    def check_usable(self) -> None:
        """Raises `EngineClosed` where the engine cannot be used, or not in this process."""
        check_process()
        if self.lost is not None:
            raise EngineClosed(self.lost)

    @contextmanager
    def named(self) -> Iterator[None]:
        """Turns errors of torch and its backends into those of `pyrerank.errors`, and frees the
        tensors that their frames hold.  Other errors pass through, such as a RuntimeError on a CPU,
        which is no failure of a device."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                traceback.clear_frames(error.__traceback__)
                after = "the engine can be used again" if self.loaded else "no engine was made"
                raise OutOfMemory(
                    f"{self._device} has too little free memory: {error}. Lower token_budget, "
                    f"which is {self._token_budget}, or free memory; {after}"
                ) from error
            if not isinstance(self._device, Accelerator) or isinstance(error, DeviceError):
                raise
            traceback.clear_frames(error.__traceback__)
            self.check_works(str(error))
            raise DeviceError(f"{self._device} failed: {error}; it can be used again") from error

    def check_works(self, reason: str) -> None:
        """Raises `EngineClosed` and loses the engine if its device no longer works; ``reason`` says
        what failed."""
        if not self._device.works():
            self.lost = (
                f"{self._device} or its runtime in this process is lost ({reason}); no engine in "
                "this process can use it any more: start a new process"
            )
            raise EngineClosed(self.lost)
