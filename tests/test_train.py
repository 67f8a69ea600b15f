"""The train command as real processes."""

import csv
import filecmp
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import flowergen
from flowergen import train
from flowergen.errors import TrainingEnded, UserError
from flowergen.runs.run_folder import RunFolder
from tests.conftest import Command
from tests.warm_process import warm_run

pytestmark = pytest.mark.slow


def weights(run: Path, name: str = "last.ckpt") -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / name, weights_only=True)["state_dict"]


def assert_equal_weights(a: Path, b: Path, tolerance: float = 0.0) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def only_run(folder: Path) -> Path:
    (config,) = folder.glob("outputs/*/*/config.yaml")
    return config.parent


def test_a_run_leaves_the_folder_that_the_design_promises(command: Command, tiny_run: tuple[str, ...], tmp_path: Path) -> None:
    done = command("train", *tiny_run, "callbacks.images.every_epochs=1", "callbacks.checkpoints.keep_every_epochs=2",
                   "model.ema_decay=0.9")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    run = only_run(tmp_path)
    for name in (
        "config.yaml", "overrides.yaml", "provenance.json", "train.log", "metrics.csv", "loss_plot.png",
        "weights.safetensors", "checkpoints/last.ckpt", "checkpoints/best.ckpt", "checkpoints/epoch_0002.ckpt",
        "images/reconstruction_epoch_0001.png", "images/generated_epoch_0002.png",
    ):  # fmt: skip
        assert (run / name).is_file(), name
    assert not list(run.rglob("*.partial"))
    assert not list(run.rglob("*-v1*"))
    assert list((run / "tensorboard").glob("events.out.tfevents.*"))
    for words in (
        "4 classes",
        "parameters",
        "precision",
        str(run),
        "resume=",
        "tensorboard --logdir",
    ):
        assert words in done.stdout + done.stderr, words

    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    last = rows[-1]
    for name in ("train_epoch/loss", "train_epoch/loss_kl", "val/loss", "val/elbo", "val/psnr", "val/ssim"):
        float(last[name])
    provenance = json.loads((run / "provenance.json").read_text())
    assert provenance["exit"] == "finished"
    assert "trainer.max_epochs=2" in yaml.safe_load((run / "overrides.yaml").read_text())

    model = flowergen.load(run)
    x = torch.rand(2, 3, 28, 28)
    assert model.decode(model.encode(x).mean).shape == x.shape
    assert model.sample(3).shape == (3, 3, 28, 28)
    assert model.config["model"]["latent_dim"] == 4
    assert flowergen.load(run / "checkpoints" / "epoch_0002.ckpt").config == model.config
    (run / "checkpoints" / "best.ckpt").write_bytes((run / "checkpoints" / "best.ckpt").read_bytes()[:999])
    with pytest.raises(flowergen.UserError, match=r"best\.ckpt"):
        flowergen.load(run)


