"""Checking and repairing as users do it: the command, on Ray, on an object store."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

import pipeline
from pipeline.compress.job import CompressOptions, compress
from pipeline.stores.store import Store
from pipeline.verify.job import Subset, VerifyOptions, verify
from tests.integration.conftest import RunHere
from tests.integration.servers import ROOT, S3Server
from tests.pipeline.makers import samples, tar_bytes, write_tar

pytestmark = pytest.mark.integration
VERIFY = ROOT / "jobs" / "verify_dataset.py"


def overwrite(store: Store, name: str, data: bytes) -> None:
    store.remove(name)
    assert store.create(name, data)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :]


@pytest.mark.slow
def test_a_dataset_on_an_object_store(
    ray_session: None, folder: str, moto_server: S3Server
) -> None:
    """All that can be hurt at once is hurt; then everything is as before."""
    options = moto_server.options()
    url = f"{moto_server.url}/{folder}"
    sources = Store(f"{url}/in", options)
    for number in range(3):
        sources.create(f"x-{number}.tar", tar_bytes(samples(3, 10 * number)))
    compressing = CompressOptions(
        inputs=(f"{url}/in/x-{{0..2}}.tar",),
        output=f"{url}/set",
        model="cdc-small",  # a shipped one, with which its file in the dataset is repaired
        codec_options={"quality": 4},  # at others small pictures have the same layers
        keep_original="bad",
        workers=1,
        input_options=options,
        output_options=options,
    )
    assert compress(compressing).ok == 9

    def check(**more: Any) -> Any:
        given = {"dataset": f"{url}/set", "workers": 1, "input_options": options} | more
        return verify(VerifyOptions(**given))

    dataset = pipeline.open_dataset(f"{url}/set", options)
    keys = list(dataset.keys())
    pictures = {key: dataset.image(key) for key in keys}
    store, files = dataset.store, dataset.files

    layers = dataset.record("s0011").encoded.layers
    overwrite(store, files[0].path, store.read(files[0].path)[:-100])
    data = store.read(files[1].path)
    assert data.count(layers[-1]) == 1
    overwrite(store, files[1].path, flipped(data, data.index(layers[-1]) + 5))
    store.remove(f"commits/{files[2].name}.json")
    overwrite(store, f"models/{dataset.model_id}/model.safetensors", b"not a model")
    overwrite(store, "manifest-000001.json", b"{")

    repaired = check(read=Subset(), repair=True, source_options=options)
    assert (repaired.exit_code, repaired.model_state) == (0, "repaired")
    assert {(one.kind, one.path) for one in repaired.damaged} == {
        ("manifest", "manifest-000001.json"),
        ("model", f"models/{dataset.model_id}/model.safetensors"),
        ("data", files[0].path),
        ("data", files[1].path),
        ("record", f"commits/{files[2].name}.json"),
    }
    (flip,) = (one for one in repaired.damaged if one.path == files[1].path)
    assert f"'s0011': layer {len(layers)}" in "\n".join(flip.problems)
    again = check(read=Subset())
    assert (again.exit_code, again.files_read, again.pictures_decoded) == (0, 3, 9)
    after = pipeline.open_dataset(f"{url}/set", options)
    assert list(after.keys()) == keys
    assert all((after.image(key) == picture).all() for key, picture in pictures.items())
    assert [file.record["generation"] for file in after.files] == [1, 1, 0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--input", "nothing"], "there is no archive here"),
        (["--input", "x", "--read-data-subset", "0/3"], "N/T"),
        (["--input", "x", "--read-data-subset", "4/3"], "N/T"),
        (["--input", "x", "--read-data-subset", "0%"], "N/T"),
        (["--input", "x", "--read-data", "--read-data-subset", "1/2"], "not allowed with"),
        (["--input", "x", "--no-decode"], "only with --read-data"),
        (["--input", "x", "--seed", "1"], "only with --read-data-subset"),
        (["--input", "x", "--json", "no/such/folder/r.json"], "cannot be written"),
    ],
)
def test_what_must_be_put_right_first(run_here: RunHere, arguments: list[str], words: str) -> None:
    code, _, errors = run_here(VERIFY, *arguments)
    assert code == 2
    assert words in errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_the_command(ray_session: None, run_here: RunHere, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", samples(2))
    write_tar(tmp_path / "b.tar", samples(2, 10))
    root = tmp_path / "set"
    inputs = (str(tmp_path / "a.tar"), str(tmp_path / "b.tar"))
    compress(CompressOptions(inputs=inputs, output=str(root), model="cdc-small", workers=1))
    code, output, errors = run_here(VERIFY, "--input", "set")
    assert code == 0, errors
    assert "quick check of 2 data files" in output
    assert "nothing is damaged" in output

    path = next((root / "data").glob("a-*"))
    path.write_bytes(path.read_bytes()[:-1])
    code, output, errors = run_here(VERIFY, "--input", "set", "--json", "report.json")
    assert code == 1, errors
    assert f"data/{path.name}: has" in output
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["exit_code"] == 1
    (damage,) = report["damaged"]
    assert (damage["path"], damage["source"]) == (f"data/{path.name}", f"{tmp_path}/a.tar")
    assert (damage["repaired"], report["level"], report["files"]) == (False, "quick", 2)

    arguments = ["--input", "set", "--read-data-subset", "50%", "--seed", "1", "--repair"]
    code, output, errors = run_here(VERIFY, *arguments, "--json", "-", "--workers", "1")
    assert code == 0, errors
    report = json.loads(output)  # nothing else is there
    assert (report["level"], report["subset"], report["seed"]) == ("subset", "50%", 1)
    assert [one["repaired"] for one in report["damaged"]] == [True]
    assert "subset check" in errors
    assert len(list(pipeline.open_dataset(str(root)).keys())) == 4
    assert verify(VerifyOptions(dataset=str(root))).exit_code == 0


def test_help_explains_every_option(run_here: RunHere) -> None:
    code, output, _ = run_here(VERIFY, "--help")
    assert code == 0
    assert "Exit code 0" in output
    assert os.access(VERIFY, os.X_OK)
