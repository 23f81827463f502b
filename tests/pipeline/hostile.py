"""Run reading in a child process that reports errors, time and the memory at its peak."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LIMIT_BYTES = (
    6 << 30
)  # of addresses, beyond what the child has at the start: for the machine's sake
_CHILD = """
import contextlib, json, resource, sys, time, warnings
sys.path.insert(0, {root!r})
warnings.simplefilter("ignore")
from pipeline import open_dataset
from codec.errors import StrataError

def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name + ":"))

{before}
resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + {limit},) * 2)
for name, argument in json.load(sys.stdin):
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins here
    begun, start, error = status("VmRSS"), time.monotonic(), ""
    try:
        {call}(argument)
    except BaseException as caught:
        error = f"{{type(caught).__name__}}: {{caught}}"
    took = time.monotonic() - start
    print(json.dumps([name, error, took, status("VmHWM") - begun]), flush=True)
"""
READ_ALL = """
def read_all(url):
    dataset = open_dataset(url)
    ways = [
        lambda: dataset.page(limit=100),
        lambda: dataset.page(limit=100, search="a"),
        lambda: dataset.page(limit=100, search="a", captions=True),
        lambda: list(dataset.fetch(["a", "k0001"], missing="skip")),
        lambda: sum(1 for _ in dataset.read()),
        lambda: sum(1 for _ in dataset.read(columns=["status"])),
    ]
    errors = []
    for way in ways:
        try:
            way()
        except StrataError as error:
            errors.append(f"{type(error).__name__}: {error}")
    if errors:
        raise StrataError(" | ".join(errors))
"""


def in_child(
    cases: Sequence[tuple[str, Any]], call: str = "read_all", before: str = READ_ALL
) -> dict[str, tuple[str, float, int]]:
    """For each (name, argument): the error or '', the seconds, and the bytes at the peak.

    ``call`` names a function that ``before`` defines. Fails if the child ends before it is done.
    """
    script = _CHILD.format(root=str(ROOT), limit=LIMIT_BYTES, call=call, before=before)
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(list(cases)),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(told) == len(cases), f"ended with {done.returncode} after {told}: {done.stderr}"
    return {name: (error, took, peak) for name, error, took, peak in told}
