"""Packs JPEG files losslessly with Lepton.

Lepton (https://arxiv.org/abs/1704.06192) codes the coefficients of a JPEG file with a better model
than JPEG's own. Unpacking returns the same bytes. It needs the package lepton_jpeg_python.
"""

from types import ModuleType

from ..errors import CorruptStreamError, MissingPackageError

LEPTON = "lepton"
PACKAGE = "lepton_jpeg_python"
MAX_FILE_BYTES = 1 << 29  # of an unpacked file: a packed one may claim any size
_JPEG = b"\xff\xd8\xff"
_SIZE = slice(20, 24)  # the length of the JPEG file in a Lepton file, little-endian


def can_pack() -> bool:
    """Whether the package is installed."""
    return _lepton() is not None


def pack_file(data: bytes) -> tuple[bytes, str | None]:
    """The bytes to store of a file, and their packing: ``"lepton"``, or None for the file itself.

    JPEG files are packed if that makes them smaller and if unpacking returns every byte. Lepton
    refuses CMYK files, and cannot restore all damaged files.
    """
    lepton = _lepton()
    if lepton is None or not data.startswith(_JPEG) or len(data) > MAX_FILE_BYTES:
        return data, None
    try:
        packed: bytes = lepton.compress_bytes(data)
        if len(packed) < len(data) and lepton.decompress_bytes(packed) == data:
            return packed, LEPTON
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # Lepton raises RuntimeError, and panics of Rust are no Exception
        pass
    return data, None


def unpack_file(data: bytes, packing: str | None) -> bytes:
    """The original bytes of a file that ``pack_file`` packed.

    Raises CorruptStreamError for damaged bytes and for an unknown packing, MissingPackageError if
    the package that unpacks them is not installed.
    """
    if packing is None:
        return data
    if packing != LEPTON:
        raise CorruptStreamError(
            f"the original has the packing {packing!r:.40}, which this release does not know"
        )
    lepton = _lepton()
    if lepton is None:
        raise MissingPackageError(
            f"the original is packed with Lepton, and {PACKAGE} is not installed here: "
            f"pip install {PACKAGE}"
        )
    if not 0 < int.from_bytes(data[_SIZE], "little") <= MAX_FILE_BYTES:
        raise CorruptStreamError("the packed original is damaged: it claims an impossible size")
    try:
        unpacked: bytes = lepton.decompress_bytes(data)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # see pack_file
        reason = str(error).partition("\n")[0]
        raise CorruptStreamError(f"the packed original is damaged: {reason}") from error
    return unpacked


def _lepton() -> ModuleType | None:
    try:
        import lepton_jpeg_python
    except ImportError:
        return None
    return lepton_jpeg_python
