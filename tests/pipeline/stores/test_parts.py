"""Unfinished files of killed processes are removed by the next job, those of running ones never."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.decode import job
from pipeline.decode.job import DecodeOptions, decode
from pipeline.stores import parts
from pipeline.stores.parts import clear_parts, publish
from pipeline.stores.store import Store
from tests.conftest import ROOT
from tests.pipeline.streams import rows, write_dataset

# Begins to write a file whose content comes from a pipe that gives no more after the first bytes.
WRITER = """
import sys
from pathlib import Path
from pipeline.stores.parts import publish

publish(Path(sys.argv[1]), Path("/dev/stdin"))
"""


def begin_to_write(target: Path) -> "subprocess.Popen[bytes]":
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, target], stdin=subprocess.PIPE, cwd=ROOT
    )
    assert writer.stdin is not None
    writer.stdin.write(bytes(1 << 21))
    writer.stdin.flush()
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size for path in target.parent.glob(".*.part")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return writer


def end(writer: "subprocess.Popen[bytes]") -> None:
    writer.send_signal(signal.SIGKILL)
    writer.communicate()


def test_parts_are_removed_only_when_their_process_is_dead(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    living = begin_to_write(folder / "living.png")
    (part,) = folder.glob(".*.part")
    dead = begin_to_write(folder / "dead.png")
    end(dead)
    assert len([*folder.iterdir()]) == 2
    clear_parts(tmp_path)
    assert len([*folder.iterdir()]) == 2  # not in the folder itself
    clear_parts(tmp_path, deep=True)
    assert [*folder.iterdir()] == [part]
    assert living.stdin is not None
    living.stdin.close()
    assert living.wait(60) == 0
    assert [path.name for path in folder.iterdir()] == ["living.png"]


def test_parts_of_other_machines_are_removed_by_their_age(tmp_path: Path) -> None:
    young, old = tmp_path / f".{'0' * 32}.part", tmp_path / f".{'1' * 32}.part"
    others = [tmp_path / name for name in ("x.part", ".x.part", f"{'0' * 32}.part")]
    for path in (young, old, *others):
        path.write_bytes(b"x")
        os.utime(path, (1, 1)) if path != young else None
    clear_parts(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([young, *others])


def test_a_part_that_is_taken_away_before_it_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, taken = parts.fcntl.flock, []

    def late(file: object, how: int) -> None:
        if not taken:
            taken.extend(tmp_path.glob(".*.part"))
            taken[0].unlink()
        lock(file, how)  # type: ignore[arg-type]

    monkeypatch.setattr(parts.fcntl, "flock", late)
    assert publish(tmp_path / "a", b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert not publish(tmp_path / "a", b"other")
    assert (tmp_path / "a").read_bytes() == b"content"


@pytest.mark.parametrize("form", ["webdataset", "files", "strata", "originals"])
def test_the_next_job_removes_what_a_killed_one_left(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = write_dataset(str(tmp_path / "set"), [list(rows(["a", "b"], (5,)))], 1)
    for module in ("job", "originals_job", "copy_job"):
        monkeypatch.setattr(f"pipeline.decode.{module}.run_job_tasks", lambda *_, **__: [])
    assert job.run_job_tasks
    out = tmp_path / "out"
    places = {
        "webdataset": [out, out / ".strata" / "commits"],
        "files": [out / dataset.files[0].name / "deep"],
        "strata": [out / "data", out / "index", out / "commits"],
        "originals": [out],
    }
    for place in places[form]:
        place.mkdir(parents=True, exist_ok=True)
        end(begin_to_write(place / "a"))
    monkeypatch.setattr("pipeline.decode.copy_job.copy_model", lambda *_: None)
    decode(DecodeOptions(str(tmp_path / "set"), str(out), format=form))
    assert not [path for path in out.rglob("*") if path.name.endswith(".part")]
    assert Store(str(out)).exists("dataset.json" if form == "strata" else ".strata/decode.json")
