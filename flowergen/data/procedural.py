"""Procedurally drawn class-conditional flowers: a data set that needs no files.

A picture is a pure function of (seed, index, size, number of classes). The appearance of a class (shape and number of
petals, rings, markings, centre, colours) depends only on its label; everything else (background, view, light, small
variations) is drawn from a generator keyed by (seed, index). Lengths are fractions of the picture or of a petal, so the
same picture can be drawn at any size.

To draw a flower, project every pixel onto the flower's tilted plane, find the petal with the nearest axis, and compute
the signed distance to the outlines of that petal and its two neighbours. Three layers per ring thus suffice for any
number of petals, and the distance yields antialiased edges, soft shadows and coloured margins.

Arrays: a `Plane` is (H, W) float32; a `Canvas` is (3, H, W) float32, RGB in [0, 1]; a colour is a canvas of (3, 1, 1).
H = W = side of the supersampled picture, which spans [-1, 1] with x to the right and y down.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi, sin, tan

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flowergen.errors import UserError

MAX_CLASSES = 102  # as many as Oxford 102 Flowers
MIN_SIZE_PX = 8
DRAWING_VERSION = 1  # increment when any pixel changes: it is part of the cache key

# Chosen by eye, on contact sheets at 32, 64 and 128 pixels.
SUPERSAMPLING = 2  # low, as edges are already antialiased by distance
BACKGROUND_CELLS = 24  # per side; the background is out of focus and has no finer detail
OUTLINE_STEPS = 512
MAX_HALF_WIDTH = 0.62  # petal lengths; a wider petal would reach past its neighbours
MAX_EDGE_SLOPE = 1.0
RING_LENGTHS = (1.0, 0.64)
SHADOW_WIDTH, SHADOW_DEPTH = 0.11, 0.42  # petal lengths, fraction of the light
COLOUR_SPREAD, MAX_TILT = 0.03, 0.75  # standard deviation, radians
TINY = np.float32(1e-3)  # keeps quotients finite

Plane = NDArray[np.floating]
Canvas = NDArray[np.floating]


def _rgbs(*hex_codes: str) -> tuple[Canvas, ...]:
    return tuple(np.array(list(bytes.fromhex(code)), dtype=np.float32).reshape(3, 1, 1) / 255 for code in hex_codes)


# ---- Classes ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class PetalShape:
    """A petal whose half width at the fraction s of its length is proportional to s^base (1 - s)^tip."""

    name: str
    counts: tuple[int, ...]  # numbers of petals, used in turn by the classes of this shape
    base: float  # above 1, the petal starts as a narrow stalk
    tip: float  # 1: pointed end; towards 0: square end
    fullness: float  # largest half width, in units of the petal's own sector
    notch: float = 0.0  # depth of the cleft at the tip, fraction of the length
    fringe: float = 0.0  # depth of the teeth at the tip, fraction of the length
    curl: float = 0.0  # sideways bend at the tip, in units of the sector
    starts_double: bool = False  # True if the first class of this shape has two rings


SHAPES = (
    PetalShape("ray", (21, 13, 34, 16, 26), base=0.35, tip=0.3, fullness=0.8),
    PetalShape("trumpet", (5, 6, 4, 8, 7), base=1.0, tip=0.3, fullness=1.35),
    PetalShape("heart", (5, 4, 6, 3, 8), base=1.5, tip=0.4, fullness=0.74, notch=0.27),
    PetalShape("pointed", (6, 3, 8, 5, 11), base=0.75, tip=1.0, fullness=0.95),
    PetalShape("round", (4, 6, 3, 5, 8), base=0.8, tip=0.45, fullness=1.15),
    PetalShape("spoon", (9, 6, 13, 8, 11), base=2.6, tip=0.5, fullness=0.85),
    PetalShape("pinwheel", (5, 8, 4, 6, 10), base=0.9, tip=0.6, fullness=0.75, curl=0.9),
    PetalShape("fringed", (5, 7, 4, 9, 6), base=1.2, tip=0.22, fullness=1.0, fringe=0.13, starts_double=True),
)
# Name, outer and inner colour. 13 colours and 8 shapes are coprime, so the first 104 labels give 104 different pairs.
COLOUR_TABLE = """
    white   f6f4ee d9dcc0   blue    3a4fd0 e9ecff   pink    f7a6c4 d43f7d   orange  f4791f 9c2407
    red     d3181c 2a0610   yellow  fbd92b e07d0c   violet  7a3fc0 d9c2f6   magenta d0218f f9c3e3
    cream   f9e7b4 c8a13a   lilac   c3a4ea 6a2f9c   wine    8e0f3a e8707a   coral   fb8068 fff0c4
    azure   79b8f2 24449a
