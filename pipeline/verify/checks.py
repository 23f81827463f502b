"""Checks the plan, the manifest and the records of a dataset.

Every fault becomes a ``Damage``. A store that does not answer is no damage: it raises.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from ..dataset.deletions import RESTORE, DamagedDeletionError, Deletions
from ..dataset.layout import (
    COMMITS,
    DATA,
    DELETED,
    FOLDERS,
    FORMAT_VERSION,
    PARTS,
    PLAN_NAME,
    SHARD_NAME,
    manifest_name,
    names_in,
    record_path,
    split_generation,
)
from ..dataset.ledger import Ledger
from ..dataset.manifest import Manifest, latest_manifest
from ..dataset.manifest_writer import files_of
from ..dataset.part_lists import read_part_lists, unlisted
from ..dataset.plan import MERGED, PlanMismatchError, fingerprint
from ..dataset.records import Records, entry_of
from ..dataset.rows import SCHEMA_VERSION
from ..dataset.totals import totals_of
from ..dataset.untrusted import MAX_MANIFEST_BYTES, MAX_PLAN_BYTES, check_record, parse_json
from ..reader.dataset import DataFile, Dataset, DatasetError
from ..sources.base import is_part
from ..stores.filesystems import CONNECTIONS
from ..stores.reasons import describe
from ..stores.store import StorageError, Store
from ..stores.threads import ahead

Kind = Literal["plan", "manifest", "model", "head", "parts", "record", "data", "index", "deletion"]
LISTED_PROBLEMS = 20


@dataclass
class Damage:
    """A damaged file of a dataset.

    ``source`` is the URL of its shard, if it belongs to one. ``problems`` are the first twenty of
    ``problem_count``. A repair sets ``repaired``, or else ``why_not``, which says what to do.
    """

    kind: Kind
    path: str
    problems: list[str]
    source: str = ""
    file: DataFile | None = field(default=None, repr=False)
    problem_count: int = 0
    repaired: bool = False
    why_not: str = ""

    def __post_init__(self) -> None:
        self.problem_count = self.problem_count or len(self.problems)
        self.problems = self.problems[:LISTED_PROBLEMS]

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "file"}


# -- plan and manifest ----------------------------------------------------------------------------


def read_plan(store: Store) -> tuple[dict[str, Any], str]:
    """The plan, or what is wrong with it.

    Raises DatasetError if there is no dataset, or one that this release cannot read.
    """
    try:
        data = store.read(PLAN_NAME, MAX_PLAN_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        if latest_manifest(store):
            return {}, "is gone"
        raise DatasetError(
            f"{store.url}: there is no archive here ({PLAN_NAME} is missing)"
        ) from None
    try:
        plan = parse_json(data)
        parameters, named = plan["parameters"], plan["fingerprint"]
        versions = parameters["format"], parameters.get("schema", SCHEMA_VERSION)
        _ = parameters["layers"], parameters["model_id"]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return {}, f"is not a plan: {describe(error)}"
    if versions != (FORMAT_VERSION, SCHEMA_VERSION) and fingerprint(parameters) == named:
        raise DatasetError(
            f"{store.url}: has format {versions[0]!r} and schema {versions[1]!r}, this release "
            f"checks {FORMAT_VERSION} and {SCHEMA_VERSION}: check it with the release that wrote it"
        )
    if fingerprint(parameters) != named:
        return {}, "its parameters have another fingerprint than it says"
    return plan, ""


def read_manifest(
    store: Store, plan: Mapping[str, Any], number: int
) -> tuple[Manifest | None, list[str]]:
    """A manifest and what is wrong with it; None if its list of files cannot be trusted."""
    bases: Counter[str] = Counter()

    def records(manifest: Manifest) -> Iterator[dict[str, Any]]:
        for file in manifest.files:
            bases[split_generation(file.name)[0]] += 1
            check_record(record := file.record)
            yield record

    try:
        told = parse_json(store.read(manifest_name(number), MAX_MANIFEST_BYTES))
        manifest = Manifest.of(told, number, store)
        totals = totals_of(records(manifest))
        differing = [key for key, total in totals.items() if manifest.totals.get(key) != total]
    except FileNotFoundError:
        return None, ["is gone"]
    except DatasetError as error:
        return None, [f"cannot be read: {error}"]
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        return None, [f"is not a manifest: {describe(error)}"]
    if manifest.fingerprint != plan["fingerprint"]:
        return None, ["belongs to a job with other parameters"]
    if twice := [base for base, count in bases.items() if count > 1]:
        return None, [f"lists {name} twice" for name in twice]
    problems = [
        f"its totals say {key} {manifest.totals.get(key)}, its files add up to {totals[key]}"
        for key in differing
    ]
    return manifest, problems


def manifest_of_records(store: Store, plan: Mapping[str, Any]) -> tuple[Manifest, list[Damage]]:
    """A replacement for a newest manifest that cannot be read, and the damaged records.

    It lists the newest generation of every shard that has a record, and the files that only the
    last readable manifest lists. Any other data file has lost its record.
    """
    newest = Records(plan["fingerprint"])
    failed: list[dict[str, str]] = []
    for number in range(latest_manifest(store) - 1, 0, -1):
        older, _ = read_manifest(store, plan, number)
        if older is not None:
            for file in older.files:
                newest.put(split_generation(file.name)[0], file.entry)
            failed = older.failed
            break
    damage = []
    ledger = Ledger(store, plan["fingerprint"])
    names = names_in(store, COMMITS)
    for name, record, problem in in_threads(partial(read_record, ledger), names):
        if record is None:
            damage.append(Damage("record", record_path(name), [problem]))
            continue
        known = newest.get(record["base"])
        if known is None or known["generation"] <= record["generation"]:
            newest[record["base"]] = entry_of(record)
    recorded = frozenset(names)
    for name in names_in(store, DATA):
        base, generation = split_generation(name)
        known = newest.get(base)
        if name not in recorded and (known is None or known["generation"] < generation):
            damage.append(Damage("record", record_path(name), ["is gone"]))
    files = files_of(newest)
    totals = totals_of(file.record for file in files)
    return Manifest(0, files, totals, failed, plan["fingerprint"]), damage


# -- records --------------------------------------------------------------------------------------


def in_threads(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """``map`` for requests to a store: many at once, results in order, few of them in memory."""
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        yield from ahead(pool, function, items, lambda: 4 * CONNECTIONS)


def read_record(ledger: Ledger, name: str) -> tuple[str, dict[str, Any] | None, str]:
    """A record's name, the record or None, and its problem or ''."""
    try:
        record = ledger.read(name)
        if record is None:
            return name, None, "is gone"
        check_record(record)
    except PlanMismatchError:
        return name, None, "belongs to a job with other parameters"
    except (StorageError, KeyError, TypeError, ValueError) as error:
        return name, None, f"is not a commit record: {describe(error.__cause__ or error)}"
    return name, record, ""


