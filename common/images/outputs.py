"""Prediction commands: which images are predicted, where their results go, and the files of one result.

    jobs = find_jobs([Path("images")], Path("out"), by_stem)
    predict(predictor, jobs)  # out/<stem>_ids.png, _color.png, _overlay.jpg of each
    predict(predictor, jobs, label_set("ade20k"))  # out/<stem>.png with ADE20K's own values

Results are written whole or not at all.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from common.cli import UserError
from common.files import atomic_write, files_below
from common.images.encode import jpeg_bytes, palette_png_bytes, png_bytes
from common.images.read import IMAGE_SUFFIXES, read_image, read_size
from common.progress import track

import numpy as np

CITYSCAPES_SIZE = (1024, 2048)
CITYSCAPES_NAME = re.compile(r"([^_]+_\d{6}_\d{6})(_leftImg8bit)?")
CITYSCAPES_ENDING = "_pred_labelIds.png"
OVERLAY_OPACITY = 0.5


@dataclasses.dataclass(frozen=True)
class Job:
    """An image to predict, and where its results go: file names begin with `target`."""

    image: Path
    target: Path


class Predictor(Protocol):
    """A network with what it says about its input and classes: `info` has `class_names` and `palette`."""

    info: Any

    def require_size(self, path: Path, size: tuple[int, int]) -> None:
        """Raises UserError where an image of (height, width) is too small for the network."""

    def ids(self, image: np.ndarray) -> np.ndarray:
        """Uint8 RGB (H, W, 3) -> uint8 train ids (H, W)."""


class FileValues(Protocol):
    """A label set (`common.labels.LabelSet`): what a label file holds for each train id."""

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """Uint8 train ids (H, W) -> uint8 file values (H, W)."""


def predict(predictor: Predictor, jobs: Sequence[Job], labels: FileValues | None = None, ending: str = ".png") -> None:
    """Predicts image by image and writes the results.

    Args:
        predictor: What gives the ids.
        jobs: Images and places.
        labels: The set in whose values one label file is written; None writes ids, palette PNG and overlay.
        ending: Of the label file's name.

    Raises:
        UserError: Before the work: a header that cannot be read, or an image that is too small. Later: an image that
            cannot be read whole or be predicted; the results before it are there.
    """
    for job in jobs:
        predictor.require_size(job.image, read_size(job.image))
    for job in track(jobs, "predict", "image"):
        image = read_image(job.image)
        try:
            ids = predictor.ids(image)
        except UserError as error:
            raise UserError(f"{job.image}: {error}") from None
        if labels is None:
            write_ids(job, image, ids, predictor.info.palette)
        else:
            write_result(job, ending, png_bytes(labels.decode(ids)))


def by_stem(image: Path) -> str:
    """The beginning of the names of an image's results: its own name without suffix."""
    return image.stem


def find_jobs(
    inputs: Sequence[Path],
    output: Path,
    name_of: Callable[[Path], str],
    option: str = "--input",
    output_option: str = "--output",
) -> list[Job]:
    """The images of files and folders, in order, with places under `output` that mirror the folders.

    Args:
        inputs: Image files, and folders that are searched with their subfolders, see `images_in`.
        output: The folder of all results.
        name_of: Gives the beginning of the names of an image's results.
        option: The option that named the inputs, for errors.
        output_option: The option that named the output.

    Raises:
        UserError: An input is missing or holds no image, lies around `output`, or two images would share a place.
    """
    jobs: dict[Path, Job] = {}
    for given in inputs:
        if not given.exists():
            raise UserError(f"{option} {given}: there is no such file or folder")
        images = images_in(given) if given.is_dir() else [given]
        if given.is_dir():
            _refuse_around(output, given, images, option, output_option)
        if not images:
            raise UserError(f"{option} {given}: no images in it ({', '.join(IMAGE_SUFFIXES)})")
        for image in images:
            folder = image.parent.relative_to(given) if given.is_dir() else Path()
            target = output / folder / name_of(image)
            if target in jobs:
                first = jobs[target].image
                raise UserError(f"{first} and {image} would both be written to {target}*: predict them apart")
            jobs[target] = Job(image, target)
    return list(jobs.values())


def images_in(folder: Path) -> list[Path]:
    """The images of a folder and its subfolders, also linked ones, sorted; hidden files and folders are left out.

    Raises:
        UserError: A link to an image that does not exist.
    """
    images = sorted(path for path in files_below(folder, broken_links=True) if path.suffix.lower() in IMAGE_SUFFIXES)
    for path in images:
        if not path.exists():
            raise UserError(f"{path}: links to {path.readlink()}, which does not exist: correct or remove the link")
    return images


def write_ids(job: Job, image: np.ndarray, ids: np.ndarray, palette: Sequence[Sequence[int]]) -> None:
    """Writes ids, palette PNG and overlay of one image.

    Shapes: image uint8 (H, W, 3), ids uint8 (H, W), palette (num_classes, 3).
    """
    colors = np.zeros((256, 3), np.uint8)
    colors[: len(palette)] = palette
    mixed = image * (1 - OVERLAY_OPACITY) + colors[ids] * OVERLAY_OPACITY
    write_result(job, "_ids.png", png_bytes(ids))
    write_result(job, "_color.png", palette_png_bytes(ids, colors))
    write_result(job, "_overlay.jpg", jpeg_bytes(np.rint(mixed).astype(np.uint8)))


def write_result(job: Job, ending: str, content: bytes) -> None:
    """Writes one file of a result, whole or not at all."""
    with atomic_write(job.target.with_name(job.target.name + ending), "wb") as stream:
        stream.write(content)


def cityscapes_name(image: Path, option: str = "--format cityscapes") -> str:
    """<city>_<sequence>_<frame> of a Cityscapes image; `option` asked for it.

    Raises:
        UserError: Another name, by which the evaluation would not find the result.
    """
    match = CITYSCAPES_NAME.fullmatch(image.stem)
    if match is None:
        raise UserError(f"{image}: {option} needs names such as berlin_000000_000019_leftImg8bit.png")
    return match[1]


def require_cityscapes_size(jobs: Sequence[Job], option: str = "--format cityscapes") -> None:
    """Raises UserError unless every image has the size of Cityscapes; `option` asked for it."""
    for job in jobs:
        size = read_size(job.image)
        if size != CITYSCAPES_SIZE:
            raise UserError(f"{job.image}: is {size[0]}x{size[1]}, {option} needs 1024x2048 pixels")


def _refuse_around(output: Path, given: Path, images: Sequence[Path], option: str, output_option: str) -> None:
    """Refuses an output in a searched folder, also in one that is searched through a link."""
    place = output.resolve()
    for folder in (given, *dict.fromkeys(image.parent for image in images)):
        if place.is_relative_to(folder.resolve()):
            raise UserError(
                f"{output_option} {output} lies in {option} {folder}: results would be taken for images next time"
            )
