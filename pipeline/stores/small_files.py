"""Reads many small files of a store at once.

s3fs spends 2 ms of a core on each request, most of it while botocore prepares the call and parses
the answer. This module takes half of that: botocore only signs a URL, and its HTTP session fetches
it, with the client's proxies, certificates and timeouts. If that fails, s3fs reads the file: it
knows retries and errors.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

from botocore.awsrequest import AWSRequest
from fsspec.asyn import sync

from .filesystems import CONNECTIONS, is_s3

SIGNED_SECONDS = 3600  # a signed URL is used at once, but clocks may differ


class SmallFile(NamedTuple):
    """A file's bytes, and its version: the answer's ETag, or '' if it has none."""

    data: bytes
    version: str


def read_small_files(fs: Any, paths: Sequence[str], sizes: Sequence[int]) -> list[SmallFile | None]:
    """Each file; None for one that could not be read, and for all of a store without asyncio.

    ``sizes`` are in bytes, at least 1. One byte more is read of a file that is larger, so the
    caller can notice.
    """
    found: list[SmallFile | None] = [None] * len(paths)
    if not paths or not fs.async_impl:
        return found
    # A signed URL cannot hold encryption keys or who pays; these are headers.
    if is_s3(fs) and not (fs.req_kw or fs.s3_additional_kwargs):
        found = sync(fs.loop, _by_signed_urls, fs, paths, sizes)
    rest = [number for number, one in enumerate(found) if one is None]
    if rest:
        ends = [sizes[number] + 1 for number in rest]
        starts, wanted = [0] * len(rest), [paths[number] for number in rest]
        read = fs.cat_ranges(wanted, starts, ends, batch_size=CONNECTIONS, on_error="return")
        for number, data in zip(rest, read, strict=True):
            found[number] = None if isinstance(data, Exception) else SmallFile(bytes(data), "")
    return found


async def _by_signed_urls(
    fs: Any, paths: Sequence[str], sizes: Sequence[int]
) -> list[SmallFile | None]:
    client = await fs.get_s3(fs.split_path(paths[0])[0])
    client.meta.events.register_first(
        "choose-signer.s3.GetObject", _signature_version, unique_id="strata-signed-urls"
    )
    free = asyncio.Semaphore(min(CONNECTIONS, client.meta.config.max_pool_connections))

    async def read(path: str, size: int) -> SmallFile | None:
        async with free:
            try:
                return await _read(fs, client, path, size)
            except Exception:
                return None  # s3fs will raise it again; this message would hold the signed URL

    first = await read(paths[0], sizes[0])
    if first is None:  # perhaps this store does not accept signed URLs
        return [None] * len(paths)
    return [first, *await asyncio.gather(*map(read, paths[1:], sizes[1:]))]


async def _read(fs: Any, client: Any, path: str, size: int) -> SmallFile | None:
    bucket, key, version = fs.split_path(path)
    wanted = {"Bucket": bucket, "Key": key, **({"VersionId": version} if version else {})}
    url = await client.generate_presigned_url("get_object", wanted, ExpiresIn=SIGNED_SECONDS)
    request = AWSRequest("GET", url, headers={"Range": f"bytes=0-{size}"}).prepare()
    answer = await client._endpoint.http_session.send(request)
    if answer.status_code not in (200, 206):
        return None
    return SmallFile(await answer.content, answer.headers.get("ETag", "").strip('"'))


def _signature_version(signature_version: object, **_: object) -> str | None:
    """Version 4 of signatures if the client uses it: botocore's default for URLs is older.

    None lets botocore choose.
    """
    return "s3v4-query" if signature_version in ("v4-query", "s3v4-query") else None
