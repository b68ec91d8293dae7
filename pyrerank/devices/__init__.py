"""Devices: each is one object of one file, and computes everything that a model asks of it.

A device may import the kernels and `pyrerank.engine.batch`.  It knows nothing of checkpoints and
prompts.  `pyrerank.devices.select` finds the device for a name such as "npu:1".
"""
