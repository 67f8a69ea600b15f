"""Benchmark the metrics of the metric card against torch-fidelity; needs no data and downloads nothing.

    python scripts/benchmark_metrics.py                                    everything
    python scripts/benchmark_metrics.py parts=distances,copies rounds=5    some of it
    python scripts/benchmark_metrics.py num=256 size=64                    pictures of the first part

Parts; the two sides alternate within each round:

* pictures: FID and KID from N procedural flowers and N others, end to end, with one shared file of random Inception weights;
* distances: the same two distances from given features (vectors x 2048);
* copies: the two nearest of 8,189 training pictures for each of 10,000 samples at 64 px, without and with mirror images.

As the machine may be shared, the copy search has a second column: CPU seconds of all threads over the number of threads.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch_fidelity
from benchmark_data import hardware, ratio, seconds, spread
from torch import Tensor
from torch.utils.data import Subset
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from flowergen.data.procedural import MAX_CLASSES, draw_flower
from flowergen.evaluation.extractors import INCEPTION_URL, in_batches, load_extractor
from flowergen.metrics.nearest import two_nearest
from flowergen.metrics.set_distances import frechet_distance, gaussian, kernel_distance

FID, KID = "frechet_inception_distance", "kernel_inception_distance_mean"
NUM_CANDIDATES, NUM_QUERIES, COPY_SIZE = 8189, 10_000, 64  # pictures in Oxford 102 Flowers; samples of a card; px


class Untrained(FeatureExtractorInceptionV3):
    """torch-fidelity's network without its required weights file."""

    def load_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing, which keeps the initial weights."""


def store_random_weights(path: Path) -> None:
    """Write random weights in the format that both sides load."""
    torch.save({}, path)
    network = Untrained("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
    generator = torch.Generator().manual_seed(0)
    for weight in network.parameters():
        if weight.dim() == 4:
            torch.nn.init.kaiming_normal_(weight, generator=generator)
    torch.save(network.state_dict(), path)


def features_of(pictures: Tensor, weights: Path, batch_size: int) -> np.ndarray:
    """Return features (N, 2048) of uint8 pictures (N, 3, H, W), as the metric card computes them."""
    extractor = load_extractor("inception", weights.parent, torch.device("cpu"))
    return np.concatenate([features for features, _ in in_batches(extractor, pictures.numpy(), batch_size)])


def ours(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Return FID and KID of features by flowergen's functions."""
    return frechet_distance(gaussian(x), gaussian(y)), kernel_distance(x, y)


def theirs(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Return FID and KID of features by torch-fidelity's functions."""
    fid = fid_statistics_to_metric(fid_features_to_statistics(x), fid_features_to_statistics(y), verbose=False)[FID]
    return fid, kid_features_to_metric(x, y, kid_subsets=1, kid_subset_size=len(x), verbose=False)[KID]


def ours_end_to_end(pictures: Tensor, weights: Path, batch_size: int) -> tuple[float, float]:
    """Return FID and KID of two sets of pictures (2, N, 3, H, W)."""
    x, y = (features_of(half, weights, batch_size) for half in pictures)
    return ours(x, y)


def theirs_end_to_end(pictures: Tensor, weights: Path, batch_size: int) -> tuple[float, float]:
    """Return the same by torch-fidelity end to end, without worker processes because the pictures are in memory."""
    values = torch_fidelity.calculate_metrics(
        **{f"input{number}": Subset(cast(Any, half), range(len(half))) for number, half in enumerate(pictures, start=1)},
        fid=True, kid=True, kid_subsets=1, kid_subset_size=pictures.shape[1], batch_size=batch_size,
        feature_extractor_weights_path=str(weights), save_cpu_ram=True, cuda=False, verbose=False,
    )  # fmt: skip
    return values[FID], values[KID]


def compare(name: str, arms: tuple[Callable[[], tuple[float, float]], Callable[[], tuple[float, float]]], rounds: int) -> None:
    """Print the values of both sides, their relative difference and both times."""
    times: tuple[list[float], list[float]] = [], []
    values = [(0.0, 0.0), (0.0, 0.0)]
    for _ in range(rounds):
        for side, arm in enumerate(arms):
            start = time.perf_counter()
            values[side] = arm()
            times[side].append(time.perf_counter() - start)
    print(f"\n{name}")
    for metric, a, b in zip(("FID", "KID"), *values, strict=True):
        print(f"  {metric}: ours {a:.7g}, torch-fidelity {b:.7g}, relative difference {abs(a / b - 1):.1e}")
    print(f"  seconds: ours {spread(times[0], 2)}, torch-fidelity {spread(times[1], 2)}")
    print(f"  time of ours / torch-fidelity: {ratio(times[0], times[1])}")


def compare_pictures(num: int, size: int, batch_size: int, rounds: int) -> None:
    """Run the first part: half of the species against the other half at half brightness.

    A random network responds to little except brightness: without the difference, KID would be 1e-4, the limit of
    torch-fidelity's float32 precision.
    """
    flowers = np.stack([draw_flower(0, index, size, MAX_CLASSES) for index in range(2 * num)])
    flowers = flowers[np.argsort(np.arange(2 * num) % MAX_CLASSES, kind="stable")].transpose(0, 3, 1, 2)
    pictures = torch.from_numpy(np.ascontiguousarray(flowers)).reshape(2, num, 3, size, size)
    pictures[1] //= 2
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder, INCEPTION_URL.rpartition("/")[2])
        store_random_weights(weights)
        arms = [partial(side, pictures, weights, batch_size) for side in (ours_end_to_end, theirs_end_to_end)]
        compare(f"2 x {num} pictures of {size} px, end to end, {rounds} rounds", (arms[0], arms[1]), rounds)


