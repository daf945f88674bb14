"""Cars, buses, trucks, bicycles and motorcycles of the toy data set."""

from __future__ import annotations

from dataclasses import replace

from common.toy.canvas import Camera, Canvas, Color, Concept, Frame, Pen, Point, pick, tint, vary

import numpy as np

CAR_PAINTS = (
    (196, 44, 40), (38, 76, 160), (226, 226, 224), (44, 46, 52), (150, 154, 160), (60, 130, 150), (120, 30, 60)
)  # fmt: skip
BUS_PAINTS = ((244, 190, 30), (250, 205, 60), (240, 170, 20))
CARGO_PAINTS = ((238, 238, 234), (222, 228, 236), (66, 150, 92), (56, 120, 190))
CAB_PAINTS = ((230, 110, 30), (40, 110, 180), (60, 140, 80), (200, 50, 50))
BIKE_PAINTS = ((20, 150, 150), (30, 170, 150), (40, 140, 180))
MOTORCYCLE_PAINTS = ((200, 30, 30), (180, 40, 50), (30, 32, 36))
GLASS = (70, 92, 110)
TYRE = (28, 28, 30)


def inset(points: list[Point], factor: float) -> list[Point]:
    """Returns the polygon shrunk towards the mean of its corners."""
    corners = np.asarray(points, float)
    middle = corners.mean(axis=0)
    return [tuple(p) for p in middle + (corners - middle) * factor]


def box(pen: Pen, camera: Camera, x: tuple[float, float], y: tuple[float, float], z: tuple[float, float], color: Color):
    """Draws the visible faces of an upright box: the one along the street, the top if seen, and the near one."""
    if y[1] < camera.height:
        top = [camera(x[0], y[1], z[0]), camera(x[1], y[1], z[0]), camera(x[1], y[1], z[1]), camera(x[0], y[1], z[1])]
        pen.polygon(top, tint(color, 1.12))
    edge = seen_edge(x)
    if edge is not None:
        pen.polygon(camera.side(edge, *y, *z), tint(color, 0.78))
    pen.polygon(camera.front(*x, *y, z[0]), color)


def seen_edge(x: tuple[float, float]) -> float | None:
    """Returns the x of the side face that the camera at x = 0 sees, None straight ahead."""
    if x[0] > 0:
        return x[0]
    return x[1] if x[1] < 0 else None


def _ground_shadow(canvas: Canvas, camera: Camera, x: tuple[float, float], z: tuple[float, float]) -> None:
    canvas.darken(camera.ground(x[0] - 0.25, x[1] + 0.25, z[0] - 0.25, z[1]), 0.5)


def _wheels(pen: Pen, camera: Camera, x: tuple[float, float], z: tuple[float, float], radius: float) -> None:
    """Draws the tyres below the near face and the wheels on the visible side."""
    for left, right in ((x[0] + 0.05, x[0] + 0.32), (x[1] - 0.32, x[1] - 0.05)):
        pen.polygon(camera.front(left, right, 0.0, radius, z[0] + 0.1), TYRE)
    edge = seen_edge(x)
    if edge is None:
        return
    turn = np.linspace(0, 2 * np.pi, 13)[:-1]
    for middle in (z[0] + 0.8, z[1] - 0.8):
        for size, color in ((radius, TYRE), (radius * 0.5, (140, 140, 146))):
            rim = [camera(edge, radius + size * np.sin(a), middle + size * np.cos(a)) for a in turn]
            pen.polygon(rim, color)


def car(canvas: Canvas, camera: Camera, rng: np.random.Generator, x: float, z: float, oncoming: bool) -> None:
    """Draws a car that stands or drives along the street; `z` is its near end."""
    roof, length = rng.uniform(1.4, 1.7), rng.uniform(3.6, 4.4)
    color = vary(rng, pick(rng, CAR_PAINTS), 10)
    sides, ends = (x - 0.92, x + 0.92), (z, z + length)
    _ground_shadow(canvas, camera, sides, ends)
    pen = canvas.thing(Concept.CAR)
    _wheels(pen, camera, sides, ends, 0.33)
    box(pen, camera, sides, (0.26, 0.9), ends, color)
    near, far = (1.1, 0.3) if oncoming else (0.3, 1.1)
    _cabin(pen, camera, x, (ends[0] + near, ends[1] - far), roof, color)
    lamp, y = ((255, 250, 214), (0.55, 0.72)) if oncoming else ((206, 22, 26), (0.6, 0.82))
    for left in (sides[0] + 0.05, sides[1] - 0.4):
        pen.polygon(camera.front(left, left + 0.35, *y, z), lamp)
    pen.polygon(camera.front(*sides, 0.26, 0.4, z), tint(color, 0.45))
    plate = replace(pen, concept=Concept.LICENCE_PLATE)
    plate.polygon(camera.front(x - 0.26, x + 0.26, 0.43, 0.55, z), (240, 240, 232))


