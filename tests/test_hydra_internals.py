"""Each of Hydra's undocumented parts that we use, by what it does, so that a failure names the one that has moved."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from omegaconf import OmegaConf

from flowergen import hydra_internals
from flowergen.config import conf_dir
from flowergen.config.overrides import parse


class Mine(Launcher):
    def setup(self, **_: object) -> None:  # type: ignore[override]
        pass

    def launch(self, job_overrides: object, initial_job_idx: int) -> list[object]:  # type: ignore[override]
        return []


def test_the_parser_knows_hydra_main_s_flags() -> None:
    args = hydra_internals.argument_parser().parse_intermixed_args(["seed=1", "-m", "--config-dir", "mine", "model.beta=1,2"])
    assert (args.overrides, args.multirun, args.config_dir) == (["seed=1", "model.beta=1,2"], True, "mine")
    others = ("help", "hydra_help", "cfg", "info", "shell_completion")
    refused = ("config_name", "config_path", "package", "experimental_rerun")
    assert not any(getattr(args, name) for name in (*others, *refused))


def test_the_default_sweeper_is_known_by_its_name() -> None:
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=conf_dir(), version_base="1.3"):
        composed = compose("train", return_hydra_config=True)
    assert composed.hydra.sweeper["_target_"] == hydra_internals.BASIC_SWEEPER


def test_values_are_set_and_noted_as_in_one_composition() -> None:
    choices = ["model=vae_gan", "hydra/sweeper=optuna"]
    values = ["seed=1", "hydra.job.name=x", "++model.new={a:[1,2]}", "~callbacks.progress", "+paths.mine=${seed}"]
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=conf_dir(), version_base="1.3"):
        base, whole = (compose("train", lines, return_hydra_config=True) for lines in (choices, [*values, *choices]))
        hydra_internals.set_values(base, parse([*values, *choices]), parse(values))
        assert OmegaConf.to_container(base) == OmegaConf.to_container(whole)
        with pytest.raises(HydraException, match="Ambiguous value for argument 'seed=1,2'"):
            hydra_internals.set_values(base, parse(["seed=1,2"]), parse(["seed=1,2"]))


def test_a_registered_plugin_is_instantiated_by_its_name() -> None:
    hydra_internals.register_plugin(Mine)
    made = Plugins.instance()._instantiate({"_target_": "hydra_plugins.flowergen.Mine"})  # type: ignore[arg-type]
    assert isinstance(made, Mine)
