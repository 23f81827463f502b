"""Makes all golden files again. From then on, their content must decode to the same.

    python tests/format/make_golden.py

Streams of the shipped models and of a tiny one of the paper's, which lies beside them packed, what
they show after some of their layers, and a dataset. They are renewed whenever a shipped model is,
until there is a release 1.0; its files stay.
"""

import io
import lzma
import platform
import shutil
import sys
import tarfile
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from unittest import mock

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

import fsspec
import numpy as np
from skimage import data

from codec import Codec, load_codec
from codec.images.files import write_image
from codec.models import zoo
from codec.uqdm.paper import calibration
from codec.uqdm.paper.scheme import UniversalScheme
from pipeline.compress.job import CompressOptions, planned_parameters
from pipeline.compress.settings import CompressSettings
from pipeline.compress.worker import ShardCompressor, ShardJob
from pipeline.dataset.layout import PLAN_NAME, shard_name
from pipeline.dataset.ledger import Ledger
from pipeline.dataset.manifest_writer import publish_manifest
from pipeline.dataset.plan import Plan
from pipeline.sources.listing import expand_inputs
from pipeline.stores.store import Store
from tests.codec.uqdm.paper.test_scheme import small_model
from tests.format.golden_files import GOLDEN, without_head

SHOWN = {"uqdm": (0, 1, 3, 7), "cdc-small": (0, 1, 4, 8), "universal": (0, 1, 4)}
SIZES = {"uqdm": (45, 60), "cdc-small": (70, 83), "universal": (24, 40)}


def picture(height: int, width: int, scale: int = 4) -> np.ndarray:
    """Of the astronaut's face (NASA, public domain, bundled with scikit-image)."""
    part = data.astronaut()[40 : 40 + scale * height, 160 : 160 + scale * width]
    means = part.reshape(height, scale, width, scale, 3).mean((1, 3))
    return np.rint(means).astype(np.uint8)


def universal_model(folder: Path) -> Path:
    """A tiny model of the paper's, calibrated; its file in ``folder``."""
    config, tensors = small_model(steps=3)
    calibrated = calibration.quick(UniversalScheme(config, tensors, "cpu"))
    path = folder / "universal.safetensors"
    zoo.write_model(path, config, {**tensors, "guards": calibrated.guards})
    return path


def write_streams(folder: Path, name: str, codec: Codec) -> None:
    original = picture(*SIZES[name], 3 if codec.codec == "cdc" else 4)
    (encoded,) = codec.encode([original])
    (folder / f"{name}.strata").write_bytes(encoded.to_bytes())
    for layers in SHOWN[name]:
        (shown,) = codec.decode([encoded], layers=layers, **without_head(codec))
        (folder / f"{name}-{layers}.png").write_bytes(write_image(shown, None, "png"))


def tar() -> bytes:
    out = io.BytesIO()
    alpha = np.arange(20 * 24, dtype=np.uint32).reshape(20, 24).astype(np.uint8)
    files = {
        "face.png": write_image(picture(24, 32), None, "png"),
        "face.txt": b"a face",
        "veiled.png": write_image(picture(20, 24), alpha, "png"),
        "broken.png": b"\x89PNG\r\n\x1a\n and no more",
    }
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def write_dataset(folder: Path) -> None:
    """What ``compress_dataset.py --lossless`` writes, with one worker in this process."""
    source = "memory://golden/pictures.tar"
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/golden/pictures.tar", tar())
    file = memory.store["/golden/pictures.tar"]  # its times are in the names of what is written
    file.created = file.modified = datetime(2026, 1, 1, tzinfo=UTC)
    model = load_codec("uqdm")
    options = CompressOptions(
        inputs=(source,), output=str(folder), model="uqdm", lossless=True, keep_original="bad"
    )
    plan = Plan(PLAN_NAME, planned_parameters(options, model))
    store = Store(str(folder))
    plan.establish(store)
    name = f"models/{model.model_id}/model.safetensors"
    store.create_from(name, model.model_path)
    settings = CompressSettings(
        output=str(folder),
        fingerprint=plan.fingerprint,
        model_id=model.model_id,
        layers=plan.parameters["layers"],
        lossless=True,
    )
    with mock.patch.object(platform, "node", return_value="golden"):
        for shard in expand_inputs([source]):
            job = ShardJob(shard_name(shard, plan.fingerprint), shard)
            ShardCompressor(settings).run(job)
    done, _ = Ledger(store, plan.fingerprint).completed("data", ".parquet")
    publish_manifest(store, plan, done)
    shutil.rmtree(folder / "models")  # tests put it back: the shipped model is not stored twice


def main() -> None:
    shutil.rmtree(GOLDEN, ignore_errors=True)
    GOLDEN.mkdir()
    for name in zoo.list_models():
        write_streams(GOLDEN, name, load_codec(name))
    with tempfile.TemporaryDirectory() as folder:
        path = universal_model(Path(folder))
        write_streams(GOLDEN, "universal", load_codec(path))
        (GOLDEN / f"{path.name}.xz").write_bytes(lzma.compress(path.read_bytes(), preset=9))
    write_dataset(GOLDEN / "dataset")


if __name__ == "__main__":
    main()
