"""Three small shards on a store, and the archive that must come of them in spite of all faults."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

import pipeline
from codec.images.files import read_image
from codec.images.packing import can_pack
from pipeline.compress.job import CompressOptions
from pipeline.reader.dataset import Record
from pipeline.running.tasks import Policy
from pipeline.stores.store import Store
from pipeline.verify.garbage import find_garbage, remove_garbage
from tests.integration.servers import BUCKET, S3Server
from tests.pipeline.makers import picture, samples, tar_bytes

SHARDS, SAMPLES = 3, 6
# A job's own limits here. An attempt takes seconds, but the machine may have other work, too.
DEADLINE = 240.0
READ_TIMEOUT = 2

# By key: fields, pixels, the picture's own file, and how that is packed.
Contents = dict[str, tuple[dict[str, bytes | None], np.ndarray, bytes, str | None]]


@dataclass(frozen=True)
class Corpus:
    """Shards ``x-0.tar``, ... in a folder of a server; outputs go beside it.

    ``model`` is a file of a lossless model, so that pictures can be compared.
    """

    server: S3Server
    model: str
    folder: str = "faults"

    @property
    def inputs(self) -> str:
        return f"{self.server.url}/{self.folder}/in"

    def output(self, name: str) -> str:
        return f"{self.server.url}/{self.folder}/{name}"

    def upload(self) -> None:
        fs = self.server.filesystem()
        for number in range(SHARDS):
            data = tar_bytes(file for n in range(SAMPLES) for file in sample_files(10 * number + n))
            fs.pipe_file(f"{BUCKET}/{self.folder}/in/x-{number}.tar", data)

    def job(self, name: str, endpoint: str | None = None, **policy: Any) -> CompressOptions:
        """The job into ``output(name)``; ``endpoint`` is the proxy's where one stands between."""
        options = self.server.options(endpoint, read_timeout=READ_TIMEOUT)
        return CompressOptions(
            (self.inputs,),
            self.output(name),
            self.model,
            lossless=True,
            keep_original="always",
            workers=1,
            policy=Policy(**{"attempts": 3, "timeout": DEADLINE, **policy}),
            input_options=options,
            output_options=options,
        )

    def records(self, name: str) -> list[Record]:
        """Every picture of the dataset with its side fields; each key once."""
        dataset = pipeline.open_dataset(self.output(name), self.server.options())
        records = list(dataset.read(columns=["fields", "original", "original_packing"]))
        assert len({record.key for record in records}) == len(records), "a key is there twice"
        assert len(dataset) == len(records)
        return records

    def contents(self, name: str) -> Contents:
        """The same, decoded."""
        records = self.records(name)
        dataset = pipeline.open_dataset(self.output(name), self.server.options())
        images = dataset.codec().decode([record.encoded for record in records])
        return {
            record.key: (
                {f["name"]: f["data"] for f in record.extra["fields"]},
                image,
                record.extra["original"],
                record.extra["original_packing"],
            )
            for record, image in zip(records, images, strict=True)
        }

    def check(self, name: str, without: str | None = None) -> None:
        """The dataset holds what was uploaded, but one key, and nothing else lies beside it."""
        self._compare(name, without)
        records = self.records(name)
        store = Store(self.output(name), self.server.options())
        assert _names(store, "data") == _names(store, "commits")
        # The servers count time in whole seconds, so what is new seems to come from the future.
        remove_garbage(store, find_garbage(store, older_than=-60))
        dataset = pipeline.open_dataset(self.output(name), self.server.options())
        assert _names(store, "data") == {file.name for file in dataset.files}
        assert len(dataset.files) == SHARDS
        assert self.records(name) == records

    def _compare(self, name: str, without: str | None) -> None:
        """Against the pictures themselves: two wrong datasets cannot prove each other."""
        found = self.contents(name)
        numbers = [10 * shard + n for shard in range(SHARDS) for n in range(SAMPLES)]
        assert set(found) == {f"s{number:04d}" for number in numbers} - {without}
        for number in numbers:
            (picture, data), *others = sample_files(number)
            key, _, extension = picture.partition(".")
            if key in found:
                fields, image, original, packing = found[key]
                sides = {name.partition(".")[2]: field for name, field in others}
                # the place of the picture, and the rest
                assert fields == {extension: None, **sides}
                assert np.array_equal(image, read_image(data).rgb)
                assert original == data
                assert packing == ("lepton" if extension == "jpg" and can_pack() else None)


def sample_files(number: int) -> list[tuple[str, bytes]]:
    """A sample's files by name: a picture, a json and a cls; every second one is a JPEG."""
    (name, data), *others = samples(1, number)
    if number % 2:
        name, data = name.replace(".png", ".jpg"), _jpeg(picture(number, 64, 80))
    return [(name, data), *others]


def _jpeg(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=90)
    return out.getvalue()


def _names(store: Store, folder: str) -> set[str]:
    return {name.rsplit(".", 1)[0] for name in store.sizes(folder)}
