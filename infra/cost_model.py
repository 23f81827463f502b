#!/usr/bin/env python
"""What compressing a corpus takes: worker hours, days, requests, storage and money.

    python infra/cost_model.py --workers 200 --worker-price 0.08
    python infra/cost_model.py --images-per-second RATE --worker-price PRICE   # e.g. of a GPU

Rates and requests are measured (docs/results/pipeline.json); prices are assumptions, to be replaced
by those of your provider and region.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

PART_BYTES = 16 << 20


@dataclass(frozen=True)
class Assumptions:
    """Defaults: 256x256 pictures, uqdm with its archive layers, workers of one CPU core.

    Measured: ``images_per_second`` of one worker (by its processor time), ``bits_per_pixel``,
    ``row_bytes`` (what a row has besides its stream), and the requests of a shard whose file is
    below 32 MB (``writes``: PUT and LIST; ``reads``: GET and HEAD); a larger file goes up in parts
    of 16 MB. Assumed: everything else. Prices are in dollars: of a worker's hour, of a GB for a
    month, of a million requests.
    """

    megapixels: float = 0.065536
    images_per_second: float = 2.8
    bits_per_pixel: float = 2.0
    row_bytes: float = 170
    images_per_shard: int = 10_000
    writes_per_shard: float = 2.2
    reads_per_shard: float = 5
    workers: int = 100
    worker_price: float = 0.04
    storage_price: float = 0.023
    write_price: float = 5.0
    read_price: float = 0.4


@dataclass(frozen=True)
class Cost:
    """``hours`` of workers, ``days`` by the clock, ``stored`` GB, money in dollars."""

    images: int
    hours: float
    days: float
    shards: int
    requests: float
    stored: float
    computing: float
    asking: float
    keeping: float


def cost(images: int, given: Assumptions) -> Cost:
    """What ``images`` pictures cost once, and (``keeping``) their archive every month."""
    hours = images / given.images_per_second / 3600
    shards = -(-images // given.images_per_shard)
    image_bytes = given.megapixels * 1e6 * given.bits_per_pixel / 8 + given.row_bytes
    parts = -(-int(min(images, given.images_per_shard) * image_bytes) // PART_BYTES)
    in_parts = parts + 1 if parts > 2 else 0  # a POST before them, and one after, for one PUT
    writes = shards * (given.writes_per_shard + in_parts)
    reads = shards * given.reads_per_shard
    # of one worker per shard at most: more have nothing to do
    days = hours / 24 / min(given.workers, shards)
    stored = images * image_bytes / 1e9
    return Cost(
        images=images,
        hours=hours,
        days=days,
        shards=shards,
        requests=writes + reads,
        stored=stored,
        computing=hours * given.worker_price,
        asking=(writes * given.write_price + reads * given.read_price) / 1e6,
        keeping=stored * given.storage_price,
    )


def table(given: Assumptions, sizes: Sequence[int] = (10**6, 10**8, 10**9)) -> str:
    """A Markdown table of what corpora of these sizes (images) cost."""
    lines = [
        f"| images | worker hours | days, {given.workers:,} workers | shards | requests "
        "| archive, GB | workers, $ | requests, $ | storage, $ a month |",
        "|" + "---:|" * 9,
    ]
    for one in (cost(images, given) for images in sizes):
        lines.append(
            f"| {one.images:,} | {one.hours:,.0f} | {one.days:,.2f} | {one.shards:,} "
            f"| {one.requests:,.0f} | {one.stored:,.1f} | {one.computing:,.0f} | {one.asking:,.2f} "
            f"| {one.keeping:,.2f} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for field in fields(Assumptions):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=type(field.default),
            default=field.default,
            metavar="N",
            help="default: %(default)s",
        )
    parser.add_argument("--images", type=int, nargs="+", default=[10**6, 10**8, 10**9])
    given = vars(parser.parse_args(arguments))
    sizes = given.pop("images")
    print(table(replace(Assumptions(), **given), sizes))


if __name__ == "__main__":
    main()
