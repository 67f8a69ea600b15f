"""Split a picture collection into train, val and test folders; an interrupted split can be completed.

Everything is decided before anything is written: the split is a function of the set of pictures and the seed, so a second
run computes the same split and finds part of it done. During a move, source and targets together form the collection; a
hidden file in the train folder holds its fingerprint, by which a second run distinguishes moved pictures from others.
"""

import errno
import hashlib
import math
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from flowergen.data.decoding import read_all
from flowergen.data.listing import digest_of, find_pictures, no_pictures, read_folders, read_picture, subset_named
from flowergen.data.progress_bar import with_progress_bar
from flowergen.data.splits import hold_out
from flowergen.errors import UserError, printable
from flowergen.files import flush, replacing

Mode = Literal["copy", "link", "move"]

FINGERPRINT_FILE = ".flowergen-split"
PARTIAL_PREFIX = ".flowergen-split-"  # prefix of unfinished copies
CONTINUE_ADVICE = "then run the same command again, which continues where this one stopped"
REMEDIES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EACCES: "get permission to write",
    errno.EPERM: "get permission to write",
    errno.EROFS: "choose folders on a writable medium",
}


@dataclass(frozen=True)
class FolderSplit:
    """Result of ``split_dataset``.

    Attributes:
        folders: folders by subset, "train", "val" if requested, "test".
        counts: number of pictures in each.
        unreadable: "name (reason)" of pictures that cannot be decoded and stay in the source.
        num_others: number of source files without a picture extension.
    """

    folders: dict[str, Path]
    counts: dict[str, int]
    unreadable: tuple[str, ...]
    num_others: int

    @property
    def root(self) -> Path | None:
        """Value of ``data.root=`` for these folders; None if it would not find them or would find others as well."""
        folders = self.folders.values()
        parents = {folder.parent for folder in folders}
        own = all(subset_named(folder.name) == subset for subset, folder in self.folders.items())
        if len(parents) > 1 or not own:
            return None
        parent = parents.pop()
        try:
            others = {path.name for path in parent.iterdir() if path.is_dir()} - {folder.name for folder in folders}
        except OSError:
            return None
        return None if any(map(subset_named, others)) else parent


def split_dataset(
    source: str | Path,
    train: str | Path,
    test: str | Path,
    val: str | Path | None = None,
    test_size: float = 0.2,
    val_size: float = 0.0,
    seed: int = 42,
    mode: Mode = "copy",
) -> FolderSplit:
    """Split a folder of pictures, stratified by class, with byte-identical copies in the same subset.

    ceil(N * test_size) of the N decodable pictures go to test, ceil(N * val_size) to val, the rest to train, under their
    paths relative to the source. Nothing is overwritten. Run it again after an interruption to complete the same split.

    Args:
        source: the folder, flat or with class folders, at any depth.
        train: folder to create.
        test: folder to create.
        val: folder to create; requires ``val_size``.
        test_size: fraction of all pictures, above 0 and below 1.
        val_size: fraction of all pictures, from 0 to below 1; requires ``val`` if above 0.
        seed: seed of the draw, not negative.
        mode: ``copy``, ``link`` (symbolic links to absolute paths) or ``move``.

    Returns:
        The folders, the number of pictures in each, and the files that were left out.

    Raises:
        UserError: one line that says what to do. If the arguments or the contents of the folders are invalid, nothing has
            been touched; otherwise, running again completes the split.
    """
    folders = {"source": source, "train": train, "val": val, "test": test}
    targets = {key: Path(os.path.expanduser(folder)).absolute() for key, folder in folders.items() if folder is not None}
    source = targets.pop("source")
    _check_arguments(source, targets, test_size, val_size, seed, mode)

    names, others = find_pictures(source, "source")
    present = {subset: find_pictures(folder, subset)[0] for subset, folder in targets.items() if os.path.lexists(folder)}
    # for pictures already moved, use the target in place of the source
    paths = {name: targets[subset] / name for subset, held in present.items() for name in held}
    moved = paths.keys() - set(names)
    paths = dict(sorted((paths | {name: source / name for name in names}).items()))
    fingerprint_file = targets["train"] / FINGERPRINT_FILE
    if moved and not (mode == "move" and fingerprint_file.exists()):
        raise _unknown_picture(paths[min(moved)])
    _check_source(source, names, len(others), paths, targets)

    together = list(paths)
    found = read_all("reading", together, lambda row: (None, read_picture(paths[together[row]])[1]))
    digests, reasons = ({together[row]: text for row, text in texts.items()} for texts in found)
    fingerprint = hashlib.blake2b(repr(list(digests.items())).encode(), digest_size=16).hexdigest()
    if moved and fingerprint_file.read_bytes() != fingerprint.encode():
        raise UserError(
            "source and targets together no longer contain the pictures with which the interrupted move began: "
            f"undo later changes, or empty {printable(', '.join(map(str, targets.values())))}"
        )
    plan = _draw(digests, test_size, val_size, seed)
    done = _check_targets(plan, present, targets, paths, digests, mode)

    try:
        for folder in targets.values():
            folder.mkdir(parents=True, exist_ok=True)
            for stale in list(folder.rglob(f"{PARTIAL_PREFIX}*")):  # left by a killed run
                stale.unlink()
        if mode == "move":
            _write_fingerprint(fingerprint_file, fingerprint)
    except OSError as error:
        raise _cannot_write("could not create the folders", error, targets["train"]) from error
    for name in with_progress_bar({"copy": "copying", "link": "linking", "move": "moving"}[mode], plan, len(plan)):
        try:
            if name not in done:
                _place(paths[name], targets[plan[name]] / name, mode)
            if mode == "move":
                (source / name).unlink(missing_ok=True)
        except OSError as error:
            raise _cannot_write(f"could not {mode} {printable(name)} to {plan[name]}", error, targets[plan[name]]) from error
    counts = Counter(plan.values())
    unreadable = tuple(f"{printable(name)} ({printable(reason)})" for name, reason in reasons.items())
    return FolderSplit(targets, {subset: counts[subset] for subset in targets}, unreadable, len(others))