"""
COLOUR_NAMES, OUTER_HEX, INNER_HEX = (COLOUR_TABLE.split()[column::3] for column in range(3))
OUTER_COLOURS, INNER_COLOURS = _rgbs(*OUTER_HEX), _rgbs(*INNER_HEX)
CENTRE_COLOURS = _rgbs("f2b61c", "f8e36a", "6b3a12", "2a1420", "b9cf4a")


@dataclass(frozen=True)
class Species:
    """Properties shared by all pictures of one class."""

    name: str
    shape: PetalShape
    num_petals: int
    num_rings: int
    colours: tuple[Canvas, Canvas]  # outer, inner
    marking: Callable[["Petal"], Plane]
    draw_centre: "DrawCentre"
    centre_rgb: Canvas
    centre_radius: float  # petal lengths


def _species(label: int) -> Species:
    """Cycle through the traits with different periods, so that classes of one shape differ in more than colour."""
    variant, family = divmod(label, len(SHAPES))
    shape, colour = SHAPES[family], label % len(COLOUR_NAMES)
    num_petals = shape.counts[variant % len(shape.counts)]
    num_rings = 1 + (variant + shape.starts_double) % 2
    name = f"{COLOUR_NAMES[colour]}_{num_petals}_{shape.name}" + ("_double" if num_rings == 2 else "")
    colours = OUTER_COLOURS[colour], INNER_COLOURS[colour]
    marking = MARKINGS[(family + 2 * variant) % len(MARKINGS)]
    draw_centre, radius = CENTRES[(family + variant) % len(CENTRES)]
    radius *= (1.0, 1.3, 0.8)[variant % 3]
    centre_rgb = CENTRE_COLOURS[label % len(CENTRE_COLOURS)]
    return Species(name, shape, num_petals, num_rings, colours, marking, draw_centre, centre_rgb, radius)


def class_names(num_classes: int) -> tuple[str, ...]:
    """Return unique slugs of the first `num_classes` (1 to 102) classes by label, such as `white_21_ray`.

    Raises:
        UserError: `num_classes` is out of range.
    """
    _check_num_classes(num_classes)
    return tuple(species.name for species in SPECIES[:num_classes])


def _check_num_classes(num_classes: int) -> None:
    if not 1 <= num_classes <= MAX_CLASSES:
        raise UserError(f"num_classes={num_classes}: choose 1 to {MAX_CLASSES} classes for the procedural flowers")


# ---- Painting --------------------------------------------------------------------------------------------------------
def _paint(canvas: Canvas, colour: Canvas, alpha: Plane) -> None:
    """Blend a colour, uniform or per pixel, over the canvas in place."""
    canvas += (colour - canvas) * alpha


def _coverage(distance: Plane, softness: float) -> Plane:
    """Return the fraction of a pixel inside an outline: 0 to 1 across an edge of width `softness`."""
    return np.clip(distance * np.float32(1 / softness) + np.float32(0.5), 0, 1)


def _axis(side: int) -> Plane:
    """Return the centres of `side` pixels across the picture, (W,)."""
    return (np.arange(side, dtype=np.float32) * 2 + 1) / np.float32(side) - 1


def _vary(rgb: Canvas, rng: np.random.Generator) -> Canvas:
    return np.clip(rgb + rng.normal(0, COLOUR_SPREAD, (3, 1, 1)), 0, 1).astype(np.float32)


def _outline(base: float, tip: float) -> tuple[Plane, Plane]:
    """Tabulate the half width s^base (1 - s)^tip, scaled to a peak of 1, and its slope over s in [0, 1]."""
    s = (np.arange(OUTLINE_STEPS) + 0.5) / OUTLINE_STEPS
    widest = base / (base + tip)
    width = (s / widest) ** base * ((1 - s) / (1 - widest)) ** tip
    return width.astype(np.float32), (width * (base / s - tip / (1 - s))).astype(np.float32)


def _petal_distance(s: Plane, v: Plane, half_width: float, outline: tuple[Plane, Plane]) -> tuple[Plane, Plane]:
    """Return the signed distance to a petal's outline, positive inside, and the half width; both (H, W), in petal lengths.

    Args:
        s, v: (H, W) positions along the axis (0 at the base, 1 at the tip) and across it.
        half_width: half width at the widest point of the petal.
        outline: tables from `_outline`.
    """
    step = np.clip(s * OUTLINE_STEPS, 0, OUTLINE_STEPS - 1).astype(np.intp)
    width, across = outline[0].take(step) * np.float32(half_width), np.abs(v)
    # The distance to a slanted edge is shorter than the gap along v. The slope is bounded: a round tip is infinitely steep.
    slope = np.minimum(half_width * np.abs(outline[1]), MAX_EDGE_SLOPE)
    to_edge = (width - across) * (1 / np.sqrt(1 + slope**2)).take(step)
    to_box = np.minimum(np.minimum(s, 1 - s), half_width - across)
    return np.minimum(to_edge, to_box), width


# ---- The view --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class View:
    """Pixel positions on the tilted plane of the flower, in units of its radius, and the light."""

    right: Plane  # (1, W), offset from the centre of the flower in the picture
    down: Plane  # (H, 1), likewise
    x: Plane
    y: Plane
    radius: Plane
    angle: Plane
    spin: float  # angle of the first petal
    light_angle: float
    lit: Plane  # -1 to 1, alignment of the direction away from the centre with the light
    pixel: float  # side of a sample


def _draw_view(side: int, rng: np.random.Generator) -> View:
    scale, (turn, light_angle, spin) = rng.uniform(0.58, 0.86), rng.uniform(0, 2 * pi, 3).tolist()
    right = (_axis(side)[None, :] - rng.uniform(-0.16, 0.16)) / scale
    down = (_axis(side)[:, None] - rng.uniform(-0.18, 0.12)) / scale
    tilt = rng.uniform(0, MAX_TILT)
    x, y = right * cos(turn) + down * sin(turn), (down * cos(turn) - right * sin(turn)) / cos(tilt)
    farness = 1 + 0.22 * sin(tilt) * np.clip(y, -2, 2)  # perspective: the farther half looks smaller
    x, y = x * farness, y * farness
    radius = np.hypot(x, y)
    lit = (x * cos(light_angle) + y * sin(light_angle)) * (rng.uniform(0.5, 1) / (radius + TINY))
    return View(right, down, x, y, radius, np.arctan2(y, x), spin, light_angle, lit, 2 / side / scale)


# ---- Petals ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Petal:
    """Pixel positions relative to one layer of petals."""

    s: Plane  # along the axis, 0 at the base, 1 at the tip
    q: Plane  # across the axis, -1 and 1 at the edges
    edge: Plane  # signed distance to the outline, in petal lengths


# Weight of the inner colour of a petal at each pixel, 0 to 1.
MARKINGS: tuple[Callable[[Petal], Plane], ...] = (
    lambda petal: np.clip(1.1 - 1.6 * petal.s, 0, 1),  # flushed towards the base
    lambda petal: np.clip(1.6 - 5 * np.abs(petal.q) - 0.6 * petal.s, 0, 1),  # a stripe along the middle
    lambda petal: np.clip(0.3 - 0.5 * petal.s, 0, 1),  # plain
    lambda petal: np.clip(np.cos(14 * petal.q) * 0.9 - 0.2, 0, 1) * np.clip(1.25 - petal.s, 0, 1),  # veins
    lambda petal: np.clip((0.5 - 0.1 * petal.q**2 - petal.s) * 9, 0, 1),  # a blotch at the base
    lambda petal: np.clip(1.6 - petal.edge * 16, 0, 1),  # a margin (picotee)
    lambda petal: np.clip(petal.s * 4 - 2.6, 0, 1),  # a coloured tip
)
OUTLINES = {shape.name: _outline(shape.base, shape.tip) for shape in SHAPES}


def _locate(u: Plane, v: Plane, shape: PetalShape, num_petals: int) -> Petal:
    """Undo the petal's bend, cleft and teeth, then compute positions in it; u and v run along and across its chord."""
    sector = tan(pi / num_petals)
    half_width = min(shape.fullness * sector * shape.base / (shape.base + shape.tip), MAX_HALF_WIDTH)
    v = v - shape.curl * sector * u * u
    cleft = 1 - shape.notch * np.exp(np.abs(v) * (-3 / half_width))
    s = u / cleft * (1 + shape.fringe * np.abs(np.sin(v * (7 / half_width))))
    edge, width = _petal_distance(s, v, half_width, OUTLINES[shape.name])
    return Petal(s, np.clip(v / (width + TINY), -1, 1), edge)


