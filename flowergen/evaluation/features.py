"""Features of real pictures, computed once and cached."""

import logging
from hashlib import blake2b
from pathlib import Path

import numpy as np
from filelock import FileLock

from flowergen.data.progress_bar import num_pictures, with_progress_bar
from flowergen.errors import UserError
from flowergen.evaluation.extractors import Extractor, fields_of, in_batches
from flowergen.evaluation.pictures import PictureSet
from flowergen.evaluation.rows import Rows

log = logging.getLogger(__name__)

CHUNK_SIZE = 64  # pictures per batch


def collection_features(extractor: Extractor, pictures: PictureSet, cache_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    """Compute features and logits of all pictures of a collection, once for all commands and runs.

    Args:
        extractor: the feature extractor.
        pictures: a subset of the collection.
        cache_dir: the folder of all caches; an interrupted computation is resumed.

    Returns:
        (M, D) and (M, K) float32, read-only memory maps.

    Raises:
        UserError: the features cannot be written.
    """
    images = pictures.images
    identity = f"{extractor.weights}/{extractor.resize}/{pictures.key}"
    folder = cache_dir / f"features_{blake2b(identity.encode(), digest_size=8).hexdigest()}"
    rows = Rows(folder, fields_of(extractor))
    if rows.num < len(images):
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_name(f"{folder.name}.lock")):
                rows = Rows(folder, rows.fields)  # another process may have computed them meanwhile
                if rows.num < len(images):
                    log.info("computing features of %s real pictures by %s, once", f"{len(images):,}", extractor.name)
                rest = in_batches(extractor, images[rows.num :], CHUNK_SIZE)
                for features, logits in with_progress_bar("features", rest, len(images), rows.num, num_pictures):
                    rows.append(features=features, logits=logits)
                rows.sync()
        except OSError as error:
            raise UserError(
                f"the features of {len(images):,} pictures cannot be written to {cache_dir} ({error.strerror}): "
                "make room there or choose another folder with paths.cache_dir="
            ) from error
    return rows.array("features"), rows.array("logits")
