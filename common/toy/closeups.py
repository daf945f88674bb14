"""The two kinds of embedded images that are not streets: a person seen close, in parts, and shadows on the ground."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from common.toy.canvas import Canvas, Color, Concept, Frame, Point, Scene, pick, tint, vary
from common.toy.people import CLOTHES, HAIR, SKIN, TROUSERS
from common.toy.scenes import photograph

import cv2
import numpy as np

Part = Callable[[Concept, Color, list[Point]], None]  # fills a polygon given in metres
Limb = tuple[int, Concept, Concept, Concept]  # side of the image (-1 left), and its arm, leg and shoe


def draw_person(size: tuple[int, int], rng: np.random.Generator) -> Scene:
    """Draws one dressed person, whole or from the knees up, seen from the front or from behind.

    Args:
        size: (height, width).
        rng: All chance comes from here.
    """
    canvas = Canvas(size)
    _backdrop(canvas, rng)
    tall = canvas.height * (rng.uniform(0.86, 0.96) if rng.random() < 0.5 else rng.uniform(1.1, 1.6))
    head = canvas.height * rng.uniform(0.02, 0.06)
    scale = tall / 1.95
    room = 0.5 * scale
    x = rng.uniform(room, canvas.width - room) if canvas.width > 2 * room else canvas.width / 2
    frame = Frame(x, head + tall, scale)
    _dressed(canvas, frame, rng)
    scene = canvas.finish()
    return replace(scene, image=photograph(scene, rng, (1.0, 1.0, 1.0)))


def _backdrop(canvas: Canvas, rng: np.random.Generator) -> None:
    """Paints an out-of-focus background."""
    cells = rng.uniform(90, 215, (4, 7, 1)) + rng.normal(0, 11, (4, 7, 3))
    blurred = cv2.resize(cells.astype(np.float32), (canvas.width, canvas.height), interpolation=cv2.INTER_CUBIC)
    canvas.image[:] = np.clip(blurred, 20, 240).astype(np.uint8)
    floor = int(canvas.height * rng.uniform(0.78, 0.9))
    canvas.image[floor:] = (canvas.image[floor:] * 0.75).astype(np.uint8)


def _dressed(canvas: Canvas, f: Frame, rng: np.random.Generator) -> None:
    front = rng.random() < 0.8
    # Seen from the front, a person's right is on the left of the image.
    right, left = (-1, 1) if front else (1, -1)
    limbs: tuple[Limb, Limb] = (
        (right, Concept.RIGHT_ARM, Concept.RIGHT_LEG, Concept.RIGHT_SHOE),
        (left, Concept.LEFT_ARM, Concept.LEFT_LEG, Concept.LEFT_SHOE),
    )
    skin = pick(rng, SKIN)

    def part(concept: Concept, color: Color, points: list[Point]) -> None:
        canvas.pen(concept).polygon(f.points(*points), color)

    outfit = str(rng.choice(("shirt", "coat", "skirt", "dress", "jumpsuit"), p=(0.36, 0.2, 0.16, 0.16, 0.12)))
    top = vary(rng, pick(rng, CLOTHES))
    below = vary(rng, pick(rng, CLOTHES if outfit == "skirt" else TROUSERS))
    _legs(part, rng, limbs, outfit, skin, top if outfit == "jumpsuit" else below)
    _arms(canvas, f, rng, limbs, outfit, skin, top)
    _torso(part, outfit, top, below, skin)
    _head(canvas, f, rng, front, skin)
    if rng.random() < 0.25:
        scarf = canvas.pen(Concept.SCARF)
        color = vary(rng, pick(rng, CLOTHES))
        scarf.polygon(f.points((-0.15, 1.58), (0.15, 1.58), (0.19, 1.48), (-0.19, 1.48)), color)
        scarf.polygon(f.points((0.02, 1.52), (0.14, 1.52), (0.17, 1.12), (0.05, 1.12)), tint(color, 0.88))


def _legs(
    part: Part, rng: np.random.Generator, limbs: tuple[Limb, Limb], outfit: str, skin: Color, cloth: Color
) -> None:
    bare, socks = outfit in ("skirt", "dress"), rng.random() < 0.4
    apart = rng.uniform(0.03, 0.14)
    shoe, sock = (
        vary(rng, pick(rng, ((40, 36, 36), (200, 50, 50), (235, 235, 230), (120, 76, 44)))),
        vary(rng, pick(rng, CLOTHES)),
    )
    for side, _, leg, foot in limbs:
        ankle = side * (0.1 + apart)
        concept = leg if bare else Concept.JUMPSUIT if outfit == "jumpsuit" else Concept.PANTS
        color = tint(skin if bare else cloth, 1.0 if side < 0 else 0.92)
        part(
            concept,
            color,
            [(side * 0.21, 0.98), (side * 0.005, 0.98), (ankle - 0.075 * side, 0.08), (ankle + 0.085 * side, 0.08)],
        )
        if socks:
            high = 0.38 if bare else 0.2
            part(
                Concept.SOCKS,
                sock,
                [(ankle - 0.08, 0.05), (ankle + 0.08, 0.05), (ankle + 0.095, high), (ankle - 0.095, high)],
            )
        part(
            foot,
            shoe,
            [
                (ankle - 0.1 * side, 0),
                (ankle + 0.17 * side, 0),
                (ankle + 0.09 * side, 0.13),
                (ankle - 0.1 * side, 0.13),
            ],
        )


def _arms(
    canvas: Canvas, f: Frame, rng: np.random.Generator, limbs: tuple[Limb, Limb], outfit: str, skin: Color, cloth: Color
) -> None:
    sleeve = {"coat": Concept.COAT, "jumpsuit": Concept.JUMPSUIT, "dress": Concept.DRESS}.get(
        outfit, Concept.UPPER_CLOTHES
    )
    long_sleeves = outfit == "coat" or rng.random() < 0.35
    gloves = vary(rng, pick(rng, CLOTHES)) if long_sleeves and rng.random() < 0.4 else None
    for side, arm, _, _ in limbs:
        spread = rng.uniform(0.04, 0.24)
        shoulder, elbow = (side * 0.27, 1.45), (side * (0.33 + spread), 1.18)
        hand = (side * (0.34 + spread * rng.uniform(0.2, 1.8)), rng.uniform(0.86, 0.95))
        width = 0.12 * f.scale
        canvas.pen(arm).line(f.points(shoulder, elbow, hand), width, skin)
        reach = [shoulder, elbow, ((elbow[0] + 3 * hand[0]) / 4, (elbow[1] + 3 * hand[1]) / 4)]
        if not long_sleeves:
            reach = [shoulder, ((shoulder[0] + elbow[0]) / 2, (shoulder[1] + elbow[1]) / 2)]
        canvas.pen(sleeve).line(f.points(*reach), width * 1.2, tint(cloth, 0.85))
        pen, color = (canvas.pen(Concept.GLOVE), gloves) if gloves is not None else (canvas.pen(arm), skin)
        pen.ellipse(f(hand[0], hand[1] - 0.03), (0.075 * f.scale, 0.09 * f.scale), color)


def _torso(part: Part, outfit: str, top: Color, below: Color, skin: Color) -> None:
    trunk = [(-0.23, 0.93), (0.23, 0.93), (0.31, 1.44), (0.14, 1.56), (-0.14, 1.56), (-0.31, 1.44)]
    part(Concept.FACE, tint(skin, 0.9), [(-0.07, 1.5), (0.07, 1.5), (0.07, 1.66), (-0.07, 1.66)])
    if outfit == "dress":
        part(Concept.DRESS, top, [*trunk[2:], (-0.2, 1.05), (-0.38, 0.5), (0.38, 0.5), (0.2, 1.05)])
        return
    if outfit == "jumpsuit":
        part(Concept.JUMPSUIT, top, trunk)
        return
    if outfit == "coat":
        part(Concept.COAT, top, [*trunk[2:], (-0.27, 0.66), (0.27, 0.66)])
        part(Concept.UPPER_CLOTHES, tint(below, 1.6), [(-0.1, 1.55), (0.1, 1.55), (0.05, 1.0), (-0.05, 1.0)])
        return
    part(Concept.UPPER_CLOTHES, top, trunk)
    if outfit == "skirt":
        part(Concept.SKIRT, below, [(-0.22, 1.0), (0.22, 1.0), (0.34, 0.58), (-0.34, 0.58)])


def _head(canvas: Canvas, f: Frame, rng: np.random.Generator, front: bool, skin: Color) -> None:
    hair, long_hair = vary(rng, pick(rng, HAIR), 8), rng.random() < 0.45
    pen = canvas.pen(Concept.HAIR)
    if long_hair:
        pen.polygon(f.points((-0.17, 1.78), (0.17, 1.78), (0.2, 1.47), (-0.2, 1.47)), hair)
    pen.ellipse(f(0, 1.77), (0.165 * f.scale, 0.17 * f.scale), hair)
    if front:
        canvas.pen(Concept.FACE).ellipse(f(0, 1.72), (0.13 * f.scale, 0.155 * f.scale), skin)
        for x in (-0.05, 0.05):
            canvas.pen(Concept.FACE).ellipse(f(x, 1.74), (0.018 * f.scale, 0.018 * f.scale), (40, 30, 30))
        canvas.pen(Concept.FACE).line(
            f.points((-0.045, 1.645), (0, 1.63), (0.045, 1.645)), 0.02 * f.scale, (170, 60, 60)
        )
        if rng.random() < 0.25:
            for x in (-0.055, 0.055):
                canvas.pen(Concept.SUNGLASSES).ellipse(f(x, 1.74), (0.055 * f.scale, 0.045 * f.scale), (20, 20, 24))
    if rng.random() < 0.3:
        hat, color = canvas.pen(Concept.HAT), vary(rng, pick(rng, CLOTHES))
        hat.polygon(f.points((-0.16, 1.83), (0.16, 1.83), (0.13, 1.98), (-0.13, 1.98)), color)
        hat.polygon(f.points((-0.24, 1.81), (0.24, 1.81), (0.24, 1.85), (-0.24, 1.85)), tint(color, 0.8))


def draw_shadows(size: tuple[int, int], rng: np.random.Generator) -> Scene:
    """Draws a piece of ground with things on it and the shadows they throw; shadows are `Concept.SHADOW`.

    Args:
        size: (height, width).
        rng: All chance comes from here.
    """
    canvas = Canvas(size)
    _floor(canvas, rng)
    slant = rng.uniform(0.3, 1.1) * rng.choice((-1.0, 1.0)), rng.uniform(0.25, 0.7)
    shadow = canvas.pen(Concept.SHADOW)
    if rng.random() < 0.5:  # of a tree outside the image
        middle = rng.uniform(0.1, 0.9) * canvas.width, rng.uniform(0.0, 0.3) * canvas.height
        for _ in range(18):
            at = middle[0] + rng.normal(0, 0.14) * canvas.height, middle[1] + rng.normal(0, 0.1) * canvas.height
            shadow.ellipse(at, (rng.uniform(0.03, 0.09) * canvas.height, rng.uniform(0.02, 0.06) * canvas.height), None)
    if rng.random() < 0.4:  # of a house
        edge = rng.uniform(0.1, 0.4, 2) * canvas.width
        points = [(-1, -1), (edge[0], -1), (edge[1], canvas.height), (-1, canvas.height)]
        shadow.polygon(points if slant[0] > 0 else [(canvas.width - x, y) for x, y in points], None)
    frames = []
    for _ in range(int(rng.integers(2, 5))):
        y = rng.uniform(0.35, 0.95) * canvas.height
        frames.append(
            Frame(rng.uniform(0.08, 0.92) * canvas.width, y, canvas.height * (0.12 + 0.26 * y / canvas.height))
        )
    frames.sort(key=lambda f: f.y)
    outlines = [_outline(rng) for _ in frames]
    for f, (outline, _) in zip(frames, outlines, strict=True):
        shadow.polygon([(f.x + (x + y * slant[0]) * f.scale, f.y + y * slant[1] * f.scale) for x, y in outline], None)
    dark = cv2.GaussianBlur((canvas.concepts == Concept.SHADOW).astype(np.float32), (0, 0), 0.8 * canvas.unit)
    strength = np.float32(rng.uniform(0.42, 0.6)) * np.float32((1.08, 1.0, 0.88))  # the sky still lights it, bluish
    canvas.image[:] = (canvas.image * (1 - dark[..., None] * strength)).astype(np.uint8)
    for f, (outline, color) in zip(frames, outlines, strict=True):
        thing = canvas.pen(Concept.VOID)
        thing.polygon(f.points(*outline), color)
        thing.polygon(f.points(*[(x * 0.5 - 0.12, y) for x, y in outline]), tint(color, 1.2))
    scene = canvas.finish()
    return replace(scene, image=photograph(scene, rng, (1.02, 1.0, 0.97)))


def _floor(canvas: Canvas, rng: np.random.Generator) -> None:
    """Paints asphalt, grass, sand or tiles, some patches of it dark without being in shadow."""
    color = vary(rng, pick(rng, ((150, 150, 152), (124, 158, 82), (212, 190, 148), (188, 150, 126))))
    height, width = canvas.height, canvas.width
    grain = cv2.resize(rng.standard_normal((height // 3, width // 3), np.float32), (width, height)) * 9
    patches = cv2.resize(rng.standard_normal((5, 8), np.float32), (width, height), interpolation=cv2.INTER_CUBIC) * 11
    canvas.image[:] = np.clip(np.float32(color) + (grain + patches)[..., None], 0, 255).astype(np.uint8)
    pen = canvas.pen(Concept.VOID)
    if rng.random() < 0.5:
        step = height / rng.integers(3, 7)
        for y in np.arange(rng.uniform(0, step), height, step):
            pen.line([(0, y), (width, y)], canvas.unit, tint(color, 0.8))
        for x in np.arange(rng.uniform(0, step), width, step * 1.5):
            pen.line([(x, 0), (x, height)], canvas.unit, tint(color, 0.8))
    for _ in range(int(rng.integers(0, 3))):
        at = rng.uniform(0, width), rng.uniform(0, height)
        axes = rng.uniform(0.08, 0.22) * height, rng.uniform(0.05, 0.12) * height
        pen.ellipse(at, axes, tint(vary(rng, color, 6), rng.uniform(0.55, 0.75)), rng.uniform(0, 180))


def _outline(rng: np.random.Generator) -> tuple[list[Point], Color]:
    """Returns the outline of a thing on the ground, in its own units, and its colour."""
    turn = np.linspace(0, 2 * np.pi, 25)[:-1]
    kind = int(rng.integers(4))
    if kind == 0:  # a post
        return [(-0.09, 0), (0.09, 0), (0.09, 2.0), (-0.09, 2.0)], vary(rng, (150, 110, 70))
    if kind == 1:  # a ball
        return [(0.45 * np.cos(a), 0.45 + 0.45 * np.sin(a)) for a in turn], vary(rng, pick(rng, CLOTHES))
    if kind == 2:  # a crate
        return [(-0.5, 0), (0.5, 0), (0.5, 0.9), (-0.5, 0.9)], vary(rng, (190, 140, 80))
    person = [(-0.2, 0), (-0.05, 0), (0, 0.7), (0.05, 0), (0.2, 0), (0.2, 0.9), (0.3, 1.4), (0.1, 1.5)]
    person += [(0.12 * np.cos(a), 1.65 + 0.14 * np.sin(a)) for a in np.linspace(-1.2, 4.3, 14)]
    return [*person, (-0.1, 1.5), (-0.3, 1.4), (-0.2, 0.9)], vary(rng, pick(rng, CLOTHES))
