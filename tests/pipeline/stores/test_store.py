"""Options and their secrets, many small files, and stores that are slow or lose files."""

import fcntl
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.stores import filesystems
from pipeline.stores import scratch as scratch_module
from pipeline.stores import store as store_module
from pipeline.stores.store import StorageError, Store, open_filesystem, scratch_folder


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_many_small_files(kind: str, tmp_path: Path) -> None:
    store = Store(str(tmp_path) if kind == "local" else f"memory://{tmp_path.name}/many")
    names = [f"d/{n:04d}" for n in range(1203)]
    for name in names:
        store.fs.pipe_file(store.path(name), name.encode()) if kind == "memory" else None
    if kind == "local":
        (tmp_path / "d").mkdir()
        for name in names:
            (tmp_path / name).write_text(name)
    wanted = names[::-1]
    assert list(store.read_many(wanted)) == [(name, name.encode()) for name in wanted]
    assert list(store.read_many([])) == []
    with pytest.raises(FileNotFoundError):
        list(store.read_many([*names, "d/none"]))


def test_only_some_are_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    (tmp_path / "x").write_bytes(b"1")
    read: list[str] = []
    monkeypatch.setattr(store, "read", lambda name, most: read.append(name) or b"1")
    next(iter(store.read_many(["x"] * 5000)))
    assert len(read) <= store_module.READ_TOGETHER


def test_what_exists(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    found = [name for name in ("folder", "file", "none", "file/none") if store.exists(name)]
    assert found == ["file"]


SECRET = "a-very-secret-word"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"endpont_url": "http://127.0.0.1:1"}, "endpont_url"),
        ({"profile": "nobody-has-this"}, "nobody-has-this"),
        ({"endpoint_url": "no address"}, "no address"),
        ({"config_kwargs": {"read_timeot": 3}}, "read_timeot"),
        ({"client_kwargs": {"regio": "x"}}, "regio"),
        ({"max_concurrency": 0}, "max_concurrency"),
    ],
)
def test_options_that_s3_does_not_take(options: dict[str, Any], named: str) -> None:
    with pytest.raises(StorageError, match=named) as caught:
        Store("s3://bucket/set", {"key": "me", "secret": SECRET, **options})
    assert "s3://bucket/set" in str(caught.value)
    assert SECRET not in repr(caught.value)
    assert caught.value.__cause__ is None


def test_secrets_stay_out_of_sight() -> None:
    options = {"key": "me", "secret": SECRET, "client_kwargs": {"aws_session_token": SECRET}}
    with pytest.raises(StorageError, match=r"\*\*\*") as caught:
        Store("s3://bucket/set", {**options, "client_kwargs": {"verify": SECRET, SECRET: 1}})
    assert SECRET not in str(caught.value)
    store = Store("s3://bucket/set", {"key": "me", "secret": SECRET})
    assert SECRET not in repr(store)


def test_local_paths_take_no_options(tmp_path: Path) -> None:
    store = Store(str(tmp_path), {"anon": True, "endpoint_url": "http://127.0.0.1:1"})
    assert store.create("x", b"1")
    assert store.read("x") == b"1"


def test_one_client_for_one_url() -> None:
    options = {"anon": True, "endpoint_url": "http://127.0.0.1:1"}
    first, second = Store("s3://a/x", options), Store("s3://a/y", dict(options))
    assert first.fs is second.fs
    assert first.fs.s3 is second.fs.s3
    assert Store("s3://a/x", {**options, "anon": False}).fs is not first.fs


def test_patience_with_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    fs, _ = open_filesystem("s3://bucket/x", {"anon": True})
    config = fs.s3.meta.config
    assert (config.connect_timeout, config.read_timeout) == (10, 30)
    assert config.retries["mode"] == "standard"
    assert config.retries["total_max_attempts"] >= 5
    assert config.max_pool_connections == filesystems.CONNECTIONS
    given = {"anon": True, "config_kwargs": {"read_timeout": 7, "retries": {"max_attempts": 1}}}
    config = open_filesystem("s3://bucket/x", given)[0].s3.meta.config
    assert (config.connect_timeout, config.read_timeout) == (10, 7)
    assert config.retries["total_max_attempts"] == 2
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "9")
    config = open_filesystem("s3://bucket/x", {"anon": True})[0].s3.meta.config
    assert config.retries["total_max_attempts"] == 9


