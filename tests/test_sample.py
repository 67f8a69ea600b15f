"""The sample command as real processes."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import flowergen
from flowergen import sample
from flowergen.errors import UserError
from flowergen.runs.loading import class_names_of
from tests.conftest import TINY_RUN, Command, run_command

pytestmark = pytest.mark.slow


def pixels(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(Image.open(path)).astype(int) for path in sorted((folder / "pictures").glob("*.png"))}


def test_pictures_of_chosen_classes_and_how_they_came_about(command: Command, diffusion_run: Path, tmp_path: Path) -> None:
    """By number and by name; grid, single pictures with seed and class in their names, GIF, strip and path. The batch size
    changes no pixel by more than a grey level, guidance and seed do."""
    out = tmp_path / "out"
    names = [name for name in (diffusion_run / "config.yaml").read_text().splitlines() if "num_classes: 4" in name]
    assert names
    done = command("sample", f"run={diffusion_run}", "classes=[2,0]", "num_per_class=3", f"out={out}")
    assert done.returncode == 0, done.stderr
    assert (out / "grid.png").is_file()
    assert (out / "denoising_path.png").is_file()
    found = pixels(out)
    assert [name.partition("_")[0] for name in found] == ["seed0"] * 6
    assert [name[6:14] for name in found] == ["class000"] * 3 + ["class002"] * 3
    slug = next(iter(found)).removeprefix("seed0_class000_").rpartition("_")[0]
    assert len(list((out / "denoising").glob("*.gif"))) == len(list((out / "denoising").glob("*.png"))) == 2
    with Image.open(next(iter((out / "denoising").glob("*.gif")))) as gif:
        assert gif.n_frames > 3
        assert gif.size == (64, 32)

    other = tmp_path / "other"
    done = command("sample", f"run={diffusion_run}", f"classes=[2,{slug}]", "num_per_class=3", "batch_size=2",
                   "denoising=false", f"out={other}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not (other / "denoising").exists()
    for name, picture in pixels(other).items():
        assert np.abs(picture - found[name]).max() <= 1, name
    for change in ("guidance_scale=8", "seed=1", "sampler=ddpm", "steps=9", "guidance_interval=[0.2,0.5]"):
        changed = tmp_path / change.replace("[", "").replace("]", "")
        done = command("sample", f"run={diffusion_run}", "classes=[2,0]", "num_per_class=3", change, "denoising=false",
                       f"out={changed}")  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert any((a != b).any() for a, b in zip(pixels(changed).values(), found.values(), strict=True)), change


def test_the_class_names_of_an_untrusted_run_do_no_harm(command: Command, diffusion_run: Path, tmp_path: Path) -> None:
    """Paths, line breaks, terminal codes, half characters, no text: files stay in the folder, the terminal is unharmed."""
    run, out = tmp_path / "run", tmp_path / "out" / "deep"
    shutil.copytree(diffusion_run, run)
    for path in (run / "checkpoints").glob("*.ckpt"):
        checkpoint = torch.load(path, weights_only=True)
        checkpoint["ProceduralDataModule"]["class_names"] = ["../../escaped\n\0", "/tmp/\x1b[2Jb\udcff", "", "7"]
        torch.save(checkpoint, path)
    done = command("sample", f"run={run}", "classes=[0,1,2,3]", "num_per_class=1", f"out={out}")
    assert done.returncode == 0, done.stderr
    assert not set("\x1b\0") & set(done.stdout + done.stderr)
    assert sorted(path.name for path in (out / "pictures").iterdir()) == [
        "seed0_class000_escaped_n_x00_00000.png",
        "seed0_class001_tmp_x1b_2Jb_udcff_00001.png",
        "seed0_class002__00002.png",
        "seed0_class003_7_00003.png",
    ]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"deep"}


def test_an_archive_for_an_evaluation(command: Command, diffusion_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = command("sample", f"run={diffusion_run}", "num=21", "class_frequencies=train", "format=npz", "batch_size=8",
                   f"out={out}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    with np.load(out / "samples.npz") as archive:
        assert archive["arr_0"].shape == (21, 32, 32, 3)
        assert archive["arr_0"].dtype == np.uint8
        assert set(archive["arr_1"]) <= {0, 1, 2, 3}
        assert len(set(archive["arr_1"])) > 1
    assert not (out / "pictures").exists()
    assert not list(out.rglob("*.partial"))


def test_an_autoencoder_samples_from_prior_mixture_and_classes(command: Command, autoencoder_run: Path, tmp_path: Path) -> None:
    """Three ways that differ; the last two need what the end of training stored, and say so where it is missing."""
    ways = {"prior": ["source=prior"], "mixture": [], "classes": ["classes=[0,1,2,3]", "num_per_class=1"]}
    found = {}
    for name, way in ways.items():
        done = command(
            "sample", f"run={autoencoder_run}", *(way if name == "classes" else ["num=4", *way]), f"out={tmp_path / name}"
        )
        assert done.returncode == 0, done.stderr
        found[name] = np.stack(list(pixels(tmp_path / name).values()))
    assert (found["prior"] != found["mixture"]).any()
    assert (found["mixture"] != found["classes"]).any()

    run = tmp_path / "run"
    shutil.copytree(autoencoder_run, run)
    (run / "latents.safetensors").unlink()
    for way, words in ((["source=mixture"], "source=prior"), (["classes=all"], "leave them out")):
        done = command("sample", f"run={run}", *way)
        assert done.returncode == 2
        assert words in done.stderr
    done = command("sample", f"run={run}", "num=2", "steps=9", "precision=trained")
    assert done.returncode == 0
    assert "N(0, I)" in done.stdout
    assert "steps= has no effect here" in done.stderr
    assert "precision= has no effect here: it is for diffusion models" in done.stderr
    done = command("sample", str(run / "checkpoints" / "last.ckpt"), "num=1")  # without run=
    assert done.returncode == 0, done.stderr


def test_a_run_trained_in_bf16_is_drawn_in_it_where_asked_to(command: Command, diffusion_run: Path, tmp_path: Path) -> None:
    """And in float32 otherwise, as a run trained in float32 is."""
    run = tmp_path / "run"
    shutil.copytree(diffusion_run, run)
    config = (run / "config.yaml").read_text()
    assert "precision: auto" in config
    (run / "config.yaml").write_text(config.replace("precision: auto", "precision: bf16-mixed"))
    found = {}
    for precision, source in (("trained", run), ("float32", run), (None, diffusion_run)):
        out, given = tmp_path / str(precision), [f"precision={precision}"] if precision else []
        done = command("sample", f"run={source}", "num=4", *given, f"out={out}")
        assert done.returncode == 0, done.stderr
        assert (", in bf16" in done.stdout) == (precision == "trained")
        found[precision] = np.stack(list(pixels(out).values()))
    np.testing.assert_array_equal(found["float32"], found[None])
    assert (found["trained"] != found["float32"]).any()
    assert np.abs(found["trained"] - found["float32"]).mean() < 16


@pytest.fixture(scope="session")
def vae_run(tmp_path_factory: pytest.TempPathFactory, process_environment: dict[str, str]) -> Path:
    """A finished run of a plain VAE."""
    run = tmp_path_factory.mktemp("vae") / "run"
    done = run_command("train", *TINY_RUN, f"hydra.run.dir={run}", folder=run.parent, environment=process_environment)
    assert done.returncode == 0, done.stderr
    return run


@pytest.mark.parametrize("kind", ["vae_run", "autoencoder_run", "diffusion_run"])
def test_a_loaded_run_gives_the_pictures_that_the_command_writes(
    kind: str, command: Command, tmp_path: Path, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    """To the bit, for the same seed; from the mixture, and from N(0, I) where there is none, which both say."""
    run, place = tmp_path / "run", tmp_path / "pictures"
    shutil.copytree(request.getfixturevalue(kind), run)

    def written(*arguments: str) -> tuple[np.ndarray, str]:
        shutil.rmtree(place, ignore_errors=True)
        done = command("sample", f"run={run}", "num=5", "seed=3", "denoising=false", f"out={place}", *arguments)
        assert done.returncode == 0, done.stderr
        found = pixels(place)
        return np.stack([found[name] for name in sorted(found, key=lambda name: name[-9:])]), done.stdout  # by number

    def loaded() -> np.ndarray:
        return flowergen.load(run).sample(5, seed=3).mul(255).round().permute(0, 2, 3, 1).numpy().astype(int)

    fitted, _ = written()
    np.testing.assert_array_equal(loaded(), fitted)
    assert not caplog.messages
    (run / "latents.safetensors").unlink()
    without, said = written()
    np.testing.assert_array_equal(loaded(), without)
    assert (without == fitted).all() == (kind == "diffusion_run")
    if kind != "diffusion_run":
        assert "latents from N(0, I)" in said
        assert caplog.messages == [f"{run} has no mixture model of these weights: samples are decoded from N(0, I)"]
        np.testing.assert_array_equal(written("source=prior")[0], without)


def test_classes_steps_and_guidance_from_python(command: Command, diffusion_run: Path, tmp_path: Path) -> None:
    """To the bit what the command writes; classes are taken in turn, by name or number."""
    done = command("sample", f"run={diffusion_run}", "classes=[2]", "num_per_class=4", "steps=9", "guidance_scale=3",
                   "denoising=false", f"out={tmp_path / 'out'}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    written = np.stack(list(pixels(tmp_path / "out").values()))
    model = flowergen.load(diffusion_run)
    drawn = model.sample(4, classes=[2], steps=9, guidance_scale=3)
    np.testing.assert_array_equal(drawn.mul(255).round().permute(0, 2, 3, 1).numpy().astype(int), written)

    in_turn = model.sample(4, classes=[2, model.class_names[0]], steps=9, guidance_scale=3)
    torch.testing.assert_close(in_turn[[0, 2]], drawn[[0, 2]], rtol=0, atol=1e-5)
    assert not torch.allclose(in_turn[[1, 3]], drawn[[1, 3]], atol=1e-4)
    for changed in ({"steps": 8, "guidance_scale": 3}, {"steps": 9, "guidance_scale": 1}):
        assert not torch.allclose(model.sample(4, classes=[2], **changed), drawn, atol=1e-4), changed
    assert torch.equal(model.sample(4, classes=model.class_names[2], steps=9, guidance_scale=3), drawn), "a name alone"


def test_what_is_wrong_from_python_is_one_line(diffusion_run: Path, autoencoder_run: Path, tmp_path: Path) -> None:
    model = flowergen.load(diffusion_run)
    wrong = {
        "there is no class tulip": {"classes": ["tulip"]},
        "classes is empty": {"classes": []},
        "1000 noise levels": {"steps": 1001},
        "num=0: it must be at least 1": {"num": 0},
        "steps=0: it must be at least 1": {"steps": 0},
    }
    for words, arguments in wrong.items():
        with pytest.raises(flowergen.UserError, match=words) as raised:
            model.sample(**{"num": 2, **arguments})
        assert "\n" not in str(raised.value)
    with pytest.raises(flowergen.UserError, match=r"\(N, 3, 32, 32\), and these have \(2, 3, 48, 48\)"):
        model.encode(torch.rand(2, 3, 48, 48))
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(flowergen.UserError, match=r"a\.png cannot be read"):
        model.read(tmp_path / "a.png")
    assert repr(flowergen.load(autoencoder_run)).startswith(f"LoadedModel('{autoencoder_run}': 32 px to latents of 3 x")


def test_files_are_read_as_training_reads_them(autoencoder_run: Path, tmp_path: Path) -> None:
    """The square in the centre, at the model's size, whatever the file's mode."""
    for mode, colour in (("RGB", (255, 0, 51)), ("L", 102)):
        wide = Image.new(mode, (120, 40), colour)
        wide.paste(0 if mode == "L" else (0, 0, 0), (0, 0, 30, 40))  # outside of the square, and of what smoothing sees
        wide.save(tmp_path / f"{mode}.png")
    x = flowergen.load(autoencoder_run).read(tmp_path / "RGB.png", str(tmp_path / "L.png"))
    expected = torch.tensor([[1.0, 0.0, 0.2], [0.4, 0.4, 0.4]])[:, :, None, None].expand(2, 3, 32, 32)
    torch.testing.assert_close(x, expected)


WRONG = {
    ("classes=[white_21_rai]",): "did you mean white_21_ray?",
    ("classes=99",): "there is no class 99",
    ("num=4", "classes=[0]"): "give only one of them",
    ("class_frequencies=train",): "give num=",
    ("sampler=heun",): "heun follows a flow",
    ("sampler=dpm",): "did you mean ddpm?",
    ("steps=1001",): "1000 noise levels",
    ("steps=0",): "must be from 1",
    ("guidance_interval=[0.5,0.2]",): "increasing numbers",
    ("batch_size=0",): "from 1",
    ("precision=bf16",): "must be float32 or trained",
    ("colour=red",): "there is no key colour",
}


@pytest.mark.parametrize(("arguments", "words"), WRONG.items())
def test_what_is_wrong_is_one_line_and_leaves_no_folder(
    command: Command, diffusion_run: Path, arguments: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    done = command("sample", f"run={diffusion_run}", *arguments, f"out={tmp_path / 'out'}")
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error:")
    assert words in line
    assert not (tmp_path / "out").exists()


def test_a_wrong_class_name_is_refused_before_the_model_is_loaded(diffusion_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert class_names_of(diffusion_run) == flowergen.load(diffusion_run).class_names

    def load(*_: object) -> None:
        raise AssertionError("the model is loaded")

    monkeypatch.setattr(flowergen, "load", load)
    monkeypatch.setattr(sys, "argv", ["sample", f"run={diffusion_run}", "classes=[tulip]"])
    with pytest.raises(UserError, match="there is no class tulip"):
        sample.main()
