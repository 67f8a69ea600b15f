"""``python -m flowergen`` and the console script ``flowergen``."""

import difflib
import os
import signal
import sys

import flowergen

COMMANDS = {
    "train": "train a model: python -m flowergen.train model=vae data=flowers102",
    "sample": "generate pictures by class, with their denoising: python -m flowergen.sample run=RUN classes=all",
    "vary": "variations, reconstructions and latent walks of given pictures: python -m flowergen.vary run=RUN image=FILE",
    "evaluate": "the metric card of a run, or of any pictures: python -m flowergen.evaluate run=RUN",
    "latents": "analyse a latent space (maps, class separation, posterior collapse): python -m flowergen.latents run=RUN",
    "explore": "a trained model in the browser (generate, edit, mix, map, follow): python -m flowergen.explore run=RUN",
    "export": "export a model as ONNX, for programs without torch, or as weights: python -m flowergen.export run=RUN",
    "push": "share a run, as files or on the Hugging Face hub: python -m flowergen.push run=RUN repo=OWNER/NAME",
    "report": "write a page about a run or a sweep: python -m flowergen.report run=RUN",
    "split": "split a folder of pictures into subsets: python -m flowergen.split source=DIR train=DIR test=DIR",
    "doctor": "check what training needs: what is available, what is missing, and how to get it",
}


def listing() -> str:
    """List the commands, one per line."""
    lines = [f"  python -m flowergen.{name:<10} {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        ["flowergen: learn to generate images from a few thousand pictures", "", *lines, "", "Each command has --help."]
    )


def console() -> None:
    """Replace ``flowergen X ...`` by ``python -m flowergen.X ...``, so that a distributed run can relaunch the same command."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader such as head may close the pipe early
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in COMMANDS:
        os.execv(sys.executable, [sys.executable, "-m", f"flowergen.{name}", *arguments])
    if name in ("-h", "--help"):
        print(listing())
        return
    if name == "--version":
        print(f"flowergen {flowergen.__version__}")
        return
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    print(
        f"error: there is no command {name}: {f'did you mean {near[0]}?' if near else 'run flowergen to list them'}",
        file=sys.stderr,
    )
    sys.exit(2)


if __name__ == "__main__":
    console()
