"""The street scenes of the toy data set: how a street is laid out, who is in it, and in which light it is seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from common.toy.canvas import Camera, Canvas, Color, Concept, Frame, Pen, Scene, pick, tint, vary
from common.toy.people import crowd, cyclist, dog, motorcyclist, person
from common.toy.street import (
    bench,
    building,
    fence,
    flower_pot,
    hedge,
    lamp_post,
    sign,
    traffic_light,
    tree,
    wall,
)
from common.toy.vehicles import bicycle, bus, bus_side, car, car_side, motorcycle, truck, truck_side

import cv2
import numpy as np

FAR = 70.0  # metres: where the street ends
Item = tuple[float, Callable[[], None]]  # distance, and what draws it

# How strongly each surface is grained: (per pixel, in patches), in grey levels.
GRAIN = {
    Concept.ROAD: (5, 5),
    Concept.SIDEWALK: (5, 4),
    Concept.TERRAIN: (11, 11),
    Concept.SKY: (1, 0),
    Concept.BUILDING: (4, 4),
    Concept.WALL: (7, 6),
    Concept.TREE: (12, 10),
    Concept.HEDGE: (12, 8),
    Concept.HILL: (6, 8),
}
DEFAULT_GRAIN = (3, 2)


@dataclass(frozen=True)
class Mood:
    """The light of a scene: what it multiplies RGB by, the sky from top to horizon, and the shadows of the sun."""

    gain: Color
    zenith: Color
    haze: Color
    shadow: float  # what a shadow multiplies by; 1 = no sun
    clouds: float  # 0 = none


MOODS = (
    Mood((1.02, 1.01, 0.98), (84, 146, 222), (196, 220, 240), 0.58, 0.6),  # noon
    Mood((0.98, 1.0, 1.02), (110, 164, 224), (214, 228, 238), 0.66, 0.9),  # fair, with clouds
    Mood((0.9, 0.92, 0.95), (176, 184, 194), (214, 218, 222), 1.0, 0.5),  # overcast
    Mood((1.06, 0.96, 0.84), (108, 128, 188), (250, 202, 150), 0.6, 0.5),  # evening
    Mood((0.82, 0.84, 0.9), (70, 88, 134), (190, 170, 178), 1.0, 0.3),  # dusk
)


@dataclass(frozen=True)
class Side:
    """One side of the street, in metres from the camera's line: sign -1 is the left."""

    sign: int
    kerb: float  # where the road ends
    verge: float  # width of the grass between road and pavement, 0 = none
    pavement: float  # width
    garden: float  # width of the strip before the houses, 0 = none

    @property
    def path(self) -> float:
        """Where the pavement begins."""
        return self.kerb + self.sign * self.verge

    @property
    def edge(self) -> float:
        """Where the pavement ends."""
        return self.path + self.sign * self.pavement

    @property
    def facade(self) -> float:
        """Where the houses stand."""
        return self.edge + self.sign * self.garden


@dataclass(frozen=True)
class Street:
    """All that the painters of one scene share."""

    canvas: Canvas
    camera: Camera
    rng: np.random.Generator
    mood: Mood
    sun: int  # which side the light comes from
    sides: tuple[Side, Side]
    crossing: float | None  # distance of a crossing street

    @property
    def road(self) -> tuple[float, float]:
        """The x of the road's two edges."""
        return self.sides[0].kerb, self.sides[1].kerb


def draw_street(size: tuple[int, int], rng: np.random.Generator) -> Scene:
    """Draws one street scene.

    Args:
        size: (height, width).
        rng: All chance comes from here: an equal state gives equal bytes.
    """
    street = _plan(Canvas(size), rng)
    _sky(street)
    _ground(street)
    _houses(street)
    for side in street.sides:
        _garden(street, side)
    items = _on_pavements(street) + _on_road(street)
    for _, draw in sorted(items, key=lambda item: -item[0]):
        draw()
    _camera_car(street)
    scene = street.canvas.finish()
    return replace(scene, image=photograph(scene, rng, street.mood.gain))