def _light_on(petal: Petal, lit: Plane, sideways: Plane) -> Plane:
    """Return the brightness of a petal that is cupped along, arched across, creased in the middle and dark at its base."""
    base = 0.78 + 0.22 * np.clip(1.6 * petal.s, 0, 1)
    return base + 0.2 * lit * petal.s + 0.13 * sideways * petal.q - 0.1 * np.clip(1 - 5 * np.abs(petal.q), 0, 1)


def _draw_ring(canvas: Canvas, view: View, species: Species, ring: int, rng: np.random.Generator) -> None:
    """Draw petals in a circle, each over the previous one; a second ring is shorter and fills the gaps of the first."""
    n, sector, length = species.num_petals, 2 * pi / species.num_petals, RING_LENGTHS[ring]
    start = view.spin + ring * sector / 2
    outer, inner = (_vary(rgb, rng) for rgb in species.colours)
    angles = start + sector * (np.arange(n) + rng.normal(0, 0.05, n))
    lengths = length * rng.uniform(0.9, 1.05, n)
    shades = rng.normal(1, 0.035, n).astype(np.float32)
    cosines, sines = (np.cos(angles) / lengths).astype(np.float32), (np.sin(angles) / lengths).astype(np.float32)
    facing = np.sin(view.light_angle - angles).astype(np.float32)
    nearest = np.rint((view.angle - start) / sector).astype(np.intp)
    for neighbour in (-1, 0, 1):
        k = (nearest + neighbour) % n  # (H, W) petal index
        u, v = view.x * cosines[k] + view.y * sines[k], view.y * cosines[k] - view.x * sines[k]
        petal = _locate(u, v, species.shape, n)
        canvas *= 1 - SHADOW_DEPTH * np.clip(1 + petal.edge / SHADOW_WIDTH, 0, 1) ** 2
        light = _light_on(petal, view.lit, facing[k]) * shades[k]
        colour = (outer + (inner - outer) * species.marking(petal)) * light
        _paint(canvas, colour, _coverage(petal.edge, view.pixel / length))


