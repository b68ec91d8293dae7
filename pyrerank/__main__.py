"""``python -m pyrerank``."""

import sys

from pyrerank.cli import main

sys.exit(main())