def _plan(canvas: Canvas, rng: np.random.Generator) -> Street:
    height = rng.uniform(1.6, 2.1)
    horizon = rng.uniform(0.38, 0.46) * canvas.height
    nearest = rng.uniform(3.5, 4.3)
    camera = Camera(
        (canvas.height - horizon) * nearest / height, horizon, rng.uniform(0.42, 0.58) * canvas.width, height
    )
    sides = []
    for sign_, kerb in ((-1, rng.uniform(4.2, 5.4)), (1, rng.uniform(2.4, 3.6))):
        verge = rng.uniform(1.4, 2.2) if rng.random() < 0.6 else 0.0
        garden = rng.uniform(2.0, 4.5) if rng.random() < 0.8 else 0.0
        sides.append(Side(sign_, sign_ * kerb, verge, rng.uniform(2.2, 3.2), garden))
    crossing = rng.uniform(9.5, 13.0) if rng.random() < 0.45 else None
    mood = MOODS[int(rng.choice(len(MOODS), p=(0.28, 0.27, 0.2, 0.15, 0.1)))]
    return Street(canvas, camera, rng, mood, int(rng.choice((-1, 1))), (sides[0], sides[1]), crossing)


def _sky(street: Street) -> None:
    """Paints sky, clouds and what closes the view at the horizon."""
    canvas, rng, mood, camera = street.canvas, street.rng, street.mood, street.camera
    bottom = min(canvas.height, int(camera.horizon) + 1)
    canvas.pen(Concept.SKY).rectangle(0, 0, canvas.width, bottom, None)
    down = np.linspace(0, 1, bottom, dtype=np.float32)[:, None, None]
    sky = (1 - down) * np.float32(mood.zenith) + down * np.float32(mood.haze)
    cells = rng.standard_normal((6, 9)).astype(np.float32)
    fine = rng.standard_normal((14, 24)).astype(np.float32)
    size = (canvas.width, bottom)
    clouds = cv2.resize(cells, size, interpolation=cv2.INTER_CUBIC)
    clouds = clouds + 0.45 * cv2.resize(fine, size, interpolation=cv2.INTER_CUBIC)
    cover = np.clip((clouds - 0.5) * 1.5, 0, 1)[..., None] * mood.clouds
    white = 0.5 * np.float32(mood.haze) + 0.5 * np.float32((255, 252, 248))
    canvas.image[:bottom] = np.clip(sky + cover * (white - sky), 0, 255).astype(np.uint8)
    base = camera.horizon + canvas.unit * 1.5
    if rng.random() < 0.6:
        x = np.linspace(0, canvas.width, 17)
        top = camera.horizon - canvas.unit * (
            5 + 9 * np.abs(np.convolve(rng.standard_normal(19), (0.3, 0.4, 0.3), "valid"))
        )
        color = 0.45 * np.float32((70, 110, 80)) + 0.55 * np.float32(mood.haze)
        canvas.pen(Concept.HILL).polygon([*zip(x, top, strict=True), (canvas.width, base), (0, base)], color)
    for _ in range(int(rng.integers(5, 10))):
        middle, half = rng.uniform(0, canvas.width), rng.uniform(5, 14) * canvas.unit
        color = 0.55 * np.float32(vary(rng, (170, 150, 140))) + 0.45 * np.float32(mood.haze)
        top = camera.horizon - rng.uniform(4, 16) * canvas.unit
        canvas.pen(Concept.BUILDING).rectangle(middle - half, top, middle + half, base, color)


