"""The examples of docs/reading.md, run unchanged, and the bytes that they read."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.dataset import models
from tests.pipeline.compress.test_parquet_inputs import img2dataset
from tests.pipeline.makers import ToyCodec, png, write_tar
from tests.pipeline.reader.test_originals import jpeg
from tests.recipes.conftest import SAMPLES, SHARDS, URL, Counted, picture_of
from tests.recipes.writing import write_dataset

pytestmark = [pytest.mark.integration]
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "reading.md").read_text()
TOOLS = ["DuckDB", "Polars", "Hugging Face datasets", "pandas and pyarrow"]
FIRST_LAYER = ["key", "header", "layer_00"]


def example(heading: str) -> str:
    """The first block of code under a heading."""
    section = re.split(rf"^#+ {re.escape(heading)}\n", PAGE, maxsplit=1, flags=re.MULTILINE)[1]
    found = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert found is not None
    return found[1]


def run(heading: str, url: str, names: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run an example on the dataset at ``url``; returns what it has defined."""
    names = dict(names or {})
    code = example(heading).replace('"s3://bucket/archive"', repr(url))
    exec(compile(code, f"docs/reading.md: {heading}", "exec"), names)
    return names


def check(found: dict[str, Any]) -> None:
    """All streams were read, and pictures were decoded from their first layer."""
    assert sorted(found["streams"]) == [
        f"{shard}{number:04d}" for shard in range(SHARDS) for number in range(SAMPLES)
    ]
    assert len(found["pictures"]) == 16
    for key, decoded in zip(found["streams"], found["pictures"], strict=False):
        assert np.array_equal(decoded, picture_of(int(key[1:])) & 0xC0)


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_reads_the_first_layer_and_no_more(counted: Counted, tool: str) -> None:
    names = run("With other tools", URL)
    before = counted.downloaded
    check(run(tool, URL, names))
    read = counted.downloaded - before
    needed = counted.column_bytes(FIRST_LAYER)
    print(f"{tool}: {read} bytes, {read / needed:.3f} of {needed}")
    assert needed <= read <= 1.1 * needed


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_reads_local_files(counted: Counted, tool: str) -> None:
    check(run(tool, counted.local.url, run("With other tools", counted.local.url)))


def test_originals_by_other_tools(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.write_bytes(b"a model")
    files = {"a": jpeg(0), "b": png(1), "cut": jpeg(2)[:-400]}
    tar = [(f"{key}.jpg", data) for key, data in files.items()]
    write_tar(tmp_path / "x.tar", tar)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "load_codec", lambda *_, **__: ToyCodec(model))
        dataset = write_dataset(
            [str(tmp_path / "x.tar")],
            str(tmp_path / "set"),
            ToyCodec(model),
            1,
            keep_original="always",
        )
    names = {"files": [f"{dataset.url}/{file.path}" for file in dataset.files]}
    found = run("Originals", dataset.url, names)
    assert found["by_duckdb"] == found["by_polars"] == files


@pytest.mark.parametrize("output", ["webdataset", "files", "parquet"])
def test_captions_of_img2dataset(tmp_path: Path, output: str) -> None:
    """As they come: there is no ``cls`` among them."""
    model = tmp_path / "model"
    model.write_bytes(b"a model")
    source = img2dataset(tmp_path / "in", output)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "load_codec", lambda *_, **__: ToyCodec(model))
        dataset = write_dataset([str(source)], str(tmp_path / "set"), ToyCodec(model), 4)
        found = run("In training", dataset.url)
        assert len(found["captions"]) == len(found["pictures"]) == len(found["labels"])
        assert {*found["captions"]} <= {"picture 0", "picture 1", "picture 2"}
        keys = list(dataset.keys())[:2]
        code = example("From Python").replace('"a-key", "another-key"', repr(keys)[1:-1])
        code = code.replace('"a-key"', repr(keys[0])).replace("512", "32")
        exec(code.replace('"s3://bucket/archive"', repr(dataset.url)), names := {})  # type: ignore[var-annotated]
        assert names["image"].shape == (24, 32, 3)


@pytest.mark.parametrize("tool", ["DuckDB", "Hugging Face datasets"])
def test_why_reading_ahead_must_be_stopped(
    counted: Counted, tool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the option, the same examples read everything."""
    import fsspec

    names = run("With other tools", URL)
    code = example(tool)
    tamed = re.sub(r',?\s*(storage_options=\{)?"?default_cache_type"?[=:] ?"none"\}?', "", code)
    assert tamed != code
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    before = counted.downloaded
    exec(tamed, dict(names))
    assert counted.downloaded - before > 3 * counted.column_bytes(FIRST_LAYER)


def test_batches_for_training(counted: Counted) -> None:
    found = run("In training", URL)
    assert len(found["labels"]) == len(found["pictures"])
    before = counted.downloaded
    streams = found["pipeline"].StrataImages(URL, 1, shuffle_buffer=500)
    assert sum(1 for _ in streams) == SHARDS * SAMPLES
    read = counted.downloaded - before
    needed = counted.column_bytes([*FIRST_LAYER, "width", "height"])
    assert needed <= read <= 1.02 * needed
    # Stopped and resumed, each picture comes once.
    later = run("Stopping and resuming", URL, found)
    keys = [key for keys in [*later["begun"], *later["rest"]] for key in keys]
    assert len(later["begun"]) == 5
    assert len(keys) == len(set(keys)) == SHARDS * SAMPLES
    pictures = run("Decoding on the GPU", URL, found)["pictures"]
    assert pictures.shape[1:] == (64, 64, 3)
