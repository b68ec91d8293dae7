"""The benchmark of the kernels, ``pyrerank bench kernels``, and descriptions of machines.

Only measurements of the installed package belong here; those of the project are in the folder
bench/ of its repository.  The package may import kernels and devices; only cli imports it, when it
is asked.
"""