def test_scalars_and_hparams_are_in_tensorboard(command: Command, tiny_run: tuple[str, ...], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    assert command("train", *tiny_run).returncode == 0
    events = EventAccumulator(str(only_run(tmp_path) / "tensorboard"), {"images": 0, "scalars": 0})
    events.Reload()
    tags = events.Tags()
    expected = {"train/loss", "train/lr", "train/loss_kl", "train_epoch/loss", "val/psnr", "val/ssim", "val/elbo",
                "perf/images_per_second"}  # fmt: skip
    assert expected <= set(tags["scalars"])
    assert [len(events.Scalars(tag)) for tag in ("val/elbo", "train_epoch/loss")] == [2, 2], "a point an epoch"
    assert {"reconstruction", "generated"} <= set(tags["images"])
    metadata = {name: HParamsPluginData.FromString(events.summary_metadata[f"_hparams_/{name}"].plugin_data.content)
                for name in ("experiment", "session_start_info")}  # fmt: skip
    assert "val/elbo" in {info.name.tag for info in metadata["experiment"].experiment.metric_infos}
    shown = set(metadata["session_start_info"].session_start_info.hparams)
    typed = {override.partition("=")[0] for override in tiny_run if not override.startswith("callbacks")}
    assert shown == {"model", "data", "seed"} | typed


def test_an_epoch_without_validation_shows_no_validation(command: Command, tiny_run: tuple[str, ...]) -> None:
    """Not the numbers of the epoch before."""
    done = command("train", *tiny_run, "trainer.max_epochs=3", "trainer.check_val_every_n_epoch=2")
    lines = [line for line in done.stderr.splitlines() if line.startswith("epoch ")]
    assert ["val/elbo" in line for line in lines] == [False, True, False]
    assert all("train_epoch/loss" in line for line in lines)


KILLABLE = (
    "data.batch_size=4",  # 16 steps an epoch
    "trainer.max_epochs=3",
    "callbacks.checkpoints.checkpoint_every_steps=3",
    "callbacks.images.every_epochs=3",
    "trainer.log_every_n_steps=2",
    "model.norm=batch",
    "model.ema_decay=0.9",
    "model.reconstruction=gaussian",
    "model.lr_schedule=cosine",
    "model.beta_warmup_steps=30",
)


def killed(
    run: Path,
    moment: str,
    count: int,
    arguments: list[str],
    environment: dict[str, str],
    signal_name: str = "SIGKILL",
    status: int = -signal.SIGKILL,
) -> str:
    """Train until a signal comes at that moment."""
    environment = environment | {"PYTHONPATH": str(Path(__file__).parent.parent), "KILL": f"{signal_name}:{moment}:{count}"}
    done = warm_run("tests.killed_train", [*arguments, f"hydra.run.dir={run}"], run.parent, environment, timeout=300)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stderr


def steps_at_last_checkpoint(run: Path) -> int:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["flowergen"]["optimizer_steps"]


def assert_equal_runs(whole: Path, resumed: Path) -> None:
    """Weights, best weights, moving average, optimiser, loops, running means, table, pictures and plot: all to the bit."""
    for name in ("last.ckpt", "best.ckpt"):
        states = [torch.load(run / "checkpoints" / name, weights_only=True) for run in (whole, resumed)]
        assert states[0]["flowergen"] == states[1]["flowergen"]
        assert states[0]["loops"]["fit_loop"]["epoch_progress"] == states[1]["loops"]["fit_loop"]["epoch_progress"]
        for key, tensor in states[0]["state_dict"].items():
            torch.testing.assert_close(tensor, states[1]["state_dict"][key], rtol=0, atol=0, msg=lambda m, k=key: f"{k}: {m}")
        for optimizers in zip(*(state["optimizer_states"] for state in states), strict=True):
            for a, b in zip(*(optimizer["state"].values() for optimizer in optimizers), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=0)
    names = (
        "metrics.csv",
        "images/generated_epoch_0003.png",
        "images/reconstruction_epoch_0003.png",
        "weights.safetensors",
        "loss_plot.png",
    )
    for name in names:
        assert filecmp.cmp(whole / name, resumed / name, shallow=False), name


def test_a_run_killed_at_the_worst_moments_goes_on_as_if_nothing_had_happened(
    command: Command, tiny_run: tuple[str, ...], tmp_path: Path, process_environment: dict[str, str]
) -> None:
    """SIGKILL before the first checkpoint; in mid-epoch; between best.ckpt and last.ckpt; while validating; between the
    epoch's row in metrics.csv and its checkpoint; SIGTERM and SIGINT, which finish the step and save. It ends bit-equal to a
    run that was left alone."""
    arguments = [*tiny_run, *KILLABLE]
    whole, run = tmp_path / "whole", tmp_path / "killed"
    done = command("train", *arguments, f"hydra.run.dir={whole}")
    assert done.returncode == 0, done.stderr

    killed(run, "training step", 2, arguments, process_environment)
    assert not (run / "checkpoints" / "last.ckpt").exists()
    resume = [f"resume={run}"]
    killed(run, "training step", 12, resume, process_environment)
    assert steps_at_last_checkpoint(run) == 9
    killed(run, "publish", 4, resume, process_environment)  # steps 12 and 15, then best.ckpt, then last.ckpt
    assert steps_at_last_checkpoint(run) == 15
    assert torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["flowergen"]["optimizer_steps"] == 16
    killed(run, "validation step", 3, resume, process_environment)  # two batches of the first epoch, one of the second
    assert steps_at_last_checkpoint(run) == 31
    killed(run, "publish", 1, resume, process_environment)  # step 32 is trained, validated and logged
    assert steps_at_last_checkpoint(run) == 31
    said = killed(run, "training step", 4, resume, process_environment, "SIGTERM", 143)
    assert steps_at_last_checkpoint(run) == 35
    assert f"resume={run}" in said
    assert json.loads((run / "provenance.json").read_text())["exit"] == "Stopped: SIGTERM"
    # the first batch of the second epoch's validation: that is finished, and saved
    said = killed(run, "validation step", 1, resume, process_environment, "SIGINT", 130)
    assert steps_at_last_checkpoint(run) == 48
    assert "Traceback" not in said

    done = command("train", *resume)
    assert done.returncode == 0, done.stderr
    assert "resumed from" in done.stderr
    assert_equal_runs(whole, run)


def test_a_killed_run_that_streams_goes_on_from_the_device_as_if_nothing_had_happened(
    command: Command, tiny_run: tuple[str, ...], tmp_path: Path, process_environment: dict[str, str]
) -> None:
    """What was decoded ahead when SIGKILL came is not lost, crops and colours go on, and where pictures wait may change."""
    arguments = [*tiny_run, *KILLABLE, "data.color_jitter=0.4", "data.random_resized_crop=[0.5,1]"]
    whole, run = tmp_path / "whole", tmp_path / "killed"
    done = command("train", *arguments, f"hydra.run.dir={whole}")
    assert done.returncode == 0, done.stderr
    killed(run, "training step", 12, [*arguments, "data.decode=stream"], process_environment)
    assert steps_at_last_checkpoint(run) == 9
    done = command("train", f"resume={run}", "data.color_jitter=0")
    assert "data.color_jitter was 0.4 and is 0 now" in done.stderr
    done = command("train", f"resume={run}", "data.decode=once", "data.device_resident=true")
    assert done.returncode == 0, done.stderr
    assert "the collection is stored on cpu" in done.stderr
    assert_equal_runs(whole, run)


VANISHING = """
import os, sys
from pathlib import Path
from flowergen import train
from flowergen.app.command import one_line_errors
from flowergen.modules.vae import VAEModule
def vanish(self, batch, batch_idx):
    [path.unlink(missing_ok=True) for path in Path(os.environ["PICTURES"]).rglob("*.png")]
    return original(self, batch, batch_idx)
original, VAEModule.training_step = VAEModule.training_step, vanish
one_line_errors(train.main)
"""


def test_a_picture_that_vanishes_while_a_run_streams_costs_one_line(
    tiny_run: tuple[str, ...], tmp_path: Path, picture_folder: Path, process_environment: dict[str, str]
) -> None:
    own = [argument for argument in tiny_run if not argument.startswith(("data.num_images", "data.num_classes"))]
    done = subprocess.run(
        [sys.executable, "-c", VANISHING, *own, "data=image_folder", f"data.root={picture_folder}", "data.decode=stream",
         "data.batch_size=4", f"hydra.run.dir={tmp_path / 'run'}"],
        env=process_environment | {"PICTURES": str(picture_folder), "PYTHONPATH": str(Path(__file__).parent.parent)},
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    (error,) = [line for line in done.stderr.splitlines() if "error:" in line]
    assert re.search(r"(roses|tulips)/IMG \(\d+\)\.png has changed or vanished since the pictures were listed", error)
    assert "Traceback" not in done.stderr


def test_a_killed_run_with_accumulation_goes_on_as_if_nothing_had_happened(
    command: Command, tiny_run: tuple[str, ...], tmp_path: Path, process_environment: dict[str, str]
) -> None:
    """Killed between the two parts of an optimiser step."""
    arguments = [*tiny_run, *KILLABLE, "trainer.accumulate_grad_batches=2"]
    whole, run = tmp_path / "whole", tmp_path / "killed"
    done = command("train", *arguments, f"hydra.run.dir={whole}")
    assert done.returncode == 0, done.stderr
    killed(run, "training step", 32 + 16, arguments, process_environment)  # the second part of step 24
    assert steps_at_last_checkpoint(run) == 22
    done = command("train", f"resume={run}", "trainer.accumulate_grad_batches=1")
    assert "trainer.accumulate_grad_batches was 2 and is 1" in done.stderr
    done = command("train", f"resume={run}")
    assert done.returncode == 0, done.stderr
    assert_equal_runs(whole, run)


def test_a_killed_run_of_two_processes_goes_on(
    command: Command, tiny_run: tuple[str, ...], tmp_path: Path, process_environment: dict[str, str]
) -> None:
    """Both processes of a gloo run take their own running means back, and end together when the first is asked to; the run ends
    bit-equal."""
    arguments = [*(a for a in tiny_run if "accelerator" not in a), *KILLABLE, "trainer=ddp_cpu", "model.norm=group"]
    whole, run = tmp_path / "whole", tmp_path / "killed"
    done = command("train", *arguments, f"hydra.run.dir={whole}")
    assert done.returncode == 0, done.stderr
    killed(run, "training step", 27, arguments, process_environment)
    said = killed(run, "training step", 4, [f"resume={run}"], process_environment, "SIGTERM", 143)
    assert steps_at_last_checkpoint(run) == 25 + 4
    assert "Traceback" not in said
    said = killed(run, "training step", 5, [f"resume={run}"], process_environment, "SIGKILL@1", 2)
    assert "error: another process of this run has ended or cannot be reached" in said
    assert "Traceback" not in said
    done = command("train", f"resume={run}")
    assert done.returncode == 0, done.stderr
    assert_equal_runs(whole, run)


def test_a_full_disk_costs_neither_the_run_nor_its_last_checkpoint(
    command: Command, tiny_run: tuple[str, ...], tmp_path: Path, process_environment: dict[str, str]
) -> None:
    """No checkpoint and no plot can be written: training goes on to its end and says so in a line each, and the checkpoint of
    before is whole. Where there is room again, the run ends bit-equal to one that always had it."""
    arguments = [*tiny_run, *KILLABLE]
    whole, run = tmp_path / "whole", tmp_path / "run"
    done = command("train", *arguments, f"hydra.run.dir={whole}")
    assert done.returncode == 0, done.stderr
    killed(run, "training step", 20, arguments, process_environment)
    full = process_environment | {"LARGEST_FILE": "40000"}
    said = killed(run, "training step", 0, [f"resume={run}"], full, status=2)
    assert said.count("a checkpoint could not be written (File too large): training continues") == 1
    assert said.count("loss_plot.png could not be written") == 1
    assert "epoch 3/3" in said
    assert (
        said.splitlines()[-1] == f"error: the last checkpoint could not be written: make room, then continue with resume={run}"
    )
    assert steps_at_last_checkpoint(run) == 16 + 3
    assert not list(run.rglob("*.partial"))
    done = command("train", f"resume={run}")
    assert done.returncode == 0, done.stderr
    assert_equal_runs(whole, run)


def test_numbers_that_are_not_finite_end_a_run_that_says_where_to_go_on(
    command: Command, tiny_run: tuple[str, ...], tmp_path: Path, process_environment: dict[str, str]
) -> None:
    """A finished run that is extended into them is not a finished one any more, and its last checkpoint is from before."""
    run = tmp_path / "run"
    assert command("train", *tiny_run, "trainer.max_epochs=1", f"hydra.run.dir={run}").returncode == 0
    poisoned = process_environment | {"NOT_FINITE": "13"}
    options = [f"resume={run}", "trainer.max_epochs=2", "callbacks.checkpoints.checkpoint_every_steps=3"]
    said = killed(run, "training step", 0, options, poisoned, status=2)
    assert said.splitlines()[-1] == (
        "error: optimiser step 13: loss_kl is not finite: lower the learning rate, clip with trainer.gradient_clip_val=1, or "
        "skip such steps with trainer.on_nonfinite=skip; the last good checkpoint is "
        f"{run}/checkpoints/last.ckpt of step 11: resume from it with resume={run}"
    )
    assert steps_at_last_checkpoint(run) == 11
    assert json.loads((run / "provenance.json").read_text())["exit"].startswith("TrainingEnded: optimiser step 13")
    assert not (run / "weights.safetensors").exists()
    said = killed(run, "training step", 0, [*options, "trainer.on_nonfinite=skip"], poisoned, status=0)
    assert "optimiser step 13: loss_kl is not finite: step skipped" in said
    assert (run / "weights.safetensors").exists()


def test_a_run_without_callbacks_leaves_its_weights(command: Command, tiny_run: tuple[str, ...], tmp_path: Path) -> None:
    options = [option for option in tiny_run if not option.startswith("callbacks.")]
    done = command("train", *options, "callbacks=none", "trainer.max_epochs=1")
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path)
    assert f"without callbacks.checkpoints, only {run}/weights.safetensors" in done.stderr
    assert (run / "weights.safetensors").is_file()


def test_slurm_requeues_a_job_that_has_saved(
    tiny_run: tuple[str, ...], tmp_path: Path, process_environment: dict[str, str]
) -> None:
    """SIGUSR1 under SLURM: the step is finished and saved, and Lightning's plug-in calls scontrol."""
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f"#!/bin/sh\necho $* > {tmp_path / 'called'}\n")
    scontrol.chmod(0o755)
    slurm = {"SLURM_NTASKS": "1", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
             "SLURM_NODEID": "0", "PATH": f"{scontrol.parent}:{process_environment['PATH']}"}  # fmt: skip
    run = tmp_path / "run"
    arguments = [*tiny_run, "trainer.max_epochs=1"]
    said = killed(run, "training step", 3, arguments, process_environment | slurm, "SIGUSR1", 128 + signal.SIGUSR1)
    assert (tmp_path / "called").read_text() == "requeue 7\n", said
    assert steps_at_last_checkpoint(run) == 3
    assert not list(run.rglob("hpc_ckpt*"))


