"""Predicts images: class ids, ids in colour, and the colours over the image.

    python demo.py --model fcn32s_vgg16_voc --input-pic street.jpg              # the latest such run under output/
    python demo.py --weights output/<run>/best.safetensors --input-pic folder more.png --outdir out
    python demo.py --weights output/<run>/best_export/model.onnx --input-pic folder --outdir out
    python demo.py --weights W.safetensors --input-pic data/cityscapes/leftImg8bit/test --outdir out --format cityscapes

For every image, at the image's own size:
    <stem>_ids.png      train ids, 8-bit grey
    <stem>_color.png    the same ids as a palette PNG: a viewer shows colours, a program reads ids
    <stem>_overlay.jpg  the colours half transparent over the image
For the test servers there is one file instead:
    --format cityscapes  <city>_<sequence>_<frame>_pred_labelIds.png, the data set's label ids: images must be
                         1024x2048 and named as in the data set
    --format ade         <stem>.png, 1..150, and 0 for nothing

Folders are searched with their subfolders, which --outdir mirrors. Nothing is downloaded: --model finds weights that
were trained here.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import time
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path

from awesome_pytorch_seg.data.names import DATASETS
from awesome_pytorch_seg.data.transforms import normalize
from awesome_pytorch_seg.inference import (
    MIN_SIDE,
    ModelInfo,
    Network,
    OnnxNetwork,
    TorchNetwork,
    read_checkpoint_info,
)
from awesome_pytorch_seg.models import ALIASES, MODELS
from awesome_pytorch_seg.runs import find_weights
from common.cli import CommandParser, UserError, run_command
from common.files import atomic_write
from common.images.encode import jpeg_bytes, palette_png_bytes, png_bytes
from common.images.read import IMAGE_SUFFIXES, read_image, read_size
from common.labels import LabelSet, label_set
from common.progress import track

import numpy as np

CITYSCAPES_SIZE = (1024, 2048)
CITYSCAPES_NAME = re.compile(r"([^_]+_\d{6}_\d{6})(_leftImg8bit)?")
FORMATS = {"cityscapes": ("cityscapes",), "ade": ("ade20k", "ade20k_151")}
"""Label sets whose networks can write a format."""
OVERLAY_OPACITY = 0.5


@dataclasses.dataclass(frozen=True)
class Job:
    """An image to predict, and where its results go: file names begin with `target`."""

    image: Path
    target: Path


def split_name(name: str) -> tuple[str, str | None, str]:
    """Model, backbone and data set of a name such as "fcn32s_vgg16_voc" or "enet_camvid".

    Raises:
        UserError: Its parts are not a network, one of its backbones and a data set.
    """
    datasets = [spelling for dataset in DATASETS for spelling in (dataset.name, *dataset.aliases)]
    parts = {
        "_".join(filter(None, (model, backbone, dataset))): (model, backbone, dataset)
        for model in (*MODELS, *ALIASES)
        for backbone in (None, *MODELS[ALIASES.get(model, model)].backbones)
        for dataset in datasets
    }
    if name not in parts:
        nearest = get_close_matches(name, parts, n=1)
        hint = f"did you mean '{nearest[0]}'? " if nearest else ""
        raise UserError(
            f"--model {name}: is no <network>_<backbone>_<data set> such as fcn32s_vgg16_voc or enet_camvid: {hint}"
            f"networks: {', '.join(MODELS)}; data sets: {', '.join(datasets)}"
        )
    return parts[name]


def open_network(weights: Path) -> tuple[Network, ModelInfo]:
    """Loads a checkpoint (.safetensors) or an export (.onnx).

    Raises:
        UserError: Missing, damaged, or of another kind.
    """
    if weights.suffix == ".onnx":
        network = OnnxNetwork(weights)
        return network, network.info
    info = read_checkpoint_info(weights)
    return TorchNetwork(weights), info


def predict_ids(network: Network, info: ModelInfo, image: np.ndarray) -> np.ndarray:
    """Uint8 RGB (H, W, 3) -> uint8 train ids (H, W), as evaluation with one scale computes them.

    Raises:
        UserError: The image is too small.
    """
    if min(image.shape[:2]) < MIN_SIDE:
        raise UserError(f"{image.shape[0]}x{image.shape[1]} pixels: each side must be at least {MIN_SIDE}")
    images = normalize(image, info.mean, info.std)[None]  # (1, 3, H, W)
    return network.logits(images)[0].argmax(axis=0).astype(np.uint8)


def find_jobs(inputs: Sequence[Path], output: Path, name_of: Callable[[Path], str]) -> list[Job]:
    """The images of files and folders, in order, with places under `output` that mirror the folders.

    Raises:
        UserError: An input is missing or holds no image, lies around `output`, or two images would share a place.
    """
    jobs: dict[Path, Job] = {}
    for given in inputs:
        if not given.exists():
            raise UserError(f"--input-pic {given}: there is no such file or folder")
        if given.is_dir() and output.resolve().is_relative_to(given.resolve()):
            raise UserError(f"--outdir {output} lies in {given}: results would be taken for images next time")
        images = _images_in(given) if given.is_dir() else [given]
        if not images:
            raise UserError(f"--input-pic {given}: no images in it ({', '.join(IMAGE_SUFFIXES)})")
        for image in images:
            folder = image.parent.relative_to(given) if given.is_dir() else Path()
            target = output / folder / name_of(image)
            if target in jobs:
                first = jobs[target].image
                raise UserError(f"{first} and {image} would both be written to {target}*: predict them apart")
            jobs[target] = Job(image, target)
    return list(jobs.values())


def write_results(job: Job, image: np.ndarray, ids: np.ndarray, info: ModelInfo) -> None:
    """Writes ids, palette PNG and overlay of one image."""
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(info.palette)] = info.palette
    mixed = image * (1 - OVERLAY_OPACITY) + palette[ids] * OVERLAY_OPACITY
    _write(job.target, "_ids.png", png_bytes(ids))
    _write(job.target, "_color.png", palette_png_bytes(ids, palette))
    _write(job.target, "_overlay.jpg", jpeg_bytes(np.rint(mixed).astype(np.uint8)))


def cityscapes_name(image: Path) -> str:
    """<city>_<sequence>_<frame> of a Cityscapes image.

    Raises:
        UserError: Another name, by which the evaluation would not find the result.
    """
    match = CITYSCAPES_NAME.fullmatch(image.stem)
    if match is None:
        raise UserError(f"{image}: --format cityscapes needs names such as berlin_000000_000019_leftImg8bit.png")
    return match[1]


def labels_of_format(name: str, class_names: tuple[str, ...]) -> LabelSet:
    """The label set in whose values a format is written.

    Raises:
        UserError: The network has other classes.
    """
    for labels in map(label_set, FORMATS[name]):
        if labels.class_names == class_names:
            return labels
    needed = label_set(FORMATS[name][0])
    raise UserError(
        f"--format {name} needs weights with the {needed.num_classes} classes of {needed.name}; these have "
        f"{len(class_names)} ({', '.join(class_names[:3])}, ...): use --format ids"
    )


def main() -> None:
    """The command."""
    args = _parse_args()
    is_cityscapes = args.format == "cityscapes"
    jobs = find_jobs(args.input_pic, args.outdir, cityscapes_name if is_cityscapes else lambda source: source.stem)
    if is_cityscapes:
        _require_cityscapes_size(jobs)
    weights = args.weights or find_weights(*split_name(args.model), Path("output"))
    network, info = open_network(weights)
    labels = None if args.format == "ids" else labels_of_format(args.format, info.class_names)
    start = time.perf_counter()
    for job in track(jobs, "predict", "image"):
        image = read_image(job.image)
        try:
            ids = predict_ids(network, info, image)
        except UserError as error:
            raise UserError(f"{job.image}: {error}") from None
        if labels is None:
            write_results(job, image, ids, info)
        else:
            _write(job.target, "_pred_labelIds.png" if is_cityscapes else ".png", png_bytes(labels.decode(ids)))
    milliseconds = 1000 * (time.perf_counter() - start) / len(jobs)
    print(f"{weights}: {len(jobs)} predictions in {args.outdir} ({milliseconds:.0f} ms per image, files included)")


def _require_cityscapes_size(jobs: list[Job]) -> None:
    for job in jobs:
        size = read_size(job.image)
        if size != CITYSCAPES_SIZE:
            raise UserError(f"{job.image}: is {size[0]}x{size[1]}, --format cityscapes needs 1024x2048 pixels")


def _write(target: Path, ending: str, content: bytes) -> None:
    with atomic_write(target.with_name(target.name + ending), "wb") as stream:
        stream.write(content)


def _images_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def _parse_args() -> argparse.Namespace:
    parser = CommandParser(__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    weights_help = "checkpoint of train.py, .safetensors, or export, .onnx (default: that of --model)"
    which.add_argument("--weights", type=Path, metavar="FILE", help=weights_help)
    model_help = "<network>_<backbone>_<data set>: the latest such run under output/ (default: that of --weights)"
    which.add_argument("--model", metavar="NAME", help=model_help)
    images = "images and folders"
    parser.add_argument("--input-pic", required=True, type=Path, nargs="+", metavar="PATH", help=images)
    outdir = "where results go (default: output/demo)"
    parser.add_argument("--outdir", type=Path, default=Path("output/demo"), metavar="DIR", help=outdir)
    format_help = "ids: three files an image; cityscapes, ade: one, for the test server (default: ids)"
    parser.add_argument("--format", choices=("ids", *FORMATS), default="ids", help=format_help)
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
