"""Many small files of a store at once.

On S3 this takes half of s3fs's processor time. s3fs spends 2 ms of a core on a request, most of it
while botocore prepares the call and parses the answer. Here botocore only signs an address, and its
own session fetches it, with the proxies, certificates and time limits that the client has. s3fs
reads what does not come that way: it knows retries and errors.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

from botocore.awsrequest import AWSRequest
from fsspec.asyn import sync

from .filesystems import CONNECTIONS, is_s3

SIGNED_SECONDS = 3600  # an address is used at once; clocks may differ


class SmallFile(NamedTuple):
    """A file's bytes, and its version (ETag) as the answer told it; '' if it did not."""

    data: bytes
    version: str


def read_small_files(fs: Any, paths: Sequence[str], sizes: Sequence[int]) -> list[SmallFile | None]:
    """Each file; None for one that could not be read, and for all of a store without asyncio.

    Of a file that has more than its size (bytes, at least 1) one byte more is read.
    """
    found: list[SmallFile | None] = [None] * len(paths)
    if not paths or not fs.async_impl:
        return found
    # Keys of encryption and who pays would have to be headers.
    if is_s3(fs) and not (fs.req_kw or fs.s3_additional_kwargs):
        found = sync(fs.loop, _by_signed_addresses, fs, paths, sizes)
    rest = [number for number, one in enumerate(found) if one is None]
    if rest:
        ends = [sizes[number] + 1 for number in rest]
        starts, wanted = [0] * len(rest), [paths[number] for number in rest]
        read = fs.cat_ranges(wanted, starts, ends, batch_size=CONNECTIONS, on_error="return")
        for number, data in zip(rest, read, strict=True):
            found[number] = None if isinstance(data, Exception) else SmallFile(bytes(data), "")
    return found


async def _by_signed_addresses(
    fs: Any, paths: Sequence[str], sizes: Sequence[int]
) -> list[SmallFile | None]:
    client = await fs.get_s3(fs.split_path(paths[0])[0])
    client.meta.events.register_first(
        "choose-signer.s3.GetObject", _of_this_time, unique_id="strata-signed-addresses"
    )
    free = asyncio.Semaphore(min(CONNECTIONS, client.meta.config.max_pool_connections))

    async def read(path: str, size: int) -> SmallFile | None:
        async with free:
            try:
                return await _read(fs, client, path, size)
            except Exception:
                return None  # s3fs finds out what it is; this one's message would hold an address

    first = await read(paths[0], sizes[0])
    if first is None:  # perhaps this store gives nothing to signed addresses
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


def _of_this_time(signature_version: object, **_: object) -> str | None:
    """Version 4 of signatures where the client has it: for addresses botocore has older ones.

    None is for botocore to choose, also where nothing is signed.
    """
    return "s3v4-query" if signature_version in ("v4-query", "s3v4-query") else None
