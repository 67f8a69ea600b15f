"""Create docs/flowers.png from a run on procedural flowers: rows of pictures, their reconstructions, and samples.

python scripts/readme_picture.py RUN docs/flowers.png
"""

import sys

import torch

import flowergen
from flowergen.app.command import one_line_errors
from flowergen.runs.build import build_datamodule
from flowergen.viz.grids import image_grid, write_png

COLUMNS, ZOOM = 12, 2


def main() -> None:
    """Draw and write the picture."""
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    model = flowergen.load(sys.argv[1])
    if model.config["data"]["name"] != "procedural":
        raise flowergen.UserError("only drawn flowers go into the README: other pictures may be under copyright")
    data = build_datamodule(model.config)
    data.setup()
    x = data.validation_images(COLUMNS)
    rows = torch.cat([x, model.decode(model.encode(x).mean), model.sample(2 * COLUMNS)])
    rows = rows.repeat_interleave(ZOOM, -1).repeat_interleave(ZOOM, -2)
    write_png(sys.argv[2], image_grid(rows, columns=COLUMNS))


if __name__ == "__main__":
    one_line_errors(main)
