"""Opens a dataset: reads and checks its plan."""

import os
from collections.abc import Mapping
from typing import Any

from ..dataset.data_file import DatasetError
from ..dataset.layout import FORMAT_VERSION, PLAN_NAME
from ..dataset.untrusted import MAX_PLAN_BYTES, check_plan, parse_json
from ..stores.passing import may_pass
from ..stores.reasons import describe
from ..stores.store import Store
from ..stores.urls import refuse_secrets

_CANNOT = "cannot be opened as an archive"


def open_plan(url: str, options: Mapping[str, Any] | None = None) -> tuple[Store, dict[str, Any]]:
    """The store at ``url`` and the plan in it. Raises DatasetError if there is no readable plan."""
    refuse_secrets(url)
    try:
        store = Store(url, options)
        plan = parse_json(store.read(PLAN_NAME, MAX_PLAN_BYTES))
        version = plan["parameters"].get("format")
        if type(plan["fingerprint"]) is not str:
            raise ValueError("its fingerprint is not text")
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        message = f"{url}: {PLAN_NAME} is not the plan of an archive ({describe(error)})"
        raise DatasetError(message) from error
    except FileNotFoundError as error:
        if store.is_local and not os.path.exists(store.root):
            raise DatasetError(f"{url}: does not exist, so there is no archive here") from error
        raise DatasetError(f"{url}: there is no archive here ({PLAN_NAME} is missing)") from error
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
