"""A small dataset, and ways to damage it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import open_dataset
from pipeline.compress.job import CompressOptions, compress
from pipeline.reader.dataset import Dataset
from pipeline.running.progress.summary import Summary
from pipeline.verify.job import Subset, VerifyOptions, VerifyReport, verify
from tests.pipeline.makers import picture, samples, write_tar

FULL = Subset()
PICTURES = {f"s{number:04d}": picture(number) for number in (*range(5), *range(10, 14))}


@dataclass(frozen=True)
class Archive:
    """A small lossless dataset of the shards a and b, which lie beside it."""

    root: Path

    @property
    def tars(self) -> tuple[str, str]:
        return str(self.root.parent / "a.tar"), str(self.root.parent / "b.tar")

    def compress(self, *inputs: str) -> Summary:
        """Run the compressing job (again), of these shards or else of its own."""
        return compress(
            CompressOptions(
                inputs=inputs or self.tars,
                output=str(self.root),
                model="toy",
                lossless=True,
                keep_original="bad",
            )
        )

    @property
    def dataset(self) -> Dataset:
        return open_dataset(str(self.root))

    def file(self, stem: str = "a") -> Path:
        (name,) = (f.name for f in self.dataset.files if f.name.startswith(f"{stem}-"))
        return self.root / "data" / f"{name}.parquet"

    def record(self, stem: str = "a") -> Path:
        return self.root / "commits" / f"{self.file(stem).stem}.json"

    def verify(self, **options: Any) -> VerifyReport:
        return verify(VerifyOptions(dataset=str(self.root), **options))

    def check_whole(self) -> None:
        """It holds what it held at first, and nothing is damaged."""
        report = self.verify(read=FULL)
        assert [damage.to_json() for damage in report.damaged] == []
        assert (report.exit_code, report.files_read, report.pictures_decoded) == (0, 2, 9)
        dataset = self.dataset
        now = {r.key: dataset.codec().decode([r.encoded])[0] for r in dataset.read()}
        assert now.keys() == PICTURES.keys()
        assert all((now[key] == picture).all() for key, picture in PICTURES.items())


def make(folder: Path) -> None:
    write_tar(folder / "a.tar", samples(5))
    write_tar(folder / "b.tar", [*samples(4, 10), ("bad.png", b"broken"), ("._x.png", b"")])
    assert Archive(folder / "set").compress().ok == 9


Harm = Callable[[Archive], None]


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x40
    path.write_bytes(data)


def place_of(path: Path, content: bytes) -> int:
    data = path.read_bytes()
    assert data.count(content) == 1
    return data.index(content)


def first_record(archive: Archive) -> Any:
    return archive.dataset.record("s0002")


def in_a_layer(archive: Archive) -> None:
    layer = first_record(archive).encoded.layers[2]
    flip(archive.file(), place_of(archive.file(), layer) + len(layer) // 2)


def truncated(archive: Archive) -> None:
    data = archive.file().read_bytes()
    archive.file().write_bytes(data[: len(data) // 2])


def lose(path: Path) -> None:
    path.unlink()


def spoil(path: Path) -> None:
    path.write_bytes(b'{"half')
