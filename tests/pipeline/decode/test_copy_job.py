"""``--format strata``: another dataset with the same streams, truncated."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codec.errors import InvalidModelError
from codec.images.files import read_image, write_image
from pipeline.dataset import publisher
from pipeline.dataset.ledger import Ledger
from pipeline.dataset.plan import PlanMismatchError
from pipeline.decode import copy_worker, sparse
from pipeline.decode.copy_job import truncated_parameters
from pipeline.decode.job import DecodeOptions, decode
from pipeline.decode.request import resolve
from pipeline.reader.dataset import Dataset, open_dataset
from pipeline.running.options import OptionError
from pipeline.stores.store import Store
from pipeline.verify.job import Subset, VerifyOptions, verify
from tests.pipeline.conftest import Make
from tests.pipeline.counting import CountingFileSystem
from tests.pipeline.makers import ToyCodec, picture, png, samples, write_tar
from tests.pipeline.reader.test_originals import jpeg

pytestmark = pytest.mark.usefixtures("without_ray")


@pytest.fixture
def dataset(make_dataset: Make, tmp_path: Path) -> Dataset:
    x = [*samples(6), ("large.png", png(50, 60, 80)), ("broken.png", b"x")]
    y = [*samples(4, 10), ("._hidden.png", b"x"), ("caf\udce9.png", png(51, 48, 64))]
    inputs = [str(write_tar(tmp_path / f"{n}.tar", f)) for n, f in (("x", x), ("y", y))]
    return make_dataset(inputs)


def copy(dataset: Dataset, output: object, **options: Any) -> Any:
    return decode(DecodeOptions(dataset.url, str(output), format="strata", **options))


def rows(dataset: Dataset) -> list[dict[str, Any]]:
    """Everything but the stream, in the dataset's order."""
    found = []
    for file in dataset.files:
        with dataset.open(file) as opened:
            found += opened.parquet.read().to_pylist()
    return found


def check_sound(url: str, layers: int) -> None:
    """By everything that verify_dataset.py --read-data looks at, and its own index."""
    report = verify(VerifyOptions(url, read=Subset()))
    assert report.exit_code == 0, report.lines()
    assert not report.orphans
    assert not report.foreign
    assert report.pictures_decoded == report.totals["ok"] == len(open_dataset(url))
    assert open_dataset(url).num_layers == layers


def test_the_same_streams_cut_short(dataset: Dataset, tmp_path: Path, toy: ToyCodec) -> None:
    out = str(tmp_path / "cut")
    batches = len(toy.batches)
    summary = copy(dataset, out, layers=2)
    assert (summary.exit_code, summary.ok, summary.bad, summary.filtered) == (0, 11 + 1, 1, 1)
    assert "'broken'" in "\n".join(summary.lines())
    cut = open_dataset(out)
    assert len(cut) == len(dataset)
    assert list(cut.keys()) == list(dataset.keys())
    for before, after in zip(rows(dataset), rows(cut), strict=True):
        for name in ("fields", "alpha", "key", "key_bytes", "status", "reason", "source_sha256"):
            assert before[name] == after[name]
        assert after["layer_00"] == before["layer_00"]
        assert after["layer_01"] == before["layer_01"]
        assert "layer_02" not in after
        assert after["layers"] == min(2, before["layers"])
        assert after["cumulative_bytes"] == ((before["cumulative_bytes"] or [])[:2] or None)
    for key in [*dataset.keys()]:
        assert (cut.image(key) == dataset.image(key, 2)).all()
    assert len(toy.batches) == batches
    check_sound(out, 2)
    plan = json.loads((tmp_path / "cut" / "dataset.json").read_bytes())["parameters"]
    assert plan["truncated"] == {
        "dataset": dataset.url,
        "fingerprint": dataset.fingerprint,
        "keep_original": False,
        "layers": 2,
    }
    assert cut.files[0].record["origin"]["url"].endswith("x.tar")
    assert cut.locate("s0011").indexed  # type: ignore[union-attr]
    assert next(iter(cut.fetch(["s0011"], 1))).encoded == dataset.record("s0011", 1).encoded


def test_the_copy_can_be_decoded_and_cut_again(dataset: Dataset, tmp_path: Path) -> None:
    copy(dataset, tmp_path / "three", layers=3)
    three = open_dataset(str(tmp_path / "three"))
    copy(three, tmp_path / "one", layers=1)
    one = open_dataset(str(tmp_path / "one"))
    assert (one.image("s0001") == dataset.image("s0001", 1)).all()
    summary = decode(DecodeOptions(three.url, str(tmp_path / "tars"), layers=1))
    assert summary.ok == len(dataset)
    with pytest.raises(OptionError, match="stores 1 layers"):
        copy(one, tmp_path / "two", layers=2)


