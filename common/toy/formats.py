"""What the toy data set is written as, besides images: .mat, polygons and run lengths."""

from __future__ import annotations

import io
from dataclasses import dataclass

import cv2
import numpy as np


def mat_bytes(content: dict) -> bytes:
    """Returns a MATLAB 5 file of the given variables."""
    from scipy.io import savemat

    stream = io.BytesIO()
    savemat(stream, content, do_compression=True)
    data = bytearray(stream.getvalue())
    data[:116] = b"MATLAB 5.0 MAT-file".ljust(116)  # the free text would hold the date: same seed, same bytes
    return bytes(data)


@dataclass(frozen=True)
class Region:
    """A connected patch of one value: the value and the patch's outline, [[x, y], ...] through pixel centres."""

    value: int
    outline: list[list[int]]


def layered_regions(values: np.ndarray) -> list[Region]:
    """Cuts a map into regions that give it back when their outlines are filled one after another.

    Holes need no polygons of their own: what lies in a hole is smaller than what is around it and comes later.

    Args:
        values: (H, W) integers.
    """
    found = []
    for value in np.unique(values):
        for box, mask in _components(values == value):
            contour = _outer_contour(mask) + box[:2]
            # A polygon needs three points: a contour of one or two pixels repeats its points.
            points = contour.tolist() if len(contour) > 2 else (contour.tolist() * 3)[:3]
            found.append((_filled(mask).sum(), Region(int(value), points)))
    found.sort(key=lambda pair: -pair[0])
    return [region for _, region in found]


def coco_polygons(mask: np.ndarray) -> list[list[int]]:
    """Returns the outlines of a mask along pixel edges as COCO has them, [x0, y0, x1, y1, ...]; holes are filled.

    Args:
        mask: (H, W) bool.
    """
    return [_edge_outline(_filled(part), box[0], box[1]) for box, part in _components(mask)]


def coco_run_lengths(mask: np.ndarray) -> dict:
    """Returns COCO's uncompressed run lengths of an (H, W) bool mask: down the columns, zeros first."""
    flat = np.concatenate([[False], mask.ravel(order="F"), [False]])
    changes = np.flatnonzero(np.diff(flat.astype(np.int8)))
    counts = np.diff(np.concatenate([[0], changes, [mask.size]])).tolist()
    # A mask that reaches the last pixel leaves an empty run behind.
    counts = counts[:-1] if len(counts) > 1 and counts[-1] == 0 else counts
    return {"counts": counts, "size": list(mask.shape)}


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """Returns the mask as `coco_polygons` describes it."""
    result = np.zeros(mask.shape, bool)
    for (x, y, width, height), part in _components(mask):
        result[y : y + height, x : x + width] |= _filled(part)
    return result


def _components(mask: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns (x, y, width, height) and the cut-out bool mask of each 4-connected patch.

    4-connected, so that two patches never cross each other at a corner, which filling their outlines would not survive.
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    found = []
    for index in range(1, count):
        x, y, width, height = stats[index, :4]
        found.append((stats[index, :4], labels[y : y + height, x : x + width] == index))
    return found


def _outer_contour(mask: np.ndarray) -> np.ndarray:
    """Returns the (N, 2) x, y of the one outer contour of a connected mask."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return contours[0][:, 0]


def _filled(mask: np.ndarray) -> np.ndarray:
    image = mask.astype(np.uint8)
    cv2.fillPoly(image, [_outer_contour(mask)], 1)
    return image > 0


def _edge_outline(mask: np.ndarray, left: int, top: int) -> list[int]:
    """Walks clockwise along the pixel edges of a connected mask without holes; returns its corners."""
    inside = np.pad(mask, 1)
    core = inside[1:-1, 1:-1]
    following: dict[tuple[int, int], tuple[int, int]] = {}
    sides = (
        (core & ~inside[:-2, 1:-1], (0, 0), (1, 0)),  # top edges run right
        (core & ~inside[1:-1, 2:], (1, 0), (1, 1)),  # right edges run down
        (core & ~inside[2:, 1:-1], (1, 1), (0, 1)),  # bottom edges run left
        (core & ~inside[1:-1, :-2], (0, 1), (0, 0)),  # left edges run up
    )
    for edges, start, end in sides:
        for y, x in np.argwhere(edges).tolist():
            following[x + start[0], y + start[1]] = (x + end[0], y + end[1])
    first = min(following)
    corners: list[int] = []
    before, here = (first[0], first[1] + 1), first  # the uppermost corner of the left side is reached from below
    for _ in range(len(following)):
        after = following[here]
        if (before[0] == here[0]) != (here[0] == after[0]):
            corners += [here[0] + int(left), here[1] + int(top)]
        before, here = here, after
    return corners