def test_more_epochs_go_on_from_a_finished_run(command: Command, tiny_run: tuple[str, ...], tmp_path: Path) -> None:
    """1 epoch and 1 more equal 2 in one go; a change of architecture or data is refused by name."""
    two, one = tmp_path / "two", tmp_path / "one"
    assert command("train", *tiny_run, f"hydra.run.dir={two}").returncode == 0
    assert command("train", *tiny_run, "trainer.max_epochs=1", f"hydra.run.dir={one}").returncode == 0
    before = {path.name: path.read_bytes() for path in one.glob("*.yaml")}
    for change, words in {
        "trainer.accelerator=gpu": "trainer.accelerator=gpu: PyTorch finds no GPU",
        "trainer.max_epochs=1": "all 1 epochs are done",
        "data.num_images=90": "data.num_images was 80 and is 90",
        "trainer.channels_last=false": "trainer.channels_last was True and is False",
    }.items():
        refused = command("train", f"resume={one}", "trainer.max_epochs=2", change)
        assert (refused.returncode, refused.stdout) == (2, ""), change
        assert words in refused.stderr
    assert before == {path.name: path.read_bytes() for path in one.glob("*.yaml")}, "a failed resume left its traces"
    refused = command("train", f"resume={one}", "model.latent_dim=5")
    assert refused.returncode == 2
    assert "model.latent_dim was 4 and is 5" in refused.stderr
    refused = command("train", *tiny_run, f"hydra.run.dir={one}")
    assert refused.returncode == 2
    assert "already contains a run" in refused.stderr
    done = command("train", f"resume={one}", "trainer.max_epochs=2")
    assert done.returncode == 0, done.stderr
    assert "changed since the run started: trainer.max_epochs was 1 and is 2" in done.stderr
    assert_equal_weights(one, two)
    assert (one / "metrics.csv").read_bytes() == (two / "metrics.csv").read_bytes()