def test_as_many_layers_as_fit(dataset: Dataset, tmp_path: Path) -> None:
    sizes = {key: dataset.metadata(key)["cumulative_bytes"] for key in list(dataset.keys())}
    budget = sizes["s0001"][2]
    summary = copy(dataset, tmp_path / "cut", max_bytes=budget)
    cut = open_dataset(str(tmp_path / "cut"))
    used = {key: cut.metadata(key)["layers"] for key in sizes}
    above = sum(one[0] > budget for one in sizes.values())
    assert any("above the limit" in line for line in summary.lines()) == bool(above)
    assert used == {k: max(1, sum(n <= budget for n in one)) for k, one in sizes.items()}
    assert len(set(used.values())) > 1
    mean = sum(used.values()) / len(used)
    assert f"({mean:.2f} layers on average)" in "\n".join(summary.lines())
    check_sound(cut.url, 4)


def test_samples_that_lose_their_only_file_are_told(make_dataset: Make, tmp_path: Path) -> None:
    files = [*samples(2), ("broken.png", b"x"), ("cut.png", png(1)[:40]), ("no.txt", b"words")]
    source = str(write_tar(tmp_path / "z.tar", files))
    dataset = make_dataset([source], keep_original="larger")

    def told(name: str, **options: Any) -> str:
        lines = copy(dataset, tmp_path / name, layers=1, **options).lines()
        return "\n".join(line for line in lines if "without their files" in line)

    without = "of the bad and filtered samples come without their files: --keep-original copies"
    assert told("all").startswith(f"warning: 2 {without}")
    assert told("all") == told("all")  # of a job that finds all of it done
    assert told("one", keys=("broken",)).startswith(f"warning: up to 1 {without}")
    assert told("ok", keys=("s0001",)) == ""
    assert told("kept", keep_original=True) == ""
    assert told("less", filter="width > 1") == ""


def test_psnr_is_cut_too(make_dataset: Make, tmp_path: Path) -> None:
    source = write_tar(tmp_path / "z.tar", samples(3))
    measured = make_dataset([str(source)], target_quality="20dB")
    curve = measured.metadata("s0001")["psnr"]
    copy(measured, tmp_path / "cut", layers=2)
    cut = open_dataset(str(tmp_path / "cut"))
    assert cut.metadata("s0001")["psnr"] == curve[:2]
    copy(cut, tmp_path / "again", min_psnr=1.0)  # what it stores is still true
    assert open_dataset(str(tmp_path / "again")).metadata("s0001")["layers"] == 1


