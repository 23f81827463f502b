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
        description="dB after each layer, where it was measured; null where nothing is lost",
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
        description="give it as `after` for the next page; null at the end. A page of a search "
        "may hold few items or none before the last page."
    )
    unread: int = Field(
        description="pictures whose captions were not searched: their side fields are too large"
    )


class SideField(BaseModel):
    """A file beside the picture in its sample."""

    name: str = Field(examples=["json"])
    bytes: int = Field(examples=[75])
    text: str | None = Field(description="null where it is no text, or a long one")


class SideFields(BaseModel):
    """The first of the fields; `more` are not named."""

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
        description="with so many `layers` or more, the original is shown in place of layers that "
        "are not stored; null where it is not"
    )
    fields: SideFields | None = Field(
        description="side fields; null where those of its row group are too large to be read"
    )


class Facts(BaseModel):
    """A dataset."""

    name: str = Field(examples=["archive"])
    pictures: int = Field(examples=[50_000])
    layers: int = Field(description="layers of its streams; pictures may store fewer")
    quick_layers: int = Field(
        description="how many of them this server decodes quickly: 1 if each further one takes "
        "seconds, otherwise all"
    )
    codec: str = Field(examples=["uqdm"])
    model_id: str = Field(description="sha256 of the model file")
    lossless: bool = Field(description="whether all layers together are lossless")
    failed: int = Field(description="inputs that could not be compressed")
    formats: list[str] = Field(
        description="of the original files, for `format`; all there are where this is not known",
        examples=[["jpeg", "png"]],
    )
    captions: int | None = Field(
        description="pictures with a caption or a label; null where this is not known"
    )
    version: str = Field(
        description="changes whenever a picture's bytes here may; give it as `v`, and pictures "
        "can be cached for good"
    )


class Health(BaseModel):
    """A server that answers."""

    status: str = Field(examples=["ok"])


_EXAMPLES = {
    400: "this dataset did not give this cursor: leave `after` out to start again",
    404: "there is no picture with the key 'cat/0042'",
    422: "layers: Input should be less than or equal to 5",
    503: "too many requests wait already",
}
_MEANINGS = {
    400: "A cursor that this dataset did not give",
    404: "No such picture, or all of its data is damaged",
    422: "A parameter that is not allowed, or a picture that this format cannot hold",
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


ETAG = {"ETag": _header("string", "names the bytes: equal tags are equal bytes")}
PICTURE_HEADERS = {
    **ETAG,
    "X-Strata-Layers": _header("integer", "layers that the picture was made from"),
    "X-Strata-Bytes": _header("integer", "bytes of the stream (or of the original) used for it"),
    "X-Strata-Original": _header("string", "`true` where it was made from the kept original"),
    "X-Strata-Damaged": _header(
        "integer", "the first layer that is damaged, where fewer layers are shown for that reason"
    ),
}
STREAM_HEADERS = {
    name: told for name, told in PICTURE_HEADERS.items() if name != "X-Strata-Original"
}


def file_response(description: str, types: list[str], headers: dict[str, Any]) -> Responses:
    """A route that answers with a file, or with 304."""
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {
        200: {
            "description": description,
            "content": dict.fromkeys(types, binary),
            "headers": headers,
        },
        304: {"description": "The client's copy (If-None-Match) is still right", "headers": ETAG},
    }


Positive = Annotated[int, Field(ge=1, le=1 << 31)]
