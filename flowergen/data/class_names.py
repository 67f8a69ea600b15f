"""Lookup of classes by the names or numbers that users type."""

import csv
import difflib
import re
from collections.abc import Sequence

from flowergen.errors import UserError, printable


def class_label(name: str | int, class_names: Sequence[str]) -> int:
    """Find the label of a class by exact name, else by case-insensitive slug, else by number.

    Args:
        name: name or number, such as ``colt's foot``, ``colts_foot`` or ``"3"``; an int is the label itself.
        class_names: class names by label.

    Returns:
        The label.

    Raises:
        UserError: the name is unknown (the error suggests the nearest ones) or matches several classes.

    >>> class_label("Colt's Foot", ["daisy", "colts_foot"])
    1
    >>> class_label("C#", ["C", "C#", "C++"])
    1
    """
    if not class_names:
        raise UserError(f"class {name}: these pictures have no classes")
    if isinstance(name, int) and 0 <= name < len(class_names):
        return name
    typed, wanted = str(name), slug(str(name))
    if typed in class_names:
        return list(class_names).index(typed)
    matching = [label for label, known in enumerate(class_names) if wanted and slug(known) == wanted]
    if len(matching) == 1:
        return matching[0]
    if typed.isdecimal() and int(typed) < len(class_names):
        return int(typed)
    if matching:
        candidates = " or ".join(f"{label} ({class_names[label]})" for label in matching)
        raise UserError(f"class {printable(typed)} is ambiguous: give the number of one of {printable(candidates)}")
    slugs = {slug(known): label for label, known in reversed(list(enumerate(class_names)))}
    near = difflib.get_close_matches(wanted, slugs, n=3)
    some = f"{', '.join(class_names[:10])}{', ...' if len(class_names) > 10 else ''}"
    hint = f"there are {len(class_names)}, 0 to {len(class_names) - 1}: {some}"
    if near:
        hint = f"did you mean {' or '.join(class_names[slugs[found]] for found in near)}?"
    raise UserError(f"there is no class {printable(typed)}: {printable(hint)}")


def class_labels(text: str, class_names: Sequence[str]) -> list[int]:
    """Parse a list of classes typed by a user.

    Args:
        text: ``all``, or names and numbers as in ``[0,5,sunflower]``; names with commas or quotes go in double quotes.
        class_names: class names by label.

    Returns:
        The labels, in the order typed.

    Raises:
        UserError: the list is empty or contains an unknown class.

    >>> class_labels('["C++",0]', ["C", "C#", "C++"])
    [2, 0]
    """
    inner = " ".join(text.split()).removeprefix("[").removesuffix("]").strip()
    if inner == "all":
        return list(range(len(class_names)))
    try:
        typed = [name.strip() for row in csv.reader([inner], skipinitialspace=True) for name in row]
    except csv.Error as error:
        raise UserError(f"classes= cannot be read ({error}): give names and numbers, as in classes=[0,5,sunflower]") from error
    labels = [class_label(name, class_names) for name in typed if name]
    if not labels:
        raise UserError("classes= is empty: give all, or numbers and names, as in classes=[0,5,sunflower]")
    return labels


def slug(name: str) -> str:
    """Return the words of a name in lower case, joined by underscores.

    >>> slug("Colt's foot")
    'colts_foot'
    """
    return "_".join(re.findall(r"\w+", name.casefold().replace("'", "").replace("_", " ")))
