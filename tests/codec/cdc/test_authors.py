"""Import of the authors' checkpoints: all they compute is computed; a clear refusal where not."""

import json
import os
import re

import numpy as np
import pytest
import torch

from codec import EncodedImage, load_codec
from codec.__main__ import main
from codec.cdc import authors
from codec.cdc.latents.priors import gaussian_likelihood
from codec.cdc.networks.diffusion import Diffusion
from codec.cdc.networks.paper_transform import PaperCompressor, PaperConfig, rounded
from codec.cdc.networks.unet import UNet, UNetConfig
from codec.errors import InvalidModelError
from codec.models import zoo

SMALL = PaperConfig(
    dim=4, dim_mults=(1, 2), hyper_dims_mults=(2, 3), context_dim_mults=(1, 2), context_channels=5
)
SMALL_UNET = UNetConfig(dim=4, dim_mults=(1, 2, 3), context_channels=(5, 4))


TINY = PaperConfig(dim=2, context_channels=3)  # with all of the paper's scales
TINY_UNET = UNetConfig(dim=2, context_channels=TINY.unet_contexts)


def randomized(module, seed):
    """The module with other parameters than a new one has."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def build(config, tensors):
    """Compressor, U-Net and diffusion of what ``authors.load`` returns."""
    compressor = PaperCompressor(PaperConfig.from_dict(config["compressor"]))
    unet = UNet(UNetConfig.from_dict(config["unet"]))
    for prefix, module in (("compressor.", compressor), ("unet.", unet)):
        module.load_state_dict(
            {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        )
        module.eval()
    return compressor, unet, Diffusion.from_dict(config["diffusion"])


# Import, of small checkpoints in the authors' layout

THEIR_NAMES = (  # ours first
    (r"^unet\.time\.", "denoise_fn.time_mlp."),
    (r"^unet\.(down|up)sample\.(\d+)\.", r"denoise_fn.\1s.\2.3.conv."),
    (r"^unet\.(down|up)\.(\d+)\.block_in\.", r"denoise_fn.\1s.\2.0."),
    (r"^unet\.(down|up)\.(\d+)\.block_out\.", r"denoise_fn.\1s.\2.1."),
    (r"^unet\.(down|up)\.(\d+)\.attention\.", r"denoise_fn.\1s.\2.2.fn."),
    (r"^unet\.middle_in\.", "denoise_fn.mid_block1."),
    (r"^unet\.middle_out\.", "denoise_fn.mid_block2."),
    (r"^unet\.middle_attention\.", "denoise_fn.mid_attn.fn."),
    (r"^unet\.norm_out\.", "denoise_fn.final_conv.0."),
    (r"^unet\.conv_out\.", "denoise_fn.final_conv.1."),
    (r"^compressor\.(en|de)coder\.(\d+)\.0\.", r"context_fn.\1c.\2.0."),
    (r"^compressor\.(en|de)coder\.(\d+)\.1\.", r"context_fn.\1c.\2.INDEX.conv."),
    (r"^compressor\.hyper_(en|de)coder\.0\.", r"context_fn.hyper_\1c.0.0."),
    (r"^compressor\.hyper_(en|de)coder\.2\.", r"context_fn.hyper_\1c.1.0."),
    (r"^compressor\.hyper_(en|de)coder\.4\.", r"context_fn.hyper_\1c.2.0."),
    (r"^compressor\.prior\.median$", "context_fn.prior._medians"),
    (r"^compressor\.prior\.matrices\.(\d)$", r"context_fn.prior.affine.\1.weight"),
    (r"^compressor\.prior\.biases\.(\d)$", r"context_fn.prior.affine.\1.bias"),
    (r"^compressor\.prior\.factors\.(\d)$", r"context_fn.prior.a.\1"),
    (r"\.conv_in\.", ".block1.block.0."),
    (r"\.norm_in\.", ".block1.block.1."),
    (r"(?<=\d)\.conv_out\.", ".block2.block.0."),
    (r"(?<=\d)\.norm_out\.", ".block2.block.1."),
    (r"\.time\.", ".mlp.1."),
    (r"\.skip\.", ".res_conv."),
    (r"\.(qkv|out)\.", r".fn.to_\1."),
    (r"((?:block\.1|norm|final_conv\.0)\.)weight$", r"\1g"),
    (r"((?:block\.1|norm|final_conv\.0)\.)bias$", r"\1b"),
)


def theirs(name, tensor, layout):
    """A tensor of ours by the authors' name, in their shape."""
    for pattern, other in THEIR_NAMES:
        name = re.sub(pattern, other, name)
    name = name.replace("INDEX", {"x": "1", "eps": "2"}[layout])
    if name.endswith((".g", ".b", "._medians")):
        tensor = tensor.view(1, -1, 1, 1)
    elif ".prior." in name:
        tensor = tensor.transpose(1, 2)[:, None, None]
    return name, tensor


