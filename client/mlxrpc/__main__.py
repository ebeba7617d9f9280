"""`python -m mlxrpc` is `mlxrpc`."""

import sys

from mlxrpc.cli import main

if __name__ == "__main__":
    sys.exit(main())
