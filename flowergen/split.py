"""``python -m flowergen.split``: divide a picture collection into train, val and test folders."""

import shlex
import sys
import warnings

from flowergen.app.command import one_line_errors
from flowergen.app.command_schema import Split
from flowergen.app.plain_command import read_command_line
from flowergen.data import split_dataset
from flowergen.errors import printable

SUBSET_WORDS = {"train": "training", "val": "validation", "test": "test"}


def main() -> None:
    """Split the pictures, and print where they are."""
    config = read_command_line("split", Split, sys.argv[1:])
    warnings.filterwarnings("ignore", module="PIL")  # damaged metadata of pictures that can be decoded
    split = split_dataset(**config)
    for line in split.unreadable:
        print(f"unreadable, left in place: {line}", file=sys.stderr)
    if split.num_others:
        print(f"{split.num_others} other {'file' if split.num_others == 1 else 'files'} left alone", file=sys.stderr)

    print(", ".join(f"{num} {SUBSET_WORDS[subset]} images" for subset, num in split.counts.items()))
    for subset, folder in split.folders.items():
        print(f"{subset:<6} {printable(str(folder))}")
    if split.root and str(split.root).isprintable():
        print(f"next   python -m flowergen.train data=image_folder {shlex.quote(f'data.root={split.root}')}")


if __name__ == "__main__":
    one_line_errors(main)