def checkpoint(layout, compressor=SMALL, unet=SMALL_UNET):
    """A small checkpoint, and its averaged tensors by our names."""
    modules = {"compressor": PaperCompressor(compressor), "unet": UNet(unet)}
    ours = {
        f"{prefix}.{name}": tensor
        for prefix, module in modules.items()
        for name, tensor in randomized(module, 0).state_dict().items()
    }
    diffusion = Diffusion(layout, 30, {"x": "cosine", "eps": "linear"}[layout])
    alphas = torch.from_numpy(diffusion.alpha_bar).float()
    state = dict(theirs(name, tensor, layout) for name, tensor in ours.items())
    state |= {"train_betas": 1 - alphas, "train_alphas_cumprod": alphas}
    state["loss_fn_vgg.lin0.model.1.weight"] = torch.ones(1, 4, 1, 1)
    if layout == "eps":
        return {"step": 7, "model": state}, ours
    online = {name: tensor + 1 for name, tensor in state.items()}
    ema = {"initted": torch.tensor(True), "step": torch.tensor(7)}
    ema |= {f"online_model.{n}": t for n, t in online.items()}
    ema |= {f"ema_model.{n}": t for n, t in state.items()}
    return {"step": 7, "model": online, "ema": ema}, ours


@pytest.fixture(params=["x", "eps"])
def layout(request):
    return request.param


def test_the_small_checkpoints_are_in_the_authors_layout(layout, shared):
    """Otherwise the tests below would prove little."""
    reference = shared / "reference" / f"cdc-{layout}-dim8" / "checkpoint.pt"
    real = torch.load(reference, weights_only=True)
    small, _ = checkpoint(layout)
    assert real.keys() == small.keys()
    names = {name for name in small["model"] if not name.startswith("loss_fn_vgg")}
    # A block that keeps its width has no res_conv: which these are depends on the widths.
    assert {n for n in names - real["model"].keys() if "res_conv" not in n} == set()
    assert {n for n in small.get("ema", {}) if "." not in n} == {
        n for n in real.get("ema", {}) if "." not in n
    }
    for name in names & real["model"].keys():
        assert small["model"][name].ndim == real["model"][name].ndim, name


def test_small_checkpoints_are_imported_by_name(layout, tmp_path):
    content, ours = checkpoint(layout)
    torch.save(content, tmp_path / "checkpoint.pt")
    for path in (tmp_path, tmp_path / "checkpoint.pt"):
        assert authors.is_authors_checkpoint(path)
        config, tensors = authors.load(path)
        assert tensors.keys() == ours.keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, ours[name]), name
            assert tensor.is_contiguous()
            assert tensor.dtype == torch.float32
        assert json.loads(json.dumps(config)) == config
        assert config["codec"] == "cdc"
        compressor, unet, diffusion = build(config, tensors)
        assert (compressor.config, unet.config) == (SMALL, SMALL_UNET)
        schedule = {"x": "cosine", "eps": "linear"}[layout]
        assert diffusion == Diffusion(layout, 30, schedule)


def test_without_an_average_the_last_weights_are_taken(layout, tmp_path):
    content, ours = checkpoint(layout)
    if layout == "x":
        content["model"] = {n: t - 1 for n, t in content["model"].items()}
    content.pop("ema", None)
    torch.save(content, tmp_path / "any-name.pt")
    tensors = authors.load(tmp_path / "any-name.pt")[1]
    assert all(torch.allclose(tensors[name], ours[name], atol=1e-6) for name in ours)


