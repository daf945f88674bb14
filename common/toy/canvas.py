"""What the toy data set is drawn with: concepts, a canvas that paints image and labels at once, a camera."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import cv2
import numpy as np

Color = Sequence[float]
Point = tuple[float, float]


class Concept(IntEnum):
    """What a pixel of a drawn scene shows, finer than any one data set's classes. Each layout maps it to its labels."""

    VOID = 0
    BORDER = 1  # the strip at the image's edge that rectification leaves empty
    EGO_CAR = 2
    ROAD = 3
    SIDEWALK = 4
    TERRAIN = 5
    SKY = 6
    BUILDING = 7
    WINDOW = 8
    DOOR = 9
    HILL = 10
    WALL = 11
    FENCE = 12
    TREE = 13
    HEDGE = 14
    POLE = 15
    TRAFFIC_LIGHT = 16
    TRAFFIC_SIGN = 17
    STOP_SIGN = 18
    PERSON = 19
    RIDER = 20
    CAR = 21
    LICENCE_PLATE = 22
    TRUCK = 23
    BUS = 24
    MOTORCYCLE = 25
    BICYCLE = 26
    BENCH = 27
    DOG = 28
    FLOWER_POT = 29
    SHADOW = 30
    # The parts of a person seen close (LIP); left and right are the person's own.
    HAT = 40
    HAIR = 41
    GLOVE = 42
    SUNGLASSES = 43
    UPPER_CLOTHES = 44
    DRESS = 45
    COAT = 46
    SOCKS = 47
    PANTS = 48
    JUMPSUIT = 49
    SCARF = 50
    SKIRT = 51
    FACE = 52
    LEFT_ARM = 53
    RIGHT_ARM = 54
    LEFT_LEG = 55
    RIGHT_LEG = 56
    LEFT_SHOE = 57
    RIGHT_SHOE = 58


@dataclass(frozen=True)
class Thing:
    """One countable object of a scene; `crowd` marks a group drawn as one."""

    concept: Concept
    crowd: bool = False


@dataclass(frozen=True)
class Scene:
    """A drawn image with all that is known about it.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        concepts: (H, W) uint8, values of `Concept`.
        instances: (H, W) uint16, 0 = no countable object, k = `things[k - 1]`.
        things: The countable objects, farthest first.
    """

    image: np.ndarray
    concepts: np.ndarray
    instances: np.ndarray
    things: tuple[Thing, ...]


