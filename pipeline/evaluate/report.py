"""Writes the report: all figures as JSON, and as Markdown tables."""

import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from codec import Codec

from .contenders import Contender
from .figures import Evaluation
from .measuring import CALIBRATED, METRICS
from .tables import model_curves, others_of, tables, verdicts

_PACKAGES = ("strata-images", "torch", "numpy", "pillow", "ray", "ssimulacra2")


def report(
    found: Evaluation,
    models: Sequence[tuple[str, Codec]],
    contenders: Sequence[Contender],
    data: Sequence[str],
    command: str,
) -> dict[str, Any]:
    """``report.json``: what was measured, how, and every figure.

    Rates are in bits per pixel; bits at equal quality are in percent. A figure of null is infinite
    or was not measured.
    """
    spans = {name: METRICS[name].span for name in found.metrics if METRICS[name].span}
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "data": list(data),
        "machine": machine(),
        "nodes": list(found.nodes),
        "versions": versions(),
        "models": [
            {"name": name, "codec": model.codec, "model_id": model.model_id}
            for name, model in models
        ],
        "peers": {one.group: one.spec["library"] for one in contenders if not one.is_model},
        "pictures": {
            "count": found.pictures,
            "pixels": found.pixels,
            "sizes": list(found.sizes[:20]),
            "with_alpha": found.alpha,
            "bad": found.bad,
            "filtered": found.filtered,
        },
        "verdict": {one.name: verdicts(found, one) for one in model_curves(found)},
        "series": [
            {
                "name": one.name,
                "group": one.group,
                "kind": one.kind,
                "model": one.is_model,
                "lossless": one.lossless,
                "worse": {name: one.worse(name) for name in found.metrics},
                "points": [point.to_json() for point in one.points],
            }
            for one in found.series
        ],
        "bits": {
            "spans": spans,
            "percent": {
                one.name: {
                    other.name: {
                        name: asdict(bits)
                        for name in spans
                        if (bits := found.bits(one, other, name)) is not None
                    }
                    for other in others_of(found, one)
                }
                for one in model_curves(found)
            },
        },
        "problems": list(found.problems),
        "notes": notes(found),
    }


def notes(found: Evaluation) -> list[str]:
    """What a reader must know to understand the figures."""
    out = []
    if found.alpha:
        out.append(
            f"{found.alpha} pictures have an alpha channel: every codec got the colours only"
        )
    if found.unequal:
        out.append(
            "the figures are over the pictures that were measured with all contenders; these "
            f"failed with some: {', '.join(found.unequal)}"
        )
    if len(found.sizes) > 1:
        out.append(
            f"pictures of {len(found.sizes)} sizes: in rates and PSNR every pixel has the same "
            "weight, in other figures every picture"
        )
    if any(min(map(int, size.split("x"))) < CALIBRATED for size in found.sizes):
        out.append(
            f"some pictures have less than {CALIBRATED} pixels a side: SSIMULACRA2 uses fewer "
            "scales on them, so its figures cannot be compared with those of larger pictures"
        )
    if "butteraugli" not in found.metrics:
        out.append(
            "Butteraugli was not measured: butteraugli_main is not installed (Debian: apt install "
            "libjxl-devtools)"
        )
    if "features" not in found.metrics:
        out.append(
            "features were not compared: their network is not installed (pip install -e "
            "'.[perceptual]')"
        )
    return out


def machine() -> dict[str, Any]:
    """The driver's machine."""
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
    """The versions of Python and packages."""
    out = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            out[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return out


def about(reported: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values for people: what was measured, and how."""
    pictures, computer = reported["pictures"], reported["machine"]
    sizes = ", ".join(pictures["sizes"][:3]) + (", ..." if len(pictures["sizes"]) > 3 else "")
    count = f"{pictures['count']} of {sizes}, {pictures['pixels'] / 1e6:.1f} megapixels"
    rows = [
        ("pictures", f"{count}; {pictures['bad']} bad, {pictures['filtered']} filtered"),
        *((f"model {m['name']}", f"{m['codec']}, {m['model_id']}") for m in reported["models"]),
        *reported["peers"].items(),
        ("versions", ", ".join(f"{name} {of}" for name, of in reported["versions"].items())),
        ("command", reported["command"]),
        ("data", " ".join(reported["data"])),
        (
            "machine",
            f"{computer['processor']}, {computer['processors']} processors, {computer['system']}; "
            f"workers on {', '.join(reported['nodes'])}",
        ),
        ("made", reported["made"]),
    ]
    return [(name, value) for name, value in rows if value]


def results(found: Evaluation, reported: Mapping[str, Any]) -> str:
    """``results.md``: the verdict, all tables, and how it was measured."""
    lines = []
    for name, sentences in reported["verdict"].items():
        lines += [f"### {name}: verdict", "", *(f"- {words}" for words in sentences), ""]
    lines += [table.markdown() for table in tables(found)]
    lines += ["### about", "", *(f"- {name}: {value}" for name, value in about(reported))]
    lines += [f"- {note}" for note in reported["notes"]]
    lines += [f"- {one['of']}: {one['what']}: {one['reason']}" for one in reported["problems"]]
    return "\n".join(lines) + "\n"
