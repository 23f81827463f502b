"""Limits of the size to which a file may be unpacked: a few kilobytes of gzip can fill a disk."""

from dataclasses import dataclass

_ALWAYS_ALLOWED = 16 << 20  # bytes, whatever the ratio: small tars are mostly zeros


@dataclass(frozen=True)
class GzipLimits:
    """A file may be unpacked to ``ratio`` times its size, and to ``gib`` GiB."""

    ratio: float = 50.0  # pictures hardly shrink, texts to a tenth
    gib: float = 64.0

    def most(self, packed: int) -> int:
        """The bytes to which a file of ``packed`` bytes may be unpacked."""
        return min(max(_ALWAYS_ALLOWED, int(self.ratio * packed)), int(self.gib * (1 << 30)))


DEFAULT = GzipLimits()
