"""What is installed: floors, the wheel, the entry points."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import flowergen
from tests.conftest import Command

ROOT = Path(__file__).parent.parent


def test_layers_hold() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_wheel_works_from_another_folder(
    tmp_path: Path, process_environment: dict[str, str], tiny_run: tuple[str, ...]
) -> None:
    """Built, unpacked beside the dependencies, and run with its own configs and a config folder of the user's."""
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
        check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    subprocess.run([sys.executable, "-m", "zipfile", "-e", str(wheel), str(site)], check=True)
    own = elsewhere / "my_conf" / "experiment"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("# @package _global_\nname: mine\nmodel:\n  beta: 2.5\n")
    environment = process_environment | {"PYTHONPATH": str(site)}

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *command], cwd=elsewhere, env=environment, capture_output=True, text=True, check=False
        )

    where = run("-c", "import flowergen.config as c; print(c.__file__, c.conf_dir())")
    assert where.stdout.split() == [str(site / "flowergen/config/__init__.py"), str(site / "flowergen/conf")]
    assert (site / "flowergen/py.typed").is_file()
    features = run(
        "-c", "from flowergen.modules.pretrained_weights import load_efficientnet as load; load('lite0', 'the test')"
    )
    assert features.returncode == 0, features.stderr
    done = run(
        "-m",
        "flowergen.train",
        "--config-dir",
        "my_conf",
        "experiment=mine",
        "debug=tiny",
        *tiny_run,
        "trainer.max_epochs=1",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (config,) = elsewhere.glob("outputs/mine/*/config.yaml")
    assert "beta: 2.5" in config.read_text()


def test_the_bare_package_lists_its_commands(command: Command) -> None:
    done = command("")
    assert done.returncode == 0
    assert "python -m flowergen.train" in done.stdout
    wrong = command("", "trian")
    assert (wrong.returncode, wrong.stderr.strip()) == (2, "error: there is no command trian: did you mean train?")


def test_the_version(command: Command) -> None:
    done = command("", "--version")
    assert (done.returncode, done.stdout) == (0, f"flowergen {flowergen.__version__}\n")


def test_help_is_written_for_people(command: Command) -> None:
    done = command("train", "--help")
    assert done.returncode == 0
    data = "data: celeba, dogs, flowers102, huggingface, image_folder, landscapes, procedural"
    for words in ("experiment=flowers_vae", "resume=RUN", "model.beta=1.0  # ", data):
        assert words in done.stdout, words
    assert "hydra.job" not in done.stdout


def test_help_lists_the_keys_of_the_chosen_groups_with_their_comments(command: Command) -> None:
    typed = ("model=latent_ddpm", "model/network=dit", "data=image_folder", "seed=3", "--help")
    lines = command("train", *typed).stdout.splitlines()
    for line in (
        "seed=3  # weights, data order, noise and augmentation; the split has its own seed",  # of train.yaml, as typed
        "model.sampling.eta=0.0  # of ddim: 0 deterministic, 1 ancestral",  # of the chosen model, nested
        "callbacks.evaluation.every_epochs=0  # 0 for never",  # below a key that has a comment itself
    ):
        assert line in lines
    assert any(line.startswith("model.network.hidden_size=384  # 384, 12 and 6 are DiT-S") for line in lines)  # nested group
    assert any(line.startswith("data.batch_size=64  # pictures per optimiser step") for line in lines)  # included by data
    assert not any(line.startswith("model.blocks") for line in lines)
    own = command("train", "data=flowers102", "--help").stdout
    assert "data.split=stratified  # stratified 80/10/10 | all (nothing held out) | official (1,020/1,020/6,149)" in own


def test_help_knows_configs_of_one_s_own_and_those_that_include_another(command: Command, tmp_path: Path) -> None:
    own = tmp_path / "mine" / "experiment"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("# @package _global_\nname: blümchen\nmodel:\n  beta: 7\n")
    done = command("train", "--config-dir", str(own.parent), "experiment=mine", "trainer=cpu", "--help")
    assert done.returncode == 0, done.stderr
    assert "model.beta=7  # weight of the divergence" in done.stdout.splitlines()
    assert "name=blümchen  # first folder below paths.output_dir" in done.stdout.splitlines()
    assert "trainer.limit_val_batches=1.0  # 0 switches validation off" in done.stdout.splitlines()


def test_the_console_script_is_the_module(process_environment: dict[str, str], tmp_path: Path) -> None:
    """It replaces itself, so that the processes of a distributed run see ``python -m flowergen.train`` and no subcommand."""
    script = Path(sys.executable).parent / "flowergen"
    done = subprocess.run(
        [str(script), "train", "model.betta=1"],
        cwd=tmp_path, env=process_environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr.strip()) == (2, "error: there is no key model.betta: did you mean model.beta?")
    assert os.access(script, os.X_OK)


@pytest.mark.parametrize(
    ("command", "status"), [("flowergen.sample --help", 141), ("flowergen.train --help", 141), ("flowergen", -signal.SIGPIPE)]
)
def test_a_reader_who_has_had_enough_is_no_error(command: str, status: int) -> None:
    """As in ``| head -1``."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command.split()], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, error = process.communicate(timeout=100)
    assert (process.returncode, error) == (status, b"")
