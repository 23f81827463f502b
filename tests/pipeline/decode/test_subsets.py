"""Selected pictures at a selected quality, as tars and files: the whole job without Ray."""

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codec.images.files import read_image, write_image
from pipeline.dataset.plan import PlanMismatchError
from pipeline.decode.job import DecodeOptions, decode
from pipeline.reader.dataset import Dataset
from pipeline.running import job as running_job
from pipeline.running.options import OptionError
from pipeline.stores.store import Store
from tests.pipeline.conftest import Make
from tests.pipeline.counting import CountingFileSystem
from tests.pipeline.makers import ToyCodec, picture, png, samples, write_tar

pytestmark = pytest.mark.usefixtures("without_ray")


@pytest.fixture
def dataset(make_dataset: Make, tmp_path: Path) -> Dataset:
    """Two shards: pictures of two sizes, one that is broken, one that WebDataset would skip."""
    x = [*samples(6), ("large.png", png(50, 60, 80)), ("broken.png", b"x")]
    y = [*samples(4, 10), ("._hidden.png", b"x"), ("caf\udce9.png", png(51, 48, 64))]
    return make_dataset([str(write_tar(tmp_path / f"{n}.tar", f)) for n, f in (("x", x), ("y", y))])


def run(dataset: Dataset, output: Path, **options: Any) -> Any:
    return decode(DecodeOptions(dataset.url, str(output), **options))


def members_in(output: Path) -> list[tarfile.TarInfo]:
    found = []
    for path in sorted(output.glob("*.tar")):
        with tarfile.open(path) as tar:
            found += tar.getmembers()
    return found


def names_in(output: Path) -> list[str]:
    return [member.name for member in members_in(output)]


def pictures_in(output: Path) -> dict[str, np.ndarray]:
    found = {}
    for path in sorted(output.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".png"):
                    data = tar.extractfile(member).read()  # type: ignore[union-attr]
                    found[member.name.removesuffix(".png")] = read_image(data).rgb
    return found


def at(rgb: np.ndarray, layers: int) -> np.ndarray:
    """What the toy codec makes of a picture with so many layers."""
    return rgb & (0xFF << (8 - 2 * layers) & 0xFF)


# -- which ----------------------------------------------------------------------------------------


