"""A pretrained autoencoder of diffusers as the start of a VAE-GAN, with random weights."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml
from torch import nn

from flowergen.app.train_command import checked
from flowergen.config.overrides import resolve
from flowergen.config.schema import PretrainedKind
from flowergen.errors import UserError
from flowergen.evaluation import portable
from flowergen.losses.diff_augment import diff_augment
from flowergen.modules.pretrained import LATENTS
from flowergen.modules.vae_gan import VAEGANModule
from flowergen.nn.posterior import LOGVAR_MIN
from flowergen.runs import hub, stages
from flowergen.runs.build import build_datamodule, build_module
from flowergen.runs.pretrained import start_from_pretrained
from flowergen.runs.run_folder import RunFolder
from flowergen.runs.stages import pretrained_folder
from flowergen.runs.trainer import build_trainer
from tests.modules.test_vae_gan import (
    ADVERSARIAL_STEP,
    augmentation_of,
    batch,
    discriminator_of,
    make,
    reconstruction_of,
    training_step,
)
from tests.runs.test_pretrained import KINDS, saved

HALF = {"encoder_layers_per_block": [0, 1], "decoder_layers_per_block": [0, 1]}  # no convolution at full resolution
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{kind: (kind, {}) for kind in KINDS},
    "KL without quant_conv": ("AutoencoderKL", {"use_quant_conv": False, "use_post_quant_conv": False}),
    "DC with pixel shuffle": ("AutoencoderDC", HALF),
    "DC with interpolation": ("AutoencoderDC", HALF | {"upsample_block_type": "interpolate"}),
}
FEW = ("data.num_images=40", "data.batch_size=8", "data.image_size=32", "trainer.accelerator=cpu", "debug=tiny",
       "trainer.channels_last=false", "trainer.limit_train_batches=2", "model.perceptual=none",
       "model.discriminator.channels=4", "model.adversarial_start_steps=1", "model.adversarial_ramp_steps=1")  # fmt: skip


def started(source: Path, *overrides: str) -> dict[str, Any]:
    return resolve(checked([f"init='{source}'", *overrides])[0])


def fine_tuned(config: dict[str, Any]) -> VAEGANModule:
    module = build_module(config, num_classes=4)
    assert isinstance(module, VAEGANModule)
    start_from_pretrained(config["init"], module)
    return module


@pytest.mark.parametrize("variant", VARIANTS)
def test_before_the_first_step_it_reconstructs_as_diffusers_does(variant: str, tmp_path: Path) -> None:
    """The network that is trained and its moving average."""
    kind, changes = VARIANTS[variant]
    net = saved(tmp_path / "source", kind, **changes)
    module = fine_tuned(started(tmp_path / "source", *FEW))
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        output = net.encode(2 * x - 1)
        z = output.latent_dist.mean if kind == "AutoencoderKL" else output[0]
        for ours in (module.net, module.inference_net):
            net.requires_grad_(ours is module.net)  # torch has other kernels for weights without gradients
            decoded = net.decode(z).sample
            torch.testing.assert_close(ours.encoder(2 * x - 1).mean, z, rtol=0, atol=1e-6)
            torch.testing.assert_close(ours.decoder(z), decoded, rtol=0, atol=1e-6)
        posterior = module.encode(x)
        torch.testing.assert_close(module.decode(z), ((decoded + 1) / 2).clamp(0, 1), rtol=0, atol=1e-6)
    logvar = output.latent_dist.logvar if kind == "AutoencoderKL" else torch.full_like(z, LOGVAR_MIN)
    torch.testing.assert_close(posterior.logvar, logvar, rtol=0, atol=1e-6)
    assert module.inference_net is not module.net
    assert module.latent_shape == tuple(z.shape[1:])
    assert module.summary().startswith(f"{kind} of source, 32 px to latents of 4 x ")
    assert f"down {32 // z.shape[-1]} times" in module.summary()


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_adaptive_weight_is_measured_at_its_last_layer(variant: str) -> None:
    kind, changes = VARIANTS[variant]
    pretrained = {"kind": kind, "config": KINDS[kind][0] | changes, "source": "the test"}
    module = make(ADVERSARIAL_STEP, beta=0.0, pretrained=pretrained, latent={"kind": "unused"})
    assert module.adversary is not None
    data = batch()
    training_step(module, data)
    x, discriminator, last = 2 * data.image - 1, discriminator_of(module), module.net.decoder.to_picture.weight
    posterior, x_hat = reconstruction_of(module, x)
    nll = module.objective(x, data.label, posterior, x_hat, None)["loss"].mean()
    adversarial = -discriminator(diff_augment(x_hat, augmentation_of(module, 3))).logits.mean()
    norms = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (nll, adversarial)]
    module.adversary.update_adaptive_weight(world_size=1)
    assert module.adversary.adaptive_weight.item() == pytest.approx((norms[0] / norms[1]).item(), rel=1e-3)


def changed_in(net: nn.Module, before: dict[str, torch.Tensor]) -> list[bool]:
    return [not torch.equal(value, before[name]) for name, value in net.state_dict().items()]


@pytest.mark.parametrize("freeze", ["none", "encoder"])
@pytest.mark.parametrize("kind", ["AutoencoderKL", "AutoencoderTiny", "residual"])
def test_training_changes_the_decoder_and_a_frozen_encoder_not_by_a_bit(
    kind: str, freeze: str, tmp_path: Path, cache_dir: Path
) -> None:
    """The residual autoencoder has BatchNorm, whose statistics are frozen as well."""
    few = (*FEW, f"paths.cache_dir={cache_dir}")
    if kind == "residual":
        network = ("model.blocks.channels=[4,8]", "model.blocks.num_blocks=[1]", "model.blocks.norm=batch")
        config = resolve(checked(["model=vae_gan", *few, *network])[0])
        config["model"]["freeze"] = freeze
        module = build_module(config, num_classes=10)
        assert isinstance(module, VAEGANModule)
    else:
        saved(tmp_path / "source", kind)
        config = started(tmp_path / "source", *few, f"model.freeze={freeze}")
        module = fine_tuned(config)
    module.train()
    parts = [net for own in (module.net, module.inference_net) for net in (own.encoder, own.decoder)]
    before = [{name: value.clone() for name, value in net.state_dict().items()} for net in parts]
    data = build_datamodule(config)
    data.setup()
    build_trainer(config, RunFolder(tmp_path / "run"), None).fit(module, datamodule=data)
    assert module.optimizer_steps == 2
    encoder, decoder, averaged_encoder, averaged_decoder = map(changed_in, parts, before)
    assert sum(decoder) > 0.8 * len(decoder)
    assert sum(averaged_decoder) > 0.8 * len(averaged_decoder)
    for found in (encoder, averaged_encoder):
        assert (sum(found) > 0.8 * len(found)) if freeze == "none" else not any(found)
    in_optimizer = {id(p) for group in module.list_optimizers()[0].optimizer.param_groups for p in group["params"]}
    assert {id(p) in in_optimizer for p in module.net.encoder.parameters()} == {freeze == "none"}


def test_the_settings_of_a_start(tmp_path: Path) -> None:
    """A recipe's latent and beta are for its own network; a run that starts from the fine-tuned one has its network."""
    for kind, beta in (("AutoencoderKL", 1e-6), ("AutoencoderTiny", 0)):
        source = tmp_path / kind
        saved(source, kind)
        config = started(source, "experiment=flowers_laptop_vae_gan", "data=procedural")
        assert config["model"]["beta"] == beta
        stored = json.loads((source / "config.json").read_text())
        arguments = {key: value for key, value in stored.items() if not key.startswith("_")}
        assert config["model"]["pretrained"] == {"kind": kind, "config": arguments, "source": kind}
    assert started(tmp_path / "AutoencoderKL", "model.beta=0.5")["model"]["beta"] == 0.5

    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.store(config, [])
    composed, lines = checked([f"init='{run.path}'", "data=procedural"])
    assert checked(lines)[1] == lines, "as in the processes of a distributed run"
    again = resolve(composed)
    assert again["model"]["pretrained"] == config["model"]["pretrained"]
    assert again["model"]["beta"] == 0
    with pytest.raises(UserError, match=r"model.latent.channels=8: the network is that of init=.*/run, so leave"):
        started(run.path, "data=procedural", "model.latent.channels=8")


