"""Predicts pictures: class ids, ids in colour, and the colours over the picture.

    python demo.py --model fcn32s_vgg16_voc --input-pic street.jpg              # the latest such run under output/
    python demo.py --weights output/<run>/best.safetensors --input-pic folder more.png --outdir out
    python demo.py --weights output/<run>/best_export/model.onnx --input-pic folder --outdir out

For every picture, at the picture's own size:
    <stem>_ids.png      train ids, 8-bit grey
    <stem>_color.png    the same ids as a palette PNG: a viewer shows colours, a program reads ids
    <stem>_overlay.jpg  the colours half transparent over the picture

Folders are searched with their subfolders, which --outdir mirrors. Nothing is downloaded: --model finds weights that
were trained here.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence
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
from common.picture_encode import jpeg_bytes, palette_png_bytes, png_bytes
from common.picture_files import IMAGE_SUFFIXES, read_image
from common.progress import track

import numpy as np

OVERLAY_OPACITY = 0.5


@dataclasses.dataclass(frozen=True)
class Job:
    """A picture to predict, and where its results go: file names begin with `target`."""

    picture: Path
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
        UserError: The picture is too small.
    """
    if min(image.shape[:2]) < MIN_SIDE:
        raise UserError(f"{image.shape[0]}x{image.shape[1]} pixels: each side must be at least {MIN_SIDE}")
    images = normalize(image, info.mean, info.std)[None]  # (1, 3, H, W)
    return network.logits(images)[0].argmax(axis=0).astype(np.uint8)


def find_jobs(inputs: Sequence[Path], output: Path) -> list[Job]:
    """The pictures of files and folders, in order, with places under `output` that mirror the folders.

    Raises:
        UserError: An input is missing or holds no picture, lies around `output`, or two pictures would share a place.
    """
    jobs: dict[Path, Job] = {}
    for given in inputs:
        if not given.exists():
            raise UserError(f"--input-pic {given}: there is no such file or folder")
        if given.is_dir() and output.resolve().is_relative_to(given.resolve()):
            raise UserError(f"--outdir {output} lies in {given}: results would be taken for pictures next time")
        pictures = _pictures_in(given) if given.is_dir() else [given]
        if not pictures:
            raise UserError(f"--input-pic {given}: no pictures in it ({', '.join(IMAGE_SUFFIXES)})")
        for picture in pictures:
            folder = picture.parent.relative_to(given) if given.is_dir() else Path()
            target = output / folder / picture.stem
            if target in jobs:
                first = jobs[target].picture
                raise UserError(f"{first} and {picture} would both be written to {target}*: predict them apart")
            jobs[target] = Job(picture, target)
    return list(jobs.values())


def write_results(job: Job, image: np.ndarray, ids: np.ndarray, info: ModelInfo) -> None:
    """Writes ids, palette PNG and overlay of one picture."""
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(info.palette)] = info.palette
    mixed = image * (1 - OVERLAY_OPACITY) + palette[ids] * OVERLAY_OPACITY
    results = {
        "_ids.png": png_bytes(ids),
        "_color.png": palette_png_bytes(ids, palette),
        "_overlay.jpg": jpeg_bytes(np.rint(mixed).astype(np.uint8)),
    }
    for ending, content in results.items():
        with atomic_write(job.target.with_name(job.target.name + ending), "wb") as stream:
            stream.write(content)


def main() -> None:
    """The command."""
    args = _parse_args()
    jobs = find_jobs(args.input_pic, args.outdir)
    weights = args.weights or find_weights(*split_name(args.model), Path("output"))
    network, info = open_network(weights)
    start = time.perf_counter()
    for job in track(jobs, "predict", "image"):
        image = read_image(job.picture)
        try:
            ids = predict_ids(network, info, image)
        except UserError as error:
            raise UserError(f"{job.picture}: {error}") from None
        write_results(job, image, ids, info)
    milliseconds = 1000 * (time.perf_counter() - start) / len(jobs)
    print(f"{weights}: {len(jobs)} predictions in {args.outdir} ({milliseconds:.0f} ms per picture, files included)")


def _pictures_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def _parse_args() -> argparse.Namespace:
    parser = CommandParser(__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    weights_help = "checkpoint of train.py, .safetensors, or export, .onnx (default: that of --model)"
    which.add_argument("--weights", type=Path, metavar="FILE", help=weights_help)
    model_help = "<network>_<backbone>_<data set>: the latest such run under output/ (default: that of --weights)"
    which.add_argument("--model", metavar="NAME", help=model_help)
    pictures = "pictures and folders"
    parser.add_argument("--input-pic", required=True, type=Path, nargs="+", metavar="PATH", help=pictures)
    outdir = "where results go (default: output/demo)"
    parser.add_argument("--outdir", type=Path, default=Path("output/demo"), metavar="DIR", help=outdir)
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
