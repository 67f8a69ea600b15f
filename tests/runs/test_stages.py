"""What a diffusion run takes over from its autoencoder's run, before anything heavy is imported."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from flowergen.app.train_command import checked
from flowergen.config.overrides import parse, resolve
from flowergen.errors import UserError
from flowergen.runs.run_folder import RunFolder
from flowergen.runs.stages import inherited, is_inherited


def trained(folder: Path, *overrides: str) -> Path:
    """The folder of a finished run, as far as its config is asked for."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(resolve(checked(overrides)[0])))
    return folder


def vae_gan(folder: Path, *overrides: str) -> Path:
    return trained(folder, "model=vae_gan", "data.image_size=32", "data.split_seed=5", *overrides)


def ldm(autoencoder: str | Path, *overrides: str, run: RunFolder | None = None) -> tuple[dict[str, Any], list[str]]:
    """The resolved config, and the overrides that Hydra gets."""
    composed, lines = checked(["model=latent_ddpm", f"autoencoder='{autoencoder}'", *overrides], run)
    return resolve(composed), lines


def test_image_size_and_split_are_the_autoencoder_s(tmp_path: Path) -> None:
    """The model reads the size, and Hydra gets the keys as if they had been typed."""
    config, lines = ldm(vae_gan(tmp_path / "run", "data.split=all"))
    assert config["data"]["image_size"] == config["model"]["image_size"] == 32
    assert (config["data"]["split"], config["data"]["split_seed"]) == ("all", 5)
    pictures = {"++data.image_size=32", "++data.channels=3", "++data.fit=crop"}
    taken = pictures | {"++data.split=all", "++data.split_seed=5"}
    assert taken <= set(lines)
    assert {line for line in lines if is_inherited(line)} == taken


def test_a_shape_is_the_autoencoder_s(tmp_path: Path) -> None:
    """Height and width, grey and borders; also for a third stage, and for a run that starts from it."""
    run = vae_gan(tmp_path / "run", "data.image_size=[32,48]", "data.channels=1", "data.fit=pad")
    diffusion = trained(tmp_path / "diffusion", "model=latent_ddpm", f"autoencoder={run}")
    third = resolve(checked(["model=decoder", f"diffusion='{diffusion}'"])[0])
    for config in (ldm(run)[0], ldm(run, "experiment=ldm_tiny")[0], third, started(run, "data=procedural")):
        assert config["data"]["image_size"] == config["model"]["image_size"] == [32, 48]
        assert config["data"]["channels"] == config["model"]["image_channels"] == 1
        assert config["data"]["fit"] == "pad"
    assert ldm(run, "data.image_size=[32,48]", "data.channels=1", "data.fit=pad")[0] == ldm(run)[0]
    for key, typed, theirs in (("image_size", "[48,32]", "[32,48]"), ("channels", "3", "1"), ("fit", "crop", "pad")):
        words = f"data.{key}={typed}: the autoencoder was trained with data.{key}={theirs}, so leave data.{key} out"
        with pytest.raises(UserError, match=re.escape(words)):
            ldm(run, f"data.{key}={typed}")


def test_height_and_width_of_a_square_do_not_differ_from_its_side(tmp_path: Path) -> None:
    run = vae_gan(tmp_path / "run", "data.image_size=[32,32]")
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["image_size"] == 32
    assert ldm(run, "data.image_size=[32,32]")[0] == ldm(run, "data.image_size=32")[0] == ldm(run)[0]


