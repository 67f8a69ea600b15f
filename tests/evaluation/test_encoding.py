import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flowergen.data import cache, reading
from flowergen.data.batch import Batch, LatentBatch
from flowergen.data.procedural_datamodule import ProceduralDataModule
from flowergen.errors import UserError
from flowergen.evaluation import encoding
from flowergen.evaluation.encoding import (
    batch_of,
    cached_features,
    cached_posteriors,
    feature_scale,
    in_parts,
    latent_scale,
    posteriors,
)
from flowergen.modules.pretrained_weights import load_efficientnet
from flowergen.nn.efficientnet import feature_shape_for
from flowergen.picture_shape import PictureShape
from tests.tiny_models import SIZE, TinyAutoencoder, drawn


@pytest.fixture
def data(cache_dir: Path) -> ProceduralDataModule:
    return drawn(cache_dir)


def folders(path: Path) -> list[Path]:
    return sorted(folder for folder in path.iterdir() if folder.is_dir())


# -- posteriors


@pytest.mark.parametrize("flat", [False, True])
def test_cached_posteriors_are_those_of_the_pictures_and_of_their_mirror_images(
    flat: bool, data: ProceduralDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the whole collection, in its order, over several batches; read-only, and plain .npy files."""
    monkeypatch.setattr(encoding, "BATCH_VALUES", 16 * SIZE**2)
    model = TinyAutoencoder(flat=flat).eval()
    moments = cached_posteriors(model, data, tmp_path)
    x = torch.from_numpy(np.array(data.pictures.images)).float() / 255
    for variant, pictures in enumerate((x, x.flip(-1))):
        with torch.no_grad():
            posterior = model.encode(pictures)
        for moment, expected in zip(moments, posterior, strict=True):
            assert (moment.dtype, moment.shape) == (np.float32, (40, 2, *model.latent_shape))
            np.testing.assert_allclose(moment[:, variant], expected.numpy(), rtol=0, atol=1e-5)
    assert isinstance(moments[0], np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        moments[0][0] = 0
    (folder,) = folders(tmp_path)
    assert folder.name.startswith("tiny_latents_")
    np.testing.assert_array_equal(np.load(folder / "logvar.npy", allow_pickle=False), moments[1])


def test_pictures_are_encoded_once_for_each_network_collection_and_choice_of_flips(
    data: ProceduralDataModule, cache_dir: Path, tmp_path: Path
) -> None:
    def encoded(model: TinyAutoencoder, of: ProceduralDataModule) -> int:
        before = model.num_encoded
        cached_posteriors(model.eval(), of, tmp_path)
        return model.num_encoded - before

    model = TinyAutoencoder()
    assert encoded(model, data) == 2, "pictures and mirror images"
    assert encoded(model, data) == 0
    assert encoded(TinyAutoencoder(), drawn(cache_dir)) == 0, "equal weights and equal pictures"
    assert encoded(model, drawn(cache_dir, horizontal_flip=False)) == 1
    assert encoded(model, drawn(cache_dir, num_images=41)) == 2
    assert encoded(TinyAutoencoder(seed=1), data) == 2
    with torch.no_grad():
        model.encoder.weight[0] += 1
    assert encoded(model, data) == 2
    assert len(folders(tmp_path)) == 5


@pytest.mark.parametrize("what", ["drawings", "transform"])
def test_other_pixels_under_the_same_names_are_encoded_again(
    what: str, data: ProceduralDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sources' digests are not what is encoded: drawings of another seed, a segmented flower, or another transform."""
    model = TinyAutoencoder().eval()
    cached_posteriors(model, data, tmp_path)
    other = drawn(tmp_path / "pixels", drawing_seed=1)
    if what == "transform":
        monkeypatch.setattr(cache, "TRANSFORM_VERSION", cache.TRANSFORM_VERSION + 1)
        monkeypatch.setattr(cache, "fit_picture", lambda *args: 255 - reading.fit_picture(*args))
        other = drawn(tmp_path / "pixels")
    mean, _ = cached_posteriors(model, other, tmp_path)
    with torch.no_grad():
        expected = model.encode(torch.from_numpy(np.array(other.pictures.images)).float() / 255).mean
    np.testing.assert_allclose(mean[:, 0], expected.numpy(), rtol=0, atol=1e-5)


def test_without_flips_there_is_the_picture_alone(cache_dir: Path, tmp_path: Path) -> None:
    data, model = drawn(cache_dir, horizontal_flip=False), TinyAutoencoder().eval()
    mean, logvar = cached_posteriors(model, data, tmp_path)
    assert mean.shape == logvar.shape == (40, 1, 2, 4, 4)


def truncate(folder: Path) -> None:
    content = (folder / "mean.npy").read_bytes()
    (folder / "mean.npy").write_bytes(content[: len(content) // 2])


def lose(folder: Path) -> None:
    (folder / "meta.json").unlink()


def scribble(folder: Path) -> None:
    (folder / "logvar.npy").write_bytes(b"\x93NUMPY nonsense")


def confuse(folder: Path) -> None:
    np.save(folder / "mean.npy", np.zeros((3, 2, 2, 4, 4), dtype=np.float32))


@pytest.mark.parametrize("damage", [truncate, lose, scribble, confuse])
def test_a_damaged_cache_is_built_again(
    damage: Any, data: ProceduralDataModule, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = TinyAutoencoder().eval()
    before = [np.array(moment) for moment in cached_posteriors(model, data, tmp_path)]
    (folder,) = folders(tmp_path)
    damage(folder)
    caplog.set_level(logging.WARNING)
    after = cached_posteriors(model, data, tmp_path)
    assert "is damaged" in caplog.text
    assert model.num_encoded == 4
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)
    assert folders(tmp_path) == [folder]


def test_a_full_disk_is_an_error_that_names_the_size_and_the_option(
    data: ProceduralDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing half-written stays behind."""

    def full(file: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(encoding, "sync", full)
    num_bytes = 2 * 4 * 40 * 2 * 32
    with pytest.raises(UserError, match=rf"40 pictures, {num_bytes:,} bytes, .*No space.*paths\.cache_dir="):
        cached_posteriors(TinyAutoencoder().eval(), data, tmp_path)
    assert folders(tmp_path) == []


def test_latents_that_will_not_fit_are_refused_before_a_picture_is_encoded(
    data: ProceduralDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 pictures and their mirror images, mean and logvar of 32 values in float32 each; one byte less is too little."""
    num_bytes, model = 2 * 4 * 40 * 2 * 32, TinyAutoencoder().eval()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=10**9, free=num_bytes - 1))
    match = rf"latents of 40 pictures take {num_bytes:,} bytes, .* has {num_bytes - 1:,} left: .*paths\.cache_dir="
    with pytest.raises(UserError, match=match):
        cached_posteriors(model, data, tmp_path)
    assert model.num_encoded == 0
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=10**9, free=num_bytes))
    assert len(cached_posteriors(model, data, tmp_path)[0]) == 40


