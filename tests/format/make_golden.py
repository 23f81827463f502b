"""Makes golden files: run once for a model that is shipped, to be kept and decoded for ever.

    python tests/format/make_golden.py tests/format/golden/2 uqdm-small

``golden/1`` has those of the first models and a dataset, higher numbers those of models shipped
later. A model that is shipped no more moves to ``golden/models``, packed: its id is in every
stream.
"""

import io
import platform
import shutil
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import fsspec
import numpy as np
from skimage import data

from codec import load_codec
from codec.images.files import write_image
from pipeline.compress.encoder import CompressSettings
from pipeline.compress.job import CompressOptions, _parameters
from pipeline.compress.worker import ShardCompressor, ShardJob
from pipeline.dataset.layout import PLAN_NAME, shard_name
from pipeline.dataset.ledger import Ledger, Plan, publish_manifest
from pipeline.sources.shards import expand_inputs
from pipeline.stores.store import Store

SHOWN = {"uqdm-small": (0, 1, 3, 7), "uqdm-exact": (0, 1, 3, 5), "cdc-small": (0, 1, 4, 8)}
SIZES = {"uqdm-small": (45, 60), "uqdm-exact": (45, 60), "cdc-small": (70, 83)}


def picture(height: int, width: int, scale: int = 4) -> np.ndarray:
    """Of the astronaut's face (NASA, public domain, bundled with scikit-image)."""
    part = data.astronaut()[40 : 40 + scale * height, 160 : 160 + scale * width]
    means = part.reshape(height, scale, width, scale, 3).mean((1, 3))
    return np.rint(means).astype(np.uint8)


def write_streams(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        codec = load_codec(name)
        original = picture(*SIZES[name], 4 if name.startswith("uqdm") else 3)
        (encoded,) = codec.encode([original])
        (folder / f"{name}.strata").write_bytes(encoded.to_bytes())
        for layers in SHOWN[name]:
            (shown,) = codec.decode([encoded], layers=layers)
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
    fsspec.filesystem("memory").pipe_file("/golden/pictures.tar", tar())
    model = load_codec("uqdm-small")
    options = CompressOptions(
        inputs=(source,), output=str(folder), model="uqdm-small", lossless=True
    )
    plan = Plan(PLAN_NAME, _parameters(options, model))
    store = Store(str(folder))
    plan.establish(store)
    name = f"models/{model.model_id}/model.safetensors"
    store.create_from(name, model.model_path)
    settings = CompressSettings(
        output=str(folder),
        fingerprint=plan.fingerprint,
        model_id=model.model_id,
        layers=plan.parameters["layers"],
        fit=False,
    )
    with mock.patch.object(platform, "node", return_value="golden"):
        for shard in expand_inputs([source]):
            job = ShardJob(shard_name(shard, plan.fingerprint), shard)
            ShardCompressor(settings).run(job)
    done, _ = Ledger(store, plan.fingerprint).completed("data", ".parquet")
    publish_manifest(store, plan, done)
    shutil.rmtree(folder / "models")  # tests put it back: the shipped model is not stored twice


if __name__ == "__main__":
    target, *names = Path(sys.argv[1]), *sys.argv[2:]
    target.mkdir(parents=True)
    write_streams(target, names or [*SIZES])
    if not names:
        write_dataset(target / "dataset")