def test_other_checkpoints_are_left_to_their_own_importer(tmp_path):
    assert not authors.is_authors_checkpoint(tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes(b"")
    assert authors.is_authors_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert not authors.is_authors_checkpoint(tmp_path / "model.safetensors")
    for text in ('{"model": {}}', "{", "[]"):
        (tmp_path / "config.json").write_text(text)
        assert not authors.is_authors_checkpoint(tmp_path)


def test_an_imported_model_codes_pictures(layout, tmp_path, capsys):
    content, ours = checkpoint(layout, TINY, TINY_UNET)
    torch.save(content, tmp_path / "checkpoint.pt")
    out = tmp_path / "model"
    assert main(["import", str(tmp_path), "--out", str(out)]) == 0
    config, tensors = zoo.read_model(out / "model.safetensors")
    assert config["codec"] == "cdc"
    assert all((tensors[name] == ours[name]).all() for name in ours)
    codec = zoo.load_codec(out)
    picture = np.random.default_rng(0).integers(0, 256, (70, 40, 3), dtype=np.uint8)
    decoded = codec.decode(codec.encode([picture]), steps=2)[0]
    assert (decoded.shape, decoded.dtype) == (picture.shape, picture.dtype)
    assert main(["import", str(tmp_path), "--out", str(out), "--learned-schedule"]) == 1
    assert "no schedule" in capsys.readouterr().err


class Bomb:
    """Pickles as a call that makes a directory."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_wants_to_run_code_is_refused(tmp_path):
    target = tmp_path / "ran"
    torch.save(checkpoint("eps")[0] | {"step": Bomb(target)}, tmp_path / "checkpoint.pt")
    with pytest.raises(InvalidModelError, match="refused"):
        authors.load(tmp_path)
    assert not target.exists()
    torch.load(tmp_path / "checkpoint.pt", weights_only=False)  # it would have
    assert target.exists()


def without(pattern):
    return lambda state: [state.pop(n) for n in list(state) if re.search(pattern, n)]


def replaced(name, tensor):
    return lambda state: state.update({name: tensor})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("mid_attn.fn.norm.g"), r"Missing .*unet\.middle_attention\.norm\.weight"),
        (without("_medians"), "Missing .*compressor.prior.median"),
        (without("res_conv"), "Missing .*skip"),
        (without("^context_fn"), "lacks compressor"),
        (without("^denoise_fn"), "not a CDC checkpoint: it lacks"),
        (without("time_mlp.2.bias"), "lacks 'unet.time.2.bias'"),
        (without("alphas_cumprod"), "train_alphas_cumprod"),
        (without(""), "lacks"),
        (replaced("context_fn.prior.extra", torch.zeros(1)), "Unexpected .*prior.extra"),
        (replaced("other", torch.zeros(1)), "Unexpected .*other"),
        (
            replaced("context_fn.hyper_dec.0.0.bias", torch.zeros(5)),
            r"mismatch .*bias: .*\[5\]",
        ),
        (replaced("context_fn.prior.a.0", torch.zeros(3)), "mismatch for .*factors.0"),
        (replaced("denoise_fn.time_mlp.2.bias", torch.zeros(3)), "multiples of 3"),
        (replaced("denoise_fn.time_mlp.2.bias", torch.zeros(0)), "multiples of 0"),
        (replaced("denoise_fn.final_conv.1.bias", torch.full((3,), torch.nan)), "finite"),
        (replaced("denoise_fn.final_conv.1.bias", torch.zeros(3).int()), "finite"),
        (replaced("denoise_fn.final_conv.1.bias", "x"), "finite"),
        (replaced("denoise_fn.downs.0.0.block1.block.0.weight", torch.zeros(4)), "not one"),
        (replaced("denoise_fn.downs.1.0.block1.block.0.weight", torch.zeros(8, 9, 3, 3)), "5, 5"),
        (replaced("train_alphas_cumprod", torch.linspace(1, 0, 30)), "neither"),
        (replaced("train_alphas_cumprod", torch.ones(3)), "num_timesteps"),
    ],
)
def test_what_is_wrong_with_the_tensors_is_said(tmp_path, damage, message):
    content = checkpoint("eps")[0]
    damage(content["model"])
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(InvalidModelError, match=message) as raised:
        authors.load(tmp_path)
    assert "checkpoint.pt" in str(raised.value)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: None, "cannot be read"),
        (lambda p: p.write_text("hello"), "checkpoint"),
        (lambda p: torch.save([1, 2], p), "does not hold a dictionary"),
        (lambda p: torch.save({"step": 1}, p), "'model' or 'ema'"),
        (lambda p: torch.save({"ema": {}}, p), "lacks"),
        (lambda p: torch.save({"ema": [1]}, p), "'model' or 'ema'"),
    ],
)
def test_what_is_wrong_with_the_file_is_said(tmp_path, write, message):
    write(tmp_path / "checkpoint.pt")
    with pytest.raises(InvalidModelError, match=message):
        authors.load(tmp_path)


def test_a_file_cut_short_is_refused(tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save(checkpoint("x")[0], path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InvalidModelError, match="checkpoint"):
        authors.load(path)


# Parity with the authors' own code, where the shared folder is there.


@pytest.fixture
def reference(layout, shared):
    """Networks of the reference checkpoint, and what the authors' code computes from it."""
    folder = shared / "reference" / f"cdc-{layout}-dim8"
    vectors = {n: torch.from_numpy(a) for n, a in np.load(folder / "vectors.npz").items()}
    return *build(*authors.load(folder)), vectors


def assert_close(ours, expected, tolerance):
    """To ``tolerance`` times the largest magnitude, or times 1 where that is less."""
    allowed = tolerance * max(1.0, float(expected.abs().max()))
    assert float((ours - expected).abs().max()) < allowed


def test_all_that_the_authors_compute_is_computed(reference):
    compressor, unet, _, vectors = reference
    with torch.inference_mode():
        y = compressor.analysis(vectors["x"])
        z = compressor.hyper_analysis(y)
        z_hat = rounded(z, compressor.prior.medians[:, None, None])
        mean, scale = compressor.hyper_synthesis(z_hat)
        y_hat = rounded(y, mean)
        found = {
            "latent": y,
            "hyper_latent": z,
            "q_hyper_latent": z_hat,
            "mean": mean,
            "scale": scale,
            "q_latent": y_hat,
        }
        contexts = compressor.context(y_hat)
        found |= {f"context{i}": c for i, c in enumerate(contexts)}
        for time in (0.0, 0.25, 0.75):
            found[f"unet_t{time}"] = unet(vectors["x_t"], torch.tensor([time]), contexts)
        for name, ours in found.items():
            assert_close(ours, vectors[name], 1e-5)
        bits = -compressor.prior.likelihood(z_hat).log2().sum()
        bits -= gaussian_likelihood(y_hat, mean, scale).log2().sum()
        pixels = vectors["x"].shape[2] * vectors["x"].shape[3]
        assert float(bits) / pixels == pytest.approx(float(vectors["bpp"]), rel=1e-4)


def test_reconstructions_are_the_authors(reference):
    compressor, unet, diffusion, vectors = reference
    names = [name for name in vectors if name.startswith("recon_")]
    assert len(names) >= 2
    with torch.inference_mode():
        contexts = compressor.context(vectors["q_latent"])
        for name in names:
            steps = int(re.match(r"recon_steps(\d+)_init0\.8x_t", name)[1])
            ours = diffusion.sample(
                lambda x, time: unet(x, time, contexts), 0.8 * vectors["x_t"], steps
            )
            assert_close(ours, vectors[name], 1e-5)


def test_files_are_no_longer_than_the_authors_estimate(layout, shared, tmp_path):
    folder = shared / "reference" / f"cdc-{layout}-dim8"
    config, tensors = authors.import_model(folder)
    zoo.write_model(tmp_path / zoo.MODEL_FILE, config, tensors)
    codec = load_codec(tmp_path)
    vectors = {n: torch.from_numpy(a) for n, a in np.load(folder / "vectors.npz").items()}
    picture = ((vectors["x"][0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    stream = EncodedImage.from_bytes(codec.encode([picture])[0].to_bytes())
    estimated = float(vectors["bpp"]) * picture.shape[0] * picture.shape[1] / 8
    # Random weights: most values are outliers, which the estimate floors at 30 bits each. Ours are
    # escapes of 26 to 29 bits.
    assert 0.9 * estimated < stream.nbytes <= 1.01 * estimated + 16
    compressor, unet, diffusion = build(*authors.load(folder))
    with torch.inference_mode():
        contexts = compressor.context(vectors["q_latent"])
        start = torch.zeros_like(vectors["x"])
        for steps in (1, 4, 17):
            direct = diffusion.sample(lambda x, time: unet(x, time, contexts), start, steps)
            expected = ((direct[0] + 1) * 127.5).round().clamp(0, 255).permute(1, 2, 0).numpy()
            (decoded,) = codec.decode([stream], decoder="diffusion", steps=steps)
            assert np.abs(decoded - expected).max() <= 1
