"""Archives of the toy codec for info, merge and delete."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.compress.job import CompressOptions, compress
from tests.pipeline.makers import ToyCodec, samples, write_tar

MakeArchive = Callable[..., str]


@pytest.fixture
def make_archive(toy: ToyCodec, without_ray: None, tmp_path: Path) -> MakeArchive:
    """``make_archive("A", "a", "b")``: an archive ``A`` of the shards ``a.tar`` and ``b.tar``.

    The n-th letter's shard has the samples s0n0 to s0n4, a bad and a filtered one.
    """

    def make(name: str, *shards: str, **options: object) -> str:
        inputs = []
        for shard in shards:
            path = tmp_path / f"{shard}.tar"
            if not path.exists():
                start = 10 * "abcdefgh".index(shard)
                files = [
                    *samples(5, start),
                    (f"bad-{shard}.png", f"no picture in {shard}".encode()),
                    ("._x.png", b""),
                ]
                write_tar(path, files)
            inputs.append(str(path))
        output = str(tmp_path / name)
        settings = {"model": "toy", "lossless": True, **options}
        assert compress(CompressOptions(inputs=tuple(inputs), output=output, **settings)).ok  # type: ignore[arg-type]
        return output

    return make
