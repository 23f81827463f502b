"""Opens shards of any kind, on any store, as tars for training."""

import io
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from ..sources import shards
from ..sources.base import Shard
from ..sources.kinds import InputFormat, is_table
from ..sources.listing import expand_inputs
from ..sources.samples import tar_key
from ..stores.filesystems import open_filesystem, storage_errors
from ..stores.store import scratch_folder


@dataclass(frozen=True)
class Opener:
    """Opens shards by URL. ``others`` are the shards that are no tars."""

    options: Mapping[str, Any] | None = field(default=None, repr=False)
    others: Mapping[str, Shard] = field(default_factory=dict)

    @contextmanager
    def __call__(self, url: str) -> Iterator[BinaryIO]:
        """A shard as a tar, to be read from its beginning.

        Raises StorageError and ShardError, also while it is read.
        """
        if url not in self.others:
            fs, path = open_filesystem(url, self.options)
            with storage_errors(url, "cannot be read"), fs.open(path, "rb") as stream:
                yield stream
            return
        with (
            storage_errors(url, "cannot be read"),
            scratch_folder(None) as scratch,
            shards.open_shard(self.others[url], scratch, self.options) as file,
        ):
            packed = scratch / "packed.tar"
            _pack(file, packed)
            with open(packed, "rb") as stream:
                yield stream


def _pack(file: shards.ShardFile, path: Any) -> None:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for sample in file.samples:
            if sample.problem or sample.filtered:
                continue
            for name, member in sample.fields:
                info = tarfile.TarInfo(f"{tar_key(sample.key)}.{name}")
                info.size = member.size
                tar.addfile(info, io.BytesIO(file.read(member)))


def list_shards(
    urls: Sequence[str],
    options: Mapping[str, Any] | None = None,
    wanted: InputFormat | None = None,
) -> tuple[tuple[str, ...], dict[str, Shard]]:
    """The shards behind paths, globs, folders and URLs, sorted, and those that are no tars.

    Raises StorageError.
    """
    found = expand_inputs(urls, options, wanted) if urls else []
    others = {one.url: one for one in found if one.listing or is_table(one.url)}
    return tuple(one.url for one in found), others
