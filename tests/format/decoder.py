"""A decoder written from docs/format.md alone. It shares nothing with the package, on purpose.

Entropy decoding is in Python's integers, networks are sums of integers in float64. It is meant to
be read beside the page: the names are the page's. It decodes nested UQDM streams to the exact
picture, and CDC streams to the integers in them.
"""

import hashlib
import json
import re
import struct
import zlib
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

DTYPES = {
    "I8": "<i1", "U8": "<u1", "I16": "<i2", "I32": "<i4", "I64": "<i8",
    "F16": "<f2", "F32": "<f4", "F64": "<f8",
}  # fmt: skip
MATRICES = """
K = 5793 5793 5793 5793 5793 5793 5793 5793 / 8035 6811 4551 1598 -1598 -4551 -6811 -8035
  / 7568 3135 -3135 -7568 -7568 -3135 3135 7568 / 6811 -1598 -8035 -4551 4551 8035 1598 -6811
  / 5793 -5793 -5793 5793 5793 -5793 -5793 5793 / 4551 -8035 1598 6811 -6811 -1598 8035 -4551
  / 3135 -7568 7568 -3135 -3135 7568 -7568 3135 / 1598 -4551 6811 -8035 8035 -6811 4551 -1598
Q = 16094 -2042 -234 -667 667 234 2042 290 / 1797 15237 -3640 998 -998 3640 1147 -1797
  / 667 3452 13920 -4684 4684 2464 -3452 -667 / 998 1177 4582 14805 1579 -4582 -1177 -998
  / -998 -1177 -4582 1579 14805 4582 1177 998 / -667 -3452 2464 4684 -4684 13920 3452 667
  / -1797 1147 3640 -998 998 -3640 15237 1797 / 290 2042 234 667 -667 -234 -2042 16094
"""
K, Q = (
    np.array([row.split() for row in matrix.split("=")[-1].strip().split("/")], np.float64)
    for matrix in re.split(r"\n(?=Q)", MATRICES)
)
ONE = 2.0**14


# -- streams --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stream:
    codec: int
    width: int
    height: int
    model: bytes
    stream_id: int | None
    protected: bool
    header: bytes
    layers: list[bytes]


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def read_stream(data: bytes) -> Stream:
    assert data[:4] == b"STRA"
    parts, at = [], 4
    while at < len(data):
        length, at = varint(data, at)
        assert at + length <= len(data)
        parts.append(data[at : at + length])
        at += length
    header, *layers = parts
    assert header[0] >> 4 == 1
    width, at = varint(header, 2)
    height, at = varint(header, at)
    model, at = header[at : at + 4], at + 4
    stream_id = None
    if header[1] & 2:
        (stream_id,) = struct.unpack_from("<I", header, at)
        at += 4
    assert at == len(header)
    return Stream(
        header[0] & 15, width, height, model, stream_id,
        bool(header[1] & 1), header, layers,
    )  # fmt: skip


# -- entropy coding -------------------------------------------------------------------------------


class Tables:
    def __init__(
        self, counts: np.ndarray, start: np.ndarray, first: np.ndarray, in_order: int = 32
    ) -> None:
        self.counts, self.start, self.first = counts.tolist(), start.tolist(), first.tolist()
        sizes = {b - a for a, b in zip(self.start[:-1], self.start[1:], strict=True)}
        self.in_order = len(sizes) == 1 and max(sizes) <= in_order
        self._edges: dict[int, list[int]] = {}

    def edges(self, t: int) -> list[int]:
        """L_0 .. L_n."""
        if t not in self._edges:
            counts = self.counts[self.start[t] : self.start[t + 1]]
            free, c, edges = np.float32((1 << 24) - len(counts)), 0, []
            for i, count in enumerate(counts):
                edges.append(int(np.float32(c / 2**20) * free) + i)
                c += count
            assert c == 1 << 20
            self._edges[t] = [*edges, 1 << 24]
        return self._edges[t]


