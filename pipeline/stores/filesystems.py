"""Which fsspec file system a URL means, with which options, and with how much patience for S3.

Options are fsspec's ``storage_options`` (``{"anon": True, "endpoint_url": ..., "profile": ...}``).
They may hold secrets, so they appear in no message, plan or ``repr``. What the environment says
(``AWS_ENDPOINT_URL``, ``AWS_PROFILE``, ``FSSPEC_S3_...``) holds without any.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from fsspec.config import apply_config
from fsspec.utils import get_protocol

from codec.errors import StrataError

from .passing import may_pass
from .urls import refuse_secrets, without_query, without_secrets

S3_PROTOCOLS = ("s3", "s3a")
CONNECTIONS = 64  # at once to one store: what reading many small files keeps busy
# A request is tried five times by botocore (whatever the store answers with 5xx) and such a round
# three times by s3fs (time-outs, cut bodies, SlowDown), nine times in reading a small file: with
# one answer in ten a 503, one request in a hundred thousand fails at the worst. A download that
# stalls ends after 3 x 30 s; a store that takes connections and never answers, after 5 x 3 x 30 s.
_S3_ATTEMPTS = 5
_S3_ROUNDS = 3
_S3_CONFIG: dict[str, Any] = {
    "connect_timeout": 10,
    "read_timeout": 30,
    "max_pool_connections": CONNECTIONS,
}
_S3_OPTIONS: dict[str, Any] = {
    # One stream per download: only that one goes on where a body was cut, and it needs 64 KB of
    # memory instead of ten parts of 50 MB.
    "max_concurrency": 1,
    "use_listings_cache": False,  # a listing is out of date as soon as it is there
}


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
        reason = without_secrets(str(error))  # such as the signed address that a server sent us to
        message = f"{url}: {problem}: {type(error).__name__}: {reason}"
        raise StorageError(message, passing=may_pass(error)) from error


def open_filesystem(url: str, options: Mapping[str, Any] | None = None) -> tuple[Any, str]:
    """The fsspec file system of ``url`` and the path in it, without a trailing slash.

    ``options`` are for stores that are not on this machine; a local path takes none. Equal URLs
    and options share one client and its connections. Raises StorageError for a protocol that is
    unknown or whose package is not installed, and for options that the store does not take;
    SecretInURLError for a URL with a secret in it.
    """
    refuse_secrets(url)
    if "::" in url:
        raise StorageError(f"{url}: chained URLs are not supported; give the archive's own address")
    protocol = get_protocol(url)
    chosen = {} if protocol in ("file", "local") else dict(options or {})
    try:
        if protocol in S3_PROTOCOLS:
            chosen = _s3_options(protocol, chosen)
        fs, path = fsspec.core.url_to_fs(url, **chosen)
        if protocol in S3_PROTOCOLS:
            fs.retries = _S3_ROUNDS
            fs.connect()  # makes the client, without a request: here is where bad options show
    except Exception as error:
        problem = without_secrets(f"{type(error).__name__}: {error}", options or {})
        hint = f" (storage options given: {', '.join(sorted(options))})" if options else ""
        # What caused it could show what was just taken out.
        raise StorageError(f"{url}: {problem}{hint}") from (None if options else error)
    if without_query(url) != url:
        return fs, path
    return fs, path.rstrip("/") or path


def download(fs: Any, path: str, local: Path, url: str) -> None:
    """Fetch a file whole; what was cut on the way is read on where s3fs can.

    Raises OSError, which names ``url``: stores and networks have exceptions of many kinds, some
    without a word in them.
    """
    try:
        fs.get_file(path, str(local))
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # such as a full disk
            raise
        problem = without_secrets(str(error)) or "the store stopped answering"
        raise OSError(f"{url}: cannot be fetched: {type(error).__name__}: {problem}") from error


def _s3_options(protocol: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Our defaults, below fsspec's configuration, below what was given."""
    configured = apply_config(fsspec.get_filesystem_class(protocol), {})
    config = dict(_S3_CONFIG)
    if not {"AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE"} & os.environ.keys():
        config["retries"] = {"mode": "standard", "total_max_attempts": _S3_ATTEMPTS}
    for source in (configured, options):
        config.update(source.get("config_kwargs") or {})
    return {**_S3_OPTIONS, **configured, **options, "config_kwargs": config}
