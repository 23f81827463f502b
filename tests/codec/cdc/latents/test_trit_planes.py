"""Progressive layers: nothing is lost, little is added, and every prefix means something."""

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec.cdc.latents.trees import MAX_COUNTED
from codec.cdc.latents.trit_planes import MAX_RESIDUAL, Progress, Trees, assign_layers, build_trees
from codec.stream.entropy import Decoder, encode
from tests.benchmarks.layer_orders import one_piece_tables
from tests.codec.ideal import cross_entropy

SCALES = np.geomspace(0.1, 64, 96)
ORDERS = ["slope", "sigma", "planes"]


@pytest.fixture(scope="module")
def trees():
    return build_trees(SCALES)


def picture(seed, size, outliers=0):
    """Scale indices, mostly small ones, and residuals that their Gaussians drew."""
    random = np.random.default_rng(seed)
    index = random.normal(10, 25, size).clip(0, len(SCALES) - 1).astype(np.int32)
    residuals = np.rint(random.normal(size=size) * SCALES[index]).astype(np.int32)
    at = random.integers(0, size, outliers)
    residuals[at] = random.integers(-5000, 5000, outliers)
    return index, residuals


def ordered(trees, index, order):
    return assign_layers(trees, np.bincount(index, minlength=len(SCALES)), order=order)


def coded(trees, index, residuals):
    """Each layer's bytes, and what the encoder expects after it."""
    progress = Progress.start(trees, index)
    for layer in range(trees.num_layers):
        parts = []
        for _ in range(trees.passes(layer)):
            positions = progress.pending(layer)
            symbols = progress.symbols_for(positions, residuals)
            parts.append((symbols, progress.node[positions], trees.tables))
            progress.advance(positions, symbols)
        assert len(progress.pending(layer)) == 0
        yield encode(parts), progress.expectation()


def decoded(trees, index, streams):
    progress = Progress.start(trees, index)
    for layer, stream in enumerate(streams):
        decoder = Decoder(stream)
        for _ in range(trees.passes(layer)):
            positions = progress.pending(layer)
            progress.advance(positions, decoder.decode(progress.node[positions], trees.tables))
        assert decoder.ends_with(0)
    return progress


@pytest.mark.parametrize("order", ORDERS)
def test_every_prefix_decodes_to_what_the_encoder_expects(trees, order):
    index, residuals = picture(0, 5000, outliers=20)
    own = ordered(trees, index, order)
    layers = list(coded(own, index, residuals))
    for count in range(len(layers) + 1):
        progress = decoded(own, index, [stream for stream, _ in layers[:count]])
        expected = layers[count - 1][1] if count else np.zeros(len(index))
        assert (progress.expectation() == expected).all()
    assert (progress.value == residuals).all()
    assert (progress.node == -1).all()


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 95), st.integers(-MAX_RESIDUAL, MAX_RESIDUAL)), max_size=40)
)
def test_any_residual_under_any_scale_comes_back(trees, elements):
    index = np.array([s for s, _ in elements], np.int32)
    residuals = np.array([r for _, r in elements], np.int32)
    own = assign_layers(trees, np.ones(len(SCALES)))
    progress = decoded(own, index, [stream for stream, _ in coded(own, index, residuals)])
    assert (progress.value == residuals).all()


@pytest.mark.parametrize("order", ORDERS)
def test_layers_cost_nothing_against_one_piece(trees, order):
    index, residuals = picture(1, 100_000)
    own = ordered(trees, index, order)
    total = sum(len(stream) for stream, _ in coded(own, index, residuals))
    whole = len(encode([(residuals, index, one_piece_tables(own))]))
    assert total < 1.001 * whole + 4 * own.num_layers  # words of 32 bits


def test_tables_of_small_scales_cost_no_bits(trees):
    """Most elements of a picture: a floor for each of them would be a floor for the picture."""
    index = np.zeros(400_000, np.int32)
    bits = cross_entropy(index + 1, trees.root[index], trees.tables)  # the middle third: r = 0
    assert bits < 2


def test_layers_hold_their_share_of_the_bits(trees):
    index, residuals = picture(2, 100_000)
    fractions = (0.1, 0.3, 0.6, 1.0)
    own = assign_layers(trees, np.bincount(index, minlength=len(SCALES)), fractions)
    sizes = np.array([len(stream) for stream, _ in coded(own, index, residuals)])
    assert np.cumsum(sizes) / sizes.sum() == pytest.approx(fractions, abs=0.02)


