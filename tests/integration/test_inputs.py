"""Folders of pictures and Parquet files on a real S3 store, on Ray."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline
from codec.images.files import read_image
from pipeline.compress.job import CompressOptions, compress
from pipeline.decode.job import DecodeOptions, decode
from pipeline.verify.job import Subset, VerifyOptions, verify
from tests.integration.servers import BUCKET, S3Server
from tests.pipeline.makers import png

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_session")]


def options_of(
    server: S3Server, model: str, folder: str, *inputs: str, **changes: Any
) -> CompressOptions:
    return CompressOptions(
        tuple(f"{server.url}/{folder}/{one}" for one in inputs),
        f"{server.url}/{folder}/set",
        model,
        lossless=True,
        workers=1,
        input_options=server.options(),
        output_options=server.options(),
        **changes,
    )


def test_a_folder_grows_and_is_repaired(
    moto_server: S3Server, small_model: str, folder: str
) -> None:
    fs, options = moto_server.filesystem(), moto_server.options()
    for number in range(3):
        fs.pipe_file(f"{BUCKET}/{folder}/photos/x/{number}.png", png(number))
        fs.pipe_file(f"{BUCKET}/{folder}/photos/x/{number}.json", b'{"n": %d}' % number)
    job = options_of(moto_server, small_model, folder, "photos", keep_original="always")
    assert (compress(job).ok, compress(job).resumed) == (3, 1)
    fs.pipe_file(f"{BUCKET}/{folder}/photos/a [new].png", png(7))
    grown = compress(job)
    assert (grown.ok, grown.resumed, grown.shards, grown.new_samples) == (4, 1, 2, 1)
    url = f"{moto_server.url}/{folder}/set"
    damaged = next(path for path in fs.ls(f"{BUCKET}/{folder}/set/data") if "000001-000001" in path)
    whole = fs.cat_file(damaged)
    fs.pipe_file(damaged, whole[:500] + bytes(64) + whole[564:])
    report = verify(
        VerifyOptions(
            url,
            read=Subset(),
            repair=True,
            workers=1,
            input_options=options,
            source_options=options,
        )
    )
    assert report.exit_code == 0, report.lines()
    dataset = pipeline.open_dataset(url, options)
    assert sorted(dataset.keys()) == ["a [new]", "x/0", "x/1", "x/2"]
    for key, number in (("x/1", 1), ("a [new]", 7)):
        np.testing.assert_array_equal(dataset.image(key), read_image(png(number)).rgb)
        assert dataset.original(key) == png(number)


def test_a_table_comes_back_as_a_table(
    moto_server: S3Server, small_model: str, folder: str
) -> None:
    fs, options = moto_server.filesystem(), moto_server.options()
    images = [{"bytes": png(n), "path": f"{n}.png"} for n in range(3)]
    table = pa.table({"image": images, "caption": ["a", "b", "c"], "n": [4, 5, 6]})
    with fs.open(f"{BUCKET}/{folder}/in/t.parquet", "wb") as out:
        pq.write_table(table, out)
    assert compress(options_of(moto_server, small_model, folder, "in")).ok == 3
    url = f"{moto_server.url}/{folder}"
    job = DecodeOptions(
        f"{url}/set",
        f"{url}/out",
        format="parquet",
        workers=1,
        input_options=options,
        output_options=options,
    )
    assert decode(job).ok == 3
    assert decode(job).resumed == 1
    (path,) = fs.glob(f"{BUCKET}/{folder}/out/*.parquet")
    with fs.open(path) as found:
        rows = pq.read_table(found).to_pylist()
    assert [row["txt"] for row in rows] == ["a", "b", "c"]
    assert [json.loads(row["json"])["n"] for row in rows] == [4, 5, 6]
    for number, row in enumerate(rows):
        shown = read_image(row["image"]["bytes"]).rgb
        np.testing.assert_array_equal(shown, read_image(png(number)).rgb)
