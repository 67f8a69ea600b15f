"""Exported models of every family and network, untrained: held against the models by onnxruntime, and by rebuilt networks."""

import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from flowergen.errors import UserError
from flowergen.evaluation import portable
from flowergen.modules import latent_ddpm
from flowergen.modules.image_model import ImageModel
from flowergen.modules.latent_ddpm import LatentDDPMModule
from flowergen.nn.conv_vae import ConvEncoder
from flowergen.nn.dit import DiT
from flowergen.nn.residual_autoencoder import Blocks, LatentShape, ResidualAutoencoder
from flowergen.picture_shape import PictureShape
from flowergen.randomness import initialisation
from tests.evaluation.test_latent_edits import Pixels
from tests.modules import test_vae, test_vae_gan
from tests.tiny_models import SAMPLING, TinyAutoencoder, diffusion, wake

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
FLAT: dict[str, Any] = {
    "latent": {"kind": "flat", "factor": "auto", "channels": 2, "dim": 6},
    "blocks": {**test_vae_gan.DEFAULTS["blocks"], "num_blocks": [0]},
}
TINY_DIT = partial(DiT, patch_size=2, hidden_size=16, depth=1, num_heads=2, block="modern")


def example(name: str) -> str:
    """The code block of docs/export.md below this mark."""
    found = re.search(rf"<!-- {name} -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found, name
    return found[1]


def stirred(model: ImageModel) -> ImageModel:
    """Weights of the last step and the averaged ones that differ, running statistics of BatchNorm that are not 0 and 1."""
    wake(model)
    averaged = model.inference_net
    assert averaged is not getattr(model, "net", None)
    with initialisation(2), torch.no_grad():
        for value in averaged.state_dict().values():
            if value.is_floating_point():
                value.add_(0.1 * (torch.rand_like(value) - 0.5))
    return model.eval()


def vae() -> ImageModel:
    """An odd map, BatchNorm, a range of its own."""
    odd = {"image_size": 30, "norm": "batch", "pixel_range": [-1, 1], "residual_blocks": 1}
    return stirred(test_vae.make(**odd, ema_decay=0.9))


def grey_vae() -> ImageModel:
    """Of grey pictures that are wider than high."""
    return stirred(test_vae.make(image_size=[28, 36], image_channels=1, ema_decay=0.9))


def vae_gan() -> ImageModel:
    """A flat latent, LayerNorm, all kinds of attention, weights that lie as channels_last."""
    return stirred(test_vae_gan.make(**FLAT, ema_decay=0.9).to(memory_format=torch.channels_last))  # type: ignore[call-overload]


def unet() -> ImageModel:
    """On a flat latent with a scale, continuous times."""
    model = diffusion(autoencoder=TinyAutoencoder(flat=True), objective="flow", ema_decay=0.9)
    model.set_latent_scale(torch.linspace(-1, 1, 32), torch.linspace(0.5, 2, 32))
    return stirred(model)


def dit(block: str = "modern") -> ImageModel:
    """On pixels, with a thousand times."""
    return stirred(diffusion(on_pixels=True, network=partial(TINY_DIT, block=block), num_timesteps=1000, ema_decay=0.9))


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (vae, {"encoder", "decoder"}),
        (grey_vae, {"encoder", "decoder"}),
        (vae_gan, {"encoder", "decoder"}),
        (unet, {"encoder", "decoder", "denoiser"}),
        (dit, {"denoiser"}),
        (partial(dit, "original"), {"denoiser"}),
    ],
)
def test_onnxruntime_answers_as_the_model_does_at_any_batch_size(make: Any, names: set[str], tmp_path: Path) -> None:
    """With the averaged weights, from pictures in [0, 1] to pictures in [0, 1]; the files hold no names of folders."""
    model = make()
    found = portable.write_onnx(model, tmp_path)
    assert set(found) == {path.stem for path in tmp_path.iterdir()} == names
    assert 0 < max(found.values()) < portable.TOLERANCE
    g = torch.Generator().manual_seed(3)
    for rows in (1, 2, 5):
        x = torch.rand(rows, *model.picture_shape, generator=g)
        z = 2 * torch.randn(rows, *model.latent_shape, generator=g)
        with torch.inference_mode():
            ours: dict[str, tuple[dict[str, Tensor], Any]] = {}
            if "encoder" in names:
                ours["encoder"] = {"x": x}, tuple(model.encode(x))
                ours["decoder"] = {"z": z}, (model.decode(z),)
            if isinstance(model, LatentDDPMModule):
                t, label = 900 * torch.rand(rows, generator=g), torch.arange(rows) % (model.num_classes + 1)
                ours["denoiser"] = {"x": z, "t": t, "label": label}, (model.inference_net(z, t, label),)
        for name, (inputs, outputs) in ours.items():
            session = onnxruntime.InferenceSession(tmp_path / f"{name}.onnx")
            theirs = session.run(None, {key: value.numpy() for key, value in inputs.items()})
            for their, our in zip(theirs, outputs, strict=True):
                assert our.std() > 1e-3, name
                torch.testing.assert_close(torch.from_numpy(their), our, rtol=1e-5, atol=2e-5)
            assert str(PAGE.parents[1]).encode() not in (tmp_path / f"{name}.onnx").read_bytes()