def _cabin(pen: Pen, camera: Camera, x: float, z: tuple[float, float], roof: float, color: Color) -> None:
    """Draws the part of a car with the windows: narrower and shorter at the roof."""
    base, top, z_top = 0.84, 0.64, (z[0] + 0.45, z[1] - 0.6)
    lid = [camera(x - top, roof, z_top[0]), camera(x + top, roof, z_top[0])]
    lid += [camera(x + top, roof, z_top[1]), camera(x - top, roof, z_top[1])]
    pen.polygon(lid, tint(color, 1.1))
    side = -1 if x > 0 else 1
    if abs(x) > base:
        flank = [camera(x + side * base, 0.88, z[0]), camera(x + side * top, roof, z_top[0])]
        flank += [camera(x + side * top, roof, z_top[1]), camera(x + side * base, 0.88, z[1])]
        pen.polygon(flank, tint(color, 0.8))
        pen.polygon(inset(flank, 0.78), tint(GLASS, 0.8))
    end = [camera(x - base, 0.88, z[0]), camera(x + base, 0.88, z[0])]
    end += [camera(x + top, roof, z_top[0]), camera(x - top, roof, z_top[0])]
    pen.polygon(end, color)
    pen.polygon(inset(end, 0.82), GLASS)


def bus(canvas: Canvas, camera: Camera, rng: np.random.Generator, x: float, z: float, oncoming: bool) -> None:
    """Draws a bus along the street: a tall box with a band of windows."""
    color = vary(rng, pick(rng, BUS_PAINTS), 8)
    sides, ends = (x - 1.25, x + 1.25), (z, z + rng.uniform(7, 10))
    _ground_shadow(canvas, camera, sides, ends)
    pen = canvas.thing(Concept.BUS)
    _wheels(pen, camera, sides, ends, 0.48)
    box(pen, camera, sides, (0.35, 3.1), ends, color)
    edge = seen_edge(sides)
    if edge is not None:
        for start in np.arange(ends[0] + 0.4, ends[1] - 1.2, 1.5):
            pen.polygon(camera.side(edge, 1.45, 2.5, start, start + 1.25), tint(GLASS, 0.85))
        pen.polygon(camera.side(edge, 0.75, 1.0, *ends), (236, 232, 222))
    pen.polygon(camera.front(x - 1.1, x + 1.1, 1.35, 2.55, z), GLASS)
    pen.polygon(camera.front(x - 0.06, x + 0.06, 1.35, 2.55, z), tint(color, 0.6))
    pen.polygon(camera.front(x - 0.9, x + 0.9, 2.65, 2.98, z), (26, 26, 28))
    pen.polygon(camera.front(x - 0.6, x + 0.5, 2.75, 2.88, z), (255, 170, 40))
    lamp = (255, 250, 214) if oncoming else (206, 22, 26)
    for left in (sides[0] + 0.1, sides[1] - 0.5):
        pen.polygon(camera.front(left, left + 0.4, 0.7, 0.92, z), lamp)
    pen.polygon(camera.front(*sides, 0.35, 0.55, z), tint(color, 0.45))