def test_a_part_of_a_dataset(dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "part"
    summary = copy(dataset, out, filter='key in ["s0003", "large"]')
    assert (summary.exit_code, summary.ok, summary.bad) == (0, 2, 0)
    part = open_dataset(str(out))
    assert list(part.keys()) == ["s0003", "large"]
    assert [row["index"] for row in rows(part)] == [0, 1]
    assert len(part.files) == 1  # nothing of the other is asked for
    assert (part.image("large") == picture(50, 60, 80)).all()
    check_sound(part.url, 4)
    again = copy(dataset, out, filter="key in ['s0003', 'large']")
    assert (again.resumed, again.new_samples, again.ok) == (2, 0, 2)
    keys = tmp_path / "keys"
    keys.write_text("broken\nnobody\ns0011\n")
    summary = copy(dataset, tmp_path / "keys-out", keys_file=str(keys))
    assert (summary.exit_code, summary.ok, summary.bad) == (1, 1, 1)  # nobody is unknown
    chosen = open_dataset(str(tmp_path / "keys-out"))
    assert [row["key"] for row in rows(chosen)] == ["broken", "s0011"]
    nothing = copy(dataset, tmp_path / "nothing", filter="width > 9000")
    assert (nothing.exit_code, nothing.ok) == (0, 0)
    assert len(open_dataset(str(tmp_path / "nothing"))) == 0
    assert verify(VerifyOptions(str(tmp_path / "nothing"))).exit_code == 0


@pytest.mark.parametrize("keep", [False, True])
def test_originals(keep: bool, make_dataset: Make, tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (30, 30, 3), np.uint8)
    file = write_image(noise, None, "webp")
    source = write_tar(tmp_path / "n.tar", [("n.webp", file), *samples(2), ("bad.png", b"x")])
    dataset = make_dataset([str(source)], keep_original="larger")
    assert dataset.original("n") == file
    summary = copy(dataset, tmp_path / "copy", keep_original=keep)
    copied = open_dataset(str(tmp_path / "copy"))
    assert copied.original("n") == file  # it stands in for layers
    assert rows(copied)[3]["original"] == (b"x" if keep else None)
    assert copied.parameters["keep_original"] == "larger"
    assert (copied.image("n") == noise).all()
    told = "(3 pictures of these files with an original)"
    assert (told in "\n".join(summary.lines())) == (not keep)
    check_sound(copied.url, 4)
    copy(dataset, tmp_path / "short", keep_original=keep, layers=1)
    short = open_dataset(str(tmp_path / "short"))
    assert short.original("n") == (file if keep else None)  # the layer that was asked for is there


@pytest.mark.parametrize("chosen", [{}, {"filter": "key in ['3', '7']"}])
def test_packed_originals_are_copied_as_they_are(
    chosen: dict[str, Any], make_dataset: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse, "LARGE", 0)
    source = write_tar(tmp_path / "j.tar", [(f"{n}.jpg", jpeg(n)) for n in range(12)])
    dataset = make_dataset([str(source)], keep_original="always")
    copy(dataset, tmp_path / "copy", keep_original=True, layers=1, **chosen)
    copied = open_dataset(str(tmp_path / "copy"))
    numbers = [3, 7] if chosen else range(12)
    before = {row["key"]: row for row in rows(dataset)}
    for row, number in zip(rows(copied), numbers, strict=True):
        for name in ("original", "original_packing"):
            assert row[name] == before[str(number)][name] is not None
        assert copied.original(str(number)) == jpeg(number)
    check_sound(copied.url, 1)
    copy(dataset, tmp_path / "without", layers=1)
    for row in rows(open_dataset(str(tmp_path / "without"))):
        assert (row["original"], row["original_packing"]) == (None, None)
    check_sound(str(tmp_path / "without"), 1)


@pytest.mark.parametrize(
    ("policy", "options", "lossless"),
    [
        ("bad", {}, True),
        ("bad", {"layers": 4}, True),
        ("bad", {"layers": 3}, False),
        ("bad", {"max_bytes": 10**9}, False),  # who knows
        ("larger", {}, True),  # an original that is the picture comes along
        ("larger", {"layers": 3}, False),
    ],
)
def test_lossless_is_said_of_what_is(
    policy: str, options: dict[str, Any], lossless: bool, dataset: Dataset, tmp_path: Path
) -> None:
    given = DecodeOptions(dataset.url, str(tmp_path / "x"), format="strata", **options)
    request = resolve(given)
    request.dataset.parameters |= {"lossless": True, "keep_original": policy}
    assert truncated_parameters(given, request)["lossless"] is lossless
    request.dataset.parameters["lossless"] = False
    assert truncated_parameters(given, request)["lossless"] is False


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_side": 9}, "--max-side: --format strata decodes nothing"),
        ({"max_pixels": 9}, "--max-pixels: --format strata decodes nothing"),
        ({"codec_options": {"noise_scale": 1.0}}, "--noise-scale"),
    ],
)
def test_nothing_is_decoded(
    options: dict[str, Any], words: str, dataset: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=words):
        copy(dataset, tmp_path / "x", **options)
    with pytest.raises(OptionError, match="--keep-original: only"):
        decode(DecodeOptions(dataset.url, str(tmp_path / "x"), keep_original=True))


def test_another_cut_needs_another_place(dataset: Dataset, tmp_path: Path) -> None:
    copy(dataset, tmp_path / "cut", layers=2)
    with pytest.raises(PlanMismatchError, match="--layers is 2 there and 1 here"):
        copy(dataset, tmp_path / "cut", layers=1)
    with pytest.raises(PlanMismatchError, match="no copy of an archive there and a copy here"):
        copy(open_dataset(str(tmp_path / "cut")), dataset.url, layers=2)


# -- once, whatever happens -----------------------------------------------------------------------


class Killed(BaseException):
    """As if the process had ended here."""


def dies(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, count: int) -> None:
    """The ``count``-th call of a function does nothing more."""
    function: Callable[..., Any] = getattr(owner, name)
    calls = []

    def dying(*arguments: Any, **options: Any) -> Any:
        calls.append(None)
        if len(calls) == count:
            raise Killed
        return function(*arguments, **options)

    monkeypatch.setattr(owner, name, dying)


POINTS = {
    "before the second file": (copy_worker, "inspect_file", 2),
    "before the first index": (publisher, "publish_index", 1),
    "before the second record": (Ledger, "commit", 2),
    "between the files": (publisher.Publisher, "publish", 2),
}


