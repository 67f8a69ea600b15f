"""PSNR, SSIM, sharpness and the common ELBO of a run's best checkpoint on the test split.

python scripts/score_test_split.py RUN [data.root=DIR]
"""

import sys
from typing import cast

import torch

import flowergen
from flowergen.config.build import build_datamodule
from flowergen.config.command import one_line_errors
from flowergen.modules.running_means import RunningMeans
from flowergen.modules.vae import VAEModule
from flowergen.modules.vae_gan import VAEGANModule


def main() -> None:
    """Print them, one a line."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    model = flowergen.load(sys.argv[1])
    config = model.config
    for argument in sys.argv[2:]:
        if argument.startswith("data.root="):
            config["data"]["root"] = argument.partition("=")[2]
    data = build_datamodule(config)
    data.setup()
    module, means = cast(VAEModule | VAEGANModule, model.module), RunningMeans()
    with torch.inference_mode():
        for batch in data.test_dataloader():
            means.update(module.scores(data.on_after_batch_transfer(batch, 0)))
    for name, value in module.summarise(means.compute()).items():
        print(f"test/{name:<20} {value:,.4f}")


if __name__ == "__main__":
    one_line_errors(main)
