"""A folder on any file system of fsspec: files are written whole and never overwritten.

Three rules keep a dataset sound if a process dies:

- a file is published by one upload of a closed local file (never through fsspec's context manager,
  which publishes half a file after an exception);
- publishing is create-only: the first writer wins, and the others learn that the name is taken;
- nothing is renamed, because S3 has no rename.
"""

import contextlib
import inspect
import itertools
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from . import folder_listing
from .filesystems import (
    CONNECTIONS,
    StorageError,
    download,
    is_s3,
    open_filesystem,
    storage_errors,
)
from .folder_listing import Listed
from .parts import clear_parts, publish
from .passing import s3_codes
from .scratch import clear_scratch, scratch_errors, scratch_folder

__all__ = [
    "StorageError",
    "Store",
    "clear_scratch",
    "open_filesystem",
    "scratch_errors",
    "scratch_folder",
    "storage_errors",
]

READ_TOGETHER = 500  # small files held in memory at once by ``Store.read_many``
# Files above twice this size are uploaded to S3 in parts, four at once, in 64 MiB of memory.
PART_BYTES = 16 << 20
PARTS_AT_ONCE = 4
MAX_PARTS = 9000  # S3 allows 10,000
READ_BYTES = 256 << 20  # default limit of a file that is read whole
CONFLICT_WAITS = (0.2, 0.8, 3.2)  # seconds between attempts while S3 answers 409


