"""Predicts images: class ids, ids in colour, and the colours over the image.

    python predict.py --weights output/<run>/best.safetensors --input street.jpg --output out
    python predict.py --weights W.safetensors --input folder more.png --output out --protocol encoding_ms_flip
    python predict.py --weights output/<run>/best_export/model.onnx --input folder --output out

For every image, at the image's own size:
    <stem>_ids.png      train ids, 8-bit grey
    <stem>_color.png    the same ids as a palette PNG: a viewer shows colours, a program reads ids
    <stem>_overlay.jpg  the colours half transparent over the image
--format dataset writes one file instead, <stem>.png, with the values of the data set's own label files (ADE20K: 1 to
150). For Cityscapes it is <city>_<sequence>_<frame>_pred_labelIds.png, as its evaluation server takes it: images must
be 1024x2048 and named as in the data set.

Folders are searched with their subfolders, which --output mirrors. A checkpoint runs in PyTorch, on the GPU if there is
one, an exported model.onnx in ONNX Runtime on the CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from common.cli import CommandParser, UserError, run_command
from common.files import atomic_write
from common.images.encode import jpeg_bytes, palette_png_bytes, png_bytes
from common.images.read import IMAGE_SUFFIXES, read_image, read_size
from common.labels import LabelSet, label_set
from common.progress import track
from common.samples.list_dataset import SMALLEST_SIDE
from encnet_single_gpu.data.transforms import normalize
from encnet_single_gpu.inference import (
    ModelInfo,
    Network,
    OnnxNetwork,
    TorchNetwork,
    as_model,
    read_checkpoint_info,
)
from encnet_single_gpu.protocol import PROTOCOLS, EvalProtocol, class_scores

import numpy as np
import torch

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
        info: What the weight file says about its input.
        protocol: The name of the protocol by which scores are put together.
    """

    def __init__(self, network: Network, info: ModelInfo, protocol: str = "ss"):
        self.info = info
        self._model = as_model(network)
        self._device = network.device if isinstance(network, TorchNetwork) else torch.device("cpu")
        self._protocol = EvalProtocol.named(protocol, info.crop_size, info.mean, info.std)

    @torch.no_grad()
    def ids(self, image: np.ndarray) -> np.ndarray:
        """Uint8 RGB (H, W, 3) -> uint8 train ids (H, W).

        Raises:
            UserError: The image is too small for the network, of a size that an export does not take, or too large
                for the memory.
        """
        size = image.shape[:2]
        if min(size) < SMALLEST_SIDE:
            raise UserError(f"{size[0]}x{size[1]} pixels: each side must have at least {SMALLEST_SIDE}")
        images = torch.from_numpy(normalize(image, self.info.mean, self.info.std)).unsqueeze(0)  # (1, 3, H, W)
        scores = class_scores(self._model, images.to(self._device), size, self._protocol)
        return scores.argmax(dim=1)[0].cpu().numpy().astype(np.uint8)


def open_predictor(weights: str, protocol: str) -> Predictor:
    """Loads a checkpoint (.safetensors) into PyTorch or an exported .onnx into ONNX Runtime.

    Raises:
        UserError: Weights missing, damaged or of another kind.
    """
    if Path(weights).suffix == ".onnx":
        network = OnnxNetwork(weights)
        return Predictor(network, network.info, protocol)
    info = read_checkpoint_info(weights)
    return Predictor(TorchNetwork(weights), info, protocol)


def find_jobs(inputs: Sequence[Path], output: Path, name_of: Callable[[Path], str]) -> list[Job]:
    """The images of files and folders, in order, with places under `output` that mirror the folders.

    Raises:
        UserError: An input is missing or holds no image, lies around `output`, or two images would share a place.
    """
    jobs: dict[Path, Job] = {}
    for image, folder in _images(inputs, output):
        target = output / folder / name_of(image)
        if target in jobs:
            raise UserError(f"{jobs[target].image} and {image} would both be written to {target}*: predict them apart")
        jobs[target] = Job(image, target)
    return list(jobs.values())