# ---- Centres: painted over the petals; r is 1 at the rim, soft is the width of a sample ------------------------------
DrawCentre = Callable[[Canvas, View, Plane, float, Canvas], None]
EYE_RGB, FILAMENT_RGB, PISTIL_RGB = _rgbs("fcedb8", "edebb3", "809933")


def _disk(canvas: Canvas, view: View, r: Plane, soft: float, rgb: Canvas) -> None:
    """Paint a dome of florets on crossing spirals, as in daisies and sunflowers."""
    florets = np.cos(13 * view.angle + 9 * r) * np.cos(8 * view.angle - 14 * r)
    light = 1.05 - 0.45 * r * r - 0.25 * view.lit * r + 0.22 * florets * np.clip(2 * r, 0, 1)
    _paint(canvas, rgb * light, _coverage(1 - r, soft))


def _throat(canvas: Canvas, view: View, r: Plane, soft: float, rgb: Canvas) -> None:
    """Paint a glow around a small dark well, as in morning glories."""
    _paint(canvas, rgb, np.clip(1.25 - r, 0, 1) ** 2)
    _paint(canvas, rgb * 0.35, _coverage(0.32 - r, max(soft, 0.15)))


def _eye(canvas: Canvas, view: View, r: Plane, soft: float, rgb: Canvas) -> None:
    """Paint a pale ring around a button, as in primroses."""
    _paint(canvas, EYE_RGB, _coverage(1 - r, soft))
    _paint(canvas, rgb * (1 - 0.2 * view.lit), _coverage(0.58 - r, soft))