def test_slopes_beat_whole_elements_and_planes(trees):
    """The same bits remove more of the squared error, at every layer."""
    index, residuals = picture(3, 50_000)
    curves = {}
    for order in ORDERS:
        layers = list(coded(ordered(trees, index, order), index, residuals))
        bits = np.cumsum([0] + [len(stream) for stream, _ in layers])
        errors = [((e - residuals) ** 2).mean() for _, e in layers]
        curves[order] = bits, np.array([(residuals.astype(float) ** 2).mean(), *errors])
    bits, errors = curves["slope"]
    for other in ("sigma", "planes"):
        assert (errors[1:-1] < np.interp(bits, *curves[other])[1:-1]).all()


def test_squared_error_never_rises_on_the_way(trees):
    index, residuals = picture(4, 50_000)
    own = ordered(trees, index, "slope")
    errors = [((e - residuals) ** 2).mean() for _, e in coded(own, index, residuals)]
    assert (np.diff(errors) < 0).all()
    assert errors[-1] == 0


@pytest.mark.parametrize("scale", [0, 25, 50, 95])
def test_expectations_are_conditional_means(trees, scale):
    """Against brute force: every value of r, weighed by its mass, among those sharing a node."""
    half = 3 ** int(trees.levels[scale]) // 2
    residuals = np.arange(-half, half + 1)
    normal = NormalDist(0, SCALES[scale])
    mass = np.array([normal.cdf(0.5 - abs(r)) - normal.cdf(-0.5 - abs(r)) for r in residuals])
    progress = Progress.start(trees, np.full(len(residuals), scale, np.int32))
    assert (progress.expectation() == 0).all()
    for _ in range(int(trees.levels[scale])):
        positions = progress.pending(0)
        progress.advance(positions, progress.symbols_for(positions, residuals))
        for node in np.unique(progress.node[progress.node >= 0]):
            together = progress.node == node
            if mass[together].sum() < 1e-9:
                continue  # out where 1 - cdf has lost its digits
            mean = np.average(residuals[together], weights=mass[together])
            assert progress.expectation()[together] == pytest.approx(mean, rel=1e-6, abs=1e-6)
    assert (progress.expectation() == residuals).all()


@pytest.mark.parametrize("order", ORDERS)
def test_no_trit_goes_before_its_parent(trees, order):
    own = assign_layers(trees, np.ones(len(SCALES)), order=order)
    inner = np.flatnonzero(own.first_child >= 0)
    for trit in range(3):
        assert (own.layer[own.first_child[inner] + trit] >= own.layer[inner]).all()
    if order == "sigma":  # whole elements
        assert sum(len(set(tree)) for tree in np.split(own.layer, own.root[1:])) == len(SCALES)


@pytest.mark.parametrize(
    ("position", "symbol"), [(0, 2**31 - 1), (0, -(2**31)), (0, MAX_RESIDUAL + 2)]
)
def test_absurd_escapes_are_refused(trees, position, symbol):
    progress = Progress.start(trees, np.array([5, 90], np.int32))
    with pytest.raises(ValueError, match="out of range"):
        progress.advance(np.array([position]), np.array([symbol], np.int32))
    assert (progress.node >= 0).all()


@pytest.mark.parametrize("symbol", [-1, 3, 2**31 - 1])
def test_escapes_after_the_first_trit_are_refused(trees, symbol):
    progress = Progress.start(trees, np.array([95], np.int32))
    at = np.array([0], np.int32)
    progress.advance(at, np.array([1], np.int32))
    with pytest.raises(ValueError, match="escape"):
        progress.advance(at, np.array([symbol], np.int32))


def test_misuse_is_named(trees):
    at = np.array([0], np.int32)
    with pytest.raises(ValueError, match="scale index"):
        Progress.start(trees, np.array([96], np.int32))
    with pytest.raises(ValueError, match="scale index"):
        Progress.start(trees, np.array([-1], np.int32))
    progress = Progress.start(trees, np.array([0], np.int32))
    with pytest.raises(ValueError, match="symbols"):
        progress.advance(at, np.zeros(2, np.int32))
    with pytest.raises(ValueError, match="residuals must"):
        progress.symbols_for(at, np.array([MAX_RESIDUAL + 1]))
    progress.advance(at, np.zeros(1, np.int32))
    with pytest.raises(ValueError, match="already complete"):
        progress.advance(at, np.zeros(1, np.int32))
    progress = Progress.start(trees, np.array([95], np.int32))
    progress.advance(at, progress.symbols_for(at, np.array([0])))
    with pytest.raises(ValueError, match="earlier trits"):
        progress.symbols_for(at, np.array([300]))
    with pytest.raises(ValueError, match="ascend"):
        assign_layers(trees, np.ones(96), (0.5, 0.4, 1.0))
    with pytest.raises(ValueError, match="count"):
        assign_layers(trees, np.zeros(96))
    with pytest.raises(ValueError, match="order"):
        assign_layers(trees, np.ones(96), order="rate")


