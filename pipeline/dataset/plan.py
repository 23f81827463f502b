"""The plan of a job: the parameters that its output depends on, written before anything else."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from codec.errors import StrataError
from codec.models.zoo import shipped_model

from ..stores.reasons import describe
from ..stores.store import Store
from .records import to_json
from .untrusted import MAX_PLAN_BYTES, parse_json

MERGED = "merged"  # in a plan: the plans of the archives that it was merged from
MAX_SHOWN = 500  # characters of a parameter in a message
# Names of parameters as options: those of other names, those inside of a parameter (with what
# their names end in), and those that are no options.
_NAMES = {
    "model_id": "--model",
    "dataset": "--input",
    "quality": "--image-quality",
    "keys_sha256": "--keys",
}
_INSIDE = {"codec_options": "", "columns": "_column"}
_NO_OPTIONS = ("schema", "model_layers", "dataset_fingerprint", "fingerprint", MERGED, "columns")
# If one of the first differs, the others follow.
_CAUSES = {"--lossless", "--target-quality", "--keep-original", "--model"}
_EFFECTS = {"--store-layers", "--codec", "model layers"}


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
        if MERGED in theirs and MERGED not in self.parameters:
            raise PlanMismatchError(
                f"{store.url} was merged from other archives, and nothing can be compressed into "
                "it: compress into one of those, or into a new archive, and run strata merge again"
            )
        differences = _differences(theirs, self.parameters)
        if differences or present.get("fingerprint") != self.fingerprint:
            raise PlanMismatchError(
                f"{store.url} was started with other parameters: {'; '.join(differences)}. "
                "Choose another output, or the same parameters to resume."
            )


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """What differs, by the names of the options."""
    kinds = ["a copy" if "truncated" in one else "no copy" for one in (theirs, ours)]
    if kinds[0] != kinds[1]:
        return [f"it is {kinds[0]} of an archive there and {kinds[1]} here"]
    there, here = _as_options(theirs), _as_options(ours)
    found = {}
    for name in sorted({*there, *here}):
        values = there.get(name), here.get(name)
        if values[0] != values[1] and any(one is not None and one is not False for one in values):
            words = [_words(name, one) for one in values]
            found[name] = f"{name} is {words[0]} there and {words[1]} here"
    if not _CAUSES.isdisjoint(found):
        return [text for name, text in found.items() if name not in _EFFECTS]
    return list(found.values())


def _as_options(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters by the names of the options that they come from."""
    copied = parameters.get("truncated")
    chosen = dict(copied if isinstance(copied, Mapping) else parameters)
    if "store_layers" in chosen:
        chosen.pop("layers", None)  # the number of columns, which follows from the options
    found: dict[str, Any] = {}
    for name, value in chosen.items():
        if name in _INSIDE and isinstance(value, Mapping):
            found |= {_option(f"{key}{_INSIDE[name]}"): one for key, one in value.items()}
        elif name in _NO_OPTIONS or (name == "format" and isinstance(value, int)):
            found[name.replace("_", " ")] = value
        else:
            found[_NAMES.get(name) or _option(name)] = value
    return found


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _words(name: str, value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "given" if value else "not given"
    text = str(value)
    if name == MERGED and isinstance(value, Mapping):
        text = "from the plans " + ", ".join(sorted(one[:8] for one in value))
    if re.fullmatch("[0-9a-f]{64}", text):
        text = (name == "--model" and shipped_model(text)) or text[:8]
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
