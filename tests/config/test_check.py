import inspect
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import get_object

from flowergen.app.command_schema import Evaluate
from flowergen.app.train_command import checked
from flowergen.config import conf_dir
from flowergen.config.check import check
from flowergen.config.overrides import compose_command, resolve
from flowergen.config.schema import BY_TARGET, Trainer
from flowergen.errors import UserError
from flowergen.runs.run_folder import RunFolder

WRONG = {
    "model.betta=1": "did you mean model.beta?",
    "+model.betta=1": "did you mean model.beta?",
    "++model.betta=1": "did you mean model.beta?",
    "~model.betta": "did you mean model.beta?",
    "beta=4": "did you mean model.beta?",
    "++trainer.max_epoch=5": "did you mean trainer.max_epochs?",
    "model.optimizer.lrr=1": "did you mean model.optimizer.lr?",
    "callbacks.images.every_epoch=1": "did you mean callbacks.images.every_epochs?",
    "model=vaee": "did you mean vae?",
    "experiment=flower_vae": "did you mean flowers_vae?",
    "data.root=/tmp": "data=image_folder",
    "trainer.max_epochs=0": "from 1",
    "trainer.max_epochs=1.5": "whole number",
    "trainer.max_epochs=true": "whole number",
    "trainer.precision=fp16": "bf16-mixed",
    "trainer.budget=soon": "must be a time, such as 30s, 10min or 1h30min",
    "trainer.budget=600": "must be a time",
    "trainer.budget=0s": "must be a time",
    "trainer.budget=5min2h": "must be a time",
    "trainer.compile=1": "true or false",
    "trainer.compile=cuda_graph": "must be true or false or cuda_graphs: did you mean cuda_graphs?",
    "data.batch_size=many": "must be a whole number or auto",
    "data.batch_size=0": "from 1 to",
    "trainer.limit_train_batches=0": "above 0",
    "model.beta=-1": "at least 0",
    "model.beta=nan": "must be a number",
    "model.beta=abc": "must be a number",
    "model.beta=null": "must be a number",
    "model.norm=bach": "did you mean batch?",
    "model.channels=[]": "list of numbers",
    "model.channels=[8,0]": "from 1 to",
    "model.channels=8": "must be a list",
    "model.pixel_range=[0,255]": "[0,1] or [-1,1]",
    "model.ema_decay=1": "below 1",
    "model.optimizer.lr=0": "above 0",
    "model.optimizer.lr=1e300": "at most 100",
    "trainer.max_epochs=99999999999999999999": "from 1",
    "model.latent_dim=99999999999": "from 1 to",
    "data.num_classes=103": "from 1 to 102",
    "data.image_size=16": "must be a whole number from 28 to 256, or [height,width] of such",
    "data.image_size=[48]": "=[48] must be a whole number from 28 to 256, or [height,width] of such",
    "data.image_size=[48,64,3]": "=[48,64,3] must be",
    "data.image_size=[28,3000]": "=[28,3000] must be",
    "data.image_size=[48,64.5]": "=[48,64.5] must be",
    "data.image_size=[true,true]": "=true must be",
    "data.image_size=48x64": "=48x64 must be",
    "data.image_size=null": "=null must be",
    "data.channels=2": "must be 1 or 3",
    "data.channels=true": "must be 1 or 3",
    "data.fit=padd": "must be crop or pad: did you mean pad?",
    "data.split=al": "did you mean all?",
    "data.horizontal_flip=maybe": "true or false",
    "data.random_resized_crop=[0,1]": "two increasing numbers above 0, up to 1",
    "data.random_resized_crop=[0.9,0.5]": "two increasing numbers above 0, up to 1",
    "data.color_jitter=1.5": "from 0 to 1",
    "data.decode=streams": "did you mean stream?",
    "data.device_resident=maybe": "true or false or auto",
    "seed=-1": "must be from 0",
    "data=image_folder": "data.root must be given",
    "data.image_size=${nope}": "nope",
    "model=[": "key=value",
}
PIXELS = ("model=latent_ddpm", "autoencoder=none")
WRONG_DIFFUSION = {
    "model.sampling.step=5": "did you mean model.sampling.steps?",
    "model.network.multiplier=[1]": "did you mean model.network.multipliers?",
    "model.objective=epsilon": "did you mean eps?",
    "model.sampling.sampler=dpmpp": "did you mean dpmpp_2m?",
    "model.sampling.steps=0": "from 1",
    "model.sampling.guidance_interval=[0.7,0.3]": "two increasing numbers from 0 to 1",
    "model.sampling.eta=2": "from 0 to 1",
    "model.class_dropout=-0.1": "from 0 to 1",
    "model.num_timesteps=1": "from 10",
    "model.min_snr_gamma=0": "above 0",
    "model/network=unit": "did you mean unet?",
}