def test_arrays_round_trip(trees):
    own = assign_layers(trees, np.ones(len(SCALES)))
    again = Trees.from_arrays(own.to_arrays())
    assert all((again.to_arrays()[name] == a).all() for name, a in own.to_arrays().items())
    assert [again.passes(x) for x in range(6)] == [own.passes(x) for x in range(6)]


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("scales", lambda a: a[::-1].copy()),
        ("scales", lambda a: a * np.nan),
        ("scales", lambda a: a[:-1]),
        ("levels", lambda a: a + np.uint8(1)),
        ("levels", lambda a: a * np.uint8(0)),
        ("levels", lambda a: a.astype(np.int64)),
        ("mean", lambda a: a + np.float32(2)),
        ("mean", lambda a: a * np.float32(np.nan)),
        ("mean", lambda a: a[1:]),
        ("layer", lambda a: a[::-1].copy()),
        ("layer", lambda a: a + np.uint8(100)),
        ("layer", lambda a: a.astype(np.int32)),
        ("tables.counts", lambda a: a[::-1] + 1),
        ("tables.counts", lambda a: a.astype(np.float32)),
        ("tables.first", lambda a: a - 1),
        ("tables.start", lambda a: a[::2]),
    ],
)
def test_foreign_arrays_are_refused(trees, name, spoil):
    arrays = assign_layers(trees, np.ones(len(SCALES))).to_arrays()
    with pytest.raises(ValueError):
        Trees.from_arrays({**arrays, name: spoil(arrays[name])})
    with pytest.raises(ValueError, match="lack"):
        Trees.from_arrays({key: array for key, array in arrays.items() if key != name})


@pytest.mark.parametrize("scales", [[], [0.0, 1.0], [1.0, 1.0], [1.0, np.inf], [[1.0]]])
def test_unusable_scales_are_refused(scales):
    with pytest.raises(ValueError):
        build_trees(np.array(scales))


def test_extreme_scales_still_make_trees():
    trees = build_trees(np.array([1e-3, 0.04, 1e4]))
    residuals = np.array([3, -1, 20_000], np.int32)
    index = np.arange(3, dtype=np.int32)
    progress = decoded(trees, index, [stream for stream, _ in coded(trees, index, residuals)])
    assert (progress.value == residuals).all()


def laplacian(seed, size):
    """Scale indices, and residuals with longer tails than a Gaussian's of the same deviation."""
    random = np.random.default_rng(seed)
    index = random.integers(20, 60, size).astype(np.int32)
    residuals = np.rint(random.laplace(size=size) * SCALES[index] / 2**0.5).astype(np.int32)
    return index, residuals


def counts_of(index, residuals):
    counts = np.zeros((len(SCALES), 2 * MAX_COUNTED + 1), np.int64)
    np.add.at(counts, (index, residuals.clip(-MAX_COUNTED, MAX_COUNTED) + MAX_COUNTED), 1)
    return counts


def test_counted_trees_fit_what_was_counted(trees):
    counted = build_trees(SCALES, counts_of(*laplacian(1, 400_000)))
    index, residuals = laplacian(2, 50_000)
    gaussian, own = (
        cross_entropy(residuals, index, one_piece_tables(each)) for each in (trees, counted)
    )
    assert own < 0.98 * gaussian
    ordered_trees = ordered(counted, index, "slope")
    streams = [stream for stream, _ in coded(ordered_trees, index, residuals)]
    assert sum(map(len, streams)) < 1.001 * own / 8 + 4 * ordered_trees.num_layers
    np.testing.assert_array_equal(decoded(ordered_trees, index, streams).value, residuals)


def test_without_observations_a_tree_is_the_gaussians(trees):
    counted = build_trees(SCALES, np.zeros((len(SCALES), 2 * MAX_COUNTED + 1), np.int64))
    np.testing.assert_allclose(counted.tables.counts, trees.tables.counts, rtol=0, atol=1)
    np.testing.assert_allclose(counted.mean, trees.mean, rtol=1e-6, atol=1e-6)


def test_one_piece_has_the_probabilities_of_the_trits(trees):
    index = np.full(1000, 40, np.int32)
    residuals = np.rint(np.random.default_rng(0).normal(size=1000) * SCALES[40]).astype(np.int32)
    mass = np.array(
        [
            NormalDist(0, SCALES[40]).cdf(r + 0.5) - NormalDist(0, SCALES[40]).cdf(r - 0.5)
            for r in residuals
        ]
    )
    bits = cross_entropy(residuals, index, one_piece_tables(trees))
    assert bits == pytest.approx(-np.log2(mass).sum(), rel=1e-3)


def test_counts_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="counts of each scale"):
        build_trees(SCALES, np.zeros((3, 3)))
