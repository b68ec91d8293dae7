"""Media: reads what a caller gives as a content, which is text, images and video.

Forms of contents, fetching, decoding and resizing belong here; the results are texts and arrays of
pixels.  The package may import `pyrerank.checks` alone; it knows nothing of prompts and devices.
"""
