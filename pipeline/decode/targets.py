"""Where decoded samples go: a tar, or files under names that cannot leave their folder."""

import io
import tarfile
from pathlib import Path

from ..stores.store import Store

# In the folder of what was decoded: the plan, and the records of what is done.
DECODE_PLAN = ".strata/decode.json"
DECODE_COMMITS = ".strata/commits"
MAX_NAME_BYTES = 240  # file systems take 255; the store's temporary names need a few


class UnwritableNameError(Exception):
    """A key cannot be a file's name beside the others."""


class TarTarget:
    """A tar on local disk whose bytes depend only on its samples."""

    def __init__(self, path: Path) -> None:
        self._tar = tarfile.open(path, "w", format=tarfile.GNU_FORMAT)  # noqa: SIM115

    def write(self, key: str, fields: list[tuple[str, bytes]]) -> None:
        for name, data in fields:
            info = tarfile.TarInfo(f"{key}.{name}")
            info.size = len(data)
            self._tar.addfile(info, io.BytesIO(data))

    def close(self) -> None:
        self._tar.close()


class FileTarget:
    """A folder per shard.

    A file that is there already may come from an earlier attempt, from an older generation of the
    shard or from a job whose plan was removed. It is replaced if its content differs.
    """

    def __init__(self, store: Store, folder: str) -> None:
        self._store, self._folder = store, folder

    def write(self, key: str, fields: list[tuple[str, bytes]]) -> None:
        for name, data in fields:
            path = f"{self._folder}/{safe_path(f'{key}.{name}')}"
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
        pass


def safe_path(name: str) -> str:
    """``name`` as a relative path that cannot leave its folder; different names stay different.

    Written as ``%XX`` are empty parts, ``.`` and ``..``, bytes that some file system refuses, and
    ``%`` itself.
    """
    return "/".join(_safe_part(part) for part in name.split("/"))


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
        text = safe.encode("latin-1").decode()
    except UnicodeDecodeError:
        text = "".join(c if ord(c) < 128 else f"%{ord(c):02X}" for c in safe)
    if len(text.encode()) > MAX_NAME_BYTES:
        raise UnwritableNameError(f"{part[:60]!r}... is too long for a file's name")
    return text
