"""What stands along the streets of the toy data set: houses, walls, fences, plants, poles with signs and lamps."""

from __future__ import annotations

from common.toy.canvas import Camera, Canvas, Color, Concept, Frame, Pen, Point, pick, tint, vary

import numpy as np

FACADES = (
    (178, 92, 70), (214, 190, 150), (226, 206, 178), (150, 140, 134),
    (206, 150, 120), (168, 176, 180), (222, 186, 110), (190, 120, 100),
)  # fmt: skip
FENCE_PAINTS = ((236, 232, 222), (136, 92, 54))
WALL_PAINTS = ((150, 100, 84), (138, 112, 98), (158, 120, 96))
LEAVES = ((54, 112, 44), (74, 130, 52), (40, 96, 52), (96, 136, 50), (150, 120, 40))
FLOWERS = ((230, 60, 80), (250, 190, 60), (220, 110, 200), (250, 250, 240))
METAL = (84, 88, 94)


def building(
    canvas: Canvas, camera: Camera, rng: np.random.Generator, x: float, z: tuple[float, float], glass: Color, air: Color
) -> None:
    """Draws a house along the street, from near to far end `z`, its facade at `x` (negative on the left).

    `glass` is what its windows reflect, `air` the colour that distance blends into.
    """
    haze = min(0.5, z[0] / 90)
    wall = _mix(vary(rng, pick(rng, FACADES), 9), air, haze)
    glass = _mix(glass, air, haze)
    height = rng.uniform(5.5, 11.0)
    outward = np.sign(x) * rng.uniform(6, 9)
    pen = canvas.pen(Concept.BUILDING)
    gable = rng.random() < 0.45
    front = [
        camera(x, 0, z[0]),
        camera(x, height, z[0]),
        camera(x + outward, height, z[0]),
        camera(x + outward, 0, z[0]),
    ]
    if gable:
        front.insert(2, camera(x + outward / 2, height + 2.4, z[0]))
        ridge = [camera(x, height, z[0]), camera(x + outward / 2, height + 2.4, z[0])]
        ridge += [camera(x + outward / 2, height + 2.4, z[1]), camera(x, height, z[1])]
        pen.polygon(ridge, _mix(vary(rng, (140, 66, 50), 10), air, haze))
    pen.polygon(front, tint(wall, 1.04))
    pen.polygon(camera.side(x, 0, height, *z), tint(wall, 0.86))
    pen.polygon(camera.side(x, height - 0.35, height, *z), tint(wall, 0.62))
    if z[0] > 36:  # its windows would be less than a pixel
        return
    shop = rng.random() < 0.5
    _windows(canvas, camera, rng, x, z, height, glass, shop)
    for level in np.arange(3.2 if shop else 0.9, height - 1.9, 2.9):
        for step in np.arange(0.9, abs(outward) - 1.4, 2.5):
            middle = x + np.sign(x) * (step + 0.6)
            canvas.pen(Concept.WINDOW).polygon(
                camera.front(middle - 0.6, middle + 0.6, level, level + 1.5, z[0]), glass
            )


