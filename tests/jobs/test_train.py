"""Training from tar shards: it resumes, starts from weights, and needs no Ray."""

import dataclasses
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from codec import InvalidModelError, load_codec
from codec.models import zoo
from codec.training.loop import TrainingConfig
from codec.training.run import recipes_of
from codec.uqdm import recipes
from pipeline.stores.filesystems import StorageError
from pipeline.training.job import shards_of
from tests.codec import toy, toy_recipes
from tests.codec.small_models import noise_pictures, write_nested_model
from tests.jobs.scripts import load_job

ROOT = Path(__file__).parents[2]
TRAIN = [sys.executable, str(ROOT / "jobs/train.py")]


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve small pictures and one broken one."""
    path = tmp_path_factory.mktemp("shards") / "pictures.tar"
    with tarfile.open(path, "w") as tar:
        for i, picture in enumerate(noise_pictures(12, 64).permute(0, 2, 3, 1).numpy()):
            buffer = io.BytesIO()
            Image.fromarray(picture).save(buffer, "png")
            label = json.dumps({"source": "noise", "license": "CC0"}).encode()
            for name, data in ((f"{i:03}.png", buffer.getvalue()), (f"{i:03}.json", label)):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        info = tarfile.TarInfo("broken.png")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"\x89PNG"))
    return path


def command(*arguments: object) -> list[str]:
    few = ["--counted-crops", "8", "--crop", "32"]  # seconds instead of half a minute
    return ["--config", "tiny", "--threads", "1", "--batch", "4", *few, *map(str, arguments)]


def test_shards_a_few_at_a_time(
    shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = [tmp_path / f"{number}.tar" for number in range(3)]
    for copy in shards:
        copy.write_bytes(shard.read_bytes())
    few = ["--shards-at-once", 1, "--steps-per-shard", 2, "--steps", 4, "--out", tmp_path / "run"]
    options = command("--data", *shards, *few)
    job = load_job("train")
    assert job.main(options) == 2
    assert "--shards-at-once: name pictures to measure on" in capsys.readouterr().err
    assert job.main([*options, "--validate", str(shard)]) == 0
    read = [line for line in capsys.readouterr().out.splitlines() if line.endswith("12 pictures")]
    assert len({line for line in read if str(shard) not in line}) >= 2
    card = json.loads((tmp_path / "run" / "card.json").read_text())
    assert card["pictures"] == {"noise (CC0)": 12}
    assert card["training"]["shards_at_once"] == 1


@pytest.mark.slow
def test_train_resume_and_go_on(
    shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    options = ["--data", shard, "--validate", shard, "--out", out]
    job = load_job("train")
    assert job.main(command(*options, "--steps", 6)) == 0
    assert "broken.png left out" in capsys.readouterr().out
    card = json.loads((out / "card.json").read_text())
    assert card["steps"] == 6
    assert card["pictures"] == {"noise (CC0)": 12}
    figures = card["validation"]
    assert figures["bpp"] == sorted(figures["bpp"])
    assert figures["psnr"][-1] is None  # exact
    assert job.main(command(*options, "--steps", 9)) == 0
    assert "resumed" in capsys.readouterr().out
    card = json.loads((out / "card.json").read_text())
    assert [entry["step"] for entry in card["learning_curve"]] == [6, 9]
    model = zoo.model_id(out / zoo.MODEL_FILE)
    assert job.main(command(*options, "--steps", 9, "--counted-crops", 12)) == 0
    card = json.loads((out / "card.json").read_text())
    assert (card["steps"], card["training"]["counted_crops"]) == (9, 12)
    assert zoo.model_id(out / zoo.MODEL_FILE) != model  # other tables of the same weights
    codec = load_codec(out)
    picture = np.zeros((20, 20, 3), np.uint8)
    np.testing.assert_array_equal(codec.decode(codec.encode([picture]))[0], picture)
    more = tmp_path / "more"
    assert job.main(command("--data", shard, "--init", out, "--out", more, "--steps", 1)) == 0
    restored = recipes.restore(out)
    assert set(restored.tensors()) == set(recipes.restore(more).tensors())


@pytest.mark.slow
def test_the_papers_model_trains_too(shard: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ["--config", "paper-tiny", "--data", shard, "--out", out, "--steps", 2]
    assert load_job("train").main(command(*options)) == 0
    card = json.loads((out / "card.json").read_text())
    assert len(card["validation"]["bpp"]) == 5
    assert load_codec(out).num_layers == 5


def test_bad_data_and_options_are_refused(
    shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = command("--data", tmp_path / "none-*.tar", "--out", tmp_path / "a")
    done = subprocess.run([*TRAIN, *wrong], capture_output=True, text=True, timeout=250)
    assert done.returncode == 2
    assert "none-" in done.stderr
    assert "Traceback" not in done.stderr
    main = load_job("train").main
    nothing = command("--data", shard, "--init", "no-such-model", "--out", tmp_path / "b")
    assert main(nothing) == 2
    assert "no-such-model" in capsys.readouterr().err
    write_nested_model(tmp_path)  # integers, from which no training can go on
    with pytest.raises(InvalidModelError, match="training"):
        recipes.restore(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        (["--address", "here:6379"], "--workers"),
        (["--workers", "2", "--device", "cuda:1"], "auto, cpu or cuda"),
        (["--workers", "0"], "at least 1"),
        (["--log", "paper"], "tensorboard"),
        (["--output-options", "{"], "not JSON"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    capsys: pytest.CaptureFixture[str], wrong: list[str], word: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        load_job("train").main(["--data", "x", "--out", "x", *wrong])
    assert caught.value.code == 2
    assert word in capsys.readouterr().err


def test_a_run_in_a_store(
    train: ModuleType, shard: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """fsspec's memory as the store: a next start finds all that it needs."""
    out = f"memory://runs/{shard.parent.name}"
    options = ["--data", str(shard), "--crop", "32", "--out", out, "--codec", "cdc"]
    for steps in (1, 2, 3):
        assert train.main([*options, "--steps", str(steps)]) == 0
    assert "at step 2" in capsys.readouterr().out
    names = {path.rsplit("/", 1)[-1] for path in MemoryFileSystem().find(out)}
    model = {"card.json", "log.jsonl", "model.safetensors", "training.safetensors"}
    assert names == model | {"checkpoint-000000002.pt", "checkpoint-000000003.pt"}
    assert train.main([*options[:-4], "--init", out, "--out", f"{out}-2", "--steps", "1"]) == 0
    card = json.loads(MemoryFileSystem().cat_file(f"{out}-2/card.json"))
    assert card["started_from"] == out


