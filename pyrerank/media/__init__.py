"""Media: how a caller's content is read, from the bytes of its pictures to resized pixels.

The package may import errors and checks of pyrerank.  It knows nothing of prompts, models and
devices.
"""
