"""Copies a file inside an object store, create-only; the bytes do not pass through this machine."""

import contextlib
from typing import Any

from fsspec.asyn import AsyncFileSystem
from fsspec.spec import AbstractFileSystem

from .filesystems import is_s3
from .store import StorageError, Store

PART_BYTES = 1 << 30  # of a copy inside S3, which allows 5 GiB


def can_copy_inside(source: Store, target: Store) -> bool:
    """Whether the store itself can copy files from ``source`` to ``target``.

    It can if both share one client of an object store (same options) that supports copies.
    """
    if source.fs is not target.fs or source.is_local:
        return False
    fs = source.fs
    if isinstance(fs, AsyncFileSystem):
        return type(fs)._cp_file is not AsyncFileSystem._cp_file
    return type(fs).cp_file is not AbstractFileSystem.cp_file


def create_copy(source: Store, target: Store, name: str, size: int) -> bool:
    """Publish a file of ``source`` under the same name in ``target``; False if the name is taken.

    Needs ``can_copy_inside``. Raises FileNotFoundError if the file does not exist, and a passing
    StorageError if the copy does not have ``size`` bytes.
    """

    def copy_in_s3(*, mode: str) -> None:
        _copy_in_s3(source.fs, source.path(name), target.path(name), size)

    if is_s3(source.fs):
        created = target.create_by(name, copy_in_s3)
    else:
        created = target.create_by(name, source.fs.cp_file, source.path(name), target.path(name))
    if not created:
        return False
    if (stored := target.info(name)["size"]) != size:
        target.remove(name)  # the file is ours, and would block the next attempt
        raise StorageError(
            f"{target.url}/{name}: the store copied {stored} of {size} bytes; run it again",
            passing=True,
        )
    return True


def _copy_in_s3(fs: Any, source: str, target: str, size: int) -> None:
    """Copy in parts, even a small file: every S3 can end an upload in parts create-only."""
    bucket, key, _ = fs.split_path(target)
    from_bucket, from_key, _ = fs.split_path(source)
    upload = fs.call_s3("create_multipart_upload", Bucket=bucket, Key=key)["UploadId"]
    this = {"Bucket": bucket, "Key": key, "UploadId": upload}
    try:
        parts = []
        for number, start in enumerate(range(0, size, PART_BYTES), 1):
            stop = min(start + PART_BYTES, size) - 1
            copied = fs.call_s3(
                "upload_part_copy",
                **this,
                PartNumber=number,
                CopySource={"Bucket": from_bucket, "Key": from_key},
                CopySourceRange=f"bytes={start}-{stop}",
            )
            parts.append({"PartNumber": number, "ETag": copied["CopyPartResult"]["ETag"]})
        fs.call_s3(
            "complete_multipart_upload",
            **this,
            MultipartUpload={"Parts": parts},
            IfNoneMatch="*",
        )
    except Exception:
        with contextlib.suppress(Exception):  # the first error says more
            fs.call_s3("abort_multipart_upload", **this)
        raise
