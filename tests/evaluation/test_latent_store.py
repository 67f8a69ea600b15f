import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from flowergen.data import progress_bar
from flowergen.errors import UserError
from flowergen.evaluation import latent_store
from flowergen.evaluation.latent_prior import LatentPrior, fit_latent_prior
from flowergen.evaluation.latent_store import num_stored, read_latents, store_autoencoder_latents, store_latents
from flowergen.modules.fingerprint import fingerprint
from tests.tiny_models import TinyAutoencoder, drawn


def prior() -> LatentPrior:
    return fit_latent_prior(torch.randn(20, 32, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3, 3)


@pytest.fixture
def path(tmp_path: Path, cache_dir: Path) -> Path:
    """What a run of an autoencoder has stored, under the name of ``owner``."""
    data = drawn(cache_dir)
    latents = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    store_latents(tmp_path / "latents.safetensors", data, data.rows["train"][:5], latents, "owner", prior())
    return tmp_path / "latents.safetensors"


def test_what_is_stored_is_read_again(path: Path, cache_dir: Path) -> None:
    """Latents in half precision, labels, counts of the training split, and the same prior; nothing else in the folder."""
    data, store = drawn(cache_dir), read_latents(path, "owner")
    assert store is not None
    expected = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    assert store.latents.dtype == torch.float32
    torch.testing.assert_close(store.latents, expected.half().float(), rtol=0, atol=0)
    train = data.pictures.labels[data.rows["train"]]
    assert store.labels.tolist() == train[:5].tolist()
    assert store.class_counts.tolist() == [int((train == c).sum()) for c in range(3)]
    assert store.class_counts.sum() == 32
    assert store.prior is not None
    torch.testing.assert_close(store.prior.sample(range(3), 0), prior().sample(range(3), 0))
    assert [file.name for file in path.parent.iterdir()] == ["latents.safetensors"]


def test_a_diffusion_run_stores_no_prior(tmp_path: Path, cache_dir: Path) -> None:
    data = drawn(cache_dir)
    store_latents(tmp_path / "latents.safetensors", data, data.rows["train"][:2], torch.zeros(2, 2, 4, 4), "owner", None)
    store = read_latents(tmp_path / "latents.safetensors", "owner")
    assert store is not None
    assert store.prior is None


def test_pictures_without_a_label_are_in_no_count(tmp_path: Path, cache_dir: Path) -> None:
    """And a class that training has no picture of counts 0; without classes there is nothing to count."""
    data = drawn(cache_dir)
    labels = np.full(40, -1)
    labels[data.rows["train"][:7]] = 1
    labels[data.rows["val"]] = 2
    data.pictures.labels = labels
    store_latents(tmp_path / "a", data, data.rows["train"][6:8], torch.zeros(2, 2, 4, 4), "owner", None)
    store = read_latents(tmp_path / "a", "owner")
    assert store is not None
    assert store.class_counts.tolist() == [0, 7, 0]
    assert store.labels.tolist() == [1, -1]
    data.pictures.labels, data.class_names = np.full(40, -1), ()
    store_latents(tmp_path / "b", data, data.rows["train"][:2], torch.zeros(2, 2, 4, 4), "owner", None)
    store = read_latents(tmp_path / "b", "owner")
    assert store is not None
    assert store.class_counts.tolist() == []


def test_before_the_end_of_training_there_is_none(tmp_path: Path) -> None:
    assert read_latents(tmp_path / "latents.safetensors", "owner") is None


def test_the_latents_of_other_weights_are_left_aside(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A run that has gone on since has other weights than those it stored latents of; it can still draw from the prior."""
    assert read_latents(path, "owner") is not None
    assert read_latents(path, "somebody") is None
    assert "latents.safetensors contains the latents of other weights" in caplog.text
    save_file(load_file(path), path)  # by a tool that drops the metadata
    assert read_latents(path, "owner") is None


def lose(path: Path, name: str) -> None:
    tensors = load_file(path)
    del tensors[name]
    save_file(tensors, path, metadata={"owner": "owner"})


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(b"nonsense, and more of it"),
        lambda path: lose(path, "class_counts"),
        lambda path: lose(path, "prior.std"),
    ],
)
def test_a_damaged_file_is_named(damage: Callable[[Path], None], path: Path) -> None:
    damage(path)
    with pytest.raises(UserError, match=r"latents\.safetensors is damaged"):
        read_latents(path, "owner")


def test_an_old_file_is_replaced_whole(path: Path, cache_dir: Path) -> None:
    """A limit on the size of files stands for a full disk, whose error is the system's, not the library's."""
    data, before = drawn(cache_dir), path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            store_latents(path, data, data.rows["train"][:2], torch.zeros(2, 2, 4, 4), "owner", None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    store_latents(path, data, data.rows["train"][:2], torch.zeros(2, 2, 4, 4), "owner", None)
    store = read_latents(path, "owner")
    assert store is not None
    assert len(store.latents) == 2


def test_how_many_latents_are_kept_depends_on_their_size() -> None:
    assert num_stored((128, 1, 1)) == 4096
    assert num_stored((4, 16, 16)) == 4096
    assert num_stored((4, 64, 64)) == 512
    assert num_stored((64, 512, 512)) == 2


@pytest.mark.parametrize("flat", [False, True])
def test_an_autoencoder_s_run_keeps_the_means_of_its_training_pictures_and_a_prior_of_draws(
    flat: bool, tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The means of the pictures themselves, evenly spread over the split; the prior has the moments of z ~ q(z|x)."""
    monkeypatch.setattr(latent_store, "MAX_LATENTS", 8)
    data, model = drawn(cache_dir), TinyAutoencoder(flat=flat).eval()
    store_autoencoder_latents(tmp_path / "latents.safetensors", model, data)
    store = read_latents(tmp_path / "latents.safetensors", fingerprint(model.inference_net))
    assert store is not None
    rows = data.rows["train"]
    kept = rows[np.linspace(0, 31, 8).astype(int)]
    with torch.no_grad():
        expected = model.encode(torch.from_numpy(data.pictures.images[kept]).float() / 255).mean
        mean, logvar = (m.flatten(1) for m in model.encode(torch.from_numpy(data.pictures.images[rows]).float() / 255))
    torch.testing.assert_close(store.latents, expected, rtol=1e-3, atol=1e-3)
    assert store.labels.tolist() == data.pictures.labels[kept].tolist()
    assert store.prior is not None
    variance = mean.var(0) + logvar.exp().mean(0)
    samples = store.prior.sample(range(4000), 0)
    assert samples.var(0).sum().item() == pytest.approx(variance.sum().item(), rel=0.15)  # of 32 pictures
    error = (samples.mean(0) - mean.mean(0)) / (variance / 32).sqrt()
    assert error.abs().max() < 4


def test_encoding_at_the_end_of_training_reports_its_progress(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = drawn(cache_dir)
    capsys.readouterr()
    monkeypatch.setattr(progress_bar, "REPORT_INTERVAL_SECONDS", 0.0)
    store_autoencoder_latents(tmp_path / "latents.safetensors", TinyAutoencoder().eval(), data)
    assert capsys.readouterr().err.startswith("encoding: 32 of 32, ")


def test_the_prior_is_fitted_to_no_more_pictures_than_it_takes(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latent_store, "MAX_FITTED", 10)
    data, model = drawn(cache_dir), TinyAutoencoder().eval()
    store_autoencoder_latents(tmp_path / "latents.safetensors", model, data)
    store = read_latents(tmp_path / "latents.safetensors", fingerprint(model.inference_net))
    assert store is not None
    assert len(store.latents) == 10
    assert store.class_counts.sum() == 32, "of the whole split"


@pytest.mark.parametrize(
    "name", ["latents", "labels", "prior.mean", "prior.basis", "prior.std", "prior.means", "prior.cholesky"]
)
def test_tensors_that_do_not_fit_together_are_damage(path: Path, name: str) -> None:
    """Found when the file is read, not when it is sampled from."""
    tensors = load_file(path)
    for changed in (tensors[name][..., :-1].contiguous(), tensors[name][None], tensors[name][:0]):
        save_file({**tensors, name: changed}, path, metadata={"owner": "owner"})
        with pytest.raises(UserError, match="is damaged"):
            read_latents(path, "owner")
