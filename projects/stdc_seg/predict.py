"""Predicts images: class ids, ids in colour, and the colours over the image.

    python predict.py --weights output/<run>/best.safetensors --input street.jpg --output out
    python predict.py --weights output/<run>/best_export/model.onnx --input folder more.png --output out
    python predict.py --weights W.safetensors --input data/cityscapes/leftImg8bit/test --output out --format cityscapes

For every image, at the image's own size:
    <stem>_ids.png      train ids, 8-bit grey
    <stem>_color.png    the same ids as a palette PNG: a viewer shows colours, a program reads ids
    <stem>_overlay.jpg  the colours half transparent over the image
--format cityscapes writes <city>_<sequence>_<frame>_pred_labelIds.png instead, alone, as the evaluation server and
cityscapesScripts take it: images must be 1024x2048 and named as in the data set.

Folders are searched with their subfolders, which --output mirrors. Runs in ONNX Runtime on a CPU where it is installed
(a checkpoint is then exported first, once, see export.py), else in Paddle.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
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
from stdc_seg.data.transforms import normalize
from stdc_seg.export import current_onnx
from stdc_seg.inference import ModelInfo, Network, OnnxNetwork, PaddleNetwork, read_checkpoint_info
from stdc_seg.protocol import EvalProtocol, class_scores

import numpy as np
import paddle

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
        input_scale: Factor on the image's sides before the network; None takes the weight file's.

    Raises:
        UserError: An `input_scale` that is not in (0, 4].
    """

    def __init__(self, network: Network, info: ModelInfo, input_scale: float | None = None):
        self.info = info
        self._network = network
        scale = info.input_scale if input_scale is None else input_scale
        self._protocol = EvalProtocol(scale, scales=(1.0,), flip=False)

    @paddle.no_grad()
    def ids(self, image: np.ndarray) -> np.ndarray:
        """Uint8 RGB (H, W, 3) -> uint8 train ids (H, W).

        Raises:
            UserError: The image is too small for the network.
        """
        size = image.shape[:2]
        if min(size) * self._protocol.input_scale < 32:
            scale = self._protocol.input_scale
            raise UserError(
                f"{size[0]}x{size[1]} pixels x {scale:g} are less than the network's stride of 32: give larger ones"
            )
        images = paddle.to_tensor(normalize(image, self.info.mean, self.info.std)).unsqueeze(0)  # (1, 3, H, W)
        scores = class_scores(self._logits, images, size, self._protocol)
        return scores.argmax(axis=1)[0].numpy().astype(np.uint8)

    def _logits(self, images: paddle.Tensor) -> paddle.Tensor:
        return paddle.to_tensor(self._network.logits(images.numpy()))


def open_predictor(weights: str, runtime: str | None = None, input_scale: float | None = None) -> Predictor:
    """Loads weights (.safetensors or an exported .onnx) into a runtime, by default the fastest that is there.

    Raises:
        UserError: Weights missing, damaged, of another kind, or not for this runtime.
    """
    is_onnx = Path(weights).suffix == ".onnx"
    if not is_onnx:
        info = read_checkpoint_info(weights)  # refuses what is no checkpoint, before anything is exported
    runtime = runtime or _default_runtime(is_onnx)
    if runtime == "onnx":
        network = OnnxNetwork(weights if is_onnx else current_onnx(weights))
        return Predictor(network, network.info, input_scale)
    if is_onnx:
        raise UserError(f"{weights}: --runtime paddle needs the checkpoint (.safetensors), not its ONNX export")
    return Predictor(PaddleNetwork(weights), info, input_scale)


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


def cityscapes_name(image: Path) -> str:
    """<city>_<sequence>_<frame> of a Cityscapes image.

    Raises:
        UserError: Another name, by which the evaluation would not find the result.
    """
    match = CITYSCAPES_NAME.fullmatch(image.stem)
    if match is None:
        raise UserError(f"{image}: --format cityscapes needs names such as berlin_000000_000019_leftImg8bit.png")
    return match[1]


def require_cityscapes(jobs: list[Job], class_names: tuple[str, ...]) -> None:
    """Raises UserError unless the classes are Cityscapes' and every image has its size."""
    if class_names != label_set("cityscapes").class_names:
        raise UserError("--format cityscapes needs weights with the 19 classes of Cityscapes; these have others")
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
        try:
            ids = predictor.ids(image)
        except UserError as error:
            raise UserError(f"{job.image}: {error}") from None
        write(job, image, ids, predictor.info)


def main() -> None:
    """The command."""
    args = _parse_args()
    is_cityscapes = args.format == "cityscapes"
    jobs = find_jobs(args.input, args.output, cityscapes_name if is_cityscapes else lambda image: image.stem)
    predictor = open_predictor(args.weights, args.runtime, args.input_scale)
    if is_cityscapes:
        require_cityscapes(jobs, predictor.info.class_names)
    start = time.perf_counter()
    predict(predictor, jobs, write_cityscapes if is_cityscapes else write_ids)
    milliseconds = 1000 * (time.perf_counter() - start) / len(jobs)
    print(f"written: {len(jobs)} predictions to {args.output} ({milliseconds:.0f} ms per image, files included)")


def _default_runtime(is_onnx: bool) -> str:
    on_cpu = paddle.device.get_device() == "cpu"
    needed = ("onnxruntime",) if is_onnx else ("onnxruntime", "paddle2onnx")
    installed = all(importlib.util.find_spec(name) for name in needed)
    return "onnx" if is_onnx or (on_cpu and installed) else "paddle"


def _images_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def _write(target: Path, ending: str, content: bytes) -> None:
    with atomic_write(target.with_name(target.name + ending), "wb") as stream:
        stream.write(content)


def _parse_args() -> argparse.Namespace:
    parser = CommandParser(__doc__)
    add = parser.add_argument_group("experiment").add_argument
    add("--weights", required=True, metavar="FILE", help="checkpoint of train.py, .safetensors, or export, .onnx")
    input_scale_help = "factor on the image's sides before the network: 0.5, 0.75, 1 (default: the run's)"
    add("--input-scale", type=float, metavar="X", help=input_scale_help)
    add = parser.add_argument_group("data and output").add_argument
    add("--input", required=True, type=Path, nargs="+", metavar="PATH", help="images and folders")
    add("--output", required=True, type=Path, metavar="DIR", help="where results go")
    format_help = "ids: three files an image; cityscapes: one, for the evaluation server (default: ids)"
    add("--format", choices=("ids", "cityscapes"), default="ids", help=format_help)
    add = parser.add_argument_group("speed and memory").add_argument
    runtime_help = "what computes (default: onnx on a CPU where it is installed, else paddle)"
    add("--runtime", choices=("paddle", "onnx"), help=runtime_help)
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
