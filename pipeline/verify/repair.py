"""Repairs a damaged dataset from its sources, from its own files and from the shipped models.

No data file is overwritten or removed: its shard's next generation replaces it in the next
manifest. A damaged record or model is removed and written again.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from codec.errors import StrataError
from codec.models import zoo
from codec.models.heads import head_files

from ..compress.job import run_shards
from ..compress.worker import ShardJob
from ..dataset.deletions import Deletions
from ..dataset.facts import inspect_file
from ..dataset.index_writer import index_table, publish_index
from ..dataset.layout import (
    COMMITS,
    DATA,
    PARTS,
    PLAN_NAME,
    RECORD_SUFFIX,
    SUFFIX,
    data_path,
    head_paths,
    record_path,
    shard_name,
    split_generation,
)
from ..dataset.ledger import Ledger
from ..dataset.manifest import latest_manifest
from ..dataset.manifest_writer import NewerManifestError, publish_manifest
from ..dataset.models import publish_model
from ..dataset.parquet import ParquetFile
from ..dataset.part_lists import part_in
from ..dataset.plan import MERGED, Plan, fingerprints_of
from ..dataset.records import Records, entry_of
from ..dataset.rows import file_sha256, iter_rows, read_metadata
from ..dataset.totals import COUNTS, TALLIES
from ..reader.dataset import DataFile, Dataset
from ..running.job import RunningOptions, Stop
from ..running.progress.events import EventLog
from ..running.progress.summary import Summary
from ..sources.base import Shard, is_part
from ..sources.folder import changed_files, first_few
from ..sources.listing import expand_inputs, file_of
from ..stores.reasons import describe
from ..stores.store import Store, scratch_folder
from ..stores.urls import place_of
from .checks import (
    Damage,
    in_threads,
    manifest_of_records,
    read_manifest,
)

STOPPED = "the job was stopped before this was repaired: run it again"
# Fields of a record that follow from its data file.
_FROM_FILE = ("sha256", "footer_bytes", "column_bytes", *COUNTS, *TALLIES)


def repair_model(store: Store, damage: Damage, model_id: str) -> None:
    """Replace the dataset's copy of its model with a shipped model of the same id."""
    shipped = {zoo.model_id(path): path for path in map(zoo.model_file, zoo.list_models())}
    if model_id not in shipped:
        damage.why_not = (
            f"no shipped model has this id: put a model file with the sha256 {model_id} there"
        )
        return
    store.remove(damage.path)
    publish_model(store, model_id, shipped[model_id])
    damage.repaired = True


def repair_head(store: Store, damage: Damage, model_id: str) -> str:
    """Replace a damaged reconstruction head by a shipped one, or remove it: streams need none.

    Returns a warning if it was removed.
    """
    shipped = head_files(zoo.WEIGHTS / zoo.MODEL_FILE, model_id)
    store.remove(damage.path)
    for decoder, file in shipped.items():
        if damage.path == head_paths(model_id, decoder)[0]:
            store.create_from(damage.path, file)
    damage.repaired = True
    if store.exists(damage.path):
        return ""
    return (
        f"warning: {damage.path} was removed, because no shipped head can replace it. Pictures are "
        "shown without it; put a copy of it there to have them as before"
    )


