"""`python -m kdfw`: the command line."""

import sys

from kdfw.cli import main

if __name__ == "__main__":
    sys.exit(main())
