"""What the command ``strata`` starts, whatever else is called ``jobs``, ``pipeline`` or ``codec``."""

import sys
from pathlib import Path


def main() -> int:
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from jobs.strata import main

    return main()
