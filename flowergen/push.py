"""``python -m flowergen.push``: export a run for sharing, and upload it to the Hugging Face hub."""

import sys
from importlib.util import find_spec
from typing import Any

from flowergen.app.command import one_line_errors
from flowergen.app.command_schema import Push
from flowergen.app.plain_command import output_folder, read_command_line
from flowergen.errors import UserError, one_line, printable
from flowergen.runs.run_folder import RunFolder, find_run
from flowergen.runs.stages import path_of_previous_stage, previous_stage


def main() -> None:
    """Check the options, write the files, upload them if a repository is given, and print where they are."""
    config = read_command_line("push", Push, sys.argv[1:])
    run, checkpoint = find_run(config["run"])
    if config["format"] == "diffusers":
        if config["space"]:
            raise UserError("space=true is for format=flowergen, as the page is flowergen's: leave one of them out")
        _check_diffusers(run)
    if config["repo"] and find_spec("huggingface_hub") is None:
        raise UserError(f"repo={config['repo']} needs huggingface_hub: pip install 'flowergen[hub]'")

    import flowergen
    from flowergen.runs.published import publish

    model = flowergen.load(config["run"])
    space = f"flowergen[app]=={flowergen.__version__}" if config["space"] else None
    with output_folder(config["out"], run.path / "shared") as folder:
        publish(run, checkpoint, model, folder, config["format"], config["repo"], space)
    print(f"files: {printable(str(folder))}")
    if not config["repo"]:
        print("before sharing them, complete README.md: licence, training data, intended use")
        return
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        kind: dict[str, Any] = {"repo_type": "space"} if config["space"] else {}
        sdk: dict[str, Any] = {"space_sdk": "gradio"} if config["space"] else {}
        address = api.create_repo(config["repo"], private=config["private"], exist_ok=True, **kind, **sdk)
        api.upload_folder(repo_id=config["repo"], folder_path=folder, **kind)
    except Exception as error:  # huggingface_hub, requests and the file system raise various exceptions
        raise UserError(
            f"repo={config['repo']}: the upload failed ({type(error).__name__}: {one_line(error)[:300]}): log in with "
            f"'hf auth login', or upload {folder} by other means"
        ) from error
    print(f"repository: {address}; complete its README.md: licence, training data, intended use")


def _check_diffusers(run: RunFolder) -> None:
    """Refuse a run whose config is not diffusion on the latents of diffusers' autoencoder with one of flowergen's networks."""
    stored = run.read_config()
    model, previous = stored["model"], previous_stage(stored)
    if previous and previous[0] == "diffusion":
        reason = "is the run of a decoder, which belongs to an autoencoder of flowergen's own"
    elif model.get("_target_") != "flowergen.modules.latent_ddpm.LatentDDPMModule":
        reason = "is not latent diffusion (model=latent_ddpm)"
    elif previous is None:
        reason = "is diffusion on pixels, without an autoencoder"
    elif (
        RunFolder(path_of_previous_stage(previous, run)).read_config()["model"].get("_target_")
        != "flowergen.modules.pretrained.PretrainedAutoencoder"
    ):
        reason = "has an autoencoder of flowergen's own, and none of diffusers (autoencoder=hub:OWNER/NAME)"
    elif model["network"].get("_target_") not in ("flowergen.nn.dit.DiT", "flowergen.nn.unet.UNet"):
        reason = "has a network of your own, and neither DiT nor UNet"
    else:
        return
    raise UserError(f"format=diffusers: {printable(str(run.path))} {reason}: use format=flowergen")


if __name__ == "__main__":
    one_line_errors(main)