def test_nothing_is_kept_where_encoding_breaks_off(data: ProceduralDataModule, tmp_path: Path) -> None:
    model = TinyAutoencoder().eval()
    encode = model.encode

    def interrupted(x: Tensor) -> Any:
        if model.num_encoded:
            raise KeyboardInterrupt
        return encode(x)

    model.encode = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        cached_posteriors(model, data, tmp_path)
    assert folders(tmp_path) == []


def test_as_many_pictures_of_any_shape_are_encoded_at_a_time_as_have_a_number_of_pixels() -> None:
    shapes = {64: 64, 32: 256, 1024: 1, (48, 64): 85, (128, 32): 64}
    for size, num in shapes.items():
        assert batch_of(PictureShape.of(size)) == batch_of(PictureShape.of(size, 1)) == num


def test_posteriors_and_features_of_grey_pictures_that_are_not_square(cache_dir: Path, tmp_path: Path) -> None:
    data = drawn(cache_dir, image_size=[16, 24], channels=1)
    assert data.pictures.images.shape == (40, 1, 16, 24)
    model: Any = SimpleNamespace(encode=lambda x: (x, -x), device=torch.device("cpu"))
    mean, logvar = next(posteriors(model, data, np.arange(3), flips=True))
    x = torch.from_numpy(np.array(data.pictures.images[:3])) / 255
    torch.testing.assert_close(mean, torch.stack((x, x.flip(-1)), dim=1))
    torch.testing.assert_close(logvar, -mean)
    features = cached_features(load_efficientnet("lite0", "a test"), data, torch.device("cpu"), tmp_path)
    assert features.shape == (40, 2, *feature_shape_for(PictureShape(1, 16, 24)))