def _windows(
    canvas: Canvas,
    camera: Camera,
    rng: np.random.Generator,
    x: float,
    z: tuple[float, float],
    height: float,
    glass: Color,
    shop: bool,
) -> None:
    """Draws what is in a facade: rows of windows, and below a door with flowers or a shop with its awning."""
    pen, stone = canvas.pen(Concept.WINDOW), canvas.pen(Concept.BUILDING)
    bays = np.arange(z[0] + 0.5, z[1] - 1.6, 2.4)
    flowers = vary(rng, pick(rng, FLOWERS)) if rng.random() < 0.4 else None
    frame = pick(rng, ((240, 236, 226), (110, 80, 60), (220, 214, 200)))
    for level in np.arange(3.4 if shop else 0.9, height - 1.9, 2.9):
        for bay in bays:
            stone.polygon(camera.side(x, level - 0.15, level + 1.65, bay - 0.12, bay + 1.42), frame)
            lit = (250, 220, 130) if rng.random() < 0.1 else glass
            pen.polygon(camera.side(x, level, level + 1.5, bay, bay + 1.3), tint(lit, rng.uniform(0.85, 1.1)))
            if flowers is not None:
                stone.polygon(camera.side(x, level - 0.3, level, bay, bay + 1.3), flowers)
    if shop:
        pen.polygon(camera.side(x, 0.5, 2.4, z[0] + 0.4, z[1] - 0.4), tint(glass, 1.15))
        colors = vary(rng, pick(rng, ((200, 50, 50), (40, 110, 170), (50, 130, 80)))), (244, 240, 230)
        for i, start in enumerate(np.arange(z[0] + 0.3, z[1] - 0.3, 0.8)):
            end = min(start + 0.8, z[1] - 0.3)
            stone.polygon(camera.side(x - np.sign(x) * 0.5, 2.2, 2.9, start, end), colors[i % 2])
    elif len(bays) > 1:
        bay = pick(rng, bays)
        door = canvas.pen(Concept.DOOR)
        door.polygon(
            camera.side(x, 0, 2.4, bay, bay + 1.3), vary(rng, pick(rng, ((120, 50, 40), (40, 80, 70), (60, 70, 120))))
        )


def wall(canvas: Canvas, camera: Camera, rng: np.random.Generator, x: float, z: tuple[float, float]) -> None:
    """Draws a wall of stone courses along the street."""
    color, height = vary(rng, pick(rng, WALL_PAINTS), 8), rng.uniform(1.7, 2.5)
    pen = canvas.pen(Concept.WALL)
    pen.polygon(camera.side(x, 0, height, *z), color)
    joint = max(1.0, 0.6 * canvas.unit)
    for row, level in enumerate(np.arange(0, height, 0.36)):
        pen.line([camera(x, level, z[0]), camera(x, level, z[1])], joint, tint(color, 0.7))
        for start in np.arange(z[0] + 0.45 * (row % 2), min(z[1], 16), 0.9):
            pen.line([camera(x, level, start), camera(x, min(level + 0.36, height), start)], joint, tint(color, 0.75))
    pen.polygon(camera.side(x, height, height + 0.14, *z), tint(color, 1.3))


def fence(canvas: Canvas, camera: Camera, rng: np.random.Generator, x: float, z: tuple[float, float]) -> None:
    """Draws a fence along the street; what shows between its pickets is labelled as fence, as annotators do."""
    color, height = vary(rng, pick(rng, FENCE_PAINTS), 8), rng.uniform(1.2, 1.7)
    pen = canvas.pen(Concept.FENCE)
    pen.polygon(camera.side(x, 0, height, *z), None)
    for level in (0.25, height - 0.3):
        pen.polygon(camera.side(x, level, level + 0.13, *z), tint(color, 0.85))
    start = z[0]
    while start < z[1]:
        # Far pickets are set wider apart: closer than two pixels they would only be grey.
        step = max(0.36, start * start * 3.0 * canvas.unit / (abs(x) * camera.focal))
        pen.polygon(camera.side(x, 0, height, start, min(start + step * 0.72, z[1])), color)
        start += step


def hedge(canvas: Canvas, camera: Camera, rng: np.random.Generator, x: float, z: tuple[float, float]) -> None:
    """Draws a trimmed hedge along the street."""
    color, height = vary(rng, LEAVES[int(rng.integers(3))], 8), rng.uniform(0.8, 1.3)
    pen = canvas.pen(Concept.HEDGE)
    pen.polygon(camera.side(x, 0, height, *z), color)
    for _ in range(40):
        at = z[0] + (z[1] - z[0]) * rng.random() ** 2
        middle = camera(x, rng.uniform(0.1, height), at)
        pen.ellipse(middle, (0.2 * camera.focal / at, 0.16 * camera.focal / at), tint(color, rng.uniform(0.75, 1.25)))


