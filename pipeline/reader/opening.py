"""The plan and the manifest of a dataset: that there is one, what it is, and what is in it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..dataset.data_file import DataFile, DatasetError
from ..dataset.layout import PLAN_NAME, manifest_name
from ..dataset.ledger import FORMAT_VERSION, latest_manifest
from ..dataset.untrusted import MAX_MANIFEST_BYTES, MAX_PLAN_BYTES, check_plan, parse_json
from ..stores.passing import may_pass
from ..stores.reasons import describe
from ..stores.store import Store, storage_errors
from ..stores.urls import refuse_secrets

_CANNOT = "cannot be opened as a dataset"


def open_plan(url: str, options: Mapping[str, Any] | None = None) -> tuple[Store, dict[str, Any]]:
    """The store at ``url``, and the plan in it. Raises DatasetError where there is none to read."""
    refuse_secrets(url)
    try:
        store = Store(url, options)
        plan = parse_json(store.read(PLAN_NAME, MAX_PLAN_BYTES))
        version = plan["parameters"].get("format")
        if type(plan["fingerprint"]) is not str:
            raise ValueError("its fingerprint is not text")
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        message = f"{url}: {PLAN_NAME} is not the plan of a dataset ({describe(error)})"
        raise DatasetError(message) from error
    except FileNotFoundError as error:
        raise DatasetError(f"{url}: there is no dataset here ({PLAN_NAME} is missing)") from error
    except Exception as error:  # stores have exceptions of many kinds
        message = f"{url}: {_CANNOT}: {error}"
        raise DatasetError(message, passing=may_pass(error)) from error
    if version != FORMAT_VERSION:
        raise DatasetError(f"{url}: has format {version!r}, this release reads {FORMAT_VERSION}")
    try:
        check_plan(plan["parameters"])
    except (ValueError, TypeError, LookupError) as error:
        why = str(error) if type(error) is ValueError else f"is damaged ({describe(error)})"
        raise DatasetError(f"{url}: {PLAN_NAME} {why}") from error
    return store, plan


@dataclass(frozen=True)
class Manifest:
    """What a dataset has in it. ``failed`` are inputs (``url``, ``error``) that gave nothing."""

    number: int
    files: list[DataFile]
    totals: dict[str, int]
    failed: list[dict[str, str]]

    @classmethod
    def of(cls, listed: Mapping[str, Any], number: int = 0) -> "Manifest":
        """From its JSON. Raises ValueError, TypeError or LookupError for an invalid one."""
        files = [DataFile.of(entry) for entry in listed["files"]]
        return cls(number, files, listed["totals"], listed.get("failed", []))


def open_manifest(store: Store, number: int | None = None) -> Manifest:
    """The newest manifest, or the one with this number.

    Raises DatasetError if there is none, if it is damaged, or of a newer format.
    """
    with storage_errors(store.url, _CANNOT):
        found = latest_manifest(store) if number is None else number
    if not found:
        raise DatasetError(
            f"{store.url}: the job that writes this dataset has not finished; run it again to "
            "resume"
        )
    name = manifest_name(found)
    with storage_errors(store.url, _CANNOT):
        try:
            raw = store.read(name, MAX_MANIFEST_BYTES)
        except FileNotFoundError as error:
            if number is None and latest_manifest(store) > found:  # a deletion has replaced it
                return open_manifest(store)
            raise DatasetError(f"{store.url}: there is no {name}") from error
    try:
        listed = parse_json(raw)
        version = listed["format"]
        if version == FORMAT_VERSION:
            return Manifest.of(listed, found)
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise DatasetError(
            f"{store.url}: {name} is damaged ({describe(error)}); strata verify --repair "
            "writes it again"
        ) from error
    raise DatasetError(
        f"{store.url}: {name} has format {version!r}, this release reads {FORMAT_VERSION}"
    )
