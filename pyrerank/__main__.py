"""``python -m pyrerank``."""

import sys

from pyrerank.cli.main import main

sys.exit(main())
