"""Folders on any file system fsspec knows: whole files only, and none is ever overwritten.

Three habits keep a dataset sound whatever dies when:

- a file is published by one explicit upload of a closed local file (never through a context
  manager: after an exception fsspec's ``__exit__`` commits the half that was written);
- publishing is create-only: the first writer wins and everybody else is told so;
- nothing is renamed, because S3 has no rename.
"""

import contextlib
import inspect
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from codec.errors import StrataError


class StorageError(StrataError):
    """An input cannot be read or an output cannot be written; the message names the URL."""


@contextmanager
def storage_errors(url: str, problem: str) -> Iterator[None]:
    """Turn whatever a store raises (each has exceptions of its own) into a StorageError."""
    try:
        yield
    except StrataError:
        raise
    except Exception as error:
        raise StorageError(f"{url}: {problem}: {type(error).__name__}: {error}") from error


def open_filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of ``url`` and the path in it, without a trailing slash.

    Raises StorageError for a protocol that is unknown or whose package is not installed.
    """
    if "::" in url:
        raise StorageError(f"{url}: chained URLs are not supported; give the archive's own address")
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError, OSError) as error:
        raise StorageError(f"{url}: {error}") from error
    return fs, path.rstrip("/") or path


@contextmanager
def scratch_folder(parent: str | None) -> Iterator[Path]:
    """A local folder for temporary files, inside ``parent`` (made if missing) or the system's.

    The driver of a job holds one around all that its workers on this machine use: they are
    killed when a job is stopped, and cannot tidy up themselves.
    """
    if parent is not None:
        os.makedirs(parent, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="strata-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Store:
    """One folder, by URL (a local path is a URL too). Names inside it use ``/``."""

    def __init__(self, url: str) -> None:
        self.fs, self.root = open_filesystem(url)
        self.url = url if "://" in url else self.root

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    def path(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root

    def open(self, name: str) -> BinaryIO:
        """Open for reading without read-ahead, which would fetch the layers nobody asked for."""
        return self.fs.open(self.path(name), "rb", cache_type="none")

    def read(self, name: str) -> bytes:
        """The whole file. Raises FileNotFoundError."""
        return bytes(self.fs.cat_file(self.path(name)))

    def fetch(self, name: str, local: Path) -> None:
        """Download to ``local``. Raises OSError when fewer bytes arrive than the store holds."""
        size = self.fs.info(self.path(name))["size"]
        self.fs.get_file(self.path(name), str(local))
        if local.stat().st_size != size:
            raise OSError(f"{self.url}/{name}: read {local.stat().st_size} of {size} bytes")

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Names and sizes (bytes) of the files directly inside ``folder``; none if it is absent."""
        self.fs.invalidate_cache()
        try:
            entries = self.fs.ls(self.path(folder), detail=True)
        except FileNotFoundError:
            return {}
        return {
            entry["name"].rsplit("/", 1)[-1]: int(entry["size"])
            for entry in entries
            if entry["type"] == "file"
        }

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.path(name))

    def create(self, name: str, data: bytes) -> bool:
        """Publish ``data`` under a new name; False when the name is taken already."""
        if self.is_local:
            return self._create_locally(name, data)
        try:
            if _knows_mode(self.fs.pipe_file):
                self.fs.pipe_file(self.path(name), data, mode="create")
            elif self.fs.exists(self.path(name)):
                return False
            else:
                self.fs.pipe_file(self.path(name), data)
        except Exception as error:
            if _name_is_taken(error):
                return False
            raise
        return True

    def create_from(self, name: str, local: Path) -> bool:
        """Publish the closed file ``local`` under a new name; False when the name is taken."""
        if self.is_local:
            return self._create_locally(name, local)
        try:
            if _knows_mode(self.fs.put_file):
                self.fs.put_file(str(local), self.path(name), mode="create")
            elif self.fs.exists(self.path(name)):
                return False
            else:
                self.fs.put_file(str(local), self.path(name))
        except Exception as error:
            if _name_is_taken(error):
                return False
            raise
        return True

    def _create_locally(self, name: str, content: bytes | Path) -> bool:
        """Write beside the target, then link: the name appears with all its bytes or not at all."""
        target = Path(self.path(name))
        if target.exists():
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{uuid.uuid4().hex}.part")  # short: the target may fill 255 bytes
        try:
            with open(part, "xb") as out:
                if isinstance(content, Path):
                    with open(content, "rb") as source:
                        shutil.copyfileobj(source, out, 1 << 20)
                else:
                    out.write(content)
                out.flush()
                os.fsync(out.fileno())
            try:
                os.link(part, target)
            except FileExistsError:
                return False
            except OSError:  # no hard links here (FAT, some FUSE mounts): rename, after a look
                if target.exists():
                    return False
                os.rename(part, target)
            return True
        finally:
            part.unlink(missing_ok=True)

    def refuses_overwriting(self, name: str) -> bool:
        """Whether the store honours create-only writes, tried with ``name``'s own content.

        Some S3 servers (rclone, s3rver) ignore ``If-None-Match``: harmless with one job at a
        time, so callers warn and go on.
        """
        return not self.create(name, self.read(name))


def _knows_mode(method: Any) -> bool:
    return "mode" in inspect.signature(method).parameters


def _name_is_taken(error: Exception) -> bool:
    """FileExistsError, or S3's 412 in whichever wrapping it arrives."""
    if isinstance(error, FileExistsError):
        return True
    chain: BaseException | None = error
    while chain is not None:
        response = getattr(chain, "response", None) or {}
        if isinstance(response, dict):
            code = str(response.get("Error", {}).get("Code", ""))
            # 409 is S3's answer to two conditional writes of one name at the same moment
            if code in ("PreconditionFailed", "412", "ConditionalRequestConflict"):
                return True
        chain = chain.__cause__ or chain.__context__
    return False