class Session:
    """onnxruntime's, but for the runtime: answers are the model's own."""

    def __init__(self, graph: portable.Graph):
        self.graph = graph

    @torch.inference_mode()
    def run(self, outputs: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        assert set(inputs) == set(self.graph.inputs)
        for name, known in self.graph.inputs.items():  # onnxruntime is as strict
            assert torch.from_numpy(inputs[name]).dtype == known.dtype, name
            assert inputs[name].shape[1:] == known.shape[1:], name
        return [out.numpy() for out in self.graph.net(*(torch.from_numpy(inputs[name]) for name in self.graph.inputs))]


def run_example(code: str, model: ImageModel, folder: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Its variables."""
    by_file = {f"{graph.name}.onnx": Session(graph) for graph in portable.graphs(model)}
    patch.setattr(onnxruntime, "InferenceSession", by_file.__getitem__)
    patch.chdir(folder)
    names = [f"class {k}" for k in range(getattr(model, "num_classes", 0))]
    Path("model.json").write_text(json.dumps(portable.describe(model, names)))
    variables: dict[str, Any] = {}
    exec(code, variables)
    return variables


def our_samples(model: LatentDDPMModule, sampler: str, noise: np.ndarray, patch: pytest.MonkeyPatch) -> Tensor:
    """(4, C, h, w) latents from this noise, with the model's own steps and guidance."""
    patch.setattr(latent_ddpm, "normal_per_sample", lambda *args, **kwargs: torch.from_numpy(noise))
    sampling = latent_ddpm.SamplingSettings(**{**SAMPLING, "sampler": sampler})
    with torch.inference_mode():
        return model.denoised(range(4), torch.arange(4), 0, sampling)


@pytest.mark.parametrize("objective", ["v", "eps", "x0", "flow"])
@pytest.mark.parametrize("on_pixels", [False, True])
def test_the_example_samples_as_we_do(objective: str, on_pixels: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the line that the page's table has for the objective, and on pixels with what it says about them."""
    model = diffusion(on_pixels=on_pixels, objective=objective, num_classes=4)
    if not on_pixels:
        model.set_latent_scale(torch.tensor([0.3, -2.0]), torch.tensor([0.5, 2.0]))
    code, page = example("diffusion"), PAGE.read_text()
    row = re.search(rf"^\| `{objective}` \| `(.*)` \|$", page, re.MULTILINE)
    clip = re.search(r"`(x0 = x0.clip.*)`, and the picture is (.*?)\. ", page.replace("\n", " "))
    assert row
    assert clip
    line = "    x0, eps = a * x - s * out, s * x + a * out\n"
    assert line in code
    code = code.replace(line, f"    x0, eps = {row[1]}\n" + (f"    {clip[1]}\n" if on_pixels else ""))
    if on_pixels:
        code = re.sub(r"denoiser, decoder = .*", 'denoiser = onnxruntime.InferenceSession("denoiser.onnx")', code)
        code = re.sub(r"\(pictures,\) = .*", f"pictures = {clip[2]}", code)
    found = run_example(code, model, tmp_path, monkeypatch)

    noise = np.random.default_rng(0).standard_normal((4, *model.latent_shape), dtype=np.float32)
    z = our_samples(model, "ddim", noise, monkeypatch)
    with torch.inference_mode():
        x_hat = model.decode(z)
    assert x_hat.std() > 0.01
    torch.testing.assert_close(torch.from_numpy(np.float32(found["pictures"])), x_hat, rtol=0, atol=1e-4)
    written = np.asarray(Image.open("pictures.png"))
    assert written.shape == (16, 64, 3)
    assert abs(written - 255 * np.concatenate(x_hat.permute(0, 2, 3, 1).numpy(), axis=1)).max() < 0.6


def test_the_example_reconstructs_and_decodes_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = TinyAutoencoder().eval()
    x = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    Image.fromarray((255 * x).permute(1, 2, 0).byte().numpy()).save(tmp_path / "picture.png")
    run_example(example("autoencoder"), model, tmp_path, monkeypatch)
    x = (255 * x).byte()[None] / 255
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 2, 4, 4), dtype=np.float32))
    with torch.inference_mode():
        posterior = model.encode(x)
        variation = model.decode(posterior.sample(noise[:1]))
        ours = torch.cat([x, model.decode(posterior.mean), variation, model.decode(noise)])
    written = np.asarray(Image.open("pictures.png"))
    assert abs(written - 255 * np.concatenate(ours.permute(0, 2, 3, 1).numpy(), axis=1)).max() < 0.6


