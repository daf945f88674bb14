"""Predicts images: class ids, ids in colour, and the colours over the image.

    python predict.py --weights output/<run>/best.safetensors --input street.jpg --output out
    python predict.py --weights output/<run>/best_export/model.onnx --input folder more.png --output out
    python predict.py --weights W.safetensors --input data/cityscapes/leftImg8bit/test --output out --format cityscapes
    python predict.py --weights W.safetensors --input data/ade20k/images/validation --output out --format ade

For every image, at the image's own size:
    <stem>_ids.png      train ids, 8-bit grey
    <stem>_color.png    the same ids as a palette PNG: a viewer shows colours, a program reads ids
    <stem>_overlay.jpg  the colours half transparent over the image
--format cityscapes writes <city>_<sequence>_<frame>_pred_labelIds.png instead, alone, as the evaluation server and
cityscapesScripts take it: images must be 1024x2048 and named as in the data set. --format ade writes <stem>.png
alone, with the values of ADE20K's own labels: 1 to 150 (0 would be nothing).

Folders are searched with their subfolders, which --output mirrors. Images are predicted as the run was evaluated: its
windows, scales and flip. A checkpoint runs in Paddle, an exported model.onnx in ONNX Runtime on the CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from common.cli import CommandParser, UserError, run_command
from common.files import atomic_write
from common.images.encode import jpeg_bytes, palette_png_bytes, png_bytes
from common.images.read import IMAGE_SUFFIXES, read_image, read_size
from common.labels import label_set
from common.progress import track
from semsegpaddle_glore.data.transforms import normalize
from semsegpaddle_glore.devices import require_gpu
from semsegpaddle_glore.inference import (
    ModelInfo,
    Network,
    OnnxNetwork,
    PaddleNetwork,
    as_model,
    read_checkpoint_info,
)
from semsegpaddle_glore.protocol import class_scores

import numpy as np

CITYSCAPES_SIZE = (1024, 2048)
CITYSCAPES_NAME = re.compile(r"([^_]+_\d{6}_\d{6})(_leftImg8bit)?")
OVERLAY_OPACITY = 0.5


@dataclasses.dataclass(frozen=True)
class Job:
    """An image to predict, and where its results go: file names begin with `target`."""

    image: Path
    target: Path


class Predictor:
    """Images in, train ids out, as evaluation computes them.

    Args:
        network: The network in one of its runtimes.
        info: What the weight file says about its input and protocol.
    """

    def __init__(self, network: Network, info: ModelInfo):
        self.info = info
        self._model = as_model(network)
        self._protocol = info.eval_protocol()

    def ids(self, image: np.ndarray) -> np.ndarray:
        """Uint8 RGB (H, W, 3) -> uint8 train ids (H, W)."""
        images = normalize(image, self.info.mean, self.info.std)[None]  # (1, 3, H, W)
        scores = class_scores(self._model, images, image.shape[:2], self._protocol)
        return scores[0].argmax(axis=0).astype(np.uint8)


def open_predictor(weights: str) -> Predictor:
    """Loads a checkpoint (.safetensors) into Paddle or an exported .onnx into ONNX Runtime.

    Raises:
        UserError: Weights missing, damaged or of another kind.
    """
    if Path(weights).suffix == ".onnx":
        network = OnnxNetwork(weights)
        return Predictor(network, network.info)
    info = read_checkpoint_info(weights)
    return Predictor(PaddleNetwork(weights), info)


def find_jobs(inputs: Sequence[Path], output: Path, name_of: Callable[[Path], str]) -> list[Job]:
    """The images of files and folders, in order, with places under `output` that mirror the folders.

    Raises:
        UserError: An input is missing or holds no image, lies around `output`, or two images would share a place.
    """
    jobs: dict[Path, Job] = {}
    for given in inputs:
        if not given.exists():
            raise UserError(f"--input {given}: there is no such file or folder")
        if given.is_dir() and output.resolve().is_relative_to(given.resolve()):
            raise UserError(f"--output {output} lies in --input {given}: results would be taken for images next time")
        images = _images_in(given) if given.is_dir() else [given]
        if not images:
            raise UserError(f"--input {given}: no images in it ({', '.join(IMAGE_SUFFIXES)})")
        for image in images:
            folder = image.parent.relative_to(given) if given.is_dir() else Path()
            target = output / folder / name_of(image)
            if target in jobs:
                first = jobs[target].image
                raise UserError(f"{first} and {image} would both be written to {target}*: predict them apart")
            jobs[target] = Job(image, target)
    return list(jobs.values())


def write_ids(job: Job, image: np.ndarray, ids: np.ndarray, info: ModelInfo) -> None:
    """Writes ids, palette PNG and overlay of one image."""
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(info.palette)] = info.palette
    mixed = image * (1 - OVERLAY_OPACITY) + palette[ids] * OVERLAY_OPACITY
    results = {
        "_ids.png": png_bytes(ids),
        "_color.png": palette_png_bytes(ids, palette),
        "_overlay.jpg": jpeg_bytes(np.rint(mixed).astype(np.uint8)),
    }
    for ending, content in results.items():
        _write(job.target, ending, content)


def write_cityscapes(job: Job, image: np.ndarray, ids: np.ndarray, info: ModelInfo) -> None:
    """Writes the labelIds of one image."""
    _write(job.target, "_pred_labelIds.png", png_bytes(label_set("cityscapes").decode(ids)))


def write_ade(job: Job, image: np.ndarray, ids: np.ndarray, info: ModelInfo) -> None:
    """Writes the values of ADE20K's label files of one image."""
    _write(job.target, ".png", png_bytes(label_set("ade20k").decode(ids)))


