"""Shared runs of the Hugging Face hub, uploaded to and downloaded from a server on this machine."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

import flowergen
from tests.hub_server import COMMIT, HubServer, hub_server
from tests.runs.test_pretrained import saved

pytestmark = pytest.mark.slow

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def server() -> Iterator[HubServer]:
    with hub_server() as server:
        yield server


@pytest.fixture
def process(server: HubServer, tmp_path: Path, process_environment: dict[str, str]) -> Run:
    """``python ARGUMENTS`` in a folder of its own: huggingface_hub reads the server's address when it is imported."""
    folder = tmp_path / "work"
    folder.mkdir()
    hub = {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_test", "HF_HUB_DISABLE_XET": "1",
           "HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # fmt: skip
    environment = process_environment | hub | {"PYTHONPATH": str(Path(flowergen.__file__).parent.parent)}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
        )

    return run


def test_a_run_goes_to_the_hub_and_comes_back(diffusion_run: Path, server: HubServer, process: Run, tmp_path: Path) -> None:
    """It samples to the bit as the original, by the command and from Python, also with the server gone afterwards."""
    expected = flowergen.load(diffusion_run).sample(3, seed=5)
    done = process("-m", "flowergen.push", f"run={diffusion_run}", "repo=me/flowers", f"out={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert server.created["me/flowers"]["visibility"] == "private"
    assert f"repository: {server.endpoint}/me/flowers" in done.stdout
    card = ModelCard(server.files["me/flowers"]["README.md"].decode())
    assert (card.data.library_name, card.data.license) == ("flowergen", None)
    assert 'flowergen.load("hub:me/flowers")' in card.text

    server.files["me/flowers"] |= {"evil.py": b"raise SystemExit", "checkpoints/best.ckpt": b"pickle"}
    code = (
        "import flowergen, torch; model = flowergen.load('hub:me/flowers'); torch.save(model.sample(3, seed=5), 'x.pt'); "
        "print(model)"
    )
    done = process("-c", code)
    assert done.returncode == 0, done.stderr
    work = tmp_path / "work"
    assert torch.equal(torch.load(work / "x.pt"), expected)
    folder = work / "outputs" / "hub" / "me" / f"flowers@{COMMIT[:12]}"
    assert f"LoadedModel('{folder}'" in done.stdout
    assert not [name for name in ("evil.py", "checkpoints") if (folder / name).exists()]

    done = process("-m", "flowergen.sample", f"hub:me/flowers@{COMMIT}", "num=2")
    assert done.returncode == 0, done.stderr
    assert (folder / "samples" / "seed0" / "grid.png").is_file()
    assert os.listdir(folder.parent) == [folder.name]
    few = ("data=procedural", "data.num_images=80", "data.num_classes=4", "data.batch_size=8", "trainer.max_epochs=1",
           "trainer.accelerator=cpu", "callbacks.images.num_samples=4", "callbacks.images.num_reconstructions=4")  # fmt: skip
    done = process("-m", "flowergen.train", "init=hub:me/flowers", *few, "hydra.run.dir=new")
    assert done.returncode == 0, done.stderr
    assert f"starting from {folder}: " in done.stderr
    assert "HTTP" not in done.stderr
    assert json.loads((work / "new" / "provenance.json").read_text())["init"] == f"hub:me/flowers@{COMMIT}"
    done = process("-m", "flowergen.train", "resume=hub:me/flowers")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "is a shared run" in done.stderr

    server.shutdown()
    server.server_close()
    done = process("-m", "flowergen.export", "run=hub:me/flowers", "format=safetensors")
    assert done.returncode == 0, done.stderr
    done = process("-m", "flowergen.train", "init=hub:me/flowers", *few, "hydra.run.dir=offline")
    assert done.returncode == 0, done.stderr


def test_what_is_no_shared_run_is_one_line(autoencoder_run: Path, server: HubServer, process: Run, tmp_path: Path) -> None:
    """A repository with a pickled checkpoint, with another class, with paths, without a file, and one that does not exist."""
    done = process("-m", "flowergen.push", f"run={autoencoder_run}", f"out={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    whole = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    config = yaml.safe_load(whole["config.yaml"])

    def changed(**groups: object) -> dict[str, bytes]:
        return whole | {"config.yaml": yaml.safe_dump(config | groups).encode()}

    cases = {
        "pickle": ({"config.yaml": whole["config.yaml"], "checkpoints/best.ckpt": b"\x80\x04."}, "it has no model.safetensors"),
        "target": (
            changed(model={**config["model"], "_target_": "os.system"}),
            "config.yaml has model._target_=os.system, a cl",
        ),
        "walk": (
            changed(model={**config["model"], "_target_": "flowergen.modules.vae.torch.nn.Linear"}),
            "model._target_=flowergen.modules.vae.torch.nn.Linear, a class",
        ),
        "nested": (
            changed(model={**config["model"], "optimizer": {"_target_": "subprocess.Popen"}}),
            "optimizer._target_=subp",
        ),
        "paths": (
            changed(paths={**config["paths"], "cache_dir": "/etc"}),
            "the path paths.cache_dir=/etc, which no shared run",
        ),
        "dots": (changed(data={**config["data"], "cache_dir": "~/.cache/flowergen/../.."}), "the path data.cache_dir="),
        "stage": (changed(autoencoder="../other"), "the path autoencoder=../other"),
        "absent": (changed(autoencoder="other"), "it has no autoencoder"),
        "yaml": (whole | {"config.yaml": b"!!python/object/apply:os.system ['touch /tmp/x']"}, "cannot be read"),
        "weights": (whole | {"model.safetensors": b"\x80\x04."}, "is damaged, or is not a shared run"),
    }
    server.files |= {f"evil/{name}": files for name, (files, _) in cases.items()}
    expected = {f"evil/{name}": words for name, (_, words) in cases.items()} | {
        "evil/none": "cannot be downloaded (RepositoryNotFoundError: ",
        "evil/weights@../../../x": "give hub:OWNER/NAME or hub:OWNER/NAME@REVISION",
        "evil": "give hub:OWNER/NAME or hub:OWNER/NAME@REVISION",
        "evil/weights@": "give hub:OWNER/NAME or hub:OWNER/NAME@REVISION",
        "../../etc": "hub:../../etc: give hub:OWNER/NAME",
        "me/flowers/sub": "a run is named hub:OWNER/NAME, or",
        "../etc": "hub:../etc: give hub:OWNER/NAME",
    }
    code = """
import sys, flowergen
for name in sys.argv[1:]:
    try:
        flowergen.load(f"hub:{name}")
    except flowergen.UserError as error:
        print(error)
"""
    done = process("-c", code, *expected)
    assert done.returncode == 0, done.stderr
    for (name, words), line in zip(expected.items(), done.stdout.splitlines(), strict=True):
        assert words in line, (name, line)
    copied = {path.name.partition("@")[0] for path in (tmp_path / "work").rglob("*@*")}
    assert copied == {"weights"}, "whose names are right, and whose content is read later"
    done = process("-m", "flowergen.sample", "run=hub:evil/pickle")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr


def test_diffusion_on_an_autoencoder_of_the_hub(
    autoencoder_run: Path, tiny_latent_ddpm: tuple[str, ...], server: HubServer, process: Run, tmp_path: Path
) -> None:
    """One of diffusers, its weights carried or named by the commit: equal runs. And a shared VAE-GAN of flowergen."""
    saved(tmp_path / "vae", "AutoencoderKL")
    server.files["me/vae"] = {path.name: path.read_bytes() for path in (tmp_path / "vae").iterdir()}
    work, few = tmp_path / "work", [*tiny_latent_ddpm, "trainer.max_epochs=1", "data.image_size=32"]
    for name, carried in (("carried", "true"), ("named", "false")):
        more = ["autoencoder=hub:me/vae", f"carry_autoencoder={carried}", f"hydra.run.dir={name}"]
        done = process("-m", "flowergen.train", *few, *more)
        assert done.returncode == 0, done.stderr
    assert (work / "named" / "metrics.csv").read_bytes() == (work / "carried" / "metrics.csv").read_bytes()
    weights = [torch.load(work / name / "autoencoder" / "checkpoints" / "best.ckpt") for name in ("carried", "named")]
    assert weights[0]["state_dict"]
    assert (weights[1]["state_dict"], weights[1]["weights_of"]) == ({}, f"hub:me/vae@{COMMIT}")
    for command in (["sample", "run=named", "num=2"], ["push", "run=named", "out=shared"], ["sample", "run=shared", "num=2"]):
        done = process("-m", f"flowergen.{command[0]}", *command[1:])
        assert done.returncode == 0, done.stderr
    assert process("-m", "flowergen.sample", "run=carried", "num=2").returncode == 0
    grids = [(work / name / "samples" / "seed0" / "grid.png").read_bytes() for name in ("named", "shared", "carried")]
    assert grids[0] == grids[1] == grids[2]

    done = process("-m", "flowergen.push", f"run={autoencoder_run}", "repo=me/vae_gan", "out=vae_gan")
    assert done.returncode == 0, done.stderr
    done = process("-m", "flowergen.train", *tiny_latent_ddpm, "autoencoder=hub:me/vae_gan", "trainer.max_epochs=1",
                   "hydra.run.dir=own")  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = process("-m", "flowergen.train", *tiny_latent_ddpm, "autoencoder=hub:me/vae_gan", "carry_autoencoder=false")
    assert (done.returncode, done.stderr.count("error: carry_autoencoder=false is for autoencoders of diffusers")) == (2, 1)
    assert yaml.safe_load((work / "own" / "autoencoder" / "config.yaml").read_text())["data"]["image_size"] == 32

    server.files.clear()
    shutil.rmtree(tmp_path / "hf")
    done = process("-m", "flowergen.sample", "run=named", "num=2")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert f"autoencoder=hub:me/vae@{COMMIT} cannot be downloaded" in done.stderr
    assert process("-m", "flowergen.sample", "run=carried", "num=1").returncode == 0
