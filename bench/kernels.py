"""The same as ``pyrerank bench kernels``."""

import sys

from pyrerank.bench.kernels import main

sys.exit(main())
