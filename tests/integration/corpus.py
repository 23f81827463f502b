"""Three small shards on a store, and what must have become of them whatever happened meanwhile."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

import pipeline
from codec.images.files import read_image
from pipeline.compress.job import CompressOptions
from pipeline.running.tasks import Policy
from pipeline.stores.store import Store
from pipeline.verify.garbage import find_garbage, remove_garbage
from tests.integration.servers import BUCKET, S3Server
from tests.pipeline.makers import png, samples, tar_bytes

SHARDS, SAMPLES = 3, 6
MODEL = "uqdm"  # exact with all its layers, so that pictures can be compared
# A job's own limits here: short, but for each of them there is more than enough time.
DEADLINE = 60.0
READ_TIMEOUT = 2

Contents = Mapping[str, tuple[Any, np.ndarray]]


@dataclass(frozen=True)
class Corpus:
    """Shards ``x-0.tar``, ... in a folder of a server; outputs go beside it."""

    server: S3Server
    folder: str = "faults"

    @property
    def inputs(self) -> str:
        return f"{self.server.url}/{self.folder}/in"

    def output(self, name: str) -> str:
        return f"{self.server.url}/{self.folder}/{name}"

    def upload(self) -> None:
        fs = self.server.filesystem()
        for number in range(SHARDS):
            data = tar_bytes(samples(SAMPLES, 10 * number))
            fs.pipe_file(f"{BUCKET}/{self.folder}/in/x-{number}.tar", data)

    def job(self, name: str, endpoint: str | None = None, **policy: Any) -> CompressOptions:
        """The job into ``output(name)``; ``endpoint`` is the proxy's where one stands between."""
        options = self.server.options(endpoint, read_timeout=READ_TIMEOUT)
        return CompressOptions(
            (self.inputs,),
            self.output(name),
            MODEL,
            lossless=True,
            workers=1,
            policy=Policy(**{"attempts": 3, "deadline": DEADLINE, **policy}),
            input_options=options,
            output_options=options,
        )

    def contents(self, name: str) -> Contents:
        """Every picture of the dataset with its side fields, decoded; each key once."""
        dataset = pipeline.open_dataset(self.output(name), self.server.options())
        records = list(dataset.read(columns=["fields"]))
        images = dataset.codec().decode([record.encoded for record in records])
        assert len({record.key for record in records}) == len(records), "a key is there twice"
        assert len(dataset) == len(records)
        return {
            record.key: (record.extra["fields"], image)
            for record, image in zip(records, images, strict=True)
        }

    def check(
        self, name: str, undisturbed: Contents, without: frozenset[str] = frozenset()
    ) -> None:
        """The dataset holds what the undisturbed one does, and nothing else lies beside it."""
        self._compare(name, undisturbed, without)
        store = Store(self.output(name), self.server.options())
        assert _names(store, "data") == _names(store, "commits")
        # The servers count time in whole seconds, so what is new seems to come from the future.
        remove_garbage(store, find_garbage(store, older_than=-60))
        dataset = pipeline.open_dataset(self.output(name), self.server.options())
        assert _names(store, "data") == {file.name for file in dataset.files}
        assert len(dataset.files) == SHARDS
        self._compare(name, undisturbed, without)

    def _compare(self, name: str, undisturbed: Contents, without: frozenset[str]) -> None:
        found = self.contents(name)
        assert set(found) == set(undisturbed) - without
        for key, (fields, image) in found.items():
            assert fields == undisturbed[key][0]
            assert np.array_equal(image, undisturbed[key][1])

    def check_undisturbed(self, contents: Contents) -> None:
        """Against the pictures themselves, so that two wrong datasets do not prove each other."""
        numbers = [10 * shard + n for shard in range(SHARDS) for n in range(SAMPLES)]
        assert sorted(contents) == [f"s{number:04d}" for number in numbers]
        for number in numbers:
            expected = read_image(png(number)).rgb
            assert np.array_equal(contents[f"s{number:04d}"][1], expected)


def _names(store: Store, folder: str) -> set[str]:
    return {name.rsplit(".", 1)[0] for name in store.sizes(folder)}
