"""Manifest, model and plan: damage is found, and repaired if possible."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from codec.models import zoo
from codec.models.heads import write_head
from pipeline import DatasetError, open_dataset
from pipeline.dataset import manifest_writer
from pipeline.dataset.layout import head_paths, manifest_name
from pipeline.dataset.ledger import Ledger
from pipeline.dataset.manifest_writer import publish_manifest
from pipeline.dataset.plan import Plan
from pipeline.stores.store import Store
from pipeline.verify.job import VerifyOptions, verify
from tests.pipeline.makers import ToyCodec
from tests.pipeline.verify.archives import FULL, Archive, lose, spoil


def edit_manifest(archive: Archive, change: Callable[[dict[str, Any]], None]) -> None:
    path = archive.root / manifest_name(1)
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def wrong_total(manifest: dict[str, Any]) -> None:
    manifest["totals"]["ok"] += 1


def wrong_size(manifest: dict[str, Any]) -> None:
    manifest["files"][0]["bytes"] += 1
    manifest["totals"]["bytes"] += 1


def wrong_hash(manifest: dict[str, Any]) -> None:
    manifest["files"][0]["sha256"] = "0" * 64


def no_file(manifest: dict[str, Any]) -> None:
    del manifest["files"][0]["rows"]


def of_another(manifest: dict[str, Any]) -> None:
    manifest["fingerprint"] = "f" * 64


def odd_tally(manifest: dict[str, Any]) -> None:
    manifest["files"][0]["by_layers"] = [4]


def odd_quality(manifest: dict[str, Any]) -> None:
    manifest["files"][0]["quality"] = {"psnr": ["good"]}


def other_tally(manifest: dict[str, Any]) -> None:
    manifest["totals"]["by_layers"] = {"3": 9}


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (odd_tally, "manifest", "has the by_layers"),
        (odd_quality, "manifest", "not in numbers"),
        (other_tally, "manifest", "its totals say by_layers"),
        (wrong_total, "manifest", "its totals say ok 10"),
        (wrong_size, "manifest", "bytes is"),
        (wrong_hash, "record", "contradicts the manifest on sha256"),
        (no_file, "manifest", "not a manifest"),
        (of_another, "manifest", "other parameters"),
    ],
)
def test_a_wrong_manifest(
    archive: Archive, change: Callable[[dict[str, Any]], None], kind: str, words: str
) -> None:
    edit_manifest(archive, change)
    report = archive.verify(read=FULL)
    (damage,) = report.damaged
    assert damage.kind == kind
    assert words in damage.problems[0]
    repaired = archive.verify(repair=True)
    assert (repaired.exit_code, repaired.new_manifest) == (0, 2)
    assert {path.name for path in (archive.root / "data").iterdir()} == {
        archive.file("a").name,
        archive.file("b").name,
    }
    archive.check_whole()


def test_an_unreadable_manifest(archive: Archive) -> None:
    spoil(archive.record("a"))
    spoil(archive.root / manifest_name(1))
    report = archive.verify()
    assert [d.kind for d in report.damaged] == ["manifest", "record"]
    assert report.files == 1  # nothing else tells of the other
    assert archive_repaired(archive) == 2
    archive.check_whole()


def test_neither_manifest_nor_record(archive: Archive) -> None:
    """A data file tells its source itself: nothing of it is lost."""
    path, record = archive.file("a"), archive.record("a")
    record.unlink()
    spoil(archive.root / manifest_name(1))
    report = archive.verify(collect_garbage=True, older_than=0)
    assert {(d.kind, d.path) for d in report.damaged} == {
        ("manifest", manifest_name(1)),
        ("record", f"commits/{record.name}"),
    }
    assert path.exists()
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    (hopeless,) = (d for d in archive.verify(repair=True).damaged if d.kind == "record")
    assert "run strata compress" in hopeless.why_not
    path.write_bytes(whole)
    (archive.root / manifest_name(2)).unlink()
    assert archive_repaired(archive) == 2
    archive.check_whole()


def test_what_an_older_manifest_knows(archive: Archive) -> None:
    record = archive.record("a")
    shutil.copy(archive.root / manifest_name(1), archive.root / manifest_name(2))
    spoil(archive.root / manifest_name(2))
    record.unlink()
    assert archive.verify().files == 2
    assert archive_repaired(archive) == 3
    archive.check_whole()


def archive_repaired(archive: Archive) -> int:
    report = archive.verify(repair=True)
    assert report.exit_code == 0
    return report.new_manifest


@pytest.mark.parametrize("harm", [lose, spoil])
def test_a_model(
    archive: Archive, toy: ToyCodec, harm: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = archive.root / "models" / toy.model_id / "model.safetensors"
    harm(copy)
    report = archive.verify(read=FULL)
    (damage,) = report.damaged
    assert (damage.kind, report.model_state) == ("model", "damaged")
    assert report.files_read == 2
    assert report.pictures_decoded == 0
    hopeless = archive.verify(repair=True)
    assert hopeless.exit_code == 1
    assert toy.model_id in hopeless.damaged[0].why_not

    monkeypatch.setattr(zoo, "WEIGHTS", toy.model_path.parent)
    assert archive.verify(repair=True).exit_code == 0
    assert copy.read_bytes() == toy.model_path.read_bytes()
    archive.check_whole()


@pytest.mark.parametrize("harm", [lose, spoil])
def test_a_plan(archive: Archive, harm: Callable[[Path], None]) -> None:
    harm(archive.root / "dataset.json")
    report = archive.verify(repair=True)
    (damage,) = report.damaged
    assert (damage.kind, report.exit_code) == ("plan", 1)
    assert "run strata compress" in damage.why_not
    (archive.root / "dataset.json").unlink(missing_ok=True)
    archive.compress()
    archive.check_whole()


def test_parameters_that_were_edited(archive: Archive) -> None:
    path = archive.root / "dataset.json"
    plan = json.loads(path.read_text())
    plan["parameters"]["layers"] = 3
    path.write_text(json.dumps(plan))
    assert [d.kind for d in archive.verify().damaged] == ["plan"]


def test_no_dataset(tmp_path: Path, archive: Archive) -> None:
    with pytest.raises(DatasetError, match="no archive"):
        verify(VerifyOptions(dataset=str(tmp_path / "nowhere")))
    (archive.root / manifest_name(1)).unlink()
    with pytest.raises(DatasetError, match="has not finished"):
        archive.verify()


def test_a_store_that_does_not_answer_is_no_damage(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Store.read

    def read(self: Store, name: str, *limits: int) -> bytes:
        if name.startswith("commits/a-"):
            raise TimeoutError("no answer")
        return real(self, name, *limits)

    monkeypatch.setattr(Store, "read", read)
    report = archive.verify(repair=True)
    assert (report.damaged, report.exit_code) == ([], 1)
    (one,) = report.unchecked
    assert one.shard.startswith("data/a-")
    assert "no answer" in one.reason


def test_a_damaged_part_is_repaired(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_writer, "INLINE_FILES", 0)
    dataset = archive.dataset
    done, _ = Ledger(dataset.store, dataset.fingerprint).completed("data", ".parquet")
    publish_manifest(dataset.store, Plan("dataset.json", dataset.parameters), done)
    keys = [*open_dataset(dataset.url).keys()]
    path = open_dataset(dataset.url).files.parts[0].path
    sound = Path(dataset.url, path).read_bytes()
    for harm in (b"nothing", None):
        Path(dataset.url, path).unlink()
        if harm:
            Path(dataset.url, path).write_bytes(harm)
        assert archive.verify().exit_code == 1
        report = archive.verify(repair=True)
        assert [(one.kind, one.repaired) for one in report.damaged] == [("manifest", True)]
        assert gzip.decompress(Path(dataset.url, path).read_bytes()) == gzip.decompress(sound)
        assert archive.verify().exit_code == 0
        assert [*open_dataset(dataset.url).keys()] == keys


def test_a_damaged_head_is_replaced_or_removed(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_id = archive.dataset.model_id
    path = archive.root / head_paths(model_id, "eyes")[0]
    write_head(path, "eyes", model_id, {"levels": 2}, {"scale": torch.ones(3)})
    sound = path.read_bytes()
    assert archive.verify().exit_code == 0
    for shipped in (False, True):
        path.write_bytes(sound[:-1] + b"x")
        (damage,) = archive.verify().damaged
        assert (damage.kind, damage.path) == ("head", head_paths(model_id, "eyes")[0])
        assert "not those that were written" in damage.problems[0]
        if shipped:
            (tmp_path / "toy.eyes.safetensors").write_bytes(sound)
            monkeypatch.setattr(zoo, "WEIGHTS", tmp_path)
        report = archive.verify(repair=True)
        assert report.damaged[0].repaired
        assert path.exists() is shipped
        assert any("was removed" in note for note in report.notes) is not shipped
        assert archive.verify().exit_code == 0
    write_head(path, "eyes", "f" * 64, {"levels": 2}, {"scale": torch.ones(3)})
    (damage,) = archive.verify().damaged
    assert "head for model ffffffff" in damage.problems[0]
