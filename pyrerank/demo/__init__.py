"""The demonstration, ``pyrerank demo``: a small model, and texts and pictures for it to rank.

Only what shows this model off belongs here; ``model="demo"`` finds the model itself.  The package
may import what users import; only cli imports it.
"""
