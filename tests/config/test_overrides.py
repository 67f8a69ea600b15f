from pathlib import Path

import pytest

from flowergen.config.overrides import Composer, parse, resolve
from flowergen.errors import UserError


def test_a_key_that_may_be_left_out_needs_no_plus() -> None:
    _, lines = Composer().compose(["trainer.fast_dev_run=true"])
    assert lines == ["++trainer.fast_dev_run=true"]


def test_a_config_of_ones_own_beside_the_package(tmp_path: Path) -> None:
    """--config-dir: a model that the schema does not know passes phase 1, keys and all."""
    (tmp_path / "model").mkdir()
    search = f"hydra.searchpath=['file://{tmp_path}']"
    (tmp_path / "model" / "mine.yaml").write_text("_target_: my.Model\nwidth: 3\n")
    composed, lines = Composer().compose([search, "model=mine", "+model.depth=2"])
    assert composed.model == {"_target_": "my.Model", "width": 3, "depth": 2}
    assert lines == [search, "model=mine", "+model.depth=2"]
    with pytest.raises(UserError, match="no key model"):
        Composer().compose([search, "model=mine", "model.depht=2"])


def test_resolved_paths_are_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FLOWERGEN_CACHE_DIR", raising=False)
    composed, _ = Composer().compose(["data=flowers102"])
    config = resolve(composed)
    assert config["data"]["root"] == str(tmp_path / "data")
    assert config["data"]["cache_dir"] == str(Path.home() / ".cache/flowergen")
    assert config["name"] == "vae_flowers102"


@pytest.mark.parametrize("value", ["[" * 2000, "{a:" * 2000, "9" * 5000, "int(x)", "sort(1,a)", "\x1b[31m", "choice()"])
def test_whatever_the_grammar_chokes_on_is_no_key_and_value(value: str) -> None:
    """Deep nesting, huge numbers, casts, control characters."""
    with pytest.raises(UserError, match="is not of the form key=value"):
        parse([f"seed={value}"])


def test_nesting_that_the_grammar_takes_and_omegaconf_does_not_is_refused() -> None:
    """Found by scripts/fuzz.py."""
    with pytest.raises(UserError):
        Composer().compose([f"seed={'[' * 400}{']' * 400}"])


@pytest.mark.parametrize("line", ["seed=" + "1" * 30_000, "model.channels=[" + "1," * 20_000 + "1]"])
def test_a_line_that_the_grammar_would_take_minutes_for_is_refused(line: str) -> None:
    with pytest.raises(UserError, match=r"has .* characters: put it into a YAML file"):
        parse([line])