# -- their scale


@pytest.mark.parametrize("flat", [False, True])
def test_the_scale_is_that_of_many_draws(flat: bool, data: ProceduralDataModule, tmp_path: Path) -> None:
    """Mean and deviation of z ~ q(z|x) over training pictures and mirror images, channel by channel."""
    model = TinyAutoencoder(flat=flat).eval()
    moments, rows = cached_posteriors(model, data, tmp_path), data.rows["train"]
    mean, std = latent_scale(in_parts(moments, rows))
    mu, logvar = (torch.from_numpy(moment[rows]).double() for moment in moments)
    g = torch.Generator().manual_seed(0)
    num = 2000 if flat else 400
    z = mu + (logvar / 2).exp() * torch.randn(num, *mu.shape, generator=g, dtype=torch.float64)  # (num, M, F, C, h, w)
    z = z.movedim(3, 0).flatten(1)  # (C, -1)
    assert mean.shape == std.shape == (model.latent_shape[0],)
    assert mean.dtype == std.dtype == torch.float32
    error = 5 * z.std(1) / z.shape[1] ** 0.5  # five standard errors
    assert ((mean - z.mean(1)).abs() < error).all()
    torch.testing.assert_close(std.double(), z.std(1), rtol=0.01, atol=0)


def test_the_scale_is_the_law_of_total_variance() -> None:
    """Two channels whose numbers are known: var mu + mean sigma^2; parts of other sizes change nothing."""
    mean = torch.tensor([[1.0, 3.0], [-2.0, -2.0]]).t().reshape(2, 1, 2, 1, 1)  # channel 0: 1 and 3; channel 1: -2 twice
    logvar = torch.tensor([[4.0, 16.0], [0.25, 0.25]]).log().t().reshape(2, 1, 2, 1, 1)
    mu, std = latent_scale([(mean, logvar)])
    torch.testing.assert_close(mu, torch.tensor([2.0, -2.0]))
    torch.testing.assert_close(std, torch.tensor([11.0**0.5, 0.5]))
    for parts in ([(mean[:1], logvar[:1]), (mean[1:], logvar[1:])], [(mean, logvar)] * 3):
        torch.testing.assert_close(latent_scale(parts), (mu, std))


@pytest.mark.parametrize("value", [0.0, 1.0, -12.3, 77.7])
def test_a_channel_that_never_varies_has_a_scale_that_can_be_divided_by(value: float) -> None:
    mean = torch.full((1000, 1, 1, 3, 3), value)
    mu, std = latent_scale([(mean, torch.full_like(mean, -30.0))])
    torch.testing.assert_close(mu, torch.tensor([value]))
    assert 0 < std.item() < 1e-3


def test_the_cache_in_parts_is_what_is_encoded_batch_by_batch(data: ProceduralDataModule, tmp_path: Path) -> None:
    model, rows = TinyAutoencoder().eval(), data.rows["train"]
    from_cache = list(in_parts(cached_posteriors(model, data, tmp_path), rows))
    encoded = list(posteriors(model, data, rows, flips=True))
    for a, b in zip(zip(*from_cache, strict=True), zip(*encoded, strict=True), strict=True):
        torch.testing.assert_close(torch.cat(a), torch.cat(b), rtol=0, atol=1e-5)
    torch.testing.assert_close(latent_scale(from_cache), latent_scale(encoded))
    (first,) = posteriors(model, data, rows[:3], flips=False)
    assert first[0].shape == (3, 1, 2, 4, 4)


