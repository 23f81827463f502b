"""Describes an archive from its plan, manifest and records, without reading a data file."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from codec.models import zoo

from ..dataset.data_file import DataFile
from ..dataset.deletions import RESTORE, DamagedDeletionError, Deletions
from ..dataset.layout import (
    COMMITS,
    DATA,
    INDEX,
    RECORD_SUFFIX,
    SAVED,
    card_path,
    data_path,
    index_path,
    model_folder,
    record_path,
    saved_rows,
    split_generation,
)
from ..dataset.records import entry_of
from ..dataset.rows import layer_column
from ..dataset.totals import totals_of
from ..dataset.untrusted import MAX_RECORD_BYTES, parse_json
from ..reader.dataset import Dataset, open_dataset
from ..running.progress.summary import plural
from ..stores.store import Store, storage_errors
from .dataset_info import DatasetInfo, LayerFacts, ModelFacts
from .words import plan_in_words

READ_RECORDS = 256  # enough to estimate the bytes of each layer to a percent
_COUNTS = ("rows", "ok", "bad", "filtered", "deleted", "kept", "side_pictures")
_BYTES = ("bytes", "picture_bytes", "stream_bytes")


def info_dataset(
    url: str, options: Mapping[str, Any] | None = None, *, records: int | None = READ_RECORDS
) -> DatasetInfo:
    """Describe the archive at ``url`` (a path or any fsspec URL) by its newest manifest.

    Reads the plan, the manifest, the model's card and at most ``records`` commit records, spread
    over the archive (None: all), and lists five folders. ``options`` are fsspec's. Raises
    DatasetError if there is no archive, StorageError if the store does not answer.
    """
    dataset = open_dataset(url, options)
    store = dataset.store
    with storage_errors(store.url, "cannot be described"):
        chosen = _spread(dataset.files, records)
        sizes = {folder: store.sizes(folder) for folder in (DATA, INDEX, COMMITS, SAVED)}
        read = _records(store, chosen, sizes[COMMITS])
        model = _model(dataset)
        deletions, lists, damage = _deletions(store)
    columns, share = _columns([record for record in read.values() if record], dataset.files)
    header_bytes = round(columns["header"] * share)
    layers = [round(columns[layer_column(n)] * share) for n in range(dataset.num_layers)]
    sums: Counter[str] = Counter(dict.fromkeys((*_COUNTS, *_BYTES, "pixels"), 0))
    inputs: list[dict[str, Any]] = []

    def entries() -> Iterator[dict[str, Any]]:
        for file in dataset.files:
            entry = file.record
            sums.update({name: entry.get(name) or 0 for name in sums})
            inputs.append({"url": entry["source"]["url"], "bytes": entry["source"]["size"]})
            yield entry

    totals = totals_of(entries())
    pixels = sums["pixels"]
    prefixes = [8 * total / pixels if pixels else 0.0 for total in accumulate(layers)]
    per_header = 8 * header_bytes / pixels if pixels else 0.0
    listed = {"header", *map(layer_column, range(dataset.num_layers))}
    named = {"original", "alpha", "fields"}
    others = {name: round(columns[name] * share) for name in sorted(named)}
    others["metadata"] = round(
        sum(count for name, count in columns.items() if name not in named | listed) * share
    )
    return DatasetInfo(
        url=dataset.url,
        manifest=dataset.manifest,
        fingerprint=dataset.fingerprint,
        parameters=dataset.parameters,
        plan=plan_in_words(dataset.parameters),
        model=model,
        files=len(dataset.files),
        counts={name: sums[name] for name in _COUNTS},
        totals=totals,
        pixels=pixels,
        bytes=sums["bytes"],
        index_bytes=sum((file.index or {}).get("bytes", 0) for file in dataset.files),
        picture_bytes=sums["picture_bytes"],
        stream_bytes=sums["stream_bytes"],
        header_bytes=header_bytes,
        layers=[
            LayerFacts(number, size, per_header + prefix)
            for number, (size, prefix) in enumerate(zip(layers, prefixes, strict=True), 1)
        ],
        other_bytes=others,
        inputs=inputs,
        failed=dataset.failed,
        problems=[*_problems(dataset.files, sizes, read), *_model_problems(model), *damage],
        unfinished=[*_unfinished(dataset.files, sizes), *_to_be_deleted(dataset, deletions)],
        records_read=sum(record is not None for record in read.values()),
        # plan, the folder of manifests, manifest; model, its card; five folders
        requests=3 + 2 + 5 + len(chosen) + lists,
    )


def _spread(files: Sequence[DataFile], most: int | None) -> list[DataFile]:
    """At most ``most`` files, evenly from the first to the last."""
    if most is None or len(files) <= most:
        return list(files)
    return [files[number * len(files) // most] for number in range(most)]


def _records(
    store: Store, files: Sequence[DataFile], there: Mapping[str, int]
) -> dict[str, dict[str, Any] | None]:
    """The commit record of each file by name, None if it is missing or damaged."""
    paths = {record_path(file.name): file.name for file in files}
    wanted = [path for path in paths if path.rpartition("/")[2] in there]
    found: dict[str, dict[str, Any] | None] = dict.fromkeys(paths.values())
    for path, data in store.read_many(wanted, MAX_RECORD_BYTES):
        try:
            name = paths[path]
            base, generation = split_generation(name)
            found[name] = parse_json(data) | {"name": name, "base": base, "generation": generation}
        except ValueError:
            continue
    return found


def _columns(
    records: Sequence[Mapping[str, Any]], files: Sequence[DataFile]
) -> tuple[Counter[str], float]:
    """Bytes of each column in the data files of ``records``, and the factor to all files."""
    columns: Counter[str] = Counter()
    for record in records:
        columns.update(record.get("column_bytes") or {})
    known = sum(record.get("bytes", 0) for record in records)
    total = sum(file.bytes for file in files)
    return columns, total / known if known else 0.0


def _model(dataset: Dataset) -> ModelFacts:
    store, parameters = dataset.store, dataset.parameters
    there = store.sizes(model_folder(dataset.model_id))
    card: dict[str, Any] = {}
    if zoo.CARD_FILE in there:
        try:
            card = parse_json(store.read(card_path(dataset.model_id), MAX_RECORD_BYTES))
        except ValueError:
            card = {}
    return ModelFacts(
        dataset.model_id,
        str(parameters.get("codec", "")),
        int(parameters.get("model_layers", dataset.num_layers)),
        name=zoo.shipped_model(dataset.model_id) or "",
        recipe=str(card.get("recipe", "")),
        about=str(card.get("about", "")),
        present=zoo.MODEL_FILE in there,
    )


def _deletions(store: Store) -> tuple[Deletions | None, int, list[str]]:
    """The deletions, the number of files that list them, and the problems of these files."""
    deletions = Deletions(store)
    try:
        return deletions.read(), deletions.files, []
    except DamagedDeletionError as error:
        return None, 0, [f"{error.path} is damaged: {RESTORE}"]


# -- health ---------------------------------------------------------------------------------------


def _problems(
    files: Sequence[DataFile],
    sizes: Mapping[str, Mapping[str, int]],
    records: Mapping[str, Mapping[str, Any] | None],
) -> Iterator[str]:
    """Where the manifest, the records and the sizes of files contradict each other."""
    for file in files:
        places = [(data_path(file.name), DATA, file.bytes)]
        if file.index is not None:
            places.append((index_path(file.name), INDEX, file.index["bytes"]))
        for path, folder, nbytes in places:
            found = sizes[folder].get(path.rpartition("/")[2])
            if found is None:
                yield f"{path} is gone"
            elif found != nbytes:
                yield f"{path} has {found} bytes, and had {nbytes} when it was written"
        if record_path(file.name).rpartition("/")[2] not in sizes[COMMITS]:
            yield f"{record_path(file.name)} is gone"
        elif file.name in records and not _agrees(file, records[file.name]):
            yield f"{record_path(file.name)} contradicts the manifest"


def _agrees(file: DataFile, record: Mapping[str, Any] | None) -> bool:
    try:
        return record is not None and entry_of(record) == file.record
    except (LookupError, TypeError):
        return False


def _model_problems(model: ModelFacts) -> list[str]:
    return [] if model.present else [f"{model_folder(model.id)}/{zoo.MODEL_FILE} is gone"]


def _unfinished(files: Sequence[DataFile], sizes: Mapping[str, Mapping[str, int]]) -> list[str]:
    """What jobs have started and not finished, in words."""
    listed = dict(split_generation(file.name) for file in files)
    recorded = (
        split_generation(name.removesuffix(RECORD_SUFFIX))
        for name in sizes[COMMITS]
        if name.endswith(RECORD_SUFFIX)
    )
    newer = sum(generation > listed.get(base, -1) for base, generation in recorded)
    under_way = {name for name, _, _ in map(saved_rows, sizes[SAVED]) if name}
    words = []
    if newer:
        words.append(
            f"{plural(newer, 'data file')} newer than the manifest: run the job again to list them"
        )
    if under_way:
        words.append(f"rows of {plural(len(under_way), 'shard')} that a job has not finished yet")
    return words


def _to_be_deleted(dataset: Dataset, deletions: Deletions | None) -> list[str]:
    if deletions is None:
        return []
    every = (deletions.left(split_generation(file.name)[0], file.record) for file in dataset.files)
    count = sum(left for left in every if left > 0)
    words = (
        f"{plural(count, 'sample')} that a job has not deleted yet: run strata delete again with "
        "the same keys"
    )
    return [words] if count else []
