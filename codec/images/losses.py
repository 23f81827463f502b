"""What a stream does not hold of a picture's file: its metadata, and colours that nobody can tell.

Such losses are among the notes of a picture (``files.Picture``). ``loss_of`` finds them there.
"""

from collections.abc import Iterable

from PIL import ExifTags, Image

METADATA = "metadata not encoded"  # the beginning of a note, before a colon and the kinds
CMYK = "CMYK converted without a usable profile"
COLOURS = "colours taken for sRGB"
MAIN_ONLY = "JPEG with several pictures (MPO): only the main one is kept"

_BASE = ExifTags.Base
# Tags of the first directory that tell of more than how the pixels are stored.
_TELLING = frozenset(
    {_BASE.ImageDescription, _BASE.Make, _BASE.Model, _BASE.Software, _BASE.DateTime}
    | {_BASE.Artist, _BASE.HostComputer, _BASE.Copyright, _BASE.GPSInfo, _BASE.Rating}
    | {_BASE.XPTitle, _BASE.XPComment, _BASE.XPAuthor, _BASE.XPKeywords, _BASE.XPSubject}
)
# Tags of the second directory that tell no more than that.
_SILENT = frozenset(
    {_BASE.ExifVersion, _BASE.FlashPixVersion, _BASE.ComponentsConfiguration, _BASE.ColorSpace}
    | {_BASE.ExifImageWidth, _BASE.ExifImageHeight, _BASE.ExifInteroperabilityOffset}
)
_XMP_TAG, _IPTC_TAG, _IPTC_RESOURCE = 700, 33723, 0x0404  # of TIFF; of Photoshop


def metadata_note(image: Image.Image, others: Iterable[str] = ()) -> str:
    """A note on the metadata of an opened picture, or ''. Decodes nothing.

    ``others`` are kinds that are known already: texts of a PNG, which ``image`` was not given.
    The orientation and colours do not count, because the pixels have them, nor does the resolution.
    """
    kinds = set(others)
    try:
        exif = image.getexif()
        if not _TELLING.isdisjoint(exif) or exif.get_ifd(ExifTags.IFD.Exif).keys() - _SILENT:
            kinds.add("EXIF")
    except Exception:  # Pillow's parser raises many classes; reading the orientation notes it
        exif = Image.Exif()
    if image.info.get("exif") and not exif:  # a block that Pillow cannot read
        kinds.add("EXIF")
    if any(name == "APP11" and data[:2] == b"JP" for name, data in getattr(image, "applist", ())):
        kinds.add("C2PA")  # or others in a box of ISO 19566-5
    if image.info.get("xmp") or _XMP_TAG in exif:
        kinds.add("XMP")
    resources = image.info.get("photoshop")
    if _IPTC_TAG in exif or (isinstance(resources, dict) and _IPTC_RESOURCE in resources):
        kinds.add("IPTC")
    if image.info.get("comment") and image.format != "JPEG2000":  # there it names the encoder
        kinds.add("text")
    return f"{METADATA}: {', '.join(sorted(kinds))}" if kinds else ""


def loss_of(note: str) -> str:
    """What a note says is lost, in words that do not depend on the picture; '' for nothing."""
    if note.startswith(METADATA) or note in (CMYK, MAIN_ONLY):
        return note
    of_colour = any(word in note.lower() for word in ("colour", "icc profile", "transfer"))
    return COLOURS if "taken for sRGB" in note or (of_colour and "ignored" in note) else ""
