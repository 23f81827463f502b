"""serve_previews.py's command line: how many server processes it starts."""

from functools import partial

import pytest

from pipeline.running import cluster
from pipeline.running.cluster import divide
from pipeline.serving import job
from tests.jobs.scripts import load_job


@pytest.mark.parametrize(
    ("flags", "nodes", "expected"),
    [
        ([], [{"CPU": 2}], (2, 1.0, 0.0)),
        ([], [{"CPU": 1}], (1, 1.0, 0.0)),
        ([], [{"CPU": 64}], (4, 16.0, 0.0)),  # one for each CPU, but each holds the model
        ([], [{"CPU": 16, "GPU": 2}], (2, 8.0, 1.0)),
        ([], [{"CPU": 16, "GPU": 8}], (8, 2.0, 1.0)),
        (["--replicas", "1"], [{"CPU": 8}], (1, 8.0, 0.0)),
        (["--replicas", "6"], [{"CPU": 8}], (6, 1.0, 0.0)),
        (["--cpus-per-replica", "4"], [{"CPU": 8}], (2, 4.0, 0.0)),
    ],
)
def test_server_processes(
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    nodes: list[dict[str, float]],
    expected: tuple[int, float, float],
) -> None:
    monkeypatch.setattr(cluster, "share", partial(divide, nodes))
    options = load_job("serve_previews").parse(["--input", "set", *flags])
    shape = job.replicas_of(options)
    assert (shape.workers, shape.cpus, shape.gpus) == expected
