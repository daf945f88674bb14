"""People and animals of the toy data set, and the two-wheelers that people ride."""

from __future__ import annotations

from dataclasses import replace

from common.toy.canvas import Canvas, Concept, Frame, Pen, pick, tint, vary
from common.toy.vehicles import bicycle, motorcycle

import numpy as np

CLOTHES = ((206, 40, 48), (40, 90, 190), (52, 140, 84), (140, 70, 160), (40, 44, 70), (236, 120, 160))
RIDING_CLOTHES = ((226, 238, 60), (250, 160, 40), (244, 206, 50))  # riders dress to be seen
TROUSERS = ((44, 58, 96), (34, 34, 38), (150, 130, 96), (90, 92, 98), (70, 60, 110))
SKIN = ((244, 208, 178), (224, 172, 130), (176, 122, 84), (112, 74, 50))
HAIR = ((40, 28, 22), (94, 60, 34), (196, 150, 80), (30, 30, 34), (150, 72, 40), (170, 168, 166))
HELMETS = ((240, 240, 240), (220, 40, 40), (250, 200, 40))


def person(pen: Pen, f: Frame, rng: np.random.Generator) -> None:
    """Draws a person who stands or walks, 1.5 to 2 m tall."""
    f = replace(f, scale=f.scale * rng.uniform(0.85, 1.15))
    top, trousers = vary(rng, pick(rng, CLOTHES)), vary(rng, pick(rng, TROUSERS))
    skin, hair = pick(rng, SKIN), pick(rng, HAIR)
    stride, swing = rng.uniform(0.02, 0.3), rng.uniform(-0.12, 0.2)
    shoe = tint(trousers, 0.5)
    for sign, color in ((-1, tint(trousers, 0.8)), (1, trousers)):
        foot = sign * (stride + 0.06)
        pen.polygon(f.points((sign * 0.2, 0.95), (0, 0.95), (foot - 0.085, 0.05), (foot + 0.085, 0.05)), color)
        pen.ellipse(f(foot + 0.04, 0.05), (0.13 * f.scale, 0.06 * f.scale), shoe)
    if rng.random() < 0.25:
        pen.polygon(f.points((-0.2, 1.05), (0.2, 1.05), (0.32, 0.5), (-0.32, 0.5)), top)
    pen.line(f.points((-0.25, 1.38), (-0.3 - swing, 1.12), (-0.3 - swing / 2, 0.88)), 0.13 * f.scale, tint(top, 0.75))
    pen.polygon(f.points((-0.21, 0.9), (0.21, 0.9), (0.28, 1.4), (0.16, 1.5), (-0.16, 1.5), (-0.28, 1.4)), top)
    pen.line(f.points((0.25, 1.38), (0.31 + swing, 1.12), (0.3 + swing / 2, 0.9)), 0.13 * f.scale, tint(top, 0.88))
    for x in (-0.3 - swing / 2, 0.3 + swing / 2):
        pen.ellipse(f(x, 0.86), (0.06 * f.scale, 0.06 * f.scale), skin)
    if rng.random() < 0.25:
        pen.polygon(f.points((0.2, 0.95), (0.42, 0.95), (0.42, 0.66), (0.2, 0.66)), vary(rng, pick(rng, CLOTHES)))
    pen.ellipse(f(0, 1.64), (0.145 * f.scale, 0.17 * f.scale), hair)
    if rng.random() < 0.75:
        pen.ellipse(f(0.02, 1.6), (0.12 * f.scale, 0.13 * f.scale), skin)


def crowd(canvas: Canvas, f: Frame, rng: np.random.Generator) -> None:
    """Draws a group of people as one object."""
    pen = canvas.thing(Concept.PERSON, crowd=True)
    for x in np.linspace(-0.9, 0.9, int(rng.integers(4, 6))):
        person(
            pen, replace(f, x=f.x + (x + rng.normal(0, 0.08)) * f.scale, y=f.y - rng.uniform(0, 0.12) * f.scale), rng
        )


