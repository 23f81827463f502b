"""The plan of a job: the parameters that its output depends on, written before anything else."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from codec.errors import StrataError

from ..stores.reasons import describe
from ..stores.store import Store
from .records import to_json
from .untrusted import MAX_PLAN_BYTES, parse_json

MERGED = "merged"  # in a plan: the plans of the archives that it was merged from
MAX_SHOWN = 500  # characters of a parameter in a message


class PlanMismatchError(StrataError):
    """The output belongs to a job with other parameters or other inputs; the message says which."""


def fingerprint(parameters: Mapping[str, Any]) -> str:
    """The hash of a job's parameters, which are everything that its output depends on."""
    return hashlib.sha256(to_json(dict(parameters))).hexdigest()


def plans_of(parameters: Mapping[str, Any], own: str) -> dict[str, dict[str, Any]]:
    """The plans that data files of a dataset may be from, by their fingerprints.

    ``parameters`` and ``own`` fingerprint are the dataset's.
    """
    merged = parameters.get(MERGED)
    return dict(merged) if isinstance(merged, Mapping) else {own: dict(parameters)}


def fingerprints_of(parameters: Mapping[str, Any], own: str) -> set[str]:
    """Fingerprints that data files of a dataset may name; see ``plans_of``."""
    return {own, *plans_of(parameters, own)}


@dataclass(frozen=True)
class Plan:
    """The parameters of a job, and the name of their file (``dataset.json``)."""

    name: str
    parameters: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.parameters)

    def establish(self, store: Store) -> bool:
        """Write the plan, or find the same one there. Returns whether the store is create-only.

        Raises PlanMismatchError with the parameters that differ, OSError if nothing can be written.
        """
        written = {"parameters": self.parameters, "fingerprint": self.fingerprint}
        if not store.create(self.name, to_json(written)):
            self.check(store)
        return store.refuses_overwriting(self.name)

    def check(self, store: Store) -> None:
        """Compare with the plan in the store, if there is one. Raises PlanMismatchError."""
        try:
            present = parse_json(store.read(self.name, MAX_PLAN_BYTES))
            theirs = dict(present["parameters"])
        except (FileNotFoundError, NotADirectoryError):
            return
        except (ValueError, TypeError, KeyError) as error:
            raise PlanMismatchError(
                f"{store.url}/{self.name} is not a plan: {describe(error)}"
            ) from error
        differences = [
            f"{name} is {_short(theirs.get(name))} there and {_short(self.parameters.get(name))} "
            "here"
            for name in sorted({*theirs, *self.parameters})
            if theirs.get(name) != self.parameters.get(name)
        ]
        if differences or present.get("fingerprint") != self.fingerprint:
            raise PlanMismatchError(
                f"{store.url} was started with other parameters: {'; '.join(differences)}. "
                "Choose another output, or the same parameters to resume."
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