def test_the_processes_of_a_distributed_run_get_the_same_settings(tmp_path: Path) -> None:
    """Lightning starts them with the first one's overrides, to which nothing is added."""
    saved(tmp_path / "an odd 'name'", "AutoencoderKL")
    _, lines = checked(["init='" + str(tmp_path / "an odd 'name'").replace("'", r"\'") + "'", "data.image_size=32"])
    composed, again = checked(lines)
    assert again == lines
    assert resolve(composed)["model"]["pretrained"]["source"] == "an odd 'name'"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("model=latent_ddpm",), "model=latent_ddpm: init=.*for diffusion on its latents, give autoencoder=/"),
        (("model=vae",), "is an autoencoder of diffusers, for model=vae_gan: leave model out"),
        (
            ("model.latent.channels=4",),
            "model.latent.channels=4: the network is that of init=.*, so leave model.latent.channels",
        ),
        (("model.blocks.norm=group",), "so leave model.blocks.norm out"),
        (("model.pretrained={kind:x}",), "model.pretrained is taken from init=.*: leave it out"),
        (("model.beta=0.5",), "model.beta=0.5 weighs a KL, but the latents of AutoencoderTiny have no variance"),
        (("model.freeze=encoder", "model.class_weight=1"), "model.class_weight=1 trains the encoder"),
        (("model.freeze=encoder", "model.center_weight=1"), "model.center_weight=1 trains the encoder"),
        (("model.freeze=decoder",), "must be none or encoder"),
    ],
)
def test_what_contradicts_the_start_is_refused_in_a_line(overrides: tuple[str, ...], words: str, tmp_path: Path) -> None:
    saved(tmp_path / "source", "AutoencoderTiny")
    with pytest.raises(UserError, match=words) as raised:
        started(tmp_path / "source", *overrides)
    assert "\n" not in str(raised.value)


