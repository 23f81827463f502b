"""Commit records as drivers and manifests hold them: small, and packed.

A record is what a worker says of a data file (``facts.py``). A million of them take a gigabyte as
JSON, and fifteen as dictionaries, so a driver keeps them as JSON.
"""

import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any

from .layout import data_path

KEPT_PROBLEMS = 5  # of each record, in memory and in manifests
# What readers need to find a key in an index.
_OF_AN_INDEX = ("path", "bytes", "footer_bytes", "footer_crc32", "key_min", "key_max")


def list_command(url: str) -> str:
    """The command that lists the bad samples of an archive, of which records keep a few."""
    return f"strata info {shlex.quote(url)} --bad"


def to_json(value: Any, compact: bool = False) -> bytes:
    """JSON in ASCII with sorted keys, ending in a newline: the same for the same value."""
    style: dict[str, Any] = {"separators": (",", ":")} if compact else {"indent": 1}
    return json.dumps(value, sort_keys=True, ensure_ascii=True, **style).encode() + b"\n"


def slim(record: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a record that the driver and the manifest need."""
    kept = {key: value for key, value in record.items() if key != "column_bytes"}
    if kept.get("index"):
        kept["index"] = {name: kept["index"][name] for name in _OF_AN_INDEX}
    if "problems" in kept:
        kept["problems"] = [list(problem) for problem in kept["problems"][:KEPT_PROBLEMS]]
    return kept


def entry_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest's entry for a record's file. The fingerprint is the manifest's own."""
    kept = {key: value for key, value in slim(record).items() if key != "fingerprint"}
    return {**kept, "path": data_path(record["name"])}


class Records(MutableMapping[str, dict[str, Any]]):
    """Records by name, as ``slim`` leaves them. What is read is a copy.

    Attributes:
        fingerprint: that of the plan, which all of these have.
        recorded: all that was recorded before this time of the store's clock is among them, None if
            that is not known.
    """

    def __init__(self, fingerprint: str, items: Mapping[str, Mapping[str, Any]] = {}) -> None:
        self.fingerprint = fingerprint
        self.recorded: float | None = None
        self._lines: dict[str, bytes] = {}
        for name, record in items.items():
            self[name] = dict(record)

    def __getitem__(self, name: str) -> dict[str, Any]:
        return {**json.loads(self._lines[name]), "fingerprint": self.fingerprint}

    def __setitem__(self, name: str, record: Mapping[str, Any]) -> None:
        kept = {key: value for key, value in slim(record).items() if key != "fingerprint"}
        self._lines[name] = to_json(kept, compact=True)[:-1]

    def __delitem__(self, name: str) -> None:
        del self._lines[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._lines)

    def __len__(self) -> int:
        return len(self._lines)

    def __contains__(self, name: object) -> bool:
        return name in self._lines

    def clear(self) -> None:
        self._lines.clear()

    def __repr__(self) -> str:
        return f"Records({len(self)} of {self.fingerprint[:8]})"

    def put(self, name: str, line: bytes) -> None:
        """Take a record as JSON in one line: a manifest's entry."""
        self._lines[name] = line

    def named(self, names: Iterable[tuple[str, str]]) -> "Records":
        """Some of them under other names: pairs of the new name and the one here."""
        chosen = Records(self.fingerprint)
        chosen.recorded = self.recorded
        chosen._lines = {new: self._lines[name] for new, name in names}
        return chosen

    def where(self, wanted: Callable[[dict[str, Any]], bool]) -> "Records":
        """Those for which ``wanted`` is true."""
        return self.named((name, name) for name in self if wanted(self[name]))
