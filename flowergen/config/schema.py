"""Schema of a config: the type and range of every key, as dataclasses. Imports nothing heavy.

A dataclass without defaults describes a node whose YAML file sets every key; a field with a default may be omitted. Values
are in ``conf/``, their meanings in the comments there and in the docstring of the class that ``_target_`` names. A node whose
``_target_`` is not that of a dataclass, such as a user's own model, is not checked until it is instantiated.
"""

from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, get_args

from flowergen.config import schema_data
from flowergen.config.rules import (
    BELOW_ONE,
    NON_EMPTY,
    Batches,
    Count,
    Eta,
    Extractor,
    Guidance,
    ImageChannels,
    Interval,
    Name,
    Natural,
    NonNegative,
    Positive,
    Rule,
    SamplerName,
    Seed,
    Steps,
    StepsOrShare,
    above,
    all_between,
    between,
    sides_between,
)
from flowergen.duration import is_duration

MAY_BE_LEFT_OUT: Any = None  # an omitted key is not passed to the constructor, whose default applies

BETAS = Rule(lambda b: len(b) == 2 and min(b) >= 0 and max(b) < 1, "must be two numbers, at least 0 and below 1")
PIXEL_RANGE = Rule(lambda value: list(value) in ([0, 1], [-1, 1]), "must be [0,1] or [-1,1]")
Widths = Annotated[list[int], all_between(1, 65536)]

PretrainedKind = Literal["AutoencoderKL", "AutoencoderTiny", "AutoencoderDC"]  # of diffusers


@dataclass
class Paths:
    """conf/paths."""

    data_dir: str
    cache_dir: str
    weights_dir: str
    output_dir: str


@dataclass
class Optimizer:
    """Adam and AdamW."""

    _target_: Literal["torch.optim.Adam", "torch.optim.AdamW"]
    _partial_: Literal[True]
    lr: Annotated[float, Rule(lambda lr: 0 < lr <= 100, "must be above 0 and at most 100")]
    betas: Annotated[list[float], BETAS] = MAY_BE_LEFT_OUT
    eps: Positive = MAY_BE_LEFT_OUT
    weight_decay: NonNegative = MAY_BE_LEFT_OUT
    amsgrad: bool = MAY_BE_LEFT_OUT
    fused: bool = MAY_BE_LEFT_OUT


@dataclass(kw_only=True)  # so that fields without a default may follow those of this class
class _Model:
    _target_: str
    image_size: Any  # each model has its own range
    seed: Seed
    optimizer: Optimizer
    lr_schedule: Literal["constant", "cosine"]
    lr_warmup_steps: StepsOrShare
    ema_decay: Annotated[float, BELOW_ONE] | None
    image_channels: ImageChannels = MAY_BE_LEFT_OUT


@dataclass
class VAE(_Model):
    """conf/model/vae.yaml."""

    _target_: Literal["flowergen.modules.vae.VAEModule"]
    image_size: Annotated[Any, sides_between(28, 256)]
    channels: Widths
    latent_dim: Annotated[int, between(1, 65536)]
    norm: Literal["batch", "group", "none"]
    activation: Literal["relu", "leaky_relu", "silu", "gelu"]
    residual_blocks: Annotated[int, between(0, 16)]
    pixel_range: Annotated[list[int], PIXEL_RANGE]
    reconstruction: Literal["mse", "bce", "l1", "gaussian"]
    sigma: Literal["optimal", "learned"]
    reconstruction_reduction: Literal["sum", "mean"]
    divergence: Literal["kl", "mmd"]
    beta: NonNegative
    beta_warmup_steps: StepsOrShare


@dataclass
class Latent:
    """model.latent of a VAE-GAN."""

    kind: Literal["spatial", "flat"]
    factor: Literal["auto", 1, 2, 4, 8, 16, 32]
    channels: Annotated[int, between(1, 1024)]
    dim: Annotated[int, between(1, 65536)]
    patch_size: Literal[1, 2]


@dataclass
class Blocks:
    """model.blocks of a VAE-GAN."""

    channels: Widths
    num_blocks: Annotated[list[int], all_between(0, 16)]
    norm: Literal["layer", "group", "batch", "none"]
    activation: Literal["relu", "leaky_relu", "silu", "gelu"]
    channel_attention: bool
    spatial_attention: bool
    self_attention: bool
    stem_px: Literal[1, 2]