def test_without_a_start_there_is_nothing_pretrained_or_frozen() -> None:
    with pytest.raises(UserError, match=r"random without init=: add init="):
        checked(["model=vae_gan", "model.freeze=encoder"])
    with pytest.raises(UserError, match=r"model.pretrained is set by init=: give init=hub:OWNER/NAME, or the folder"):
        checked(["model=vae_gan", "model.pretrained={kind:AutoencoderKL,config:{},source:x}"])
    with pytest.raises(UserError, match=r"model.pretrained=.* is set by init=: leave it out"):
        checked(["model=vae_gan", "model.pretrained={kind:AutoencoderKL}"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "its config.json cannot be read"),
        ('{"_class_name": "UNet2DModel"}', "is of class UNet2DModel: choose one of AutoencoderKL, AutoencoderTiny, "),
        (
            '{"_class_name": "AutoencoderKL", "act_fn": "${oc.env:HOME}"}',
            r"contains \$\{, which is no argument of AutoencoderKL",
        ),
        ('{"_class_name": "AutoencoderKL", "mine": {"_target_": "os.system"}}', "contains _target_, which is no argument"),
        ("[" * 100_000, "its config.json cannot be read"),
        (" " * 1_000_001, "larger than 1,000,000 bytes"),
    ],
)
def test_a_damaged_config_is_refused_before_there_is_a_folder(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=words):
        started(tmp_path)