def _stamens(canvas: Canvas, view: View, r: Plane, soft: float, rgb: Canvas) -> None:
    """Paint filaments that end in anthers around a green pistil, as in lilies."""
    spoke, reach = np.cos(11 * view.angle), 0.75 + 0.2 * np.cos(4 * view.angle)
    _paint(canvas, FILAMENT_RGB, _coverage(reach - r, soft) * np.clip(3 * spoke - 1.8, 0, 1))
    _paint(canvas, rgb, _coverage(0.16 - np.hypot(r - reach, 0.3 - 0.3 * np.clip(spoke, 0, 1)), soft))
    _paint(canvas, PISTIL_RGB * (1.1 - r), _coverage(0.32 - r, soft))


def _crown(canvas: Canvas, view: View, r: Plane, soft: float, rgb: Canvas) -> None:
    """Paint the ruffled cup of a daffodil."""
    rim = 1 + 0.07 * np.cos(12 * view.angle)
    depth = np.clip(r / rim, 0, 1)
    canvas *= 1 - 0.35 * np.clip(1 + (rim - r) * 3.5, 0, 1)
    light = 0.5 + 0.6 * depth**3 - 0.2 * view.lit * depth + 0.06 * np.cos(24 * view.angle) * depth
    _paint(canvas, rgb * light, _coverage(rim - r, soft))


CENTRES = ((_disk, 0.3), (_throat, 0.45), (_eye, 0.22), (_stamens, 0.36), (_crown, 0.32))  # radius in petal lengths
SPECIES = tuple(map(_species, range(MAX_CLASSES)))


# ---- Backgrounds and leaves ------------------------------------------------------------------------------------------
# Colours: top and bottom of the gradient, then the discs.
SETTINGS = {
    "meadow": _rgbs("5d8a45", "27431f", "7fae55", "1f3a1c", "a9c77a", "3e6a35"),
    "shade": _rgbs("1d2d1c", "0c120d", "2e4a2a", "16241a", "3f5a3a"),
    "sky": _rgbs("9cc7ee", "5c8c4a", "cfe4f7", "7fb0dc", "86b064"),
    "soil": _rgbs("7b6147", "3a2a1d", "5a4532", "967b5c", "4a5a2c", "2c2118"),
    "wall": _rgbs("d9d4c6", "a9a996", "e8e4da", "b4bd9a", "c3b8a4"),
}
NUM_DISCS, LEAFINESS = 12, 0.6  # LEAFINESS: probability of a stem and of each leaf
LEAF_COLOURS = _rgbs("3d6b2a", "5d8f37", "2c5433", "7a9f4a")
LEAF_OUTLINE = _outline(0.8, 1.0)