def _ground(street: Street) -> None:
    """Paints the ground: grass, pavements, the road with its markings, and a crossing street with its zebra."""
    canvas, camera, rng = street.canvas, street.camera, street.rng
    near, wide = 1.2, 60.0
    grass = vary(rng, pick(rng, ((112, 142, 62), (128, 146, 74), (146, 134, 84))), 8)
    asphalt = vary(rng, (96, 96, 100), 9)
    paving = vary(rng, pick(rng, ((172, 164, 158), (184, 168, 150), (158, 156, 158))), 7)
    canvas.pen(Concept.TERRAIN).rectangle(0, camera.horizon, canvas.width, canvas.height, grass)
    walk = canvas.pen(Concept.SIDEWALK)
    for side in street.sides:
        walk.polygon(camera.ground(side.path, side.edge, near, FAR), paving)
        for at in np.arange(2.5, 22, 1.2):
            walk.line([camera(side.path, 0, at), camera(side.edge, 0, at)], 0.5 * canvas.unit, tint(paving, 0.86))
        if side.garden == 0:
            walk.polygon(camera.ground(side.facade, side.sign * wide, near, FAR), paving)
    road = canvas.pen(Concept.ROAD)
    road.polygon(camera.ground(*street.road, near, 4 * FAR), asphalt)
    if street.crossing is not None:
        road.polygon(camera.ground(-wide, wide, street.crossing, street.crossing + 5.0), asphalt)
    for side in street.sides:
        kerb = (side.kerb, side.kerb + side.sign * 0.3)
        for span in _spans(street, near, FAR):
            walk.polygon(camera.ground(*kerb, *span), tint(paving, 1.14))
    _markings(street, road)


def _spans(street: Street, near: float, far: float) -> list[tuple[float, float]]:
    """Returns the stretch from near to far, without the crossing street."""
    if street.crossing is None:
        return [(near, far)]
    return [(near, street.crossing), (street.crossing + 5.0, far)]


def _markings(street: Street, road: Pen) -> None:
    camera, rng = street.camera, street.rng
    left, right = street.road
    paint = vary(rng, (222, 222, 216), 8)
    middle = (left + right) / 2 + rng.uniform(-0.3, 0.3)
    for span in _spans(street, 1.2, FAR):
        for start in np.arange(span[0] + rng.uniform(0, 2), min(span[1], 40) - 1.5, 3.6):
            road.polygon(camera.ground(middle - 0.08, middle + 0.08, start, start + 1.8), paint)
        for edge in (left + 0.35, right - 0.35):
            road.polygon(camera.ground(edge - 0.05, edge + 0.05, *span), tint(paint, 0.92))
    if street.crossing is not None:
        for x in np.arange(left + 0.6, right - 0.6, 0.95):
            road.polygon(camera.ground(x, x + 0.5, street.crossing - 2.2, street.crossing - 0.5), paint)


def _houses(street: Street) -> None:
    """Draws both rows of houses from far to near, each with the shadow it throws on the street."""
    rng = street.rng
    glass = 0.6 * np.float32((64, 84, 110)) + 0.4 * np.float32(street.mood.zenith)
    for side in street.sides:
        plots = []
        z = rng.uniform(2.2, 5.5)
        while z < FAR:
            end = z + rng.uniform(5, 9)
            blocked = street.crossing is not None and z < street.crossing + 6.0 and end > street.crossing - 1.0
            if blocked and z < street.crossing - 4.0:
                end, blocked = street.crossing - 1.0, False
            if not blocked:
                plots.append((z, end))
            z = street.crossing + 6.0 if blocked else end + (rng.uniform(2, 6) if rng.random() < 0.45 else 0.0)
        if side.sign == street.sun and street.mood.shadow < 1:
            reach = side.facade - side.sign * rng.uniform(1.5, 7.0)
            for start, end in plots:
                street.canvas.darken(street.camera.ground(side.facade, reach, start, end), street.mood.shadow)
        for plot in reversed(plots):
            building(street.canvas, street.camera, rng, side.facade, plot, glass, street.mood.haze)


