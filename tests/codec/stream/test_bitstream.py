"""The stream format: what is written is read again, and no flipped bit goes unnoticed."""

import pickle
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codec.base import EncodedImage
from codec.errors import CorruptStreamError, StrataError, UnknownModelError, UnsupportedImageError
from codec.stream import bitstream
from codec.stream.bitstream import Layer, StreamHeader

MODEL = "0123456789abcdef" * 4
HEADER = StreamHeader("uqdm", 768, 512, MODEL[:8])

headers = st.builds(
    StreamHeader,
    codec=st.sampled_from(sorted(bitstream.CODECS)),
    width=st.integers(1, 1 << 15),
    height=st.integers(1, 1 << 15),
    model=st.binary(min_size=4, max_size=4).map(bytes.hex),
    stream_id=st.none() | st.integers(0, (1 << 32) - 1),
    protected=st.booleans(),
)
layers = st.builds(
    Layer,
    payload=st.binary(max_size=300),
    index_check=st.integers(0, 0xFFFF),
    protection=st.binary(max_size=200),
)


def fitting(header: StreamHeader, layer: Layer) -> Layer:
    """The layer without what the header says that it has not."""
    return layer if header.protected else Layer(layer.payload)


def stream(header: StreamHeader = HEADER, sizes=(0, 5, 200, 1000)) -> EncodedImage:
    packed = bitstream.pack_header(header)
    protection = b"guard" if header.protected else b""
    contents = [
        fitting(header, Layer((bytes(range(256)) * 4)[:size], number, protection))
        for number, size in enumerate(sizes)
    ]
    return EncodedImage(
        packed,
        tuple(
            bitstream.pack_layer(MODEL, packed, number, layer)
            for number, layer in enumerate(contents)
        ),
    )


def parse(data: bytes) -> list[Layer]:
    """Read a whole file the way a decoder does."""
    encoded = EncodedImage.from_bytes(data)
    if encoded.info.model != MODEL[:8]:
        raise UnknownModelError("another model's stream")
    return [
        bitstream.unpack_layer(MODEL, encoded.header, number, layer)
        for number, layer in enumerate(encoded.layers)
    ]


@given(headers)
def test_header_round_trip(header):
    packed = bitstream.pack_header(header)
    assert bitstream.unpack_header(packed) == header
    assert len(packed) <= 16


@given(headers, layers, st.integers(0, bitstream.MAX_LAYERS - 1))
def test_layer_round_trip(header, layer, number):
    packed, layer = bitstream.pack_header(header), fitting(header, layer)
    data = bitstream.pack_layer(MODEL, packed, number, layer)
    assert bitstream.unpack_layer(MODEL, packed, number, data) == layer


def test_the_overhead_is_small():
    encoded = stream(StreamHeader("uqdm", 64, 64, MODEL[:8]), sizes=(10,))
    assert len(encoded.header) == 8
    assert len(encoded.layers[0]) == 4 + 10
    assert encoded.nbytes == 22
    assert encoded.bpp == 8 * 22 / 64**2


@pytest.mark.parametrize("protected", [False, True])
@pytest.mark.parametrize("stream_id", [None, 5])
def test_every_flipped_bit_of_a_file_is_noticed(protected, stream_id):
    header = StreamHeader("uqdm", 300, 5, MODEL[:8], stream_id, protected)
    data = stream(header, sizes=(0, 5, 140)).to_bytes()
    assert len(parse(data)) == 3
    for at in range(len(data)):
        for bit in range(8):
            damaged = data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
            with pytest.raises(StrataError):
                parse(damaged)


def test_damage_is_reported_with_its_layer():
    encoded = stream()
    damaged = bytearray(encoded.layers[2])
    damaged[50] ^= 1
    layers = (*encoded.layers[:2], bytes(damaged), encoded.layers[3])
    with pytest.raises(CorruptStreamError, match="layer 3") as caught:
        parse(EncodedImage(encoded.header, layers).to_bytes())
    assert caught.value.layer == 2
    again = pickle.loads(pickle.dumps(caught.value))  # errors travel between Ray processes
    assert (str(again), again.layer) == (str(caught.value), 2)


def test_a_layer_only_fits_its_place_picture_and_model():
    ours, other = stream(), stream(StreamHeader("uqdm", 767, 512, MODEL[:8]))
    for model, header, number in [
        (MODEL, ours.header, 2),
        (MODEL, other.header, 1),
        ("f" * 64, ours.header, 1),
    ]:
        with pytest.raises(CorruptStreamError):
            bitstream.unpack_layer(model, header, number, ours.layers[1])


def test_every_cut_of_a_file_gives_its_whole_layers_or_an_error():
    encoded = stream()
    data = encoded.to_bytes()
    ends = [len(encoded.truncate(k).to_bytes()) for k in range(len(encoded.layers) + 1)]
    for length in range(len(data) + 1):
        whole = sum(end <= length for end in ends) - 1
        if whole < 0:
            with pytest.raises(CorruptStreamError):
                EncodedImage.from_bytes(data[:length], allow_truncated=True)
            continue
        part = EncodedImage.from_bytes(data[:length], allow_truncated=True)
        assert part == encoded.truncate(whole)
        if length not in ends:
            with pytest.raises(CorruptStreamError) as caught:
                EncodedImage.from_bytes(data[:length])
            assert caught.value.layer == whole


