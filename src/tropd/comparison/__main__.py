"""`python -m tropd.comparison`. The work is in `run`, which worker processes can import by name."""

import sys

from .run import main

if __name__ == "__main__":
    sys.exit(main())
