"""A private Ray can be reached only from this machine."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIST_PORTS = """
import json, time
from pipeline.running import cluster

cluster.connect(None)
import ray
import psutil  # Ray's own

ray.get(ray.remote(lambda: 1).remote())
ours = psutil.Process()
deadline, seen = time.monotonic() + 8, set()
while time.monotonic() < deadline:  # some begin to listen later
    mine = {ours.pid, *(one.pid for one in ours.children(recursive=True))}
    seen |= {
        tuple(one.laddr)
        for one in psutil.net_connections("inet")
        if one.status == "LISTEN" and one.pid in mine
    }
    time.sleep(0.5)
print(json.dumps(sorted(seen)))
cluster.disconnect()
"""


def test_a_private_ray_listens_on_loopback_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIST_PORTS], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    ports = json.loads(done.stdout.splitlines()[-1])
    assert len(ports) > 3
    assert [one for one in ports if "127.0.0.1" not in one[0] and one[0] != "::1"] == []
