"""``python -m flowergen.push``: write a run as it is shared, and upload it to the Hugging Face hub."""

import sys
from importlib.util import find_spec

from flowergen.app.command import one_line_errors
from flowergen.app.plain_command import output_folder, read_command_line
from flowergen.config.command_schema import Push
from flowergen.errors import UserError, one_line, printable
from flowergen.runs.run_folder import find_run


def main() -> None:
    """Check the options, write the files, upload them if a repository is given, and print where they are."""
    config = read_command_line("push", Push, sys.argv[1:])
    if config is None:
        return
    run, checkpoint = find_run(config["run"])
    if config["repo"] and find_spec("huggingface_hub") is None:
        raise UserError(f"repo={config['repo']} needs huggingface_hub: pip install 'flowergen[hub]'")

    import flowergen
    from flowergen.runs.published import publish

    model = flowergen.load(config["run"])
    with output_folder(config["out"], run.path / "shared") as folder:
        publish(run, checkpoint, model, folder, config["repo"])
    print(f"files: {printable(str(folder))}")
    if not config["repo"]:
        print("before sharing them, complete README.md: licence, training data, intended use")
        return
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        address = api.create_repo(config["repo"], private=config["private"], exist_ok=True)
        api.upload_folder(repo_id=config["repo"], folder_path=folder)
    except Exception as error:  # huggingface_hub, requests and the file system raise various exceptions
        raise UserError(
            f"repo={config['repo']}: the upload failed ({type(error).__name__}: {one_line(error)[:300]}): log in with "
            f"'hf auth login', or upload {folder} by other means"
        ) from error
    print(f"repository: {address}; complete its README.md: licence, training data, intended use")


if __name__ == "__main__":
    one_line_errors(main)
