"""The notebooks run from top to bottom, on few pictures."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
SMALL = {
    "01_train_and_look": "NUM_IMAGES, EPOCHS = 800, 1",
    "02_beta_sweep": "NUM_IMAGES, EPOCHS, BETAS = 800, 1, [1, 10]",
    "03_latent_space": "NUM_IMAGES, EPOCHS = 800, 1",
    "04_diffusion": "NUM_IMAGES, EPOCHS, DIFFUSION_EPOCHS = 800, 1, 1",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_runs(
    name: str, tmp_path: Path, process_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    assert set(re.findall(r"^(\w+) =", parameters.source, re.MULTILINE)) == set(re.findall(r"[A-Z_]+", SMALL[name]))
    parameters.source = SMALL[name]
    for key, value in process_environment.items():
        monkeypatch.setenv(key, value)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3


def test_every_notebook_is_run_and_none_holds_outputs() -> None:
    found = {path.stem: nbformat.read(path, as_version=4) for path in NOTEBOOKS.glob("*.ipynb")}
    assert found.keys() == SMALL.keys()
    for name, notebook in found.items():
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert not any(cell.outputs or cell.execution_count for cell in code), name