def truck(canvas: Canvas, camera: Camera, rng: np.random.Generator, x: float, z: float, oncoming: bool) -> None:
    """Draws a lorry along the street: a plain cargo box on a dark chassis, with a coloured cab."""
    cargo, cab = vary(rng, pick(rng, CARGO_PAINTS), 8), vary(rng, pick(rng, CAB_PAINTS), 10)
    sides, ends = (x - 1.2, x + 1.2), (z, z + rng.uniform(6, 8))
    _ground_shadow(canvas, camera, sides, ends)
    pen = canvas.thing(Concept.TRUCK)
    _wheels(pen, camera, sides, ends, 0.5)
    box(pen, camera, sides, (0.5, 0.95), ends, (58, 58, 62))
    start = ends[0] + 2.0 if oncoming else ends[0]
    box(pen, camera, sides, (0.95, 3.4), (start, ends[1]), cargo)
    edge = seen_edge(sides)
    if edge is not None:
        pen.polygon(camera.side(edge, 1.7, 2.3, start + 0.4, ends[1] - 0.4), tint(cab, 0.85))
    if oncoming:
        box(pen, camera, sides, (0.5, 2.7), (z, z + 1.7), cab)
        pen.polygon(camera.front(x - 1.05, x + 1.05, 1.6, 2.5, z), GLASS)
        pen.polygon(camera.front(x - 0.7, x + 0.7, 0.85, 1.35, z), (44, 44, 48))
        lamp = (255, 250, 214)
    else:
        pen.polygon(camera.front(x - 0.04, x + 0.04, 0.95, 3.4, z), tint(cargo, 0.6))
        pen.polygon(camera.front(*sides, 1.15, 1.5, z), cab)
        lamp = (206, 22, 26)
    for left in (sides[0] + 0.1, sides[1] - 0.45):
        pen.polygon(camera.front(left, left + 0.35, 0.6, 0.8, z), lamp)


def car_side(canvas: Canvas, f: Frame, rng: np.random.Generator) -> None:
    """Draws a car that crosses the image."""
    color = vary(rng, pick(rng, CAR_PAINTS), 10)
    canvas.darken(f.points((-2.2, -0.12), (2.2, -0.12), (2.2, 0.2), (-2.2, 0.2)), 0.5)
    pen = canvas.thing(Concept.CAR)
    back = ((-2.1, 0.28), (-2.1, 0.75), (-1.9, 0.93), (-1.25, 0.98), (-0.8, 1.48))
    bonnet = ((0.6, 1.5), (1.2, 0.98), (1.95, 0.88), (2.1, 0.6), (2.1, 0.28))
    pen.polygon(f.points(*back, *bonnet), color)
    pen.polygon(f.points((-1.08, 0.98), (-0.72, 1.38), (-0.1, 1.39), (-0.1, 0.98)), GLASS)
    pen.polygon(f.points((0.0, 0.98), (0.0, 1.4), (0.54, 1.4), (1.0, 0.98)), GLASS)
    pen.polygon(f.points((-2.1, 0.28), (2.1, 0.28), (2.1, 0.4), (-2.1, 0.4)), tint(color, 0.5))
    pen.polygon(f.points((1.85, 0.62), (2.08, 0.62), (2.08, 0.76), (1.85, 0.78)), (255, 250, 214))
    pen.polygon(f.points((-2.1, 0.6), (-1.95, 0.6), (-1.95, 0.8), (-2.1, 0.8)), (206, 22, 26))
    _side_wheels(pen, f, (-1.3, 1.3), 0.35)


def bus_side(canvas: Canvas, f: Frame, rng: np.random.Generator) -> None:
    """Draws a bus that crosses the image."""
    color = vary(rng, pick(rng, BUS_PAINTS), 8)
    canvas.darken(f.points((-4.1, -0.15), (4.1, -0.15), (4.1, 0.3), (-4.1, 0.3)), 0.5)
    pen = canvas.thing(Concept.BUS)
    pen.polygon(f.points((-4, 0.35), (-4, 2.95), (-3.8, 3.1), (3.8, 3.1), (4, 2.7), (4, 0.35)), color)
    for left in np.arange(-3.7, 2.6, 1.25):
        pen.polygon(f.points((left, 1.5), (left + 1.05, 1.5), (left + 1.05, 2.55), (left, 2.55)), GLASS)
    pen.polygon(f.points((2.9, 0.5), (3.8, 0.5), (3.8, 2.6), (2.9, 2.6)), tint(GLASS, 1.2))
    pen.polygon(f.points((-4, 0.8), (2.8, 0.8), (2.8, 1.1), (-4, 1.1)), (236, 232, 222))
    _side_wheels(pen, f, (-2.5, 2.2), 0.5)


