"""Writes decoded samples: to a tar, or to files whose names cannot leave their folder."""

import filecmp
import io
import re
import tarfile
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from ..dataset.ledger import Ledger
from ..dataset.records import Records
from ..stores.store import Store

# The plan and the commit records of a decode job, in its output folder.
DECODE_PLAN = ".strata/decode.json"
DECODE_COMMITS = ".strata/commits"
PACKED = {"webdataset": ".tar", "parquet": ".parquet"}  # formats with a file for each data file
_CONTROLS = re.compile("[\x80-\x9f]")  # control characters beyond ASCII
MAX_NAME_BYTES = 255  # what file systems allow; the store's temporary names are shorter


class UnwritableNameError(Exception):
    """A key cannot become a file name, or another file has the same name."""


def printable(key: str) -> str:
    """A key that may hold any bytes, as text."""
    return key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class _Names:
    """The names of written files. Different samples must not have the same ones."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def take(self, wanted: list[str], key: str) -> list[str]:
        """Take all of these names. Raises UnwritableNameError, and takes none, if one is taken."""
        for name in wanted:
            if name in self._taken or wanted.count(name) > 1:
                raise UnwritableNameError(f"{name!r:.200} of {key!r:.200} is another file's name")
        self._taken.update(wanted)
        return wanted


class TarTarget:
    """Writes a tar to local disk, whose bytes depend only on its samples.

    Names are those of the samples, unless they would be dangerous to unpack (``tar_name``). Two
    files of one name are refused, unless names may be ``repeated`` as in the original shard.
    """

    def __init__(self, path: Path, *, repeated: bool = False) -> None:
        self._names = None if repeated else _Names()
        self._tar = tarfile.open(path, "w", format=tarfile.GNU_FORMAT)  # noqa: SIM115

    def write(self, key: str, fields: list[tuple[str, bytes]], picture: str = "") -> None:
        names = [tar_name(f"{key}.{name}" if name else key) for name, _ in fields]
        if self._names is not None:
            self._names.take(names, key)
        for name, (_, data) in zip(names, fields, strict=True):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            self._tar.addfile(info, io.BytesIO(data))

    def close(self) -> None:
        self._tar.close()


class FileTarget:
    """Writes files to one folder per shard.

    An existing file may come from an earlier attempt, from an older generation of the shard or from
    a job whose plan was removed. It is replaced if its content differs. With ``tidy`` all other
    files of the folder, which an older generation wrote, are removed at the end.
    """

    def __init__(self, store: Store, folder: str, tidy: bool = False) -> None:
        self._store, self._folder, self._names = store, folder, _Names()
        self._tidy = tidy
        self._written: set[str] = set()

    def write(self, key: str, fields: list[tuple[str, bytes]], picture: str = "") -> None:
        names = self._names.take([safe_path(f"{key}.{name}") for name, _ in fields], key)
        for name, (_, data) in zip(names, fields, strict=True):
            path = f"{self._folder}/{name}"
            self._written.add(self._store.path(path))
            try:
                if not self._store.create(path, data) and not self._holds(path, data):
                    self._store.remove(path)
                    self._store.create(path, data)
            except (NotADirectoryError, IsADirectoryError, FileExistsError) as error:
                raise UnwritableNameError(f"{path} is a folder's name as well") from error

    def _holds(self, path: str, data: bytes) -> bool:
        size = self._store.info(path)["size"]
        return bool(size == len(data) and self._store.read(path, size) == data)

    def close(self) -> None:
        if self._tidy:
            for path in self._store.fs.find(self._store.path(self._folder)):
                if path not in self._written:
                    self._store.fs.rm_file(path)


def publish_packed(
    store: Store, ledger: Ledger, name: str, suffix: str, local: Path, scratch: Path
) -> None:
    """Publish ``local``, a tar or a table, as ``<name><suffix>``, before its record.

    An existing file is kept if it is equal (from an earlier attempt) or has a record. Any other
    file comes from a job with other parameters whose plan was removed, and is replaced.
    """
    store.create_or_keep(
        f"{name}{suffix}",
        local,
        scratch / f"standing{suffix}",
        lambda it: filecmp.cmp(it, local, shallow=False) or ledger.exists(name),
    )


def clear_parts(store: Store, folders: Iterable[str] = ()) -> None:
    """Remove half-written files of killed jobs, from the output and from these ``folders``."""
    for folder in ("", ".strata", DECODE_COMMITS):
        store.clear_parts(folder)
    for folder in folders:
        store.clear_parts(folder, deep=True)


def finished_files(ledger: Ledger, records: Records, suffix: str) -> tuple[Records, list[str]]:
    """The records of existing files and of empty ones; and the names of lost files.

    What is left of lost files is removed.
    """
    done, lost = ledger.completed("", suffix, records.where(lambda one: bool(one["bytes"])))
    ledger.drop("", suffix, lost)
    done.update(records.where(lambda one: not one["bytes"]))
    return done, list(lost)


def tar_name(name: str) -> str:
    """``name`` itself, or ``safe_path`` of a name that is dangerous to unpack or to print.

    Dangerous names are absolute, begin with a drive (``c:``), have ``..`` between slashes or
    backslashes, or have control characters. Raises UnwritableNameError if a part of such a name is
    too long.
    """
    parts = re.split(r"[/\\]", name)
    leaves_folder = not parts[0] or ".." in parts or re.match("[A-Za-z]:", name)
    controls = any(unicodedata.category(letter) == "Cc" for letter in name)
    return safe_path(name) if leaves_folder or controls else name


def safe_path(name: str) -> str:
    """``name`` as a relative path that cannot leave its folder. Different names stay different.

    Empty parts, ``.`` and ``..``, bytes that some file system refuses, and ``%`` itself are written
    as ``%XX``.
    """
    return "/".join(_safe_part(part) for part in name.split("/"))


def _escaped(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode())


def _safe_part(part: str) -> str:
    if not part:
        return "%"
    raw = part.encode("utf-8", "surrogateescape")
    if part.strip(".") == "":
        return "".join(f"%{byte:02X}" for byte in raw)
    refused = b'%\\:*?"<>|'
    safe = "".join(
        f"%{byte:02X}" if byte < 32 or byte == 127 or byte in refused else chr(byte) for byte in raw
    )
    try:
        text = _CONTROLS.sub(_escaped, safe.encode("latin-1").decode())
    except UnicodeDecodeError:
        text = "".join(c if ord(c) < 128 else f"%{ord(c):02X}" for c in safe)
    if len(text.encode()) > MAX_NAME_BYTES:
        raise UnwritableNameError(f"{part[:60]!r}... is too long for a file's name")
    return text