@pytest.mark.parametrize("point", POINTS)
def test_killed_and_run_again(
    point: str, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "cut"
    copy(dataset, tmp_path / "undisturbed", layers=2)
    with monkeypatch.context() as patch:
        dies(patch, *POINTS[point])
        with pytest.raises(Killed):
            copy(dataset, out, layers=2)
    assert not list(out.glob("manifest-*"))
    before = {path: path.stat().st_mtime_ns for path in out.glob("data/*.parquet")}
    summary = copy(dataset, out, layers=2)
    assert (summary.exit_code, summary.ok) == (0, len(dataset))
    assert {path: path.stat().st_mtime_ns for path in before} == before  # nothing is written twice
    assert rows(open_dataset(str(out))) == rows(open_dataset(str(tmp_path / "undisturbed")))
    check_sound(str(out), 2)
    assert len(list(out.glob("manifest-*"))) == 1


def test_a_lost_copy_is_made_again(dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "cut"
    copy(dataset, out, layers=2)
    next((out / "data").glob("y-*")).unlink()
    summary = copy(dataset, out, layers=2)
    assert (summary.exit_code, summary.resumed) == (0, 1)
    assert any("lost" in note for note in summary.notes)
    check_sound(str(out), 2)


def test_a_damaged_copy_is_made_again_from_the_dataset(dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "cut"
    copy(dataset, out, layers=2)
    path = next((out / "data").glob("y-*"))
    layer = open_dataset(str(out)).record("s0012").encoded.layers[1]
    path.write_bytes(path.read_bytes().replace(layer, layer[:-1] + bytes([layer[-1] ^ 1])))
    report = verify(VerifyOptions(str(out), read=Subset(), repair=True))
    (damage,) = report.damaged
    assert damage.why_not.startswith(f"it was copied from {dataset.url}/data/y-")
    path.unlink()
    assert copy(dataset, out, layers=2).exit_code == 0
    check_sound(str(out), 2)


def test_records_that_were_made_anew_are_records(dataset: Dataset, tmp_path: Path) -> None:
    """From data files alone, which do not tell what their rows were before."""
    out = tmp_path / "cut"
    copy(dataset, out, layers=2)
    for path in (out / "commits").iterdir():
        path.unlink()
    (out / "manifest-000001.json").write_text("{")
    report = verify(VerifyOptions(str(out), repair=True))
    assert [damage.repaired for damage in report.damaged] == [True] * 3
    summary = copy(dataset, out, layers=2)
    assert (summary.exit_code, summary.resumed, summary.ok) == (0, 2, len(dataset))
    assert "'broken'" in "\n".join(summary.lines())
    check_sound(str(out), 2)


def test_a_newer_generation_of_a_file_replaces_its_copy(dataset: Dataset, tmp_path: Path) -> None:
    out, keys = tmp_path / "cut", sorted(dataset.keys())
    copy(dataset, out, layers=2)
    root = Path(dataset.url)
    manifest = json.loads((root / "manifest-000001.json").read_bytes())
    entry = manifest["files"][0]
    old = root / entry["path"]
    entry |= {"name": entry["name"] + ".1", "path": entry["path"][:-8] + ".1.parquet"}
    entry["index"] = None
    old.rename(root / entry["path"])
    (root / "manifest-000002.json").write_text(json.dumps(manifest))
    summary = copy(dataset, out, layers=2)
    assert (summary.exit_code, summary.resumed, summary.ok) == (0, 1, len(dataset))
    cut = open_dataset(str(out))
    assert sorted(file.record["generation"] for file in cut.files) == [0, 1]
    assert sorted(cut.keys()) == keys
    assert verify(VerifyOptions(str(out), read=Subset())).exit_code == 0


def test_copying_reads_only_the_layers_that_stay(make_dataset: Make, tmp_path: Path) -> None:
    CountingFileSystem.store.clear()
    files = [(f"k{n:03d}.png", png(n, 60, 70)) for n in range(30)]
    source = write_tar(tmp_path / "x.tar", files)
    dataset = make_dataset([str(source)], output="counting://bucket/set", keep_original="always")
    sizes = dataset.files[0]
    with dataset.open(sizes) as opened:
        group = opened.metadata.row_group(0)
        columns = [group.column(number) for number in range(group.num_columns)]
        by_name = {c.path_in_schema: c.total_compressed_size for c in columns}
    CountingFileSystem.requests.clear()
    copy(dataset, tmp_path / "cut", layers=1)
    fetched = CountingFileSystem.bytes_read(".parquet")
    small = sum(size for name, size in by_name.items() if not name.startswith(("layer_", "orig")))
    assert by_name["layer_00"] < fetched
    assert fetched < 1.1 * (by_name["layer_00"] + small + sizes.footer_bytes)
    copied = open_dataset(str(tmp_path / "cut"))
    assert copied.record("k003").encoded == dataset.record("k003", 1).encoded
    assert read_image(dataset.original("k003") or b"").rgb.shape == (60, 70, 3)


def test_a_model_that_is_damaged_is_not_copied(dataset: Dataset, tmp_path: Path) -> None:
    store = Store(dataset.url)
    path = f"models/{dataset.model_id}/model.safetensors"
    store.remove(path)
    store.create(path, b"another")
    with pytest.raises(InvalidModelError, match="is damaged: strata verify"):
        copy(dataset, tmp_path / "cut")
    store.remove(path)
    with pytest.raises(InvalidModelError, match="is gone: strata verify"):
        copy(dataset, tmp_path / "cut")
