"""`python -m attensor` is `attensor`."""

from __future__ import annotations

import sys

from attensor.cli import main

if __name__ == "__main__":
    sys.exit(main())
