"""A classifier of one's own: trained once on the real pictures, it judges samples and needs no download."""

import io
import json
import logging
import math
import os
import sys
import time
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import load_file, save
from torch import Tensor

from flowergen.data.cache import built_once, sync
from flowergen.errors import UserError
from flowergen.modules.fingerprint import fingerprint
from flowergen.nn.classifier import Classifier, shrink
from flowergen.randomness import generator, initialisation

log = logging.getLogger(__name__)

RECIPE_VERSION = 1  # raise it when the network or its training changes
SEED = 0
BATCH_SIZE = 64
TRAINING_IMAGES = 160_000  # seen in all, whatever the size of the set, within the bounds of
FEWEST_EPOCHS, MOST_EPOCHS = 4, 200
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 0.05
WARM_UP = 0.2  # of the steps
CHECKPOINT_STEPS = 100  # at least, between two checkpoints: the epochs of small sets are short
LABEL_SMOOTHING = 0.1
CROP_SIDE = 0.75  # of the training crops, in sides of the picture
SMALLEST_AREA, WIDEST_ASPECT = 0.35, 4 / 3  # of what they show, in areas of the picture; width to height, or the reverse


@dataclass(frozen=True)
class TrainedClassifier:
    """A classifier and how good it is.

    Attributes:
        net: in eval mode, on the device: (N, 3, S, S) float32 in [0, 1] -> features (N, 256), logits (N, K).
        accuracy: on held-out pictures, in [0, 1]; nan where there are none.
        num_held_out: labelled held-out pictures that it was measured on.
        fingerprint: of its weights.
    """

    net: Classifier
    accuracy: float
    num_held_out: int
    fingerprint: str


def cached_classifier(
    name: str,
    images: np.ndarray,
    labels: np.ndarray,
    train_rows: np.ndarray,
    held_out_rows: np.ndarray,
    num_classes: int,
    identity: str,
    cache_dir: Path,
    device: torch.device | str,
) -> TrainedClassifier:
    """The classifier of a data set, trained once for every process and run; one that was interrupted goes on.

    Unlabelled pictures are left out. Weights, order and augmentation are functions of the pictures alone.

    Args:
        name: of the data set, for the folder's name and messages.
        images: (M, 3, S, S) uint8, the whole collection.
        labels: (M,) int64 class, -1 where unlabelled.
        train_rows: of the pictures to train on.
        held_out_rows: of those to measure the accuracy on.
        num_classes: K.
        identity: hash of pictures and labels.
        cache_dir: the folder of all caches.
        device: to train on and to leave the network on.

    Raises:
        UserError: no training picture is labelled, the disk is full, or the folder cannot be written.
    """
    train_rows, held_out_rows = (rows[labels[rows] >= 0] for rows in (train_rows, held_out_rows))
    if not len(train_rows):
        raise UserError(
            f"{name} has no labelled training picture to train a classifier on: "
            "sort the pictures into a folder for each class, or do without what needs a classifier"
        )
    rows_hash = blake2b(train_rows.tobytes() + b"/" + held_out_rows.tobytes(), digest_size=16).hexdigest()
    described = f"{RECIPE_VERSION}/{identity}/{images.shape[-1]}/{num_classes}/{rows_hash}"
    key = blake2b(described.encode(), digest_size=16).hexdigest()
    folder = cache_dir / f"{name}_classifier_{key[:16]}"
    checkpoint = folder.with_name(folder.name + ".epoch")  # beside it: the temporary folder of a killed process is wiped

    def open_() -> TrainedClassifier | None:
        if not folder.exists():
            return None
        try:
            meta = json.loads((folder / "meta.json").read_text())
            net = _untrained(num_classes)
            net.load_state_dict(load_file(folder / "weights.safetensors"))
            num_correct, num_held_out = int(meta["num_correct"]), int(meta["num_held_out"])
            found = (meta["key"], meta["fingerprint"], num_held_out)
            if found != (key, fingerprint(net), len(held_out_rows)):
                raise ValueError(f"not the expected classifier: {found}")
        except Exception as error:  # damaged bytes make json and safetensors raise whatever they please
            log.warning("%s is damaged (%s): training it again", folder, error)
            return None
        net = net.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
        accuracy = num_correct / num_held_out if num_held_out else math.nan
        return TrainedClassifier(net, accuracy, num_held_out, meta["fingerprint"])

    def build(temporary: Path) -> None:
        start = time.perf_counter()
        net = train(images, labels, train_rows, num_classes, checkpoint, key, device)
        num_correct = count_correct(net, images, labels, held_out_rows, device)
        meta = {
            "key": key,
            "fingerprint": fingerprint(net),
            "num_correct": num_correct,
            "num_held_out": len(held_out_rows),
        }
        weights = {key: value.contiguous().cpu() for key, value in net.state_dict().items()}
        for file_name, content in (("weights.safetensors", save(weights)), ("meta.json", json.dumps(meta).encode())):
            with open(temporary / file_name, "wb") as file:
                file.write(content)
                sync(file)
        checkpoint.unlink(missing_ok=True)
        seconds = time.perf_counter() - start
        judged = f"{num_correct / len(held_out_rows):.1%} of {len(held_out_rows):,}" if len(held_out_rows) else "none"
        log.info("trained it in %.0f s, held-out pictures that it classifies right: %s; into %s", seconds, judged, folder)

    return built_once(folder, open_, build, f"the weights of the classifier of {name}", num_bytes=60_000_000)


