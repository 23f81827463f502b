"""The report: all figures as JSON, and as Markdown tables."""

import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .figures import Evaluation
from .peers import all_peers
from .tables import tables

_PACKAGES = ("strata-images", "torch", "numpy", "pillow", "ray")


def report(
    found: Evaluation,
    models: Sequence[Mapping[str, str]],
    data: Sequence[str],
    command: str,
    anchor: str,
    earlier: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """``report.json``: what was measured, with what, and every figure. Keys stay.

    ``models`` are names, codecs and ids; ``earlier`` says where curves come from that were not
    measured now, see ``Earlier.sources``.

    Rates are bits per pixel, BD-rates percent, speeds megapixels a second; a PSNR of null is exact.
    """
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "data": list(data),
        "machine": machine(),
        "nodes": list(found.nodes),
        "versions": versions(),
        "models": list(models),
        "earlier": list(earlier),
        "pictures": pictures(found),
        "series": [
            {
                "name": one.name,
                "group": one.group,
                "kind": one.kind,
                "model": one.is_model,
                "lossless": one.lossless,
                "given": one.given,
                "worse": one.worse(),
                "points": [point.to_json() for point in one.points],
            }
            for one in found.series
        ],
        "bd_rate": {
            "anchor": anchor,
            "percent": found.bd_rates(anchor),
            "against": {one.name: found.bd_rates(one.name) for one in found.comparable()},
        },
        "speed": [
            {"name": one.name, "encode": one.encode, "decode": one.decode} for one in found.speeds
        ],
        "problems": list(found.problems),
        "notes": notes(found),
    }


def pictures(found: Evaluation) -> dict[str, Any]:
    """What was measured on."""
    return {
        "count": found.pictures,
        "pixels": found.pixels,
        "sizes": list(found.sizes[:20]),
        "with_alpha": found.alpha,
        "bad": found.bad,
        "filtered": found.filtered,
        "digest": found.digest,
    }


def notes(found: Evaluation) -> list[str]:
    """What a reader must know to read the figures."""
    out = []
    if found.alpha:
        out.append(
            f"{found.alpha} pictures have an alpha channel: every codec was given the colours only"
        )
    if found.unequal:
        out.append(
            "figures are over the pictures that all contenders did; only the SWD of the set is "
            f"over each one's own, which are fewer for: {', '.join(found.unequal)}"
        )
    if len(found.sizes) > 1:
        out.append(
            f"pictures of {len(found.sizes)} sizes: rates and PSNR weigh pixels, other figures "
            "pictures"
        )
    return out


def machine() -> dict[str, Any]:
    """The driver's machine, in words."""
    model = ""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line for line in lines if line.startswith("model name")), "")
    except OSError:
        pass
    return {
        "processor": model.partition(":")[2].strip() or platform.machine(),
        "processors": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
    }


def versions() -> dict[str, str]:
    """Of Python, packages, and the peers' libraries."""
    out = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            out[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    libraries = {p.library.split(", ")[-1] for p in all_peers().values() if p.library}
    return out | dict.fromkeys(sorted(libraries), "")


def about(reported: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values for a reader, of what was measured with what."""
    pictures, computer = reported["pictures"], reported["machine"]
    sizes = ", ".join(pictures["sizes"][:3]) + (", ..." if len(pictures["sizes"]) > 3 else "")
    count = f"{pictures['count']} of {sizes}, {pictures['pixels'] / 1e6:.1f} megapixels"
    earlier = (_earlier(one, reported["versions"]) for one in reported["earlier"])
    versions_ = ", ".join(f"{name} {of}".strip() for name, of in reported["versions"].items())
    rows = [
        ("command", reported["command"]),
        ("data", " ".join(reported["data"])),
        ("pictures", f"{count}; {pictures['bad']} bad, {pictures['filtered']} filtered"),
        *(
            (f"model {one['name']}", f"{one['codec']}, {one['model_id']}")
            for one in reported["models"]
        ),
        *(("earlier", words) for words in earlier),
        (
            "machine",
            f"{computer['processor']}, {computer['processors']} processors, {computer['system']}; "
            f"workers on {', '.join(reported['nodes'])}",
        ),
        ("versions", versions_),
        ("made", reported["made"]),
    ]
    return [(name, value) for name, value in rows if value]


def _earlier(source: Mapping[str, Any], now: Mapping[str, str]) -> str:
    """What was taken over, when it was measured, and with which other versions."""
    versions_ = source["versions"] or {}
    others = [f"{name} {of}".strip() for name, of in versions_.items() if now.get(name) != of]
    words = f"{', '.join(source['of'])}: measured {source['made']}"
    return words + (f" with {', '.join(others)}" if others else "")


def results(found: Evaluation, reported: dict[str, Any]) -> str:
    """``results.md``: what was measured with what, and all tables."""
    lines = ["## Results", ""]
    lines += [f"- {name}: {value}" for name, value in about(reported)]
    lines += [f"- {note}" for note in reported["notes"]]
    lines += [f"- {one['of']}: {one['what']}: {one['reason']}" for one in reported["problems"]]
    made = tables(found, reported["bd_rate"]["anchor"])
    return "\n".join(lines) + "\n\n" + "\n".join(table.markdown() for table in made)
