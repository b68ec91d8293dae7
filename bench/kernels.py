"""The same as ``pyrerank bench kernels``."""

import sys

from pyrerank.bench_kernels import main

sys.exit(main())
