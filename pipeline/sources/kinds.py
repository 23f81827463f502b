"""Sorts the files of an input by kind: tars, Parquet files, loose pictures."""

from collections.abc import Mapping
from typing import Any, Literal

from ..stores.filesystems import StorageError
from ..stores.urls import TAR_SUFFIXES, without_query
from .base import PARQUET_SUFFIXES
from .folder import first_few
from .samples import is_picture

InputFormat = Literal["tars", "files", "parquet"]
# How the files of an input were found; "" if the input is a file itself.
Searched = Literal["", "folder", "glob"]
Entries = dict[str, dict[str, Any]]
OTHER_PACKINGS = (
    *(".tar.bz2", ".tbz", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.lz4", ".tar.lz"),
    *(".tar.z", ".tar.br", ".tar.7z"),
)
_STATISTICS = "_stats.json"  # img2dataset writes such a file beside each shard
_NAMES: dict[InputFormat, str] = {"tars": "tars", "files": "pictures", "parquet": "Parquet files"}


def is_tar(name: str) -> bool:
    """Whether a file is a tar by its name."""
    return without_query(name).lower().endswith(TAR_SUFFIXES)


def is_table(name: str) -> bool:
    """Whether a file is a Parquet file by its name."""
    return without_query(name).lower().endswith(PARQUET_SUFFIXES)


class FilesByKind:
    """The files of one input: ``tars``, Parquet ``tables``, and ``loose`` files with pictures.

    Args:
        url: the input.
        entries: the files by path.
        searched: how they were found. The name of a file that was given itself says its kind; any
            other name is that of a tar.
        wanted: the kind to take; None takes the only one there is.
    """

    def __init__(
        self, url: str, entries: Entries, searched: Searched, wanted: InputFormat | None
    ) -> None:
        self.url, self.wanted, self.searched = url, wanted, searched
        files = {name: one for name, one in entries.items() if one["type"] == "file"}
        self.tars = {name: one for name, one in files.items() if is_tar(name)}
        self.tables = {name: one for name, one in files.items() if is_table(name)}
        rest = {n: one for n, one in files.items() if n not in self.tars and n not in self.tables}
        self.metadata: list[str] = []  # files that hold no pictures and only describe others
        if searched:
            self.metadata = [name for name in rest if name.endswith(_STATISTICS)]
            rest = {name: one for name, one in rest.items() if name not in {*self.metadata}}
        self.loose = rest if any(map(is_picture, rest)) else {}
        if searched != "folder" and not self.loose:
            self.tars |= rest  # tars with other names
        if searched == "folder" and wanted in (None, "tars"):
            self._refuse_packed(rest)
        if not searched and wanted == "files":
            self.loose, self.tars, self.tables = files, {}, {}
        self._leave_out({name: "" for name in self.tables if self._describes(name)})

    def _refuse_packed(self, rest: Mapping[str, Any]) -> None:
        packed = [name for name in rest if name.lower().endswith(OTHER_PACKINGS)]
        if packed:
            count = f" ({len(packed)} files)" if len(packed) > 1 else ""
            raise StorageError(
                f"{packed[0]}: only gzip is supported for packed tars{count}: unpack it, move it "
                "elsewhere, or give a glob that does not match it"
            )

    def _describes(self, table: str) -> bool:
        """Whether a table lies beside a tar or a folder of pictures with the same name."""
        stem = table.rpartition(".")[0]
        beside = any(f"{stem}{suffix}" in self.tars for suffix in TAR_SUFFIXES)
        return bool(self.searched) and (beside or stem in self._picture_folders)

    @property
    def _picture_folders(self) -> set[str]:
        return {name.rpartition("/")[0] for name in self.loose}

    def _leave_out(self, tables: Mapping[str, str]) -> None:
        self.metadata += tables
        self.tables = {name: one for name, one in self.tables.items() if name not in tables}

    def choose(self, without_pictures: Mapping[str, str]) -> None:
        """Keep only the wanted kind.

        ``without_pictures`` are the tables that have no pictures, each with the reason. Raises
        StorageError if nothing is left, or if there are several kinds and none is wanted.
        """
        if self.searched:
            self._leave_out(without_pictures)
        found: dict[InputFormat, Entries] = {
            "tars": self.tars,
            "files": self.loose,
            "parquet": self.tables,
        }
        there = {kind: entries for kind, entries in found.items() if entries}
        if self.wanted is None and len(there) > 1:
            counts = " and ".join(
                f"{self._count(kind, entries):,} {_NAMES[kind]}" for kind, entries in there.items()
            )
            raise StorageError(
                f"{self.url}: has {counts}: choose with --input-format {' or '.join(there)}, or "
                f"with a glob such as '{self.url.rstrip('/')}/*.tar'"
            )
        if self.wanted is not None:
            there = {self.wanted: found[self.wanted]} if found[self.wanted] else {}
        if not there:
            if without_pictures and self.wanted in (None, "parquet"):
                raise StorageError(next(iter(without_pictures.values())))
            if self.wanted is not None:
                raise StorageError(f"{self.url}: has no {_NAMES[self.wanted]}")
            raise StorageError(
                f"{self.url}: has no tar ({', '.join(TAR_SUFFIXES)}), no picture and no Parquet "
                "file"
            )
        self.tars, self.loose, self.tables = (
            there.get("tars", {}),
            there.get("files", {}),
            there.get("parquet", {}),
        )

    def _count(self, kind: InputFormat, entries: Entries) -> int:
        return sum(map(is_picture, entries)) if kind == "files" else len(entries)

    @property
    def note(self) -> str:
        """A line about the files that are left out because they only describe others, or ''."""
        if not self.metadata or self.wanted == "parquet":
            return ""
        return (
            f"{self.url}: left out, because they hold no pictures and only describe them: "
            f"{first_few(sorted(self.metadata))}"
        )
