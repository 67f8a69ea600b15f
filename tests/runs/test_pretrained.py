"""Autoencoders of diffusers as the first stage: with random weights, as ``save_pretrained`` writes them."""

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import flowergen
from flowergen.app.train_command import checked
from flowergen.config.overrides import resolve
from flowergen.errors import UserError
from flowergen.evaluation import portable
from flowergen.nn.posterior import LOGVAR_MIN
from flowergen.runs import hub, stages
from flowergen.runs.build import build_datamodule
from flowergen.runs.loaded_model import LoadedModel
from flowergen.runs.pretrained import import_autoencoder
from tests.conftest import Command
from tests.test_train import assert_equal_weights, killed

KL = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2, "block_out_channels": [8, 8],
      "latent_channels": 4, "norm_num_groups": 4}  # fmt: skip
TINY = {"encoder_block_out_channels": [8, 8, 8], "decoder_block_out_channels": [8, 8, 8], "num_encoder_blocks": [1, 1, 1],
        "num_decoder_blocks": [1, 1, 1], "latent_channels": 4}  # fmt: skip
DC = {"latent_channels": 4, "encoder_block_types": "ResBlock", "decoder_block_types": "ResBlock",
      "encoder_block_out_channels": [8, 8], "decoder_block_out_channels": [8, 8], "encoder_layers_per_block": [1, 1],
      "decoder_layers_per_block": [1, 1], "encoder_qkv_multiscales": [[], []],
      "decoder_qkv_multiscales": [[], []]}  # fmt: skip
KINDS = {"AutoencoderKL": (KL, 2), "AutoencoderTiny": (TINY, 4), "AutoencoderDC": (DC, 2)}  # and how often smaller latents are


@pytest.fixture(autouse=True)
def nothing_downloaded() -> None:
    """Of the hub, in this process."""
    hub._snapshot.cache_clear()