def tree(canvas: Canvas, f: Frame, rng: np.random.Generator, sun: int, air: Color, haze: float) -> None:
    """Draws a tree: trunk and a crown of many small leaf masses, lighter towards the sun."""
    pen = canvas.pen(Concept.TREE)
    color = _mix(vary(rng, pick(rng, LEAVES[: 5 if rng.random() < 0.4 else 4]), 10), air, haze)
    height, radius = rng.uniform(3.8, 6.0), rng.uniform(1.2, 1.9)
    pen.line(f.points((0, 0), (0, height * 0.6)), max(0.28 * f.scale, 2 * canvas.unit), _mix((92, 66, 44), air, haze))
    if rng.random() < 0.25:
        for level in np.linspace(1.0, height, 5):
            half = radius * (1.15 - level / height)
            tips = f.points((-half - 0.1, level), (half + 0.1, level), (0, level + height * 0.32))
            pen.polygon(tips, tint(color, 0.6 + 0.35 * level / height))
        return
    pen.ellipse(f(0, height * 0.78), (radius * f.scale, radius * 0.9 * f.scale), tint(color, 0.8))
    for _ in range(34):
        angle, reach = rng.uniform(0, 2 * np.pi), np.sqrt(rng.random())
        dx, dy = np.cos(angle) * reach, np.sin(angle) * reach
        size = radius * rng.uniform(0.16, 0.32) * f.scale
        light = 0.92 + 0.22 * dy + 0.14 * sun * dx + rng.normal(0, 0.1)
        pen.ellipse(f(dx * radius, height * 0.78 + dy * radius * 0.9), (size, size * 0.85), tint(color, light))


def _post(canvas: Canvas, pen: Pen, f: Frame, height: float, color: Color) -> float:
    """Draws the upright part of a pole, never thinner than five pixels of 128; returns its width."""
    width = max(0.36 * f.scale, 5.0 * canvas.unit)
    x, y = f(0, 0)
    top = f(0, height)[1]
    pen.rectangle(x - width / 2, top, x + width / 2, y, color)
    pen.rectangle(x - width / 2, top, x - width / 5, y, tint(color, 1.25))
    return width


def lamp_post(canvas: Canvas, f: Frame, rng: np.random.Generator) -> None:
    """Draws a street lamp that leans over the road."""
    pen = canvas.pen(Concept.POLE)
    color = vary(rng, METAL, 12)
    height = rng.uniform(4.5, 6.0)
    width = _post(canvas, pen, f, height, color)
    pen.line(f.points((0, height), (0.3, height + 0.35), (1.2, height + 0.45)), width * 0.8, color)
    pen.polygon(
        f.points((0.9, height + 0.3), (1.7, height + 0.3), (1.6, height + 0.62), (1.0, height + 0.62)), (232, 228, 200)
    )


def traffic_light(canvas: Canvas, f: Frame, rng: np.random.Generator, facing: bool) -> None:
    """Draws a pole with a traffic light; `facing` shows one of its lamps lit, else its grey back."""
    _post(canvas, canvas.pen(Concept.POLE), f, 3.4, vary(rng, METAL, 8))
    pen = canvas.thing(Concept.TRAFFIC_LIGHT)
    half = max(0.42, 4.5 * canvas.unit / f.scale)
    tall = half * 2.7
    low = 2.35
    pen.polygon(
        f.points((-half, low), (half, low), (half, low + tall), (-half, low + tall)), vary(rng, (222, 176, 36), 10)
    )
    inner = half * 0.8
    edge = f.points((-inner, low + 0.06), (inner, low + 0.06), (inner, low + tall - 0.06), (-inner, low + tall - 0.06))
    pen.polygon(edge, (26, 28, 28))
    lit = int(rng.integers(3))
    for i, color in enumerate(((48, 230, 110), (255, 190, 40), (250, 50, 40))):
        radius = tall / 6 * 0.82 * f.scale
        glow = color if facing and i == lit else tint(color, 0.25)
        pen.ellipse(f(0, low + tall * (i + 0.5) / 3), (radius, radius), glow)