class ANS:
    def __init__(self, payload: bytes) -> None:
        payload += bytes(-len(payload) % 4)
        self.words = list(struct.unpack(f"<{len(payload) // 4}I", payload))
        self.state = 0
        self._refill()

    def _refill(self) -> None:
        while self.state < 1 << 32 and self.words:
            self.state = self.state << 32 | self.words.pop()

    def entry(self, edges: list[int]) -> int:
        q = self.state & 0xFFFFFF
        i = bisect_right(edges, q) - 1
        self.state = (self.state >> 24) * (edges[i + 1] - edges[i]) + q - edges[i]
        self._refill()
        return i

    def uniform(self, bits: int) -> int:
        return self.entry([i << (24 - bits) for i in range((1 << bits) + 1)])

    def decode(self, numbers: np.ndarray, tables: Tables) -> np.ndarray:
        """The symbols of a pass."""
        order = range(len(numbers))
        if not tables.in_order:
            order = np.argsort(numbers, kind="stable").tolist()
        entries = np.zeros(len(numbers), np.int64)
        for at in order:
            entries[at] = self.entry(tables.edges(int(numbers[at])))
        symbols = entries.copy()
        for at, t in enumerate(numbers.tolist()):
            first, n = tables.first[t], tables.start[t + 1] - tables.start[t]
            symbols[at] += first
            if entries[at] == n - 1:
                symbols[at] = self._escape(first, n)
        return symbols

    def _escape(self, first: int, n: int) -> int:
        k = self.uniform(5)
        v = 1
        for bits in [k % 15] * (k % 15 > 0) + [15] * (k // 15):
            v = v << bits | self.uniform(bits)
        return first + n - 2 + (v + 1) // 2 if v % 2 else first - v // 2


class LayerReader:
    """One layer: its crc at the beginning, its checks when its passes are decoded."""

    def __init__(self, stream: Stream, model_id: bytes, number: int) -> None:
        data = stream.layers[number]
        (crc,) = struct.unpack_from("<I", data)
        assert crc == zlib.crc32(model_id + stream.header + bytes([number]) + data[4:])
        at, self.index_check = 4, None
        if stream.protected:
            length, at = varint(data, at)
            self.protection, at = data[at : at + length], at + length
            (self.index_check,) = struct.unpack_from("<H", data, at)
            at += 2
        payload = data[at:]
        assert not payload or payload[-1]
        self.ans = ANS(payload)
        self.numbers = self.symbols = b""

    def decode(self, numbers: np.ndarray, tables: Tables) -> np.ndarray:
        symbols = self.ans.decode(numbers, tables)
        self.numbers += numbers.astype("<i4").tobytes()
        self.symbols += symbols.astype("<i4").tobytes()
        return symbols

    def finish(self) -> None:
        assert self.index_check in (None, zlib.crc32(self.numbers) >> 16)
        assert self.ans.state == zlib.crc32(self.numbers + self.symbols) >> 8
        assert not self.ans.words


# -- models ---------------------------------------------------------------------------------------


class Model:
    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        self.id = hashlib.sha256(data).digest()
        (length,) = struct.unpack_from("<Q", data)
        told = json.loads(data[8 : 8 + length])
        self.config: dict[str, Any] = json.loads(told.pop("__metadata__")["strata"])
        assert self.config["format"] == 1
        self.tensors: dict[str, np.ndarray] = {}
        for name, one in told.items():
            begin, end = (8 + length + offset for offset in one["data_offsets"])
            array = np.frombuffer(data[begin:end], DTYPES[one["dtype"]])
            self.tensors[name] = array.reshape(one["shape"])

    def tables(self, prefix: str, in_order: int = 32) -> Tables:
        arrays = (self.tensors[f"{prefix}.{name}"] for name in ("counts", "start", "first"))
        return Tables(*arrays, in_order)


def rne(x: Any) -> Any:
    return np.rint(x)


def f32(x: Any) -> Any:
    """Of integers below 2**24, which float32 holds."""
    return x.astype(np.float32)


class Network:
    """Stem, blocks and head, whose sums are exact in float64."""

    def __init__(self, model: Model, prefix: str) -> None:
        name = prefix + "."
        self.t = {n[len(name) :]: a for n, a in model.tensors.items() if n.startswith(name)}
        self.blocks = model.config[prefix]["blocks"]
        self.exact = {n: a.astype(np.float64) for n, a in self.t.items() if n.endswith("weight")}

    def trunk(self, features: np.ndarray, step: int, colours: np.ndarray) -> np.ndarray:
        """What the head sees, ``(h, w, channels)`` integers, of integers ``(h, w, inputs)``."""
        t = self.t
        h = features @ self.exact["stem.weight"].T + t["stem.bias"][step][colours]
        return self.seen(np.clip(rne(f32(h) * t["stem.scale"]), -32767, 32767), step)

    def seen(self, h: np.ndarray, step: int) -> np.ndarray:
        """The blocks: what the head sees of h."""
        t, exact = self.t, self.exact
        height, width, _ = h.shape
        for i in range(self.blocks):
            b = f"blocks.{i}."
            x = np.clip(rne(f32(h) * t[b + "gain"][step]), -127, 127)
            padded = np.pad(x.astype(np.float64), ((2, 2), (2, 2), (0, 0)))
            weight = exact[b + "depthwise.weight"][:, 0]
            x = sum(
                padded[i : i + height, j : j + width] * weight[:, i, j]
                for i in range(5)
                for j in range(5)
            )
            x = np.clip(rne(f32(x) * t[b + "depthwise.scale"]), -127, 127)
            x = x.astype(np.float64) @ exact[b + "expand.weight"].T + t[b + "expand.bias"][step]
            x = np.clip(rne(f32(x) * t[b + "expand.scale"]), 0, 255)
            x = x.astype(np.float64) @ exact[b + "project.weight"].T
            x = np.clip(rne(f32(x) * t[b + "project.scale"]), -32767, 32767)
            h = np.clip(h + x, -32767, 32767)
        return np.clip(rne(f32(h) * t["head.gain"][step]), -127, 127).astype(np.float64)

    def out(self, x: np.ndarray, step: int) -> np.ndarray:
        """The head's outputs ``(h, w, outputs)``, rounded."""
        return rne(f32(x @ self.exact["head.weight"].T) * self.t["head.scale"][step]).astype(int)

    def corrected(self, number: int, seen: np.ndarray) -> np.ndarray:
        """What the head of a pass of the pixel network says, ``(h, w, 2)`` integers."""
        t, exact, b = self.t, self.exact, f"heads.{number}."
        x = seen @ exact[b + "expand.weight"].T + t[b + "expand.bias"]
        x = np.clip(rne(f32(x) * t[b + "expand.scale"]), 0, 255).astype(np.float64)
        return rne(f32(x @ exact[b + "project.weight"].T) * t[b + "project.scale"]).astype(int)


# -- UQDM, nested ---------------------------------------------------------------------------------

TILT, WIDTH, SHIFT = range(3)
LATTICE = np.array([[0, 4, 2, 4], [4, 3, 4, 3], [2, 4, 1, 4], [4, 3, 4, 3]])
ROOMS = np.array([1] * 5 + [2] * 4 + [3, 3, 4, 4, 5, 6, 7] + [8] * 17)
SCALES = np.array([1.0, 1.1892071, 1.4142135, 1.6817929], np.float32)


class Nested:
    def __init__(self, model: Model) -> None:
        self.model = model
        n = self.nested = model.config["nested"]
        self.levels = n["levels"]
        self.delta = n["first_delta"] / 3 ** (self.levels - 1)
        self.weights = np.array(n["band_weights"], np.float64)
        self.synthesis = rne(ONE * np.array(n["colours"], np.float64).reshape(3, 3))
        self.linear = (40 * self.delta / np.array(n["band_rms"], np.float64)).astype(np.float32)
        self.companded = np.rint(12 * np.log2(1 + np.arange(1024))).astype(int)
        self.low, self.leading = self._up_to(n["low_order"]), self._up_to(n["lead_order"])
        self.bands = [self._up_to(order) for order in n["orders"]]
        self.lead = n["lead"]
        for level in range(1, self.lead + 1):
            self.bands[level] &= ~self.leading
        self.trunk, self.light = Network(model, "network"), Network(model, "first_network")
        self.later = Network(model, "pass_network")
        self.tables = {name: model.tables(f"tables.{name}") for name in ("first", "refine")}
        if "pixel_network" in model.config:
            self.pixels = Network(model, "pixel_network")
            self.tables["residual"] = model.tables("tables.residual", 128)
            self.tables["tuning"] = model.tables("tables.tuning")

    @staticmethod
    def _up_to(order: list[int]) -> np.ndarray:
        sums = np.add.outer(np.arange(8), np.arange(8))
        return np.concatenate([(sums <= order[c > 0]).ravel() for c in range(3)])

    @staticmethod
    def colours(g: np.ndarray) -> np.ndarray:
        y, x = np.mgrid[: g.shape[0], : g.shape[1]]
        return LATTICE[y % 4, x % 4]

    def unit(self, level: int) -> int:
        return 3 ** (self.levels - 1 - level)

    def units(self, level: int) -> np.ndarray:
        """What a digit of each band is worth."""
        return np.where(self.leading & (level < self.lead), self.unit(self.lead), self.unit(level))

    def features(self, g: np.ndarray, size: np.ndarray, bands: np.ndarray) -> np.ndarray:
        """Of some bands; ``size`` is |G| in the unit of companded features."""
        companded = np.sign(g) * self.companded[np.minimum(size, 1023)]
        linear = np.clip(rne(f32(g) * self.linear), -127, 127)
        return np.concatenate([companded[..., bands], linear[..., bands]], -1).astype(np.float64)

    def look(self, g: np.ndarray, level: int) -> np.ndarray:
        """What the trunk's head sees before a level; after the last one if it is ``levels``."""
        size = abs(g) * 3 if level == self.levels else abs(g) // self.units(level)
        return self.trunk.trunk(self.features(g, size, np.arange(192)), level - 1, self.colours(g))

    def decode(self, stream: Stream) -> list[np.ndarray]:
        """G after every level, and last the picture ``(H, W, 3)``, as far as there are layers."""
        height, width = -(-stream.height // 8), -(-stream.width // 8)
        g = np.zeros((height, width, 192), int)
        seen = []
        for layer in range(len(stream.layers)):
            reader = LayerReader(stream, self.model.id, layer)
            if layer == self.levels:
                seen.append(self._lossless(reader, g, stream.height, stream.width))
            else:
                (self._level if layer else self._first_level)(reader, g, layer)
                seen.append(g.copy())
            reader.finish()
        return seen

    def _mask(self, g: np.ndarray, level: int, number: int) -> np.ndarray:
        """Which coefficients have digits in a pass."""
        kind, chosen = self.nested["passes"][level][number]
        which = {"low": self.low, "high": ~self.low, "all": True}[kind]
        return np.isin(self.colours(g), chosen)[..., None] & (self.bands[level] & which)

    def _first_level(self, reader: LayerReader, g: np.ndarray, _: int) -> None:
        bands, bias = np.flatnonzero(self.bands[0]), self.model.tensors["first_bias"]
        tilts, widths = (self.nested[name]["size"] for name in ("first_tilt", "first_width"))
        for number in range(len(self.nested["passes"][0])):
            seen = self.features(g, abs(g) // self.units(0), bands)
            out = self.light.out(self.light.trunk(seen, number, self.colours(g)), number)
            values = np.zeros((2, *g.shape), int)
            for group in (TILT, WIDTH):
                own = out[..., group * len(bands) : (group + 1) * len(bands)]
                values[group][..., bands] = own + bias[number, group, 0][bands]
            tilt, width = np.clip(values[0], 0, tilts - 1), np.clip(values[1], 0, widths - 1)
            index = (self.low * tilts + tilt) * widths + width
            mask = self._mask(g, 0, number)
            k = np.zeros(g.shape, int)
            k[mask] = reader.decode(index[mask], self.tables["first"])
            g += k * self.units(0)

    def _level(self, reader: LayerReader, g: np.ndarray, level: int) -> None:
        bias, later = self.model.tensors["bias"][level - 1], self.later
        passes = self.nested["passes"]
        step = sum(len(of_one) - 1 for of_one in passes[1:level])
        tilts, widths = (self.nested[name]["size"] for name in ("tilt", "width"))
        before, digits = g.copy(), np.zeros(g.shape, int)
        trunk = self.look(before, level)
        sums = f32(trunk @ later.exact["join.weight"].T) * later.t["join.scale"][level - 1]
        joined = np.clip(rne(sums), -32767, 32767).astype(int)
        first = self.trunk.out(trunk, level - 1)[..., :384]
        kind = (before != 0).astype(int) + (abs(before) > self.unit(level - 1)) + 3 * (level - 1)
        for number in range(len(passes[level])):
            out = first
            if number:
                signed = np.clip(40 * digits, -127, 127)
                seen = np.concatenate([signed, abs(signed)], -1).astype(np.float64)
                told = rne(f32(seen @ later.exact["stem.weight"].T) * later.t["stem.scale"])
                h = told.astype(int) + joined + later.t["stem.bias"][step][self.colours(g)]
                out = first + later.out(later.seen(np.clip(h, -32767, 32767), step), step)
                step += 1
            values = rne(out / 16).astype(int).reshape(*g.shape[:2], 2, 192)
            values += np.where((before != 0)[..., None, :], bias[:2, 1], bias[:2, 0])
            tilt = np.clip(values[..., TILT, :], 0, tilts - 1)
            width = np.clip(values[..., WIDTH, :], 0, widths - 1)
            index = (kind * tilts + np.where(before < 0, tilts - 1 - tilt, tilt)) * widths + width
            mask = self._mask(g, level, number)
            k = reader.decode(index[mask], self.tables["refine"])
            digits[mask] = np.where(before[mask] < 0, -k, k)
        g += digits * self.unit(level)

    def expected(self, g: np.ndarray, layers: int) -> np.ndarray:
        """E after some levels, in 1/32 of the last Delta."""
        if layers == 0:
            return np.zeros_like(g)
        bias = self.model.tensors["bias"][layers - 1, SHIFT]
        out = self.trunk.out(self.look(g, layers), layers - 1)[..., 384:]
        shift = np.clip(out + np.where(g != 0, bias[1], bias[0]), -127, 127)
        return 32 * g + 3 ** (self.levels - layers) * shift

    def _lossless(self, reader: LayerReader, g: np.ndarray, height: int, width: int) -> np.ndarray:
        factor = rne(2.0**16 * (self.delta / 32 * 128 * 64) / self.weights)
        e = np.clip(rne(self.expected(g, self.levels) * factor / 2.0**16), -(2**19), 2**19)
        a = inverse(e, self.synthesis)
        p = np.clip(rne(a / 4) + 2040, 0, 4080).astype(int)
        return self._by_pixels(reader, p, height, width)

    def _by_pixels(self, reader: LayerReader, p: np.ndarray, height: int, width: int) -> np.ndarray:
        places = [(0, 0), (1, 1), (0, 1), (1, 0)]
        bias = self.model.tensors["pixel_network.bias"].astype(int)
        r, pixels = np.zeros_like(p), np.zeros((3, height, width), int)
        units, shifts, coefficients = self._tuning(reader)
        mean = sum(p[:, i::2, j::2] for i, j in places) / 4
        for t in range(12):
            (i, j), c = places[t // 3], (1, 0, 2)[t % 3]
            if t % 3 == 0:
                seen = self._around(p, r, mean, places)
                trunk = self.pixels.trunk(seen, t // 3, np.zeros(seen.shape[:2], int))
                out = self.pixels.out(trunk, t // 3)
                errors: list[np.ndarray] = []
            own = out[..., 2 * t : 2 * t + 2] + bias[t]
            if errors:
                own += self.pixels.corrected(t, np.concatenate([trunk, *errors], -1))
            own[..., 1] += shifts[t]
            if len(coefficients[t]):
                z = np.concatenate([trunk, *errors, np.full((*trunk.shape[:2], 1), 4.0)], -1)
                sums = f32(z[..., -len(coefficients[t]) :] @ coefficients[t].astype(np.float64))
                own[..., 0] += rne(sums * f32(0.5 ** ((units[t] - 1) % 7))).astype(int)
            shift = np.clip(own[..., 0], -4080, 4080)
            predicted = np.clip(p[c, i::2, j::2] + shift, 0, 4080)
            spread = np.clip(own[..., 1], 0, 32)
            nearest = (predicted + 8) // 16
            number = (predicted - 16 * nearest + 8) * 33 + spread
            above, rooms = 255 - nearest, ROOMS[spread]
            number = np.where(above < rooms, 528 + above * 33 + spread, number)
            number = np.where(nearest < rooms, 792 + nearest * 33 + spread, number)
            here = pixels[c, i::2, j::2]
            rows, columns = here.shape
            k = reader.decode(number[:rows, :columns].ravel(), self.tables["residual"])
            here[:] = nearest[:rows, :columns] + k.reshape(rows, columns)
            base = p[c, i:height:2, j:width:2]
            r[c, i:height:2, j:width:2] = 16 * here - base
            e = p[c, i::2, j::2] + r[c, i::2, j::2] - predicted
            scale = SCALES[(12 - spread) % 4] * f32(2.0 ** ((12 - spread) // 4))
            errors.append(np.clip(rne(np.stack([e / 4, e / 32, f32(e) * scale], -1)), -127, 127))
        assert pixels.min() >= 0
        assert pixels.max() <= 255
        return pixels.transpose(1, 2, 0).astype(np.uint8)

    def _tuning(self, reader: LayerReader) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """Units and shifts, (12,) each, and the coefficients of each pass."""
        tables = self.tables["tuning"]
        first = reader.decode(np.tile([0, 1], 12), tables)
        units, shifts = first[::2], first[1::2]
        assert ((units >= 0) & (units <= 14) & (abs(shifts) <= 12)).all()
        channels = self.model.config["pixel_network"]["channels"]
        numbers, ends = [], []
        for t, unit in enumerate(units):
            of_trunk = [2] * channels if unit < 8 else []
            numbers += [*of_trunk, *[3] * (t % 3 * 3), 4] if unit else []
            ends.append(len(numbers))
        symbols = reader.decode(np.array(numbers, int), tables)
        assert (abs(symbols) <= 127).all()
        return units, shifts, np.split(symbols, ends[:-1])

    @staticmethod
    def _around(
        p: np.ndarray, r: np.ndarray, mean: np.ndarray, places: list[tuple[int, int]]
    ) -> np.ndarray:
        """What a pixel network sees of each cell."""
        fine = [r[k, y::2, x::2] / 4 for k in range(3) for y, x in places]
        coarse = [r[k, y::2, x::2] / 32 for k in range(3) for y, x in places]
        detail = [(p[k, y::2, x::2] - mean[k]) / 4 for k in range(3) for y, x in places]
        seen = np.stack([*fine, *coarse, *detail, *(mean / 16 - 128)], -1)
        return np.clip(rne(seen), -127, 127)

    def shown(self, g: np.ndarray, layers: int, height: int, width: int) -> np.ndarray:
        """The picture after some levels; a float inverse will do."""
        e = self.expected(g, layers) * (self.delta / 32 / self.weights)
        x = inverse(rne(e * 2**24), self.synthesis) / 2**24
        pixels = np.clip(rne((x + 1) * 128 - 0.5), 0, 255)
        return pixels[:, :height, :width].transpose(1, 2, 0).astype(np.uint8)


def layout(values: np.ndarray) -> np.ndarray:
    """``(h, w, 192)`` to ``(3, 8 h, 8 w)``: of each block colour, row, column."""
    height, width, _ = values.shape
    x = values.reshape(height, width, 3, 8, 8).transpose(2, 0, 3, 1, 4)
    return x.reshape(3, 8 * height, 8 * width)


def inverse(e: np.ndarray, synthesis: np.ndarray) -> np.ndarray:
    """Integers ``(3, 8 h, 8 w)`` of bands ``(h, w, 192)``, exactly."""
    e = e.astype(np.float64).reshape(*e.shape[:2], 3, 8, 8)
    b = np.einsum("ui,vj,yxcuv->yxcij", K, K, e)
    x = layout(rne(b / ONE).reshape(*e.shape[:2], 192))
    for axis in (1, 2):
        x = np.moveaxis(x, axis, -1).copy()
        for at in range(8, x.shape[-1], 8):
            x[..., at - 4 : at + 4] = rne(x[..., at - 4 : at + 4] @ Q / ONE)
        x = np.moveaxis(x, -1, axis)
    return rne(np.einsum("cd,cyx->dyx", synthesis, x) / ONE**2)


# -- CDC ------------------------------------------------------------------------------------------


class CDC:
    def __init__(self, model: Model) -> None:
        self.model, self.t = model, model.tensors
        self.qualities, self.channels = self.t["medians"].shape
        self.hyper, self.trees = model.tables("hyper"), model.tables("trees.tables")
        free = (1 << 20) - self.qualities - 1
        counts = [
            free // self.qualities + 1 + (i < free % self.qualities) for i in range(self.qualities)
        ]
        self.of_quality = Tables(
            np.array([*counts, 1]), np.array([0, self.qualities + 1]), np.zeros(1)
        )
        root, low, third, child = 0, [], [], []
        self.roots = []
        for levels in self.t["trees.levels"].tolist():
            self.roots.append(root)
            count = (3**levels - 1) // 2
            for d in range(levels):
                for i in range(3**d):
                    j = (3**d - 1) // 2 + i
                    low.append(i * 3 ** (levels - d) - (3**levels - 1) // 2)
                    third.append(3 ** (levels - d - 1))
                    child.append(root + 3 * j + 1 if d + 1 < levels else -1)
            root += count
        self.low, self.third, self.child = np.array(low), np.array(third), np.array(child)

    def decode(self, stream: Stream) -> tuple[int, list[np.ndarray]]:
        """Quality, then z ``(C, h, w)``, then after every further layer r ``(M, 4 h, 4 w)``.

        r is the expectation of what is not known.
        """
        rows, columns = -(-stream.height // 64), -(-stream.width // 64)
        reader = LayerReader(stream, self.model.id, 0)
        (quality,) = reader.decode(np.zeros(1, np.int64), self.of_quality).tolist()
        first = quality * self.channels
        index = np.repeat(np.arange(first, first + self.channels), rows * columns)
        z = reader.decode(index, self.hyper).reshape(self.channels, rows, columns)
        reader.finish()
        scales = self.scale_index(z, quality)
        node = np.array(self.roots)[scales.ravel()]
        is_root = np.ones(len(node), bool)
        r = np.zeros(len(node), np.int64)
        layer_of, seen = self.t["layers"][quality], [z]
        for number in range(1, len(stream.layers)):
            reader = LayerReader(stream, self.model.id, number)
            while True:
                at = np.flatnonzero((node >= 0) & (layer_of[node] == number - 1))
                if not len(at):
                    break
                here = node[at]
                symbols = reader.decode(here, self.trees)
                low, third, child = self.low[here], self.third[here], self.child[here]
                outside = (symbols < 0) | (symbols > 2)
                assert is_root[at][outside].all()
                done = outside | (child < 0)
                value = np.where(symbols > 2, low + 3 * third - 3 + symbols, low + symbols)
                r[at[done]] = value[done]
                node[at] = np.where(done, -1, child + symbols)
                is_root[at] = False
            reader.finish()
            expected = np.where(node < 0, r, self.t["trees.mean"][node])
            seen.append(expected.reshape(scales.shape))
        return quality, seen

    def scale_index(self, z: np.ndarray, quality: int) -> np.ndarray:
        limit = 2.0**23
        x = 4096 * z + self.t["medians"][quality][:, None, None]
        x = np.clip(x.astype(np.float64), -limit, limit)
        i = 0
        while f"integers.{i}.slope" in self.t or f"integers.{i}.weight" in self.t:
            name = f"integers.{i}."
            if name + "slope" in self.t:
                x = np.where(x < 0, rne(x * self.t[name + "slope"]), x)
            else:
                parts = (self.t[name + n] for n in ("weight", "bias", "geometry"))
                x = np.clip(
                    rne(convolve(x, *parts) * self.t[name + "scale"][:, None, None]), -limit, limit
                )
            i += 1
        x = x + self.t["scale_offsets"][quality][:, None, None]
        return np.searchsorted(self.t["thresholds"], x, side="right")


def convolve(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, geometry: np.ndarray
) -> np.ndarray:
    """Exact sums ``(O, s h, s w) float64`` of ``x (I, h, w)``."""
    transposed, stride, padding = geometry.tolist()
    _, height, width = x.shape
    kernel = weight.shape[-1]
    # room for every place that an input reaches, then cut
    out = np.zeros((len(bias), stride * height + 2 * kernel, stride * width + 2 * kernel))
    for j in range(kernel):
        for k in range(kernel):
            part = np.einsum("oi,iyx->oyx", weight[:, :, j, k].astype(np.float64), x, optimize=True)
            # input i goes to stride * i + j - padding; a correlation's to i - j + padding
            down, right = (j - padding, k - padding) if transposed else (padding - j, padding - k)
            rows = slice(kernel + down, kernel + down + stride * height, stride)
            columns = slice(kernel + right, kernel + right + stride * width, stride)
            out[:, rows, columns] += part
    inside = out[:, kernel : kernel + stride * height, kernel : kernel + stride * width]
    return inside + bias[:, None, None]


# -- dither ---------------------------------------------------------------------------------------


def philox(key: tuple[int, int], count: int) -> list[int]:
    """Words of Philox 4x64-10, counter from 1 on."""
    mask, words, counter = (1 << 64) - 1, [], 0
    while len(words) < count:
        counter += 1
        a, b, c, d = counter, 0, 0, 0
        k, m = key
        for _ in range(10):
            left, right = a * 0xD2E7470EE14C6C93, c * 0xCA5A826395121157
            a, b, c, d = (right >> 64) ^ b ^ k, right & mask, (left >> 64) ^ d ^ m, left & mask
            k, m = (k + 0x9E3779B97F4A7C15) & mask, (m + 0xBB67AE8584CAA73B) & mask
        words += [a, b, c, d]
    return words[:count]


def uniform(stream_id: int, draw: int, count: int) -> np.ndarray:
    octets = b"".join(w.to_bytes(8, "little") for w in philox((stream_id, draw), -(-count // 16)))
    nibbles = [n for octet in octets for n in (octet & 15, octet >> 4)]
    return (np.array(nibbles[:count]) - 7.5) / 16


def normal(stream_id: int, draw: int, count: int, quantiles: np.ndarray) -> np.ndarray:
    words = philox((stream_id, draw), -(-count // 4))
    numbers = [w >> (16 * i) & 0xFFFF for w in words for i in range(4)]
    return quantiles[np.array(numbers[:count]) >> 4]
