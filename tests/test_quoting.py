from pathlib import Path

import pytest

from flowergen.config.overrides import parse
from flowergen.quoting import quote_paths

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
