"""Each of Hydra's undocumented parts that we use, by what it does, so that a failure names the one that has moved."""

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher

from flowergen import hydra_internals
from flowergen.config import conf_dir


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


def test_the_groups_on_the_top_level() -> None:
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=conf_dir(), version_base="1.3"):
        groups = hydra_internals.config_groups()
    assert {"model", "data", "trainer", "experiment", "hydra"} <= set(groups)
    assert "network" not in groups


def test_a_registered_plugin_is_instantiated_by_its_name() -> None:
    hydra_internals.register_plugin(Mine)
    made = Plugins.instance()._instantiate({"_target_": "hydra_plugins.flowergen.Mine"})  # type: ignore[arg-type]
    assert isinstance(made, Mine)
