"""Dividing a cluster: a worker never needs more than one machine has."""

import socket
from pathlib import Path

import pytest

from pipeline.running import cluster
from pipeline.running.cluster import ClusterError, WorkerShape, connect, divide


@pytest.mark.parametrize(
    ("nodes", "workers", "device", "tasks", "shape"),
    [
        ([{"CPU": 2, "memory": 12 << 30}], None, "auto", 9, (2, 1, 0, "cpu")),
        ([{"CPU": 2, "memory": 3 << 30}], None, "auto", 9, (1, 2, 0, "cpu")),
        ([{"CPU": 2, "memory": 1 << 30}], None, "auto", 9, (1, 2, 0, "cpu")),
        ([{"CPU": 16}], None, "auto", 9, (9, 1, 0, "cpu")),
        ([{"CPU": 16, "memory": 9 << 30}], None, "auto", 9, (4, 4, 0, "cpu")),
        ([{"CPU": 16}], None, "auto", 1, (1, 16, 0, "cpu")),
        ([{"CPU": 16}], 16, "auto", 99, (16, 1, 0, "cpu")),
        ([{"CPU": 2}], 5, "auto", 99, (2, 1, 0, "cpu")),
        ([{"CPU": 2, "memory": 2 << 30}] * 3, None, "auto", 9, (3, 2, 0, "cpu")),
        ([{"CPU": 2}] * 3, 2, "auto", 9, (2, 2, 0, "cpu")),
        ([{"CPU": 0.5}], None, "auto", 9, (1, 0.5, 0, "cpu")),
        ([{"CPU": 64}, {"CPU": 16, "GPU": 4}], None, "auto", 99, (4, 4, 1, "cuda")),
        ([{"CPU": 64}, {"CPU": 16, "GPU": 4}], 2, "cuda", 99, (2, 4, 1, "cuda")),
        ([{"CPU": 8, "GPU": 1}], None, "cpu", 99, (8, 1, 0, "cpu")),
    ],
)
def test_shares(
    nodes: list[dict[str, float]],
    workers: int | None,
    device: str,
    tasks: int,
    shape: tuple[int, float, float, str],
) -> None:
    divided = divide(nodes, workers, device, tasks)
    assert (divided.workers, divided.cpus, divided.gpus, divided.device) == shape
    assert any(divided.cpus <= node.get("CPU", 0) for node in nodes)
    assert divided.threads == max(1, int(divided.cpus))


def test_what_the_cluster_does_not_have() -> None:
    with pytest.raises(ClusterError, match="no GPU"):
        divide([{"CPU": 4}], None, "cuda", 1)
    with pytest.raises(ClusterError, match="no CPU"):
        divide([{}], None, "auto", 1)
    assert WorkerShape(1, 0.5, 0.0, "cpu").threads == 1


@pytest.mark.parametrize(
    ("nodes", "workers", "device", "cpus", "shape"),
    [
        ([{"CPU": 2}], 5, "cuda", None, (5, 4, 1, "cuda")),  # no GPU yet, and nobody knows its CPUs
        ([{"CPU": 2}], 5, "cuda", 12, (5, 12, 1, "cuda")),
        ([{"CPU": 8, "GPU": 1}], 64, "cuda", None, (9, 8, 1, "cuda")),
        ([{"CPU": 8, "GPU": 1}], 64, "auto", None, (1, 8, 1, "cuda")),
        ([{"CPU": 2}], 5, "cpu", 16, (5, 16, 0, "cpu")),
        ([{"CPU": 16}, {"CPU": 7}], None, "auto", 3, (7, 3, 0, "cpu")),
    ],
)
def test_clusters_that_grow(
    nodes: list[dict[str, float]],
    workers: int | None,
    device: str,
    cpus: int | None,
    shape: tuple[int, float, float, str],
) -> None:
    divided = divide(nodes, workers, device, 9, cpus)
    assert (divided.workers, divided.cpus, divided.gpus, divided.device) == shape


def test_more_cpus_than_any_machine_has() -> None:
    with pytest.raises(ClusterError, match="--cpus-per-worker 16"):
        divide([{"CPU": 4}], None, "cpu", 1, 16)


@pytest.mark.parametrize("kind", ["{}", "ray://{}"])
def test_an_address_where_nobody_listens(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself would try for ten minutes."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # by other tests in this process
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        host, port = unused.getsockname()
        with pytest.raises(ClusterError, match=r"no Ray cluster at .*refused.*ray status"):
            connect(kind.format(f"{host}:{port}"))


def test_a_long_folder_for_temporary_files_gets_a_short_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of a socket has 107 bytes at most, and batch systems make folders of 45."""
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    long = f"/scratch/{'x' * 36}"
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/scratch")
    assert cluster.ray_folder() is None
    monkeypatch.setattr("tempfile.gettempdir", lambda: long)
    short = cluster.ray_folder()
    assert short is not None
    assert len(short + cluster._SOCKET) <= cluster.MAX_SOCKET_PATH
    monkeypatch.setattr(cluster, "SHORT_FOLDER", str(tmp_path / "not there"))
    with pytest.raises(ClusterError, match="set RAY_TMPDIR to a folder of at most 39 characters"):
        cluster.ray_folder()
    monkeypatch.setenv("RAY_TMPDIR", "/scratch")  # Ray's own variable goes before TMPDIR
    assert cluster.ray_folder() is None
