"""Export of a trained model for other programs: its weights, or ONNX graphs that are checked against the model."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor, nn

from flowergen.diffusion.schedule import DiscreteSchedule
from flowergen.errors import UserError
from flowergen.modules.image_model import ImageModel
from flowergen.modules.pretrained import PretrainedAutoencoder
from flowergen.randomness import normal, uniform

TOLERANCE = 1e-4  # of a graph's outputs, relative to the largest one if it exceeds 1, as float32 has no more digits
CHECK_BATCH_SIZE = 3  # size of the larger batch that a graph is checked with
# config keys that define the networks; the others are for training
NETWORK_KEYS = (
    "_target_", "channels", "latent_dim", "norm", "activation", "residual_blocks", "latent", "blocks", "pretrained", "network",
    "kind", "config",  # of a pretrained autoencoder
)  # fmt: skip


class Part(nn.Module):
    """A part of a model as a module, whose graph holds only the weights of that part.

    Args:
        model: a model that has the part.
        name: see ``networks``.
    """

    def __init__(self, model: ImageModel, name: str):
        super().__init__()
        self.net = networks(model)[name]
        self._model = [model]  # in a list, so not a submodule


class Encode(Part):
    """Encode pictures to the posterior, whatever the network's own pixel range."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (N, C, H, W) in [0, 1] to mean and logvar, (N, C, h, w) each."""
        mean, logvar = self._model[0].encode(x)
        return mean, logvar


class Decode(Part):
    """Decode latents to pictures."""

    def forward(self, z: Tensor) -> tuple[Tensor]:
        """Map (N, C, h, w) to (N, C, H, W) in [0, 1]."""
        return (self._model[0].decode(z),)


class Denoise(Part):
    """Apply the denoiser unchanged."""

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> tuple[Tensor]:
        """Map (N, C, h, w), (N,) times and (N,) int64 labels, K for no class, to (N, C, h, w)."""
        return (self.net(x, t, label),)


class Graph(NamedTuple):
    """A model part to export as an ONNX file.

    Attributes:
        name: name of the part.
        net: module that returns a tuple.
        inputs: test inputs by name.
        outputs: output names, distinct from those of operations in the graph.
    """

    name: str
    net: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: Sequence[str]


def networks(model: ImageModel) -> dict[str, nn.Module]:
    """Return the networks of a model of any family, with averaged weights if available.

    Returns:
        ``encoder`` and ``decoder``; for a diffusion model, its ``denoiser`` and those of its autoencoder, if it has one.

    Raises:
        UserError: a user-defined model has no such parts.
    """
    if model.denoising_model:
        return {**(networks(model.autoencoder) if model.autoencoder else {}), "denoiser": model.denoising_model.inference_net}
    if isinstance(model, PretrainedAutoencoder):
        return {name: model.parts(name) for name in ("encoder", "decoder")}
    found = {name: getattr(model.inference_net, name, None) for name in ("encoder", "decoder")}
    if not all(isinstance(net, nn.Module) for net in found.values()):
        raise UserError(
            f"{type(model).__name__} has no known parts to export: its inference_net needs the attributes encoder and decoder"
        )
    return found  # type: ignore[return-value]


def describe(model: ImageModel, class_names: Sequence[str]) -> dict[str, Any]:
    """Return what a program needs to know about a model of any family besides its files; docs/export.md explains each key."""
    about: dict[str, Any] = {
        "image_size": model.picture_shape.image_size,
        "image_channels": model.picture_shape.channels,
        "pixel_range": [0, 1] if model.autoencoder else [-1, 1],
        "latent_shape": list(model.latent_shape),
        "class_names": list(class_names),
    }
    if not (diffusion := model.denoising_model):
        return about
    schedule, sampling = diffusion.schedule, diffusion.sampling
    return about | {
        "num_classes": diffusion.num_classes,
        "latent_mean": diffusion.latent_mean.tolist(),
        "latent_std": diffusion.latent_std.tolist(),
        "objective": diffusion.objective,
        "num_timesteps": schedule.num_timesteps,
        "alpha_bar": schedule.alpha_bar.tolist() if isinstance(schedule, DiscreteSchedule) else None,
        "guidance_scale": sampling.guidance_scale,
        "levels": [list(level) for level in schedule.levels(sampling.steps)],
    }