class Repair:
    """One repair of a dataset: records first, then data files, then the manifest."""

    def __init__(
        self,
        dataset: Dataset,
        source_options: Mapping[str, Any],
        source_hosts: Iterable[str] = (),
    ) -> None:
        self.dataset = dataset
        # A dataset must not choose where requests go: its author could be after credentials, or
        # after answers from machines that only this one can reach.
        self._trusted = {"", place_of(dataset.url), *map(place_of, source_hosts)}
        self.store = dataset.store
        self.ledger = Ledger(dataset.store, dataset.fingerprint)
        self.plan = Plan(PLAN_NAME, dataset.parameters)
        self.source_options = dict(source_options)
        self._replaced: dict[str, dict[str, Any]] = {}  # by the shard's name: the manifest's entry

    def correct(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Replace these files' entries in the next manifest; their records and footers agree."""
        for entry in entries:
            self._replaced[split_generation(entry["name"])[0]] = dict(entry)

    # -- records ----------------------------------------------------------------------------------

    def records(self, damaged: Sequence[Damage], scratch: str | None, stop: Stop) -> list[Damage]:
        """Write records again from their data files. Returns data files that are damaged too."""
        return _each(damaged, scratch, stop, self._record, "its data file could not be read")

    def _record(self, damage: Damage, folder: Path) -> list[Damage]:
        name = damage.path.removeprefix(f"{COMMITS}/").removesuffix(RECORD_SUFFIX)
        path = data_path(name)
        if damage.file is None and not self.store.exists(path):
            self.store.remove(damage.path)  # so that a compress job does the shard again
            damage.repaired = True
            return []
        with self.store.local(path, str(folder)) as local:
            return self._record_of(damage, name, local, folder)

    def _record_of(self, damage: Damage, name: str, local: Path, folder: Path) -> list[Damage]:
        try:
            facts = inspect_file(local, self.dataset.num_layers).to_json()
            metadata = read_metadata(ParquetFile(local), name)
        except (StrataError, OSError, ValueError) as error:
            return self._worse(damage, f"cannot be read: {describe(error)}")
        allowed = fingerprints_of(self.dataset.parameters, self.dataset.fingerprint)
        if metadata.get("fingerprint") not in allowed:
            return self._worse(damage, "belongs to an archive with other parameters")
        entry = damage.file.record if damage.file is not None else {}
        standing = self._standing(name)
        if standing is not None and _agrees(standing, facts):  # the manifest is wrong
            self.correct([entry_of(standing)])
            damage.repaired = True
            return []
        if entry and not _agrees(entry, facts):
            return self._worse(damage, "is not the file that the manifest lists")
        self.store.remove(damage.path)
        table = index_table(local, self.dataset.num_layers)
        index = publish_index(self.store, name, table, folder)
        record = {
            **entry,
            **facts,
            "source": metadata["source"],
            "model_id": metadata["model_id"],
            "index": index,
        }
        base, deletions = split_generation(name)[0], Deletions(self.store).read()
        rows = iter_rows(ParquetFile(local), ["key"])
        still_there = sum(deletions.deletes(base, row["key"]) for row in rows)
        if deleted := deletions.samples(base) - still_there:
            record["deleted"] = deleted
        record.pop("path", None)
        record = self.ledger.commit(name, record)
        if entry:
            self.correct([entry_of(record)])
        damage.repaired = True
        return []

    def _worse(self, damage: Damage, problem: str) -> list[Damage]:
        if damage.file is None:
            damage.why_not = (
                f"no manifest lists its data file, which {problem}: remove both, and run "
                "strata compress again"
            )
            return []
        url = damage.file.record["source"]["url"]
        return [Damage("data", damage.file.path, [problem], url, damage.file)]

    def _standing(self, name: str) -> dict[str, Any] | None:
        try:
            return self.ledger.read(name)
        except StrataError:
            return None

    # -- indexes ----------------------------------------------------------------------------------

    def indexes(self, damaged: Sequence[Damage], scratch: str | None, stop: Stop) -> list[Damage]:
        """Write indexes again from their data files. Returns data files that are damaged too."""
        return _each(damaged, scratch, stop, self._index, "it could not be written again")

    def _index(self, damage: Damage, folder: Path) -> list[Damage]:
        assert damage.file is not None
        file = damage.file
        with self.store.local(file.path, str(folder)) as local:
            if file_sha256(local) != file.record["sha256"]:
                return self._worse(damage, "is not the file that was written")
            table = index_table(local, self.dataset.num_layers)
            index = publish_index(self.store, file.name, table, folder)
        record = self.ledger.read(file.name)
        if record is not None and record.get("index") != index:
            self.store.remove(record_path(file.name))
            record = self.ledger.commit(file.name, {**record, "index": index})
        entry = entry_of(record or {**file.record, "index": index})
        if entry != file.record:
            self.correct([entry])
        damage.repaired = True
        return []

    # -- data files -------------------------------------------------------------------------------

    def data(
        self, damaged: Sequence[Damage], options: RunningOptions, log: EventLog, stop: Stop
    ) -> Summary:
        """Encode the shards of damaged files again, if their sources have not changed."""
        summary = Summary("repaired", shards=len(damaged))
        highest = self._generations()
        jobs: dict[str, tuple[ShardJob, Damage]] = {}
        for damage, shard in zip(damaged, in_threads(self._source, damaged), strict=True):
            if isinstance(shard, str):
                damage.why_not = shard
                continue
            base = shard_name(shard, self.plan.fingerprint)
            jobs[base] = ShardJob(base, shard, highest[base] + 1), damage
        compressing = replace(
            options, input_options=self.source_options, output_options=options.input_options
        )
        todo = [job for job, _ in jobs.values()]
        for outcome in run_shards(
            todo, self.plan, self.dataset.url, compressing, summary, log, stop
        ):
            _, damage = jobs.pop(outcome.task.name)
            if outcome.result is None:
                damage.why_not = outcome.failure
            else:
                result = {k: v for k, v in outcome.result.items() if k != "found"}
                self.correct([entry_of(result)])
                fewer = damage.file.ok - result["ok"] if damage.file is not None else 0
                if fewer > 0:
                    summary.notes.append(f"warning: {damage.path} had {fewer} more pictures")
        for _, damage in jobs.values():
            damage.why_not = STOPPED
        return summary

    def _source(self, damage: Damage) -> Shard | str:
        """The shard of a damaged file, or why it cannot be encoded again."""
        assert damage.file is not None
        then = damage.file.record["source"]
        if "truncated" in self.dataset.parameters:  # by strata decode --format strata
            return f"it was copied from {then['url']}: remove it, and run strata decode again"
        if MERGED in self.dataset.parameters:
            return (
                "its archive was merged from others: remove it, and run strata merge again with "
                "the archive that has it"
            )
        if (place := place_of(then["url"])) not in self._trusted:
            return (
                f"its source lies at {place}, which only the archive names, so no request is sent "
                f"there: add --source-hosts {place} if you trust it with a request and with "
                "--source-options"
            )
        if is_part(then["url"]):
            return self._part(damage.file, then)
        try:
            found = expand_inputs([then["url"]], self.source_options)
        except StrataError as error:
            return f"its source cannot be read: {error}; put it back, and repair again"
        own = file_of(then["url"])
        shard = next((shard for shard in found if file_of(shard.url) == own), None)
        if shard is None:
            return f"{then['url']}: its source is gone; put it back, and repair again"
        shard = replace(shard, url=then["url"])  # the spelling of a path may differ
        if (shard.size, shard.etag) != (then["size"], then["etag"]):
            return (
                f"{shard.url}: its source has changed since ({then['size']} bytes and version "
                f"{then['etag']!r} then, {shard.size} and {shard.etag!r} now); put the old file "
                "back, and repair again"
            )
        base, _ = split_generation(damage.file.name)
        if shard_name(shard, self.plan.fingerprint) != base:
            return f"{damage.file.name} is not this plan's name for {shard.url}"
        return shard

    def _part(self, file: DataFile, then: Mapping[str, Any]) -> Shard | str:
        """A part of a folder, or why it cannot be encoded again."""
        url = then["url"]
        try:
            shard = part_in(self.store, url, then["etag"])
            if shard is None:
                return f"no list in {self.store.url}/{PARTS} names the files of {url}: put it back"
            base, deletions = split_generation(file.name)[0], Deletions(self.store).read()
            changed = changed_files(
                replace(shard, url=url),
                self.source_options,
                lambda key: not deletions.deletes(base, key),
            )
        except StrataError as error:
            return f"its files cannot be read: {error}; put them back, and repair again"
        if changed:
            return f"files of {url} have changed: {first_few(changed)}; put the old files back"
        shard = replace(shard, url=url)
        if shard_name(shard, self.plan.fingerprint) != split_generation(file.name)[0]:
            return f"{file.name} is not this plan's name for {url}"
        return shard

    def _generations(self) -> dict[str, int]:
        """The highest generation of each shard, from the manifest and from files and records."""
        highest: dict[str, int] = {}
        names = [file.name for file in self.dataset.files]
        for folder, suffix in ((DATA, SUFFIX), (COMMITS, RECORD_SUFFIX)):
            names += [file.removesuffix(suffix) for file in self.store.sizes(folder)]
        for base, generation in map(split_generation, names):
            highest[base] = max(generation, highest.get(base, 0))
        return highest

    # -- manifest ---------------------------------------------------------------------------------

    def publish(self) -> int:
        """Write the next manifest, with the repaired files. Returns its number.

        All other entries come from the newest manifest, because another job may have added files
        meanwhile. If that job publishes a manifest first, this starts again.
        """
        plan = {"fingerprint": self.plan.fingerprint}
        while True:
            number = latest_manifest(self.store)
            manifest, _ = read_manifest(self.store, plan, number)
            if manifest is None:
                manifest, _ = manifest_of_records(self.store, plan)
            records = Records(self.plan.fingerprint)
            records.recorded = manifest.recorded
            for file in manifest.files:
                records.put(split_generation(file.name)[0], file.entry)
            for base, entry in self._replaced.items():
                if base not in records or records[base]["generation"] <= entry["generation"]:
                    records[base] = entry
            with contextlib.suppress(NewerManifestError):
                return publish_manifest(
                    self.store, self.plan, records, manifest.failed, number, check_parts=True
                )

    @property
    def changed(self) -> bool:
        """Whether the next manifest may differ."""
        return bool(self._replaced)


def _agrees(record: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    return all(record[key] == facts[key] for key in _FROM_FILE if key in record)


def _each(
    damaged: Sequence[Damage],
    scratch: str | None,
    stop: Stop,
    make: Callable[[Damage, Path], list[Damage]],
    failure: str,
) -> list[Damage]:
    """Repair each with ``make``. Returns the further damage that it finds. An error becomes the
    damage's ``why_not``.
    """
    worse = []
    with scratch_folder(scratch) as folder:
        for damage in damaged:
            if stop():
                damage.why_not = STOPPED
                continue
            try:
                worse += make(damage, folder)
            except Exception as error:  # stores have exceptions of many kinds
                damage.why_not = f"{failure}: {describe(error)}"
    return worse
