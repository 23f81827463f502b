"""Reads and writes picture files as uint8 RGB(A) arrays.

Nothing is converted silently: ``Picture.notes`` lists all changes. Pictures that 8-bit RGB(A)
cannot hold (more bits, several frames, other colour models) are refused with a reason.
"""

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import AvifImagePlugin, ExifTags, Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from ..errors import BrokenImageError, UnsupportedImageError
from .broken import END_IS_LOST, check_end, check_scans, without_metadata
from .colour import to_srgb, told_profile
from .losses import MAIN_ONLY, metadata_note
from .memory import Room, pixel_hash, to_arrays
from .png import read_png

MAX_PIXELS = 1 << 27  # 134 megapixels; reading so many takes 0.6 to 2.2 GB
# File extensions of pictures. Some are of formats that are not supported: they give an error.
EXTENSIONS = frozenset(
    {"jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "dib", "tif", "tiff"}
    | {"ppm", "pgm", "pbm", "pnm", "jp2", "j2k", "jpx", "avif", "heic", "heif", "jxl", "tga", "ico"}
)
MAX_WEBP_SIDE, MAX_JPEG_SIDE, MAX_AVIF_SIDE = 16_383, 65_500, 65_535

room = Room(MAX_PIXELS)  # of this process

# The decoders are called directly, not through Image.open, which has a process-wide pixel limit and
# knows fifty formats, some of which run other programs or were never fuzzed.
_DECODERS: dict[str, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    "jpeg": JpegImageFile,
    "png": PngImageFile,
    "webp": WebPImageFile,
    "gif": GifImageFile,
    "bmp": BmpImageFile,
    "tiff": TiffImageFile,
    "ppm": PpmImageFile,
    "jpeg2000": Jpeg2KImageFile,
}
if AvifImagePlugin.SUPPORTED:
    _DECODERS["avif"] = AvifImagePlugin.AvifImageFile
_WRITERS = {"png": "PNG", "webp": "WEBP", "jpg": "JPEG"}
if AvifImagePlugin.SUPPORTED:
    _WRITERS["avif"] = "AVIF"
# Of lossy files. Each library has its own scale; these qualities look about the same.
DEFAULT_QUALITY = {"jpg": 90, "webp": 85, "avif": 75}

# How an array is turned upright, by EXIF orientation (EXIF 2.32, tag 0x0112).
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded picture, upright, in sRGB.

    Attributes:
        rgb: ``(H, W, 3) uint8``.
        alpha: ``(H, W) uint8``, not premultiplied, or None if the file has no transparency.
        format: of the file: ``jpeg``, ``png``, ``webp``, ``gif``, ``bmp``, ``tiff``, ``ppm``,
            ``jpeg2000`` or ``avif``.
        notes: what was converted or ignored, and the metadata that the pixels do not hold; empty if
            the pixels are all that the file has.
    """

    rgb: np.ndarray
    alpha: np.ndarray | None
    format: str
    notes: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        return int(self.rgb.shape[1])

    @property
    def height(self) -> int:
        return int(self.rgb.shape[0])


def read_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode the bytes of an image file. Safe to call from several threads.

    Threads wait while others read ``MAX_PIXELS`` pixels or more together. The size in the file's
    header is compared with ``max_pixels`` before anything is decoded. Raises BrokenImageError if
    the bytes are not a whole picture, and UnsupportedImageError for a picture that 8-bit RGB(A) or
    the limits do not allow. Raises no other exception.
    """
    if not data:
        raise BrokenImageError("the image file is empty (0 bytes)")
    format = _sniff(data)
    try:
        with room.taken(_claimed_pixels(data, format, max_pixels)):
            return _decode(data, format, max_pixels)
    except (UnsupportedImageError, BrokenImageError):
        raise
    except (MemoryError, Image.DecompressionBombError) as error:
        raise UnsupportedImageError(f"the {format} picture is too large: {error}") from error
    except Exception as error:  # decoders raise any class for damaged files
        reason = str(error) or type(error).__name__
        if "-bit layers" in reason or "unknown pixel mode" in reason:  # Pillow, of JPEG and TIFF
            raise UnsupportedImageError(
                f"the {format} file holds samples that are not supported: {reason}"
            ) from error
        raise BrokenImageError(f"the {format} file cannot be decoded: {reason}") from error


def _sniff(data: bytes) -> str:
    """The format of a file by its first bytes."""
    if data[:3] == b"\xff\xd8\xff":
        format = "jpeg"
    elif data[:8] == b"\x89PNG\r\n\x1a\n":
        format = "png"
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        format = "webp"
    elif data[:6] in (b"GIF87a", b"GIF89a"):
        format = "gif"
    elif data[:2] == b"BM":
        format = "bmp"
    elif data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        format = "tiff"
    elif data[:1] == b"P" and data[1:2] in b"123456fF" and data[2:3].isspace():
        format = "ppm"
    elif data[:4] == b"\xff\x4f\xff\x51" or data[:12] == b"\0\0\0\x0cjP  \r\n\x87\n":
        format = "jpeg2000"
    elif data[4:8] == b"ftyp" and b"avi" in data[8:32]:
        format = "avif"
    else:
        format = "unknown"
    if format not in _DECODERS:
        known = ", ".join(_DECODERS)
        raise UnsupportedImageError(
            f"not an image in a supported format ({known}); it begins with {data[:12]!r}"
        )
    return format


def _claimed_pixels(data: bytes, format: str, max_pixels: int) -> int:
    """How many pixels will be decoded: 0 for a refused file, the most if the size is unknown."""
    try:
        if format == "png":
            width, height = struct.unpack(">2I", data[16:24])
        else:
            width, height = _DECODERS[format](io.BytesIO(data)).size
    except Exception:  # decoders raise anything at all on damaged files
        return room.most
    return width * height if width * height <= max_pixels else 0


def _decode(data: bytes, format: str, max_pixels: int) -> Picture:
    notes: list[str] = []
    png = read_png(data, notes) if format == "png" else None

    def pixels(data: bytes) -> bytes:
        return pixel_hash(_open(data, format, max_pixels))

    if png is None:
        data = check_end(data, format, pixels, notes)
    else:
        _check_size(*png.size, format, max_pixels)
        data = png.mended() if png.end_is_lost else png.to_bytes()
        if png.end_is_lost:
            notes.append(END_IS_LOST)
    try:
        image = _open(data, format, max_pixels)
    except (UnsupportedImageError, BrokenImageError):
        raise
    except Exception as error:  # decoders raise anything at all on damaged files
        bare = without_metadata(data) if format == "jpeg" else data
        if bare == data:
            raise
        data, image = bare, _open(bare, format, max_pixels)
        notes.append(f"damaged metadata ignored ({type(error).__name__})")
    width, height = image.size
    _refuse_unsupported(image, data, format)
    if (frames := getattr(image, "n_frames", 1)) != 1:
        raise UnsupportedImageError(
            f"the {format} file has {frames} frames or pages; keeping one would lose the others"
        )
    if png:
        image.load()  # or looking for EXIF does, which may fail in silence
    profile = told_profile(image, data, png.colours if png else {}, notes)
    orientation = _orientation(image, notes)
    image.load()
    if image.size not in ((width, height), (height, width)):
        raise BrokenImageError(f"the {format} file has another size than its header claims")
    right, bottom = image.size
    if png and (
        png.is_interlaced or not np.asarray(image.crop((0, bottom - 1, right, bottom))).any()
    ):
        png.check()  # Pillow leaves missing rows black
    if format == "jpeg":
        corner = np.asarray(image.crop((max(0, right - 8), max(0, bottom - 8), right, bottom)))
        check_scans(data, corner, pixels, notes)
    if "mp" in image.info:
        notes.append(MAIN_ONLY)
    if metadata := metadata_note(image, png.texts if png else ()):
        notes.append(metadata)
    with_alpha, mode = _modes(image, notes)
    _release_decoder(image)
    rgb, alpha = to_arrays(image, with_alpha, mode, to_srgb(mode, profile, notes))
    del image  # because rotating makes a copy
    if orientation in _UPRIGHT:
        notes.append(f"EXIF orientation {orientation} applied")
        if format != "tiff":  # Pillow itself rotates TIFF files, and only those
            rgb = _UPRIGHT[orientation](rgb)
            alpha = None if alpha is None else _UPRIGHT[orientation](alpha)
    rgb = np.ascontiguousarray(rgb)
    alpha = None if alpha is None else np.ascontiguousarray(alpha)
    return Picture(rgb, alpha, format, tuple(notes))


def _open(data: bytes, format: str, max_pixels: int) -> ImageFile.ImageFile:
    """The picture, not decoded yet. Raises UnsupportedImageError if it is too large."""
    image = _DECODERS[format](io.BytesIO(data))
    _check_size(*image.size, format, max_pixels)
    return image


def _check_size(width: int, height: int, format: str, max_pixels: int) -> None:
    if width <= 0 or height <= 0:
        raise BrokenImageError(f"the {format} file claims an impossible size, {width}x{height}")
    if width * height > max_pixels:
        raise UnsupportedImageError(
            f"{width}x{height} is {width * height} pixels, more than the limit of {max_pixels}"
        )


def _refuse_unsupported(image: ImageFile.ImageFile, data: bytes, format: str) -> None:
    """Refuse more than 8 bits per channel, which Pillow often reduces to 8 silently."""
    bits = 8
    if format == "tiff" and isinstance(image, TiffImageFile):
        bits = max(image.tag_v2.get(258, (1,)))  # BitsPerSample
        if 3 in image.tag_v2.get(339, ()):  # SampleFormat
            raise UnsupportedImageError("floating-point samples; only 8-bit ones are supported")
    elif format == "ppm":
        args = image.tile[0].args
        if isinstance(args, tuple) and isinstance(args[1], int):
            bits = args[1].bit_length()  # maxval
    elif format == "jpeg2000":
        bits = _jpeg2000_bits(data, image.size)
    elif format == "avif":
        at = data.find(b"av1C")  # AV1-ISOBMFF 2.3.3: flags in the third byte of the box
        bits = 10 if at >= 0 and data[at + 6 : at + 7] and data[at + 6] & 0x40 else 8
    if image.mode == "F":
        raise UnsupportedImageError("floating-point samples; only 8-bit ones are supported")
    if bits > 8 or image.mode.startswith("I"):
        size = f"{bits} bits" if bits > 8 else "more than 8 bits"
        raise UnsupportedImageError(f"{size} a channel; only 8 are supported")
    if image.mode not in ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "YCbCr", "CMYK"):
        raise UnsupportedImageError(f"the colour model {image.mode} is not supported")


