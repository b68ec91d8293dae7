"""What pyrerank raises besides ValueError and TypeError for wrong arguments."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A checkpoint that is absent, damaged, or of a kind that pyrerank does not run."""


class NonFiniteScore(ArithmeticError):
    """The model gave NaN or infinity for a pair, or for an input of an embedder; or for the latter
    a vector of length 0, which has no direction."""


class DeviceError(RuntimeError):
    """A device that cannot be used, or that failed in a call; the message says what to do.

    After this class and `OutOfMemory` an engine can be used again.
    """


class OutOfMemory(DeviceError):
    """The device has too little free memory."""


class EngineClosed(DeviceError):
    """The engine cannot be used, or not in this process, and never will be: it was closed, its
    device or the runtime of that in this process is lost, or the process was forked from one that
    runs models."""


class CheckpointChanged(CheckpointError, EngineClosed):
    """A file of weights was overwritten while it was in use, and the engine is lost with it."""


class TruncationWarning(UserWarning):
    """Texts were cut to the most tokens that a prompt may have."""
