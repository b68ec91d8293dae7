"""Prompts: from a caller's query, document or input to the token ids that the model is shown.

The package may import media, and from weights what a folder says of prompts.  It imports no torch.
"""