def saved(folder: Path, kind: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    net = getattr(diffusers, kind)(**KINDS[kind][0] | changes).eval()
    net.save_pretrained(folder)
    return net


def imported(source: Path, folder: Path, cache_dir: Path, *overrides: str) -> LoadedModel:
    few = ("data.num_images=20", "data.batch_size=4", f"paths.cache_dir={cache_dir}", "trainer.accelerator=cpu")
    config = resolve(checked(["model=latent_ddpm", "autoencoder=none", "data.image_size=32", *few, *overrides])[0])
    data = build_datamodule(config)
    data.setup()
    import_autoencoder(str(source), config, data, folder)
    return flowergen.load(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_it_encodes_and_decodes_as_diffusers_does(kind: str, tmp_path: Path, cache_dir: Path) -> None:
    net = saved(tmp_path / "source", kind)
    model = imported(tmp_path / "source", tmp_path / "run", cache_dir)
    shutil.rmtree(tmp_path / "source")
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        output = net.encode(2 * x - 1)
        z = {"AutoencoderKL": lambda: output.latent_dist.mean, "AutoencoderTiny": lambda: output.latents,
             "AutoencoderDC": lambda: output.latent}[kind]()  # fmt: skip
        decoded = (net.decode(z).sample + 1) / 2
    posterior = model.encode(x)
    torch.testing.assert_close(posterior.mean, z, rtol=0, atol=1e-6)
    logvar = output.latent_dist.logvar if kind == "AutoencoderKL" else torch.full_like(z, LOGVAR_MIN)
    torch.testing.assert_close(posterior.logvar, logvar, rtol=0, atol=1e-6)
    torch.testing.assert_close(model.decode(z), decoded.clamp(0, 1), rtol=0, atol=1e-6)
    assert model.module.latent_shape == (4, 32 // KINDS[kind][1], 32 // KINDS[kind][1]) == tuple(z.shape[1:])
    assert f"{kind} of source, 32 px to latents of 4 x" in repr(model)


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_may_be_grey_and_need_not_be_square(channels: int, tmp_path: Path, cache_dir: Path) -> None:
    """They have as many channels as the autoencoder."""
    saved(tmp_path / "source", "AutoencoderKL", in_channels=channels, out_channels=channels)
    shape = ("data.image_size=[32,48]", f"data.channels={channels}")
    model = imported(tmp_path / "source", tmp_path / "run", cache_dir, *shape)
    x = torch.rand(2, channels, 32, 48)
    z = model.encode(x).mean
    assert z.shape == (2, *model.module.latent_shape) == (2, 4, 16, 24)
    assert model.decode(z).shape == x.shape
    assert model.config["model"]["image_channels"] == channels
    with pytest.raises(UserError, match="source cannot encode pictures of 32 px"):
        imported(tmp_path / "source", tmp_path / "other", cache_dir, f"data.channels={4 - channels}")


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_exported_with_weights_that_diffusers_loads(kind: str, tmp_path: Path, cache_dir: Path) -> None:
    """Each ONNX graph is compared with the model when it is written."""
    net = saved(tmp_path / "source", kind)
    model = imported(tmp_path / "source", tmp_path / "run", cache_dir)
    assert set(portable.write_onnx(model.module, tmp_path)) == {"encoder", "decoder"}
    about = portable.write_weights(model.module, {"model": model.config["model"]}, tmp_path)
    assert (about["model"]["kind"], about["pixel_range"]) == (kind, [-1, 1])
    rebuilt = getattr(diffusers, kind).from_config(about["model"]["config"])
    rebuilt.load_state_dict(load_file(tmp_path / "encoder.safetensors") | load_file(tmp_path / "decoder.safetensors"))
    for name, tensor in rebuilt.state_dict().items():
        assert torch.equal(tensor, net.state_dict()[name]), name


def test_pictures_that_the_factor_does_not_divide_are_refused(tmp_path: Path, cache_dir: Path) -> None:
    saved(tmp_path / "source", "AutoencoderTiny")
    with pytest.raises(UserError, match=r"of 30 px to .* px: use a data.image_size that is a multiple of 4"):
        imported(tmp_path / "source", tmp_path / "run", cache_dir, "data.image_size=30")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", b"{", "config.json cannot be read"),
        ("config.json", b'{"_class_name": "UNet2DModel"}', "is of class UNet2DModel: choose one of AutoencoderKL, "),
        (
            "config.json",
            b'{"_class_name": "AutoencoderKL", "block_out_channels": 3}',
            "its config.json is not one of AutoencoderKL",
        ),
        ("diffusion_pytorch_model.safetensors", b"broken", "diffusion_pytorch_model.safetensors cannot be loaded"),
    ],
)
def test_damaged_files_are_one_line(name: str, content: bytes, words: str, tmp_path: Path, cache_dir: Path) -> None:
    saved(tmp_path / "source", "AutoencoderKL")
    (tmp_path / "source" / name).write_bytes(content)
    with pytest.raises(UserError, match=words) as raised:
        imported(tmp_path / "source", tmp_path / "run", cache_dir)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_weights_under_their_older_names_are_translated_and_missing_ones_refused(tmp_path: Path, cache_dir: Path) -> None:
    """The hub's first autoencoders call the projections of their attention query, key, value and proj_attn."""
    net = saved(tmp_path / "source", "AutoencoderKL")
    file = tmp_path / "source" / "diffusion_pytorch_model.safetensors"
    weights, older = load_file(file), {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, tensor in weights.items():
        for now, before in older.items():
            name = name.replace(f".{now}.", f".{before}.")
        renamed[name] = tensor
    assert len(set(renamed) - set(weights)) == 16
    save_file(renamed, file)
    model = imported(tmp_path / "source", tmp_path / "run", cache_dir)
    for name, tensor in model.module.inference_net.state_dict().items():
        assert torch.equal(tensor, net.state_dict()[name]), name
    renamed.pop("decoder.conv_in.weight")
    save_file(renamed, file)
    with pytest.raises(UserError, match=r"does not fit config.json, such as decoder.conv_in.weight"):
        imported(tmp_path / "source", tmp_path / "other", cache_dir)


@pytest.mark.parametrize("value", ["hub:", "hub:owner", "hub:owner/", "hub:/name"])
def test_a_repository_s_name_is_complete(value: str) -> None:
    with pytest.raises(UserError, match="give hub:OWNER/NAME"):
        checked(["model=latent_ddpm", f"autoencoder={value}"])


@pytest.mark.parametrize("missing", ["diffusers", "huggingface_hub"])
def test_a_line_says_which_package_to_install(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "source", "AutoencoderTiny")
    for module in (stages, hub):
        monkeypatch.setattr(module, "find_spec", lambda name: None if name == missing else name)
    value = str(tmp_path / "source") if missing == "diffusers" else "hub:owner/name"
    with pytest.raises(UserError, match=rf"autoencoder={value} needs {missing}: pip install 'flowergen\[hub\]'"):
        checked(["model=latent_ddpm", f"autoencoder={value}"])


def test_a_repository_is_downloaded_once_by_name(tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With huggingface_hub replaced, as there is no network; a subfolder's files are asked for by its path."""
    import huggingface_hub

    asked = []

    def download(repo: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repo, allow_patterns))
        saved(tmp_path / "hub" / "vae", "AutoencoderKL")
        return str(tmp_path / "hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    model = imported(Path("hub:owner/name/vae"), tmp_path / "run", cache_dir)
    assert asked == [("owner/name", ["vae/config.json", "vae/diffusion_pytorch_model.safetensors"])]
    assert "AutoencoderKL of hub:owner/name/vae" in repr(model)


def test_no_network_is_one_line_that_says_what_to_fetch(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def offline(*_: object, **__: object) -> str:
        raise OSError("We couldn't connect\nto the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(
        UserError,
        match=r"cannot be downloaded \(OSError: We couldn't connect to the hub\): .*config.json and the files beside it",
    ) as raised:
        imported(Path("hub:owner/name"), tmp_path / "run", cache_dir)
    assert "\n" not in str(raised.value)


def test_the_first_phase_takes_it_for_a_repository_and_not_for_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    saved(tmp_path / "0123", "AutoencoderKL")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path / "0123"))
    config = resolve(checked(["model=latent_ddpm", "autoencoder=hub:stabilityai/sd-vae-ft-mse", "data.image_size=96"])[0])
    assert (config["autoencoder"], config["data"]["image_size"]) == ("hub:stabilityai/sd-vae-ft-mse@0123", 96)
    with pytest.raises(UserError, match="carry_autoencoder=false needs autoencoder=hub:OWNER/NAME"):
        checked(["model=latent_ddpm", f"autoencoder={tmp_path / '0123'}", "carry_autoencoder=false"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["AutoencoderKL", "AutoencoderTiny"])
def test_diffusion_on_its_latents_is_resumed_and_sampled_without_the_original(
    kind: str, command: Command, tiny_latent_ddpm: tuple[str, ...], tmp_path: Path, process_environment: dict[str, str]
) -> None:
    """Killed before its first checkpoint and after it; then sampled, varied and evaluated as any diffusion run."""
    source = tmp_path / "a source"
    saved(source, kind)
    arguments = [
        *tiny_latent_ddpm,
        f"autoencoder={source}",
        "data.image_size=32",
        "callbacks.checkpoints.checkpoint_every_steps=3",
    ]
    whole, run = tmp_path / "whole", tmp_path / "killed"
    done = command("train", *arguments, f"hydra.run.dir={whole}")
    assert done.returncode == 0, done.stderr
    side = 32 // KINDS[kind][1]
    assert f"latents of 4 x {side} x {side}" in done.stderr
    assert f"no data= was given, and {source} does not name its own: training on procedural" in done.stderr
    killed(run, "diffusion training step", 2, arguments, process_environment)
    shutil.rmtree(source)
    killed(run, "diffusion training step", 7, [f"resume={run}"], process_environment)
    done = command("train", f"resume={run}")
    assert done.returncode == 0, done.stderr
    assert_equal_weights(whole, run)
    assert (whole / "metrics.csv").read_bytes() == (run / "metrics.csv").read_bytes()
    carried = yaml.safe_load((run / "autoencoder" / "config.yaml").read_text())["model"]
    assert (carried["kind"], carried["source"]) == (kind, "a source")
    for name, *more in (
        ("sample", "num=2"),
        ("vary", "split=test", "mode=reconstruct"),
        ("evaluate", "num_samples=8", "repeats=1"),
        ("latents",),
        ("export", "format=safetensors"),
    ):
        done = command(name, f"run={run}", *more)
        assert done.returncode == 0, (name, done.stderr)
    card = json.loads(next((run / "evaluation").rglob("card.json")).read_text())
    assert "psnr" in card["results"]
