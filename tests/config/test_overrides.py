from pathlib import Path

import pytest

from flowergen.config.overrides import Composer, merged, parse, quote_paths, resolve, sweep_samples
from flowergen.errors import UserError

ODD_NAMES = [
    "IMG (1).jpg",
    "a=b",
    "it's",
    "Blüten, schöne",
    'say "hi"',
    "back\\slash\\",
    "{curly}",
    "[square]",
    "#1",
    "a:b",
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_path_gets_through_the_grammar(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    (override,) = parse(quote_paths([f"data.root={path}"]))
    assert override.value() == str(path)


def test_home_and_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert [o.value() for o in parse(quote_paths(["data.root=~/x", "paths.output_dir=y"]))] == [
        str(tmp_path / "x"),
        str(tmp_path / "y"),
    ]


def test_a_repository_of_the_hub_is_no_path_also_in_a_sweep(tmp_path: Path) -> None:
    swept, one = quote_paths([f"autoencoder={tmp_path}/my run,hub:a/b@c", "autoencoder=hub:a/b"], multirun=True)
    assert (swept, one) == (f"autoencoder='{tmp_path}/my run',hub:a/b@c", "autoencoder=hub:a/b")


def test_a_comma_under_multirun_is_a_sweep_unless_it_is_a_name(tmp_path: Path) -> None:
    (tmp_path / "a,b").mkdir()
    swept, one = quote_paths([f"data.root={tmp_path}/x,{tmp_path}/y", f"data.root={tmp_path}/a,b"], multirun=True)
    assert len(list(parse([swept])[0].sweep_iterator())) == 2
    assert parse([one])[0].value() == f"{tmp_path}/a,b"


def test_a_sweep_shows_every_value_once() -> None:
    samples = sweep_samples(["model.beta=1,2,3", "seed=0,1", "name=x"])
    assert len(samples) == 1 + 2 + 1
    assert {line for sample in samples for line in sample} == {
        "model.beta=1", "model.beta=2", "model.beta=3", "seed=0", "seed=1", "name=x",
    }  # fmt: skip


def test_a_sweep_over_sizes_may_have_pairs() -> None:
    assert sweep_samples(["data.image_size=64,[48,64]"]) == [["data.image_size=64"], ["data.image_size=[48,64]"]]


def test_the_last_of_two_choices_holds() -> None:
    assert merged(["data=procedural", "++model.beta=2", "data=flowers102"]) == ["data=flowers102", "++model.beta=2"]


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


@pytest.mark.parametrize("values", ["range(0,1000000000000)", "1," * 1001 + "1"])
def test_a_sweep_without_end_is_refused(values: str) -> None:
    with pytest.raises(UserError, match="more than 1,000 values"):
        sweep_samples([f"seed={values}"])
