import os
import re
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from flowergen.evaluation import sample_files
from flowergen.evaluation.latent_store import LatentStore
from flowergen.evaluation.pictures import to_uint8
from flowergen.evaluation.sample_files import HOLD_FRAMES, file_name, npz_writer, write_denoising, write_samples
from flowergen.evaluation.sampling import NO_CLASS, trajectory
from flowergen.modules.latent_ddpm import LatentDDPMModule
from flowergen.picture_shape import PictureShape
from tests.tiny_models import SIZE, diffusion

NAMES = ("daisy", "rose", "colt's foot")
SIX = PictureShape.of(6)


def samples(num: int, batch_size: int = 2, size: int = 6) -> Iterator[tuple[int, Tensor]]:
    """Pictures of one grey each; the red of their top left pixel is more than 1, that at the bottom right less than 0."""
    for first in range(0, num, batch_size):
        numbers = torch.arange(first, min(first + batch_size, num))
        x = ((10 * numbers + 5) / 255)[:, None, None, None].repeat(1, 3, size, size)
        x[:, 0, 0, 0], x[:, 0, -1, -1] = 1.7, -0.7
        yield first, x


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def raw(grid: np.ndarray, width: int = 6) -> np.ndarray:
    """The grid before its pictures, of this width, were enlarged to at least 128 px: each pixel became a square."""
    factor = -(-128 // width)
    pixels = grid[::factor, ::factor]
    np.testing.assert_array_equal(grid, pixels.repeat(factor, axis=0).repeat(factor, axis=1))
    return pixels


# -- the archive


def test_an_archive_holds_pictures_and_labels_as_numpy_reads_them(tmp_path: Path) -> None:
    """arr_0 (N, H, W, C) uint8 in the order of the samples, rounded and clamped; arr_1 (N,) int64. No pickles, no pictures/."""
    labels = torch.tensor([2, 2, 0, 0, 1])
    lines = write_samples(tmp_path, samples(5), labels, NAMES, SIX, 0, "npz")
    assert lines == ["5 pictures of 3 classes: grid.png and samples.npz"]
    assert everything(tmp_path) == ["grid.png", "samples.npz"]
    with np.load(tmp_path / "samples.npz", allow_pickle=False) as archive:
        assert sorted(archive) == ["arr_0", "arr_1"]
        pixels, classes = archive["arr_0"], archive["arr_1"]
    assert (pixels.shape, pixels.dtype, classes.dtype) == ((5, 6, 6, 3), np.uint8, np.int64)
    assert classes.tolist() == labels.tolist()
    np.testing.assert_array_equal(pixels[:, 2, 3], np.arange(5, 55, 10)[:, None].repeat(3, 1))
    assert (pixels[:, 0, 0, 0] == 255).all()
    assert (pixels[:, -1, -1, 0] == 0).all()
    assert zipfile.ZipFile(tmp_path / "samples.npz").testzip() is None


def test_colours_and_sides_are_not_mixed_up(tmp_path: Path) -> None:
    """(n, C, H, W) becomes (n, H, W, C), rows first, in the archive and in single pictures alike."""
    x = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = np.stack([np.moveaxis((255 * image.numpy()).round().astype(np.uint8), 0, -1) for image in x])
    for file_format in ("npz", "png"):
        write_samples(tmp_path, iter([(0, x)]), torch.tensor([1, 1]), NAMES, PictureShape.of(4), 0, file_format)
    np.testing.assert_array_equal(np.load(tmp_path / "samples.npz")["arr_0"], expected)
    for number, pixels in enumerate(expected):
        np.testing.assert_array_equal(read(tmp_path / "pictures" / f"seed0_class001_rose_0000{number}.png"), pixels)


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_may_be_grey_and_need_not_be_square(channels: int, tmp_path: Path) -> None:
    """Files of grey pictures are grey; the grid is in colour, with equal values."""
    x = torch.rand(3, channels, 4, 6, generator=torch.Generator().manual_seed(0))
    shape, pixels = PictureShape.of((4, 6), channels), to_uint8(x)
    for file_format in ("npz", "png"):
        write_samples(tmp_path, iter([(0, x)]), torch.full((3,), NO_CLASS), (), shape, 0, file_format)
    np.testing.assert_array_equal(np.load(tmp_path / "samples.npz")["arr_0"], pixels.transpose(0, 2, 3, 1))
    for number, image in enumerate(pixels):
        with Image.open(tmp_path / "pictures" / f"seed0_0000{number}.png") as file:
            assert (file.mode, file.size) == ("L" if channels == 1 else "RGB", (6, 4))
            np.testing.assert_array_equal(np.atleast_3d(np.asarray(file)), image.transpose(1, 2, 0))
    grid = raw(np.asarray(Image.open(tmp_path / "grid.png")))
    assert grid.shape == (10, 14, 3)
    np.testing.assert_array_equal(grid[:4, 8:14], np.broadcast_to(pixels[1].transpose(1, 2, 0), (4, 6, 3)))


def test_what_breaks_off_leaves_no_archive(tmp_path: Path) -> None:
    """Nor a part of one; an older one stays as it is."""

    def broken() -> Iterator[tuple[int, Tensor]]:
        yield from samples(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_samples(tmp_path, broken(), torch.tensor([0, 0, 1]), NAMES, SIX, 0, "npz")
    assert everything(tmp_path) == []
    (tmp_path / "samples.npz").write_bytes(b"older")
    with pytest.raises(KeyboardInterrupt):
        write_samples(tmp_path, broken(), torch.tensor([0, 0, 1]), NAMES, SIX, 0, "npz")
    assert everything(tmp_path) == ["samples.npz"]
    assert (tmp_path / "samples.npz").read_bytes() == b"older"


class FullDisk:
    """A file on a disk that has no room left."""

    def __init__(self, file: Any):
        self.file = file

    def write(self, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@pytest.mark.parametrize("when", ["pictures", "labels"])
def test_a_disk_that_fills_up_leaves_no_part_of_an_archive(when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where there is no room to end the file properly; it is closed, so that nothing is left to be reported."""
    opened: list[Any] = []

    class Archive(zipfile.ZipFile):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            opened.append(self)

    def write_until_full() -> None:
        pixels = np.zeros((1, 6, 6, 3), dtype=np.uint8)
        with npz_writer(tmp_path / "samples.npz", torch.tensor([0, 1]), SIX) as append:
            append(pixels)
            if when == "labels":
                append(pixels)
            opened[0].fp = FullDisk(opened[0].fp)
            if when == "pictures":
                append(pixels)

    monkeypatch.setattr(zipfile, "ZipFile", Archive)
    with pytest.raises(OSError, match="No space"):
        write_until_full()
    assert everything(tmp_path) == []
    assert opened[0].fp is None


# -- single pictures and the grid


def test_every_picture_has_a_file_that_says_seed_class_and_number(tmp_path: Path) -> None:
    lines = write_samples(tmp_path, samples(5, batch_size=3), torch.tensor([2, 2, 0, 0, 1]), NAMES, SIX, 7, "png")
    assert lines == ["5 pictures of 3 classes: grid.png and pictures/"]
    names = ["class000_daisy_00002", "class000_daisy_00003", "class001_rose_00004"]
    names += ["class002_colts_foot_00000", "class002_colts_foot_00001"]
    assert everything(tmp_path) == ["grid.png", *(f"pictures/seed7_{name}.png" for name in names)]
    for name in names:
        assert (read(tmp_path / "pictures" / f"seed7_{name}.png")[3, 3] == 10 * int(name[-5:]) + 5).all()


def test_the_grid_has_a_row_of_sixteen_at_most_for_each_class(tmp_path: Path) -> None:
    """Classes in the order of their first sample, samples in theirs, also where classes take turns."""
    labels = torch.tensor([1] * 2 + [0] * 20 + [1])
    write_samples(tmp_path, samples(23, batch_size=5), labels, NAMES, SIX, 0, "npz")
    grid = read(tmp_path / "grid.png")
    margin = grid.shape[1] - 22 * (16 * 8 - 2)
    assert margin > 0
    pixels = raw(grid[:, margin:])
    assert pixels.shape[0] == 2 * 8 - 2
    expected = [[0, 1, 22], list(range(2, 18))]  # 10 * 22 + 5 = 225
    for row, numbers in enumerate(expected):
        middles = pixels[8 * row + 3, 3::8, 0].tolist()
        assert middles == [10 * number + 5 for number in numbers] + [255] * (16 - len(numbers))
    assert (grid[:, : margin - 1].min(axis=(1, 2)) < 128).any(), "a label stands in front"


def test_without_classes_the_grid_is_square_and_no_name_speaks_of_one(tmp_path: Path) -> None:
    lines = write_samples(tmp_path, samples(9, batch_size=4), torch.full((9,), NO_CLASS), (), SIX, 3, "png")
    assert lines == ["9 pictures: grid.png and pictures/"]
    assert everything(tmp_path) == ["grid.png", *(f"pictures/seed3_0000{number}.png" for number in range(9))]
    grid = raw(read(tmp_path / "grid.png"))
    assert grid.shape == (22, 22, 3)
    assert grid[3::8, 3::8, 0].flatten().tolist() == [10 * number + 5 for number in range(9)]


def test_a_grid_of_very_many_pictures_stays_small(tmp_path: Path) -> None:
    labels = torch.full((300,), NO_CLASS)
    write_samples(tmp_path, ((i, torch.zeros(100, 3, 2, 2)) for i in (0, 100, 200)), labels, (), PictureShape.of(2), 0, "npz")
    assert raw(read(tmp_path / "grid.png"), width=2).shape == (16 * 4 - 2, 16 * 4 - 2, 3)


HOSTILE = (
    "../../etc/passwd",
    'a/b\\c:d*e?f"g<h>i|j',
    "..",
    "",
    "line\nbreak\0and nul",
    "-rf $(touch x); `y`",
    "con",
    "x" * 500,
    "Ä" * 300,
    "日本の花" * 100,
    "𠀋" * 100,  # four bytes each
)


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_the_name_of_a_class_cannot_lead_out_of_the_folder_or_be_too_long(number: int, tmp_path: Path) -> None:
    """Letters, digits and underscores, and 255 bytes with all that is added; the greatest seed there is."""
    seed = 2**64 - 1
    name = file_name(seed, number, HOSTILE)
    assert re.fullmatch(rf"seed{seed}_class{number:03d}_\w*", name)
    assert len(os.fsencode(f"{name}_00000.png.partial")) <= 255
    write_samples(tmp_path / "out", samples(1), torch.tensor([number]), HOSTILE, SIX, seed, "png")
    assert everything(tmp_path) == ["out/grid.png", f"out/pictures/{name}_00000.png"]


def test_classes_of_the_same_letters_have_files_of_their_own(tmp_path: Path) -> None:
    """Also where upper and lower case are one: the number of the class tells them apart."""
    names = ("a b", "a/b", "A_B", "a'b")
    write_samples(tmp_path, samples(4), torch.arange(4), names, SIX, 0, "png")
    files = [name.casefold() for name in everything(tmp_path / "pictures")]
    assert len(set(files)) == 4


def test_names_of_files_are_readable() -> None:
    names = ["bird of paradise", "colt's foot", "hard-leaved pocket orchid"]
    assert [file_name(3, label, names) for label in range(3)] == [
        "seed3_class000_bird_of_paradise",
        "seed3_class001_colts_foot",
        "seed3_class002_hard_leaved_pocket_orchid",
    ]
    assert file_name(3, NO_CLASS, names) == "seed3"


# -- the way of a sample


def kept() -> LatentStore:
    latents = torch.randn(12, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    return LatentStore(latents, torch.arange(12) % 3, torch.full((3,), 4), None)


def denoising(folder: Path, model: LatentDDPMModule, steps: int, store: LatentStore | None, labels: list[int]) -> list[str]:
    settings = replace(model.sampling, steps=steps)
    numbers = [4 * k for k in range(len(labels))]
    return write_denoising(folder, model, settings, numbers, torch.tensor(labels), NAMES, 7, store, 2)


def frames_of(path: Path) -> list[np.ndarray]:
    with Image.open(path) as gif:
        frames = []
        for number in range(getattr(gif, "n_frames", 1)):
            gif.seek(number)
            frames.append(np.asarray(gif.convert("RGB")).astype(int))
    return frames


def test_a_gif_shows_every_step_from_noise_to_sample_and_stays_at_its_end(tmp_path: Path) -> None:
    """steps + 1 frames and ten more, x_t on the left, the guess on the right: both halves end at the sample itself."""
    model = diffusion()
    lines = denoising(tmp_path, model, 12, kept(), [1, 2])
    assert lines[0].startswith("denoising/: ")
    assert "12 steps" in lines[0]
    stems = ["seed7_class001_rose_00000", "seed7_class002_colts_foot_00004"]
    assert everything(tmp_path) == [
        *sorted(f"denoising/{stem}.{kind}" for stem in stems for kind in ("gif", "png")),
        "denoising_path.png",
    ]
    x_t, x0_hat = trajectory(model, [0, 4], torch.tensor([1, 2]), 7, replace(model.sampling, steps=12))
    for row, stem in enumerate(stems):
        with Image.open(tmp_path / "denoising" / f"{stem}.gif") as gif:
            assert gif.info["loop"] == 0
            assert gif.size == (2 * SIZE, SIZE)
            assert sum(_durations(gif)) == 100 * (12 + 1 + HOLD_FRAMES)
            assert HOLD_FRAMES == 10
        frames = frames_of(tmp_path / "denoising" / f"{stem}.gif")
        with torch.no_grad():
            decoded = [(255 * model.decode(z)).permute(0, 2, 3, 1).numpy() for z in (x_t[row], x0_hat[row])]
        for frame, number in ((frames[0], 0), (frames[-1], 12)):  # a palette of 256 colours is all that a GIF has
            for half, pictures in ((frame[:, :SIZE], decoded[0]), (frame[:, SIZE:], decoded[1])):
                assert np.abs(half - pictures[number]).mean() < 8
        assert np.abs(frames[-1][:, :SIZE] - frames[-1][:, SIZE:]).mean() < 3


def _durations(gif: Image.Image) -> Iterator[int]:
    """In ms; Pillow may join equal frames into one that stays longer."""
    for number in range(getattr(gif, "n_frames", 1)):
        gif.seek(number)
        yield gif.info["duration"]


@pytest.mark.parametrize(("steps", "columns"), [(3, 4), (8, 9), (20, 9)])
def test_a_strip_shows_x_t_above_the_guesses_from_the_noise_to_the_sample(steps: int, columns: int, tmp_path: Path) -> None:
    model = diffusion()
    denoising(tmp_path, model, steps, None, [1])
    strip = read(tmp_path / "denoising" / "seed7_class001_rose_00000.png").astype(float)
    assert strip.shape == (2 * SIZE + 2, columns * (SIZE + 2) - 2, 3)
    x_t, x0_hat = trajectory(model, [0], torch.tensor([1]), 7, replace(model.sampling, steps=steps))
    with torch.no_grad():
        rows = [model.decode(path[0]).permute(0, 2, 3, 1).numpy() * 255 for path in (x_t, x0_hat)]
    for row, pictures in enumerate(rows):
        for column, step in ((0, 0), (columns - 1, steps)):
            cell = strip[row * (SIZE + 2) :, column * (SIZE + 2) :][:SIZE, :SIZE]
            np.testing.assert_allclose(cell, pictures[step], atol=0.6)
    if steps == 20:
        second = strip[:SIZE, SIZE + 2 :][:, :SIZE]
        assert min(np.abs(second - rows[0][step]).max() for step in (2, 3)) < 0.6


def test_the_map_is_of_scaled_latents_and_leads_to_the_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Points and ways are in the space in which diffusion takes place, projected alike."""
    drawn: dict[str, Tensor] = {}

    def draw(png: Path, points: Tensor, labels: Tensor, paths: dict[tuple[int, str], Tensor], title: str) -> None:
        drawn.update(points=points, labels=labels, **{f"{label} {name}": path for (label, name), path in paths.items()})
        assert png == tmp_path / "denoising_path.png"
        assert "12 training latents" in title

    monkeypatch.setattr(sample_files, "draw_paths", draw)
    model, store = diffusion(), kept()
    model.set_latent_scale(torch.tensor([1.0, -2.0]), torch.tensor([2.0, 0.5]))
    lines = denoising(tmp_path, model, 3, store, [1, 0])
    assert "denoising_path.png" in lines[1]
    assert set(drawn) == {"points", "labels", "1 1 rose", "0 0 daisy"}
    assert drawn["labels"].tolist() == store.labels.tolist()
    scaled = model.scaled(store.latents).flatten(1).double()
    centered = scaled - scaled.mean(0)
    _, _, v = torch.linalg.svd(centered, full_matrices=False)
    torch.testing.assert_close(drawn["points"].double().abs(), (centered @ v[:2].T).abs(), rtol=1e-3, atol=1e-3)
    x_t, _ = trajectory(model, [0, 4], torch.tensor([1, 0]), 7, replace(model.sampling, steps=3))
    for row, name in enumerate(("1 1 rose", "0 0 daisy")):
        expected = (model.scaled(x_t[row]).flatten(1).double() - scaled.mean(0)) @ v[:2].T
        torch.testing.assert_close(drawn[name].double().abs(), expected.abs(), rtol=1e-3, atol=1e-3)


def test_without_stored_latents_there_is_no_map_and_it_is_said(tmp_path: Path) -> None:
    lines = denoising(tmp_path, diffusion(on_pixels=True), 3, None, [NO_CLASS])
    assert lines[1] == "no denoising_path.png: the run has no latents.safetensors"
    assert everything(tmp_path) == ["denoising/seed7_00000.gif", "denoising/seed7_00000.png"]


def test_a_sample_without_a_class_has_a_way_on_the_map(tmp_path: Path) -> None:
    denoising(tmp_path, diffusion(), 3, kept(), [NO_CLASS])
    assert (tmp_path / "denoising_path.png").is_file()


def test_the_grid_shows_every_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer pictures of each where there are many, never none; where the grid would become too large, they are not enlarged."""
    monkeypatch.setattr("flowergen.evaluation.sample_files.GRID_PICTURES", 4)
    monkeypatch.setattr("flowergen.evaluation.sample_files.MAX_GRID_PX", 83)  # 7 x 6 px could not be doubled
    names = [f"class {k}" for k in range(7)]
    labels = torch.arange(7).repeat_interleave(2)
    write_samples(tmp_path, samples(14), labels, names, SIX, 0, "npz")
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.height == 7 * (6 + 2) - 2
