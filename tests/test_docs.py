"""The README's limits and examples, and the links of all pages."""

import re
from pathlib import Path

import pytest
from PIL import Image

import flowergen
from tests.conftest import TINY_RUN, Command

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md")), ROOT / "notebooks" / "README.md"]


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", line) for line in re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_short() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 1000
    assert [line for line in text.splitlines() if len(line) > 120] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name + "/" + page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text())
    for link in links:
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def test_the_readme_s_own_loss_trains(command: Command, tmp_path: Path) -> None:
    """Written to the files that its comments name, and started by its command, for an epoch of tiny pictures."""
    files = [block for block in code_blocks("python") + code_blocks("yaml") if block.startswith("# my_")]
    assert len(files) == 2
    for block in files:
        path = tmp_path / block.splitlines()[0].removeprefix("# ")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block)
    (line,) = [line for block in code_blocks("bash") for line in block.splitlines() if "huber_vae" in line]
    done = command("train", *line.split()[3:], *TINY_RUN, "trainer.max_epochs=1", "model.reconstruction=mse",
                   f"hydra.run.dir={tmp_path / 'huber'}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = command("train", *TINY_RUN, "trainer.max_epochs=1", "model.reconstruction=mse", f"hydra.run.dir={tmp_path / 'mse'}")
    assert done.returncode == 0, done.stderr
    huber, mse = ((tmp_path / name / "metrics.csv").read_text() for name in ("huber", "mse"))
    assert huber.splitlines()[0] == mse.splitlines()[0]
    assert huber != mse


def test_the_readme_s_python_example_runs(diffusion_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = [block for block in code_blocks("python") if "flowergen.load" in block]
    first, second = flowergen.load(diffusion_run).class_names[:2]
    Image.new("RGB", (90, 50), (200, 30, 60)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    found: dict[str, object] = {}
    for name, value in (("RUN", str(diffusion_run)), ("rose", first), ("sunflower", second)):
        assert f'"{name}"' in example
        example = example.replace(f'"{name}"', repr(value))
    exec(example, found)
    assert found["new"].shape == (16, 3, 32, 32)  # type: ignore[attr-defined]
    assert found["x"].shape == found["x_hat"].shape == found["edited"].shape == (1, 3, 32, 32)  # type: ignore[attr-defined]
