"""Parquet files with a column of pictures: each row is a sample.

A picture is a struct of ``bytes`` and ``path``, as Hugging Face writes it, or plain bytes, as
img2dataset does. ``caption`` (or ``text``) becomes the field ``txt``, and ``label`` the field
``cls``. A column of bytes becomes a field with the column's name. All other columns go into the
field ``json``, as in img2dataset. A table from ``strata decode``, known by its column
``other_fields``, is read back as it was: each column is the field of the same name.
"""

import base64
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from codec.images.files import EXTENSIONS

from ..stores.gzip_limits import GzipLimits
from .base import Columns, Shard
from .parquet_limits import check_pages, check_size, footer_by, read_footer
from .samples import Sample, sample_of
from .tar_members import Member, ShardError

ROWS_AT_ONCE = 16
LOOKED_INTO = 8  # tables whose columns are checked before a job starts
CAPTIONS, LABELS, KEYS = ("txt", "caption", "text"), ("cls", "label"), ("__key__", "key")
_IMAGE_NAMES = ("image", "img", "picture", "photo")
KEY, IMAGE, OTHER_FIELDS = "key", "image", "other_fields"  # as ``decode.tables`` writes them
_NULL = "its picture is null in the table"


class NoPicturesError(ShardError):
    """A Parquet file has no column of pictures; the message says what it has."""


@dataclass(frozen=True)
class Roles:
    """What each column of a table is used for.

    ``image`` is the picture, ``sides`` are other columns of bytes, and ``rest`` goes into the field
    ``json``. ``fields`` are the columns of a table from ``strata decode`` that become fields as
    they are.
    """

    image: str
    key: str | None
    caption: str | None
    label: str | None
    sides: tuple[str, ...]
    rest: tuple[str, ...]
    fields: tuple[str, ...] = ()


def roles_of(schema: pa.Schema, columns: Columns, url: str) -> Roles:
    """The use of each column, by the names that were given or else by its type and name.

    Raises NoPicturesError if no column holds pictures, ShardError if a named column is missing or
    has the wrong type.
    """
    names = schema.names
    for option, name in (("--image-column", columns.image), ("--key-column", columns.key)):
        if name is not None and name not in names:
            raise ShardError(
                f"{url}: {option} {name}: no such column; it has {_column_list(schema)}"
            )
    pictures = [name for name in names if _holds_bytes(schema.field(name).type)]
    image = columns.image or _image(schema, pictures, url)
    if image not in pictures:
        raise ShardError(
            f"{url}: --image-column {image} holds {schema.field(image).type}, no bytes"
        )
    if columns == Columns() and _is_decoded_table(schema):
        fields = tuple(name for name in names if name not in (KEY, IMAGE))
        return Roles(IMAGE, KEY, None, None, (), (), fields)
    rest = tuple(name for name in names if name not in pictures)
    texts = [name for name in rest if _is_text(schema.field(name).type)]
    keyed = [name for name in (*texts, *rest) if name in KEYS]
    labels = [name for name in rest if pa.types.is_integer(schema.field(name).type)]
    return Roles(
        image,
        columns.key or next((name for name in KEYS if name in keyed), None),
        next((name for name in CAPTIONS if name in texts), None),
        next((name for name in LABELS if name in labels), None),
        tuple(name for name in pictures if name != image),
        rest,
    )


def _is_decoded_table(schema: pa.Schema) -> bool:
    """Whether ``strata decode`` wrote a table with this schema."""
    if not {KEY, IMAGE, OTHER_FIELDS} <= {*schema.names}:
        return False
    kind = schema.field(OTHER_FIELDS).type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    kind = kind.value_type
    return pa.types.is_struct(kind) and {"name", "data"} == {one.name for one in kind}


def _image(schema: pa.Schema, pictures: Sequence[str], url: str) -> str:
    declared = [name for name in pictures if name in _declared_images(schema)]
    structs = [name for name in pictures if pa.types.is_struct(schema.field(name).type)]
    named = [name for name in pictures if name.lower() in {*EXTENSIONS, *_IMAGE_NAMES}]
    for candidates in (declared, structs, named):
        first = [name for name in candidates if name in _IMAGE_NAMES] or candidates
        if len(first) == 1:
            return first[0]
        if first:
            raise ShardError(
                f"{url}: several columns may hold the pictures ({', '.join(first)}): choose one "
                "with --image-column"
            )
    raise NoPicturesError(
        f"{url}: no column holds pictures (bytes in a struct, or bytes in a column called image, "
        f"jpg, ...): name it with --image-column; it has {_column_list(schema)}"
    )


