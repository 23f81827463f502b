"""What is coded of one picture, in which order, and with which tables: no network is needed for it.

The decoder follows the same tables and trees pass by pass, as symbols come in.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ... import coder_process
from ...scheme import Choice, LayerSymbols
from ...stream.entropy import Tables
from .trit_planes import Progress, Trees


@dataclass
class PictureState:
    """What is known of one picture.

    Attributes:
        quality: at which of the model's rates it is coded.
        hyper: its hyper-latent's integers ``(C, H/64, W/64) int32``.
        progress: what is known of r, once the hyper-latent is.
    """

    quality: int
    hyper: np.ndarray
    progress: Progress | None = None


@coder_process.shared
@dataclass(frozen=True, eq=False)
class CodingTables:
    """A model's tables.

    Attributes:
        trees: of the residuals r, at each quality.
        hyper: of the hyper-latent's channels, at one quality after the other.
        quality: of the quality itself.
    """

    trees: tuple[Trees, ...]
    hyper: Tables
    quality: Tables

    def passes(self, layer: int) -> int:
        """Two for layer 0: the quality, then the hyper-latent, whose tables depend on it."""
        if layer == 0:
            return 2
        return max(t.passes(layer - 1) for t in self.trees if layer <= t.num_layers)

    def choice(self, picture: PictureState, layer: int, number: int) -> Choice:
        """The tables of a pass's symbols."""
        if layer == 0 and number == 0:
            return Choice(np.zeros(1, np.int32), self.quality)
        if layer == 0:
            channels, rows, columns = picture.hyper.shape
            first = picture.quality * channels
            index = np.repeat(np.arange(first, first + channels), rows * columns)
            return Choice(index.astype(np.int32), self.hyper)
        assert picture.progress is not None
        positions = picture.progress.pending(layer - 1)
        return Choice(picture.progress.node[positions], self.trees[picture.quality].tables)


@dataclass(frozen=True)
class PictureLayers:
    """The first ``count`` layers of a picture, made as they are asked for, once.

    Attributes:
        picture: all but its residuals; it is used up.
        residuals: r of every element, ``(n,) int32``.
    """

    tables: CodingTables
    picture: PictureState
    residuals: np.ndarray
    count: int

    def __iter__(self) -> Iterator[LayerSymbols]:
        for layer in range(self.count):
            choices, symbols = [], []
            for number in range(self.tables.passes(layer)):
                choices.append(self.tables.choice(self.picture, layer, number))
                symbols.append(self._symbols(layer, number))
            yield LayerSymbols(tuple(choices), tuple(symbols))

    def _symbols(self, layer: int, number: int) -> np.ndarray:
        if layer == 0:
            quality = np.array([self.picture.quality], np.int32)
            return self.picture.hyper.ravel() if number else quality
        progress = self.picture.progress
        assert progress is not None
        positions = progress.pending(layer - 1)
        symbols = progress.symbols_for(positions, self.residuals)
        progress.advance(positions, symbols)
        return symbols
