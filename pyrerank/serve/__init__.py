"""The HTTP server: ``pyrerank serve``, the extra ``serve``."""
