"""`python -m tropd`, which `accelerate launch -m tropd train …` starts on every process."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
