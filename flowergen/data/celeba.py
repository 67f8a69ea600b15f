"""Listing and download of CelebA."""

from http.client import HTTPException
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from flowergen.data.download import downloading
from flowergen.data.listing import SUBSETS, Listing, find_pictures, list_image_folder, listing_of
from flowergen.errors import UserError, printable

PICTURES, ATTRIBUTES, PARTITION = "img_align_celeba", "list_attr_celeba.txt", "list_eval_partition.txt"
DOWNLOAD_PAGE = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"


def list_celeba(root: Path, attribute: str | None = None, download: bool = True) -> Listing:
    """List CelebA (Liu et al. 2015, arXiv:1411.7766) in torchvision's layout, or any folder of faces.

    Args:
        root: the folder ``celeba`` that contains ``img_align_celeba`` and the lists or that they are downloaded into; its
            parent; or a folder with pictures of faces.
        attribute: one of the 40, such as ``Smiling``: the label is 1 if a face has it, else 0. None for no labels.
        download: download missing files (1.4 GB) through torchvision.

    Returns:
        202,599 aligned faces in the official partition, or those of the folder.

    Raises:
        UserError: CelebA is missing or incomplete and could not be downloaded, or a plain folder has no attributes.
    """
    folder = root / "celeba" if (root / "celeba").is_dir() else root
    known = any((folder / name).exists() for name in (PICTURES, f"{PICTURES}.zip", ATTRIBUTES, PARTITION))
    if folder.is_dir() and not known and find_pictures(folder, "data.root")[0]:
        if attribute is not None:
            raise UserError(
                f"data.attribute={attribute}: {printable(str(folder))} has no {ATTRIBUTES}, so these faces have no "
                "attributes: leave data.attribute out"
            )
        return list_image_folder(folder)

    needed = (PICTURES, PARTITION, *((ATTRIBUTES,) if attribute else ()))
    source = (
        f"download {PICTURES}.zip, {ATTRIBUTES} and {PARTITION} (not Kaggle's csv files) from {DOWNLOAD_PAGE}, put them into "
        f"{printable(str(folder))}, unpack the first one there, and run again"
    )
    if download and folder.name == "celeba" and not all((folder / name).exists() for name in needed):
        _download(folder.parent, source)
    missing = [name for name in needed if not (folder / name).exists()]
    if missing:
        raise UserError(f"CelebA: {', '.join(missing)} is missing in {printable(str(folder))}: {source}")

    partition = {row[0]: int(row[1]) for row in _rows(folder / PARTITION)}
    names = sorted(partition)
    labels = _has_attribute(folder / ATTRIBUTES, attribute) if attribute else {}
    if attribute and not labels.keys() >= partition.keys():
        raise _unusable(folder / ATTRIBUTES, "it does not list all pictures")
    twice = (folder / PICTURES / PICTURES).is_dir()  # as some tools unpack it
    pictures = f"{PICTURES}/{PICTURES}" if twice else PICTURES
    present = {path.name for path in (folder / pictures).iterdir()}
    if not present.issuperset(names):
        num_missing = len(set(names) - present)
        raise UserError(
            f"{printable(str(folder / pictures))} lacks {num_missing:,} of {len(names):,} pictures, "
            f"as after an interrupted unpacking: unpack {PICTURES}.zip again"
        )
    return listing_of(
        folder,
        [f"{pictures}/{name}" for name in names],
        [labels.get(name, -1) for name in names],
        (f"not_{attribute}", attribute) if attribute else (),
        np.array([SUBSETS[partition[name]] for name in names]),
    )


def _has_attribute(path: Path, attribute: str) -> dict[str, int]:
    """Map each picture to 1 if it has the attribute, else 0. Line 2 names the 40; each row holds -1 or 1 for each of them."""
    _, names, *rows = _rows(path)
    if attribute not in names or any(len(row) != len(names) + 1 for row in rows):
        raise _unusable(path, "not CelebA's own file, or truncated")
    column = names.index(attribute) + 1
    return {row[0]: int(row[column] == "1") for row in rows}


def _rows(path: Path) -> list[list[str]]:
    try:
        rows = [line.split() for line in path.read_text(encoding="ascii").splitlines() if line.strip()]
        if len(rows) < 2 or (path.name == PARTITION and any(row[1:] not in (["0"], ["1"], ["2"]) for row in rows)):
            raise ValueError("not CelebA's own file")
        return rows
    except (OSError, ValueError) as error:
        raise _unusable(path, str(error)) from error


def _unusable(path: Path, reason: str) -> UserError:
    return UserError(f"{printable(str(path))} cannot be used ({reason}): download it again from {DOWNLOAD_PAGE}")


def _download(root: Path, source: str) -> None:
    from torchvision.datasets import CelebA  # imported here because it takes seconds

    try:
        with downloading(root / "celeba"):
            CelebA(str(root), download=True)
    except Exception as error:  # gdown, used by torchvision, raises its own types
        if not isinstance(error, OSError | RuntimeError | EOFError | BadZipFile | HTTPException) and "gdown" not in str(
            type(error)
        ):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"CelebA could not be downloaded; its quota is often exceeded ({reason}): {source}") from error
