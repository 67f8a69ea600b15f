"""The push command with format=diffusers: the pipeline samples as flowergen does, where flowergen cannot be imported."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import flowergen
from flowergen.randomness import normal_per_sample
from flowergen.runs.diffusers_folder import standalone
from flowergen.runs.sampling import samples_of
from tests.conftest import Command
from tests.hub_server import hub_server
from tests.runs.test_pretrained import saved
from tests.test_push import assert_no_paths, pushed

ELSEWHERE = """
import sys

sys.modules["flowergen"] = None  # importing it raises ImportError
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

folder, given, result, *samplers = sys.argv[1:]
latents = load_file(given)["latents"]
pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
pipeline.set_progress_bar_config(disable=True)
options = {"num_images": 5, "latents": latents, "output_type": "pt"}
found = {"default": pipeline(**options).images}
for name in samplers:
    guided = {"classes": ["pink_5_heart", 0], "guidance_scale": 5.0, "num_inference_steps": 4, "sampler": name}
    found[name] = pipeline(**options, **guided).images
save_file({name: x.contiguous() for name, x in found.items()}, result)
assert pipeline(classes=[1, 3], output_type="np").images.shape == (2, 32, 32, 3)
assert [picture.size for picture in pipeline().images] == [(32, 32)]
half = pipeline.to(torch.bfloat16)(**options).images
assert (half - found["default"]).abs().mean() < 0.02
"""
CASES = {  # an autoencoder, and a network and a path of noise that are not the defaults
    "unet": ("AutoencoderKL", "model.network.channels=16", "model.network.multipliers=[1,2]", "model.network.num_blocks=1",
             "model.schedule=linear", "model.zero_terminal_snr=true"),
    "dit": ("AutoencoderDC", "model/network=dit", "model.network.hidden_size=16", "model.network.depth=2",
            "model.network.num_heads=2", "model.objective=flow"),
}  # fmt: skip


@pytest.fixture
def diffusion_on_diffusers(
    request: pytest.FixtureRequest, command: Command, tiny_latent_ddpm: tuple[str, ...], tmp_path: Path
) -> Path:
    """A run whose network answers noticeably, and with class dropout, guidance within an interval and an average."""
    kind, *of_network = CASES[request.param]
    saved(tmp_path / "source", kind)
    tiny = [argument for argument in tiny_latent_ddpm if not argument.startswith("model.network")]
    arguments = [*tiny, *of_network, "model.optimizer.lr=0.02", "model.sampling.guidance_interval=[0.2,0.8]"]
    arguments += ["data.image_size=32", f"autoencoder={tmp_path / 'source'}"]
    done = command("train", *arguments, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    shutil.rmtree(tmp_path / "source")
    return tmp_path / "run"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("diffusion_on_diffusers", "place"), [("unet", "folder"), ("dit", "hub")], indirect=["diffusion_on_diffusers"]
)
def test_the_pipeline_samples_as_the_run_does_without_flowergen(
    diffusion_on_diffusers: Path, place: str, command: Command, process_environment: dict[str, str], tmp_path: Path
) -> None:
    """From the same latents: the run's defaults, then each deterministic sampler with guidance and classes. The files hold no
    path of this machine and no pickle; they are loaded from a folder, or from a server that speaks the hub's protocol."""
    run, shared = diffusion_on_diffusers, tmp_path / "shared"
    done = command("push", f"run={run}", f"out={shared}", "format=diffusers")
    assert done.returncode == 0, done.stderr
    names = {str(path.relative_to(shared)) for path in shared.rglob("*") if path.is_file()}
    weights = "diffusion_pytorch_model.safetensors"
    assert names == {"model_index.json", "pipeline.py", "denoiser/denoiser.py", "denoiser/config.json", f"denoiser/{weights}",
                     "vae/config.json", f"vae/{weights}", "README.md", "samples.png"}  # fmt: skip
    assert_no_paths(shared, tmp_path)
    head = yaml.safe_load((shared / "README.md").read_text().split("---\n")[1])
    assert head["library_name"] == "diffusers"
    assert "DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)" in (shared / "README.md").read_text()

    model = flowergen.load(run)
    module = model.module
    samplers = ["dpmpp_2m", "ddim", *(["euler", "heun"] if module.objective == "flow" else [])]
    expected = {"default": model.sample(5, seed=3)}
    for sampler in samplers:
        options = {"sampler": sampler, "steps": 4, "guidance_scale": 5.0}
        expected[sampler] = samples_of(model, 5, 3, ["pink_5_heart", 0], options)
    unguided = samples_of(model, 5, 3, ["pink_5_heart", 0], {"steps": 4, "guidance_scale": 1.0})
    everywhere = {"steps": 4, "guidance_scale": 5.0, "guidance_interval": (0, 1)}
    for other in (unguided, samples_of(model, 5, 3, ["pink_5_heart", 0], everywhere), expected["default"]):
        assert (other - expected["dpmpp_2m"]).abs().max() > 1e-3, "the test could not see this difference"
    assert (module.latent_std - 1).abs().min() > 1e-2
    latents = normal_per_sample(range(5), module.latent_shape, seed=3, purpose="prior")
    save_file({"latents": latents}, tmp_path / "latents.safetensors")
    shutil.rmtree(run)

    (tmp_path / "elsewhere").mkdir()
    environment = {key: value for key, value in process_environment.items() if key != "PYTHONPATH"}
    with hub_server() as server:
        server.files["me/flowers"] = {
            str(path.relative_to(shared)): path.read_bytes() for path in shared.rglob("*") if path.is_file()
        }
        done = subprocess.run(
            [sys.executable, "-c", ELSEWHERE, str(shared) if place == "folder" else "me/flowers",
             str(tmp_path / "latents.safetensors"), "found.safetensors", *samplers],
            cwd=tmp_path / "elsewhere",
            env=environment | {"HF_HOME": str(tmp_path / "hub"), "HF_ENDPOINT": server.endpoint, "HF_HUB_DISABLE_XET": "1"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "elsewhere" / "found.safetensors")
    assert set(found) == set(expected)
    for name, pictures in expected.items():
        torch.testing.assert_close(found[name], pictures, rtol=0, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


LATENT, NETWORK = "flowergen.modules.latent_ddpm.LatentDDPMModule", "flowergen.nn.unet.UNet"
PRETRAINED = "flowergen.modules.pretrained.PretrainedAutoencoder"


@pytest.mark.parametrize(
    ("model", "network", "before", "autoencoder", "words"),
    [
        ("flowergen.modules.vae.VAEModule", None, {}, None, "is not latent diffusion (model=latent_ddpm)"),
        ("mine.Diffusion", NETWORK, {"autoencoder": "hub:a/b"}, PRETRAINED, "is not latent diffusion"),
        ("flowergen.modules.decoder.DecoderModule", None, {"diffusion": "run"}, None, "is the run of a decoder"),
        (LATENT, NETWORK, {"autoencoder": "none"}, None, "is diffusion on pixels, without an autoencoder"),
        (LATENT, NETWORK, {"autoencoder": "run"}, "flowergen.modules.vae.VAEModule", "an autoencoder of flowergen's own"),
        (LATENT, "mine.Network", {"autoencoder": "hub:a/b"}, PRETRAINED, "has a network of your own, and neither DiT nor UNet"),
    ],
)
def test_other_runs_are_refused_in_a_line_before_they_are_loaded(
    model: str, network: str | None, before: dict[str, str], autoencoder: str | None, words: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    groups: dict[str, dict[str, str]] = {"paths": {}, "data": {}, "trainer": {}}
    for folder, config in ((tmp_path / "run", {**before, "model": {"_target_": model, "network": {"_target_": network}}}),
                           (tmp_path / "run" / "autoencoder", {"model": {"_target_": autoencoder}})):  # fmt: skip
        folder.mkdir()
        (folder / "config.yaml").write_text(yaml.safe_dump({**groups, **config}))
    assert pushed(monkeypatch, f"run={tmp_path / 'run'}", "format=diffusers") == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert words in error
    assert error.rstrip().endswith("use format=flowergen")
    assert not (tmp_path / "run" / "shared").exists()


@pytest.mark.parametrize("name", ["pipeline", "denoiser"])
def test_a_written_file_defines_each_name_once_and_imports_nothing_of_flowergen(name: str) -> None:
    body = ast.parse(standalone(f"flowergen.runs.diffusers_{name}")).body
    defined = [each.name for each in body if isinstance(each, ast.FunctionDef | ast.ClassDef)]
    assert len(defined) == len(set(defined))
    imported = [each.module for each in body if isinstance(each, ast.ImportFrom)]
    assert not [module for module in imported if module is None or module.startswith("flowergen")]
