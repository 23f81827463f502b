"""The pictures of training: folders and tables are read like tars."""

import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from codec.training.data import read_share, share_of
from pipeline.training.job import opener, shards_of
from tests.pipeline.makers import png, samples, write_tar


def test_folders_and_tables_are_read_as_tars_are(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        (photos / f"2024.01.{number}.png").write_bytes(png(number))
        (photos / f"2024.01.{number}.json").write_text('{"source": "camera"}')
    (photos / "empty.png").touch()
    table = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": [png(n) for n in range(4)]}), table)
    tar = write_tar(tmp_path / "x.tar", samples(2))
    told: list[str] = []
    names, others = shards_of([str(photos), str(table), str(tar)], {})
    assert len(names) == 3
    open_shard = pickle.loads(pickle.dumps(opener(names, {}, others)))  # as workers get it
    pictures = read_share(share_of(names, 0, 1), open_shard, 16, told.append)
    assert len(pictures) == 9
    assert pictures.sources["camera (?)"] == 3
    assert any("empty.png left out" in line for line in told)
    names, others = shards_of([str(table)], {})
    assert len(read_share(share_of(names, 0, 1), opener(names, {}, others), 16, str)) == 4


def test_only_the_files_of_a_glob_are_read(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    names, others = shards_of([f"{tmp_path}/[0-2].png"], {})
    assert len(read_share(share_of(names, 0, 1), opener(names, {}, others), 16, str)) == 3
