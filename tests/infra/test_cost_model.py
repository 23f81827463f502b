"""The cost model: its arithmetic, its table in docs/cluster.md, and where its figures come from."""

import json
import re
from dataclasses import replace

import pytest

from infra.cost_model import Assumptions, cost, main, table
from tests.infra.commands import ROOT

PAGE = (ROOT / "docs" / "cluster.md").read_text()
MEASURED = json.loads((ROOT / "docs" / "results" / "pipeline.json").read_text())


def test_the_page_shows_what_the_program_prints(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    printed = capsys.readouterr().out.strip()
    assert printed.count("\n") == 4
    assert printed in PAGE


def test_what_is_called_measured_was_measured() -> None:
    given = Assumptions()
    case = "uqdm 256x256"
    assert given.megapixels == 256 * 256 / 1e6
    stored = MEASURED["overhead"][case]
    speed = 1 / stored["job_processor_seconds"]
    assert given.images_per_second == pytest.approx(speed, rel=0.05)
    assert given.bits_per_pixel == pytest.approx(stored["bits_per_pixel"], rel=0.05)
    # What a row has besides its stream does not depend on the picture's size; of eight rows the
    # footer would be most of it.
    rows = MEASURED["overhead"]["uqdm 64x64"]["row_bytes"]
    assert given.row_bytes == pytest.approx(rows, rel=0.05)
    asked = MEASURED["s3"]["requests"]["per_shard"]
    writes = asked.get("PUT", 0) + asked.get("LIST", 0) + asked.get("POST", 0)
    assert given.writes_per_shard == pytest.approx(writes, abs=0.05)
    assert given.reads_per_shard == pytest.approx(asked["GET"] + asked["HEAD"], abs=0.05)


def test_twice_the_speed_is_half_the_hours_and_half_the_money() -> None:
    slow = cost(10**6, Assumptions(images_per_second=5, worker_price=1))
    fast = cost(10**6, Assumptions(images_per_second=10, worker_price=1))
    assert slow.hours == pytest.approx(10**6 / 5 / 3600)
    assert (slow.hours, slow.days, slow.computing) == pytest.approx(
        (2 * fast.hours, 2 * fast.days, 2 * fast.computing)
    )
    assert (slow.stored, slow.requests) == (fast.stored, fast.requests)


def test_a_day_of_hours_takes_one_worker_a_day_and_many_less() -> None:
    given = Assumptions(images_per_second=1, images_per_shard=100, workers=1)
    assert cost(86_400, given).days == pytest.approx(1)
    many = Assumptions(images_per_second=1, images_per_shard=100, workers=10)
    assert cost(86_400, many).days == pytest.approx(0.1)


def test_workers_without_a_shard_do_not_help() -> None:
    given = Assumptions(images_per_second=1, images_per_shard=43_200, workers=1000)
    assert cost(86_400, given).days == pytest.approx(0.5)


def test_storage_grows_with_pixels_and_requests_with_shards() -> None:
    given = Assumptions(megapixels=1, bits_per_pixel=0.8, row_bytes=0, images_per_shard=100)
    one = cost(10**6, given)
    assert one.stored == pytest.approx(100)  # 0.1 MB each
    assert one.keeping == pytest.approx(100 * given.storage_price)
    assert one.requests == pytest.approx(10_000 * (given.writes_per_shard + given.reads_per_shard))
    larger = cost(10**6, replace(given, images_per_shard=1000))  # 100 MB: six parts, two POST
    assert larger.requests == pytest.approx(
        1000 * (given.writes_per_shard + 7 + given.reads_per_shard)
    )


def test_the_table_says_how_many_workers_it_means() -> None:
    assert re.search(r"days, 1,234 workers", table(Assumptions(workers=1234)))
