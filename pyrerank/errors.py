"""Exceptions and the warning of pyrerank.

A wrong argument raises ValueError or TypeError.  Every other failure that pyrerank itself finds
raises a class of `PyrerankError`, whose message says what to do.
"""

from __future__ import annotations


class PyrerankError(Exception):
    """The base class of all exceptions that pyrerank defines.

    Each of them also stands under the builtin class that fits it, such as ValueError or
    RuntimeError.
    """


class CheckpointError(PyrerankError, ValueError):
    """The checkpoint is absent, damaged, or of a kind that pyrerank does not run."""


class NonFiniteScore(PyrerankError, ArithmeticError):
    """The model gave NaN or infinity for a pair or an input, or it gave an input a vector of
    length 0, which has no direction."""


class DeviceError(PyrerankError, RuntimeError):
    """The device cannot be used, or it failed in a call; the message says what to do.

    An engine that raises this class itself, or `OutOfMemory`, can be used again.
    """


class OutOfMemory(DeviceError):
    """The device has too little free memory."""


class EngineClosed(DeviceError):
    """The engine can never be used again, at least not in this process.

    It was closed, or its device or the runtime of that in this process is lost, or this process
    was forked from one that runs models.
    """


class CheckpointChanged(CheckpointError, EngineClosed):
    """A file of weights was overwritten while it was in use, and the engine is lost with it."""


class TruncationWarning(UserWarning):
    """Texts were cut to the most tokens that a prompt may have."""
