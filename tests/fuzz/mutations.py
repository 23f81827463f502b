"""Damaged and forged streams, made of sound ones by a random generator: the same seed, the same."""

import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from codec import EncodedImage
from codec.stream import bitstream

SIZES = (0, 1, 2, 7, 8, 9, 63, 64, 65, 200, 256, 257, 1000, 4096, 60_000, 1 << 20, 1 << 40)
BYTES = (0, 1, 0x7F, 0x80, 0xFF)


@dataclass(frozen=True)
class Mutant:
    """A file, and how far its maker went: ``repaired`` checksums say that the damage is meant."""

    data: bytes
    repaired: bool


def mutate(rng: random.Random, sound: Sequence[EncodedImage]) -> Mutant:
    """One to three mutations of one of some streams; the others are what splices take from."""
    stream = rng.choice(sound)
    other = rng.choice(sound)
    for _ in range(rng.choice((1, 1, 2, 3))):
        if rng.random() < 0.4:
            stream = rng.choice(STRUCTURAL)(rng, stream, other)
        else:
            stream = _damage_one_part(rng, stream, other)
    repaired = rng.random() < 0.5
    if repaired:
        stream = repair(stream, rng.choice(sound).info.model)
    data = stream.to_bytes()
    if not repaired and rng.random() < 0.5:
        data = damage(rng, data, other.to_bytes())
    return Mutant(data, repaired)


def damage(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Bits and bytes of a file changed, lost or from elsewhere."""
    out = bytearray(data)
    at = rng.randrange(len(out) + 1)
    kind = rng.randrange(6)
    if kind == 0 and out:
        for _ in range(rng.choice((1, 1, 1, 2, 8))):
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    elif kind == 1 and out:
        out[rng.randrange(len(out))] = rng.choice((*BYTES, rng.randrange(256)))
    elif kind == 2:
        del out[at:]
    elif kind == 3:
        del out[at : at + rng.randrange(1, 9)]
    elif kind == 4:
        out[at:at] = rng.randbytes(rng.randrange(1, 9))
    else:
        out[at:] = other[rng.randrange(len(other) + 1) :]
    return bytes(out)


def _damage_one_part(rng: random.Random, stream: EncodedImage, other: EncodedImage) -> EncodedImage:
    number = rng.randrange(-1, len(stream.layers))
    if number < 0:
        return replace(stream, header=damage(rng, stream.header, other.header))
    theirs = other.layers[number % len(other.layers)] if other.layers else b""
    return with_layer(stream, number, damage(rng, stream.layers[number], theirs))


def with_layer(stream: EncodedImage, number: int, layer: bytes) -> EncodedImage:
    layers = [*stream.layers]
    layers[number] = layer
    return replace(stream, layers=tuple(layers))


# -- structural -----------------------------------------------------------------------------------


def _another_header(rng: random.Random, stream: EncodedImage, _: EncodedImage) -> EncodedImage:
    """A header of fields that may be anything, framed as it should be."""
    try:
        info = stream.info
    except Exception:
        return stream
    width, height = info.width, info.height
    if rng.random() < 0.7:
        width = rng.choice((*SIZES, width + 1, width - 1 & 0xFFFF, height))
    if rng.random() < 0.5:
        height = rng.choice((*SIZES, height + 1, width))
    version = rng.choice((bitstream.VERSION,) * 4 + (2,))
    codec = bitstream.CODECS[info.codec] if rng.random() < 0.9 else 7
    flags = rng.choice((0, 1, 2, 3, stream.header[1], stream.header[1], 0x80))
    out = bytes([version << 4 | codec, flags]) + bitstream.varint(width) + bitstream.varint(height)
    out += bytes.fromhex(info.model)
    if flags & 2:
        out += rng.choice((b"\0" * 4, b"\xff" * 4, rng.randbytes(4)))
    return replace(stream, header=out)


def _layers_moved(rng: random.Random, stream: EncodedImage, other: EncodedImage) -> EncodedImage:
    layers = [*stream.layers]
    rng.shuffle(layers)
    cut = rng.randrange(len(layers) + 1)
    return replace(stream, layers=tuple(rng.choice((layers, [*stream.layers[:cut], *layers]))))


def _layers_of_two(rng: random.Random, stream: EncodedImage, other: EncodedImage) -> EncodedImage:
    cut = rng.randrange(len(stream.layers) + 1)
    return replace(stream, layers=(*stream.layers[:cut], *other.layers[cut:]))


def _too_many(rng: random.Random, stream: EncodedImage, _: EncodedImage) -> EncodedImage:
    times = rng.choice((2, 10, 70))
    return replace(stream, layers=(stream.layers * times)[: rng.choice((63, 64, 65, 500))])


def _empty(rng: random.Random, stream: EncodedImage, _: EncodedImage) -> EncodedImage:
    if not stream.layers:
        return stream
    number = rng.randrange(len(stream.layers))
    return with_layer(stream, number, stream.layers[number][: rng.choice((0, 3, 4, 5, 9))])


def _another_payload(rng: random.Random, stream: EncodedImage, _: EncodedImage) -> EncodedImage:
    if not stream.layers:
        return stream
    number = rng.randrange(len(stream.layers))
    size = rng.choice((0, 1, 3, 4, 5, 60, 3000))
    payload = rng.choice((rng.randbytes(size), b"\xff" * size, b"\1" * size, bytes(size) + b"\1"))
    return with_layer(stream, number, stream.layers[number][:4] + payload)


def _another_length(rng: random.Random, stream: EncodedImage, _: EncodedImage) -> EncodedImage:
    """Of the protection, where the header says that there is one."""
    if not stream.layers:
        return stream
    number = rng.randrange(len(stream.layers))
    body = stream.layers[number][4:]
    length = bitstream.varint(rng.choice((0, 1, 5, len(body), 1 << 31, 1 << 62)))
    return with_layer(stream, number, bytes(4) + length + body)


Structural = Callable[[random.Random, EncodedImage, EncodedImage], EncodedImage]
STRUCTURAL: tuple[Structural, ...] = (
    _another_header,
    _another_header,
    _layers_moved,
    _layers_of_two,
    _too_many,
    _empty,
    _another_payload,
    _another_length,
)


def repair(stream: EncodedImage, model: str) -> EncodedImage:
    """The stream with checksums that fit its layers, so that what lies behind them is reached.

    They cover the whole model id, which ``MODELS`` knows by its first eight digits.
    """
    model_id = MODELS.get(model, model * 8)
    layers = []
    for number, layer in enumerate(stream.layers):
        covered = bytes.fromhex(model_id) + stream.header + bytes([number & 255]) + layer[4:]
        layers.append(zlib.crc32(covered).to_bytes(4, "little") + layer[4:])
    return replace(stream, layers=tuple(layers))


MODELS: dict[str, str] = {}  # whole ids by their first eight digits