def test_keys_of_a_file(dataset: Dataset, tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_bytes(b"s0003\r\ns0001\n\nlarge\ns0003\n")
    summary = run(dataset, tmp_path / "out", keys_file=str(keys))
    assert (summary.exit_code, summary.ok, summary.bad, summary.shards) == (0, 3, 0, 1)
    assert [name for name in names_in(tmp_path / "out") if name.endswith("png")] == [
        "s0001.png",
        "s0003.png",
        "large.png",
    ]
    assert (pictures_in(tmp_path / "out")["large"] == picture(50, 60, 80)).all()
    assert "s0001.cls" in names_in(tmp_path / "out")

    # in another order they are the same keys; others are another job
    keys.write_bytes(b"large\ns0003\ns0001")
    assert run(dataset, tmp_path / "out", keys_file=str(keys)).resumed == 1
    keys.write_bytes(b"large\ns0003")
    with pytest.raises(PlanMismatchError, match=r"--keys is [0-9a-f]{8} there"):
        run(dataset, tmp_path / "out", keys_file=str(keys))


def test_unknown_keys_are_a_failure_unless_they_may_be_missing(
    dataset: Dataset, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_bytes(b"nobody\ns0012\nzzz\nbroken\ncaf\xe9")
    summary = run(dataset, tmp_path / "out", keys_file=str(keys))
    assert (summary.exit_code, summary.ok, summary.bad) == (1, 2, 1)
    assert (summary.missing, summary.missing_keys) == (2, ["nobody", "zzz"])
    text = "\n".join(summary.lines())
    assert "2 keys not in" in text
    assert "'nobody', 'zzz'" in text
    assert "broken" in text  # it is there, as a bad sample
    keys.write_bytes(b"nobody\ns0012\nzzz")
    assert run(dataset, tmp_path / "a", keys_file=str(keys)).exit_code == 1
    assert run(dataset, tmp_path / "a", keys_file=str(keys), ignore_missing=True).exit_code == 0


def test_where_keys_may_come_from(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store("counting://bucket").create("keys", b"s0001\n")
    assert run(dataset, tmp_path / "a", keys_file="counting://bucket/keys").ok == 1

    class Input:
        buffer = io.BytesIO(b"\xef\xbb\xbfs0002\ns0011\n")

    monkeypatch.setattr("sys.stdin", Input)
    assert run(dataset, tmp_path / "b", keys_file="-").ok == 2
    with pytest.raises(OptionError, match="has no key"):
        run(dataset, tmp_path / "c", keys_file="-")
    with pytest.raises(Exception, match=r"nothing\.txt: the keys cannot be read"):
        run(dataset, tmp_path / "c", keys_file=str(tmp_path / "nothing.txt"))
    assert not (tmp_path / "c").exists()


def test_a_filter(dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = run(dataset, out, filter="width>32 and  height >= 60")
    assert (summary.exit_code, summary.ok, summary.bad, summary.filtered) == (0, 1, 0, 0)
    assert [path.name[0] for path in out.glob("*.tar")] == ["x"]  # y has no such picture
    records = [json.loads(path.read_bytes()) for path in out.glob(".strata/commits/*.json")]
    assert sorted((record["rows"], record["bytes"] > 0) for record in records) == [
        (0, False),
        (1, True),
    ]
    again = run(dataset, out, filter="width > 32 and height >= 60")
    assert (again.resumed, again.ok, again.new_samples) == (2, 1, 0)
    with pytest.raises(PlanMismatchError, match="--filter is width > 32 and height >= 60 there"):
        run(dataset, out)
    bad = run(dataset, tmp_path / "bad", filter='status != "ok"')
    assert (bad.exit_code, bad.ok, bad.bad, bad.filtered) == (1, 0, 1, 1)
    with pytest.raises(OptionError, match="no column 'colour'"):
        run(dataset, tmp_path / "no", filter="colour == 1")


def test_keys_and_a_filter_together(dataset: Dataset, tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("s0001\nlarge\ns0011\n")
    summary = run(dataset, tmp_path / "out", keys_file=str(keys), filter="width < 50")
    assert (summary.exit_code, summary.ok) == (0, 2)
    assert set(pictures_in(tmp_path / "out")) == {"s0001", "s0011"}


# -- how many layers ------------------------------------------------------------------------------


def sizes_of(dataset: Dataset) -> dict[str, list[int]]:
    return {key: dataset.metadata(key)["cumulative_bytes"] for key in [*dataset.keys()]}


@pytest.mark.parametrize("unit", ["max_bytes", "target_bpp"])
def test_as_many_layers_as_fit(
    unit: str, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # these pictures are small
    monkeypatch.setattr("pipeline.decode.job.size", "{} bytes".format)
    sizes = sizes_of(dataset)
    if unit == "max_bytes":
        budget: Any = sizes["s0001"][1]  # just fits
        limits = dict.fromkeys(sizes, budget)
    else:
        budget = 8 * sizes["s0001"][1] / (24 * 32)
        pixels = {key: dataset.record(key, 0).encoded.info for key in sizes}
        limits = {key: budget * one.width * one.height / 8 for key, one in pixels.items()}
    summary = run(dataset, tmp_path / "out", **{unit: budget})
    used = {key: max(1, sum(n <= limits[key] for n in sizes[key])) for key in sizes}
    assert used["s0001"] == 2
    assert len(set(used.values())) > 1 or unit == "target_bpp"
    found = pictures_in(tmp_path / "out")
    for key in ("s0001", "s0004", "s0012", "large"):
        seed = {"large": 50}.get(key) or int(key[1:])
        original = picture(seed, 60, 80) if key == "large" else picture(seed)
        assert (found[key] == at(original, used[key])).all(), key
    taken = sum(sizes[key][used[key] - 1] for key in sizes)
    mean = sum(used.values()) / len(used)
    written = sum(m.size for m in members_in(tmp_path / "out") if m.name.endswith(".png"))
    text = "\n".join(summary.lines())
    told = f"{taken} bytes of streams ({mean:.2f} layers on average) -> {written} bytes of png"
    assert told in text


def test_the_fewest_layers_that_reach_a_psnr(
    make_dataset: Make, dataset: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match="compressed without --target-quality"):
        run(dataset, tmp_path / "no", min_psnr=30.0)
    source = write_tar(tmp_path / "z.tar", [*samples(3), ("flat.png", _flat())])
    measured = make_dataset(
        [str(source)], str(tmp_path / "measured"), store_layers=4, target_quality="20dB"
    )
    curves = {key: measured.metadata(key)["psnr"] for key in [*measured.keys()]}
    assert run(measured, tmp_path / "out", min_psnr=30.0).ok == 4
    found = pictures_in(tmp_path / "out")
    for number in range(3):
        key = f"s{number:04d}"
        layers = next(n for n, one in enumerate(curves[key], 1) if one >= 30)
        assert 1 < layers < 4
        assert (found[key] == at(picture(number), layers)).all()
    assert (found["flat"] == 0b01000000).all()
    assert curves["flat"][0] > 30  # one layer is enough


def _flat() -> bytes:
    return write_image(np.full((8, 8, 3), 0b01000000, np.uint8), None, "png")


@pytest.mark.parametrize("unit", ["max_bytes", "target_bpp"])
def test_an_original_stands_in_where_it_fits(unit: str, make_dataset: Make, tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (30, 30, 3), np.uint8)
    file = write_image(noise, None, "webp")
    source = write_tar(tmp_path / "n.tar", [("n.webp", file)])
    dataset = make_dataset([str(source)], keep_original="larger")
    sizes = dataset.metadata("n")["cumulative_bytes"]
    assert len(sizes) < 4
    assert sizes[-1] < len(file)

    def within(limit: int) -> tuple[np.ndarray, str]:
        given: float = limit if unit == "max_bytes" else 8 * limit / (30 * 30)
        summary = run(dataset, tmp_path / str(limit), **{unit: given})
        return pictures_in(tmp_path / str(limit))["n"], "\n".join(summary.lines())

    assert (within(len(file))[0] == noise).all()
    smaller, told = within(len(file) - 1)
    assert (smaller == at(noise, len(sizes))).all()
    assert "above the limit" not in told
    assert (within(sizes[-1] - 1)[0] == at(noise, len(sizes) - 1)).all()
    first, told = within(sizes[0] - 1)
    assert (first == at(noise, 1)).all()
    assert "warning: 1 picture above the limit: the first layer alone is larger" in told


@pytest.mark.parametrize("form", ["webdataset", "files"])
def test_what_a_forgotten_plan_left_is_not_taken_for_ones_own(
    form: Any, dataset: Dataset, tmp_path: Path
) -> None:
    """Who removes .strata to begin anew with other parameters would get the old pictures."""

    def found(output: Path) -> dict[str, bytes]:
        files = (path for path in output.rglob("*") if path.is_file())
        there = {str(path.relative_to(output)): path.read_bytes() for path in files}
        return {name: data for name, data in there.items() if not name.startswith(".strata")}

    run(dataset, tmp_path / "one", format=form, layers=1)
    run(dataset, tmp_path / "two", format=form, layers=2)
    assert found(tmp_path / "one") != found(tmp_path / "two")
    shutil.rmtree(tmp_path / "one" / ".strata")
    assert run(dataset, tmp_path / "one", format=form, layers=2).ok == len(dataset)
    assert found(tmp_path / "one") == found(tmp_path / "two")


def test_a_dataset_is_not_decoded_into_itself(dataset: Dataset, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(dataset.url)
    for form in ("webdataset", "strata", "originals"):
        for output in (Path(dataset.url), link):
            with pytest.raises(OptionError, match=r"is the archive .* choose another folder"):
                run(dataset, output, format=form)
        with pytest.raises(OptionError, match="lies in the archive"):
            run(dataset, link / "out", format=form)
    assert not (link / "out").exists()


def test_only_one_way_to_choose(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--layers and --max-bytes: give only one"):
        run(dataset, tmp_path / "out", layers=1, max_bytes=5)
    with pytest.raises(OptionError, match="--layers 9"):
        run(dataset, tmp_path / "out", layers=9)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["webdataset", "strata"])
def test_reasons_are_counted_over_all_runs(
    form: Any, make_dataset: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though of the problems themselves records list the first only."""
    monkeypatch.setattr("pipeline.dataset.facts.MAX_LISTED_PROBLEMS", 7)
    files = [*samples(2), *((f"bad{n}.png", b"x") for n in range(9)), ("._z.png", b"x")]
    dataset = make_dataset([str(write_tar(tmp_path / "x.tar", files))])
    for _ in range(2):
        summary = run(dataset, tmp_path / "out", format=form)
        assert summary.bad == 9
        assert sorted(summary.reasons.values()) == [1, 9]
        named = dataset.url if form == "webdataset" else tmp_path / "out"
        assert summary.lists_all == f"strata info {named} --bad"


@pytest.mark.parametrize("form", ["webdataset", "strata"])
def test_how_much_may_be_bad(
    form: Any, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that goes on all the same is stopped by its watcher, which must know the limit."""
    watchers: list[running_job.JobWatcher] = []

    class Watcher(running_job.JobWatcher):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            watchers.append(self)

    monkeypatch.setattr(running_job, "JobWatcher", Watcher)
    monkeypatch.setattr(running_job, "ENOUGH_SAMPLES", 4)
    for name, limit in (("a", 0.01), ("b", 0.9)):
        run(dataset, tmp_path / name, format=form, max_bad_fraction=limit)
    assert "1 of 13 samples failed, more than --max-bad-fraction 0.01" in watchers[0].stopped
    assert watchers[1].stopped == ""


# -- small copies ---------------------------------------------------------------------------------


def test_small_copies(make_dataset: Make, tmp_path: Path) -> None:
    alpha = np.tile(np.linspace(0, 255, 80).astype(np.uint8), (60, 1))
    files = [("a.png", write_image(picture(1, 60, 80), alpha, "png")), *samples(1)]
    dataset = make_dataset([str(write_tar(tmp_path / "x.tar", files))])
    assert run(dataset, tmp_path / "out", max_side=40, layers=3).exit_code == 0
    (path,) = (tmp_path / "out").glob("*.tar")
    with tarfile.open(path) as tar:
        small = read_image(tar.extractfile("a.png").read())  # type: ignore[union-attr]
    assert small.rgb.shape == (30, 40, 3)
    assert small.alpha is not None
    assert small.alpha.shape == (30, 40)
    assert abs(small.alpha[:, 20].astype(int) - 129).max() < 4
    expected = dataset.codec().decode_small([dataset.record("a", 3).encoded], max_side=40)[0]
    assert (small.rgb == expected).all()
    assert (pictures_in(tmp_path / "out")["s0000"] == at(picture(0), 3)).all()  # never enlarged
    with pytest.raises(PlanMismatchError, match="--max-side is 40 there and 41 here"):
        run(dataset, tmp_path / "out", max_side=41, layers=3)


def test_pictures_above_a_limit_are_bad(make_dataset: Make, tmp_path: Path) -> None:
    files = [("wide.png", write_image(picture(1, 60, 80), None, "png")), *samples(2)]
    dataset = make_dataset([str(write_tar(tmp_path / "x.tar", files))])
    assert dataset.codec().max_pixels > 1 << 20
    summary = run(dataset, tmp_path / "out", max_pixels=60 * 80 - 1)
    assert (summary.ok, summary.bad, summary.exit_code) == (2, 1, 1)
    (problem,) = summary.problems
    assert problem.key == "wide"
    assert "80x60 pixels are above" in problem.reason
    assert set(pictures_in(tmp_path / "out")) == {"s0000", "s0001"}
    assert run(dataset, tmp_path / "all", max_pixels=60 * 80).exit_code == 0
    with pytest.raises(PlanMismatchError, match="--max-pixels is 4800 there and 4799 here"):
        run(dataset, tmp_path / "all", max_pixels=60 * 80 - 1)


def test_originals_are_made_small_too(make_dataset: Make, tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (30, 60, 3), np.uint8)
    source = write_tar(tmp_path / "n.tar", [("n.webp", write_image(noise, None, "webp"))])
    dataset = make_dataset([str(source)], keep_original="larger")
    run(dataset, tmp_path / "out", max_side=20)
    assert pictures_in(tmp_path / "out")["n"].shape == (10, 20, 3)


# -- what is read ---------------------------------------------------------------------------------


def _columns(dataset: Dataset, file: Any) -> Any:
    with dataset.open(file) as opened:
        metadata = opened.metadata
        for group in range(metadata.num_row_groups):
            for column in map(metadata.row_group(group).column, range(metadata.num_columns)):
                yield column.path_in_schema.split(".")[0], {"bytes": column.total_compressed_size}


@pytest.fixture
def remote(make_dataset: Make, tmp_path: Path) -> Dataset:
    """On a store that counts: two shards of which the upper layers are most of the bytes."""
    CountingFileSystem.store.clear()
    inputs = []
    for n, name in enumerate("xy"):
        files = [(f"{name}{k:03d}.png", png(100 * n + k, 60, 70)) for k in range(30)]
        inputs.append(str(write_tar(tmp_path / f"{name}.tar", files)))
    dataset = make_dataset(inputs, output="counting://bucket/set")
    CountingFileSystem.requests.clear()
    return dataset


def column_sizes(dataset: Dataset) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for file in dataset.files:
        for name, column in _columns(dataset, file):
            sizes[name] = sizes.get(name, 0) + column["bytes"]
    return sizes


@pytest.mark.parametrize("how", ["layers", "max_bytes", "filter", "keys"])
def test_only_what_is_needed_is_read(how: str, remote: Dataset, tmp_path: Path) -> None:
    sizes = column_sizes(remote)
    metadata = {name: size for name, size in sizes.items() if not name.startswith("layer_")}
    small = sum(metadata.values()) - metadata["original"]
    footers = sum(file.footer_bytes for file in remote.files)
    first, files = sizes["layer_00"], 1.0
    options: dict[str, Any] = {"layers": 1}
    if how == "max_bytes":
        options = {"max_bytes": 1}  # one layer is taken at least
    elif how == "filter":
        options |= {"filter": 'key.startswith("x")'}
        files = 0.5
    elif how == "keys":
        path = tmp_path / "keys"
        path.write_text("x003\nx004")
        options |= {"keys_file": str(path)}
        files = 0.5
    CountingFileSystem.requests.clear()
    assert run(remote, tmp_path / "out", **options).exit_code == 0
    fetched = CountingFileSystem.bytes_read(".parquet")
    # selecting reads small columns a second time
    assert fetched <= 1.1 * (files * first + 2 * small + 2 * footers)
    assert fetched < files * (first + sizes["layer_01"])


def test_layers_that_nobody_needs_stay_where_they_are(
    remote: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a target, the most that a picture of the row group needs; no more of any other group."""
    cumulative = {key: remote.metadata(key)["cumulative_bytes"] for key in [*remote.keys()]}
    budget = max(sizes[1] for sizes in cumulative.values())
    assert budget < min(sizes[2] for sizes in cumulative.values())
    sizes = column_sizes(remote)
    CountingFileSystem.requests.clear()
    assert run(remote, tmp_path / "out", max_bytes=budget).exit_code == 0
    fetched = CountingFileSystem.bytes_read(".parquet")
    needed = sizes["layer_00"] + sizes["layer_01"]
    assert needed < fetched < needed + sizes["layer_02"] / 2


def test_pictures_with_as_many_layers_are_decoded_together(
    dataset: Dataset, toy: ToyCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[list[int]] = []
    decode_toy = toy.decode

    def watched(streams: Any, **options: Any) -> Any:
        batches.append([stream.num_layers for stream in streams])
        return decode_toy(streams, **options)

    monkeypatch.setattr(toy, "decode", watched)
    middle = sorted(sizes[2] for sizes in sizes_of(dataset).values())[4]
    run(dataset, tmp_path / "out", max_bytes=middle)
    assert all(len(set(batch)) == 1 for batch in batches)
    assert len({batch[0] for batch in batches}) > 1
    assert max(map(len, batches)) > 1
