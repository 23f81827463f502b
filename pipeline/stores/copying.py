"""Copy a file from one store into another, create-only, without bytes on this machine if it can."""

import contextlib
from typing import Any

from fsspec.asyn import AsyncFileSystem
from fsspec.spec import AbstractFileSystem

from .filesystems import is_s3
from .store import StorageError, Store

PART_BYTES = 1 << 30  # of a copy inside S3, which takes up to 5 GiB


def copies_by_itself(source: Store, target: Store) -> bool:
    """Whether the store copies from one to the other without the bytes coming here.

    It does where both have one client, and the client can: equal options of an object store.
    """
    if source.fs is not target.fs or source.is_local:
        return False
    fs = source.fs
    if isinstance(fs, AsyncFileSystem):
        return type(fs)._cp_file is not AsyncFileSystem._cp_file
    return type(fs).cp_file is not AbstractFileSystem.cp_file


def create_copy(source: Store, target: Store, name: str, size: int) -> bool:
    """Publish a file of ``source`` under the same name in ``target``; False if the name is taken.

    Only where ``copies_by_itself``. Raises FileNotFoundError for a file that is not there, and a
    passing StorageError when ``target`` then holds another number of bytes than ``size``.
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
    """In parts, whatever the size: only what ends an upload in parts is create-only everywhere."""
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
