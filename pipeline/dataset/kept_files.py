"""The column ``reason`` of pictures: why their own file is kept, or which goal they miss."""

ASKED = "original kept: --keep-original always"
EXACT = "original kept: --lossless, and only the JPEG file itself is exact"
LARGER = "original kept: its stream is not smaller"
BELOW = "original kept: its stream stays below --target-quality"
MISSED = "below --target-quality with all layers"
KEPT = frozenset({ASKED, EXACT, LARGER, BELOW})
