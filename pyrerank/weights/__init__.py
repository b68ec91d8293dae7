"""Weights: what a checkpoint's folder holds, namely its settings, its tokenizer and its tensors.

Adapters are merged and checkpoints converted here, too.  The package may import errors and checks
of pyrerank, and torch for tensors on the host.
"""