def compare_distances(num: int, rounds: int) -> None:
    """Run the second part on correlated and non-negative features, which resemble Inception's."""
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((2048, 2048)) * np.arange(1, 2049) ** -0.5 / 4
    x, y = (np.abs(rng.standard_normal((num, 2048)) @ mixing * scale).astype(np.float32) for scale in (1, 1.2))
    arms = partial(ours, x, y), partial(theirs, torch.from_numpy(x), torch.from_numpy(y))
    compare(f"2 x {num} given features, {rounds} rounds", arms, rounds)


def time_the_copy_search(rounds: int) -> None:
    """Run the third part on noise, whose distances are the hardest to rank."""
    rng = np.random.default_rng(0)
    dim = 3 * COPY_SIZE * COPY_SIZE
    candidates, x = (rng.integers(0, 256, (num, dim), dtype=np.uint8) for num in (NUM_CANDIDATES, NUM_QUERIES))
    mirrored = np.ascontiguousarray(x.reshape(-1, 3, COPY_SIZE, COPY_SIZE)[..., ::-1]).reshape(x.shape)
    arms = {"without mirror images": [x], "with mirror images": [x, mirrored]}
    wall: dict[str, list[float]] = {name: [] for name in arms}
    cpu: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, queries in arms.items():
            start = time.process_time()
            wall[name].append(seconds(partial(two_nearest, queries, candidates)))
            cpu[name].append((time.process_time() - start) / torch.get_num_threads())
    sizes = f"{NUM_CANDIDATES:,} for each of {NUM_QUERIES:,} at {COPY_SIZE} px"
    print(f"\nthe two nearest of {sizes}, {rounds} rounds: seconds, and those of CPU per thread")
    for name in arms:
        print(f"  {name:<22} {spread(wall[name], 1)}   {spread(cpu[name], 1)}")


def main() -> None:
    """Run the chosen parts and print the results."""
    own = {
        "parts": "pictures,distances,copies",
        "num": "128",
        "size": "64",
        "batch_size": "32",
        "vectors": "2000",
        "rounds": "3",
    }
    given = {key: value for key, _, value in (argument.partition("=") for argument in sys.argv[1:])}
    if given.keys() - own.keys():
        sys.exit(__doc__)
    own |= given
    rounds = int(own["rounds"])
    print(hardware())
    if "pictures" in own["parts"]:
        compare_pictures(int(own["num"]), int(own["size"]), int(own["batch_size"]), rounds)
    if "distances" in own["parts"]:
        compare_distances(int(own["vectors"]), rounds)
    if "copies" in own["parts"]:
        time_the_copy_search(rounds)


if __name__ == "__main__":
    main()
