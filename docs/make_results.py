#!/usr/bin/env python
"""Measure what docs/results.md and README.md show, and put it there.

    python docs/make_results.py --data FOLDER --reports reports

FOLDER holds tars whose names begin with kodak, mixed and px64. Of these every fourth, second and
eighth picture is measured, or every one with --all. Reports with all figures and pictures come into
the other folder. Begun again, it does only what is missing. Both documents have places:

    <!-- kodak: uqdm: verdict -->
    what is here is made anew
    <!-- end -->

The first word is the set; the rest a heading of its report's results.md, which may be followed by
"(table)" to leave out the words before the table, or "plot" and a figure.
"""

import argparse
import json
import re
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline import EvaluateOptions, evaluate_models

DOCS = Path(__file__).resolve().parent
DOCUMENTS = (DOCS / "results.md", DOCS.parent / "README.md")
RESULTS = DOCS / "results"
EVERY = {"kodak": 4, "mixed": 2, "px64": 8}  # pictures; a whole set takes hours on two cores
MODELS = ("uqdm", "cdc-small,prefixes=no")
# The documents are about the codecs, not about whose machine measured them.
NOT_TOLD = ("- command: ", "- data: ", "- machine: ")
NOT_KEPT = ("data", "machine", "nodes")
_PLACE = re.compile(r"^<!-- ([\w-]+): (.+?) -->\n(.*?)^<!-- end -->$", re.M | re.S)


def fill(document: Path, section: str, make: Callable[[str], str]) -> list[str]:
    """Replace what stands in the places of ``section``; return those that ``make`` has nothing for.

    These stay as they are.
    """
    left = []

    def one(place: re.Match[str]) -> str:
        of, what, _ = place.groups()
        if of != section:
            return place[0]
        text = make(what)
        if not text:
            left.append(f"{document.name}: {of}: {what}: nothing to show, left as it was")
            return place[0]
        return f"<!-- {of}: {what} -->\n{text.strip()}\n<!-- end -->"

    document.write_text(_PLACE.sub(one, document.read_text()))
    return left


def headed(markdown: str) -> dict[str, str]:
    """The parts of a report's results.md by their headings."""
    parts = re.split(r"^### (.+)\n", markdown, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def fill_from(report: Path, name: str) -> list[str]:
    """Put the figures of a report into the documents, and its plots and JSON beside them."""
    made = headed((report / "results.md").read_text())
    lines = made["about"].splitlines(keepends=True)
    made["about"] = "".join(line for line in lines if not line.startswith(NOT_TOLD))
    figures = json.loads((report / "report.json").read_text())
    kept = {key: value for key, value in figures.items() if key not in NOT_KEPT}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(kept, separators=(",", ":")) + "\n")

    def make(what: str) -> str:
        if not what.startswith("plot "):
            text = made.get(what.removesuffix(" (table)"), "")
            return text[text.find("|") :] if what.endswith(" (table)") else text
        metric = what.removeprefix("plot ")
        if not (report / f"{metric}.svg").exists():
            return ""
        shutil.copyfile(report / f"{metric}.svg", RESULTS / f"{name}-{metric}.svg")
        return f"![{name}: {metric} over bits per pixel](results/{name}-{metric}.svg)"

    return [line for document in DOCUMENTS for line in fill(document, name, make)]


def thin(source: Path, target: Path, every: int) -> None:
    """A tar with every n-th picture."""
    with tarfile.open(source) as whole, tarfile.open(target, "w") as part:
        pictures = [m for m in whole if m.name.endswith((".png", ".webp"))]
        for member in pictures[::every]:
            part.addfile(member, whole.extractfile(member))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of the tars")
    parser.add_argument("--reports", type=Path, required=True, help="where the reports go")
    parser.add_argument("--sets", nargs="+", choices=EVERY, default=[*EVERY], help="only these")
    parser.add_argument("--all", action="store_true", help="every picture, not only some")
    parser.add_argument("--workers", type=int, help="as of strata evaluate")
    options = parser.parse_args(arguments)
    options.reports.mkdir(parents=True, exist_ok=True)
    worst = 0
    for name in options.sets:
        every = 1 if options.all else EVERY[name]
        (source,) = options.data.glob(f"{name}*.tar")
        data = options.reports / f"{name}-every-{every}.tar"
        if not data.exists():
            thin(source, data, every)
        report = options.reports / data.stem
        summary = evaluate_models(
            EvaluateOptions(
                data=(str(data),),
                output=str(report),
                models=MODELS,
                show=1,
                workers=options.workers,
                command=f"python docs/make_results.py --sets {name}" + " --all" * options.all,
            )
        )
        print("\n".join(summary.lines()))
        worst = max(worst, summary.exit_code)
        if summary.exit_code == 0:
            print("\n".join(fill_from(report, name)))
    return worst


if __name__ == "__main__":
    sys.exit(main())
