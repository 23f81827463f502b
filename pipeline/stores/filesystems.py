"""Opens the fsspec file system of a URL, with retries and timeouts for S3.

Options are fsspec's ``storage_options`` (``{"anon": True, "endpoint_url": ..., "profile": ...}``).
They may hold secrets, so they appear in no message, plan or ``repr``. Without options, the
environment (``AWS_ENDPOINT_URL``, ``AWS_PROFILE``, ``FSSPEC_S3_...``) applies.
"""

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from fsspec.config import apply_config
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import get_protocol

from codec.errors import StrataError

from .passing import may_pass
from .urls import refuse_secrets, without_query, without_secrets

S3_PROTOCOLS = ("s3", "s3a")
CONNECTIONS = 64  # at once to one store, when many small files are read
# botocore tries a request five times (after any 5xx). s3fs repeats that three times (after
# timeouts, cut bodies and SlowDown), nine times for a small file. If one answer in ten is a 503, at
# most one request in a hundred thousand fails. A stalled download fails after 3 x 30 s; a store
# that accepts connections and never answers, after 5 x 3 x 30 s.
_S3_ATTEMPTS = 5
_S3_ROUNDS = 3
_S3_CONFIG: dict[str, Any] = {
    "connect_timeout": 10,
    "read_timeout": 30,
    "max_pool_connections": CONNECTIONS,
}
_S3_OPTIONS: dict[str, Any] = {
    # One stream per download: only a single stream resumes where a body was cut, and it needs 64 KB
    # of memory instead of ten parts of 50 MB.
    "max_concurrency": 1,
    "use_listings_cache": False,  # other jobs change what is listed
}


class StorageError(StrataError):
    """An input cannot be read or an output cannot be written; the message names the URL."""


@contextmanager
def storage_errors(url: str, problem: str) -> Iterator[None]:
    """Turn any exception of a store into a StorageError; each store has its own classes."""
    try:
        yield
    except StrataError:
        raise
    except Exception as error:
        reason = without_secrets(str(error))  # such as a signed URL of a redirect
        message = f"{url}: {problem}: {type(error).__name__}: {reason}"
        raise StorageError(message, passing=may_pass(error)) from error


class LocalFiles(LocalFileSystem):
    """Local files. Links are followed, and a folder that cannot be read is an error.

    fsspec's own class lists a link as "other", so searches skip it, and it silently skips folders
    that cannot be read. Hidden links that lead nowhere are left out: editors make such links.
    """

    def info(self, path: Any, **kwargs: Any) -> dict[str, Any]:
        if not isinstance(path, os.DirEntry) or not path.is_symlink():
            return dict(super().info(path, **kwargs))
        try:
            mode = os.stat(path.path).st_mode
        except OSError as error:
            if path.name.startswith("."):
                raise FileNotFoundError(path.path) from error  # which listings pass over
            raise StorageError(
                f"{path.path}: this link leads nowhere (to {os.readlink(path.path)}): remove it, "
                "or put back what it leads to"
            ) from error
        if stat.S_ISDIR(mode):
            self._refuse_loop(path.path)
        return dict(super().info(path.path, **kwargs))

    def walk(self, path: Any, *arguments: Any, **kwargs: Any) -> Iterator[Any]:
        return iter(super().walk(path, *arguments, **{"on_error": _unreadable, **kwargs}))

    def _refuse_loop(self, link: str) -> None:
        """Raise StorageError for a link to one of the folders above it."""
        target, folder = os.path.realpath(link), os.path.dirname(link)
        while folder != os.path.dirname(folder):
            if os.path.realpath(folder) == target:
                raise StorageError(f"{link}: this link leads back to a folder that it lies in")
            folder = os.path.dirname(folder)


def _unreadable(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def is_s3(fs: Any) -> bool:
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return bool({*S3_PROTOCOLS} & {*protocols})


def normal_path(path: str) -> str:
    """A local path without ``.`` and ``..`` that leads to the same file."""
    path = "/" + path.lstrip("/") if path.startswith("//") else path
    normal = os.path.normpath(path)
    if os.path.exists(path) and not (os.path.exists(normal) and os.path.samefile(path, normal)):
        # ".." behind a link does not undo it.
        folder, name = os.path.split(path)
        return os.path.realpath(path) if name == ".." else f"{os.path.realpath(folder)}/{name}"
    return normal


def open_filesystem(url: str, options: Mapping[str, Any] | None = None) -> tuple[Any, str]:
    """The fsspec file system of ``url`` and the path in it, without a trailing slash.

    ``options`` are for remote stores; a local path ignores them. Equal URLs and options share one
    client and its connections. Raises StorageError for an unknown protocol, a missing package and
    options that the store does not know, SecretInURLError for a URL with a secret in it.
    """
    refuse_secrets(url)
    if not url.strip():
        raise StorageError("the path or URL is empty: is a variable not set?")
    if "::" in url:
        raise StorageError(f"{url}: chained URLs are not supported: give the file's own address")
    protocol = get_protocol(url)
    chosen = {} if protocol in ("file", "local") else dict(options or {})
    try:
        if protocol in S3_PROTOCOLS:
            chosen = _s3_options(protocol, chosen)
        fs, path = fsspec.core.url_to_fs(url, **chosen)
        if isinstance(fs, LocalFileSystem):
            return LocalFiles(), normal_path(path)
        if protocol in S3_PROTOCOLS:
            fs.retries = _S3_ROUNDS
            fs.connect()  # makes the client without a request: bad options raise here
    except Exception as error:
        problem = without_secrets(f"{type(error).__name__}: {error}", options or {})
        hint = f" (storage options given: {', '.join(sorted(options))})" if options else ""
        if protocol == "hf" and isinstance(error, ImportError):
            problem = f"needs a package: pip install huggingface_hub ({problem})"
        # The cause could show the secrets that were just removed.
        raise StorageError(f"{url}: {problem}{hint}") from (None if options else error)
    if without_query(url) != url:
        return fs, path
    return fs, path.rstrip("/") or path


def download(fs: Any, path: str, local: Path, url: str) -> None:
    """Fetch a whole file; s3fs resumes a cut download if it can.

    Raises OSError with ``url`` in the message, whatever the store raised.
    """
    try:
        fs.get_file(path, str(local))
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # such as a full disk
            raise
        problem = without_secrets(str(error)) or "the store stopped answering"
        raise OSError(f"{url}: cannot be fetched: {type(error).__name__}: {problem}") from error


def _s3_options(protocol: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Our defaults, overridden by fsspec's configuration, overridden by ``options``."""
    configured = apply_config(fsspec.get_filesystem_class(protocol), {})
    config = dict(_S3_CONFIG)
    if not {"AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE"} & os.environ.keys():
        config["retries"] = {"mode": "standard", "total_max_attempts": _S3_ATTEMPTS}
    for source in (configured, options):
        config.update(source.get("config_kwargs") or {})
    return {**_S3_OPTIONS, **configured, **options, "config_kwargs": config}