def test_truncating():
    encoded = stream()
    assert encoded.num_layers == 4
    assert encoded.truncate(2).layers == encoded.layers[:2]
    assert encoded.truncate(9) == encoded
    assert encoded.truncate(0).bpp == 8 * len(encoded.header) / (768 * 512)
    with pytest.raises(ValueError, match="negative"):
        encoded.truncate(-1)


def test_a_stream_shows_its_size_and_not_its_bytes():
    cut = stream().truncate(2)
    assert repr(cut) == f"EncodedImage(768x512, 2 layers, {cut.nbytes} bytes)"
    damaged = repr(EncodedImage(b"no header", cut.layers))
    assert damaged.startswith("EncodedImage(damaged header, ")


@pytest.mark.parametrize(
    ("width", "height"), [(0, 5), (5, 0), ((1 << 20) + 1, 1), (1 << 16, (1 << 14) + 1)]
)
def test_impossible_sizes_are_neither_written_nor_read(width, height):
    with pytest.raises(UnsupportedImageError, match="not a valid size"):
        bitstream.pack_header(StreamHeader("uqdm", width, height, MODEL[:8]))
    sides = b"".join(map(bitstream.varint, (width, height)))
    with pytest.raises(CorruptStreamError, match="impossible size"):
        bitstream.unpack_header(b"\x10\0" + sides + bytes(4))


def test_the_largest_sizes_are_written_and_read():
    for width, height in [(1 << 20, 1 << 10), (1, 1 << 20)]:
        header = StreamHeader("cdc", width, height, MODEL[:8])
        assert bitstream.unpack_header(bitstream.pack_header(header)) == header


def test_other_versions_and_unknown_fields():
    packed = bitstream.pack_header(HEADER)
    for version in (0, 2, 15):
        with pytest.raises(UnknownModelError, match=f"version {version}, this release reads 1:"):
            bitstream.unpack_header(bytes([packed[0] & 15 | version << 4]) + packed[1:])
    with pytest.raises(CorruptStreamError, match="does not exist"):
        bitstream.unpack_header(bytes([packed[0] | 15]) + packed[1:])
    with pytest.raises(CorruptStreamError, match="does not exist"):
        bitstream.unpack_header(packed[:1] + b"\x80" + packed[2:])


@pytest.mark.parametrize(
    "sides", [b"\x85\0\5", b"\5\x85\x80\0", b"\x80" * 20 + b"\1\5", b"\xff" * 9 + b"\7\5", b"\5"]
)
def test_a_number_has_one_form(sides):
    with pytest.raises(CorruptStreamError):
        bitstream.unpack_header(b"\x10\0" + sides + bytes(4))


def test_a_length_that_is_not_there_costs_nothing():
    huge = bitstream.varint(1 << 62)
    header = bitstream.pack_header(HEADER)
    for data in (huge + header, bitstream.varint(len(header)) + header + huge + b"layer"):
        with pytest.raises(CorruptStreamError):
            EncodedImage.from_bytes(bitstream.MAGIC + data)
    protected = bitstream.pack_header(StreamHeader("uqdm", 8, 8, MODEL[:8], protected=True))
    body = huge + b"guard" + bytes(4)
    crc = zlib.crc32(bytes.fromhex(MODEL) + protected + b"\0" + body).to_bytes(4, "little")
    with pytest.raises(CorruptStreamError, match="malformed"):
        bitstream.unpack_layer(MODEL, protected, 0, crc + body)


@pytest.mark.parametrize("protected", [False, True])
def test_a_layer_without_its_checks_is_cut_short(protected):
    header = StreamHeader("uqdm", 8, 8, MODEL[:8], protected=protected)
    packed = bitstream.pack_header(header)
    data = bitstream.pack_layer(MODEL, packed, 0, fitting(header, Layer(b"", 1)))
    for length in range(len(data)):
        body = data[4:length]
        crc = zlib.crc32(bytes.fromhex(MODEL) + packed + b"\0" + body).to_bytes(4, "little")
        with pytest.raises(CorruptStreamError, match=r"layer 1 .*(cut short|malformed)"):
            bitstream.unpack_layer(MODEL, packed, 0, (crc + body)[:length])


def test_number_of_layers_is_limited():
    header = bitstream.pack_header(HEADER)
    EncodedImage.from_bytes(EncodedImage(header, (b"",) * bitstream.MAX_LAYERS).to_bytes())
    with pytest.raises(CorruptStreamError, match="more than 64"):
        EncodedImage.from_bytes(EncodedImage(header, (b"",) * 65).to_bytes())


@given(st.binary(max_size=100), st.booleans())
def test_rubbish_is_refused(rubbish, allow_truncated):
    for data in (rubbish, bitstream.MAGIC + rubbish):
        with pytest.raises(StrataError):
            EncodedImage.from_bytes(data, allow_truncated=allow_truncated)
    for data in (rubbish, b"\x10\0" + rubbish):
        try:
            bitstream.unpack_header(data)
        except StrataError:
            continue
        assert data[0] in (0x10, 0x11)  # by chance a header
    with pytest.raises(CorruptStreamError):
        bitstream.unpack_layer(MODEL, bitstream.pack_header(HEADER), 0, rubbish)
