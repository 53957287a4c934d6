"""``python -m s2vfast``."""

import sys

from s2vfast.cli import main

if __name__ == "__main__":
    sys.exit(main())