def test_what_model_json_says_of_the_schedule_is_the_schedule() -> None:
    model = diffusion()
    about = portable.describe(model, ["a", "b", "c"])
    t, a, s = np.array(about["levels"]).T
    assert (len(t), a[-1], s[-1]) == (SAMPLING["steps"] + 1, 1, 0)
    alpha_bar = np.array(about["alpha_bar"])
    np.testing.assert_allclose(a[:-1], np.sqrt(alpha_bar[t[:-1].astype(int)]), rtol=1e-12)
    np.testing.assert_allclose(a**2 + s**2, 1, rtol=1e-12)
    assert about["pixel_range"] == [0, 1]
    assert portable.describe(diffusion(objective="flow"), [])["alpha_bar"] is None
    assert portable.describe(diffusion(on_pixels=True), [])["pixel_range"] == [-1, 1]


def test_model_json_says_what_shape_the_pictures_have() -> None:
    found = [portable.describe(model, []) for model in (diffusion(), grey_vae())]
    assert [(about["image_size"], about["image_channels"]) for about in found] == [(16, 3), ([28, 36], 1)]


def test_networks_are_rebuilt_from_the_weights_and_the_json_alone(tmp_path: Path) -> None:
    """The page's example for the denoiser; an encoder and a whole VAE-GAN; none sees anything of ``modules``."""
    config = {"_target_": "flowergen.nn.unet.UNet", "_partial_": True, "channels": 8, "multipliers": [1, 1], "num_blocks": 1,
              "attention_resolutions": [2], "head_channels": 8}  # fmt: skip
    model = diffusion(ema_decay=0.9)
    stirred(model)
    nodes = {"model": {"network": config, "optimizer": "?"}, "autoencoder": {"_target_": "mine", "lr": 1}}
    about = portable.describe(model, []) | portable.write_weights(model, nodes, tmp_path)
    assert about["autoencoder"] == {"_target_": "mine"}
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["decoder", "denoiser", "encoder"]
    (tmp_path / "model.json").write_text(json.dumps(about))
    code = example("weights").replace('"model.json"', f"{str(tmp_path / 'model.json')!r}")
    variables: dict[str, Any] = {}
    exec(code.replace('"denoiser.safetensors"', f"{str(tmp_path / 'denoiser.safetensors')!r}"), variables)
    z, t, label = torch.randn(2, 2, 4, 4), torch.tensor([3.0, 70.0]), torch.tensor([0, 3])
    torch.testing.assert_close(variables["denoiser"](z, t, label), model.inference_net(z, t, label), rtol=0, atol=0)

    gan = vae_gan()
    about = portable.describe(gan, []) | portable.write_weights(gan, {"model": FLAT}, tmp_path)
    assert (about["pixel_range"], about["decoder_activation"]) == ([-1, 1], "clamp")
    shape = PictureShape.of(about["image_size"], about["image_channels"])
    net = ResidualAutoencoder(shape, LatentShape(**about["model"]["latent"]), Blocks(**about["model"]["blocks"]))
    for name in ("encoder", "decoder"):
        getattr(net, name).load_state_dict(load_file(tmp_path / f"{name}.safetensors"))
    x = torch.rand(2, 3, 16, 16)
    mean = net.encoder(2 * x - 1).mean
    torch.testing.assert_close(mean, gan.encode(x).mean)
    torch.testing.assert_close(((net.decoder(mean) + 1) / 2).clamp(0, 1), gan.decode(mean))

    plain = vae()
    options = {key: getattr(plain, key) for key in ("channels", "latent_dim")} | {"norm": "batch", "activation": "silu"}
    about = portable.write_weights(plain, {"model": {**options, "residual_blocks": 1, "beta": 1.0}}, tmp_path)
    assert (about["pixel_range"], about["decoder_activation"]) == ([-1, 1], "tanh")
    encoder = ConvEncoder(PictureShape.of(30), **about["model"]).eval()
    encoder.load_state_dict(load_file(tmp_path / "encoder.safetensors"))
    x = torch.rand(2, 3, 30, 30)
    torch.testing.assert_close(encoder(2 * x - 1).mean, plain.encode(x).mean)
    assert portable.write_weights(test_vae.make(), {}, tmp_path)["decoder_activation"] == "sigmoid"


