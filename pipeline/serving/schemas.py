"""The server's answers in JSON, for OpenAPI."""

from typing import Annotated, Any

from pydantic import BaseModel, Field


class Problem(BaseModel):
    """Why there is no answer, in words."""

    detail: str = Field(examples=["there is no picture with the key 'cat/0042'"])


class Item(BaseModel):
    """A picture in a list."""

    key: str = Field(examples=["cat/0042"])
    width: int = Field(description="pixels", examples=[768])
    height: int = Field(description="pixels", examples=[512])
    layers: int = Field(description="layers that are stored", examples=[5])
    cumulative_bytes: list[int] = Field(
        description="bytes of the stream up to each layer, its header included",
        examples=[[402, 3120, 9544, 24310, 61022]],
    )
    psnr: list[float | None] | None = Field(
        description="dB after each layer, if it was measured; null for a lossless layer",
        examples=[[22.4, 27.9, 32.5]],
    )
    has_original: bool = Field(description="whether the original file is kept")


class Listed(Item):
    """A picture in a list; caption and label only with `captions=true`."""

    caption: str | None = Field(None, description="on one line", examples=["a cat on a mat"])
    label: str | None = Field(None, description="on one line", examples=["tabby"])


class Page(BaseModel):
    """Pictures in the dataset's order."""

    items: list[Listed]
    next: str | None = Field(
        description="the `after` of the next page; null on the last page. In a search, a page may "
        "have few items or none, although more pages follow."
    )
    unread: int = Field(
        description="pictures whose captions were not searched, because their side fields are too "
        "large"
    )


class SideField(BaseModel):
    """A file beside the picture in its sample."""

    name: str = Field(examples=["json"])
    bytes: int = Field(examples=[75])
    text: str | None = Field(description="null if it is no text, or a long one")


class SideFields(BaseModel):
    """The first side fields; `more` is how many are left out."""

    items: list[SideField]
    more: int


class Info(Listed):
    """A picture's metadata."""

    bpp: list[float] = Field(
        description="bits per pixel up to each layer", examples=[[0.008, 0.06, 0.19, 0.49, 1.24]]
    )
    source_format: str | None = Field(description="of the original file", examples=["png"])
    source_bytes: int | None = Field(description="of the original file", examples=[700_123])
    model_id: str = Field(description="sha256 of the model that wrote the stream")
    codec: str = Field(examples=["uqdm"])
    notes: str = Field(description="what was done to the picture before it was encoded")
    original_from: int | None = Field(
        description="with so many `layers` or more, the kept original is shown, because these "
        "layers are not stored; null if it never is"
    )
    fields: SideFields | None = Field(
        description="side fields; null if those of its row group are too large to be read"
    )


class Facts(BaseModel):
    """An archive."""

    name: str = Field(examples=["archive"])
    pictures: int = Field(examples=[50_000])
    layers: int = Field(description="layers of its streams; pictures may store fewer")
    quick_layers: int = Field(
        description="how many layers this server decodes quickly: 1 if each further one takes "
        "seconds, otherwise all"
    )
    codec: str = Field(examples=["uqdm"])
    model_id: str = Field(description="sha256 of the model file")
    lossless: bool = Field(description="whether all layers together are lossless")
    failed: int = Field(description="inputs that could not be compressed")
    formats: list[str] = Field(
        description="formats of the original files, for `format`; all formats if this is not known",
        examples=[["jpeg", "png"]],
    )
    captions: int | None = Field(
        description="pictures with a caption or a label; null if this is not known"
    )
    version: str = Field(
        description="changes whenever an answer's bytes may change; answers to requests with this "
        "`v` can be cached for good"
    )


class Health(BaseModel):
    """A server that answers."""

    status: str = Field(examples=["ok"])


_EXAMPLES = {
    400: "this cursor is not from this archive: leave `after` out to start again",
    404: "there is no picture with the key 'cat/0042'",
    422: "layers: Input should be less than or equal to 5",
    503: "too many requests are waiting",
}
_MEANINGS = {
    400: "The cursor is not from this archive",
    404: "No such picture, or all of its data is damaged",
    422: "A parameter is not allowed, or the format cannot hold this picture",
    503: "Busy, or the store does not answer: try again after `Retry-After` seconds",
}
Responses = dict[int | str, dict[str, Any]]


def errors(*statuses: int) -> Responses:
    """The errors of a route."""
    retry = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}
    return {
        status: {
            "model": Problem,
            "description": _MEANINGS[status],
            "content": {"application/json": {"example": {"detail": _EXAMPLES[status]}}},
            **({"headers": retry} if status == 503 else {}),
        }
        for status in statuses
    }


def _header(kind: str, description: str) -> dict[str, Any]:
    return {"schema": {"type": kind}, "description": description}


ETAG = {"ETag": _header("string", "equal tags mean equal bytes")}
PICTURE_HEADERS = {
    **ETAG,
    "X-Strata-Layers": _header("integer", "layers that the picture was made from"),
    "X-Strata-Bytes": _header("integer", "bytes of the stream (or of the original) used for it"),
    "X-Strata-Original": _header("string", "`true` if it was made from the kept original"),
    "X-Strata-Damaged": _header(
        "integer", "the first damaged layer; only the layers before it are shown"
    ),
}
STREAM_HEADERS = {
    name: header for name, header in PICTURE_HEADERS.items() if name != "X-Strata-Original"
}


def file_response(description: str, types: list[str], headers: dict[str, Any]) -> Responses:
    """The answers of a route that sends a file, or 304."""
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {
        200: {
            "description": description,
            "content": dict.fromkeys(types, binary),
            "headers": headers,
        },
        304: {"description": "The client's copy (If-None-Match) is up to date", "headers": ETAG},
    }


Positive = Annotated[int, Field(ge=1, le=1 << 31)]