# ---- Before anything is written --------------------------------------------------------------------------------------
def _check_arguments(
    source: Path, targets: Mapping[str, Path], test_size: float, val_size: float, seed: int, mode: str
) -> None:
    if mode not in ("copy", "link", "move"):
        raise UserError(f"mode={mode} must be copy, link or move")
    if seed < 0:
        raise UserError(f"seed={seed} must be at least 0")
    if not 0 < test_size < 1:
        raise UserError(f"test_size={test_size} must be above 0 and below 1")
    if not 0 <= val_size < 1:
        raise UserError(f"val_size={val_size} must be at least 0 and below 1")
    if val_size and "val" not in targets:
        raise UserError(f"val_size={val_size} needs a folder: give val=DIR")
    if "val" in targets and not val_size:
        raise UserError(f"val={printable(str(targets['val']))} would stay empty: give val_size= above 0, or leave val out")
    if test_size + val_size >= 1:
        raise UserError(f"test_size={test_size} and val_size={val_size} leave nothing to train on: make them smaller")
    for subset, folder in targets.items():
        if os.path.lexists(folder) and not folder.is_dir():
            raise UserError(f"{subset}={printable(str(folder))} exists and is not a folder: give a folder or a new path")
    folders = {"source": source, **targets}
    real = {key: folder.resolve() for key, folder in folders.items()}
    for key, folder in real.items():
        for other, parent in real.items():
            if key != other and folder.is_relative_to(parent):
                where = "the same folder as" if folder == parent else "inside"
                raise UserError(
                    f"{key}={printable(str(folders[key]))} is {where} {other}={printable(str(folders[other]))}: "
                    "give separate folders, none inside another"
                )


def _check_source(
    source: Path, names: Sequence[str], num_others: int, paths: Mapping[str, Path], targets: Mapping[str, Path]
) -> None:
    """Check that the source is not empty, is not split yet, and contains no link into a target."""
    where = f"source={printable(str(source))}"
    if not paths:
        raise no_pictures(where, num_others)
    if read_folders(list(paths))[3] is not None:
        raise UserError(f"{where} has train, val or test folders of its own: it is split already, give it as data.root=")
    real_targets = [folder.resolve() for folder in targets.values()]
    for parent in {(source / name).parent for name in names}:
        if any(parent.resolve().is_relative_to(folder) for folder in real_targets):
            raise UserError(f"{printable(str(parent))} links into a target folder: remove that link, or give another target")


