"""The universal quantiser as a codec, with a small random model: exact, deterministic, any size."""

import numpy as np
import pytest
import torch

from codec.errors import CorruptStreamError, InvalidModelError
from codec.models import zoo
from codec.uqdm.paper.model import UniversalConfig, UniversalModel
from codec.uqdm.paper.scheme import UniversalScheme

KIND = {"codec": "uqdm", "quantizer": "universal", "domain": "pixels"}
NETWORK = {"channels": 8, "groups": 4, "blocks": 1, "heads": 1}


def small_model(**choices):
    """Configuration and tensors of a model whose network is random; an untrained one is zero."""
    config = UniversalConfig.from_dict(KIND | {"network": NETWORK} | choices)
    torch.manual_seed(0)
    model = UniversalModel(config)
    for parameter in model.network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.4 / parameter[0].numel() ** 0.5)
    return config.to_dict(), model.export()


def small_codec(path, **choices):
    zoo.write_model(path / zoo.MODEL_FILE, *small_model(**choices))
    return zoo.load_codec(path)


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    return small_codec(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pictures(photo):
    sizes = [(64, 64), (1, 1), (7, 5), (40, 70)]
    return [np.ascontiguousarray(photo[90 : 90 + h, 200 : 200 + w]) for h, w in sizes]


@pytest.fixture(scope="module")
def streams(codec, pictures):
    return codec.encode(pictures)


def everything(scheme, images, stream_ids):
    coded = scheme.encode(images, stream_ids, scheme.num_layers)
    return [b"".join(s.index_bytes() + s.symbol_bytes() for s in layers) for layers in coded]


def test_every_prefix_decodes_and_the_last_layer_is_exact(codec, pictures, streams):
    errors = []
    for layers in range(codec.num_layers + 1):
        decoded = codec.decode([stream.truncate(layers) for stream in streams])
        assert [d.shape for d in decoded] == [p.shape for p in pictures]
        errors.append(np.mean((decoded[0] - pictures[0].astype(float)) ** 2))
    assert all((d == p).all() for d, p in zip(decoded, pictures, strict=True))
    assert errors == sorted(errors, reverse=True)
    assert errors[codec.num_layers - 1] < 1  # z_0 alone is nearly the picture


def test_pictures_larger_than_a_window(codec, photo):
    picture = photo[:65, 100:230]
    stream = codec.encode([picture])[0]
    assert (codec.decode([stream])[0] == picture).all()
    assert codec.decode([stream], layers=1)[0].shape == picture.shape


def test_flow_decodes_every_prefix_too(codec, pictures, streams):
    for layers in range(codec.num_layers + 1):
        decoded = codec.decode(streams[:1], layers=layers, decoder="flow")
        assert decoded[0].shape == pictures[0].shape
    assert (decoded[0] == pictures[0]).all()


def test_flow_leaves_the_decoder_where_it_was(codec, pictures):
    scheme = codec.scheme
    state = scheme.start([pictures[0].shape[:2]], [5])
    before = state[0].latent.copy()
    scheme.reconstruct(state, 0, "flow")
    assert (state[0].latent == before).all()


@pytest.mark.parametrize(
    "choices",
    [
        {"prior": "gaussian"},
        {"learned_prior_scale": False, "prior_scale": "posterior"},
        {"schedule": "fixed_linear", "steps": 2, "gamma_min": -9.0},
        {"steps": 5, "gamma_max": 4.0},
        {
            "network": NETWORK
            | {"attention_everywhere": True, "fourier_features": False, "blocks": 0, "heads": 2}
        },
    ],
)
def test_the_papers_choices_are_configuration(tmp_path, pictures, choices):
    codec = small_codec(tmp_path, **choices)
    assert codec.num_layers == choices.get("steps", 4) + 1
    stream = codec.encode(pictures[:1])[0]
    assert (codec.decode([stream])[0] == pictures[0]).all()
    assert codec.decode([stream], layers=1, decoder="flow")[0].shape == pictures[0].shape


def test_grouping_of_pictures_does_not_matter(codec, pictures):
    ids = list(range(len(pictures)))
    together = everything(codec.scheme, pictures, ids)
    alone = [everything(codec.scheme, [p], [i])[0] for p, i in zip(pictures, ids, strict=True)]
    assert together == alone


def test_number_of_threads_does_not_matter(codec, pictures):
    before = torch.get_num_threads()
    try:
        seen = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            seen.append(everything(codec.scheme, pictures[:2], [0, 1]))
            assert torch.get_num_threads() == threads  # the caller's setting is left alone
    finally:
        torch.set_num_threads(before)
    assert seen[0] == seen[1]


def test_noise_of_the_network_does_not_reach_the_latents(pictures):
    """Another device's last bits may choose another table, never another latent or symbol."""
    config, tensors = small_model()
    noisy = {
        k: t * (1 + 1e-5 * torch.randn(t.shape)) if k.startswith("network.") else t
        for k, t in tensors.items()
    }
    schemes = [UniversalScheme(config, t, "cpu") for t in (tensors, noisy)]
    coded = [s.encode([pictures[0]], [3], s.num_layers)[0] for s in schemes]
    assert any(a.index_bytes() != b.index_bytes() for a, b in zip(*coded, strict=True))
    for a, b in zip(*coded, strict=True):
        assert (a.symbols[0] + a.choices[0].offset == b.symbols[0] + b.choices[0].offset).all()


def test_a_decoder_that_computes_other_tables_says_so(tmp_path, pictures, streams, codec):
    zoo.write_model(tmp_path / zoo.MODEL_FILE, *small_model())
    other = zoo.load_codec(tmp_path)
    assert other.model_id == codec.model_id
    with torch.no_grad():  # shows at t = 1 and not only later
        other.scheme._network.conv_out.bias += 0.3
    with pytest.raises(CorruptStreamError, match="layer 1") as caught:
        other.decode(streams[:1])
    assert caught.value.layer == 0
    assert other.decode(streams[:1], layers=0)[0].shape == pictures[0].shape


def test_only_the_pictures_own_pixels_are_coded(codec, pictures):
    coded = codec.scheme.encode(pictures, range(4), 1)
    assert [len(layers[0].symbols[0]) for layers in coded] == [p.size for p in pictures]


def test_coded_bytes_are_close_to_the_cross_entropy(codec, pictures, streams):
    header = streams[0].info
    layers = codec.scheme.encode([pictures[0]], [header.stream_id], codec.num_layers)[0]
    for layer, symbols in zip(streams[0].layers, layers, strict=True):
        ideal = sum(codec_bits(*part) for part in symbols.parts()) / 8
        assert ideal - 1 < len(layer) < 1.01 * ideal + 16


def codec_bits(symbols, index, tables):
    """Cross-entropy, computed from the tables' counts directly."""
    entry, outside = tables.entries(symbols, index)
    counts = tables.counts[tables.start[index] + entry]
    total = tables.counts[: tables.start[1]].sum()
    escaped = 5 + 2 * np.log2(1 + abs(symbols[outside].astype(float)))  # about
    return -np.log2(counts / total).sum() + escaped.sum()


def test_samples_are_reproducible_and_different(codec):
    first, second = codec.sample(64, 64, 2, seed=1)
    assert first.shape == (64, 64, 3)
    assert first.dtype == np.uint8
    assert (first != second).any()
    assert (codec.sample(64, 64, 2, seed=1)[1] == second).all()
    assert codec.sample(20, 70, 1, seed=2)[0].shape == (20, 70, 3)


def test_samples_follow_the_prior(codec):
    """Sampled latents have the prior's mean: a check on drawing from the tables."""
    scheme = codec.scheme
    state = scheme.start([(64, 64)], [9])
    choice = scheme.choices(state, 0, 0)[0]
    random = np.random.default_rng(0)
    drawn = np.mean(
        [
            choice.tables.draw(choice.index, random.integers(1 << 20, size=len(choice.index)))
            for _ in range(200)
        ],
        axis=0,
    )
    tables = choice.tables
    counts = tables.counts.reshape(len(tables), -1)[:, :-1].astype(float)
    symbols = tables.first[0] + np.arange(counts.shape[1])
    expected = (counts @ symbols / counts.sum(1))[choice.index]
    assert abs((drawn - expected).mean()) < 0.01
    assert abs(drawn - expected).max() < 0.5


@pytest.mark.parametrize(
    "name", ["steps", "normal_quantiles", "prior.edges", "network.conv_in.bias"]
)
def test_incomplete_models_are_refused(name):
    config, tensors = small_model()
    del tensors[name]
    with pytest.raises(InvalidModelError):
        UniversalScheme(config, tensors, "cpu")


def test_models_of_other_shape_are_refused():
    config, tensors = small_model()
    with pytest.raises(InvalidModelError):
        UniversalScheme(config | {"network": NETWORK | {"channels": 16}}, tensors, "cpu")
    with pytest.raises(InvalidModelError):
        UniversalScheme(config | {"steps": 3}, tensors, "cpu")
