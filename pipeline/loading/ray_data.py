"""A dataset as a source of Ray Data, and the actor that decodes its batches."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from ..dataset import rows
from ..dataset.data_file import DataFile, OpenFile
from ..reader.dataset import Dataset, open_dataset
from ..reader.originals import ORIGINAL, stream_or_original
from ..reader.rows import EVERY_ROW, RowFilter, read_pictures
from ..stores.filesystems import storage_errors
from ..stores.store import Store
from .decoding import Decoder, ErrorPolicy, Errors

SAMPLED_FILES = 4  # whose footers say how large the columns are


def ray_dataset(
    url: str,
    layers: int | None = None,
    *,
    columns: Sequence[str] = (),
    filter: pc.Expression | None = None,
    options: Mapping[str, Any] | None = None,
    **read: Any,
) -> ray.data.Dataset:
    """The pictures of the dataset at ``url`` as a Ray Dataset, still encoded.

    Its columns are ``columns``, ``key``, ``width``, ``height``, ``header``, the first ``layers`` of
    ``layer_00``, ... (default: all), and ``original``: the picture's file, if it replaces layers
    that are not stored. Only these are read, and after ``select_columns`` only the selected ones.
    ``filter`` is that of ``Dataset.batches``, ``options`` are the dataset's storage options, and
    ``read`` goes to ``ray.data.read_datasource`` (``override_num_blocks``, ``concurrency``, ...).
    ``RayDecoder`` decodes the pictures. Raises DatasetError as ``open_dataset`` and
    ``Dataset.batches`` do.
    """
    dataset = open_dataset(url, options)
    count = dataset.layer_count(layers)
    dataset.check_columns(columns)
    where = RowFilter.of(filter, dataset.url)
    return ray.data.read_datasource(StrataDatasource(dataset, count, columns, where), **read)


class StrataDatasource(Datasource):
    """One read task for each data file, or several if there are fewer files than tasks.

    A block holds the pictures of one row group.
    """

    def __init__(
        self,
        dataset: Dataset,
        layers: int,
        columns: Sequence[str] = (),
        where: RowFilter = EVERY_ROW,
    ) -> None:
        super().__init__()
        self._projection_map: dict[str, str] | None = None
        self._url, self._options = dataset.url, dataset.store.options
        self._layers, self._asked, self._where = layers, tuple(columns), where
        self._columns = [*dict.fromkeys([*columns, *rows.stream_columns(layers), ORIGINAL])]
        self._files = [file for file in dataset.files if file.ok]
        self._row_bytes = _row_bytes(dataset, self._files[:SAMPLED_FILES], self._columns)

    def get_name(self) -> str:
        return "Strata"

    def supports_projection_pushdown(self) -> bool:
        return True

    def estimate_inmemory_data_size(self) -> int:
        """An estimate from the footers of some files."""
        per_row = sum(self._row_bytes.get(name, 0.0) for name in self._wanted())
        return int(per_row * sum(file.ok for file in self._files))

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: Any = None,
    ) -> list[ReadTask]:
        wanted = self._wanted()
        fields = rows.schema(self._layers)
        per_row = sum(self._row_bytes.get(name, 0.0) for name in wanted)
        parts = max(1, -(-parallelism // max(1, len(self._files))))
        tasks = []
        for file in self._files:
            own_parts = min(parts, -(-file.rows // rows.ROWS_PER_GROUP))  # a row group or more each
            is_whole = own_parts == 1 and self._where.expression is None
            metadata = BlockMetadata(
                num_rows=file.ok if is_whole else None,
                size_bytes=int(per_row * file.ok / own_parts),
                exec_stats=None,
                input_files=(f"{self._url}/{file.path}",),
            )
            for part in range(own_parts):
                read = self._reader(file, wanted, part, own_parts)
                schema = pa.schema([fields.field(name) for name in wanted])
                tasks.append(ReadTask(read, metadata, schema, per_task_row_limit))
        return tasks

    def _wanted(self) -> list[str]:
        projected = self._get_data_columns()
        return self._columns if projected is None else list(projected)

    def _reader(
        self, file: DataFile, wanted: Sequence[str], part: int, parts: int
    ) -> Callable[[], Iterator[pa.Table]]:
        """The function of a task. It may run on any machine, so it holds no connection."""
        url, options = self._url, self._options
        layers, where = self._layers, self._where
        if ORIGINAL not in wanted:
            while layers and rows.layer_column(layers - 1) not in wanted:
                layers -= 1
        further = [name for name in self._asked if name in wanted]

        def read() -> Iterator[pa.Table]:
            with OpenFile(Store(url, options), file) as opened:
                with storage_errors(opened.url, "cannot be read"):
                    groups = range(part, opened.metadata.num_row_groups, parts)
                for group in groups:
                    with storage_errors(opened.url, "cannot be read"):
                        table = read_pictures(opened, group, layers, further, where)
                    yield table.select(list(wanted))

        return read


class RayDecoder:
    """Decodes batches of ``ray_dataset``, for ``map_batches`` with actors.

    The columns of the stream are replaced by ``image``, ``(H, W, 3) uint8``. Each actor loads the
    dataset's model once:

        pictures = ray_dataset(url, layers=2).map_batches(
            RayDecoder, fn_constructor_kwargs={"url": url, "device": "cuda"},
            batch_size=64, num_gpus=1, compute=ray.data.ActorPoolStrategy(size=2),
        )

    ``max_side``, ``decode_options`` and ``errors`` are those of ``StrataImages``.
    """

    def __init__(
        self,
        url: str,
        *,
        device: str = "cpu",
        max_side: int | None = None,
        decode_options: Mapping[str, Any] | None = None,
        errors: Errors = "raise",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        codec = open_dataset(url, options).codec(device)
        self._url = url
        self._decoder = Decoder(codec, max_side=max_side, options=decode_options or {})
        self._policy = ErrorPolicy(errors)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        stream = [name for name in batch if name.startswith("layer_")]
        pictures = [
            stream_or_original(dict(zip(batch, row, strict=True)), len(stream), self._url)
            for row in zip(*batch.values(), strict=True)
        ]
        made, chosen = [], []
        for number, picture in enumerate(self._decoder.arrays(pictures, list(batch["key"]))):
            if isinstance(picture, Exception):
                self._policy.handle(str(batch["key"][number]), picture)
            else:
                made.append(picture)
                chosen.append(number)
        left = {*stream, "header", ORIGINAL}
        rest = {name: values[chosen] for name, values in batch.items() if name not in left}
        return rest | {"image": _images(made)}


def _images(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """The pictures as one array, an array of objects if they have several sizes."""
    if len({picture.shape for picture in pictures}) == 1:
        return np.stack(pictures)
    images = np.empty(len(pictures), object)
    for number, picture in enumerate(pictures):
        images[number] = picture
    return images


def _row_bytes(
    dataset: Dataset, files: Sequence[DataFile], columns: Sequence[str]
) -> dict[str, float]:
    """How many bytes a picture takes in each column, from the footers of some files."""
    found: dict[str, float] = {}
    pictures = sum(file.ok for file in files)
    for file in files:
        with dataset.open(file) as opened:
            for name, size in rows.column_bytes(opened.metadata).items():
                found[name] = found.get(name, 0.0) + size / pictures
    return {name: found.get(name, 0.0) for name in columns if name != ORIGINAL}