class Store:
    """One folder, by URL (a local path is a URL too). Names inside it use ``/``.

    ``options`` are fsspec's storage options; see ``filesystems``.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        self.fs, self.root = open_filesystem(url, options)
        self.url = url if "://" in url else self.root
        self.options = options

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    def path(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root

    def read(self, name: str, most: int = READ_BYTES) -> bytes:
        """The whole file. Raises FileNotFoundError, StorageError for more than ``most`` bytes."""
        if self.is_local and self.check_regular(name) > most:
            raise self._too_large(name, most)
        try:
            data = bytes(self.fs.cat_file(self.path(name), start=0, end=most + 1))
        except Exception as error:
            if "InvalidRange" not in s3_codes(error):  # S3's answer for an empty file
                raise
            data = b""
        return self._bounded(name, data, most)

    def check_regular(self, name: str) -> int:
        """The size of a file of a local store.

        Raises FileNotFoundError, and StorageError for pipes and devices: opening one may wait
        forever, and reading one may never end.
        """
        path = self.path(name)
        found = os.stat(path)
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            raise StorageError(f"{path}: is not a regular file: remove it")
        return found.st_size

    def _too_large(self, name: str, most: int) -> StorageError:
        return StorageError(
            f"{self.url}/{name}: is larger than {most} bytes, the limit of such a file"
        )

    def _bounded(self, name: str, data: bytes, most: int) -> bytes:
        if len(data) > most:
            raise self._too_large(name, most)
        return data

    def read_many(
        self, names: Iterable[str], most: int = READ_BYTES
    ) -> Iterator[tuple[str, bytes]]:
        """Names and contents of many small files, in the order given, some hundred at a time.

        Raises the error of the first file that cannot be read, such as FileNotFoundError, and
        StorageError for a file of more than ``most`` bytes.
        """
        waiting = iter(names)
        threads = CONNECTIONS if self.is_local else 1  # helps on network file systems
        with ThreadPoolExecutor(threads) as pool:
            while chunk := list(itertools.islice(waiting, READ_TOGETHER)):
                yield from zip(chunk, self._read_chunk(chunk, pool, most), strict=True)

    def _read_chunk(
        self, names: Sequence[str], pool: ThreadPoolExecutor, most: int
    ) -> Iterable[bytes]:
        if not self.fs.async_impl:
            return pool.map(lambda name: self.read(name, most), names)
        found = self.fs.cat_ranges(
            [self.path(name) for name in names],
            [0] * len(names),
            [most + 1] * len(names),
            batch_size=CONNECTIONS,
            on_error="return",
        )
        return (
            self._read_again(name, data, most)
            if isinstance(data, Exception)
            else self._bounded(name, bytes(data), most)
            for name, data in zip(names, found, strict=True)
        )

    def _read_again(self, name: str, error: Exception, most: int) -> bytes:
        """Try once more: of a hundred thousand requests, some fail even in their last attempt."""
        if isinstance(error, FileNotFoundError | PermissionError):
            raise error
        return self.read(name, most)

    def fetch(self, name: str, local: Path) -> None:
        """Download to ``local``. Raises OSError when fewer bytes arrive than the store holds."""
        size = self.info(name)["size"]
        download(self.fs, self.path(name), local, f"{self.url}/{name}")
        if local.stat().st_size != size:
            raise OSError(f"{self.url}/{name}: read {local.stat().st_size} of {size} bytes")

    @contextmanager
    def local(self, name: str, scratch: str | None) -> Iterator[Path]:
        """A path of the file on this machine: the file itself, or a temporary copy in ``scratch``.

        Raises what ``fetch`` raises. In a local store the file may be missing.
        """
        if self.is_local:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                self.check_regular(name)
            yield Path(self.path(name))
            return
        with scratch_folder(scratch) as folder:
            copy = folder / name.rsplit("/", 1)[-1]
            self.fetch(name, copy)
            yield copy

    def info(self, name: str) -> dict[str, Any]:
        """The store's current entry of a file: ``size`` and more. Raises FileNotFoundError."""
        self.fs.invalidate_cache()
        return dict(self.fs.info(self.path(name)))

    def exists(self, name: str) -> bool:
        """Whether a file exists. Unlike in fsspec's ``exists``, errors are raised."""
        try:
            return bool(self.info(name)["type"] == "file")
        except (FileNotFoundError, NotADirectoryError):
            return False

    def modified(self, name: str) -> float:
        """When the file was written, by the store's clock, in seconds of POSIX time."""
        when = self.fs.modified(self.path(name))
        return float((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp())

    def now(self) -> float:
        """The store's clock in seconds of POSIX time, because this machine's may be wrong."""
        if is_s3(self.fs):
            answer = self.fs.call_s3("head_bucket", Bucket=self.fs.split_path(self.root)[0])
            date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
            if date:
                return parsedate_to_datetime(date).timestamp()
        return time.time()

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Names and sizes (bytes) of the files directly inside ``folder``, none if it is absent."""
        return {one.name: one.size for one in self.listing(folder)}

    def listing(self, folder: str = "") -> Iterator[Listed]:
        """The files directly inside ``folder`` as the store lists them, none if it is absent.

        Local folders and S3 are listed without holding all of it, a request for a thousand names.
        """
        if self.is_local:
            return folder_listing.local(Path(self.path(folder)))
        self.fs.invalidate_cache()
        if is_s3(self.fs):
            return folder_listing.s3(self.fs, self.path(folder))
        return folder_listing.other(self.fs, self.path(folder))

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.path(name))

    def create(self, name: str, data: bytes) -> bool:
        """Publish ``data`` under a new name; False if the name is taken."""
        if self.is_local:
            return self._create_locally(name, data)
        return self.create_by(name, self.fs.pipe_file, self.path(name), data)

    def create_from(self, name: str, local: Path) -> bool:
        """Publish the closed file ``local`` under a new name; False if the name is taken.

        Raises a passing StorageError if the store then holds another number of bytes.
        """
        if self.is_local:
            return self._create_locally(name, local)
        size, put = local.stat().st_size, self.fs.put_file
        parts: dict[str, Any] = {}
        if _takes(put, "max_concurrency") and _takes(put, "chunksize"):
            part = max(PART_BYTES, -(-size // MAX_PARTS))
            parts = {"chunksize": part, "max_concurrency": PARTS_AT_ONCE}
        if not self.create_by(name, put, str(local), self.path(name), **parts):
            return False
        stored = self.info(name)["size"]
        if stored != size:
            self.remove(name)  # the file is ours, and would block the next attempt
            raise StorageError(
                f"{self.url}/{name}: the store kept {stored} of {size} bytes; run it again",
                passing=True,
            )
        return True

    def create_or_keep(
        self,
        name: str,
        local: Path,
        standing: Path,
        sound: Callable[[Path], bool],
        create: Callable[[str, Path], bool] | None = None,
    ) -> Path:
        """Publish ``local`` under ``name``, or keep the file of that name if it is ``sound``.

        ``sound`` is called with a local copy of the existing file, made at ``standing``. A file
        that is not sound is replaced. ``create`` is used instead of ``create_from``. Returns a
        local copy of the published file. Raises a passing StorageError if another job is writing
        the same name.
        """
        create = create or self.create_from
        if create(name, local):
            return local
        with contextlib.suppress(FileNotFoundError):
            self.fetch(name, standing)
            if sound(standing):
                return standing
        self.remove(name)
        if not create(name, local):
            raise StorageError(
                f"{self.url}/{name}: another job is writing it: run the job again", passing=True
            )
        return local

    def create_by(
        self, name: str, write: Callable[..., Any], *arguments: Any, **options: Any
    ) -> bool:
        """Call ``write``, which makes the file ``name``; False if the name is taken.

        If ``write`` has a parameter ``mode``, it is called with ``mode="create"`` and must fail if
        the name is taken. Otherwise this checks beforehand whether the name is taken.
        """
        for wait in (*CONFLICT_WAITS, None):
            try:
                if _takes(write, "mode"):
                    write(*arguments, mode="create", **options)
                elif self.exists(name):
                    return False
                else:
                    write(*arguments, **options)
                return True
            except Exception as error:
                codes = s3_codes(error)
                if isinstance(error, FileExistsError) or codes & {"PreconditionFailed", "412"}:
                    return False
                if "ConditionalRequestConflict" not in codes:
                    raise
                # Another client is writing or removing this name, and may fail.
                if self.exists(name):
                    return False
                if wait is None:
                    raise StorageError(
                        f"{self.url}/{name}: the store answers that another client is writing this "
                        "file, but it does not appear: run the job again",
                        passing=True,
                    ) from error
                time.sleep(wait)
        raise AssertionError  # the last round returns or raises

    def _create_locally(self, name: str, content: bytes | Path) -> bool:
        target = Path(self.path(name))
        if target.exists():
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        return publish(target, content)

    def clear_parts(self, folder: str = "", deep: bool = False) -> None:
        """Remove half-written files of killed jobs from a local store; see ``parts``."""
        if self.is_local:
            clear_parts(Path(self.path(folder)), deep)

    def refuses_overwriting(self, name: str) -> bool:
        """Whether the store honours create-only writes. Tries to write ``name`` again, unchanged.

        Some S3 servers (rclone, s3rver) ignore ``If-None-Match``. That is harmless as long as one
        job runs at a time, so callers only warn.
        """
        return not self.create(name, self.read(name))


def _takes(method: Any, parameter: str) -> bool:
    return parameter in inspect.signature(method).parameters
