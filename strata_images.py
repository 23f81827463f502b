"""What the command ``strata`` starts: a name that other packages do not have."""

import sys
from pathlib import Path


def main() -> int:
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from jobs.strata import main

    return main()
