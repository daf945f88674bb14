"""Lets each network learn one image by heart: the quickest proof that it, its loss and the training loop work.

    python overfit.py                              # every network; tens of minutes on two CPU cores
    python overfit.py --models enet pspnet --iters 200

The image is drawn: four large areas, since FCN-32s decides on a grid of 1/32. Training is train.py's own, with the
loss of the network's paper, on four copies of the image in other colours (batch normalisation over equal images
would have nothing to divide by); each network has its smallest backbone and random weights. It ends at 95 % mIoU on the
image as it is, or after --iters updates.

Prints a table and writes overfit.csv into --output (default: output/overfit).
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from awesome_pytorch_seg.config import Config, read_config
from awesome_pytorch_seg.models import MODELS
from awesome_pytorch_seg.runs import RunPlan
from awesome_pytorch_seg.train import Trainer
from common.cli import CommandParser, UserError, run_command
from common.files import write_csv
from common.progress import track

import cv2
import numpy as np
import torch

SIZE = (128, 192)
ENOUGH = 0.95
SMALLEST_BACKBONES = ("resnet18", "vgg16_bn", "resnet50_half", "densenet121")


@dataclasses.dataclass(frozen=True)
class Result:
    """How far a network came.

    Attributes:
        model: A key of `models.MODELS`.
        backbone: "" where the network has no separate backbone.
        miou_percent: On the image, the best.
        iters: Updates until then.
        seconds: Wall time of the training.
    """

    model: str
    backbone: str
    miou_percent: float
    iters: int
    seconds: float


def overfit(model: str, iters: int) -> Result:
    """Trains one network, a key of `models.MODELS`, on the image."""
    backbones = MODELS[model].backbones
    backbone = next((name for name in SMALLEST_BACKBONES if name in backbones), None)
    with tempfile.TemporaryDirectory() as folder:
        write_image(Path(folder))
        config = _config(model, backbone, iters, folder)
        start = time.perf_counter()
        trainer = Trainer(RunPlan(config, f"overfit_{model}", Path(folder) / "run", None, None), torch.device("cpu"))
        trainer.log = None  # no tables and no checkpoints
        trainer.run(enough=ENOUGH)
    seconds = time.perf_counter() - start
    return Result(model, backbone or "", round(100 * trainer.best_miou, 2), trainer.best_step, round(seconds, 1))


def write_image(root: Path) -> None:
    """Writes the image, its label and the lists of a custom data set."""
    height, width = SIZE
    label = np.zeros(SIZE, np.uint8)
    label[height // 2 :] = 1
    label[height // 4 : height * 3 // 4, width // 3 : width * 2 // 3] = 2
    label[:, width * 5 // 6 :] = 3
    colors = np.array([[180, 130, 70], [128, 64, 128], [0, 0, 142], [35, 142, 107]])
    noise = np.random.default_rng(0).normal(0, 15, (*SIZE, 3))
    cv2.imwrite(str(root / "image.png"), np.clip(colors[label] + noise, 0, 255).astype(np.uint8))
    cv2.imwrite(str(root / "label.png"), label)
    for name in ("train.txt", "val.txt"):
        (root / name).write_text("image.png,label.png\n")
    (root / "classes.yaml").write_text("name: areas\nclasses: [above, below, box, edge]\n")


def _config(model: str, backbone: str | None, iters: int, root: str) -> Config:
    words = (
        *(f"model.name={model}", f"model.backbone={backbone or 'null'}", "data.dataset=custom", f"data.root={root}"),
        f"augment.stages=[{{share: 1, scales: [1, 1], crop_size: {list(SIZE)}}}]",
        *("augment.color_jitter=0.2", "augment.flip_probability=0.0", "loss.dice_weight=0.0", "loss.aux_weight=0.4"),
        *("optimizer.learning_rate=0.001", "optimizer.ema_decay=null"),
        *("schedule.name=poly", f"schedule.warmup_iters={min(10, iters - 1)}", f"train.iters={iters}"),
        *("train.eval_every=10", f"train.checkpoint_every={iters}", "train.log_every=10"),
    )
    return read_config("quickstart", list(words))


def table(results: Sequence[Result]) -> str:
    """The results as Markdown."""
    lines = ["| network | backbone | mIoU on the image, % | updates | seconds |", "|---|---|---|---|---|"]
    for row in results:
        backbone = row.backbone or "none"
        lines.append(f"| {row.model} | {backbone} | {row.miou_percent:.2f} | {row.iters} | {row.seconds:.0f} |")
    return "\n".join(lines)


def main() -> int:
    """Runs the command. Returns 1 if a network did not learn the image."""
    parser = CommandParser(__doc__)
    models_help = f"networks (default: all): {', '.join(MODELS)}"
    parser.add_argument(
        "--models", nargs="+", choices=list(MODELS), default=list(MODELS), metavar="NAME", help=models_help
    )
    parser.add_argument("--iters", type=int, default=300, metavar="N", help="updates at most (default: 300)")
    output_help = "folder for overfit.csv (default: output/overfit)"
    parser.add_argument("--output", type=Path, default=Path("output/overfit"), metavar="DIR", help=output_help)
    args = parser.parse_args()
    if args.iters < 2:
        raise UserError(f"--iters {args.iters}: at least 2")
    results = [overfit(model, args.iters) for model in track(args.models, "overfit", "network")]
    write_csv(args.output / "overfit.csv", [dataclasses.asdict(result) for result in results])
    print(table(results))
    failed = [result.model for result in results if result.miou_percent < 100 * ENOUGH]
    print(f"{len(results) - len(failed)} of {len(results)} learnt the image; written: {args.output}/overfit.csv")
    return 1 if failed else 0


if __name__ == "__main__":
    run_command(main)