def _draw_background(side: int, rng: np.random.Generator) -> Canvas:
    """Draw soft discs over a vertical gradient on few cells, then enlarge them smoothly, which blurs them."""
    axis = _axis(BACKGROUND_CELLS)
    top, bottom, *discs = SETTINGS[rng.choice(list(SETTINGS))]
    cells = _vary(top, rng) + np.zeros((3, BACKGROUND_CELLS, BACKGROUND_CELLS), dtype=np.float32)
    _paint(cells, _vary(bottom, rng), (axis[:, None] + 1) / 2)
    for _ in range(NUM_DISCS):
        (x, y), radius, opacity = rng.uniform(-1.1, 1.1, 2).tolist(), rng.uniform(0.12, 0.5), rng.uniform(0.25, 0.8)
        inside = _coverage(radius - np.hypot(axis[None, :] - x, axis[:, None] - y), 0.25)
        _paint(cells, _vary(discs[rng.integers(len(discs))], rng), inside * opacity)
    small = Image.fromarray((cells.transpose(1, 2, 0) * 255).astype(np.uint8))
    large = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)
    return np.ascontiguousarray(large.transpose(2, 0, 1)) / 255


def _draw_foliage(canvas: Canvas, view: View, rng: np.random.Generator) -> None:
    """Draw a random stem and random leaves, or none, behind the flower, more or less in focus."""
    right, down, rgb = view.right, view.down, LEAF_COLOURS[rng.integers(len(LEAF_COLOURS))]
    if rng.random() < LEAFINESS:
        lean, bow = rng.uniform(-0.35, 0.35, 2).tolist()
        inside = 0.05 - np.abs(right - down * (lean + bow * down))
        _paint(canvas, rgb * (1 + 4 * inside), _coverage(inside, 0.04) * (down > 0))
    for _ in range(rng.binomial(3, LEAFINESS)):
        angle, length, half_width = rng.uniform(0, 2 * pi), rng.uniform(1.25, 2), rng.uniform(0.14, 0.26)
        s, v = right * cos(angle) + down * sin(angle), down * cos(angle) - right * sin(angle)
        s, v = s / length, v / length + rng.uniform(-0.3, 0.3) * s * s
        edge, _ = _petal_distance(s, v, half_width, LEAF_OUTLINE)
        light = rng.uniform(0.7, 1.1) + 0.25 * np.clip(1 - np.abs(v) * 25, 0, 1) + 0.5 * np.clip(v, -0.2, 0.2)
        _paint(canvas, _vary(rgb, rng) * light, _coverage(edge, rng.uniform(0.03, 0.12)))


# ---- The picture -----------------------------------------------------------------------------------------------------
def draw_flower(seed: int, index: int, size_px: int, num_classes: int) -> NDArray[np.uint8]:
    """Draw one picture of the data set; thread-safe.

    Args:
        seed: seed of the data set, at least 0.
        index: index of the picture, at least 0; its class is index mod num_classes.
        size_px: side of the picture, at least 8; the same picture is drawn at every size.
        num_classes: 1 to 102; the appearance of a class does not depend on it.

    Returns:
        uint8 (size_px, size_px, 3), RGB.

    Raises:
        UserError: `size_px` or `num_classes` is out of range.
    """
    _check_num_classes(num_classes)
    if size_px < MIN_SIZE_PX:
        raise UserError(f"image size {size_px}: choose {MIN_SIZE_PX} pixels or more for the procedural flowers")
    species = SPECIES[index % num_classes]
    rng = np.random.default_rng(np.random.SeedSequence([seed, index]))
    side = SUPERSAMPLING * size_px
    view = _draw_view(side, rng)
    canvas = _draw_background(side, rng)
    _draw_foliage(canvas, view, rng)
    for ring in range(species.num_rings):
        _draw_ring(canvas, view, species, ring, rng)
    radius = species.centre_radius * rng.uniform(0.9, 1.1)
    species.draw_centre(canvas, view, view.radius / radius, view.pixel / radius, _vary(species.centre_rgb, rng))
    brightness, warmth = rng.uniform(0.85, 1.15), rng.uniform(-0.07, 0.07)
    canvas *= np.array([1 + warmth, 1, 1 - warmth], dtype=np.float32).reshape(3, 1, 1) * np.float32(brightness)
    samples = canvas.reshape(3, size_px, SUPERSAMPLING, size_px, SUPERSAMPLING)
    picture = np.clip(samples.mean(axis=(2, 4)), 0, 1).transpose(1, 2, 0)
    return np.ascontiguousarray((picture * 255 + 0.5).astype(np.uint8))
