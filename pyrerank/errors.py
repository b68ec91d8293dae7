"""What pyrerank raises besides ValueError and TypeError for wrong arguments."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A checkpoint that is absent, damaged, or of a kind that pyrerank does not run."""


class NonFiniteScore(ArithmeticError):
    """The model gave NaN or infinity for a pair, or for an input of an embedder."""


class DeviceError(RuntimeError):
    """A device that cannot be used, or that failed in a call; the message says what to do.

    After this class and `OutOfMemory` an engine can be used again.
    """


class OutOfMemory(DeviceError):
    """The device has too little free memory."""


class EngineClosed(DeviceError):
    """The device, or its runtime in this process, is lost, and the engine with it."""


class CheckpointChanged(CheckpointError, EngineClosed):
    """A file of weights was overwritten while it was in use, and the engine is lost with it."""