class Canvas:
    """Image, concept map and instance map that are painted together.

    Small images are drawn at twice their size and reduced at the end, which smooths their edges; labels are sampled,
    never mixed. Coordinates are (x, y) in canvas pixels.

    Args:
        size: (height, width) of the scene that `finish` returns.
    """

    def __init__(self, size: tuple[int, int]):
        self.oversampling = 2 if size[0] < 512 else 1
        self.height, self.width = size[0] * self.oversampling, size[1] * self.oversampling
        self.image = np.zeros((self.height, self.width, 3), np.uint8)
        self.concepts = np.zeros((self.height, self.width), np.uint8)
        self.instances = np.zeros((self.height, self.width), np.uint16)
        self.things: list[Thing] = []

    @property
    def unit(self) -> float:
        """One pixel of an image 128 high, in canvas pixels: what line widths and smallest sizes are counted in."""
        return self.height / 128

    def pen(self, concept: Concept) -> Pen:
        """Returns a pen for stuff (road, sky, ...), which has no instances."""
        return Pen(self, concept, 0)

    def thing(self, concept: Concept, crowd: bool = False) -> Pen:
        """Registers a new object and returns the pen that draws it."""
        self.things.append(Thing(concept, crowd))
        return Pen(self, concept, len(self.things))

    def darken(self, points: Sequence[Point], factor: float) -> None:
        """Lays a shadow: multiplies the image inside a polygon; labels stay as they are."""
        polygon = _as_pixels(points)
        x, y, width, height = cv2.boundingRect(polygon)
        x0, y0 = max(x, 0), max(y, 0)
        x1, y1 = min(x + width, self.width), min(y + height, self.height)
        if x0 >= x1 or y0 >= y1:
            return
        mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
        cv2.fillPoly(mask, [polygon - np.array([x0, y0], np.int32)], 1)
        part = self.image[y0:y1, x0:x1]
        part[mask > 0] = (part[mask > 0] * factor).astype(np.uint8)

    def finish(self) -> Scene:
        """Returns the scene at its final size."""
        step = self.oversampling
        size = (self.width // step, self.height // step)
        image = cv2.resize(self.image, size, interpolation=cv2.INTER_AREA) if step > 1 else self.image
        concepts = np.ascontiguousarray(self.concepts[::step, ::step])
        instances = np.ascontiguousarray(self.instances[::step, ::step])
        return Scene(image, concepts, instances, tuple(self.things))


@dataclass(frozen=True)
class Pen:
    """Paints with a colour on the image and with one concept and instance on the label maps.

    A colour of None leaves the image as it is (what shows between the spokes of a wheel is still the bicycle).
    """

    canvas: Canvas
    concept: Concept
    instance: int

    def polygon(self, points: Sequence[Point], color: Color | None) -> None:
        """Fills a polygon."""
        pixels = _as_pixels(points)
        self._paint(lambda image, value: cv2.fillPoly(image, [pixels], value), color)

    def rectangle(self, x0: float, y0: float, x1: float, y1: float, color: Color | None) -> None:
        """Fills an upright rectangle."""
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], color)

    def ellipse(self, centre: Point, axes: Point, color: Color | None, angle: float = 0.0) -> None:
        """Fills an ellipse of half axes `axes`, turned by `angle` degrees."""
        middle = tuple(int(v) for v in _as_pixels([centre])[0])
        half = tuple(max(0, round(v)) for v in axes)
        self._paint(lambda image, value: cv2.ellipse(image, middle, half, angle, 0, 360, value, -1), color)

    def line(self, points: Sequence[Point], width: float, color: Color | None) -> None:
        """Draws an open line with round ends."""
        pixels = _as_pixels(points)
        thickness = max(1, round(width))
        self._paint(lambda image, value: cv2.polylines(image, [pixels], False, value, thickness), color)

    def ring(self, centre: Point, radius: float, width: float, color: Color) -> None:
        """Paints a circle's line and labels the whole disc."""
        self.ellipse(centre, (radius, radius), None)
        middle = tuple(int(v) for v in _as_pixels([centre])[0])
        cv2.circle(self.canvas.image, middle, max(1, round(radius - width / 2)), as_bytes(color), max(1, round(width)))

    def _paint(self, draw: Callable[[np.ndarray, object], object], color: Color | None) -> None:
        if color is not None:
            draw(self.canvas.image, as_bytes(color))
        draw(self.canvas.concepts, int(self.concept))
        draw(self.canvas.instances, self.instance)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks down the street: x to the right, y up from the ground, z ahead, in metres."""

    focal: float
    horizon: float
    centre: float
    height: float

    def __call__(self, x: float, y: float, z: float) -> Point:
        """Returns the canvas position (x, y) of a point in the world."""
        return self.centre + self.focal * x / z, self.horizon + self.focal * (self.height - y) / z

    def ground(self, x0: float, x1: float, z0: float, z1: float) -> list[Point]:
        """Returns the canvas polygon of a rectangle on the ground."""
        return [self(x0, 0, z0), self(x1, 0, z0), self(x1, 0, z1), self(x0, 0, z1)]

    def side(self, x: float, y0: float, y1: float, z0: float, z1: float) -> list[Point]:
        """Returns the canvas polygon of an upright rectangle along the street."""
        return [self(x, y0, z0), self(x, y1, z0), self(x, y1, z1), self(x, y0, z1)]

    def front(self, x0: float, x1: float, y0: float, y1: float, z: float) -> list[Point]:
        """Returns the canvas polygon of an upright rectangle across the street."""
        return [self(x0, y0, z), self(x1, y0, z), self(x1, y1, z), self(x0, y1, z)]

    def frame(self, x: float, z: float, mirrored: bool = False) -> Frame:
        """Returns the frame of a flat figure that stands on the ground at (x, z)."""
        return Frame(*self(x, 0, z), self.focal / z, mirrored)


@dataclass(frozen=True)
class Frame:
    """Places a flat figure drawn in metres (x to the right, y up from its feet) on the canvas."""

    x: float
    y: float
    scale: float
    mirrored: bool = False

    def __call__(self, x: float, y: float) -> Point:
        """Returns the canvas position of a point of the figure."""
        return self.x + (-x if self.mirrored else x) * self.scale, self.y - y * self.scale

    def points(self, *points: Point) -> list[Point]:
        """Returns the canvas positions of several points."""
        return [self(x, y) for x, y in points]


def pick(rng: np.random.Generator, choices: Sequence):
    """Returns one element of a sequence."""
    return choices[int(rng.integers(len(choices)))]


def vary(rng: np.random.Generator, color: Color, amount: float = 14.0) -> tuple[float, float, float]:
    """Returns a colour near the given one: shifted as a whole and, less, per channel."""
    shift = rng.normal(0, amount) + rng.normal(0, amount / 2, 3)
    return tuple(np.clip(np.asarray(color, float) + shift, 8, 250))


def tint(color: Color, factor: float) -> tuple[float, float, float]:
    """Returns the colour lighter (factor > 1) or darker."""
    return tuple(min(255.0, float(c) * factor) for c in color)


def as_bytes(color: Color) -> tuple[int, int, int]:
    """Returns the colour as three whole numbers 0..255, as OpenCV takes it."""
    return tuple(min(255, max(0, round(float(c)))) for c in color)


def _as_pixels(points: Sequence[Point]) -> np.ndarray:
    # Points close to the camera plane project far outside; OpenCV's fixed-point coordinates must not overflow.
    limit = 16000
    pixels = [(max(-limit, min(limit, round(x))), max(-limit, min(limit, round(y)))) for x, y in points]
    return np.array(pixels, np.int32)