def test_a_deviation_is_measured_and_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of other weights, in a decoder and in the second row of a batch; values that are not finite."""
    model = TinyAutoencoder()
    graph = next(g for g in portable.graphs(model) if g.name == "decoder")
    portable.export_graph(graph, tmp_path / "stale.onnx")
    with torch.inference_mode():
        before = model.decode(graph.inputs["z"])
        model.decoder.bias[1] += 0.01
        expected = (model.decode(graph.inputs["z"]) - before).abs().max().item()
    found, largest = portable.deviation(graph, tmp_path / "stale.onnx")
    assert found == pytest.approx(expected, rel=1e-3)
    assert largest == pytest.approx(model.decode(graph.inputs["z"]).max().item())

    monkeypatch.setattr(portable, "graphs", lambda model: [graph])
    monkeypatch.setattr(portable, "export_graph", lambda graph, path: shutil.copy(tmp_path / "stale.onnx", path))
    with pytest.raises(UserError, match=r"decoder.onnx deviates by 2\.\de-03 from the model"):
        portable.write_onnx(model, tmp_path)
    with torch.inference_mode():
        model.decoder.bias[1] += torch.nan
    with pytest.raises(UserError, match=r"decoder.onnx deviates by nan"):
        portable.write_onnx(model, tmp_path)


@pytest.mark.parametrize(
    ("deviation", "largest", "accepted"),
    [(2e-4, 1.0, False), (2e-4, 500.0, True), (6e-2, 500.0, False), (5e-5, 0.01, True), (2e-4, 0.01, False)],
)
def test_large_values_may_differ_by_more(
    deviation: float, largest: float, accepted: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Within 1e-4 of values up to 1, and 1e-4 of the largest where it is above."""
    monkeypatch.setattr(portable, "export_graph", lambda graph, path: None)
    monkeypatch.setattr(portable, "deviation", lambda graph, path: (deviation, largest))
    if accepted:
        assert portable.write_onnx(TinyAutoencoder(), tmp_path) == {"encoder": deviation, "decoder": deviation}
    else:
        with pytest.raises(UserError, match="deviates by"):
            portable.write_onnx(TinyAutoencoder(), tmp_path)


class OfThree(TinyAutoencoder):
    """What it was exported with is its only batch size."""

    def decode(self, z: Tensor) -> Tensor:
        return super().decode(z.reshape(len(z), 2, 4, 4))


def test_models_of_ones_own_are_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Pixels has no known parts to export: its inference_net needs the attributes encoder"):
        portable.networks(Pixels())
    with pytest.raises(UserError, match=r"decoder.onnx cannot be made from OfThree \(.*\): use format=safetensors") as refusal:
        portable.write_onnx(OfThree(), tmp_path)
    assert "\n" not in str(refusal.value)
