"""Checks whether archives can be merged: their plans, names of data files, and keys."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from codec.errors import StrataError

from ..dataset.data_file import DataFile, DatasetError
from ..dataset.index import BrokenIndexError
from ..dataset.layout import split_generation
from ..dataset.plan import MERGED, plans_of
from ..reader.blocks import IndexBlocks
from ..reader.dataset import Dataset
from ..sources.base import is_part
from ..stores.cache import ByteCache
from ..stores.ranges import AT_ONCE
from ..stores.threads import ahead

COMPARED_KEYS = 20_000_000  # at most; each takes 8 bytes of memory
NAMED = 5  # keys or files that a message names
_CACHE_BYTES = 16 << 20
# These parameters must be equal: one model must read all streams, from the same columns.
_SAME = ("format", "schema", "codec", "model_id", "model_layers", "layers")


class MergeError(StrataError):
    """Archives cannot be merged; the message says why, and what to do."""


@dataclass(frozen=True)
class Source:
    """A data file and the archive that it is copied from."""

    dataset: Dataset
    file: DataFile

    @property
    def url(self) -> str:
        """The URL of the shard."""
        return str(self.file.record["source"]["url"])


def merged_parameters(datasets: Sequence[Dataset]) -> dict[str, Any]:
    """The parameters of the merged archive.

    If all plans are equal, they are those of this plan. Otherwise they are what holds for all of
    the archives, with all their plans under ``MERGED``. Raises MergeError.
    """
    first = datasets[0]
    for other in datasets[1:]:
        for name in _SAME:
            ours, theirs = first.parameters.get(name), other.parameters.get(name)
            if ours != theirs:
                raise MergeError(
                    f"{first.url} and {other.url} cannot be one archive: {name} is {ours!r} in the "
                    f"first and {theirs!r} in the second. Archives can be merged if they have the "
                    "same model and number of layers: compress one of them again, or cut both to "
                    "the same layers (strata decode --format strata --layers)"
                )
    # The lists of parts of folders are not merged. So no job may add to such an archive.
    listed = any(is_part(file.record["source"]["url"]) for one in datasets for file in one.files)
    if not listed and all(one.fingerprint == first.fingerprint for one in datasets):
        return first.parameters
    plans: dict[str, dict[str, Any]] = {}
    for one in datasets:
        plans |= plans_of(one.parameters, one.fingerprint)
    every = [one.parameters for one in datasets]
    merged = {
        name: value
        for name, value in first.parameters.items()
        if name != MERGED and all(name in one and one[name] == value for one in every)
    }
    return merged | {
        "lossless": all(one.get("lossless") for one in every),
        "store_layers": merged.get("store_layers"),
        "min_side": min(one.get("min_side", 0) for one in every),
        "max_pixels": max(one.get("max_pixels", 0) for one in every),
        "keep_original": merged.get("keep_original"),
        "target_quality": merged.get("target_quality"),
        MERGED: plans,
    }


def sources_of(datasets: Sequence[Dataset]) -> tuple[dict[str, Source], list[str]]:
    """The data files of all archives by name without generation, and names that occur twice.

    Raises MergeError if two archives have different files of one name.
    """
    found: dict[str, Source] = {}
    twice = []
    for dataset in datasets:
        for file in dataset.files:
            base, _ = split_generation(file.name)
            known = found.setdefault(base, Source(dataset, file))
            if known.file is file:
                continue
            same = (known.file.name, known.file.record["sha256"])
            if same != (file.name, file.record["sha256"]):
                raise MergeError(
                    f"{known.dataset.url}/{known.file.path} and {dataset.url}/{file.path} are "
                    f"different files of one shard, {known.url}: an archive can have only one of "
                    "them. Leave out one of the archives, or compress one without this shard"
                )
            twice.append(base)
    return found, twice


def repeated_keys(datasets: Sequence[Dataset]) -> tuple[int, list[str]]:
    """How many keys occur in several of these archives, and some of these keys.

    Reads the indexes of files whose bounds overlap those of another archive. Returns -1, and
    compares nothing, if these files have more than ``COMPARED_KEYS`` pictures.
    """
    chosen = [list(_overlapping(number, datasets)) for number in range(len(datasets))]
    if sum(file.ok for files in chosen for file in files) > COMPARED_KEYS:
        return -1, []
    hashes = [
        np.unique(np.concatenate([_hashes(keys) for keys in _keys(one, files)] or [_hashes([])]))
        for one, files in zip(datasets, chosen, strict=True)
    ]
    every, counts = np.unique(np.concatenate(hashes), return_counts=True)
    repeated = every[counts > 1]
    if not len(repeated):
        return 0, []
    named: list[str] = []
    for keys in chain.from_iterable(map(_keys, datasets, chosen)):
        hits = np.isin(_hashes(keys), repeated)
        named += [key for key, hit in zip(keys, hits, strict=True) if hit and key not in named]
        if len(named) >= NAMED:
            break
    return len(repeated), named[:NAMED]


def _overlapping(number: int, datasets: Sequence[Dataset]) -> Iterator[DataFile]:
    """The files of one archive that may have keys of another archive."""
    others = [one for at, one in enumerate(datasets) if at != number]
    bounds = [file.key_bounds for one in others for file in one.files if file.ok and file.index]
    lows = sorted(bound[0] for bound in bounds if bound)
    highs = sorted(bound[1] for bound in bounds if bound)
    for file in datasets[number].files:
        if file.ok and file.key_bounds:
            low, high = file.key_bounds
            # Some other range begins before this one ends, and ends after this one begins.
            if bisect_right(lows, high) > bisect_left(highs, low):
                yield file


def _keys(dataset: Dataset, files: Sequence[DataFile]) -> Iterator[list[str]]:
    def read(file: DataFile) -> list[str]:
        blocks = IndexBlocks(dataset.store, file, ByteCache(_CACHE_BYTES))
        try:
            return [key for block in blocks.get(range(len(blocks.bounds()))) for key in block.keys]
        except BrokenIndexError as error:
            raise DatasetError(
                f"{dataset.url}: {error}: strata verify --input {dataset.url} --repair writes it "
                "again"
            ) from error

    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield from ahead(pool, read, files, lambda: 2 * AT_ONCE)


def _hashes(keys: Sequence[str]) -> np.ndarray:
    return np.fromiter(map(hash, keys), np.int64, len(keys))


def check_deletions(
    sources: Mapping[str, Source], deleted: Mapping[str, Mapping[str, int]], output: str
) -> None:
    """Raise MergeError for data files with samples that were deleted from another archive.

    ``deleted`` has the deletions of all archives and of the output, by shard.
    """
    wrong = [
        f"{source.dataset.url}/{source.file.path}"
        for base, source in sources.items()
        if sum(deleted.get(base, {}).values()) != source.file.record.get("deleted", 0)
    ]
    if wrong:
        more = f", and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        raise MergeError(
            f"{', '.join(wrong[:NAMED])}{more}: samples of these shards were deleted from another "
            f"archive or from {output}, and would come back: first delete their keys from all "
            "archives (strata delete)"
        )
