"""Integer probability tables and entropy coding. Only this module imports constriction.

All inputs of the coder are integers: symbols, table indices, and tables, which were counted or
rounded once when the model was made, and are stored in the model file. constriction gets
probabilities that are integer counts over 2**20, exact in float32, with a sum of exactly one in any
order. So its own fixed-point rounding is the same on every machine.

ANS is a stack: the last symbol pushed is the first popped. ``encode`` therefore takes all parts of
a layer in decoding order and pushes them from the end.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import constriction
import numpy as np

from ..errors import CorruptStreamError

PRECISION = 20  # counts of a table sum to 2**20: fine enough for p = 1e-6, exact in float32
_TOTAL = 1 << PRECISION
_LARGEST_SYMBOL = 1 << 30  # in a table; larger than any symbol in use, and within int32
_ROW_LIMIT = 32  # up to so many entries, one row per symbol is faster than grouping by table
_CHUNK = 1 << 18  # numbers in rows that are coded at once; they stay in the processor's cache
_CATEGORICAL = constriction.stream.model.Categorical(perfect=False)
_LENGTH = constriction.stream.model.Uniform(32)  # the number of binary digits of an escaped value
_DIGIT_BITS = 15
_START_BITS = 24  # constriction's precision

Part = tuple[np.ndarray, np.ndarray, "Tables"]


def quantize_pmfs(pmfs: np.ndarray) -> np.ndarray:
    """Round pmfs ``(T, n) float64`` to positive integer counts ``(T, n) int32``, each of sum 2**20.

    The result for a row does not depend on the other rows.
    """
    pmfs = np.ascontiguousarray(pmfs)  # the order of a sum depends on the memory layout
    if not np.isfinite(pmfs).all() or pmfs.min() < 0 or pmfs.sum(1).min() <= 0:
        raise ValueError("a probability table must be finite, non-negative and not all zero")
    free = _TOTAL - pmfs.shape[1]
    ideal = pmfs / pmfs.sum(1, keepdims=True) * free
    counts = np.floor(ideal).astype(np.int64)
    # The largest remainders are rounded up; of equal ones, the first.
    order = np.argsort(counts - ideal, axis=1, kind="stable")
    chosen = np.arange(pmfs.shape[1]) < free - counts.sum(1, keepdims=True)
    up = np.zeros_like(counts)
    np.put_along_axis(up, order, chosen, 1)
    return (counts + up + 1).astype(np.int32)


@dataclass(frozen=True)
class Tables:
    """``T`` integer tables. Table t covers symbols first[t] .. first[t] + n_t - 1 and an escape.

    Attributes:
        counts: all tables one after the other, ``(sum(n_t + 1),) int32``. The last entry of each
            table is the escape, which is coded before the value of a symbol outside its range.
        start: where each table begins in ``counts``, ``(T + 1,) int64``.
        first: the smallest symbol of each table, ``(T,) int32``.
        row_limit: tables of one size with at most so many entries are coded in the order of the
            symbols, others table by table. The format says which tables have another limit.
    """

    counts: np.ndarray
    start: np.ndarray
    first: np.ndarray
    row_limit: int = _ROW_LIMIT
    _rows: np.ndarray | None = field(init=False, repr=False, compare=False)
    _range: tuple[np.ndarray, np.ndarray] | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        integers = (np.int32, np.int64)
        for name, kinds in {"counts": integers, "first": integers, "start": integers[1:]}.items():
            array = getattr(self, name)
            if array.ndim != 1 or array.dtype not in kinds:
                raise ValueError(f"probability tables need a vector of integers as their {name}")
        sizes = np.diff(self.start)
        if (
            len(self.first) != len(sizes)
            or len(sizes) == 0
            or sizes.min() < 2
            or self.start[0] != 0
            or self.start[-1] != len(self.counts)
            or self.counts.min() < 1
            or self.counts.max() >= _TOTAL
            or (np.add.reduceat(self.counts, self.start[:-1], dtype=np.int64) != _TOTAL).any()
            or np.abs(self.first.astype(np.int64)).max() + sizes.max() > _LARGEST_SYMBOL
        ):
            raise ValueError("not a set of probability tables")
        rows = None
        if sizes.min() == sizes.max() <= self.row_limit:
            rows = (self.counts / np.float32(_TOTAL)).astype(np.float32)
            rows = rows.reshape(len(sizes), -1)
        object.__setattr__(self, "_rows", rows)
        same = None
        if sizes.min() == sizes.max() and self.first.min() == self.first.max():
            same = np.array(self.first[0], np.int32), np.array(sizes[0] - 1, np.int32)
        object.__setattr__(self, "_range", same)

    def __len__(self) -> int:
        return len(self.first)

    @classmethod
    def from_pmfs(cls, pmfs: Iterable[tuple[int, np.ndarray]]) -> "Tables":
        """Tables from (first symbol, pmf of consecutive symbols). The rest to 1 is the escape.

        A pmf ``(n,) float64`` that sums to 1 still gets the smallest possible escape.
        """
        first, tables = zip(*pmfs, strict=True)
        sizes = np.array([len(pmf) for pmf in tables])
        start = np.append(0, np.cumsum(sizes + 1))
        counts = np.empty(start[-1], np.int32)
        for size in np.unique(sizes).tolist():
            members = np.flatnonzero(sizes == size)
            places = start[members, None] + np.arange(size + 1)
            counts[places] = _with_escapes(np.stack([tables[i] for i in members.tolist()]))
        return cls(counts, start, np.array(first, np.int32))

    @classmethod
    def from_matrix(cls, first: int | np.ndarray, pmfs: np.ndarray) -> "Tables":
        """The tables that ``from_pmfs`` would make of the rows of ``pmfs (T, n) float64``.

        ``first`` is the first symbol of all of them, or of each, ``(T,)``.
        """
        counts = _with_escapes(pmfs)
        start = np.arange(len(counts) + 1) * counts.shape[1]
        return cls(counts.ravel(), start, np.full(len(counts), first, np.int32))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The arrays a model file stores."""
        return {"counts": self.counts, "start": self.start, "first": self.first}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], row_limit: int = _ROW_LIMIT) -> "Tables":
        return cls(arrays["counts"], arrays["start"], arrays["first"], row_limit)

    def entries(self, symbols: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Each symbol's entry in its table ``(n,) int32``, and whether it escapes ``(n,) bool``."""
        first, size = self.ranges(index)
        entry = symbols.astype(np.int64) - first
        outside = (entry < 0) | (entry >= size)
        return np.where(outside, size, entry).astype(np.int32), outside

    def ranges(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The first symbol and the number of symbols of each of these tables.

        Both are ``(n,) int32``, or ``()`` if all tables cover the same symbols. The entry after the
        last symbol is the escape.
        """
        if self._range is not None:
            return self._range
        return self.first[index], (self.start[index + 1] - self.start[index] - 1).astype(np.int32)

    def least_bits(self) -> np.ndarray:
        """The bits of the likeliest entry of each table, ``(T,) float64``."""
        return PRECISION - np.log2(np.maximum.reduceat(self.counts, self.start[:-1]))

    def bits(self, symbols: np.ndarray, index: np.ndarray) -> np.ndarray:
        """Ideal bits of each symbol, ``(n,) float64``, including the values of escaped ones."""
        entry, outside = self.entries(symbols, index)
        bits = PRECISION - np.log2(self.counts[self.start[index] + entry])
        if outside.any():
            value = _escaped_value(symbols[outside], index[outside], self)
            bits[outside] += 5 + np.floor(np.log2(value))
        return bits

    def draw(self, index: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """Draw symbols ``(n,) int32`` with integers ``(n,)`` that are uniform in [0, 2**20).

        An escape becomes the table's largest symbol.
        """
        ends = np.cumsum(self.counts, dtype=np.int64)
        entry = np.searchsorted(ends, index.astype(np.int64) * _TOTAL + uniform, side="right")
        first, size = self.ranges(index)
        return (np.minimum(entry - self.start[index], size - 1) + first).astype(np.int32)

    def _row(self, table: int) -> np.ndarray:
        piece = self.counts[self.start[table] : self.start[table + 1]]
        return (piece / np.float32(_TOTAL)).astype(np.float32)


def _with_escapes(pmfs: np.ndarray) -> np.ndarray:
    """Counts ``(T, n + 1) int32`` of pmfs ``(T, n)``, with the rest to 1 as the last entry."""
    pmfs = np.ascontiguousarray(pmfs)
    escape = np.maximum(1.0 - pmfs.sum(1, keepdims=True), 0.0)
    return quantize_pmfs(np.concatenate([pmfs, escape], 1))


def _escaped_value(symbols: np.ndarray, index: np.ndarray, tables: Tables) -> np.ndarray:
    """Symbols outside their table as integers >= 1: even above the table, odd below."""
    first = tables.first[index].astype(np.int64)
    last = first + tables.start[index + 1] - tables.start[index] - 2
    symbols = symbols.astype(np.int64)
    return np.where(symbols > last, 2 * (symbols - last), 2 * (first - symbols) + 1) - 1


def _groups(index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A stable order by table, the tables that occur, and the start and end of each one's run."""
    order = np.argsort(index, kind="stable")
    met, begin = np.unique(index[order], return_index=True)
    return order, met, np.append(begin, len(index))


def _digits(value: int) -> list[tuple[int, int]]:
    """Binary digits of value below its leading one, as (chunk, bits), lowest chunk first."""
    length, chunks = value.bit_length() - 1, []
    while length > 0:
        bits = min(length, _DIGIT_BITS)
        chunks.append((value & ((1 << bits) - 1), bits))
        value, length = value >> bits, length - bits
    return chunks


def encode(parts: Sequence[Part], start: int = 0) -> bytes:
    """Code parts ``(symbols (n,) int32, table index (n,) int32, tables)``, in decoding order.

    The coder starts with the number ``start`` of up to 24 bits, and a decoder ends with it. That
    costs almost nothing: a coder that starts with 0 needs up to 24 bits for its first symbol.

    Raises ValueError if lengths or indices are wrong. constriction would panic, or write bytes that
    cannot be decoded.
    """
    if not 0 <= start < 1 << _START_BITS:
        raise ValueError(f"a coder starts with at most {_START_BITS} bits, not with {start}")
    coder = constriction.stream.stack.AnsCoder(_words(start))
    for symbols, index, tables in reversed(parts):
        _check(index, tables)
        if symbols.shape != index.shape:
            raise ValueError(f"{len(symbols)} symbols, but {len(index)} table indices")
        entry, outside = tables.entries(symbols, index)
        if outside.any():
            for value in _escaped_value(symbols[outside], index[outside], tables)[::-1]:
                for chunk, bits in _digits(int(value)):
                    coder.encode_reverse(chunk, constriction.stream.model.Uniform(1 << bits))
                coder.encode_reverse(int(value).bit_length() - 1, _LENGTH)
        if tables._rows is not None:
            chunk = _CHUNK // tables._rows.shape[1]
            for end in range(len(entry), 0, -chunk):
                at = slice(max(end - chunk, 0), end)
                rows = tables._rows.take(index[at], 0)
                coder.encode_reverse(entry[at], _CATEGORICAL, rows)
        else:
            order, met, begin = _groups(index)
            entry = entry[order]
            for i in range(len(met) - 1, -1, -1):
                model = constriction.stream.model.Categorical(tables._row(met[i]), perfect=False)
                coder.encode_reverse(entry[begin[i] : begin[i + 1]], model)
    # The last word is never zero, so its high zero bytes need not be stored.
    return coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")


def _words(start: int) -> np.ndarray:
    """The words of a coder that has started with ``start`` and coded nothing."""
    return np.array([start] if start else [], np.uint32)


def _check(index: np.ndarray, tables: Tables) -> None:
    if len(index) and not (0 <= index.min() and index.max() < len(tables)):
        raise ValueError("a table index is out of range")


class Decoder:
    """Decodes the parts of one ``encode`` call, in their order.

    Wrong bytes may give wrong symbols without an error: the caller compares checks (bitstream.py).
    """

    def __init__(self, data: bytes) -> None:
        if data and not data[-1]:
            raise CorruptStreamError("entropy-coded data ends in a zero byte, as no encoder's")
        words = np.frombuffer(data + b"\0" * (-len(data) % 4), "<u4").astype(np.uint32)
        self._coder = constriction.stream.stack.AnsCoder(words)

    def decode(self, index: np.ndarray, tables: Tables) -> np.ndarray:
        """Symbols ``(n,) int32`` for table indices ``(n,) int32``."""
        _check(index, tables)
        try:
            return self._decode(index, tables)
        except BaseException as error:
            # A panic of Rust code is not an ``Exception``, and its class cannot be imported.
            if type(error).__name__ != "PanicException":
                raise
            raise CorruptStreamError(f"entropy-coded data cannot be decoded: {error}") from error

    def _decode(self, index: np.ndarray, tables: Tables) -> np.ndarray:
        entry = np.empty(len(index), np.int32)
        if tables._rows is not None:
            chunk = _CHUNK // tables._rows.shape[1]
            for offset in range(0, len(index), chunk):
                some = slice(offset, offset + chunk)
                rows = tables._rows.take(index[some], 0)
                entry[some] = self._coder.decode(_CATEGORICAL, rows)
        elif len(index):
            order, met, bounds = _groups(index)
            in_order = np.empty(len(index), np.int32)
            for i, table in enumerate(met):
                row = tables._row(int(table))
                model = constriction.stream.model.Categorical(row, perfect=False)
                count = int(bounds[i + 1] - bounds[i])
                in_order[bounds[i] : bounds[i + 1]] = self._coder.decode(model, count)
            entry[order] = in_order
        first, size = tables.ranges(index)
        symbols: np.ndarray = entry + first
        for at in np.flatnonzero(entry == size).tolist():
            of_it = (int(x if x.ndim == 0 else x[at]) for x in (first, size))
            symbols[at] = self._escape(*of_it)
        return symbols.astype(np.int32, copy=False)

    def _escape(self, first: int, size: int) -> int:
        length = int(self._coder.decode(_LENGTH))
        chunks: list[int] = [min(_DIGIT_BITS, length - at) for at in range(0, length, _DIGIT_BITS)]
        value = 1
        for bits in reversed(chunks):
            model = constriction.stream.model.Uniform(1 << bits)
            value = value << bits | int(self._coder.decode(model))
        value += 1
        distance = value // 2
        symbol = first - distance if value % 2 else first + size - 1 + distance
        if not -(1 << 31) <= symbol < 1 << 31:
            raise CorruptStreamError("an escaped symbol is out of range")
        return symbol

    def ends_with(self, start: int) -> bool:
        """Whether the rest is the number with which the encoder started."""
        return np.array_equal(self._coder.get_compressed(), _words(start))