def test_training_needs_no_ray(shard: Path) -> None:
    """A plain GPU machine has torch, but neither Ray nor the object store's packages."""
    script = (
        "import sys\n"
        "for name in ('ray', 'pyarrow', 'fsspec', 's3fs', 'webdataset'):\n"
        "    sys.modules[name] = None\n"
        f"sys.path.insert(0, {str(ROOT)!r}); sys.path.insert(0, {str(ROOT / 'jobs')!r})\n"
        "sys.modules['codec.cdc'] = None\n"  # one codec's training needs no other's
        "import train\n"
        "train.parse(['--data', 'x', '--out', 'x', '--init', 'uqdm'])\n"
        "from pipeline.training.job import opener, shards_of\n"
        f"names, others = shards_of([{str(shard)!r}], {{}})\n"
        "with opener(names, {}, others)(names[0]) as stream:\n"
        "    assert stream.read(1)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """jobs/train.py in this process, with the toy codec in the place of CDC."""
    toy.use(monkeypatch)
    monkeypatch.setitem(sys.modules, "codec.cdc.recipes", toy_recipes)
    return load_job("train")


def test_another_codec_brings_recipes_and_flags(
    train: ModuleType, shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--data", str(shard), "--out"]
    flags = ["--steps", "2", "--crop", "32", "--rate-weight", "0.75", "--lpips-weights", "w.pth"]
    assert train.main([*where, str(tmp_path / "a"), "--codec", "cdc", *flags]) == 0
    card = json.loads((tmp_path / "a" / "card.json").read_text())
    assert card["recipe"] == "toy"
    assert card["objective"] == {"rate_weight": 0.75, "stage": 1, "perceptual": False}
    assert card["training"]["warmup"] == 1
    assert card["validation"]["quality 0"]["bpp"][0] > 0

    # --init tells the codec, and the settings that the model was trained with
    more = ["--init", str(tmp_path / "a"), "--steps", "1", "--stage", "2"]
    assert train.main([*where, str(tmp_path / "b"), *more]) == 0
    card = json.loads((tmp_path / "b" / "card.json").read_text())
    assert card["objective"] == {"rate_weight": 0.75, "stage": 2, "perceptual": False}

    capsys.readouterr()
    assert train.main([*where, "x", "--codec", "uqdm", "--init", str(tmp_path / "a")]) == 2
    assert "is a cdc model" in capsys.readouterr().err
    assert train.main([*where, str(tmp_path / "a"), "--steps", "1"]) == 2
    assert "holds a cdc model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--codec", "cdc", "--config", "tiny"], ["--config", "toy", "other"]),
        (["--config", "toy"], ["--config", "small", "paper-tiny"]),
        (["--codec", "gif"], ["--codec", "cdc", "uqdm"]),
        (["--rate-weight", "1"], ["--rate-weight"]),  # uqdm has no such flag
    ],
)
def test_what_another_codec_has_is_refused(
    train: ModuleType, capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        train.main(["--data", "x", "--out", "x", *arguments])
    assert caught.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert all(word in message for word in words)


def test_help_tells_what_belongs_to_a_codec(
    train: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    for codec, flag in (("cdc", True), ("uqdm", False)):
        with pytest.raises(SystemExit):
            train.main(["--codec", codec, "--help"])
        assert ("--rate-weight" in capsys.readouterr().out) == flag


def test_every_flag_has_a_description() -> None:
    settings = [TrainingConfig, *(recipes_of(name).ObjectiveConfig for name in zoo.families())]
    for one in settings:
        assert all(field.metadata.get("help") for field in dataclasses.fields(one))


def test_a_run_says_what_it_wrote(
    train: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of so few pictures that none is left for validation."""
    folder = tmp_path / "in"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(folder / "a.png")
    asked = command("--data", folder, "--out", tmp_path / "run", "--steps", 1)
    assert train.main(asked) == 0
    *_, step, files = capsys.readouterr().out.splitlines()
    assert step.startswith("step 1 ")
    assert "nothing was validated" in step
    names = "card.json, checkpoint-000000001.pt, log.jsonl, model.safetensors"
    assert files == f"in --out: {names}, training.safetensors"


def test_help_says_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        load_job("train").main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr()
    assert "usage:" in shown.out
    assert "no limit in most" in shown.out
    assert shown.err == ""


def test_folders_of_several_kinds_can_be_chosen_from(shard: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / shard.name).write_bytes(shard.read_bytes())
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(folder / "a.png")
    asked = ["--data", str(folder), "--out", str(tmp_path / "run"), "--input-format"]
    for kind, names in (("tars", [shard.name]), ("files", ["in#000001.000001"])):
        options = load_job("train").parse([*asked, kind])
        data, _ = shards_of(options.data, {}, options.input_format)
        assert [name.rpartition("/")[2] for name in data] == names
    with pytest.raises(StorageError, match="--input-format"):
        shards_of((str(folder),), {})
