"""Benchmark sampling against diffusers, with a network of the same size and the same scheduler, steps and guidance.

    python scripts/benchmark_sample.py run=RUN                           a latent diffusion run with a UNet or a DiT
    python scripts/benchmark_sample.py run=RUN steps=25 num=32 rounds=5

Arms, which alternate within each round; all start from keyed noise and end with decoded pictures in [0, 1]:

* flowergen: ``module.denoise`` as ``flowergen.sample`` calls it;
* compiled: the same with ``torch.compile`` of the denoiser;
* scheduler: flowergen's network with diffusers' DPMSolverMultistepScheduler in a plain loop, so that only the loops differ;
* diffusers: the same loop with diffusers' UNet2DModel or DiTTransformer2DModel of the same size, randomly initialised.

The pictures of the first and the third arm are compared, to verify that both compute the same.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from benchmark_data import hardware, ratio, spread
from diffusers import DiTTransformer2DModel, DPMSolverMultistepScheduler, UNet2DModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import flowergen
from flowergen.app.command import one_line_errors
from flowergen.errors import UserError
from flowergen.modules.latent_ddpm import LatentDDPMModule, SamplingSettings
from flowergen.nn.dit import DiT
from flowergen.nn.unet import UNet
from flowergen.randomness import normal_per_sample

Network = Callable[[Tensor, Tensor, Tensor], Tensor]


def ours(module: LatentDDPMModule, label: Tensor, sampling: SamplingSettings) -> Tensor:
    """Sample pictures with flowergen's loop."""
    return module.decode(module.denoised(range(len(label)), label, 0, sampling))


def theirs(module: LatentDDPMModule, network: Network, label: Tensor, sampling: SamplingSettings) -> Tensor:
    """Sample pictures with diffusers' scheduler."""
    prediction = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}[module.objective]
    alpha_bar = module.schedule.alpha_bar  # type: ignore[attr-defined]
    beta = 1 - alpha_bar / torch.cat((alpha_bar.new_ones(1), alpha_bar[:-1]))
    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=len(beta), trained_betas=beta.tolist(), prediction_type=prediction, timestep_spacing="trailing",
        final_sigmas_type="zero", lower_order_final=False,
    )  # fmt: skip
    scheduler.set_timesteps(sampling.steps)
    shape = module.latent_shape
    x = normal_per_sample(range(len(label)), shape, seed=0, purpose="prior").to(module.device)
    both = torch.cat((label, torch.full_like(label, module.num_classes))).to(module.device)
    for t in scheduler.timesteps:
        output = network(torch.cat((x, x)), torch.full((len(both),), float(t), device=x.device), both)
        conditional, unconditional = output.chunk(2)
        output = unconditional + sampling.guidance_scale * (conditional - unconditional)
        x = scheduler.step(output, t, x).prev_sample
    return module.decode(module.unscaled(x))


