"""``python -m flowergen.export``: export a trained model for other programs, as ONNX graphs or weights."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flowergen.app.command import one_line_errors
from flowergen.app.command_schema import Export
from flowergen.app.plain_command import output_folder, read_command_line
from flowergen.errors import UserError, printable
from flowergen.runs.run_folder import find_run, write_atomically
from flowergen.runs.stages import model_nodes

REQUIRED_PACKAGES = ("onnx", "onnxruntime", "onnxscript")


def main() -> None:
    """Check the options, load the model, write and verify the files, and print where they are."""
    config = read_command_line("export", Export, sys.argv[1:])
    run, _ = find_run(config["run"])
    nodes = model_nodes(run.sampling_folder)
    missing = [name for name in REQUIRED_PACKAGES if find_spec(name) is None]
    if config["format"] == "onnx" and missing:
        raise UserError(f"format=onnx needs {' and '.join(missing)}: pip install 'flowergen[export]'")

    import flowergen
    from flowergen.evaluation import portable

    model = flowergen.load(config["run"])  # on the CPU, for the comparison with onnxruntime
    portable.networks(model.module)
    about: dict[str, Any] = {"run": run.path.name, **portable.describe(model.module, model.class_names)}
    with (
        output_folder(config["out"], run.path / "export" / config["format"]) as folder,
        TemporaryDirectory(dir=folder, prefix=".") as partial,  # removed with its content if a graph deviates
    ):
        if config["format"] == "onnx":
            print("writing and comparing the graphs", file=sys.stderr)
            for name, deviation in portable.write_onnx(model.module, Path(partial)).items():
                print(f"{name}.onnx: deviates from the model by {deviation:.1e} at most")
        else:
            about |= portable.write_weights(model.module, nodes, Path(partial))
        write_atomically(Path(partial) / "model.json", json.dumps(about, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
        for file in Path(partial).iterdir():
            file.rename(folder / file.name)
    print(f"files: {printable(str(folder))}")


if __name__ == "__main__":
    one_line_errors(main)