def _garden(street: Street, side: Side) -> None:
    """Plants the strip before the houses and closes it with a fence, a wall or a hedge."""
    canvas, camera, rng = street.canvas, street.camera, street.rng
    if side.garden == 0:
        return
    for at in sorted(rng.uniform(4, 30, int(rng.integers(1, 4))), reverse=True):
        if not _in_crossing(street, at):
            x = side.edge + side.sign * rng.uniform(0.4, 1.0) * side.garden
            tree(canvas, camera.frame(x, at), rng, street.sun, street.mood.haze, min(0.5, at / 90))
    painters = {"fence": fence, "wall": wall, "hedge": hedge}
    kind = str(rng.choice(("fence", "wall", "hedge", "open"), p=(0.4, 0.32, 0.08, 0.2)))
    if kind == "open":
        return
    for start, end in reversed(_spans(street, rng.uniform(2.0, 5.0), rng.uniform(18, 32))):
        if end - start > 2:
            painters[kind](canvas, camera, rng, side.edge + side.sign * 0.1, (start, end))


def _in_crossing(street: Street, z: float) -> bool:
    return street.crossing is not None and street.crossing - 0.6 < z < street.crossing + 5.5


def _on_pavements(street: Street) -> list[Item]:
    """Chooses what stands and walks beside the road."""
    canvas, camera, rng, mood = street.canvas, street.camera, street.rng, street.mood
    items: list[Item] = []

    def put(z: float, x: float, draw: Callable[[Frame], None], mirrored: bool | None = None) -> None:
        frame = camera.frame(x, z, bool(rng.random() < 0.5) if mirrored is None else mirrored)
        if not _in_crossing(street, z):
            items.append((z, lambda: draw(frame)))

    for side in street.sides:
        curb = side.kerb + side.sign * 0.5
        for z in np.arange(rng.uniform(5.0, 7), 15, rng.uniform(6, 9)):
            kind = str(rng.choice(("lamp", "light", "sign", "tree"), p=(0.2, 0.32, 0.32, 0.16)))
            if z > 11:  # farther lights and signs would be a handful of pixels
                kind = "lamp" if kind != "tree" else kind
            if kind == "lamp":
                put(z, curb, lambda f: lamp_post(canvas, f, rng), mirrored=side.sign > 0)
            elif kind == "light":
                put(z, curb, lambda f: traffic_light(canvas, f, rng, True))
            elif kind == "sign":
                put(z, curb, lambda f: sign(canvas, f, rng))
            elif side.verge > 0:
                put(
                    z,
                    side.kerb + side.sign * side.verge / 2,
                    lambda f: tree(canvas, f, rng, street.sun, mood.haze, 0.0),
                )
        for _ in range(int(rng.integers(1, 4))):
            z = rng.uniform(4.2, 6.5)
            put(z, side.path + side.sign * rng.uniform(0.1, 0.95) * side.pavement, lambda f: _walker(street, f))
        if rng.random() < 0.5:
            ride = pick(rng, ((bicycle, Concept.BICYCLE), (bicycle, Concept.BICYCLE), (motorcycle, Concept.MOTORCYCLE)))
            put(rng.uniform(4.8, 6.8), side.path + side.sign * 0.9, lambda f, r=ride: r[0](canvas.thing(r[1]), f, rng))
        extra = rng.random()
        at = rng.uniform(6, 12), side.edge - side.sign * 0.5
        if extra < 0.08:
            put(*at, lambda f: bench(canvas, f, rng))
        elif extra < 0.18:
            put(*at, lambda f: flower_pot(canvas, f, rng))
        elif extra < 0.26:
            put(*at, lambda f: dog(canvas, f, rng))
        elif extra < 0.42:
            put(rng.uniform(6, 8.5), side.edge - side.sign * 1.1, lambda f: crowd(canvas, f, rng))
    return items


def _walker(street: Street, frame: Frame) -> None:
    street.canvas.darken(frame.points((-0.3, -0.05), (0.3, -0.05), (0.5, 0.08), (-0.1, 0.08)), 0.6)
    person(street.canvas.thing(Concept.PERSON), frame, street.rng)