def sign(canvas: Canvas, f: Frame, rng: np.random.Generator) -> None:
    """Draws a pole with a traffic sign of one of five shapes."""
    _post(canvas, canvas.pen(Concept.POLE), f, 2.5, vary(rng, METAL, 10))
    radius = max(rng.uniform(0.5, 0.62), 5.2 * canvas.unit / f.scale)
    middle = 2.35 + radius * 0.5
    shape = int(rng.integers(5))
    pen = canvas.thing(Concept.STOP_SIGN if shape == 0 else Concept.TRAFFIC_SIGN)

    def regular(corners: int, turn: float, size: float) -> list[Point]:
        angles = turn + np.arange(corners) * 2 * np.pi / corners
        return f.points(*[(size * np.cos(a), middle + size * np.sin(a)) for a in angles])

    if shape == 0:
        pen.polygon(regular(8, np.pi / 8, radius * 1.08), (246, 246, 244))
        pen.polygon(regular(8, np.pi / 8, radius * 0.94), (200, 24, 34))
        wide, thick = radius * 0.6, radius * 0.16
        bar = f.points((-wide, middle - thick), (wide, middle - thick), (wide, middle + thick), (-wide, middle + thick))
        pen.polygon(bar, (246, 246, 244))
    elif shape == 1:
        pen.polygon(regular(3, np.pi / 2, radius * 1.3), (206, 26, 36))
        pen.polygon(regular(3, np.pi / 2, radius * 0.75), (250, 248, 236))
    elif shape == 2:
        pen.polygon(regular(32, 0.0, radius), (206, 26, 36))
        pen.polygon(regular(32, 0.0, radius * 0.7), (250, 250, 246))
    elif shape == 3:
        pen.polygon(regular(32, 0.0, radius), (24, 92, 190))
        pen.line(
            f.points((0, middle - radius * 0.5), (0, middle + radius * 0.5)), radius * 0.3 * f.scale, (248, 250, 252)
        )
    else:
        pen.polygon(regular(4, 0.0, radius * 1.2), (250, 248, 240))
        pen.polygon(regular(4, 0.0, radius * 0.95), (250, 200, 30))


def bench(canvas: Canvas, f: Frame, rng: np.random.Generator) -> None:
    """Draws a park bench."""
    pen = canvas.thing(Concept.BENCH)
    color = vary(rng, (150, 96, 52), 10)
    for x in (-0.7, 0.62):
        pen.polygon(f.points((x, 0), (x + 0.1, 0), (x + 0.1, 0.95), (x, 0.95)), (60, 60, 64))
    for level in (0.45, 0.68, 0.86):
        pen.polygon(f.points((-0.85, level), (0.85, level), (0.85, level + 0.13), (-0.85, level + 0.13)), color)


def flower_pot(canvas: Canvas, f: Frame, rng: np.random.Generator) -> None:
    """Draws a big pot with flowers."""
    pen = canvas.thing(Concept.FLOWER_POT)
    for _ in range(14):
        at = f(rng.uniform(-0.4, 0.4), rng.uniform(0.55, 1.1))
        pen.ellipse(at, (0.15 * f.scale, 0.14 * f.scale), vary(rng, (64, 130, 56), 12))
    flowers = pick(rng, FLOWERS)
    for _ in range(7):
        pen.ellipse(f(rng.uniform(-0.4, 0.4), rng.uniform(0.7, 1.15)), (0.09 * f.scale, 0.09 * f.scale), flowers)
    pen.polygon(f.points((-0.28, 0), (0.28, 0), (0.42, 0.6), (-0.42, 0.6)), vary(rng, (190, 98, 62), 10))


def _mix(color: Color, other: Color, share: float) -> tuple[float, float, float]:
    return tuple((1 - share) * np.asarray(color, float) + share * np.asarray(other, float))
