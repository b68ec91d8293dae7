"""The HTTP server, ``pyrerank serve``, which the extra ``serve`` installs.

Requests, their formats, their limits, and the queue that merges them into passes belong here.  It
may import all packages but cli, demo and bench; only cli imports it.
"""