def cyclist(canvas: Canvas, f: Frame, rng: np.random.Generator) -> None:
    """Draws someone riding a bicycle across the image."""
    canvas.darken(f.points((-0.9, -0.08), (0.9, -0.08), (0.9, 0.05), (-0.9, 0.05)), 0.6)
    bicycle(canvas.thing(Concept.BICYCLE), f, rng)
    _rider(canvas.thing(Concept.RIDER), f, rng, seat=(-0.22, 1.0), foot=(0.05, 0.25), hand=(0.45, 1.08))


def motorcyclist(canvas: Canvas, f: Frame, rng: np.random.Generator) -> None:
    """Draws someone riding a motorcycle across the image."""
    canvas.darken(f.points((-1.1, -0.08), (1.1, -0.08), (1.1, 0.05), (-1.1, 0.05)), 0.6)
    motorcycle(canvas.thing(Concept.MOTORCYCLE), f, rng)
    _rider(canvas.thing(Concept.RIDER), f, rng, seat=(-0.35, 0.92), foot=(0.1, 0.3), hand=(0.36, 1.18))


def _rider(
    pen: Pen,
    f: Frame,
    rng: np.random.Generator,
    seat: tuple[float, float],
    foot: tuple[float, float],
    hand: tuple[float, float],
) -> None:
    top, trousers = vary(rng, pick(rng, RIDING_CLOTHES)), vary(rng, pick(rng, TROUSERS))
    skin, helmet = pick(rng, SKIN), pick(rng, HELMETS)
    limb = 0.2 * f.scale
    shoulder = (seat[0] + 0.3, seat[1] + 0.55)
    knee = (seat[0] + 0.42, (seat[1] + foot[1]) / 2 + 0.12)
    pen.line(f.points(seat, knee, foot), limb, trousers)
    pen.ellipse(f(foot[0] + 0.06, foot[1]), (0.13 * f.scale, 0.06 * f.scale), tint(trousers, 0.5))
    pen.polygon(
        f.points(
            (seat[0] - 0.18, seat[1] - 0.05), (seat[0] + 0.22, seat[1] - 0.02),
            (shoulder[0] + 0.17, shoulder[1] - 0.02), (shoulder[0] - 0.19, shoulder[1] + 0.1),
        ),
        top,
    )  # fmt: skip
    elbow = ((shoulder[0] + hand[0]) / 2, min(shoulder[1], hand[1]) - 0.02)
    pen.line(f.points(shoulder, elbow, hand), limb * 0.75, tint(top, 0.82))
    head = (shoulder[0] + 0.08, shoulder[1] + 0.26)
    pen.ellipse(f(*head), (0.15 * f.scale, 0.17 * f.scale), skin)
    pen.ellipse(f(head[0] - 0.02, head[1] + 0.06), (0.17 * f.scale, 0.14 * f.scale), helmet)


def dog(canvas: Canvas, f: Frame, rng: np.random.Generator) -> None:
    """Draws a dog on a walk."""
    color = vary(rng, pick(rng, ((150, 96, 50), (60, 44, 36), (220, 200, 170))))
    pen = canvas.thing(Concept.DOG)
    for x in (-0.32, -0.2, 0.2, 0.32):
        pen.line(f.points((x, 0.3), (x, 0.03)), 0.09 * f.scale, tint(color, 0.85))
    pen.ellipse(f(0, 0.4), (0.42 * f.scale, 0.17 * f.scale), color)
    pen.line(f.points((-0.4, 0.45), (-0.58, 0.68)), 0.08 * f.scale, color)
    pen.ellipse(f(0.46, 0.6), (0.17 * f.scale, 0.15 * f.scale), color)
    pen.ellipse(f(0.6, 0.55), (0.1 * f.scale, 0.08 * f.scale), tint(color, 0.7))
    pen.ellipse(f(0.38, 0.62), (0.06 * f.scale, 0.13 * f.scale), tint(color, 0.6))
