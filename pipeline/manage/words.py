"""Describes a plan in words."""

from collections.abc import Mapping
from typing import Any

from codec.images.files import MAX_PIXELS

from ..running.progress.summary import plural, size

_KEPT = {
    "never": "no original is kept",
    "bad": "originals of bad samples are kept",
    "larger": "originals are kept of bad samples, and of pictures whose file is smaller or better",
    "always": "all originals are kept",
}
_TAKING_PLACE = "originals are kept only where they take the place of layers"
_SAID_ELSEWHERE = ("format", "schema", "codec", "model_id", "model_layers", "layers", "lossless")


def plan_in_words(parameters: Mapping[str, Any]) -> list[str]:
    """The parameters of a dataset's plan, one line each."""
    layers, whole = parameters["layers"], parameters.get("model_layers")
    of = f" of the model's {whole}" if whole is not None else ""
    exact = "exact" if parameters.get("lossless") else "not exact in general"
    lines = [f"layers: {layers}{of} are stored at most; pictures are {exact}"]
    truncated = parameters.get("truncated") or {}
    for name, value in parameters.items():
        if (name, value) == ("keep_original", "larger") and truncated.get("keep_original") is False:
            lines.append(_TAKING_PLACE)  # others, such as those of bad samples, were left out
        elif name not in _SAID_ELSEWHERE and value is not None and (words := _words(name, value)):
            lines.append(words)
    return lines


def _words(name: str, value: Any) -> str:
    match name:
        case "store_layers":
            if value == "fit":
                return "a picture drops layers until it is no larger than its file"
            return f"each picture stores {value} layers, or fewer and its original"
        case "min_side":
            return f"pictures with a side below {value} pixels are filtered" if value else ""
        case "max_pixels":
            return f"pictures of more than {value:,} pixels are bad" if value != MAX_PIXELS else ""
        case "max_sample_bytes":
            return f"samples of more than {size(value)} are bad"
        case "keep_original":
            return _KEPT.get(value, f"originals: {value}")
        case "target_quality":
            return f"each picture stores the fewest layers that reach the quality {value}"
        case "codec_options":
            return "codec: " + ", ".join(f"{key} {one}" for key, one in value.items())
        case "merged":
            return f"merged from archives of {plural(len(value), 'plan')}"
        case "truncated":
            changes = {k: v for k, v in value.items() if k not in ("dataset", "fingerprint")}
            words = ", ".join(f"{key} {one}" for key, one in changes.items() if one)
            return f"copied from {value.get('dataset')}" + (f" ({words})" if words else "")
    return f"{name.replace('_', ' ')}: {value}"
