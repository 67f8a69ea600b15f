from pathlib import Path
from typing import Any

import hydra
import pytest

from flowergen.app.train_command import checked, merged, prepare_train
from flowergen.config import overrides
from flowergen.config.overrides import resolve
from flowergen.errors import UserError, one_line
from flowergen.runs.run_folder import RunFolder, is_first_process
from flowergen.runs.trainer import resolve_device


@pytest.mark.parametrize("arguments", [["-m", "seed=1,2"], ["seed=1,2", "-m"], ["name=x", "--multirun", "seed=1,2"]])
def test_flags_may_stand_anywhere(arguments: list[str], tmp_path: Path) -> None:
    prepared = prepare_train([*arguments, f"paths.output_dir={tmp_path}"])
    assert prepared[0] == "--multirun"
    assert "seed=1,2" in prepared
    (sweep,) = (line for line in prepared if line.startswith("hydra.sweep.dir="))
    assert Path(sweep.partition("=")[2].strip("'")).is_dir()


@pytest.mark.parametrize("key", ["paths.output_dir", "hydra.run.dir"])
def test_a_folder_that_cannot_be_made_is_named(key: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file.*cannot be created"):
        prepare_train([f"{key}={tmp_path / 'file'}"])


def test_a_run_that_cannot_be_written_is_not_resumed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Said before Hydra fails to open its log there."""
    RunFolder(tmp_path).store(resolve(checked([])[0]), [])
    prepare_train([f"resume={tmp_path}"])
    monkeypatch.setattr("flowergen.app.train_command.os.access", lambda path, mode: path != tmp_path)
    with pytest.raises(UserError, match=r"cannot be written to: make it writable, or copy it"):
        prepare_train([f"resume={tmp_path}"])


def test_two_equal_commands_in_one_second_get_a_folder_each(tmp_path: Path) -> None:
    folders = {prepare_train([f"paths.output_dir={tmp_path}"])[-1] for _ in range(4)}
    assert len(folders) == 4


@pytest.mark.parametrize("flag", ["--config-name", "--config-path", "--package", "--experimental-rerun"])
def test_flags_that_would_do_nothing_are_refused(flag: str) -> None:
    with pytest.raises(UserError, match=flag):
        prepare_train([flag, "x"])


def test_a_process_of_torchrun_needs_a_folder_that_all_share(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UserError, match=r"hydra\.run\.dir"):
        prepare_train([f"paths.output_dir={tmp_path}"])
    prepare_train([f"hydra.run.dir={tmp_path}"])


def test_several_machines_need_a_folder_that_all_share(tmp_path: Path) -> None:
    """Started by hand on each, with Lightning's own variables, nothing else tells a process that it is not alone."""
    several = ["trainer=ddp_cpu", "trainer.num_nodes=2", f"paths.output_dir={tmp_path}"]
    with pytest.raises(UserError, match=r"hydra\.run\.dir"):
        prepare_train(several)
    assert not list(tmp_path.iterdir())
    prepare_train([*several, f"hydra.run.dir={tmp_path}"])


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}, True),  # torchrun
        ({"RANK": "2", "LOCAL_RANK": "0", "GROUP_RANK": "1"}, False),
        ({"RANK": "0", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, True),  # torchrun in a task of srun
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, True),  # srun
        ({"SLURM_PROCID": "2", "SLURM_LOCALID": "0"}, False),
        ({"LOCAL_RANK": "1"}, False),  # Lightning's child
        ({"LOCAL_RANK": "1", "SLURM_PROCID": "0"}, False),  # the same, in a shell that srun has opened
        ({"NODE_RANK": "1"}, False),  # Lightning's parent on a second machine
        ({"NODE_RANK": "0"}, True),
    ],
)
def test_one_process_of_a_distributed_run_is_the_first(
    variables: dict[str, str], first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_first_process() is first


def test_each_task_of_srun_encodes_on_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("SLURM_LOCALID", "3")
    assert resolve_device({"accelerator": "gpu", "devices": -1}) == "cuda:3"
    monkeypatch.setenv("LOCAL_RANK", "1")  # torchrun, within one task
    assert resolve_device({"accelerator": "gpu", "devices": -1}) == "cuda:1"


def test_a_config_folder_is_kept_as_an_override(tmp_path: Path) -> None:
    own = tmp_path / "my (own) conf"
    (own / "experiment").mkdir(parents=True)
    (own / "experiment" / "mine.yaml").write_text("# @package _global_\nname: mine\n")
    prepared = prepare_train(["--config-dir", str(own), "experiment=mine", f"paths.output_dir={tmp_path}"])
    assert f"hydra.searchpath=['file://{own}']" in prepared
    assert any("/mine/" in line for line in prepared if line.startswith("hydra.run.dir="))


def test_an_error_is_one_line_that_a_terminal_can_show() -> None:
    """Line breaks and control characters are gone, and the middle of what nobody would read to its end."""
    assert one_line(UserError("a\n  b\x1b[31m\ud800ü")) == "a b\\x1b[31m\\ud800ü"
    text = one_line(UserError("start " + "x" * 10**6 + " end"))
    assert len(text) < 2000
    assert text.startswith("start ")
    assert text.endswith(" end")


@pytest.mark.parametrize(
    "arguments",
    [
        ["resume=" + "9" * 5000],
        ["--config-dir", "x" * 5000],
        ["-m", "seed=1,2", "paths.cache_dir=" + "1," * 3000],
        ["data=image_folder", "data.root=" + "x" * 5000],
        ["data=image_folder", "data.root=${seed}"],
        ["hydra.run.dir=null"],
        ["paths.output_dir=a\0b"],
        ["paths.output_dir=\ud800"],
        ["-m", "seed=1,2", "hydra.sweeper=1"],
    ],
)
def test_what_no_disk_can_hold_is_refused_in_a_line(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names that are too long, or hold a NUL or half a character; values that are no paths."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        prepare_train(arguments)


def test_a_run_from_before_an_option_goes_on_with_its_default(tmp_path: Path) -> None:
    """But not with another value of it, however that is typed."""
    config = resolve(checked([f"paths.output_dir={tmp_path}"])[0])
    del config["data"]["color_jitter"], config["trainer"]["on_nonfinite"]
    RunFolder(tmp_path).store(config, [])
    assert prepare_train([f"resume={tmp_path}"])
    assert prepare_train([f"resume={tmp_path}", "trainer.on_nonfinite=skip"])
    for typed in ("data.color_jitter=0.5", "data={color_jitter:0.5}", "++data.color_jitter=0.5"):
        with pytest.raises(UserError, match=r"resume: data\.color_jitter was None and is 0\.5 now"):
            prepare_train([f"resume={tmp_path}", typed])


def test_a_run_from_before_pictures_had_a_shape_goes_on_with_squares_in_colour(tmp_path: Path) -> None:
    composed = checked([f"paths.output_dir={tmp_path}"])[0]
    now, config = resolve(composed), resolve(composed)
    del config["data"]["channels"], config["data"]["fit"], config["model"]["image_channels"]
    RunFolder(tmp_path).store(config, [])
    for typed in ([], ["data.image_size=64"], ["data.image_size=[64,64]"]):
        prepared = resolve(checked(prepare_train([f"resume={tmp_path}", *typed]), RunFolder(tmp_path))[0])
        assert (prepared["data"], prepared["model"]) == (now["data"], now["model"])
    with pytest.raises(UserError, match=r"resume: data\.channels was None and is 1 now"):
        prepare_train([f"resume={tmp_path}", "data.channels=1"])


def test_a_run_of_rectangles_is_resumed_as_such(tmp_path: Path) -> None:
    lines = ["data.image_size=[48,64]", "data.fit=pad"]
    RunFolder(tmp_path).store(resolve(checked([*lines, f"paths.output_dir={tmp_path}"])[0]), lines)
    prepared = resolve(checked(prepare_train([f"resume={tmp_path}"]), RunFolder(tmp_path))[0])
    assert (prepared["data"]["image_size"], prepared["data"]["fit"]) == ([48, 64], "pad")
    for typed in ("data.image_size=[64,48]", "data.image_size=64", "data.fit=crop"):
        with pytest.raises(UserError, match=r"data\.(image_size|fit)"):
            prepare_train([f"resume={tmp_path}", typed])


def test_a_run_whose_recipe_has_changed_since_goes_on_as_it_was(tmp_path: Path) -> None:
    """Its network and its data, stored beside the overrides that chose the recipe; another value must still not be typed."""
    config = resolve(checked(["model=vae_gan", f"paths.output_dir={tmp_path}"])[0])
    config["model"]["blocks"]["channels"], config["data"]["color_jitter"] = [4, 8, 16, 32], 0.25
    config["model"]["latent"]["kind"] = "flat"
    RunFolder(tmp_path).store(config, ["model=vae_gan"])
    prepared = resolve(checked(prepare_train([f"resume={tmp_path}"]), RunFolder(tmp_path))[0])
    assert (prepared["model"], prepared["data"]) == (config["model"], config["data"])
    for typed in ("data.color_jitter=0.5", "model.latent.kind=spatial", "seed=1"):
        with pytest.raises(UserError, match=rf"resume: ({typed.partition('=')[0]}|model.seed|data.seed) was "):
            prepare_train([f"resume={tmp_path}", typed])


@pytest.mark.parametrize(("stored", "expected"), [(None, "original"), ("original", "original"), ("modern", "modern")])
def test_a_diffusion_transformer_from_before_there_were_two_kinds_of_blocks_is_resumed_as_it_was(
    stored: str | None, expected: str, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "run")
    lines = ["model=latent_ddpm", "model/network=dit", "autoencoder=none"]
    lines += [f"model.network.block={stored}"] if stored else []
    config = resolve(checked(lines)[0])
    if stored is None:
        del config["model"]["network"]["block"]
    run.path.mkdir()
    run.store(config, lines)
    prepared = prepare_train([f"resume={run.path}"])
    assert resolve(checked(prepared, run)[0])["model"]["network"]["block"] == expected
    with pytest.raises(UserError, match=r"model\.network\.block was "):
        prepare_train([f"resume={run.path}", f"model.network.block={'modern' if expected == 'original' else 'original'}"])


def test_the_last_of_two_choices_holds() -> None:
    assert merged(["data=procedural", "++model.beta=2", "data=flowers102"]) == ["data=flowers102", "++model.beta=2"]


def test_a_sweep_of_runs_that_start_from_another_is_refused() -> None:
    with pytest.raises(UserError, match="init= has no meaning for a sweep: start one run at a time"):
        prepare_train(["-m", "init=somewhere", "model.beta=1,2"])


@pytest.mark.parametrize(
    ("arguments", "times"),
    [
        (["model.beta=2"], 1),
        (["model=latent_ddpm", "autoencoder={run}"], 1),
        (["resume={run}"], 1),
        (["init={run}"], 1),
        (["init={run}", "experiment=finetune"], 2),  # of the recipe alone, too: it may be for another model
        (["-m", "model.beta=1,2,3"], 1),
        (["-m", "model=vae,vae_gan", "seed=1,2"], 2),
    ],
)
def test_each_choice_of_groups_is_composed_once(
    arguments: list[str], times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before ``hydra.main`` composes. The run's recipe has changed since."""
    output = f"paths.output_dir={tmp_path}"
    config = resolve(checked(["model=vae_gan", output])[0])
    config["data"]["color_jitter"] = 0.25
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.store(config, ["model=vae_gan"])
    calls: list[Any] = []

    def counted(*given: Any, **options: Any) -> Any:
        calls.append(given)
        return hydra.compose(*given, **options)

    monkeypatch.setattr(overrides, "compose", counted)
    prepare_train([*(argument.format(run=run.path) for argument in arguments), output])
    assert len(calls) == times, calls
