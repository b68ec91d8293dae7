"""Kernels: the compiled modules, and functions over tensors that check arguments and call them.

The package may import errors and checks of pyrerank, and torch.  It knows nothing of models.
"""