def truck_side(canvas: Canvas, f: Frame, rng: np.random.Generator) -> None:
    """Draws a lorry that crosses the image."""
    cargo, cab = vary(rng, pick(rng, CARGO_PAINTS), 8), vary(rng, pick(rng, CAB_PAINTS), 10)
    canvas.darken(f.points((-3.3, -0.15), (3.5, -0.15), (3.5, 0.3), (-3.3, 0.3)), 0.5)
    pen = canvas.thing(Concept.TRUCK)
    pen.polygon(f.points((-3.2, 0.5), (3.4, 0.5), (3.4, 0.95), (-3.2, 0.95)), (58, 58, 62))
    pen.polygon(f.points((-3.2, 0.95), (1.5, 0.95), (1.5, 3.4), (-3.2, 3.4)), cargo)
    pen.polygon(f.points((-2.8, 1.7), (1.1, 1.7), (1.1, 2.3), (-2.8, 2.3)), cab)
    pen.polygon(f.points((1.7, 0.5), (3.4, 0.5), (3.4, 1.6), (3.1, 2.6), (1.7, 2.6)), cab)
    pen.polygon(f.points((2.2, 1.6), (3.25, 1.6), (3.0, 2.4), (2.2, 2.4)), GLASS)
    _side_wheels(pen, f, (-2.3, -1.2, 2.5), 0.5)


def _side_wheels(pen: Pen, f: Frame, positions: tuple[float, ...], radius: float) -> None:
    for x in positions:
        for size, color in ((radius, TYRE), (radius * 0.5, (150, 150, 156))):
            pen.ellipse(f(x, radius), (size * f.scale, size * f.scale), color)


def bicycle(pen: Pen, f: Frame, rng: np.random.Generator) -> None:
    """Draws a bicycle from the side. Its wheels are labelled as discs, as annotators do; the street shows through."""
    color = vary(rng, pick(rng, BIKE_PAINTS), 10)
    bar = max(0.11 * f.scale, 1.6)
    for x in (-0.55, 0.55):
        pen.ring(f(x, 0.36), 0.37 * f.scale, max(0.13 * f.scale, 2.0), TYRE)
        pen.ellipse(f(x, 0.36), (0.07 * f.scale, 0.07 * f.scale), (170, 170, 174))
    pen.polygon(f.points((-0.55, 0.36), (-0.2, 0.85), (0.4, 0.85), (0.0, 0.32)), None)
    pen.line(f.points((-0.55, 0.36), (-0.2, 0.82), (0.38, 0.82), (0.0, 0.32), (-0.55, 0.36)), bar, color)
    pen.line(f.points((0.0, 0.32), (-0.22, 0.95)), bar, color)
    pen.line(f.points((0.55, 0.36), (0.36, 1.05), (0.5, 1.08)), bar, tint(color, 0.7))
    pen.line(f.points((-0.36, 0.97), (-0.1, 0.97)), bar * 1.4, (40, 36, 34))


def motorcycle(pen: Pen, f: Frame, rng: np.random.Generator) -> None:
    """Draws a motorcycle from the side."""
    color = vary(rng, pick(rng, MOTORCYCLE_PAINTS), 10)
    for x in (-0.7, 0.72):
        pen.ellipse(f(x, 0.34), (0.37 * f.scale, 0.37 * f.scale), TYRE)
        pen.ellipse(f(x, 0.34), (0.17 * f.scale, 0.17 * f.scale), (150, 150, 156))
    pen.polygon(f.points((-0.45, 0.25), (0.35, 0.25), (0.42, 0.7), (-0.4, 0.7)), (84, 84, 90))
    pen.polygon(f.points((-1.0, 0.72), (-0.95, 0.9), (-0.1, 0.84), (-0.1, 0.66), (-0.6, 0.6)), (36, 34, 36))
    pen.polygon(f.points((-0.15, 0.62), (-0.12, 0.98), (0.42, 1.02), (0.62, 0.72), (0.3, 0.55)), color)
    pen.polygon(f.points((-0.98, 0.62), (-1.02, 0.74), (-0.6, 0.72), (-0.6, 0.6)), color)
    pen.line(f.points((0.72, 0.34), (0.48, 1.12), (0.34, 1.2)), max(0.09 * f.scale, 1.5), (110, 110, 116))
    pen.ellipse(f(0.62, 0.92), (0.11 * f.scale, 0.13 * f.scale), (255, 244, 190))
    pen.line(f.points((-0.2, 0.28), (-0.95, 0.34)), max(0.1 * f.scale, 1.5), (176, 176, 182))