def unlisted_records(dataset: Dataset) -> tuple[list[str], list[Damage]]:
    """The names of files with records newer than the manifest, and damaged records."""
    listed = dict(split_generation(file.name) for file in dataset.files)
    others = [name for name in names_in(dataset.store, COMMITS) if not _is_listed(name, listed)]
    newer, damage = [], []
    ledger = Ledger(dataset.store, dataset.fingerprint)
    for name, record, problem in in_threads(partial(read_record, ledger), others):
        if record is None:
            damage.append(Damage("record", record_path(name), [problem]))
        elif record["generation"] > listed.get(record["base"], -1):
            newer.append(name)
    return newer, damage


def deletion_damage(dataset: Dataset) -> list[Damage]:
    """Damage of the files that list deleted samples."""
    try:
        deletions = Deletions(dataset.store).read()
    except DamagedDeletionError as error:
        return [Damage("deletion", error.path, ["is damaged"], why_not=RESTORE)]
    lacking = [
        f"does not say which samples of {file.path} were deleted"
        for file in dataset.files
        if deletions.left(split_generation(file.name)[0], file.record) < 0
    ]
    return [Damage("deletion", DELETED, lacking, why_not=RESTORE)] if lacking else []


def part_lists(dataset: Dataset) -> list[Damage]:
    """Damage of the lists of parts from which the data files were made."""
    sources = [file.record["source"] for file in dataset.files]
    copied = MERGED in dataset.parameters or "truncated" in dataset.parameters
    if copied or not any(is_part(source["url"]) for source in sources):
        return []  # copies and merged archives have no lists
    try:
        lost = unlisted(read_part_lists(dataset.store), sources)
        problems = [f"no list names the files of {url}" for url in lost]
    except StorageError as error:
        problems = [str(error)]
    why = "put the lists back: without them, nothing can be added or encoded again from the folder"
    return [Damage("parts", PARTS, problems, why_not=why)] if problems else []


def foreign_files(dataset: Dataset) -> list[str]:
    """Files in the folders of data, indexes and records whose names Strata would not give."""
    return [
        f"{folder}/{file}"
        for folder, suffix in FOLDERS
        for file in sorted(dataset.store.sizes(folder))
        if not file.startswith(".")
        and not (file.endswith(suffix) and SHARD_NAME.fullmatch(file.removesuffix(suffix)))
    ]


def _is_listed(name: str, listed: Mapping[str, int]) -> bool:
    base, generation = split_generation(name)
    return listed.get(base) == generation