def test_unfit_sizes_and_weights_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    saved(source, "AutoencoderTiny")
    with pytest.raises(UserError, match=r"source decodes pictures of 30 px to .* px: use .* a multiple of 4"):
        build_module(started(source, "data.image_size=30"), 0)
    config = started(source, *FEW)
    module = build_module(config, 0)
    assert isinstance(module, VAEGANModule)
    saved(source, "AutoencoderTiny", latent_channels=5)
    with pytest.raises(UserError, match=r"safetensors is of another network than model.pretrained of this run"):
        start_from_pretrained(config["init"], module)
    (source / "diffusion_pytorch_model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"init=.*/source: diffusion_pytorch_model.safetensors cannot be loaded"):
        start_from_pretrained(config["init"], module)


def test_a_repository_is_told_apart_by_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With huggingface_hub replaced, as there is no network. The weights are downloaded in the second phase only."""
    import huggingface_hub

    asked: list[tuple[str, list[str]]] = []

    def download(repo: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repo, allow_patterns))
        return str(tmp_path / "0123")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    saved(tmp_path / "0123" / "vae", "AutoencoderKL")
    config = started(Path("hub:owner/name/vae"), *FEW)
    assert config["init"] == config["model"]["pretrained"]["source"] == "hub:owner/name/vae@0123"
    assert asked == [("owner/name", ["vae/config.json", "vae/config.yaml"])] * 2, "the second time by its commit"
    module = fine_tuned(config)
    assert asked[2:] == [("owner/name", ["vae/config.json", "vae/diffusion_pytorch_model.safetensors"])]
    assert module.summary().startswith("AutoencoderKL of hub:owner/name/vae@0123, ")
    (tmp_path / "0123" / "vae" / "config.yaml").touch()
    assert pretrained_folder("hub:owner/name/vae", "init") is None, "a run"
    with pytest.raises(UserError, match=r"init=hub:owner/name has neither config.json nor config.yaml"):
        pretrained_folder("hub:owner/name", "init")
    assert pretrained_folder(str(tmp_path / "0123" / "vae"), "init") is None

    def offline(*_: object, **__: object) -> str:
        raise OSError("We couldn't connect\nto the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    hub._snapshot.cache_clear()
    with pytest.raises(UserError, match=r"vae/config.json and the files beside it in another way") as raised:
        started(Path("hub:owner/name/vae"))
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=r"hub:owner: give hub:OWNER/NAME"):
        started(Path("hub:owner"))


def test_without_diffusers_a_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "source", "AutoencoderKL")
    monkeypatch.setattr(stages, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"init=.*/source needs diffusers: pip install 'flowergen\[hub\]'"):
        started(tmp_path / "source")


def test_a_run_from_before_these_options_is_resumed(tmp_path: Path) -> None:
    from flowergen.app.train_command import prepare_train

    config = resolve(checked(["model=vae_gan", f"paths.output_dir={tmp_path}"])[0])
    del config["model"]["pretrained"], config["model"]["freeze"]
    RunFolder(tmp_path).store(config, ["model=vae_gan"])
    assert prepare_train([f"resume={tmp_path}"])
    assert isinstance(build_module(config, 0), VAEGANModule)
    with pytest.raises(UserError, match=r"model.freeze=encoder keeps|model.freeze was None"):
        prepare_train([f"resume={tmp_path}", "model.freeze=encoder"])


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_exported(kind: str, tmp_path: Path) -> None:
    saved(tmp_path / "source", kind)
    config = started(tmp_path / "source", *FEW)
    module = fine_tuned(config).eval()
    (tmp_path / "onnx").mkdir()
    found = portable.write_onnx(module, tmp_path / "onnx")
    assert set(found) == {"encoder", "decoder"}
    about = portable.write_weights(module, {"model": config["model"]}, tmp_path)
    assert about["model"]["pretrained"] == config["model"]["pretrained"]
    assert (tmp_path / "decoder.safetensors").is_file()


def test_the_schema_knows_the_kinds() -> None:
    assert get_args(PretrainedKind) == tuple(LATENTS)
    assert yaml.safe_load(Path("conf/model/vae_gan.yaml").read_text())["pretrained"] is None
