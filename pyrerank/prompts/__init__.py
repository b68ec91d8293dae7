"""Prompts: items, the wording of their prompts, its tokens, and truncation.

Everything that decides which token ids the model is shown belongs here.  The package may import
media and weights; it needs no torch, and knows nothing of devices and passes.
"""