class Refusal(Exception):
    """As botocore's ClientError looks."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.response = {"Error": {"Code": code}}


class HesitantFileSystem(MemoryFileSystem):
    """``hesitant://``: a store that answers create-only writes as ``answers`` says, in turn."""

    protocol = "hesitant"
    store: ClassVar[dict[str, Any]] = {}
    answers: ClassVar[list[Any]] = []
    lost_bytes: ClassVar[int] = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("hesitant://", "memory://")))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        assert mode == "create"
        if self.answers:
            answer = self.answers.pop(0)
            if callable(answer):
                answer = answer(self, path)
            if answer is not None:
                raise OSError(22, "as s3fs wraps it") from Refusal(answer)
        super().pipe_file(path, value[: len(value) - self.lost_bytes])

    def put_file(self, lpath: str, rpath: str, mode: str = "overwrite", **_: Any) -> None:
        self.pipe_file(rpath, Path(lpath).read_bytes(), mode)


fsspec.register_implementation("hesitant", HesitantFileSystem, clobber=True)
CONFLICT = "ConditionalRequestConflict"


@pytest.fixture
def hesitant(monkeypatch: pytest.MonkeyPatch) -> Store:
    HesitantFileSystem.store.clear()
    HesitantFileSystem.answers.clear()
    monkeypatch.setattr(store_module, "CONFLICT_WAITS", (0.0, 0.0, 0.0))
    return Store("hesitant://bucket/set")


def test_a_conflict_is_no_loss(hesitant: Store) -> None:
    """S3 says 409 to two writes at the same moment: perhaps neither, perhaps the other wins."""
    hesitant.fs.answers += [CONFLICT, CONFLICT]
    assert hesitant.create("x", b"ours")
    assert hesitant.read("x") == b"ours"

    def other_wins(fs: HesitantFileSystem, path: str) -> str:
        MemoryFileSystem.pipe_file(fs, path, b"theirs")
        return CONFLICT

    hesitant.fs.answers += [CONFLICT, other_wins]
    assert not hesitant.create("y", b"ours")
    assert hesitant.read("y") == b"theirs"
    hesitant.fs.answers += [CONFLICT] * 9
    with pytest.raises(StorageError, match="hesitant://bucket/set/z") as caught:
        hesitant.create("z", b"ours")
    assert caught.value.passing


def test_other_refusals(hesitant: Store) -> None:
    hesitant.fs.answers += ["PreconditionFailed"]
    assert not hesitant.create("x", b"ours")
    hesitant.fs.answers += ["AccessDenied"]
    with pytest.raises(OSError, match="as s3fs wraps it"):
        hesitant.create("x", b"ours")


def test_a_store_that_keeps_too_little(
    hesitant: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"12345678")
    monkeypatch.setattr(HesitantFileSystem, "lost_bytes", 3)
    with pytest.raises(StorageError, match=r"set/x: the store kept 5 of 8 bytes") as caught:
        hesitant.create_from("x", tmp_path / "file")
    assert caught.value.passing
    monkeypatch.setattr(HesitantFileSystem, "lost_bytes", 0)
    assert hesitant.create_from("x", tmp_path / "file")


def test_what_killed_processes_leave_behind_is_removed(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pipeline.stores.store import scratch_folder\n"
        "with scratch_folder(sys.argv[1]) as folder:\n"
        "    (folder / 'shard').write_bytes(b'much')\n"
        "    os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    (left,) = tmp_path.iterdir()
    assert (left / "shard").exists()
    foreign = tmp_path / "strata-scratch-notes"
    foreign.mkdir()
    with scratch_folder(str(tmp_path)) as mine, scratch_folder(str(tmp_path)) as other:
        assert not left.exists()
        assert mine.exists()
        assert other.exists()
    assert list(tmp_path.iterdir()) == [foreign]


def test_a_scratch_folder_is_safe_before_it_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock

    def somebody_else_looks_first(file: Any, how: int) -> None:
        if how == fcntl.LOCK_EX:
            scratch_module._remove_abandoned(tmp_path)
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", somebody_else_looks_first)
    with scratch_folder(str(tmp_path)) as folder:
        assert folder.exists()
    assert list(tmp_path.iterdir()) == []
