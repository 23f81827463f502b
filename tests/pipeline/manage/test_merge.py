"""Merging archives: the same bytes, each once, also after kills."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from codec.models.heads import write_head
from jobs import merge_datasets as script
from pipeline import MergeOptions, MergeSummary, info_dataset, merge_datasets, open_dataset
from pipeline.dataset.layout import head_paths
from pipeline.dataset.plan import PlanMismatchError
from pipeline.manage import merge_checks
from pipeline.manage.merge_checks import MergeError
from pipeline.reader.index_keys import index_keys
from pipeline.running.options import OptionError
from pipeline.stores.store import Store
from pipeline.verify.job import Subset, VerifyOptions, verify
from tests.pipeline.makers import picture, samples, write_tar
from tests.pipeline.manage.conftest import MakeArchive
from tests.pipeline.manage.killing import Killed, contents, killer, points


def merge(*inputs: str, output: object) -> MergeSummary:
    return merge_datasets(MergeOptions(inputs=inputs, output=str(output)))


def check_sound(url: object) -> None:
    report = verify(VerifyOptions(str(url), read=Subset()))
    assert report.exit_code == 0, report.lines()
    assert not report.orphans
    assert info_dataset(str(url)).exit_code == 0


@pytest.fixture
def pair(make_archive: MakeArchive) -> tuple[str, str]:
    return make_archive("A", "a", "b"), make_archive("B", "c")


def test_the_same_bytes_in_one_archive(pair: tuple[str, str], tmp_path: Path) -> None:
    summary = merge(*pair, output=tmp_path / "C")
    assert (summary.exit_code, summary.ok, summary.bad, summary.filtered) == (0, 15, 3, 3)
    merged = contents(Store(str(tmp_path / "C")))
    for url in pair:
        for path, data in contents(Store(url)).items():
            if not path.startswith("manifest-"):
                assert merged[path] == data
    whole = open_dataset(str(tmp_path / "C"))
    assert [*whole.keys()] == [f"s{10 * n + k:04d}" for n in range(3) for k in range(5)]
    assert (whole.image("s0021") == picture(21)).all()
    assert whole.locate("s0021").indexed  # type: ignore[union-attr]
    assert len([*whole.problems()]) == 6
    check_sound(whole.url)


def test_the_same_command_again_adds_what_is_new(
    pair: tuple[str, str], tmp_path: Path, make_archive: MakeArchive
) -> None:
    merge(*pair, output=tmp_path / "C")
    before = contents(Store(str(tmp_path / "C")))
    again = merge(*pair, output=tmp_path / "C")
    assert (again.resumed, again.exit_code) == (3, 0)
    assert contents(Store(str(tmp_path / "C"))) == before
    make_archive("B", "d")
    more = merge(*pair, output=tmp_path / "C")
    assert (more.resumed, more.ok) == (3, 20)
    check_sound(tmp_path / "C")


def test_compressing_goes_on_in_the_merged_one(
    pair: tuple[str, str], tmp_path: Path, make_archive: MakeArchive
) -> None:
    merge(*pair, output=tmp_path / "C")
    make_archive("C", "a", "d")
    assert len(open_dataset(str(tmp_path / "C"))) == 20
    check_sound(tmp_path / "C")


def test_one_archive_is_added_to_another(pair: tuple[str, str]) -> None:
    first, second = pair
    assert merge(second, output=first).exit_code == 0
    assert len(open_dataset(first)) == 15
    check_sound(first)
    with pytest.raises(OptionError, match=r"is the archive .*leave it out of the inputs"):
        merge(*pair, output=first)
    with pytest.raises(OptionError, match="lies in the archive"):
        merge(*pair, output=f"{first}/merged")
    with pytest.raises(OptionError, match="given twice"):
        merge(second, second, output=first)


def test_a_newer_generation_takes_the_place_of_an_older_one(
    pair: tuple[str, str], tmp_path: Path
) -> None:
    merge(*pair, output=tmp_path / "C")
    path = next(Path(pair[0]).glob("data/a-*"))
    path.write_bytes(b"damaged" + path.read_bytes()[7:])
    report = verify(VerifyOptions(pair[0], read=Subset(), repair=True))
    assert [damage.repaired for damage in report.damaged] == [True]
    summary = merge(*pair, output=tmp_path / "C")
    assert (summary.exit_code, summary.resumed) == (0, 2)
    assert [file.name[-2:] == ".1" for file in open_dataset(str(tmp_path / "C")).files] == [
        *(True, False, False),
    ]
    report = verify(VerifyOptions(str(tmp_path / "C"), read=Subset()))
    assert report.exit_code == 0


def test_another_head_for_the_same_decoder_is_told(pair: tuple[str, str], tmp_path: Path) -> None:
    model_id = open_dataset(pair[0]).model_id
    for number, url in enumerate(pair):
        scale = {"scale": torch.full((3,), float(number))}
        path = Path(url) / head_paths(model_id, "eyes")[0]
        write_head(path, "eyes", model_id, {"levels": 2}, scale)
    summary = merge(*pair, output=tmp_path / "C")
    (note,) = (note for note in summary.notes if "--decoder" in note)
    assert note.startswith(f"warning: {pair[1]} shows pictures with another head for")


@pytest.mark.parametrize("resume", [False, True])
def test_killed_at_any_write(resume: bool, pair: tuple[str, str], tmp_path: Path) -> None:
    """Into a new archive, and into one that has a part already."""
    begun, undisturbed = tmp_path / "begun", tmp_path / "undisturbed"
    begun.mkdir()
    if resume:
        merge(pair[0], output=begun)
    shutil.copytree(begun, undisturbed)
    with killer() as whole:
        merge(*pair, output=undisturbed)
    expected = contents(Store(str(undisturbed)))
    assert whole.count > 4
    for at, after in points(whole.count):
        out = tmp_path / f"killed-{at}-{after}"
        shutil.copytree(begun, out)
        with killer(at, after), pytest.raises(Killed):
            merge(*pair, output=out)
        listed = [*out.glob("manifest-*")]
        if len(listed) > int(resume):
            assert len(open_dataset(str(out))) == 15  # never a part of it
        assert merge(*pair, output=out).exit_code == 0
        assert contents(Store(str(out))) == expected
    check_sound(out)


def test_what_an_attempt_left_damaged_is_written_again(
    pair: tuple[str, str], tmp_path: Path
) -> None:
    merge(*pair, output=tmp_path / "C")
    expected = contents(Store(str(tmp_path / "C")))
    for path in [*(tmp_path / "C").glob("commits/*"), *(tmp_path / "C").glob("manifest-*")]:
        path.unlink()
    for path in (tmp_path / "C").glob("data/b-*"):
        path.write_bytes(path.read_bytes()[:-9] + bytes(9))
    assert merge(*pair, output=tmp_path / "C").exit_code == 0
    assert contents(Store(str(tmp_path / "C"))) == expected


# -- what cannot be one ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lossless": False, "store_layers": 2}, "layers is 4 in the first and 2 in the second"),
    ],
)
def test_other_layers_are_refused(
    options: dict[str, Any], words: str, make_archive: MakeArchive, tmp_path: Path
) -> None:
    first, second = make_archive("A", "a"), make_archive("B", "b", **options)
    with pytest.raises(MergeError, match=words):
        merge(first, second, output=tmp_path / "C")
    assert not (tmp_path / "C").exists()


def test_another_model_is_refused(
    pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = Path(pair[1]) / "dataset.json"
    told = json.loads(plan.read_bytes())
    told["parameters"]["model_id"] = "0" * 64
    plan.write_text(json.dumps(told))
    assert script.main([*pair, "--output", str(tmp_path / "C")]) == 2
    shown = capsys.readouterr().err
    assert "cannot be one archive: model_id is" in shown
    assert not (tmp_path / "C").exists()


def test_different_files_of_one_shard_are_refused(
    make_archive: MakeArchive, tmp_path: Path
) -> None:
    first, second = make_archive("A", "a", "b"), make_archive("B", "b", "c")
    same = merge(first, second, output=tmp_path / "C")
    assert "1 data file in several of the archives, copied once" in same.notes
    assert len(open_dataset(str(tmp_path / "C"))) == 15
    path = next(Path(second).glob("data/b-*"))
    path.write_bytes(b"damaged" + path.read_bytes()[7:])
    verify(VerifyOptions(second, read=Subset(), repair=True))  # that is the next generation
    with pytest.raises(MergeError, match=r"different files of one shard, .*b\.tar: an archive"):
        merge(first, second, output=tmp_path / "D")
    assert not (tmp_path / "D").exists()


def test_an_output_of_another_plan_is_refused(
    pair: tuple[str, str], make_archive: MakeArchive
) -> None:
    other = make_archive("other", "d", min_side=3)
    before = contents(Store(other))
    with pytest.raises(PlanMismatchError, match="--min-side is 3 there and 0 here"):
        merge(*pair, output=other)
    assert contents(Store(other)) == before


# -- plans that differ ----------------------------------------------------------------------------


def test_archives_of_several_plans(make_archive: MakeArchive, tmp_path: Path) -> None:
    first = make_archive("A", "a", keep_original="always")
    second = make_archive("B", "b", keep_original="bad", min_side=9, max_pixels=1 << 20)
    merge(first, second, output=tmp_path / "C")
    merged = open_dataset(str(tmp_path / "C"))
    assert len(merged) == 10
    plan = merged.parameters
    assert {name: plan[name] for name in ("lossless", "min_side", "keep_original")} == {
        "lossless": True,
        "min_side": 0,
        "keep_original": None,  # no word holds for both
    }
    assert plan["max_pixels"] == open_dataset(first).parameters["max_pixels"]
    assert plan["merged"].keys() == {open_dataset(url).fingerprint for url in (first, second)}
    check_sound(tmp_path / "C")
    assert "merged from archives of 2 plans" in info_dataset(str(tmp_path / "C")).plan
    # merged once more, with a third plan
    third = make_archive("D", "c", min_side=5)
    merge(str(tmp_path / "C"), third, output=tmp_path / "E")
    assert len(open_dataset(str(tmp_path / "E")).parameters["merged"]) == 3
    check_sound(tmp_path / "E")
    with pytest.raises(PlanMismatchError, match="nothing can be compressed into it"):
        make_archive("E", "d")
    with pytest.raises(PlanMismatchError, match=r"merged is from the plans \w{8}, .* there and"):
        merge(first, third, output=tmp_path / "C")


def test_damage_in_a_merged_archive(make_archive: MakeArchive, tmp_path: Path) -> None:
    """Records can be written again; a data file is copied again."""
    pair = make_archive("A", "a"), make_archive("B", "b", min_side=9)
    merge(*pair, output=tmp_path / "C")
    for path in (tmp_path / "C").glob("commits/*"):
        path.unlink()
    report = verify(VerifyOptions(str(tmp_path / "C"), repair=True))
    assert [damage.repaired for damage in report.damaged] == [True, True]
    path = next((tmp_path / "C").glob("data/b-*"))
    path.write_bytes(b"damaged" + path.read_bytes()[7:])
    report = verify(VerifyOptions(str(tmp_path / "C"), read=Subset(), repair=True))
    (damage,) = report.damaged
    assert damage.why_not.startswith("its archive was merged from others: remove it")
    path.unlink()
    merge(*pair, output=tmp_path / "C")
    check_sound(tmp_path / "C")


# -- keys -----------------------------------------------------------------------------------------


def test_keys_that_several_archives_have(
    pair: tuple[str, str], make_archive: MakeArchive, tmp_path: Path
) -> None:
    quiet = merge(*pair, output=tmp_path / "C")
    assert not any("warning" in note for note in quiet.notes)
    again = samples(3, 3)  # s0003 to s0005: two of them are in a.tar
    write_tar(tmp_path / "h.tar", again)
    third = make_archive("H", "h")
    summary = merge(*pair, third, output=tmp_path / "D")
    (note,) = (note for note in summary.notes if note.startswith("warning"))
    assert "2 keys in several of the archives ('s0003', 's0004')" in note
    merged = open_dataset(str(tmp_path / "D"))
    assert len(merged) == 18  # none is lost
    assert merged.locate("s0003").file.name.startswith("a-")  # type: ignore[union-attr]


def test_too_many_keys_to_compare(
    pair: tuple[str, str], make_archive: MakeArchive, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(merge_checks, "COMPARED_KEYS", 3)
    write_tar(tmp_path / "h.tar", samples(3, 3))
    summary = merge(*pair, make_archive("H", "h"), output=tmp_path / "C")
    assert any(note.startswith("keys were not compared") for note in summary.notes)


def test_maps_of_keys_are_not_merged(pair: tuple[str, str], tmp_path: Path) -> None:
    index_keys(pair[0])
    summary = merge(*pair, output=tmp_path / "C")
    assert any("strata index --input" in note for note in summary.notes)
    assert not (tmp_path / "C" / "keys").exists()


# -- what goes wrong ------------------------------------------------------------------------------


def test_a_damaged_file_is_not_copied(pair: tuple[str, str], tmp_path: Path) -> None:
    path = next(Path(pair[1]).glob("data/c-*"))
    path.write_bytes(path.read_bytes()[:-9] + bytes(9))
    summary = merge(*pair, output=tmp_path / "C")
    assert summary.exit_code == 1
    (failed,) = summary.failed_shards
    assert failed.shard.endswith("c.tar")
    assert "is not the file that was written: strata verify" in failed.reason
    assert len(open_dataset(str(tmp_path / "C"))) == 10
    assert [one["url"][-5:] for one in open_dataset(str(tmp_path / "C")).failed] == ["c.tar"]
    shutil.rmtree(tmp_path / "B")


def test_what_the_archives_lack_is_told(pair: tuple[str, str], tmp_path: Path) -> None:
    path = Path(pair[0]) / "manifest-000001.json"
    manifest = json.loads(path.read_bytes())
    lost = {"url": "lost.tar", "error": "is damaged"}
    found = {"url": str(tmp_path / "c.tar"), "error": "was busy"}  # which the other one has
    path.write_text(json.dumps(manifest | {"failed": [lost, found]}))
    merge(*pair, output=tmp_path / "C")
    assert open_dataset(str(tmp_path / "C")).failed == [lost]


def test_the_command(
    pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main([*pair, "--output", str(tmp_path / "C")]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("merged 2 archives: 3 data files, 15 pictures, 3 bad, 3 filtered, ")
    assert script.main([pair[0], str(tmp_path / "no"), "--output", str(tmp_path / "D")]) == 2
    assert "there is no archive here" in capsys.readouterr().err
