"""Lists the members of a tar file and checks that the file is whole.

``tarfile`` gives no error for a tar that was cut between two members, so samples would be lost
unnoticed. Here a tar is whole only if it has the bytes of all members and the two zero blocks of
its end. This is checked before the first picture is encoded.
"""

import tarfile
from collections import ChainMap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO

from codec.errors import StrataError

BLOCK = 512
# GNU tar pads to 10 KiB by default, to 1 MiB at its largest usual blocking factor. More zeros come
# from a broken copy.
MAX_PADDING = 1 << 20
_MAX_EXTENSION = 1 << 20  # bytes of a long name or PAX header
_MAX_SHARED = 1000  # records of global PAX headers, which each member is looked up in
_MAX_DIGITS = 20  # of a size
_PATH_TYPES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


class ShardError(StrataError):
    """A shard is damaged, cut or no tar; the message names it and the offset."""


@dataclass(frozen=True)
class Member:
    """One file in a tar: where its bytes lie, or why they cannot be used (``problem``)."""

    name: str
    offset: int
    size: int
    problem: str = ""


def looks_like_tar(begin: bytes) -> bool:
    """Whether a file can be a tar by its first BLOCK bytes: a header, or the zeros of its end."""
    try:
        tarfile.TarInfo.frombuf(begin[:BLOCK], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return len(begin) == BLOCK and not any(begin)
    return True


def read_members(file: BinaryIO, size: int, url: str) -> list[Member]:
    """All members of the tar in ``file`` (``size`` bytes, seekable), without directories.

    Names are UTF-8 with surrogate escapes. Raises ShardError with ``url`` and the offset.
    """
    members: list[Member] = []
    path: str | None = None  # from a GNU long name
    pax: dict[str, str] = {}
    shared_pax: dict[str, str] = {}
    sparse = False
    at = 0
    while True:
        header = _read(file, at, BLOCK, size, url, "the header of a member or the end of the tar")
        if not any(header):
            _check_end(file, at, size, url)
            return members
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            what = "not a tar file" if at == 0 else "no tar header"
            raise ShardError(f"{url}: {what} at offset {at} ({error})") from error
        at += BLOCK
        if info.size < 0:
            raise ShardError(f"{url}: a member has a negative size at offset {at - BLOCK}")

        if info.type in (*_PATH_TYPES, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE):
            if info.size > _MAX_EXTENSION:
                raise ShardError(f"{url}: a name is too long at offset {at - BLOCK}")
            data = _read(file, at, info.size, size, url, "a long name")
            if info.type == tarfile.GNUTYPE_LONGNAME:
                path = data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
            elif info.type == tarfile.XGLTYPE:
                shared_pax |= _parse_pax(data, url, at)
                if len(shared_pax) > _MAX_SHARED:
                    raise ShardError(f"{url}: more than {_MAX_SHARED} global PAX records")
                sparse = _is_sparse(shared_pax)
            elif info.type != tarfile.GNUTYPE_LONGLINK:
                pax |= _parse_pax(data, url, at)
            at += _padded(info.size)
            continue

        if info.type == tarfile.GNUTYPE_SPARSE:
            extended = header[482]  # whether a further block of the sparse map follows
            while extended:
                extended = _read(file, at, BLOCK, size, url, "the map of a sparse file")[504]
                at += BLOCK
        facts = ChainMap(pax, shared_pax)
        name = facts.get("path", path if path is not None else info.name)
        name = facts.get("GNU.sparse.name", name)
        length = _pax_size(facts["size"], url, at) if facts.get("size") else info.size
        path, pax = None, {}
        has_data = info.isreg() or info.type not in tarfile.SUPPORTED_TYPES
        if has_data and at + length > size:
            raise ShardError(
                f"{url}: cut short at offset {size}: {name!r} should end at {at + length}"
            )
        if not (info.isdir() or (info.isreg() and name.endswith("/"))):
            members.append(
                Member(name, at, length, _problem(info, sparse or _is_sparse(facts.maps[0])))
            )
        at += _padded(length) if has_data else 0


def _is_sparse(pax: Iterable[str]) -> bool:
    return any(key.startswith("GNU.sparse.") for key in pax)


def _pax_size(digits: str, url: str, at: int) -> int:
    if not (digits.isascii() and digits.isdigit() and len(digits) <= _MAX_DIGITS):
        raise ShardError(f"{url}: a PAX header says size={digits!r:.40} at offset {at - BLOCK}")
    return int(digits)


def _problem(info: tarfile.TarInfo, sparse: bool) -> str:
    """Why this member's bytes are not a file's content, or ''."""
    if info.type == tarfile.GNUTYPE_SPARSE or sparse:
        return "is stored as a sparse file: pack it again without --sparse"
    if info.issym() or info.islnk():
        return f"is a link to {info.linkname!r}"
    if not info.isreg():
        return f"is a special file (tar type {info.type!r})"
    return ""


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _read(file: BinaryIO, at: int, count: int, size: int, url: str, what: str) -> bytes:
    file.seek(at)
    data = file.read(count)
    if len(data) < count:
        if at == 0:
            raise ShardError(f"{url}: not a tar file: it has only {size} bytes")
        raise ShardError(f"{url}: cut short at offset {size}, where {what} should be")
    return data


def _check_end(file: BinaryIO, at: int, size: int, url: str) -> None:
    """Check what follows the zero block at ``at``: a second one, then padding, then nothing."""
    second = _read(file, at + BLOCK, BLOCK, size, url, "the second zero block of the tar's end")
    padding = size - at - 2 * BLOCK
    if padding > MAX_PADDING:
        raise ShardError(
            f"{url}: the tar ends at offset {at} but the file goes on for {padding} bytes: "
            "the copy is broken, or several tars were concatenated"
        )
    if any(second) or any(file.read(padding)):
        raise ShardError(
            f"{url}: data after the tar's end at offset {at}: a block of zeros was written over "
            "a member, or several tars were concatenated"
        )


def _parse_pax(data: bytes, url: str, at: int) -> dict[str, str]:
    """PAX records: ``<length> <keyword>=<value>\\n``, the length counting itself."""
    records: dict[str, str] = {}
    start = 0
    while start < len(data) and data[start]:
        digits, space, _ = data[start : start + 20].partition(b" ")
        end = start + int(digits) if space and digits.isdigit() else 0  # of bytes: ASCII only
        keyword, equals, value = data[start + len(digits) + 1 : end - 1].partition(b"=")
        if not equals or end > len(data) or data[end - 1 : end] != b"\n":
            raise ShardError(f"{url}: a malformed PAX header at offset {at}")
        records[keyword.decode("utf-8", "surrogateescape")] = value.decode(
            "utf-8", "surrogateescape"
        )
        start = end
    return records
