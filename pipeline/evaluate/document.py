"""Tables and plots inside of a document that people write: between its words, in marked places.

    <!-- kodak: uqdm: PSNR, dB, beside others -->
    what is here is made anew
    <!-- end -->

The first word says of which evaluation, the rest what: a table by its title in ``results.md``;
``about``, what was measured with what; or ``plot psnr 0.05-2``, with the rates it shows. Plots go
into the folder ``results`` beside the document, with all figures as JSON.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codec.errors import StrataError

from .figures import Evaluation
from .plots import ALL_RATES, LABELS, plot_file
from .report import about
from .tables import tables

FOLDER = "results"  # beside the document
_PLACE = re.compile(
    r"^<!-- (?P<of>[\w-]+): (?P<what>.+?) -->\n(?P<old>.*?)^<!-- end -->$", re.M | re.S
)
_PLOT = re.compile(r"plot (\w+)(?: ([\d.]+)-([\d.]+))?$")
_NOT_KEPT = ("nodes", "speed")
# A document is about the codecs, not about who asked for it when and on which machine.
_ABOUT = ("command", "pictures", "model", "earlier", "versions")


class DocumentError(StrataError):
    """A document that cannot be filled."""


@dataclass(frozen=True)
class Document:
    """A Markdown file with places for the figures of the evaluation ``section``."""

    path: Path
    section: str

    def check(self) -> None:
        """Raises DocumentError where the file is not there, or has no such place."""
        try:
            text = self.path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise DocumentError(f"--markdown {self.path}: cannot be read: {error}") from error
        sections = {place["of"]: None for place in _PLACE.finditer(text)}
        if self.section not in sections:
            raise DocumentError(
                f"--markdown {self.path}: it has no place for {self.section!r}, which would begin "
                f"with <!-- {self.section}: ... --> and end with <!-- end -->; it has places for "
                f"{', '.join(sections) or 'nothing'} (--section chooses)"
            )
        for place in _PLACE.finditer(text):
            plot = place["what"].startswith("plot ")
            match = _PLOT.match(place["what"])
            if plot and (match is None or match[1] not in LABELS):
                raise DocumentError(
                    f"--markdown {self.path}: <!-- {place['of']}: {place['what']} --> should be "
                    f"plot METRIC or plot METRIC LOW-HIGH, with one of {', '.join(LABELS)}"
                )

    def fill(self, found: Evaluation, reported: Mapping[str, Any]) -> list[str]:
        """Fill its places again. Returns notes on those that stay, because there are no figures."""
        made = {table.title: table.body() for table in tables(found, reported["bd_rate"]["anchor"])}
        made["about"] = "".join(
            f"- {name}: {_code(name, value)}\n"
            for name, value in about(dict(reported))
            if name.split()[0] in _ABOUT
        )
        figures = {name: value for name, value in reported.items() if name not in _NOT_KEPT}
        self._keep(f"{self.section}.json", json.dumps(figures, separators=(",", ":")) + "\n")
        return self.renew(
            lambda what: self._plot(found, what) if what.startswith("plot ") else made.get(what, "")
        )

    def _keep(self, name: str, text: str) -> None:
        folder = self.path.parent / FOLDER
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(text)

    def renew(self, make: Callable[[str], str]) -> list[str]:
        """Replace what stands in its places. Those that ``make`` has nothing for stay, and are
        returned in words."""
        notes = []

        def one(place: re.Match[str]) -> str:
            what = place["what"]
            if place["of"] != self.section:
                return place[0]
            text = make(what)
            if not text:
                notes.append(
                    f"{self.path}: {self.section}: {what}: left as it was, nothing to show"
                )
                return place[0]
            return f"<!-- {place['of']}: {what} -->\n{text}<!-- end -->"

        self.path.write_text(_PLACE.sub(one, self.path.read_text()))
        return notes

    def _plot(self, found: Evaluation, what: str) -> str:
        match = _PLOT.match(what)
        assert match is not None
        metric, low, high = match.groups()
        text = plot_file(found, metric, (float(low), float(high)) if low else ALL_RATES)
        if not text:
            return ""
        name = "-".join([self.section, metric, *filter(None, [low, high])]) + ".svg"
        self._keep(name, text)
        return f"![{self.section}: {LABELS[metric]}, over bits per pixel]({FOLDER}/{name})\n"


def _code(name: str, value: str) -> str:
    return f"`{value}`" if name == "command" else value