def cityscapes_name(image: Path) -> str:
    """<city>_<sequence>_<frame> of a Cityscapes image.

    Raises:
        UserError: Another name, by which the evaluation would not find the result.
    """
    match = CITYSCAPES_NAME.fullmatch(image.stem)
    if match is None:
        raise UserError(f"{image}: --format cityscapes needs names such as berlin_000000_000019_leftImg8bit.png")
    return match[1]


def require_classes_of(form: str, class_names: tuple[str, ...]) -> None:
    """Raises UserError unless the classes are those of the data set of a --format."""
    name, title = {"cityscapes": ("cityscapes", "Cityscapes"), "ade": ("ade20k", "ADE20K")}[form]
    wanted = label_set(name).class_names
    if class_names != wanted:
        raise UserError(f"--format {form} needs weights with the {len(wanted)} classes of {title}; these have others")


def require_cityscapes_size(jobs: list[Job]) -> None:
    """Raises UserError unless every image has the size of Cityscapes."""
    for job in jobs:
        size = read_size(job.image)
        if size != CITYSCAPES_SIZE:
            raise UserError(f"{job.image}: is {size[0]}x{size[1]}, --format cityscapes needs 1024x2048 pixels")


def predict(
    predictor: Predictor, jobs: list[Job], write: Callable[[Job, np.ndarray, np.ndarray, ModelInfo], None]
) -> None:
    """Predicts image by image; stops at the first that cannot be read, leaving the results before it whole."""
    for job in track(jobs, "predict", "image"):
        image = read_image(job.image)
        write(job, image, predictor.ids(image), predictor.info)


WRITERS = {"ids": write_ids, "cityscapes": write_cityscapes, "ade": write_ade}


def main() -> None:
    """The command."""
    args = _parse_args()
    is_cityscapes = args.format == "cityscapes"
    if args.use_gpu:
        require_gpu()
    jobs = find_jobs(args.input, args.output, cityscapes_name if is_cityscapes else lambda image: image.stem)
    predictor = open_predictor(args.weights)
    if args.format != "ids":
        require_classes_of(args.format, predictor.info.class_names)
    if is_cityscapes:
        require_cityscapes_size(jobs)
    start = time.perf_counter()
    predict(predictor, jobs, WRITERS[args.format])
    milliseconds = 1000 * (time.perf_counter() - start) / len(jobs)
    print(f"written: {len(jobs)} predictions to {args.output} ({milliseconds:.0f} ms per image, files included)")


def _images_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def _write(target: Path, ending: str, content: bytes) -> None:
    with atomic_write(target.with_name(target.name + ending), "wb") as stream:
        stream.write(content)


def _parse_args() -> argparse.Namespace:
    parser = CommandParser(__doc__)
    add = parser.add_argument
    add("--weights", required=True, metavar="FILE", help="checkpoint of train.py, .safetensors, or export, .onnx")
    add("--input", required=True, type=Path, nargs="+", metavar="PATH", help="images and folders")
    add("--output", required=True, type=Path, metavar="DIR", help="where results go")
    format_help = "ids: three files an image; cityscapes, ade: one, for the evaluation server (default: ids)"
    add("--format", choices=list(WRITERS), default="ids", help=format_help)
    add("--use_gpu", action="store_true", help="insist on a GPU (a checkpoint's)")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