@dataclass
class Discriminator:
    """model.discriminator of a VAE-GAN."""

    kind: Literal["patch", "projected"]
    channels: Annotated[int, between(1, 4096)]
    num_halvings: Annotated[int, between(1, 6)] | Literal["auto"]
    norm: Literal["group", "spectral"]


@dataclass
class VAEGAN(_Model):
    """conf/model/vae_gan.yaml."""

    _target_: Literal["flowergen.modules.vae_gan.VAEGANModule"]
    image_size: Annotated[Any, sides_between(28, 512)]
    latent: Latent
    blocks: Blocks
    reconstruction: Literal["l1", "mse"]
    beta: NonNegative
    beta_warmup_steps: StepsOrShare
    perceptual: Literal["efficientnet", "vgg16", "lpips", "discriminator", "none"]
    perceptual_weight: NonNegative
    perceptual_layers: Annotated[list[Literal["relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"]], NON_EMPTY]
    weights_dir: str
    adversarial: Literal["hinge", "non_saturating"]
    adversarial_weight: NonNegative
    adaptive_weight_max: Positive
    adversarial_start_steps: StepsOrShare
    adversarial_ramp_steps: StepsOrShare
    diff_augment: bool
    discriminator: Discriminator
    class_weight: NonNegative
    center_weight: NonNegative
    center_margin: NonNegative
    guard: Literal["warn", "rollback"]
    guard_margin: Positive
    discriminator_optimizer: Optimizer
    pretrained: Annotated[
        Any,
        Rule(
            lambda node: node is None or (isinstance(node, dict) and set(node) == {"kind", "config", "source"}),
            "is set by init=: leave it out",
        ),
    ] = MAY_BE_LEFT_OUT
    freeze: Literal["none", "encoder"] = MAY_BE_LEFT_OUT


@dataclass
class UNet:
    """conf/model/network/unet.yaml."""

    _target_: Literal["flowergen.nn.unet.UNet"]
    _partial_: Literal[True]
    channels: Annotated[int, between(4, 4096)]
    multipliers: Widths
    num_blocks: Annotated[int, between(1, 16)]
    attention_resolutions: Annotated[list[int], Rule(lambda sides: all(side > 0 for side in sides), "must be numbers above 0")]
    head_channels: Annotated[int, between(1, 4096)]


@dataclass
class DiT:
    """conf/model/network/dit.yaml."""

    _target_: Literal["flowergen.nn.dit.DiT"]
    _partial_: Literal[True]
    patch_size: Annotated[int, between(1, 64)]
    hidden_size: Annotated[int, between(8, 8192)]
    depth: Annotated[int, between(1, 128)]
    num_heads: Annotated[int, between(1, 1024)]
    block: Literal["original", "modern"]


@dataclass
class Sampling:
    """model.sampling of a diffusion model."""

    sampler: SamplerName
    steps: Steps
    guidance_scale: Guidance
    guidance_interval: Interval
    eta: Eta


@dataclass
class LatentDDPM(_Model):
    """conf/model/latent_ddpm.yaml."""

    _target_: Literal["flowergen.modules.latent_ddpm.LatentDDPMModule"]
    image_size: Annotated[Any, sides_between(8, 512)]
    network: Annotated[
        Any, Rule(lambda network: isinstance(network, dict), "must be a group of keys: set model/network=unet or dit")
    ]
    objective: Literal["eps", "v", "x0", "flow"]
    schedule: Literal["linear", "cosine"]
    num_timesteps: Annotated[int, between(10, 100_000)]
    zero_terminal_snr: bool
    time_sampling: Literal["uniform", "logit_normal"]
    weighting: Literal["none", "min_snr"]
    min_snr_gamma: Positive
    class_dropout: Annotated[float, between(0, 1)]
    alignment_weight: NonNegative
    latent_cache: bool
    sampling: Sampling


@dataclass
class Decoder(_Model):
    """conf/model/decoder.yaml."""

    _target_: Literal["flowergen.modules.decoder.DecoderModule"]
    image_size: Annotated[Any, sides_between(28, 512)]
    num_latents: Annotated[int, between(2, 1_000_000)]
    reconstruction_weight: NonNegative
    perceptual_weight: NonNegative
    adversarial_weight: Positive
    channels: Annotated[int, between(1, 4096)]
    discriminator_optimizer: Optimizer
    ema_decay: Annotated[float, BELOW_ONE]