@pytest.mark.parametrize(("override", "words"), WRONG.items())
def test_what_is_wrong_is_said_in_one_line(override: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        checked([override])
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("override", "words"), WRONG_DIFFUSION.items())
def test_so_it_is_for_diffusion(override: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        checked([*PIXELS, override])
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_typo_in_a_recipe_of_ones_own_is_not_its_own_correction(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nmodel: {betta: 3}\n")
    with pytest.raises(UserError, match=r"there is no key model\.betta: did you mean model\.beta\?"):
        checked([f"hydra.searchpath=['file://{tmp_path}']", "experiment=mine"])


def test_height_and_width_of_a_square_are_its_side() -> None:
    pair, side, tall = (resolve(checked([f"data.image_size={size}"])[0]) for size in ("[64,64]", "64", "[96,64]"))
    assert pair == side
    assert tall["data"]["image_size"] == tall["model"]["image_size"] == [96, 64]


@pytest.mark.parametrize(("typed", "kept"), [("64", 64), ("[64,64]", 64), ("[48,64]", [48, 64]), ("null", None)])
def test_evaluate_takes_the_same_sizes(typed: str, kept: Any) -> None:
    config = compose_command("evaluate", Evaluate, [f"image_size={typed}"])
    check(config, Evaluate)
    assert config["image_size"] == kept


@pytest.mark.parametrize("typed", ["8", "[48]", "[48,64,3]", "[8,64]", "48x64"])
def test_evaluate_refuses_the_same_sizes(typed: str) -> None:
    config = compose_command("evaluate", Evaluate, [f"image_size={typed}"])
    with pytest.raises(UserError, match=r"must be a whole number from 16 to 1024, or \[height,width\] of such or null"):
        check(config, Evaluate)


DIFFUSION = (
    "latent_ddpm", "flowers_ldm", "flowers_laptop_ldm", "flowers_gpu_ldm", "flowers_gpu_128_ldm", "landscape_gpu_256_ldm",
    "flowers_pixel_ddpm", "ldm_tiny",
)  # fmt: skip
PROCEDURAL = ("quickstart", "vae_gan_tiny", "ldm_tiny", "finetune")  # recipes


DECODER = ("decoder", "flowers_laptop_decoder", "flowers_gpu_decoder")


def previous_stage(choice: str, folder: Path) -> list[str]:
    """What a model or a recipe needs to compose by itself; a diffusion run is made in the folder."""
    if choice in DECODER:
        run = RunFolder(folder / "diffusion run")
        run.path.mkdir()
        run.store({"paths": {}, "model": {}, "trainer": {}, "data": {"image_size": 64}, "autoencoder": "somewhere"}, [])
        return [f"diffusion='{run.path}'"]
    return ["autoencoder=none", "model.alignment_weight=0"] if choice in DIFFUSION else []


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (Path(conf_dir()) / group).glob("*.yaml"))


@pytest.mark.parametrize("data", options("data"))
@pytest.mark.parametrize("model", options("model"))
def test_every_model_composes_with_every_data_set(model: str, data: str, tmp_path: Path) -> None:
    root = [f"data.root={tmp_path}"] if data != "procedural" else []
    checked([f"model={model}", f"data={data}", *root, *previous_stage(model, tmp_path)])


@pytest.mark.parametrize("experiment", options("experiment"))
@pytest.mark.parametrize("data", ["", *options("data")])
def test_every_recipe_composes_with_every_data_set_and_with_debug(experiment: str, data: str, tmp_path: Path) -> None:
    choice = [f"data={data}"] if data else []
    root = [f"data.root={tmp_path}"] if data != "procedural" and (data or experiment not in PROCEDURAL) else []
    checked([f"experiment={experiment}", *choice, *root, *previous_stage(experiment, tmp_path), "debug=tiny"])


@pytest.mark.parametrize("trainer", options("trainer"))
def test_every_trainer_composes(trainer: str) -> None:
    checked([f"trainer={trainer}"])


@pytest.mark.parametrize("target", sorted(BY_TARGET))
def test_the_schema_knows_the_arguments_that_the_class_takes(target: str) -> None:
    """A key that the schema lets through reaches a constructor that takes it; a required one is required here too."""
    described = {field.name: field for field in fields(BY_TARGET[target]) if not field.name.startswith("_")}
    parameters: dict[str, inspect.Parameter] = {}
    for cls in get_object(target).__mro__[:3]:  # **options are the next class's
        own = inspect.signature(cls.__init__).parameters
        parameters = {**own, **parameters}
        if not any(p.kind is p.VAR_KEYWORD for p in own.values()):
            break
    ours = {"channels_last", "num_threads", "on_nonfinite", "budget", "compile"} if BY_TARGET[target] is Trainer else set()
    assert set(described) - ours <= set(parameters)
    if not target.startswith("flowergen."):
        return
    given_by_build = {"self", "folder", "path", "hyperparameters", "save_dir"}
    given_by_build |= {"num_classes", "accumulate_grad_batches", "gradient_clip_val", "autoencoder", "diffusion", "shape"}
    needed = {
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD and name not in given_by_build
    }
    assert needed <= {name for name, field in described.items() if field.default is MISSING}
