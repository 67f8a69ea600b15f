"""Schema of the config of every command except ``train``, as dataclasses; see ``config.schema``. Imports nothing heavy."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from flowergen.config.rules import (
    BELOW_ONE,
    EXISTING_FOLDER,
    EXISTING_PATH,
    NON_EMPTY,
    PATH,
    TEXT,
    Eta,
    Extractor,
    Guidance,
    Interval,
    Natural,
    Rule,
    SamplerName,
    Seed,
    Steps,
    between,
    sides_between,
)
from flowergen.config.schema import Paths

REPOSITORY = Rule(lambda name: len(parts := name.split("/")) == 2 and all(parts), "must be OWNER/NAME")


@dataclass
class Split:
    """conf/split.yaml."""

    source: Annotated[str, PATH, EXISTING_FOLDER]
    train: Annotated[str, PATH, NON_EMPTY]
    test: Annotated[str, PATH, NON_EMPTY]
    val: Annotated[str, PATH, NON_EMPTY] | None
    test_size: Annotated[float, Rule(lambda size: 0 < size < 1, "must be above 0 and below 1")]
    val_size: Annotated[float, BELOW_ONE]
    seed: Seed
    mode: Literal["copy", "link", "move"]


@dataclass
class RunDataOptions:
    """Options of a command for the data of a run."""

    root: Annotated[str, EXISTING_FOLDER] | None


@dataclass
class RunPathOptions:
    """Options of a command for the paths of a run."""

    cache_dir: str | None


@dataclass
class Denoising:
    """Options of a command for a diffusion model; see conf/sample.yaml."""

    sampler: SamplerName | None
    steps: Steps | None
    guidance_scale: Guidance | None
    guidance_interval: Interval | None
    eta: Eta | None


@dataclass
class Vary(Denoising):
    """conf/vary.yaml."""

    run: Annotated[str, PATH, NON_EMPTY]
    mode: Literal["variations", "reconstruct", "interpolate", "traverse", "arithmetic", "img2img", "inpaint", "invert"]
    image: Annotated[str, PATH, EXISTING_PATH] | None
    split: Literal["train", "val", "test"] | None
    num_pictures: Natural
    num: Annotated[int, between(1, 10_000)]
    scale: Annotated[float, Rule(lambda scale: 0 < scale <= 1e8, "must be above 0 and at most 1e8")] | Literal["auto"]
    num_dims: Natural
    plus: Annotated[str, TEXT] | None
    minus: Annotated[str, TEXT] | None
    strength: Annotated[float, between(0, 1)]
    mask: Annotated[str, PATH, EXISTING_PATH] | None
    classes: Annotated[str, TEXT] | None
    seed: Seed
    out: Annotated[str, PATH, NON_EMPTY] | None
    data: RunDataOptions
    paths: RunPathOptions


@dataclass
class Sampling(Denoising):
    """Sampling options of a command; see conf/sample.yaml."""

    source: Literal["auto", "prior", "mixture"]
    seed: Seed
    batch_size: Annotated[int, between(1, 100_000)] | Literal["auto"]
    out: Annotated[str, PATH, NON_EMPTY] | None


@dataclass
class Sample(Sampling):
    """conf/sample.yaml."""

    run: Annotated[str, PATH, NON_EMPTY]
    classes: Annotated[str, TEXT] | None
    num_per_class: Annotated[int, between(1, 1_000_000)]
    num: Annotated[int, between(1, 10_000_000)] | None
    class_frequencies: Literal["train", "uniform"]
    precision: Literal["float32", "trained"]
    format: Literal["png", "npz"]
    denoising: bool


@dataclass
class EvaluationPathOptions(RunPathOptions):
    """Options of evaluate for the paths of a run."""

    weights_dir: str | None


@dataclass
class Evaluate(Sampling):
    """conf/evaluate.yaml."""

    run: Annotated[str, PATH, NON_EMPTY] | None
    generated: Annotated[str, PATH, EXISTING_FOLDER] | None
    reference: Annotated[str, PATH, EXISTING_FOLDER] | None
    train: Annotated[str, PATH, EXISTING_FOLDER] | None
    image_size: Annotated[Any, sides_between(16, 1024)] | None
    compare: Annotated[str, TEXT, NON_EMPTY] | None
    extractor: Annotated[Extractor, TEXT]
    num_samples: Annotated[int, between(4, 10_000_000)] | None
    repeats: Annotated[int, between(1, 100)]
    data: RunDataOptions
    paths: EvaluationPathOptions


@dataclass
class Latents:
    """conf/latents.yaml."""

    run: Annotated[str, PATH, NON_EMPTY]
    split: Literal["train", "val", "test"] | None
    num: Annotated[int, between(1, 100_000)]
    seed: Seed
    out: Annotated[str, PATH, NON_EMPTY] | None
    data: RunDataOptions
    paths: RunPathOptions


@dataclass
class Export:
    """conf/export.yaml."""

    run: Annotated[str, PATH, NON_EMPTY]
    format: Literal["onnx", "safetensors"]
    out: Annotated[str, PATH, NON_EMPTY] | None


@dataclass
class Push:
    """conf/push.yaml."""

    run: Annotated[str, PATH, NON_EMPTY]
    format: Literal["flowergen", "diffusers"]
    repo: Annotated[str, REPOSITORY] | None
    private: bool
    space: bool
    out: Annotated[str, PATH, NON_EMPTY] | None


@dataclass
class Explore:
    """conf/explore.yaml."""

    run: Annotated[str, PATH, NON_EMPTY]
    port: Annotated[int, between(1, 65535)]


@dataclass
class Report:
    """conf/report.yaml."""

    sweep: Annotated[str, PATH, EXISTING_FOLDER] | None
    run: Annotated[str, PATH, NON_EMPTY] | None
    out: Annotated[str, PATH, NON_EMPTY] | None


@dataclass
class Doctor:
    """conf/doctor.yaml."""

    paths: Paths
