"""The plan of a dataset, ``dataset.json``: what says that there is one, and what it is."""

from collections.abc import Mapping
from typing import Any

from ..dataset.data_file import DatasetError
from ..dataset.layout import PLAN_NAME
from ..dataset.ledger import FORMAT_VERSION
from ..dataset.untrusted import MAX_PLAN_BYTES, check_plan, parse_json
from ..stores.passing import may_pass
from ..stores.reasons import describe
from ..stores.store import Store
from ..stores.urls import refuse_secrets


def open_plan(url: str, options: Mapping[str, Any] | None = None) -> tuple[Store, dict[str, Any]]:
    """The store at ``url``, and the plan in it. Raises DatasetError where there is none to read."""
    refuse_secrets(url)
    try:
        store = Store(url, options)
        plan = parse_json(store.read(PLAN_NAME, MAX_PLAN_BYTES))
        version = plan["parameters"].get("format")
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        message = f"{url}: {PLAN_NAME} is not the plan of a dataset ({describe(error)})"
        raise DatasetError(message) from error
    except FileNotFoundError as error:
        raise DatasetError(f"{url}: there is no dataset here ({PLAN_NAME} is missing)") from error
    except Exception as error:  # stores have exceptions of many kinds
        message = f"{url}: cannot be opened as a dataset: {error}"
        raise DatasetError(message, passing=may_pass(error)) from error
    if version != FORMAT_VERSION:
        raise DatasetError(f"{url}: has format {version!r}, this release reads {FORMAT_VERSION}")
    try:
        check_plan(plan["parameters"])
    except (ValueError, TypeError, LookupError) as error:
        why = str(error) if type(error) is ValueError else f"is damaged ({describe(error)})"
        raise DatasetError(f"{url}: {PLAN_NAME} {why}") from error
    return store, plan
