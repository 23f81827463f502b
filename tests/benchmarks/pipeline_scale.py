"""Measures the pipeline as a whole; the figures go into docs/results/pipeline.json.

    python tests/benchmarks/pipeline_scale.py --what memory overhead ...    # or any of

memory    twenty shards, ten thousand pictures: resident memory of driver and worker over time
overhead  images/s of a whole job against the codec alone
workers   1, 2 and 16 workers whose codec sleeps
cores     two cores for one worker or for two, with a real codec
startup   seconds from the command to the first commit, and where they go
s3        from S3 to S3: speed, overlap of downloading, encoding and uploading, and requests
records   what 100,000 shards cost the driver
"""

import argparse
import importlib
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.scale.watching import say  # noqa: E402

RESULTS = ROOT / "docs" / "results" / "pipeline.json"
MACHINE = "two cores of a cloud machine"
MODULES = {
    name: f"tests.benchmarks.scale.{'objects' if name == 's3' else name}"
    for name in ("memory", "overhead", "workers", "cores", "startup", "s3", "records")
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--what", nargs="+", choices=MODULES, required=True)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--machine", default=MACHINE)
    options = parser.parse_args()
    for what in options.what:
        module = importlib.import_module(MODULES[what])
        say(f"== {what}")
        figures = module.measure()
        module.table(figures)
        kept = json.loads(options.results.read_text()) if options.results.exists() else {}
        kept[what] = {"machine": options.machine, **figures}
        options.results.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