def _jpeg2000_bits(data: bytes, size: tuple[int, int]) -> int:
    """Bits of the deepest component, from the codestream's SIZ marker (ISO 15444-1 A.5.1)."""
    start = data.find(b"\xff\x4f\xff\x51")
    if start < 0 or len(data) < start + 42:
        raise BrokenImageError("the jpeg2000 file has no codestream")
    x1, y1, x0, y0 = struct.unpack_from(">4I", data, start + 8)
    if (x1 - x0, y1 - y0) != size:
        raise BrokenImageError("the jpeg2000 file's headers disagree about its size")
    components = int.from_bytes(data[start + 40 : start + 42])
    depths = data[start + 42 : start + 42 + 3 * components : 3]
    return max(((depth & 0x7F) + 1 for depth in depths), default=8)


def _orientation(image: ImageFile.ImageFile, notes: list[str]) -> int:
    """The EXIF orientation, 1 to 8. A broken EXIF block is ignored, with a note."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception as error:  # Pillow's parser raises half a dozen kinds
        notes.append(f"broken EXIF block ignored ({type(error).__name__})")
        return 1


def _release_decoder(image: ImageFile.ImageFile) -> None:
    """Free the memory that Pillow keeps for later frames of a WebP: 12 bytes per pixel."""
    if isinstance(image, WebPImageFile):
        image._decoder = None
        image.fp = None


def _modes(image: ImageFile.ImageFile, notes: list[str]) -> tuple[str | None, str]:
    """The mode that has the alpha channel, or None; and the mode of the colours, L, RGB or CMYK."""
    mode = image.mode
    if mode not in ("L", "RGB"):
        notes.append(f"converted from {_MODE_WORDS.get(mode, mode)}")
    if not image.has_transparency_data:
        return None, "L" if mode == "1" else mode if mode in ("L", "RGB", "CMYK") else "RGB"
    if "transparency" in image.info and mode in ("1", "L", "RGB"):
        notes.append("transparent colour (tRNS) became an alpha channel")
    return ("LA", "L") if mode in ("1", "L", "LA", "La") else ("RGBA", "RGB")


_MODE_WORDS = {
    "1": "1 bit",
    "LA": "grey with alpha",
    "La": "grey with premultiplied alpha",
    "P": "a palette",
    "PA": "a palette with alpha",
    "RGBA": "RGB with alpha",
    "RGBa": "RGB with premultiplied alpha",
}


def write_image(
    rgb: np.ndarray,
    alpha: np.ndarray | None = None,
    format: str = "png",
    *,
    quality: int | None = None,
) -> bytes:
    """Encode ``(H, W, 3) uint8`` and optionally alpha ``(H, W) uint8`` as a picture file.

    ``png`` is lossless, and so is ``webp`` without ``quality`` (1 to 100), including colours under
    transparent pixels. Without ``quality``, ``jpg`` and ``avif`` use their ``DEFAULT_QUALITY``.
    ``jpg`` is 4:4:4, ``avif`` is 4:2:0. Raises UnsupportedImageError if the format cannot hold the
    picture (transparency in jpg, sides beyond the format's limit), ValueError for wrong arguments.
    """
    if format not in _WRITERS:
        raise ValueError(f"unknown image format {format!r}: choose one of {', '.join(_WRITERS)}")
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape:
        raise ValueError(f"expected an (H, W, 3) uint8 picture, got {rgb.shape} {rgb.dtype}")
    if alpha is not None and (alpha.dtype != np.uint8 or alpha.shape != rgb.shape[:2]):
        raise ValueError(f"expected alpha {rgb.shape[:2]} uint8, got {alpha.shape} {alpha.dtype}")
    if format == "jpg" and alpha is not None:
        if alpha.min() < 255:
            raise UnsupportedImageError("jpg cannot hold transparency: choose png or webp")
        alpha = None
    limit = {"webp": MAX_WEBP_SIDE, "jpg": MAX_JPEG_SIDE, "avif": MAX_AVIF_SIDE}.get(format)
    if limit and max(rgb.shape) > limit:
        size = f"{rgb.shape[1]}x{rgb.shape[0]}"
        raise UnsupportedImageError(f"{format} cannot hold {size}: its limit is {limit} a side")
    lossy = DEFAULT_QUALITY.get(format) if quality is None else quality
    pixels = rgb if alpha is None else np.dstack([rgb, alpha])
    # Efforts that were chosen on photographs. The defaults take 2.6 times (png) and 10 times (webp)
    # as long, for files that are no smaller (png) or 6 % smaller (webp). A lossless WebP's
    # "quality" is its effort.
    lossless_webp = {"lossless": True, "exact": True, "quality": 25, "method": 0}
    writers: dict[str, dict[str, Any]] = {
        "png": {"compress_level": 3},
        "webp": lossless_webp if quality is None else {"quality": quality},
        "jpg": {"quality": lossy, "subsampling": 0, "optimize": True},
        "avif": {"quality": lossy, "speed": 8, "max_threads": 1},
    }
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, _WRITERS[format], **writers[format])
    return out.getvalue()