def test_an_older_autoencoder_saw_squares_in_colour(tmp_path: Path) -> None:
    """Its config has neither data.channels nor data.fit."""
    run = vae_gan(tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    del config["data"]["channels"], config["data"]["fit"], config["model"]["image_channels"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert ldm(run, "data.channels=3", "data.fit=crop")[0] == ldm(run)[0]
    for key, value in (("channels", "1"), ("fit", "pad")):
        with pytest.raises(UserError, match=rf"data\.{key}={value}: the autoencoder was trained with data\.{key}="):
            ldm(run, f"data.{key}={value}")


def test_they_win_over_a_recipe_s(tmp_path: Path) -> None:
    """And so does what stands in the config of a checkpoint that was named instead of its run."""
    run = vae_gan(tmp_path / "run")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "last.ckpt").touch()
    for autoencoder in (run, run / "checkpoints" / "last.ckpt"):
        config, _ = ldm(autoencoder, "experiment=ldm_tiny", "data.split=stratified")
        assert (config["data"]["image_size"], config["data"]["split_seed"]) == (32, 5)


def test_what_is_typed_may_be_the_same(tmp_path: Path) -> None:
    config, lines = ldm(vae_gan(tmp_path / "run"), "data.image_size=32", "data.split='stratified'", "++data.split_seed=5")
    assert (config["data"]["image_size"], config["data"]["split_seed"]) == (32, 5)
    assert sum("data.image_size" in line for line in lines) == 1


@pytest.mark.parametrize("override", ["data.image_size=64", "data.split_seed=0", "data.split=all", "++data.image_size=64"])
def test_what_is_typed_may_not_differ(override: str, tmp_path: Path) -> None:
    key = override.lstrip("+").partition("=")[0]
    with pytest.raises(UserError, match=rf"{key}=.*the autoencoder was trained with {key}=.*leave {key} out"):
        ldm(vae_gan(tmp_path / "run"), override)


def test_other_data_keep_their_own_split_and_take_the_size_over(tmp_path: Path) -> None:
    """Nothing is held out from the autoencoder there. The same kind of data in another folder may be the same, moved: its split
    is taken over too, but may be typed."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "yours").mkdir()
    run = vae_gan(tmp_path / "run", "data=image_folder", f"data.root={tmp_path / 'mine'}")
    same, _ = ldm(run, "data=image_folder", f"data.root={tmp_path / 'mine'}")
    assert (same["data"]["image_size"], same["data"]["split_seed"]) == (32, 5)
    for other, seed in ((["data=image_folder", f"data.root={tmp_path / 'yours'}"], 5), (["data=procedural"], 0)):
        config, _ = ldm(run, *other)
        assert (config["data"]["image_size"], config["data"]["split_seed"]) == (32, seed)
        config, _ = ldm(run, *other, "data.split_seed=9")
        assert config["data"]["split_seed"] == 9
        with pytest.raises(UserError, match=r"data\.image_size=64"):
            ldm(run, *other, "data.image_size=64")


def test_the_split_of_a_data_set_whose_folder_is_an_interpolation_is_taken_over(tmp_path: Path) -> None:
    run = vae_gan(tmp_path / "run", "data=flowers102")
    config, _ = ldm(run, "data=flowers102")
    assert (config["data"]["image_size"], config["data"]["split_seed"]) == (32, 5)


def test_a_key_that_one_of_the_two_data_sets_lacks_is_left_alone(tmp_path: Path) -> None:
    run = vae_gan(tmp_path / "run")
    data = {"_target_": "my.Pictures", "image_size": 64}
    typed = {"data": "mine"}
    assert inherited("autoencoder", str(run), None, data, typed) == ["++data.image_size=32"]
    assert inherited("autoencoder", str(run), None, {"_target_": "my.Vectors"}, typed) == []


def test_other_pictures_than_the_autoencoder_s_must_be_typed(tmp_path: Path) -> None:
    """Else whoever leaves data= out trains on the default's drawn flowers, or on the recipe's."""
    run = vae_gan(tmp_path / "run", "data=flowers102")
    for overrides in ([], ["experiment=ldm_tiny"]):
        with pytest.raises(UserError, match=r"was trained on data=flowers102: add data=flowers102, or.*data=procedural"):
            ldm(run, *overrides)
        assert ldm(run, *overrides, "data=procedural")[0]["data"]["name"] == "procedural"
        assert ldm(run, *overrides, "data=flowers102")[0]["data"]["name"] == "flowers102"
    assert ldm(run, "experiment=flowers_ldm")[0]["data"]["name"] == "flowers102", "the recipe's own are the same"


def test_a_repository_s_pictures_are_named_as_they_are_typed(tmp_path: Path) -> None:
    run = vae_gan(tmp_path / "run", "data=huggingface", "data.name=me/roses")
    with pytest.raises(UserError, match=r"was trained on data=huggingface data.name=me/roses: add data=h"):
        ldm(run)


def test_a_run_starts_from_another_with_recipes_and_settings_of_its_model_only(tmp_path: Path) -> None:
    run = vae_gan(tmp_path / "run")
    assert checked([f"init='{run}'", "experiment=finetune"])[0].model.adversarial == "hinge"
    with pytest.raises(
        UserError, match=r"experiment=ldm_tiny is a recipe for model=latent_ddpm, and init=.* of model=vae_gan: "
    ):
        checked([f"init='{run}'", "experiment=ldm_tiny"])
    with pytest.raises(UserError, match=r"model.pretrained is taken from init=.*, which has none: leave it out"):
        checked([f"init='{run}'", "model.pretrained={kind:AutoencoderKL,config:{},source:x}"])


def test_a_diffusion_run_is_no_autoencoder(tmp_path: Path) -> None:
    """Whatever it diffuses."""
    (tmp_path / "ae").mkdir()
    for number, autoencoder in enumerate(("none", str(vae_gan(tmp_path / "ae" / "run")))):
        run = trained(tmp_path / str(number), "model=latent_ddpm", f"autoencoder={autoencoder}")
        with pytest.raises(UserError, match="is a diffusion run itself: give the run of a VAE or a VAE-GAN"):
            ldm(run)


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.touch()])
def test_what_is_no_run_is_named_by_its_option(make: Any, tmp_path: Path) -> None:
    make(tmp_path / "run")
    with pytest.raises(UserError, match=r"autoencoder=.*run"):
        ldm(tmp_path / "run")


def test_pixels_take_nothing_over() -> None:
    config = resolve(checked(["model=latent_ddpm", "autoencoder=none"])[0])
    assert config["data"]["image_size"] == 64
    assert config["autoencoder"] == "none"


def test_the_copy_that_a_run_carries_counts_when_it_is_resumed(tmp_path: Path) -> None:
    """The original may have been deleted, or be another one by now."""
    run, original = RunFolder(tmp_path / "ldm"), vae_gan(tmp_path / "original")
    shutil.copytree(original, run.autoencoder)
    shutil.rmtree(original)
    config, _ = ldm(original, run=run)
    assert (config["data"]["image_size"], config["data"]["split_seed"]) == (32, 5)
    vae_gan(tmp_path / "other", "data.drawing_seed=1")
    (tmp_path / "other" / "config.yaml").write_text((tmp_path / "other" / "config.yaml").read_text().replace("32", "28"))
    shutil.move(tmp_path / "other", original)
    config, _ = ldm(original, run=run)
    assert config["data"]["image_size"] == 32
    with pytest.raises(UserError, match=r"autoencoder=.*no such run"):
        ldm(tmp_path / "gone")


def test_a_run_that_was_stopped_before_it_carried_a_copy_goes_by_the_original(tmp_path: Path) -> None:
    config, _ = ldm(vae_gan(tmp_path / "original"), run=RunFolder(tmp_path / "ldm"))
    assert config["data"]["image_size"] == 32


def test_odd_characters_in_the_folder_s_name_are_no_obstacle(tmp_path: Path) -> None:
    folder = vae_gan(tmp_path / "my run (2), größer=besser")
    config, lines = ldm(folder)
    assert config["autoencoder"] == str(folder)
    assert all(parse([line]) for line in lines)


def test_cached_latents_and_changes_of_the_pictures_contradict_each_other(tmp_path: Path) -> None:
    """Flips do not: the latents of both are cached."""
    autoencoder = vae_gan(tmp_path / "run")
    for key, value in (("color_jitter", "0.3"), ("random_resized_crop", "[0.5,1]")):
        with pytest.raises(UserError, match=rf"data\.{key} .*set model\.latent_cache=false, or leave data\.{key} out"):
            ldm(autoencoder, f"data.{key}={value}")
        ldm(autoencoder, f"data.{key}={value}", "model.latent_cache=false")
    ldm(autoencoder, "data.horizontal_flip=true")


@pytest.mark.parametrize("without", ["model.latent_cache=false", "autoencoder=none"])
def test_alignment_needs_cached_latents(without: str, tmp_path: Path) -> None:
    autoencoder = vae_gan(tmp_path / "run")
    with pytest.raises(UserError, match=r"model\.alignment_weight=0\.5 .*autoencoder=RUN and model\.latent_cache=true"):
        ldm(autoencoder, "model.alignment_weight=0.5", without)
    ldm(autoencoder, "model.alignment_weight=0.5")
    config, _ = ldm(vae_gan(tmp_path / "own", "data=flowers102"), "experiment=flowers_laptop_ldm", f"data.root={tmp_path}")
    assert config["model"]["alignment_weight"] > 0


# -- init=RUN


def started(init: str | Path, *overrides: str) -> dict[str, Any]:
    return resolve(checked([f"init='{init}'", *overrides])[0])


def test_a_run_that_starts_from_another_has_its_model_but_not_its_training(tmp_path: Path) -> None:
    """Also if its recipe and defaults have changed since: the stored config counts."""
    run = vae_gan(
        tmp_path / "run", "model.beta=3", "model.latent.channels=5", "model.optimizer.lr=0.5", "model.lr_warmup_steps=7",
        "model.perceptual_layers=[relu1_2]", "trainer.max_epochs=77", "data.batch_size=9",
    )  # fmt: skip
    before = yaml.safe_load((run / "config.yaml").read_text())
    config = started(run, "data=procedural", "model.beta=4")
    assert config["model"]["beta"] == 4, "typed"
    for key in ("latent", "blocks", "discriminator", "perceptual_layers", "image_size"):
        assert config["model"][key] == before["model"][key]
    assert (config["model"]["optimizer"]["lr"], config["model"]["lr_warmup_steps"]) == (2e-4, 0)
    assert (config["trainer"]["max_epochs"], config["data"]["batch_size"]) == (50, 64)
    assert (config["data"]["image_size"], config["data"]["split_seed"]) == (32, 5), "of the same data: the same split"
    assert config["init"] == str(run)
    recipe = started(run, "data=procedural", "experiment=finetune")
    assert (recipe["model"]["optimizer"]["lr"], recipe["model"]["latent"]["channels"]) == (1e-3, 5)


def test_a_diffusion_run_s_start_brings_its_network_and_autoencoder(tmp_path: Path) -> None:
    stage1 = vae_gan(tmp_path / "stage1")
    run = trained(
        tmp_path / "run", "model=latent_ddpm", "model/network=dit", f"autoencoder={stage1}", "model.network.depth=3",
        "model.network.hidden_size=24", "model.network.num_heads=2", "model.sampling.guidance_scale=4",
    )  # fmt: skip
    shutil.copytree(stage1, run / "autoencoder")
    shutil.rmtree(stage1)
    config = started(run, "data=procedural")
    network = config["model"]["network"]
    assert (network["_target_"], network["depth"], network["hidden_size"]) == ("flowergen.nn.dit.DiT", 3, 24)
    assert config["autoencoder"] == str(run / "autoencoder")
    assert config["model"]["sampling"]["guidance_scale"] == 4


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("data=procedural", "model=vae"), "model=vae: init=.* has model=vae_gan, so leave model out"),
        (
            (),
            "init=.* was trained on data=image_folder: add data=image_folder, or, to train on other pictures, data=procedural",
        ),
        (("data=image_folder", "data.root=.", "data.image_size=64"), "the run was trained with data.image_size=32, so leave"),
    ],
)
def test_what_contradicts_the_start_is_refused(overrides: tuple[str, ...], words: str, tmp_path: Path) -> None:
    run = trained(tmp_path / "run", "model=vae_gan", "data=image_folder", "data.root=.", "data.image_size=32")
    with pytest.raises(UserError, match=words):
        started(run, *overrides)


def test_a_decoder_s_run_is_no_start(tmp_path: Path) -> None:
    run = vae_gan(tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"diffusion": "somewhere"}))
    with pytest.raises(UserError, match="is the run of a decoder: give a run of vae, vae_gan or latent_ddpm"):
        started(run, "data=procedural")
    with pytest.raises(UserError, match="no such run"):
        started(tmp_path / "missing", "data=procedural")
