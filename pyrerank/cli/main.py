"""The entry of ``pyrerank COMMAND``: it calls the command, and turns errors into an exit status.

It knows nothing of what commands do, and imports no torch, so ``pyrerank --help`` is quick.
"""

from __future__ import annotations

import io
import os
import sys
import warnings

from pyrerank.cli import commands
from pyrerank.cli.arguments import parser
from pyrerank.cli.display import show_warning
from pyrerank.errors import DeviceError, PyrerankError

COMMANDS = {
    "demo": commands.demo,
    "score": commands.score,
    "rank": commands.rank,
    "explain": commands.explain,
    "embed": commands.embed,
    "serve": commands.serve,
    "convert": commands.convert,
    "bench": commands.bench,
    "info": commands.info,
}


def main(argv: list[str] | None = None) -> int:
    """Executes the command line ``argv``, which by default is the process's own.

    Returns:
        The exit status: 0 if all is done, 1 if some input lines were in error, 2 if the command
        failed, and 130 if it was interrupted.
    """
    args = parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # what the terminal cannot show is escaped, as that is better than no table at all
        sys.stdout.reconfigure(errors="backslashreplace")
    hint = "; --resume goes on with an --output file" if "resume" in args else ""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show_warning
            return COMMANDS[args.command](args)
    except KeyboardInterrupt:
        print(f"pyrerank: interrupted{hint}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read stdout has gone, as `| head` does.  The process flushes stdout once more at
        # its end, which must be silent.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except DeviceError as error:
        print(f"pyrerank: error: {error}{hint}", file=sys.stderr)
        return 2
    except (
        PyrerankError,
        ValueError,
        TypeError,
        ArithmeticError,
        OSError,
        ImportError,
        MemoryError,
        Warning,
    ) as error:
        print(f"pyrerank: error: {str(error) or type(error).__name__}", file=sys.stderr)
        return 2
