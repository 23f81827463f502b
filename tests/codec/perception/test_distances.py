"""Perceptual distances: values of other implementations, gradients to train with, weights."""

import collections
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from codec.errors import InvalidModelError
from codec.images import metrics
from codec.perception.lpips import LPIPS
from codec.perception.structure import ms_ssim_loss


def as_tensor(*images):
    """uint8 (H, W, 3) to (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def picture(height, width, seed=0):
    """A smooth colour picture with some texture, uint8 (H, W, 3)."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(0, 255, (1, 3, height // 8 + 2, width // 8 + 2)))
    smooth = F.interpolate(coarse, (height, width), mode="bicubic")[0].permute(1, 2, 0).numpy()
    return np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)


def blurred(image, size=5):
    """Its means over size x size pixels."""
    x = F.pad(as_tensor(image), [size // 2] * 4, mode="reflect")
    x = F.avg_pool2d(x, size, stride=1)
    return ((x[0].permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()


def noise(height, width, seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


# Five scales, odd at several of them; just five; just four; two; one; a window that is smaller.
SIZES = [(256, 256), (193, 211), (161, 170), (160, 200), (32, 45), (15, 40), (9, 14)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_ms_ssim_is_that_of_the_metrics(size):
    image = picture(*size)
    others = [
        blurred(image),
        np.clip(image + np.random.default_rng(1).normal(0, 25, image.shape), 0, 255).astype("u1"),
        noise(*size, seed=2),
        255 - image,  # structures are negative, which counts as 0
        np.full_like(image, 90),
        image,
    ]
    loss = ms_ssim_loss(as_tensor(*[image] * len(others)), as_tensor(*others))
    expected = [1 - metrics.ms_ssim(image, other) for other in others]
    assert loss.shape == (len(others),)
    assert loss.tolist() == pytest.approx(expected, abs=1e-4)
    assert 0.001 < expected[0] < 0.9  # neither trivial
    assert expected[3] == 1


def test_ms_ssim_in_flat_bright_pictures_is_precise():
    """Variances far below the squares they are differences of."""
    rng = np.random.default_rng(5)
    image = rng.integers(250, 253, (176, 176, 3), dtype=np.uint8)
    other = rng.integers(250, 253, (176, 176, 3), dtype=np.uint8)
    loss = ms_ssim_loss(as_tensor(image), as_tensor(other))
    assert loss.item() == pytest.approx(1 - metrics.ms_ssim(image, other), abs=1e-4)


def test_ms_ssim_has_the_gradient_of_its_values():
    x = as_tensor(picture(24, 26)).double().requires_grad_()
    y = as_tensor(blurred(picture(24, 26))).double().requires_grad_()
    assert torch.autograd.gradcheck(ms_ssim_loss, (x, y), fast_mode=True)


@pytest.mark.parametrize("other", ["same", "inverted", "flat", "noise"])
def test_ms_ssim_gradients_are_finite(other):
    image = picture(64, 64)
    others = {
        "same": image,
        "inverted": 255 - image,
        "flat": np.zeros_like(image),
        "noise": noise(64, 64, seed=3),
    }
    x = as_tensor(others[other]).requires_grad_()
    ms_ssim_loss(x, as_tensor(image)).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert x.grad.abs().max() < 1
    if other != "same":
        assert x.grad.abs().max() > 0


def test_descending_ms_ssim_turns_an_inverted_picture_back():
    """Negative similarities are flat in value, but must not be so for training."""
    target = as_tensor(picture(32, 32))
    x = (-0.3 * target).requires_grad_()
    assert ms_ssim_loss(x, target).item() == 1
    optimizer = torch.optim.Adam([x], lr=0.04)
    for _ in range(60):
        optimizer.zero_grad()
        ms_ssim_loss(x, target).sum().backward()
        optimizer.step()
    assert ms_ssim_loss(x, target).item() < 0.1


def test_ms_ssim_keeps_its_precision_under_autocast():
    x, y = as_tensor(picture(64, 64)), as_tensor(blurred(picture(64, 64)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = ms_ssim_loss(x, y)
    assert torch.equal(rounded, ms_ssim_loss(x, y))
    assert ms_ssim_loss(x.bfloat16(), y.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("shapes", [((1, 3, 32, 32), (2, 3, 32, 32)), ((1, 1, 32, 32),) * 2])
def test_other_shapes_are_refused(shapes, metric):
    x, y = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        ms_ssim_loss(x, y)
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        metric(x, y)


VGG16 = "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512"


def layers():
    """VGG16 with the lpips package's names: None for a maximum, or (name, inputs, outputs)."""
    part, number, inputs, found = 1, 0, 3, []
    for word in VGG16.split():
        if word == "M":
            part, number = part + 1, number + 1
            found.append(None)
        else:
            found.append((f"net.slice{part}.{number}", inputs, int(word)))
            number, inputs = number + 2, int(word)  # an activation follows
    return found


@pytest.fixture(scope="module")
def weights():
    """Random weights by the package's names, its duplicates included; activations keep scale."""
    generator = torch.Generator().manual_seed(11)
    state = {
        "scaling_layer.shift": torch.tensor([-0.03, -0.088, -0.188]).view(1, 3, 1, 1),
        "scaling_layer.scale": torch.tensor([0.458, 0.448, 0.45]).view(1, 3, 1, 1),
    }
    for name, inputs, outputs in filter(None, layers()):
        weight = torch.randn(outputs, inputs, 3, 3, generator=generator)
        state[f"{name}.weight"] = weight * (2 / (9 * inputs)) ** 0.5
        state[f"{name}.bias"] = 0.1 * torch.randn(outputs, generator=generator)
    for i, width in enumerate((64, 128, 256, 512, 512)):
        lin = torch.rand(1, width, 1, 1, generator=generator)
        state[f"lin{i}.model.1.weight"] = lin
        state[f"lins.{i}.model.1.weight"] = lin.clone()
    return state


@pytest.fixture(scope="module")
def metric(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("lpips") / "lpips.safetensors"
    save_file(weights, path)
    return LPIPS.from_file(path)


def by_hand(weights, x, y):
    """Zhang et al. 2018, eq. 1, one slice after the other in float64."""

    def features(h):
        h = (h.double() - weights["scaling_layer.shift"]) / weights["scaling_layer.scale"]
        found = []
        for layer in [*layers(), None]:
            if layer is None:
                found.append(h.numpy())
                h = F.max_pool2d(h, 2)
            else:
                weight, bias = weights[f"{layer[0]}.weight"], weights[f"{layer[0]}.bias"]
                h = F.relu(F.conv2d(h, weight.double(), bias.double(), padding=1))
        return found

    total = np.zeros(len(x))
    for i, (a, b) in enumerate(zip(features(x), features(y), strict=True)):
        a = a / (np.sqrt(np.sum(a**2, axis=1, keepdims=True)) + 1e-10)
        b = b / (np.sqrt(np.sum(b**2, axis=1, keepdims=True)) + 1e-10)
        lin = weights[f"lin{i}.model.1.weight"].double().numpy()
        total += np.sum(lin * (a - b) ** 2, axis=1).mean(axis=(1, 2))
    return total


def test_lpips_is_what_one_computes_by_hand(metric, weights):
    x = as_tensor(picture(40, 51), picture(40, 51, seed=1), picture(40, 51))
    y = as_tensor(blurred(picture(40, 51)), noise(40, 51, 1), picture(40, 51, seed=2))
    distances = metric(x, y)
    assert distances.shape == (3,)
    assert distances.tolist() == pytest.approx(by_hand(weights, x, y).tolist(), rel=1e-4)
    assert distances[0] < distances[1]


def test_lpips_of_the_same_picture_is_zero(metric):
    x = as_tensor(picture(32, 32), noise(32, 32, 4))
    assert metric(x, x.clone()).tolist() == [0, 0]


def test_gradients_reach_the_picture_but_not_the_weights(metric):
    x = as_tensor(blurred(picture(32, 32))).requires_grad_()
    y = as_tensor(picture(32, 32))
    metric.train()  # changes nothing: there is no dropout
    metric(x, y).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert x.grad.abs().max() > 0
    assert all(p.grad is None and not p.requires_grad for p in metric.parameters())
    step = 1e-2 * x.grad / x.grad.norm()
    assert metric(x - step, y).item() < metric(x, y).item() < metric(x + step, y).item()


def test_gradients_are_finite_where_all_features_are_off(weights, tmp_path):
    """There the norm is 0, and dividing by it must not reach the picture."""
    off = {"net.slice1.2.bias": weights["net.slice1.2.bias"] - 5}
    save_file(weights | off, tmp_path / "lpips.safetensors")
    metric = LPIPS.from_file(tmp_path / "lpips.safetensors")
    x = as_tensor(picture(32, 32)).requires_grad_()
    features = metric.features(x)[0]
    assert (features == 0).all(dim=1).any()
    assert (features > 0).any()
    distance = metric(x, as_tensor(blurred(picture(32, 32))))
    distance.sum().backward()
    assert torch.isfinite(distance).all()
    assert torch.isfinite(x.grad).all()
    assert 0 < x.grad.abs().max() < 1e4


def test_lpips_takes_pictures_of_16_pixels_and_no_smaller(metric):
    assert metric(torch.zeros(1, 3, 16, 17), torch.ones(1, 3, 16, 17)).item() > 0
    with pytest.raises(ValueError, match="at least 16x16"):
        metric(torch.zeros(1, 3, 15, 64), torch.ones(1, 3, 15, 64))


def prefixed(weights, prefix):
    return {prefix + name: tensor for name, tensor in weights.items()}


def other_weights(weights):
    """Of the same shapes, and wrong."""
    return {name: tensor + 1 for name, tensor in weights.items()}


@pytest.mark.parametrize("kind", ["ema", "model", "package", "model file", "own state"])
def test_weights_are_read_from_every_kind_of_file(kind, weights, metric, tmp_path):
    codec = {"denoise_fn.final_conv.1.bias": torch.zeros(3)}
    worse = prefixed(other_weights(weights), "loss_fn_vgg.")
    path = tmp_path / ("lpips.safetensors" if kind in ("model file", "own state") else "lpips.pt")
    if kind == "ema":
        average = prefixed(codec | prefixed(weights, "loss_fn_vgg."), "ema_model.")
        average |= prefixed(worse, "online_model.") | {"step": torch.tensor(7)}
        torch.save({"step": 7, "model": codec | worse, "ema": average}, path)
    elif kind == "model":
        torch.save({"step": 7, "model": codec | prefixed(weights, "loss_fn_vgg.")}, path)
    elif kind == "package":
        torch.save(collections.OrderedDict(weights), path)
    elif kind == "model file":
        save_file({"unet.conv_out.bias": torch.zeros(3)} | prefixed(weights, "lpips."), path)
    else:
        save_file(metric.state_dict(), path)
    read = LPIPS.from_file(path).state_dict()
    assert read.keys() == {name for name in weights if not name.startswith("lins.")}
    assert all(torch.equal(tensor, weights[name]) for name, tensor in read.items())


def test_weights_in_half_precision_become_float32(weights, tmp_path):
    save_file({n: t.half() for n, t in weights.items()}, tmp_path / "lpips.safetensors")
    read = LPIPS.from_file(tmp_path / "lpips.safetensors")
    assert {p.dtype for p in read.state_dict().values()} == {torch.float32}


def without(weights, *starts):
    return {name: t for name, t in weights.items() if not name.startswith(starts)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: without(w, "net.slice4.19.bias"),
            r"(?s)net\.slice4\.19\.bias.*rho > 0",
        ),
        (lambda w: without(w, "net."), r"(?s)Missing .*net\.slice1\.0\.weight.*rho > 0"),
        (lambda w: {"other": torch.zeros(1)}, r"(?s)Missing .*scaling_layer\.shift.*rho > 0"),
        (
            lambda w: w | {"net.slice1.0.weight": torch.zeros(64, 3, 11, 11)},
            r"net\.slice1\.0\.weight: .*\[64, 3, 11, 11\].*\[64, 3, 3, 3\]",
        ),
        (lambda w: w | {"lin0.model.1.weight": torch.full((1, 64, 1, 1), torch.nan)}, "not finite"),
        (
            lambda w: w | {"lin0.model.1.weight": torch.zeros(1, 64, 1, 1).int()},
            "not finite floats",
        ),
    ],
    ids=["one missing", "lin weights only", "foreign", "misshapen", "nan", "integers"],
)
def test_files_that_do_not_fit_are_refused(change, message, weights, tmp_path):
    for path, write in (
        (tmp_path / "lpips.safetensors", save_file),
        (tmp_path / "checkpoint.pt", lambda tensors, p: torch.save({"model": tensors}, p)),
    ):
        prefix = "" if path.suffix == ".safetensors" else "loss_fn_vgg."
        write(prefixed(change(weights), prefix), path)
        with pytest.raises(InvalidModelError, match=message) as caught:
            LPIPS.from_file(path)
        assert str(path) in str(caught.value)


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("code of a checkpoint ran",)


@pytest.mark.parametrize("name", ["lpips.pt", "lpips.safetensors"])
def test_files_that_are_none_are_refused(name, weights, tmp_path):
    path = tmp_path / name
    with pytest.raises(InvalidModelError, match=name):
        LPIPS.from_file(path)
    for content in (b"", b"no weights", pickle.dumps({"model": Bomb()}, 2)):
        path.write_bytes(content)
        with pytest.raises(InvalidModelError, match=name):
            LPIPS.from_file(path)
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(InvalidModelError, match="does not hold a dictionary"):
        LPIPS.from_file(tmp_path / "list.pt")
