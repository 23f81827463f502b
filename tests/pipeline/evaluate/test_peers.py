"""Files of other codecs."""

import numpy as np
import pytest

from codec.images import metrics
from pipeline.evaluate.bench import peer_of
from pipeline.evaluate.contenders import Contender
from pipeline.evaluate.peers import all_peers
from pipeline.running.options import OptionError
from tests.pipeline.evaluate.inprocess import photograph

PEERS = {name: peer for name, peer in all_peers().items() if peer.library}


def test_jpeg2000_has_its_colour_transform() -> None:
    """Without it, several dB are missing."""
    picture = photograph(96, 96)
    peer = PEERS["jpeg2000"]
    setting = peer.settings[3]
    files = [peer.encode(picture, setting)]
    files.append(peer.encode(picture, type(setting)("", {**setting.arguments, "mct": 0})))
    with_it, without = (metrics.psnr(picture, peer.decode(data)) for data in files)
    assert with_it > without + 1


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("size", [(48, 64), (1, 1), (3, 21)])
def test_every_peer_takes_every_size(name: str, size: tuple[int, int]) -> None:
    peer, picture = PEERS[name], photograph(*size)
    for setting in (peer.settings[0], peer.settings[-1]):
        shown = peer.decode(peer.encode(picture, setting))
        assert shown.shape == picture.shape
        assert shown.dtype == np.uint8
        if peer.lossless:
            assert np.array_equal(shown, picture)


@pytest.mark.parametrize("name", [name for name, peer in PEERS.items() if not peer.lossless])
def test_a_file_is_found_for_a_size(name: str) -> None:
    """No setting beside the one that was found is nearer."""
    peer, picture = PEERS[name], photograph(160, 160)
    wanted = 4000
    found = len(peer.near(picture, wanted))
    assert found == pytest.approx(wanted, rel=0.1)
    smallest, largest = (len(peer.encode(picture, peer.scale[i])) for i in (0, -1))
    assert smallest < wanted < largest
    assert len(peer.near(picture, 1)) == smallest
    assert len(peer.near(picture, 10**7)) == largest


def test_peers_say_what_they_are() -> None:
    for peer in PEERS.values():
        assert any(character.isdigit() for character in peer.library), peer.library
    assert "tune iq" in all_peers()["avif"].library


def test_iq_is_what_avif_does_unasked() -> None:
    """Its tune is named, so that a newer library does not change it silently."""
    picture, peer = photograph(64, 64), PEERS["avif"]
    setting = peer.settings[2]
    unasked = {k: v for k, v in setting.arguments.items() if k != "advanced"}
    assert peer.encode(picture, setting) == peer.encode(picture, type(setting)("", unasked))


def test_another_version_is_refused() -> None:
    with pytest.raises(OptionError, match="install the same"):
        peer_of(Contender("JPEG", "", {"peer": "jpeg", "library": "libjpeg 6b"}))
