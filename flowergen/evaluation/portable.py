"""A trained model as files for other programs: its weights, or ONNX graphs that are held against the model itself."""

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
from flowergen.modules.latent_ddpm import LatentDDPMModule
from flowergen.modules.vae import VAEModule
from flowergen.modules.vae_gan import VAEGANModule
from flowergen.randomness import normal, uniform

TOLERANCE = 1e-4  # of a graph's answers; above 1, of the largest of them, as float32 has no more digits there
NUM_TRIED = 3  # rows of the larger batch that a graph is tried with
# what the networks are built from; the rest of a model's config is for training
NETWORK_KEYS = ("_target_", "channels", "latent_dim", "norm", "activation", "residual_blocks", "latent", "blocks", "network")


class Encode(nn.Module):
    """Pictures in [0, 1] to the posterior, whatever range the network itself works in.

    Args:
        model: an autoencoder.
    """

    def __init__(self, model: ImageModel):
        super().__init__()
        self.net = networks(model)["encoder"]
        self._model = [model]  # out of sight: the graph holds the encoder's weights alone

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, S, S) in [0, 1] -> mean and logvar, (N, C, h, w) each."""
        mean, logvar = self._model[0].encode(x)
        return mean, logvar


class Decode(nn.Module):
    """Latents to pictures in [0, 1].

    Args:
        model: an autoencoder.
    """

    def __init__(self, model: ImageModel):
        super().__init__()
        self.net = networks(model)["decoder"]
        self._model = [model]

    def forward(self, z: Tensor) -> tuple[Tensor]:
        """(N, C, h, w) -> (N, 3, S, S) in [0, 1]."""
        return (self._model[0].decode(z),)


class Denoise(nn.Module):
    """The denoiser as it is.

    Args:
        model: a diffusion.
    """

    def __init__(self, model: LatentDDPMModule):
        super().__init__()
        self.net = model.inference_net

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> tuple[Tensor]:
        """(N, C, h, w), (N,) times and (N,) int64 labels, K for no class -> (N, C, h, w)."""
        return (self.net(x, t, label),)


class Graph(NamedTuple):
    """What becomes an ONNX file.

    Attributes:
        name: of the part.
        net: gives a tuple.
        inputs: by name, rows to try it with.
        outputs: their names, none that an operation in the graph may have.
    """

    name: str
    net: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: Sequence[str]


def networks(model: ImageModel) -> dict[str, nn.Module]:
    """The networks that encode, decode and denoise, with averaged weights where there are such.

    Args:
        model: of any family.

    Returns:
        ``encoder`` and ``decoder``, of a diffusion those of its autoencoder, if it has one, and ``denoiser``.

    Raises:
        UserError: a model of the user's own, which has no such parts.
    """
    if isinstance(model, LatentDDPMModule):
        return {**(networks(model.autoencoder) if model.autoencoder else {}), "denoiser": model.inference_net}
    found = {name: getattr(model.inference_net, name, None) for name in ("encoder", "decoder")}
    if not all(isinstance(net, nn.Module) for net in found.values()):
        raise UserError(
            f"{type(model).__name__} has no known parts to export: its inference_net needs the attributes encoder and decoder"
        )
    return found  # type: ignore[return-value]


def describe(model: ImageModel, class_names: Sequence[str]) -> dict[str, Any]:
    """What a program must know of the model beside its files.

    Args:
        model: of any family.
        class_names: by label.

    Returns:
        Plain data; docs/export.md says what each key is for.
    """
    about: dict[str, Any] = {
        "image_size": model.image_size,
        "pixel_range": [0, 1] if model.autoencoder else [-1, 1],
        "latent_shape": list(model.latent_shape),
        "class_names": list(class_names),
    }
    if not isinstance(model, LatentDDPMModule):
        return about
    schedule, sampling = model.schedule, model.sampling
    return about | {
        "num_classes": model.num_classes,
        "latent_mean": model.latent_mean.tolist(),
        "latent_std": model.latent_std.tolist(),
        "objective": model.objective,
        "num_timesteps": schedule.num_timesteps,
        "alpha_bar": schedule.alpha_bar.tolist() if isinstance(schedule, DiscreteSchedule) else None,
        "guidance_scale": sampling.guidance_scale,
        "levels": [list(level) for level in schedule.levels(sampling.steps)],
    }


def write_weights(model: ImageModel, nodes: Mapping[str, Mapping[str, Any]], folder: Path) -> dict[str, Any]:
    """A ``.safetensors`` file for each network.

    Args:
        model: of any family.
        nodes: the configs ``model`` and, of a diffusion on latents, ``autoencoder``, that it was built from.
        folder: to write into.

    Returns:
        For those who rebuild the networks: what from, and, of an autoencoder of ours, the pixels that they see themselves.
    """
    for name, net in networks(model).items():
        weights = save({key: value.contiguous() for key, value in net.state_dict().items()})
        (folder / f"{name}.safetensors").write_bytes(weights)
    autoencoder = model.autoencoder
    about: dict[str, Any] = {name: {key: node[key] for key in NETWORK_KEYS if key in node} for name, node in nodes.items()}
    if isinstance(autoencoder, VAEModule):
        activation = "sigmoid" if autoencoder.pixel_min == 0 else "tanh"
        about |= {"pixel_range": [autoencoder.pixel_min, autoencoder.pixel_max], "decoder_activation": activation}
    elif isinstance(autoencoder, VAEGANModule):
        about |= {"pixel_range": [-1, 1], "decoder_activation": "clamp"}
    return about


def graphs(model: ImageModel) -> Iterator[Graph]:
    """The parts of a model, and seeded inputs.

    Args:
        model: of any family, in eval mode, on the CPU.

    Raises:
        UserError: see ``networks``.
    """
    x = uniform((NUM_TRIED, 3, model.image_size, model.image_size), seed=0, step=0, purpose="export picture")
    z = normal((NUM_TRIED, *model.latent_shape), seed=0, step=0, purpose="export latent")
    autoencoder = model.autoencoder
    if isinstance(model, LatentDDPMModule):
        num_classes = model.num_classes
        t = model.schedule.times(uniform((NUM_TRIED,), seed=0, step=0, purpose="export time"))
        label = torch.tensor([num_classes, 0, num_classes // 2])
        yield Graph("denoiser", Denoise(model).eval(), {"x": z, "t": t, "label": label}, ["prediction"])
        z = model.unscaled(z)
    if autoencoder:
        yield Graph("encoder", Encode(autoencoder).eval(), {"x": x}, ["posterior_mean", "posterior_logvar"])
        yield Graph("decoder", Decode(autoencoder).eval(), {"z": z}, ["picture"])


def write_onnx(model: ImageModel, folder: Path) -> dict[str, float]:
    """An ``.onnx`` file for each part, run in onnxruntime and compared.

    Args:
        model: of any family, in eval mode, on the CPU.
        folder: to write into.

    Returns:
        By part, the largest absolute deviation, see ``deviation``.

    Raises:
        UserError: the exporter cannot, or a graph answers otherwise than the model.
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
                f"{path.name} cannot be made of {type(model).__name__} ({reason}): use format=safetensors"
            ) from error
        if not found[graph.name] <= TOLERANCE * max(1.0, largest):
            raise UserError(
                f"{path.name} deviates by {found[graph.name]:.1e} from the model, whose answers are {largest:.1e} at most: "
                "nothing was kept; use format=safetensors, or another checkpoint if this one has diverged"
            )
    return found


def export_graph(graph: Graph, path: Path) -> None:
    """Write it, for any batch size.

    Args:
        graph: of which part.
        path: of the file.
    """
    batch = torch.export.Dim("N")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on the exporter's own affairs
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
        node.metadata_props.clear()  # stack traces: larger than a small network, and with the names of our folders
    program.save(path, external_data=False)


@torch.inference_mode()
def deviation(graph: Graph, path: Path) -> tuple[float, float]:
    """How far onnxruntime's answers are from ours, for a batch of 1 and one of 3.

    Args:
        graph: of which part.
        path: of its file.

    Returns:
        The largest absolute deviation of a value, NaN where there is a NaN, and the largest absolute value of ours.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    deviations, values = [], []
    for rows in (1, NUM_TRIED):
        inputs = {name: tensor[:rows] for name, tensor in graph.inputs.items()}
        theirs = session.run(list(graph.outputs), {name: tensor.numpy() for name, tensor in inputs.items()})
        for our, their in zip(graph.net(*inputs.values()), theirs, strict=True):
            deviations.append((our - torch.from_numpy(their)).abs().max())
            values.append(our.abs().max())
    return torch.stack(deviations).max().item(), torch.stack(values).max().item()
