"""Captions and labels among side fields that anybody may have written."""

import json

import pytest

from pipeline.dataset.captions import MAX_CAPTION, MAX_LOOKED, NOTHING, Told, caption_of, text_of


def told(**fields: bytes | None) -> Told:
    return caption_of({"name": name, "data": data} for name, data in fields.items())


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"txt": b"a cat\n on a mat "}, Told("a cat on a mat", None)),
        ({"caption": "Katze, süß".encode()}, Told("Katze, süß", None)),
        ({"txt": b"the file", "caption": b"the caption"}, Told("the caption", None)),
        ({"json": b'{"caption": "a cat", "url": "x"}', "png": None}, Told("a cat", None)),
        ({"json": b'{"caption": "a cat"}', "txt": b"a dog"}, Told("a dog", None)),
        ({"json": b'{"caption": null, "text": "words"}'}, Told("words", None)),
        ({"cls": b"207\n"}, Told(None, "207")),
        ({"json": b'{"label": 7, "caption": true}'}, Told(None, "7")),
        ({"TXT": b"upper"}, Told("upper", None)),
        ({"png": None, "cls": b"3", "txt": b"both"}, Told("both", "3")),
    ],
)
def test_what_is_found(fields: dict[str, bytes | None], expected: Told) -> None:
    assert told(**fields) == expected


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"txt": None},
        {"txt": b""},
        {"txt": b" \n\t"},
        {"txt": b"\xff\xfe"},
        {"txt": b"bell \x07"},
        {"txt": b"nul \x00"},
        {"json": b"[1, 2]"},
        {"json": b'"caption"'},
        {"json": b"{broken"},
        {"json": b"[" * 30_000},
        {"json": b'{"label": ' + b"9" * 5000 + b"}"},
        {"json": b'{"caption": {"caption": "deeper"}}'},
        {"json": b'{"caption": "half a pair \\ud800"}'},
        {"json": b'{"caption": "\\u0000"}'},
        {"other.txt": b"of another name"},
        {"txt": b"x" * (MAX_LOOKED + 1)},
    ],
)
def test_what_is_no_caption(fields: dict[str, bytes | None]) -> None:
    assert told(**fields) == NOTHING


def test_long_ones_are_cut() -> None:
    caption, _ = told(txt=b"word " * 1000)
    assert caption is not None
    assert len(caption) == MAX_CAPTION
    assert caption.endswith("…")
    inside, _ = told(json=json.dumps({"caption": "é" * 1000}).encode())
    assert inside == "é" * (MAX_CAPTION - 1) + "…"


def test_what_is_text() -> None:
    assert text_of("ä\tb\r\nc".encode()) == "ä\tb\r\nc"
    assert text_of(b"") == ""
    assert text_of(b"\x1b[31mred") is None
    assert text_of(b"\x89PNG") is None