def network_of_diffusers(net: nn.Module, settings: dict[str, Any], shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Build a UNet2DModel with the channels, blocks and attention of ours, or a DiTTransformer2DModel of ours' depth and width.

    ``settings`` are ``model.network`` of the run, and ``shape`` is (C, h, w) of the latents.
    """
    other: nn.Module
    if isinstance(net, UNet):
        widths = [settings["channels"] * multiplier for multiplier in settings["multipliers"]]
        attends = [shape[1] // 2**level in settings["attention_resolutions"] for level in range(len(widths))]
        other = UNet2DModel(
            sample_size=shape[1], in_channels=shape[0], out_channels=shape[0], block_out_channels=widths,
            layers_per_block=settings["num_blocks"], attention_head_dim=settings["head_channels"],
            down_block_types=["AttnDownBlock2D" if on else "DownBlock2D" for on in attends],
            up_block_types=["AttnUpBlock2D" if on else "UpBlock2D" for on in reversed(attends)],
            norm_num_groups=min(16, settings["channels"]), resnet_time_scale_shift="scale_shift",
            num_class_embeds=num_classes + 1,
        )  # fmt: skip
    else:
        other = DiTTransformer2DModel(
            sample_size=shape[1], in_channels=shape[0], out_channels=shape[0], patch_size=settings["patch_size"],
            num_layers=settings["depth"], num_attention_heads=settings["num_heads"],
            attention_head_dim=settings["hidden_size"] // settings["num_heads"], num_embeds_ada_norm=num_classes,
        )  # fmt: skip
    sizes = [sum(p.numel() for p in module.parameters()) for module in (net, other)]
    print(f"  parameters: ours {sizes[0]:,}, diffusers' {sizes[1]:,}")
    return other.eval()


@torch.inference_mode()
def main() -> None:
    """Run all arms and print the results."""
    own = {"run": "", "steps": "25", "num": "32", "rounds": "5"}
    own |= {key: value for key, _, value in (a.partition("=") for a in sys.argv[1:])}
    if not own["run"]:
        sys.exit(__doc__)
    steps, num, rounds = int(own["steps"]), int(own["num"]), int(own["rounds"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    loaded = flowergen.load(own["run"], device)
    module = loaded.module
    if not isinstance(module, LatentDDPMModule) or module.objective == "flow" or not isinstance(module.net, UNet | DiT):
        raise UserError(
            f"run={own['run']}: this benchmark is for a UNet or DiT with a discrete schedule (objective eps, v, x0)"
        )
    sampling = replace(module.sampling, sampler="dpmpp_2m", steps=steps, guidance_scale=2.0, guidance_interval=[0.0, 1.0])
    label = torch.arange(num) % max(1, module.num_classes)
    print(hardware() + (f", {torch.cuda.get_device_name()}" if device == "cuda" else ""))
    print(f"{num} pictures of {module.picture_shape}, {steps} steps of DPM-Solver++(2M), guidance 2, float32, TF32 off")
    if loaded.config["trainer"]["channels_last"]:
        module.to(memory_format=torch.channels_last)
    other = network_of_diffusers(module.net, loaded.config["model"]["network"], module.latent_shape, module.num_classes)
    other = other.to(device)

    def call_other(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return other(x, t, label).sample

    net = module.inference_net
    arms: dict[str, Callable[[], Tensor]] = {
        "flowergen": partial(ours, module, label, sampling),
        "scheduler": partial(theirs, module, net, label, sampling),
        "diffusers": partial(theirs, module, call_other, label, sampling),
    }
    pictures = {name: arm() for name, arm in arms.items()}
    difference = (pictures["flowergen"] - pictures["scheduler"]).abs().max().item()
    print(f"  largest difference of a pixel value between our loop and diffusers' scheduler: {difference:.1e}")
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, arm in arms.items():
            rates[name].append(_rate(arm, num, device))
    net.compile()
    start = time.perf_counter()
    arms["flowergen"]()
    print(f"  compiled: the first call took {time.perf_counter() - start:.1f} s")
    rates["compiled"] = []
    for _ in range(rounds):  # the network stays compiled from here on, so the baseline is measured again
        rates["compiled"].append(_rate(arms["flowergen"], num, device))
        rates["diffusers"].append(_rate(arms["diffusers"], num, device))

    print("\nsamples/s")
    for name, values in rates.items():
        against = rates["diffusers"][rounds:] if name == "compiled" else rates["diffusers"][: len(values)]
        print(f"  {name:<12} {spread(values)}   {ratio(values, against)} of diffusers")
    x, t = torch.randn(2 * num, *module.latent_shape, device=device), torch.zeros(2 * num, device=device)
    with FlopCounterMode(display=False) as counter:
        module.net(x, t, torch.cat((label, label)).to(device))
    flops = steps * counter.get_total_flops() / num
    print(f"\n{flops / 1e9:.1f} GFLOP of the denoiser a picture, {flops * max(rates['flowergen']) / 1e9:,.0f} GFLOP/s")


def _rate(arm: Callable[[], Tensor], num: int, device: str) -> float:
    start = time.perf_counter()
    arm()
    if device == "cuda":
        torch.cuda.synchronize()
    return num / (time.perf_counter() - start)


if __name__ == "__main__":
    one_line_errors(main)
