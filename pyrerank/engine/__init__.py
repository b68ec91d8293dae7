"""The engine: divides prompts into passes, and runs these through a model on a device.

Planner, batches, prefixes, graphs, features of pictures, and failures belong here.  The package may
import all that the floors in docs/engine.md have below it; it does not know what a result means.
"""