def train(
    images: np.ndarray,
    labels: np.ndarray,
    rows: np.ndarray,
    num_classes: int,
    checkpoint: Path,
    key: str,
    device: torch.device | str,
) -> Classifier:
    """Train a classifier from its checkpoint on, or from the start; on one machine, both end bit-equal.

    Args:
        images: (M, 3, S, S) uint8.
        labels: (M,) int64 class.
        rows: of the pictures to train on, all labelled.
        num_classes: K.
        checkpoint: file to go on from if it is there; written between epochs.
        key: what the checkpoint must be of.
        device: to train on.

    Returns:
        The network, in eval mode.
    """
    net = _untrained(num_classes).to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    num_epochs = min(max(round(TRAINING_IMAGES / len(rows)), FEWEST_EPOCHS), MOST_EPOCHS)
    steps_per_epoch = math.ceil(len(rows) / BATCH_SIZE)
    checkpoint_epochs = math.ceil(CHECKPOINT_STEPS / steps_per_epoch)
    first_epoch = 0
    state = _read_checkpoint(checkpoint, key)
    if state is not None:
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        first_epoch = state["epochs_done"]
    log.info(
        "training a classifier on %s pictures for %d epochs, once%s",
        f"{len(rows):,}",
        num_epochs,
        f"; going on after epoch {first_epoch}" if first_epoch else "",
    )
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("training", total=num_epochs * steps_per_epoch, completed=first_epoch * steps_per_epoch)
        for epoch in range(first_epoch, num_epochs):
            order = generator(SEED, epoch, "classifier order").permutation(rows)
            for batch, index in enumerate(np.array_split(order, steps_per_epoch)):
                step = epoch * steps_per_epoch + batch
                x = shrink(torch.from_numpy(images[index]).to(device).float().div_(255))
                label = torch.from_numpy(labels[index]).to(device)
                for group in optimizer.param_groups:
                    group["lr"] = LEARNING_RATE * one_cycle((step + 1) / (num_epochs * steps_per_epoch + 1))
                _, logits = net(augment(x, step))
                loss = F.cross_entropy(logits, label, label_smoothing=LABEL_SMOOTHING)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                progress.advance(task)
            if (epoch + 1) % checkpoint_epochs == 0 or epoch + 1 == num_epochs:
                state = {"key": key, "epochs_done": epoch + 1, "net": net.state_dict(), "optimizer": optimizer.state_dict()}
                _write_checkpoint(checkpoint, state)
    return net.eval()


def one_cycle(progress: float) -> float:
    """Factor of the learning rate: a linear rise, then a cosine's fall to 0 (Smith & Topin 2019, arXiv:1708.07120).

    Args:
        progress: of the training, in [0, 1].
    """
    if progress < WARM_UP:
        return progress / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def augment(x: Tensor, step: int) -> Tensor:
    """Cut a random part out of each picture, and mirror half of them (Szegedy et al. 2015, arXiv:1409.4842, section 6).

    The parts are smaller than the pictures: a network trained on such parts is at its best on whole pictures that are larger by
    a third or so, as things look as large in them (Touvron et al. 2019, arXiv:1906.06423), and takes half the time.

    Args:
        x: (N, 3, S, S) in [0, 1].
        step: of the training: equal steps draw equally.

    Returns:
        (N, 3, S', S') in [0, 1], S' = 3/4 S.
    """
    num, size = len(x), round(CROP_SIDE * x.shape[-1])
    draws = torch.from_numpy(generator(SEED, step, "classifier augmentation").random((5, num), dtype=np.float32))
    area = SMALLEST_AREA + (1 - SMALLEST_AREA) * draws[0]
    aspect = ((2 * draws[1] - 1) * math.log(WIDEST_ASPECT)).exp()
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)  # of the picture's
    right, down = (2 * draws[2] - 1) * (1 - width), (2 * draws[3] - 1) * (1 - height)  # in half sides
    mirrored = torch.where(draws[4] < 0.5, -width, width)
    zeros = torch.zeros(num)
    theta = torch.stack([mirrored, zeros, right, zeros, height, down], dim=1).view(num, 2, 3)
    positions = F.affine_grid(theta, [num, 3, size, size], align_corners=False).to(x.device)
    return F.grid_sample(x, positions, padding_mode="border", align_corners=False)


@torch.inference_mode()
def count_correct(net: Classifier, images: np.ndarray, labels: np.ndarray, rows: np.ndarray, device: torch.device | str) -> int:
    """How many pictures are classified right.

    Args:
        net: in eval mode.
        images: (M, 3, S, S) uint8.
        labels: (M,) int64 class.
        rows: of the pictures, all labelled.
        device: of the network.
    """
    num_correct = 0
    for first in range(0, len(rows), BATCH_SIZE):
        index = rows[first : first + BATCH_SIZE]
        _, logits = net(torch.from_numpy(images[index]).to(device).float().div_(255))
        num_correct += int((logits.argmax(1).cpu() == torch.from_numpy(labels[index])).sum())
    return num_correct


def _untrained(num_classes: int) -> Classifier:
    with initialisation(SEED):
        return Classifier(num_classes)


# ---- Checkpoints -----------------------------------------------------------------------------------------------------
def _read_checkpoint(path: Path, key: str) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if state["key"] != key:
            raise ValueError("it is of another training")
    except Exception as error:  # damaged bytes make torch raise whatever it pleases
        log.warning("%s is damaged (%s): training from the start", path, error)
        return None
    return state


def _write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    content = io.BytesIO()  # torch.save would turn the OSError of a full disk into something else
    torch.save(state, content)
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        file.write(content.getbuffer())
    os.replace(partial, path)