@dataclass
class Trainer:
    """conf/trainer: those of Lightning's arguments that make sense here, and some of ours."""

    _target_: Literal["lightning.pytorch.Trainer"]
    accelerator: str
    devices: int | str | list[int]
    num_nodes: Natural
    strategy: str
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"]
    max_epochs: Annotated[int, between(1, 10**6)]
    limit_train_batches: Annotated[int | float, above(0)]
    limit_val_batches: Batches
    check_val_every_n_epoch: Natural
    accumulate_grad_batches: Natural
    gradient_clip_val: Annotated[float, above(0)] | None
    log_every_n_steps: Natural
    deterministic: bool | Literal["warn"]
    channels_last: bool
    num_threads: Annotated[int, between(1, 1024)] | None
    on_nonfinite: Literal["stop", "skip"]
    budget: Annotated[Any, Rule(is_duration, "must be a time, such as 30s, 10min or 1h30min")] | None
    compile: bool | Literal["cuda_graphs"]
    gradient_clip_algorithm: Literal["norm", "value"] = MAY_BE_LEFT_OUT
    fast_dev_run: bool | int = MAY_BE_LEFT_OUT
    profiler: str | None = MAY_BE_LEFT_OUT
    detect_anomaly: bool = MAY_BE_LEFT_OUT
    benchmark: bool | None = MAY_BE_LEFT_OUT
    sync_batchnorm: bool = MAY_BE_LEFT_OUT


@dataclass
class Target:
    """A node without options."""

    _target_: Literal[
        "flowergen.callbacks.tensorboard.TensorBoard",
        "flowergen.callbacks.metrics_csv.MetricsCsv",
        "flowergen.callbacks.loss_plot.LossPlot",
        "flowergen.callbacks.run_page.RunPage",
        "flowergen.callbacks.progress.Progress",
        "flowergen.callbacks.hparams.FinalMetrics",
    ]


@dataclass
class Wandb:
    """conf/logger/wandb.yaml."""

    _target_: Literal["flowergen.callbacks.trackers.Wandb"]
    project: Name
    entity: str | None
    offline: bool


@dataclass
class Mlflow:
    """conf/logger/mlflow.yaml."""

    _target_: Literal["flowergen.callbacks.trackers.Mlflow"]
    experiment_name: Name
    tracking_uri: str | None


@dataclass
class Trackio:
    """conf/logger/trackio.yaml."""

    _target_: Literal["flowergen.callbacks.trackers.Trackio"]
    project: Name
    space_id: str | None
    private: bool


@dataclass
class ImageGrids:
    """callbacks.images."""

    _target_: Literal["flowergen.callbacks.images.ImageGrids"]
    every_epochs: Natural
    num_reconstructions: Natural
    num_samples: Natural


@dataclass
class PeriodicEvaluation:
    """callbacks.evaluation."""

    _target_: Literal["flowergen.callbacks.evaluation.PeriodicEvaluation"]
    every_epochs: Count
    num_samples: Annotated[int, between(4, 1_000_000)]
    extractor: Extractor
    weights_dir: str
    metric: Literal["fid", "kid", "precision", "recall", "class_accuracy"]


@dataclass
class Checkpoints:
    """callbacks.checkpoints."""

    _target_: Literal["flowergen.callbacks.checkpoints.Checkpoints"]
    checkpoint_every_steps: Count
    keep_every_epochs: Count


@dataclass
class Sweep:
    """sweep."""

    skip_finished: bool


@dataclass
class Pruner:
    """hydra.sweeper.pruner of Optuna."""

    n_startup_trials: Count
    n_warmup_epochs: Count


@dataclass
class OptunaSearch:
    """conf/hydra/sweeper/optuna.yaml."""

    _target_: str
    metric: Name
    direction: Literal["maximize", "minimize"]
    n_trials: Natural
    seed: Annotated[int, between(0, 2**31)]
    pruner: Pruner
    params: Any  # checked like typed overrides


@dataclass
class Train:
    """conf/train.yaml. ``Any`` is described by its ``_target_``."""

    name: Name
    seed: Seed
    resume: str | None
    init: str | None
    autoencoder: str | None
    carry_autoencoder: bool
    diffusion: str | None
    sweep: Sweep
    paths: Paths
    model: Any
    data: Any
    trainer: Trainer
    logger: dict[str, dict[str, Any] | None] | None
    callbacks: dict[str, dict[str, Any] | None] | None


BY_TARGET: dict[str, type] = {  # the dataclasses of both files, by the classes that they describe
    target: schema
    for schema in [*globals().values(), *vars(schema_data).values()]
    if isinstance(schema, type) and is_dataclass(schema)
    for field in fields(schema)
    if field.name == "_target_"
    for target in get_args(field.type)
}
