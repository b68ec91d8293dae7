"""The command line: ``pyrerank COMMAND``.

Everything of its arguments, its files and what it prints belongs here.  It may import all other
packages; none of them imports it.  Modules that ``pyrerank --help`` loads import no torch.
"""