def _on_road(street: Street) -> list[Item]:
    """Chooses what drives and rides: one row per lane, and now and then something that crosses."""
    canvas, camera, rng = street.canvas, street.camera, street.rng
    left, right = street.road
    middle = (left + right) / 2
    items: list[Item] = []
    lane_start = 5.2
    if street.crossing is not None and rng.random() < 0.8:
        z = street.crossing + rng.uniform(0.8, 2.5)
        frame = camera.frame(rng.uniform(left + 1, right - 1), z, bool(rng.random() < 0.5))
        draw = (car_side, bus_side, truck_side)[int(rng.choice(3, p=(0.52, 0.2, 0.28)))]
        items.append((z, lambda: draw(canvas, frame, rng)))
        lane_start = z + 5
    for x, oncoming in ((left + 1.6, True), (max(middle + 1.4, right - 1.7), False)):
        z = lane_start + rng.uniform(0, 5)
        while z < 32:
            kind = (car, bus, truck)[int(rng.choice(3, p=(0.7, 0.12, 0.18)))]
            near = z + (3.0 if kind is not car else 0.0)
            items.append(
                (near, lambda k=kind, n=near, x=x, o=oncoming: k(canvas, camera, rng, x + rng.normal(0, 0.15), n, o))
            )
            z = near + rng.uniform(9, 16)
    for rides, chance in ((cyclist, 0.72), (motorcyclist, 0.62)):
        if rng.random() < chance:
            z = rng.uniform(4.2, 5.6)
            frame = camera.frame(rng.uniform(left + 0.6, right - 0.3), z, bool(rng.random() < 0.5))
            items.append((z, lambda r=rides, f=frame: r(canvas, f, rng)))
    return items


def _camera_car(street: Street) -> None:
    """Draws the bonnet of the car that carries the camera and the empty border that rectification leaves."""
    canvas, rng = street.canvas, street.rng
    if rng.random() < 0.6:
        color = vary(rng, (52, 54, 60), 10)
        middle = canvas.width * rng.uniform(0.45, 0.55)
        tall = canvas.height * rng.uniform(0.05, 0.1)
        pen = canvas.pen(Concept.EGO_CAR)
        pen.ellipse((middle, canvas.height + tall * 0.3), (canvas.width * 0.46, tall * 1.3), color)
        pen.ellipse((middle, canvas.height + tall * 0.6), (canvas.width * 0.3, tall * 1.2), tint(color, 1.35))
    if rng.random() < 0.5:
        width = round(canvas.unit * rng.uniform(1.5, 3.5))
        pen = canvas.pen(Concept.BORDER)
        for x0, x1 in ((0, width - 1), (canvas.width - width, canvas.width)):
            pen.rectangle(x0, 0, x1, canvas.height, (6, 6, 6))


def photograph(scene: Scene, rng: np.random.Generator, gain: Color) -> np.ndarray:
    """Returns the image as a camera would have it: surfaces grained, lit, exposed by chance, with sensor noise."""
    height, width = scene.concepts.shape
    table = np.tile(np.float32(DEFAULT_GRAIN), (256, 1))
    for concept, strength in GRAIN.items():
        table[concept] = strength
    strength = table[scene.concepts]
    fine = rng.standard_normal((height, width), np.float32)
    patches = cv2.resize(rng.standard_normal((height // 6 + 1, width // 6 + 1), np.float32), (width, height))
    grain = strength[..., 0] * fine + strength[..., 1] * patches
    across = np.linspace(rng.uniform(-0.1, 0.1), rng.uniform(-0.1, 0.1), width, dtype=np.float32)
    exposure = (1.0 + across) * np.float32(rng.uniform(0.88, 1.12))
    light = np.float32(gain) * np.float32(rng.normal(1.0, 0.02, 3))
    lit = (scene.image + grain[..., None]) * light * exposure[None, :, None]
    lit += rng.standard_normal((height, width, 3), np.float32) * np.float32(rng.uniform(1.0, 3.0))
    return np.clip(lit, 0, 255).astype(np.uint8)