def _declared_images(schema: pa.Schema) -> set[str]:
    """The columns that Hugging Face's metadata call images."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name for name, one in features.items() if one.get("_type") == "Image"}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return set()


def _column_list(schema: pa.Schema) -> str:
    return ", ".join(f"{one.name} ({one.type})" for one in list(schema)[:20])


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _is_binary(kind.field(place).type)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def without_pictures(
    fs: Any, tables: Mapping[str, Mapping[str, Any]], columns: Columns
) -> dict[str, str]:
    """Which tables hold no pictures, and why. Checks the first LOOKED_INTO tables.

    If all of these hold none, neither do the others. Tables that cannot be read are left to the
    job, which reports them.
    """
    found = {}
    for path, entry in list(tables.items())[:LOOKED_INTO]:

        def read(start: int, stop: int, path: str = path) -> bytes:
            return bytes(fs.cat_file(path, start=start, end=stop))

        try:
            size = entry.get("size") or fs.info(path)["size"]
            footer = footer_by(read, size)
            schema = footer.schema.to_arrow_schema().with_metadata(footer.metadata)
        except Exception:  # stores have exceptions of many kinds
            continue
        try:
            roles_of(schema, columns, path)
        except NoPicturesError as error:
            found[path] = str(error)
    return found if len(found) < LOOKED_INTO else dict.fromkeys(tables, next(iter(found.values())))


def unpack_rows(
    local: Path, shard: Shard, target: Path, columns: Columns, limits: GzipLimits
) -> list[Sample]:
    """The samples of a Parquet file. Writes the bytes of their fields to ``target``.

    Holds ROWS_AT_ONCE rows in memory. Raises ShardError for a file that is damaged, unpacks to
    more than ``limits``, or has no pictures.
    """
    most = limits.most(shard.size)
    try:
        with open(local, "rb") as raw:
            metadata = read_footer(raw)
            check_pages(raw, metadata, most)
        # pyarrow decodes page by page, and the checks have bounded the size of a page.
        file = pq.ParquetFile(
            local,
            metadata=metadata,
            pre_buffer=False,
            buffer_size=1 << 20,
            page_checksum_verification=True,
        )
        roles = roles_of(file.schema_arrow, columns, shard.url)
        keys = _keys(file, roles, shard)
        times = Counter(keys)
        samples = []
        with open(target, "wb") as out:
            for key, row in zip(keys, _rows(file, None), strict=True):
                samples.append(_sample(key, times, row, roles, out))
                check_size(out.tell(), most)
        return samples
    except (pa.ArrowException, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # a full disk
        raise ShardError(f"{shard.url}: damaged, or no Parquet file: {error}") from error


def _rows(file: pq.ParquetFile, columns: list[str] | None) -> Iterator[dict[str, Any]]:
    for group in range(file.num_row_groups):
        for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=columns):
            yield from batch.to_pylist()


def _keys(file: pq.ParquetFile, roles: Roles, shard: Shard) -> list[str]:
    """The key of each row: from its column, from the picture's path, or else the row's number."""
    rows = file.metadata.num_rows
    numbers = [f"{shard.stem}/{number:0{max(6, len(str(rows)))}d}" for number in range(rows)]
    if roles.key is not None:
        given = [row[roles.key] for row in _rows(file, [roles.key])]
        return [
            number if key in (None, "") else str(key)
            for key, number in zip(given, numbers, strict=True)
        ]
    kind = file.schema_arrow.field(roles.image).type
    if not pa.types.is_struct(kind) or kind.get_field_index("path") < 0:
        return numbers
    named = [
        (row[roles.image] or {}).get("path") or "" for row in _rows(file, [f"{roles.image}.path"])
    ]
    stems = [_without_extension(name) for name in named]
    # Many tables call all of their pictures image.jpg.
    return stems if all(stems) and len(set(stems)) == rows else numbers


def _without_extension(path: str) -> str:
    folder, slash, base = path.replace("\\", "/").rpartition("/")
    stem, dot, extension = base.rpartition(".")
    return folder + slash + (stem if dot and extension.lower() in EXTENSIONS else base)


def _sample(
    key: str, times: Mapping[str, int], row: Mapping[str, Any], roles: Roles, out: BinaryIO
) -> Sample:
    fields: list[tuple[str, Member]] = []
    filtered = ""

    def add(name: str, data: bytes, problem: str = "") -> None:
        fields.append((name, Member(name, out.tell(), len(data), problem)))
        out.write(data)

    data, path = _content(row[roles.image])
    if data is not None:
        add(_picture_field(roles.image, data, path), data)
    elif path:
        add("image", b"", f"is not in the table, which only names a file: {path!r:.200}")
    else:
        filtered = _NULL
    if roles.caption is not None and row[roles.caption] is not None:
        add("txt", row[roles.caption].encode("utf-8", "surrogatepass"))
    if roles.label is not None and row[roles.label] is not None:
        add("cls", str(row[roles.label]).encode())
    for name in roles.fields:
        if name == OTHER_FIELDS:
            for other in row[name] or ():
                add(other["name"], other["data"])
        elif (value := row[name]) is not None:
            text = value if isinstance(value, bytes) else str(value).encode("utf-8")
            add(name, text)
    for name in roles.sides:
        data, path = _content(row[name])
        if data is not None:
            add(f"{name}.{_extension(data, path) or 'bin'}", data)
    if roles.rest:
        rest = {name: row[name] for name in roles.rest}
        add("json", json.dumps(rest, default=_plain, ensure_ascii=False).encode("utf-8", "replace"))
    return sample_of(key, fields, times[key], filtered)


def _content(value: Any) -> tuple[bytes | None, str]:
    """Bytes and path of a cell."""
    if isinstance(value, Mapping):
        return value.get("bytes"), str(value.get("path") or "")
    return value, ""


def _picture_field(column: str, data: bytes, path: str) -> str:
    """The name of the picture's field: an extension, as in a tar."""
    return column if column.lower() in EXTENSIONS else _extension(data, path) or "jpg"


_MAGIC = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG", "png"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tif"),
    (b"MM\0*", "tif"),
    (b"\0\0\0\x0cjP", "jp2"),
)


def _extension(data: bytes, path: str) -> str:
    """The extension of a picture's path, or else the one for its first bytes; '' if unknown."""
    named = path.rpartition(".")[2].lower() if "." in path else ""
    if named in EXTENSIONS:
        return named
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:12] in (b"ftypavif", b"ftypavis"):
        return "avif"
    return next((name for magic, name in _MAGIC if data.startswith(magic)), "")


def _plain(value: Any) -> Any:
    """A value for which JSON has no type: bytes as base64, dates and the like as text."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
