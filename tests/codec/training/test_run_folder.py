"""A run's folder: which checkpoints it keeps, and from which one a run resumes."""

from pathlib import Path

import pytest

from codec.training.run_folder import RunFolder, checkpoint_name


def add(folder: RunFolder, step: int, keep: int = 2) -> None:
    folder.add_checkpoint(step, lambda path: path.write_text(str(step)), keep)


def test_the_last_checkpoints_are_kept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert folder.newest() is None
    for step in (9, 10, 1000):
        add(folder, step)
    assert sorted(file.name for file in folder.path.iterdir()) == [
        checkpoint_name(10),
        checkpoint_name(1000),
    ]
    newest = folder.newest()
    assert newest is not None
    assert newest.read_text() == "1000"


def test_going_back_ends_what_came_after(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in (10, 20, 30):
        add(folder, step, keep=3)
    add(folder, 15, keep=3)
    newest = folder.newest()
    assert newest is not None
    assert newest.name == checkpoint_name(15)


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    add(folder, 1, keep=1)

    def full(path: Path) -> None:
        path.write_text("half")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        folder.add_checkpoint(2, full, keep=1)
    newest = folder.newest()
    assert newest is not None
    assert newest.read_text() == "1"
