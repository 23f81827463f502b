"""``--filter``: the meaning of conditions, and which are refused, with the place of the error."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dataset.rows import schema
from pipeline.decode.filter_language import COLUMNS, FilterError, parse_condition

ROWS = [
    {"key": "a/1", "width": 64, "height": 48, "source_format": "png", "status": "ok", "layers": 4},
    {"key": "a/2", "width": 512, "height": 90, "source_format": "jpeg", "status": "ok"},
    {"key": "b/ü", "width": 65536, "height": 65536, "source_format": "jpeg", "notes": "rotated"},
    {"key": "bad", "status": "bad", "source_format": None},
]
TABLE = pa.Table.from_pylist(ROWS, schema=schema(0))


def chosen(text: str) -> list[str]:
    return TABLE.filter(parse_condition(text).expression).column("key").to_pylist()


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ('width >= 512 and source_format == "jpeg"', ["a/2", "b/ü"]),
        ("64 < width <= 512", ["a/2"]),
        ("width < 100 or width > 1000", ["a/1", "b/ü"]),
        ("not width < 100", ["a/2", "b/ü"]),  # and not what has no width
        ("width != 64", ["a/2", "b/ü"]),
        ("width * height > 2e9", ["b/ü"]),  # more than 32 bits hold
        ("width / height > 5", ["a/2"]),
        ("-width > -100 + 1", ["a/1"]),
        ("+64 == width", ["a/1"]),
        ("width * height >= 1024 * 1024", ["b/ü"]),
        ('key.startswith("a/")', ["a/1", "a/2"]),
        ('key.endswith("ü")', ["b/ü"]),
        ('key.matches("^[ab]/[0-9]")', ["a/1", "a/2"]),
        ('"otat" in notes', ["b/ü"]),
        ('"/" not in key', ["bad"]),
        ("width in [64, 512.0]", ["a/1", "a/2"]),
        ("width not in [64]", ["a/2", "b/ü"]),
        ('source_format in ("png", "webp")', ["a/1"]),
        ("source_format is None", ["bad"]),
        ("layers is not None and alpha is None", ["a/1"]),
        ("width >= 512\n  and height < 100", ["a/2"]),
        ("width in []", []),
        ("not width in [64]", ["a/2", "b/ü"]),  # nor here what has no width
        ('not (source_format in ["png"] or width in [512])', ["b/ü"]),
        ("width not in []", ["a/1", "a/2", "b/ü"]),
    ],
)
def test_what_a_condition_means(text: str, keys: list[str]) -> None:
    assert chosen(text) == keys
    assert chosen(parse_condition(text).text) == keys  # as plans have it
    spelled = parse_condition(text).text
    assert parse_condition(spelled).text == spelled


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("widht > 3", "at character 1 (widht): there is no column 'widht'. The columns are"),
        ('"ü" in key and fields == 1', "at character 16 (fields): there is no column"),
        ('width > "a"', 'at character 9 ("a"): a number is compared with text'),
        ("width == True", "at character 10 (True): only numbers and text"),
        ("width", "at character 1 (width): this is not a condition"),
        ("1 < 2", "one side of a comparison must be a column"),
        ("width >", "at its end"),
        ("", "at its end"),
        ("(width > 1", "at character 1: '(' was never closed"),
        ("psnr > 3", "neither number nor text"),
        ("width > 1 / 0", "at character 9 (1 / 0): this divides by zero"),
        ("width is 3", "only None can follow 'is'"),
        ("width in height", "'in' takes a list"),
        ("width in [1, 'a']", "this list may only hold a number"),
        ('key.matches("(")', "missing )"),
        ("key.startswith(key)", "the only methods"),
        ("key.upper() == 'A'", "this is not understood"),
        ("width ** 99999999 > 1", "this is not understood"),
        ('__import__("os").system("true")', "the only methods"),
        ("width.__class__ == 1", "this is not understood"),
        ("(lambda: 1)()", "the only methods"),
        ("[x for x in key] == 1", "this is not understood"),
        ("width > 99999999999999999999", "too large"),
        ("not " * 2000 + "width > 1", "--filter"),
        ("w" * 20_000, "use --keys-file"),
    ],
)
def test_what_is_refused(text: str, words: str) -> None:
    with pytest.raises(FilterError) as error:
        parse_condition(text)
    assert words in str(error.value)


def test_the_message_names_the_columns() -> None:
    with pytest.raises(FilterError) as error:
        parse_condition("nothing == 1")
    assert all(name in str(error.value) for name in COLUMNS)
    assert "layer_00" not in str(error.value)


@given(st.text(alphabet="widthkey<>=()[]'\"., 1andotrin+-*/ü\0\ud800", max_size=40))
def test_nothing_but_its_own_error(text: str) -> None:
    try:
        condition = parse_condition(text)
    except FilterError:
        return
    TABLE.filter(condition.expression)
