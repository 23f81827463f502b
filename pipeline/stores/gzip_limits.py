"""How far gzip may unpack a file: a few kilobytes can stand for all of a disk."""

from dataclasses import dataclass

_ANYWAY = 16 << 20  # bytes, whatever the ratio: small tars are mostly zeros


@dataclass(frozen=True)
class GzipLimits:
    """The most times that a file may grow, and the most GiB that it may become."""

    ratio: float = 50.0  # pictures hardly shrink, texts ten times
    gib: float = 64.0

    def most(self, packed: int) -> int:
        """The bytes to which a file of ``packed`` bytes may be unpacked."""
        return min(max(_ANYWAY, int(self.ratio * packed)), int(self.gib * (1 << 30)))


DEFAULT = GzipLimits()
