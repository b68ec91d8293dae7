"""Weights: finds a checkpoint's folder, and reads and writes what its files say.

Configurations, chat templates, tensors, adapters and conversion belong here.  The package may
import `pyrerank.errors` alone; it knows nothing of layers, of devices and of a prompt's contents.
"""