def _images(inputs: Sequence[Path], output: Path) -> Iterator[tuple[Path, Path]]:
    """Images, each with its folder below the input that holds it."""
    for given in inputs:
        if given.is_file():
            yield given, Path()
            continue
        if not given.is_dir():
            raise UserError(f"--input {given}: there is no such file or folder")
        if output.resolve().is_relative_to(given.resolve()):
            raise UserError(f"--output {output} lies in --input {given}: results would be taken for images next time")
        found = sorted(p for p in given.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        if not found:
            raise UserError(f"--input {given}: no images in it ({', '.join(IMAGE_SUFFIXES)})")
        yield from ((image, image.parent.relative_to(given)) for image in found)


def write_ids(job: Job, image: np.ndarray, ids: np.ndarray, colors: np.ndarray) -> None:
    """Writes ids, palette PNG and overlay of one image."""
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(colors)] = colors
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
        raise UserError(
            f"{image}: --format dataset of Cityscapes needs names such as berlin_000000_000019_leftImg8bit.png"
        )
    return match[1]


def _require_cityscapes_size(jobs: list[Job]) -> None:
    for job in jobs:
        size = read_size(job.image)
        if size != CITYSCAPES_SIZE:
            raise UserError(
                f"{job.image}: is {size[0]}x{size[1]}, --format dataset of Cityscapes needs 1024x2048 pixels"
            )


def _labels_of_files(info: ModelInfo) -> LabelSet:
    """The label set whose files --format dataset writes; of Cityscapes labelIds, whatever the training read."""
    if info.dataset == "custom":
        raise UserError("--format dataset knows the sets of common/labels.py, these weights are of a custom one")
    labels = label_set("cityscapes" if info.dataset == "cityscapes_trainids" else info.dataset)
    if info.class_names != labels.class_names:
        raise UserError(
            f"--format dataset: these weights are of '{info.dataset}' but have other classes than it: use --format ids"
        )
    return labels


def main() -> None:
    """The command."""
    args = _parse_args()
    predictor = open_predictor(args.weights, args.protocol)
    labels = _labels_of_files(predictor.info) if args.format == "dataset" else None
    is_cityscapes = labels is not None and labels.name == "cityscapes"
    jobs = find_jobs(args.input, args.output, cityscapes_name if is_cityscapes else lambda source: source.stem)
    if is_cityscapes:
        _require_cityscapes_size(jobs)
    start = time.perf_counter()
    for job in track(jobs, "predict", "image"):
        image = read_image(job.image)
        try:
            ids = predictor.ids(image)
        except UserError as error:
            raise UserError(f"{job.image}: {error}") from None
        if labels is None:
            write_ids(job, image, ids, np.array(predictor.info.palette, np.uint8))
        else:
            _write(job.target, "_pred_labelIds.png" if is_cityscapes else ".png", png_bytes(labels.decode(ids)))
    milliseconds = 1000 * (time.perf_counter() - start) / len(jobs)
    print(f"written: {len(jobs)} predictions to {args.output} ({milliseconds:.0f} ms per image, files included)")


def _write(target: Path, ending: str, content: bytes) -> None:
    with atomic_write(target.with_name(target.name + ending), "wb") as stream:
        stream.write(content)


def _parse_args() -> argparse.Namespace:
    parser = CommandParser(__doc__)
    weights_help = "checkpoint of train.py, .safetensors, or export, .onnx"
    parser.add_argument("--weights", required=True, metavar="FILE", help=weights_help)
    parser.add_argument("--input", required=True, type=Path, nargs="+", metavar="PATH", help="images and folders")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="where results go")
    protocol_help = "how scores are put together, see eval.py --help (default: ss)"
    parser.add_argument("--protocol", choices=PROTOCOLS, default="ss", help=protocol_help)
    format_help = "ids: three files an image; dataset: one, with the data set's own values (default: ids)"
    parser.add_argument("--format", choices=("ids", "dataset"), default="ids", help=format_help)
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