def test_cached_features_are_the_last_stage_output_of_pictures_and_mirror_images(
    data: ProceduralDataModule, tmp_path: Path
) -> None:
    """In float16, in a folder of their own; their scale is that of the rows that were asked for."""
    net = load_efficientnet("lite0", "a test")
    features = cached_features(net, data, torch.device("cpu"), tmp_path)
    assert (features.shape, features.dtype) == ((40, 2, *feature_shape_for(data.picture_shape)), np.float16)
    x = torch.from_numpy(np.array(data.pictures.images)).float() / 255
    for variant, pictures in enumerate((x, x.flip(-1))):
        expected = net(pictures)[-1].numpy()
        np.testing.assert_allclose(features[:, variant], expected, rtol=2e-3, atol=2e-3)
    (folder,) = folders(tmp_path)
    assert folder.name.startswith("tiny_features_")
    rows = data.rows["train"]
    mean, std = feature_scale(features, rows)
    channels = features[rows].astype(np.float64).transpose(2, 0, 1, 3, 4).reshape(features.shape[2], -1)
    np.testing.assert_allclose(mean, channels.mean(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(std, channels.std(1), rtol=1e-5)


# -- batches of latents


class Training:
    """As much of a trainer as a batch on its way to the device asks for."""

    training, current_epoch = True, 0


def test_a_latent_is_the_mirror_image_s_exactly_where_the_pixel_path_mirrors_the_picture(
    data: ProceduralDataModule, cache_dir: Path, tmp_path: Path
) -> None:
    """In every epoch, whatever the batch; and never in validation."""
    model, of_latents = TinyAutoencoder().eval(), drawn(cache_dir)
    moments = cached_posteriors(model, of_latents, tmp_path)
    of_latents.use_latents(*moments, features=moments[0].astype(np.float16))  # any numbers will do
    rows = [5, 0, 17, 39, 8, 21, 30, 2]
    trainer: Any = Training()
    data.trainer = of_latents.trainer = trainer
    seen = []
    for training, epoch in ((True, 0), (True, 1), (False, 1)):
        trainer.training, trainer.current_epoch = training, epoch
        x = data.on_after_batch_transfer(data.source[rows], 0)
        z = of_latents.on_after_batch_transfer(of_latents.source[rows], 0)
        assert isinstance(x, Batch)
        assert isinstance(z, LatentBatch)
        with torch.no_grad():
            expected = model.encode(x.image)
        torch.testing.assert_close((z.mean, z.logvar), tuple(expected), rtol=0, atol=1e-5)
        torch.testing.assert_close(z.features, z.mean.half())
        assert (z.label.tolist(), z.index.tolist()) == (x.label.tolist(), rows)
        plain = torch.from_numpy(data.pictures.images[rows]).float() / 255
        seen.append((x.image != plain).flatten(1).any(1).tolist())
    assert any(seen[0])
    assert not all(seen[0])
    assert seen[0] != seen[1]
    assert not any(seen[2])


def test_a_data_module_without_flips_feeds_its_only_variant(cache_dir: Path, tmp_path: Path) -> None:
    data, model = drawn(cache_dir, horizontal_flip=False), TinyAutoencoder().eval()
    mean, logvar = cached_posteriors(model, data, tmp_path)
    data.use_latents(mean, logvar)
    data.trainer = Training()  # type: ignore[assignment]
    batch = data.on_after_batch_transfer(data.source[[3, 1]], 0)
    np.testing.assert_array_equal(batch.mean, mean[[3, 1], 0])
    np.testing.assert_array_equal(batch.logvar, logvar[[3, 1], 0])


def test_loaders_yield_latents_and_the_labels_and_rows_of_their_pictures(data: ProceduralDataModule, tmp_path: Path) -> None:
    data.use_latents(*cached_posteriors(TinyAutoencoder().eval(), data, tmp_path))
    batches = list(data.test_dataloader())
    assert all(isinstance(batch, LatentBatch) for batch in batches)
    rows = torch.cat([batch.index for batch in batches]).tolist()
    assert rows == data.rows["test"].tolist()
    assert torch.cat([batch.label for batch in batches]).tolist() == data.pictures.labels[rows].tolist()
    assert data.pictures[[0]].image.dtype == torch.uint8, "pictures to look at are there still"
