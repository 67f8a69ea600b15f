"""What users call a class."""

import difflib
import re
from collections.abc import Sequence

from flowergen.data.listing import printable
from flowergen.errors import UserError


def class_label(name: str | int, class_names: Sequence[str]) -> int:
    """The label that a user means: by number, name or slug, in any case.

    Args:
        name: such as ``3``, ``colt's foot`` or ``colts_foot``.
        class_names: by label.

    Returns:
        The label.

    Raises:
        UserError: for an unknown one, with the nearest names.

    >>> class_label("Colt's Foot", ["daisy", "colts_foot"])
    1
    """
    if not class_names:
        raise UserError(f"class {name}: these pictures have no classes")
    slugs = {_slug(known): label for label, known in reversed(list(enumerate(class_names)))}
    label = slugs.get(_slug(str(name)), int(name) if str(name).isdecimal() else -1)
    if 0 <= label < len(class_names):
        return label
    near = difflib.get_close_matches(_slug(str(name)), slugs, n=3)
    hint = f"did you mean {' or '.join(class_names[slugs[slug]] for slug in near)}?" if near else _some(class_names)
    raise UserError(f"there is no class {printable(str(name))}: {printable(hint)}")


def _slug(name: str) -> str:
    return "_".join(re.findall(r"\w+", name.casefold().replace("'", "").replace("_", " ")))


def _some(class_names: Sequence[str]) -> str:
    shown = ", ".join(class_names[:10])
    return f"there are {len(class_names)}, 0 to {len(class_names) - 1}: {shown}{', ...' if len(class_names) > 10 else ''}"