def test_two_processes_and_four_parts_compute_what_one_does(
    command: Command, tiny_run: tuple[str, ...], tmp_path: Path, process_environment: dict[str, str]
) -> None:
    """DDP over gloo, and accumulation 4 x 2, equal one process with batches of 8, but for the order of float32 sums.

    Two processes that torchrun starts equal two that Lightning starts, to the bit.
    """
    runs = {
        "one": [],
        "ddp": ["trainer=ddp_cpu"],
        "parts": ["trainer.accumulate_grad_batches=4"],
    }
    for name, extra in runs.items():
        arguments = [a for a in tiny_run if not (extra and "accelerator" in a)]
        done = command("train", *arguments, *extra, "model.beta_warmup_steps=5", f"hydra.run.dir={tmp_path / name}")
        assert done.returncode == 0, done.stdout + done.stderr
    for name in ("ddp", "parts"):
        assert_equal_weights(tmp_path / "one", tmp_path / name, tolerance=2e-4)
        with (tmp_path / "one" / "metrics.csv").open() as a, (tmp_path / name / "metrics.csv").open() as b:
            rows, others = list(csv.DictReader(a)), list(csv.DictReader(b))
        assert len(rows) == len(others)
        for row, other in zip(rows, others, strict=True):
            assert row.keys() == other.keys()
            for key, value in row.items():
                assert (value == other[key] == "") or abs(float(value) - float(other[key])) <= 2e-3 * abs(float(value)) + 1e-6

    arguments = [*(a for a in tiny_run if "accelerator" not in a), "trainer=ddp_cpu", "model.beta_warmup_steps=5"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "-m", "flowergen.train", *arguments, f"hydra.run.dir={tmp_path / 'torchrun'}"],
        cwd=tmp_path, env=process_environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert_equal_weights(tmp_path / "ddp", tmp_path / "torchrun")
    assert (tmp_path / "ddp" / "metrics.csv").read_bytes() == (tmp_path / "torchrun" / "metrics.csv").read_bytes()