def write_weights(model: ImageModel, nodes: Mapping[str, Mapping[str, Any]], folder: Path) -> dict[str, Any]:
    """Write a ``.safetensors`` file for each network.

    Args:
        model: a model of any family.
        nodes: configs that the model was built from: ``model`` and, for diffusion on latents, ``autoencoder``.
        folder: output folder.

    Returns:
        Data to rebuild the networks: their configs and, for built-in autoencoders, pixel range and decoder activation.
    """
    for name, net in networks(model).items():
        weights = save({key: value.contiguous() for key, value in net.state_dict().items()})
        (folder / f"{name}.safetensors").write_bytes(weights)
    autoencoder = model.autoencoder
    about: dict[str, Any] = {name: {key: node[key] for key in NETWORK_KEYS if key in node} for name, node in nodes.items()}
    if autoencoder and autoencoder.decoder_activation:
        about |= {"pixel_range": list(autoencoder.pixel_range), "decoder_activation": autoencoder.decoder_activation}
    return about


def graphs(model: ImageModel) -> Iterator[Graph]:
    """Yield the parts of a model, in eval mode on the CPU, with seeded inputs; raises the errors of ``networks``."""
    x = uniform((CHECK_BATCH_SIZE, *model.picture_shape), seed=0, step=0, purpose="export picture")
    z = normal((CHECK_BATCH_SIZE, *model.latent_shape), seed=0, step=0, purpose="export latent")
    autoencoder = model.autoencoder
    if diffusion := model.denoising_model:
        num_classes = diffusion.num_classes
        t = diffusion.schedule.times(uniform((CHECK_BATCH_SIZE,), seed=0, step=0, purpose="export time"))
        label = torch.tensor([num_classes, 0, num_classes // 2])
        yield Graph("denoiser", Denoise(diffusion, "denoiser").eval(), {"x": z, "t": t, "label": label}, ["prediction"])
        z = diffusion.unscaled(z)
    if autoencoder:
        yield Graph("encoder", Encode(autoencoder, "encoder").eval(), {"x": x}, ["posterior_mean", "posterior_logvar"])
        yield Graph("decoder", Decode(autoencoder, "decoder").eval(), {"z": z}, ["picture"])


def write_onnx(model: ImageModel, folder: Path) -> dict[str, float]:
    """Write an ``.onnx`` file for each part, run it in onnxruntime and compare the outputs with the model's.

    Args:
        model: a model of any family, in eval mode, on the CPU.
        folder: output folder.

    Returns:
        The largest absolute deviation by part, see ``deviation``.

    Raises:
        UserError: the export fails, or a graph's outputs deviate from the model's.
    """
    found = {}
    for graph in graphs(model):
        path = folder / f"{graph.name}.onnx"
        try:
            export_graph(graph, path)
            found[graph.name], largest = deviation(graph, path)
        except OSError:  # a full disk
            raise
        except Exception as error:  # the exporter and the runtime may raise anything for a user's own network
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"{path.name} cannot be made from {type(model).__name__} ({reason}): use format=safetensors"
            ) from error
        if not found[graph.name] <= TOLERANCE * max(1.0, largest):
            raise UserError(
                f"{path.name} deviates by {found[graph.name]:.1e} from the model, whose outputs are {largest:.1e} at most: "
                "nothing was written; use format=safetensors, or another checkpoint if this one has diverged"
            )
    return found


def export_graph(graph: Graph, path: Path) -> None:
    """Export a graph to an ONNX file for any batch size."""
    batch = torch.export.Dim("N")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about the exporter's internals
        program = torch.onnx.export(
            graph.net,
            tuple(graph.inputs.values()),
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_shapes=tuple({0: batch} for _ in graph.inputs),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces, which are larger than a small network and contain local paths
    program.save(path, external_data=False)


@torch.inference_mode()
def deviation(graph: Graph, path: Path) -> tuple[float, float]:
    """Measure how far the outputs of a graph's file in onnxruntime deviate from the model's, for batch sizes 1 and 3.

    Returns:
        The largest absolute deviation, NaN if any value is NaN, and the largest absolute output of the model.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    deviations, values = [], []
    for rows in (1, CHECK_BATCH_SIZE):
        inputs = {name: tensor[:rows] for name, tensor in graph.inputs.items()}
        outputs = session.run(list(graph.outputs), {name: tensor.numpy() for name, tensor in inputs.items()})
        for expected, actual in zip(graph.net(*inputs.values()), outputs, strict=True):
            deviations.append((expected - torch.from_numpy(actual)).abs().max())
            values.append(expected.abs().max())
    return torch.stack(deviations).max().item(), torch.stack(values).max().item()
