"""Converts colours of picture files to sRGB, by an ICC profile or by other colour information.

Other colour information is turned into an ICC profile, so there is only one way of converting.
"""

import io
import re
import struct
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import ExifTags, Image, ImageCms

from ..errors import UnsupportedImageError
from .broken import boxes
from .losses import CMYK
from .png import profile_of

ToArray = Callable[[Image.Image], np.ndarray]
SAME_COLOUR = 2  # levels of 255: two profiles of sRGB may differ by so much through rounding
# White, red, green, blue as x and y (ITU-T H.273, table 2; IEC 61966-2-1; Adobe RGB 1998).
_D65 = (0.3127, 0.3290)
SRGB = (*_D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
_ADOBE = (*_D65, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
_P3 = (0.680, 0.320, 0.265, 0.690, 0.150, 0.060)
_SMPTE = (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070)
_PRIMARIES = {
    1: SRGB,
    4: (0.310, 0.316, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (*_D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: _SMPTE,
    7: _SMPTE,
    9: (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, *_P3),
    12: (*_D65, *_P3),
}
# Exponents of H.273, table 3; 0 is the curve of sRGB, which viewers also use for video curves.
_CURVES = {1: 0.0, 6: 0.0, 14: 0.0, 15: 0.0, 13: 0.0, 4: 2.2, 5: 2.8, 8: 1.0}
_HDR = {16: "PQ", 18: "HLG"}
_UNSPECIFIED = 2
TOLD = "colours told by"  # the beginning of the names of profiles that are made here
_D50 = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
_BMP_KINDS = {b"DEBM": "MBED", b"KNIL": "LINK", bytes(4): "calibrated"}


def told_profile(
    image: Image.Image, data: bytes, chunks: Mapping[bytes, bytes], notes: list[str]
) -> bytes | None:
    """The ICC profile of a file, or one made from its other colour information; None for sRGB.

    ``chunks`` are the colour chunks of a PNG. Raises UnsupportedImageError for PQ and HLG, which
    8 bits of sRGB cannot hold.
    """
    format = image.format
    if chunks:
        return _of_png(chunks, notes)
    icc = image.info.get("icc_profile")
    if icc is None and "icc_profile" in image.info:
        notes.append("broken ICC profile ignored (parts of it are missing)")
    if not icc and format in ("BMP", "GIF", "JPEG2000", "AVIF", "TIFF"):
        found = {"BMP": _of_bmp, "GIF": _of_gif, "JPEG2000": _of_jpeg2000, "AVIF": _of_avif}
        icc = found[format](data, notes) if format in found else _of_tiff(image, notes)
    return icc or _of_exif(image, notes)


def _of_png(chunks: Mapping[bytes, bytes], notes: list[str]) -> bytes | None:
    """The profile from a PNG's chunks, in the order of precedence of PNG 3, section 4.3."""
    try:
        if b"cICP" in chunks:
            primaries, curve, _, is_full = struct.unpack(">4B", chunks[b"cICP"])
            if not is_full:
                notes.append("cICP: narrow range taken for full range")
            return _of_codes(primaries, curve, "cICP", notes)
        if b"iCCP" in chunks:
            try:
                return profile_of(chunks[b"iCCP"])
            except Exception as error:
                notes.append(f"broken ICC profile ignored ({error})")
        if b"sRGB" in chunks:
            return None
        gamma, xy = 0.0, SRGB
        if b"gAMA" in chunks:
            (value,) = struct.unpack(">I", chunks[b"gAMA"])
            gamma = 0.0 if abs(value - 45455) < 1000 else 100_000 / value
        if b"cHRM" in chunks:
            xy = tuple(value / 100_000 for value in struct.unpack(">8I", chunks[b"cHRM"]))
        return made_profile("gAMA and cHRM", xy, gamma)
    except (struct.error, ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
        notes.append(f"broken colour chunks ignored ({type(error).__name__})")
        return None


def _of_codes(primaries: int, curve: int, where: str, notes: list[str]) -> bytes | None:
    """The profile of code points of H.273. Raises UnsupportedImageError."""
    if curve in _HDR:
        raise UnsupportedImageError(
            f"{_HDR[curve]} colours ({where}), whose range 8 bits of sRGB cannot hold"
        )
    xy, gamma = _PRIMARIES.get(primaries), _CURVES.get(curve)
    for code, value in ((primaries, xy), (curve, gamma)):
        if value is None and code != _UNSPECIFIED:
            notes.append(f"{where}: colours of code {code} taken for sRGB")
    return made_profile(f"{where} {primaries}/{curve}", xy or SRGB, gamma or 0.0)


def _of_avif(data: bytes, notes: list[str]) -> bytes | None:
    at = data.find(b"colrnclx")
    if at < 0 or at + 12 > len(data):
        return None
    primaries, curve = struct.unpack_from(">2H", data, at + 8)
    return _of_codes(primaries, curve, "nclx", notes)


def _of_jpeg2000(data: bytes, notes: list[str]) -> bytes | None:
    for kind, begin, end in boxes(data, 0, len(data)):
        for inner, start, stop in boxes(data, begin, end) if kind == b"jp2h" else ():
            if inner == b"colr":
                if data[start] != 1:
                    return data[start + 3 : stop]
                (space,) = struct.unpack_from(">I", data, start + 3)
                if space not in (0, 12, 16, 17, 18):  # bilevel, CMYK, sRGB, grey, sYCC
                    notes.append(f"colour space {space} of JPEG 2000 taken for sRGB")
                return None
    return None


def _of_gif(data: bytes, notes: list[str]) -> bytes | None:
    found = re.search(rb"!\xff\x0bICCRGBG1012", data)
    parts, at = [], found.end() if found else len(data)
    while at < len(data) and data[at]:
        parts.append(data[at + 1 : at + 1 + data[at]])
        at += 1 + data[at]
    return b"".join(parts) or None


def _of_bmp(data: bytes, notes: list[str]) -> bytes | None:
    """The profile from a BITMAPV4HEADER or BITMAPV5HEADER."""
    size = int.from_bytes(data[14:18], "little")
    kind = _BMP_KINDS.get(data[70:74], "") if size >= 108 else ""
    if kind == "MBED" and size >= 124:
        at, length = struct.unpack_from("<2I", data, 14 + 112)
        return data[14 + at : 14 + at + length]
    if kind and any(data[74:122]):  # end points that are all zero say nothing
        notes.append(f"colours of another kind ({kind}) taken for sRGB")
    return None


def _of_tiff(image: Image.Image, notes: list[str]) -> bytes | None:
    tags = getattr(image, "tag_v2", {})
    try:
        white, primaries = tags.get(318, _D65), tags.get(319, SRGB[2:])
        if 301 in tags:
            notes.append("transfer function (TIFF) ignored")
        return made_profile("TIFF tags", tuple(map(float, (*white, *primaries))), 0.0)
    except (TypeError, ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
        notes.append(f"broken colour tags ignored ({type(error).__name__})")
        return None


def _of_exif(image: Image.Image, notes: list[str]) -> bytes | None:
    """Adobe RGB, as cameras mark it (DCF 2.0: an index R03; some write colour space 2)."""
    try:
        exif = image.getexif()
        index = exif.get_ifd(ExifTags.IFD.Interop).get(1)
        space = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.ColorSpace)
    except Exception:  # Pillow's parser raises many classes; reading the orientation notes it
        return None
    if index == "R03" or space == 2:
        return made_profile("EXIF (Adobe RGB)", _ADOBE, 563 / 256)
    if space == 0xFFFF:
        notes.append("colours that are not sRGB's, by its EXIF block, taken for sRGB")
    return None


def made_profile(told_by: str, xy: Sequence[float], gamma: float) -> bytes | None:
    """An ICC profile (ICC.1:2022) for x and y of white, red, green and blue; None for sRGB.

    ``gamma`` is the exponent from stored values to light, or 0 for the curve of sRGB. ``told_by``
    names the source in the profile's name. Raises ValueError, ArithmeticError or LinAlgError for
    impossible colours.
    """
    if gamma == 0 and np.allclose(xy, SRGB, atol=0.005):
        return None
    points = np.array(xy, float).reshape(4, 2)
    if not (points[:, 1] > 0).all() or not 0 <= gamma < 100:
        raise ValueError("impossible colours")
    white, *primaries = np.column_stack([points, 1 - points.sum(1)]) / points[:, 1:]
    columns = np.array(primaries).T
    columns = columns * np.linalg.solve(columns, white)
    cones = (_BRADFORD @ _D50) / (_BRADFORD @ white)
    columns = np.linalg.inv(_BRADFORD) @ np.diag(cones) @ _BRADFORD @ columns
    exact = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    kind, numbers = (0, (gamma,)) if gamma else (3, exact)
    curve = b"para\0\0\0\0" + struct.pack(">2H", kind, 0) + _fixed(numbers)
    text = f"{TOLD} {told_by}".encode("utf-16-be")
    tags = {
        b"desc": b"mluc\0\0\0\0" + struct.pack(">2I4s2I", 1, 12, b"enUS", len(text), 28) + text,
        b"wtpt": b"XYZ \0\0\0\0" + _fixed(_D50),
        **{kind: b"XYZ \0\0\0\0" + _fixed(c) for kind, c in zip(_COLUMNS, columns.T, strict=True)},
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve),
    }
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for tag, content in tags.items():
        table += tag + struct.pack(">2I", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(">I4sI4s4s4s12x4s", start + len(body), b"", 0x04300000, *_CLASS, b"acsp")
    return head.ljust(68, b"\0") + _fixed(_D50).ljust(60, b"\0") + table + body


_COLUMNS = (b"rXYZ", b"gXYZ", b"bXYZ")
_CLASS = (b"mntr", b"RGB ", b"XYZ ")


def _fixed(numbers: Sequence[float] | np.ndarray) -> bytes:
    return b"".join(struct.pack(">i", round(float(number) * 65536)) for number in numbers)


def to_srgb(mode: str, icc: bytes | None, notes: list[str]) -> ToArray:
    """A function that converts a picture (or part) of mode L, RGB or CMYK to sRGB.

    It returns ``(H, W, 3) uint8`` and uses the file's profile, if it has one.
    """
    if icc:
        try:
            convert = _through_profile(mode, icc, notes)
        except Exception as error:  # lcms and its wrapper raise several kinds
            notes.append(f"broken ICC profile ignored ({error})")
        else:
            if convert is not None:
                return convert
    if mode == "CMYK":
        notes.append(CMYK)
    return lambda colour: np.asarray(colour if mode == "RGB" else colour.convert("RGB"))


def _through_profile(given: str, icc: bytes, notes: list[str]) -> ToArray | None:
    """A function that converts by an ICC profile; None if it is sRGB, so pixels need no change."""
    profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    space = str(profile.profile.xcolor_space).strip()
    name = (profile.profile.profile_description or space).strip()
    is_grey = given == "L"
    taken = "RGB" if space == "RGB" and is_grey else given
    mode = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}.get(space)
    if mode != taken:
        notes.append(f"ICC profile '{name}' ignored: it is for {space}, not for {taken}")
        return None
    transform = ImageCms.buildTransform(
        profile,
        ImageCms.createProfile("sRGB"),
        mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    if mode != "CMYK":
        probe = _probe(mode)
        same = np.asarray(probe.convert("RGB"), np.int16)
        moved = np.asarray(ImageCms.applyTransform(probe, transform), np.int16)
        if np.abs(moved - same).max() <= SAME_COLOUR:
            return None
    else:
        ImageCms.applyTransform(Image.new("CMYK", (1, 1)), transform)  # may fail here, not later
    source = name if name.startswith(TOLD) else f"ICC profile '{name}'"
    notes.append(f"converted to sRGB from {source}")

    def convert(colour: Image.Image) -> np.ndarray:
        colour = colour if colour.mode == mode else colour.convert(mode)
        rgb = np.asarray(ImageCms.applyTransform(colour, transform))
        # A grey picture stays grey, whatever the white point rounds to.
        return np.repeat(rgb[..., 1:2], 3, axis=2) if is_grey else rgb

    return convert


def _probe(mode: str) -> Image.Image:
    """A picture of colours from the whole cube (or of all greys), to test a profile with."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1)
    return Image.fromarray(cube.reshape(9, 81, 3))