def test_every_process_resumes_from_the_checkpoint_that_was_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The first makes it the last one; torchrun's others do not wait for that, and must not take the old last one."""
    run = RunFolder(tmp_path)
    run.checkpoints.mkdir()
    run.config.touch()
    last, named = run.checkpoints / "last.ckpt", run.checkpoints / "epoch_0002.ckpt"
    last.write_bytes(b"last")
    named.write_bytes(b"named")
    assert train._checkpoint_to_resume(str(tmp_path), run) == last
    for rank, expected in (("1", b"last"), ("0", b"named")):
        monkeypatch.setenv("RANK", rank)
        assert train._checkpoint_to_resume(str(named), run) == named
        with train._promoted_to_last(named, run):
            assert last.read_bytes() == expected
    assert {path.name for path in run.checkpoints.iterdir()} == {"epoch_0002.ckpt", "last.ckpt"}


@pytest.mark.parametrize(
    ("error", "expected"), [(UserError, b"last"), (TrainingEnded, b"named"), (KeyboardInterrupt, b"named")]
)
def test_a_refusal_brings_the_last_checkpoint_back(error: type[BaseException], expected: bytes, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.checkpoints.mkdir()
    last, named = run.checkpoints / "last.ckpt", run.checkpoints / "epoch_0002.ckpt"
    last.write_bytes(b"last")
    named.write_bytes(b"named")
    with pytest.raises(error), train._promoted_to_last(named, run):
        raise error
    assert last.read_bytes() == expected
    assert {path.name for path in run.checkpoints.iterdir()} == {"last.ckpt", "epoch_0002.ckpt"}


def test_a_failing_job_does_not_end_a_sweep(command: Command, tiny_run: tuple[str, ...], tmp_path: Path) -> None:
    """The second of three jobs asks for a GPU that is not there: one line, and the third runs."""
    sweep = tmp_path / "sweep"
    done = command(
        "train", "-m", *[a for a in tiny_run if "accelerator" not in a], "trainer.max_epochs=1",
        "trainer.accelerator=cpu,gpu", "model.beta=1,4", f"hydra.sweep.dir={sweep}",
    )  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    finished = [json.loads((sweep / str(n) / "provenance.json").read_text())["exit"] == "finished" for n in range(4)]
    assert finished == [True, True, False, False]
    jobs = yaml.safe_load((sweep / "jobs.yaml").read_text())
    assert [(job["status"], job["exit_code"]) for job in jobs] == [("finished", 0)] * 2 + [("failed", 2)] * 2
    assert "Traceback" not in done.stdout + done.stderr
    betas = [yaml.safe_load((sweep / str(n) / "config.yaml").read_text())["model"]["beta"] for n in range(2)]
    assert betas == [1, 4]


def test_a_mistyped_sweep_value_is_found_before_anything_is_made(command: Command, tmp_path: Path) -> None:
    done = command("train", "-m", "model.beta=0.5,x")
    assert done.returncode == 2
    assert done.stderr.strip() == "error: model.beta=x must be a number"
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("arguments", [["model.betta=1"], ["resume=typo"], ["data=image_folder", "data.root=typo"]])
def test_a_mistake_costs_one_line_and_no_folder_and_does_not_import_torch(
    arguments: list[str], tmp_path: Path, process_environment: dict[str, str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "flowergen.train", *arguments],
        cwd=tmp_path, env=process_environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    imported = [line.rsplit("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")]
    lines = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == 2
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert "torch" not in imported
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_odd_names_trains_and_one_that_moved_resumes(
    command: Command, tiny_run: tuple[str, ...], tmp_path: Path, picture_folder: Path
) -> None:
    own = [a for a in tiny_run if not a.startswith(("data.num_images", "data.num_classes"))]
    run = tmp_path / "run (1)"
    done = command("train", *own, "data=image_folder", f"data.root={picture_folder}", "trainer.max_epochs=1",
                   f"hydra.run.dir={run}")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 classes" in done.stdout + done.stderr
    moved, new_run = tmp_path / "elsewhere", tmp_path / "moved run"
    picture_folder.rename(moved)
    run.rename(new_run)
    done = command("train", f"resume={new_run}", f"data.root={moved}", "trainer.max_epochs=2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "decoding" not in done.stdout + done.stderr, "the cache was not found again"
    next(moved.rglob("*.png")).unlink()
    other = tmp_path / "other"
    moved.rename(other)
    before = {path: path.read_bytes() for path in new_run.rglob("*") if path.is_file() and path.name != "train.log"}
    for named in (new_run, new_run / "checkpoints" / "best.ckpt"):
        done = command("train", f"resume={named}", f"data.root={other}", "trainer.max_epochs=3")
        assert done.returncode == 2
        assert "labels or split of image_folder have changed since the run started" in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
        after = {path: path.read_bytes() for path in new_run.rglob("*") if path.is_file() and path.name != "train.log"}
        assert after == before, "a refusal left its traces"


def test_a_folder_whose_run_was_refused_is_taken_by_the_next_one(
    command: Command, tiny_run: tuple[str, ...], tmp_path: Path, picture_folder: Path
) -> None:
    """The same command, once what was missing is there; a run that has begun is not overwritten."""
    own = [a for a in tiny_run if not a.startswith(("data.num_images", "data.num_classes", "trainer.max_epochs"))]
    pictures, run = tmp_path / "pictures", tmp_path / "run"
    pictures.mkdir()
    train_there = ("train", *own, "data=image_folder", f"data.root={pictures}", "trainer.max_epochs=1", f"hydra.run.dir={run}")
    assert command(*train_there).returncode == 2
    assert json.loads((run / "provenance.json").read_text())["exit"].startswith("UserError")
    shutil.copytree(picture_folder, pictures, dirs_exist_ok=True)
    done = command(*train_there)
    assert done.returncode == 0, done.stderr
    done = command(*train_there)
    assert done.returncode == 2
    assert "already contains a run" in done.stderr


def test_where_nothing_is_held_out_nothing_claims_to_be_validation(
    command: Command, tiny_run: tuple[str, ...], tmp_path: Path
) -> None:
    assert command("train", *tiny_run, "data.split=all", "trainer.max_epochs=1").returncode == 0
    run = only_run(tmp_path)
    assert not (run / "checkpoints" / "best.ckpt").exists()
    header = (run / "metrics.csv").read_text().splitlines()[0]
    assert "trainset/psnr" in header
    assert "val/" not in header


def test_data_errors_are_one_line_and_the_log_keeps_them(command: Command, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    done = command("train", "data=image_folder", f"data.root={empty}", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 2
    errors = [line for line in (done.stdout + done.stderr).splitlines() if "error:" in line]
    assert len(errors) == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert errors[0] in (tmp_path / "run" / "train.log").read_text()
    assert json.loads((tmp_path / "run" / "provenance.json").read_text())["exit"].startswith("UserError")


def test_too_few_pictures_are_told_apart(command: Command, tiny_run: tuple[str, ...]) -> None:
    done = command("train", *tiny_run, "data.num_images=8")
    assert "do not fill one batch of 8" in done.stdout + done.stderr
    done = command("train", *tiny_run, "data.num_images=4", "data.batch_size=2")
    assert "no validation picture" in done.stdout + done.stderr


def test_face_vae_trains_two_epochs_on_celeba(command: Command, celeba: Path, tmp_path: Path) -> None:
    """At its own 150 px, on torchvision's layout with an attribute as label; and a picture is varied by it."""
    done = command("train", "experiment=face_vae", f"data.root={celeba}", "data.attribute=Smiling", "data.batch_size=20",
                   "trainer.max_epochs=2", "callbacks.images.num_samples=4", f"hydra.run.dir={tmp_path / 'run'}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "40 train, 10 val, 10 test pictures of 150 px, 2 classes" in done.stderr
    assert "32-64-128-256-512 channels to 128 latent dimensions" in done.stderr
    assert (tmp_path / "run" / "images" / "generated_epoch_0001.png").is_file()
    picture = celeba / "celeba" / "img_align_celeba" / "000009.jpg"
    done = command("vary", f"run={tmp_path / 'run'}", f"image={picture}", "num=2", f"out={tmp_path / 'varied'}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "varied" / "variations.png").is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here, which stands for a full disk")
def test_a_disk_that_is_full_from_the_beginning_is_one_line(
    command: Command, tiny_run: tuple[str, ...], tmp_path: Path
) -> None:
    """That the line does not reach train.log either is not said in a traceback."""
    (tmp_path / "run").mkdir()
    for name in ("train.log", "overrides.yaml.partial"):
        (tmp_path / "run" / name).symlink_to("/dev/full")
    done = command("train", *tiny_run, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "make room" in line
