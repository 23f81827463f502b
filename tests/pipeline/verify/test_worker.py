"""The full check: workers read data files whole, in parts."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codec.errors import MissingPackageError
from codec.images.packing import pack_file
from pipeline.compress.job import CompressOptions, compress
from pipeline.decode.job import DecodeOptions
from pipeline.decode.job import decode as hand_out
from pipeline.running.scheduler import Outcome, Task
from pipeline.verify.job import Subset
from tests.pipeline.makers import ToyCodec, png, write_tar
from tests.pipeline.reader.test_originals import jpeg
from tests.pipeline.verify.archives import (
    FULL,
    Archive,
    Harm,
    first_record,
    flip,
    in_a_layer,
    place_of,
)


def in_the_header_column(archive: Archive) -> None:
    """Headers of pictures of one size are equal, and lie one after the other."""
    header = first_record(archive).encoded.header
    flip(archive.file(), archive.file().read_bytes().index(header) + 3)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (in_a_layer, ["row group 0, column layer_02", "'s0002': layer 3 does not match"]),
        (in_the_header_column, ["row group 0, column header", "'s0000': layer 1"]),
    ],
)
def test_what_only_a_full_check_finds(archive: Archive, harm: Harm, words: list[str]) -> None:
    path = archive.file()
    harm(archive)
    assert archive.verify().exit_code == 0
    for decode in (False, True):
        report = archive.verify(read=FULL, decode=decode)
        (damage,) = report.damaged
        assert (damage.kind, damage.path) == ("data", f"data/{path.name}")
        assert "sha256" in damage.problems[0]
        text = "\n".join(damage.problems)
        assert all(word in text for word in words)
        assert "s0001': layer" not in text
        assert report.exit_code == 1
    assert archive.verify(read=FULL, repair=True).exit_code == 0
    archive.check_whole()


def test_parts_make_a_whole(archive: Archive) -> None:
    in_a_layer(archive)
    parts = [archive.verify(read=Subset(n, 2)) for n in (1, 2)]
    assert [part.files_read for part in parts] == [1, 1]
    assert sorted(part.exit_code for part in parts) == [0, 1]
    files = archive.dataset.files
    assert sorted(Subset(share=0.01, seed=s).choose(files)[0].name for s in range(20)) != sorted(
        [files[0].name] * 20
    )
    assert Subset(share=0.5, seed=3).choose(files) == Subset(share=0.5, seed=3).choose(files)
    assert Subset(share=1.0).choose(files) == sorted(files, key=lambda file: file.name)


def test_pixels_that_are_not_those(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams that decode, but to something else than was encoded."""
    real = ToyCodec._decode

    def decode(self: ToyCodec, one: Any, layers: int | None) -> np.ndarray:
        image = real(self, one, layers)
        image[0, 0, 0] ^= 1
        return image

    monkeypatch.setattr(ToyCodec, "_decode", decode)
    report = archive.verify(read=FULL)
    assert len(report.damaged) == 2
    assert any("'s0000': decodes to other pixels" in p for d in report.damaged for p in d.problems)


def test_originals_that_were_kept(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = tmp_path / "kept"
    tar = write_tar(tmp_path / "k.tar", [("k.png", png(1))])
    options = CompressOptions(
        inputs=(str(tar),), output=str(root), model="toy", keep_original="always"
    )
    compress(options)
    kept = Archive(root)
    path = kept.file("k")
    flip(path, place_of(path, png(1)) + 40)
    (damage,) = kept.verify(read=FULL).damaged
    assert any("'k': its original has another size or sha256" in p for p in damage.problems)


def test_packed_originals_are_unpacked_checked_and_packed_again(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root, file = tmp_path / "kept", jpeg(0)
    tar = write_tar(tmp_path / "k.tar", [("k.jpg", file), ("cut.jpg", jpeg(1)[:-400])])
    compress(
        CompressOptions(inputs=(str(tar),), output=str(root), model="toy", keep_original="always")
    )
    kept = Archive(root)
    assert kept.verify(read=FULL).exit_code == 0
    restored = DecodeOptions(str(root), str(tmp_path / "out"), format="originals")
    assert hand_out(restored).ok == 2
    path = kept.file("k")
    packed, packing = pack_file(file)
    assert packing == "lepton"
    flip(path, place_of(path, packed) + len(packed) // 2)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "lepton_jpeg_python", None)
        with pytest.raises((MissingPackageError, RuntimeError), match="lepton_jpeg_python is not"):
            kept.verify(read=FULL)  # that is no damage
    (damage,) = kept.verify(read=FULL).damaged
    assert any("original" in p and p.startswith("'k'") for p in damage.problems)
    assert kept.verify(read=FULL, repair=True).exit_code == 0
    assert kept.file("k") != path
    assert kept.dataset.original("k") == file
    assert place_of(kept.file("k"), packed)
    again = hand_out(restored)  # the next generation takes the place of the tar
    assert (again.ok, again.resumed) == (2, 0)
    assert [one.name for one in (tmp_path / "out").glob("*.tar")] == ["k.tar"]
    assert hand_out(restored).resumed == 1


def test_a_worker_that_fails_is_no_damage(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_tasks(kind: type, settings: Any, tasks: list[Task], *_: object) -> list[Outcome]:
        return [Outcome(task, None, "its worker died", 3, True) for task in tasks]

    monkeypatch.setattr("pipeline.running.job.run_tasks", run_tasks)
    report = archive.verify(read=FULL, repair=True)
    assert (report.damaged, report.exit_code, len(report.unchecked)) == ([], 1, 2)
