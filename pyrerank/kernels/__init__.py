"""Kernels: operators over tensors, their checks, their twins in plain torch, and the extension.

Everything that calls the compiled modules belongs here.  The package may import `pyrerank.errors`
and torch; it knows nothing of models and prompts.
"""