def _draw(digests: Mapping[str, str], test_size: float, val_size: float, seed: int) -> dict[str, str]:
    """Assign a subset to every picture."""
    num = len(digests)
    num_test, num_val = _ceil(num * test_size), _ceil(num * val_size)
    labels = np.array(read_folders(list(digests))[1])
    subsets = hold_out(labels, np.array(list(digests.values())), seed, num_val, num_test).tolist()
    for subset, size in (("train", 1), ("val", val_size), ("test", test_size)):
        if size and subset not in subsets:
            raise UserError(
                f"{num:,} pictures, {len(set(digests.values())):,} of them different, with test_size={test_size} and "
                f"val_size={val_size} leave none for {subset}: change the sizes or give more pictures"
            )
    return dict(zip(digests, subsets, strict=True))


def _ceil(number: float) -> int:
    """Round up, ignoring floating-point errors.

    >>> _ceil(100 * 0.07), math.ceil(100 * 0.07)
    (7, 8)
    """
    return math.ceil(round(number, 9))


def _check_targets(
    plan: Mapping[str, str],
    present: Mapping[str, Sequence[str]],
    targets: Mapping[str, Path],
    paths: Mapping[str, Path],
    digests: Mapping[str, str],
    mode: Mode,
) -> set[str]:
    """Return the names that are already in place.

    Raises:
        UserError: a target contains something else.
    """
    for parent, folder in {((targets[subset] / name).parent, targets[subset]) for name, subset in plan.items()}:
        if parent.resolve() != folder.resolve() / parent.relative_to(folder):
            raise UserError(f"{printable(str(parent))} is a link to elsewhere: remove it or give another folder")
    for subset, names in present.items():
        for name in names:
            if plan.get(name) != subset:
                raise _unknown_picture(targets[subset] / name)
    done = set()
    for name, subset in plan.items():
        target = targets[subset] / name
        if os.path.lexists(target):
            if not _is_right(target, paths[name], digests[name], mode):
                raise UserError(
                    f"{printable(str(target))} already exists and is not a {'link to' if mode == 'link' else 'copy of'} "
                    f"{printable(str(paths[name]))}: nothing is overwritten, move it away or give another folder"
                )
            done.add(name)
    return done


def _is_right(target: Path, path: Path, digest: str, mode: Mode) -> bool:
    if mode == "link":
        return target.is_symlink() and target.resolve() == path.resolve()
    if target.is_symlink() or not target.is_file():  # a link would dangle once its source has moved
        return False
    if target == path:  # already moved, and read as part of the collection
        return True
    try:
        return digest_of(target.read_bytes()) == digest
    except OSError:
        return False


def _unknown_picture(path: Path) -> UserError:
    return UserError(
        f"{printable(str(path))} is not part of this split but of one with another collection, seed or size: "
        "give other folders, or the settings of that split"
    )


# ---- Writing ---------------------------------------------------------------------------------------------------------
def _place(path: Path, target: Path, mode: Mode) -> None:
    """Create a picture in its target atomically, without overwriting another file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if mode == "link":
        target.symlink_to(path.resolve())
    elif mode == "copy" or path.is_symlink() or not _second_name(path, target):
        _copy(path, target, durably=mode == "move")


def _copy(path: Path, target: Path, durably: bool) -> None:
    partial = target.with_name(f"{PARTIAL_PREFIX}{secrets.token_hex(8)}")
    try:
        shutil.copy2(path, partial)
        if durably:
            flush(partial)
        if not _second_name(partial, target):
            if os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
            partial.rename(target)
    finally:
        partial.unlink(missing_ok=True)


def _second_name(path: Path, new: Path) -> bool:
    """Create a hard link, which unlike a rename fails if ``new`` exists. Return False if it is not supported."""
    try:
        os.link(path, new)
    except FileExistsError:
        raise
    except OSError:
        return False
    return True


def _write_fingerprint(file: Path, fingerprint: str) -> None:
    with replacing(file, file.with_name(f"{PARTIAL_PREFIX}{secrets.token_hex(8)}"), durably=True) as partial:
        partial.write_text(fingerprint)


def _cannot_write(what: str, error: OSError, folder: Path) -> UserError:
    name = error.filename2 or error.filename
    where = printable(str(Path(name).parent if name else folder))
    remedy = REMEDIES.get(error.errno or 0, "correct the cause")
    return UserError(f"{what}: {printable(error.strerror or str(error))}: {remedy}, in {where}; {CONTINUE_ADVICE}")
