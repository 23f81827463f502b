"""Files of other codecs: those that can be cut are really progressive."""

import itertools

import numpy as np
import pytest

from codec.images import metrics
from pipeline.evaluate.peers import Peer, all_peers, jpeg2000_layers, jpeg_scans
from tests.pipeline.evaluate.inprocess import photograph

PEERS = all_peers()


def cut(peer: Peer, picture: np.ndarray) -> list[tuple[int, float]]:
    """Bytes and mean squared errors of the prefixes of a file."""
    setting = next(one for one in reversed(peer.settings) if one.cut)
    prefixes = peer.files(picture, setting)
    return [(one.nbytes, metrics.mse(picture, peer.decode(one.data))) for one in prefixes]


@pytest.mark.parametrize("name", ["jpeg_progressive", "jpeg2000_layers"])
@pytest.mark.parametrize("size", [(96, 120), (33, 17)])
def test_prefixes_grow_and_get_better(name: str, size: tuple[int, int]) -> None:
    found = cut(PEERS[name], photograph(*size))
    assert len(found) >= 8
    nbytes, errors = zip(*found, strict=True)
    assert list(nbytes) == sorted(set(nbytes))
    assert nbytes[0] < nbytes[-1] / 2
    assert all(after <= before * 1.001 for before, after in itertools.pairwise(errors))
    assert errors[-1] < errors[0] / 4


def test_scans_are_real_prefixes_of_the_whole_file() -> None:
    peer = PEERS["jpeg_progressive"]
    setting = next(one for one in peer.settings if one.cut)
    data = peer.encode(photograph(40, 56), setting)
    prefixes = jpeg_scans(data)
    assert prefixes[-1].data == data
    for one in prefixes[:-1]:
        assert one.data == data[: one.nbytes] + b"\xff\xd9"
        assert data[one.nbytes] == 0xFF  # the next thing is a marker
    with pytest.raises(ValueError, match="not a JPEG"):
        jpeg_scans(b"GIF89a")


def test_the_last_layer_is_the_whole_jpeg2000_without_its_table() -> None:
    peer = PEERS["jpeg2000_layers"]
    (setting,) = peer.settings
    data = peer.encode(photograph(80, 64), setting)
    prefixes = jpeg2000_layers(data)
    assert len(prefixes) == len(setting.arguments["quality_layers"])
    assert prefixes[-1].nbytes < len(data)
    assert np.array_equal(peer.decode(prefixes[-1].data), peer.decode(data))
    for one in prefixes:
        assert one.nbytes == len(one.data)
    with pytest.raises(ValueError, match="not a JPEG 2000 codestream"):
        jpeg2000_layers(b"\xff\xd8")
    plain = PEERS["jpeg2000"].encode(photograph(80, 64), PEERS["jpeg2000"].settings[0])
    with pytest.raises(ValueError, match="no table"):
        jpeg2000_layers(plain)


def test_jpeg2000_has_its_colour_transform() -> None:
    """Without it, several dB are missing."""
    picture = photograph(96, 96)
    peer = PEERS["jpeg2000"]
    setting = peer.settings[7]
    files = [peer.encode(picture, setting)]
    files.append(peer.encode(picture, type(setting)("", {**setting.arguments, "mct": 0})))
    with_it, without = (metrics.psnr(picture, peer.decode(data)) for data in files)
    assert with_it > without + 1


@pytest.mark.parametrize("name", [name for name, peer in PEERS.items() if peer.library])
@pytest.mark.parametrize("size", [(48, 64), (1, 1), (3, 21)])
def test_every_peer_takes_every_size(name: str, size: tuple[int, int]) -> None:
    peer, picture = PEERS[name], photograph(*size)
    for setting in (peer.settings[0], peer.settings[-1]):
        (*_, whole) = peer.files(picture, setting)
        shown = peer.decode(whole.data)
        assert shown.shape == picture.shape
        assert shown.dtype == np.uint8
        if peer.lossless:
            assert np.array_equal(shown, picture)
