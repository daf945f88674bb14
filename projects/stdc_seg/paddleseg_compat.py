"""Lets the installed paddleseg 2.8.0 train and evaluate on paddle 3, with our STDC-Seg or with its own networks.

    python paddleseg_compat.py train --config configs/paddleseg/stdc2_seg50.yml --do_eval --save_dir output/paddleseg
    python paddleseg_compat.py val --config configs/paddleseg/stdc2_seg50.yml --model_path DIR/best_model/model.pdparams
    python paddleseg_compat.py train --config FILE --opts train_dataset.dataset_root=DIR val_dataset.dataset_root=DIR

The YAML is paddleseg's own; flags are those of its tools (train.py and val.py). In code: `apply()` once, then
`from paddleseg.core import train, evaluate`. Registered for YAML: the model `SegReproSTDCSeg`, the losses
`SegReproOhemCrossEntropyLoss` and `SegReproDetailLoss`.

What `apply` changes, in this process only:

- Losses: paddle 3 refuses `float * int64`, which paddleseg's losses rely on. While one of them runs, the right operand
  takes the left one's type, as it did up to paddle 2.5; the losses' own code stays as it is.
- Log line of `train`: it indexes loss values as arrays of one value, paddle 3 gives scalars.
- `calculate_area` of `evaluate`: it concatenates scalars, which paddle 3 refuses; the same counts, taken another way.
- `paddle.load` wherever paddleseg calls it (pretrained weights, --model_path, --resume_model): a .pdparams or .pdopt is
  read without running what is in it.

Not changed: networks of paddleseg with a `loss_computation` of their own (they must return values of shape [1]); its
`DetailAggregateLoss`, whose fuse kernel is drawn at random and never saved; its mIoU, which counts a class that is
nowhere as 0 (common/metrics.py leaves it out); unpacking of archives that it downloads for `pretrained: https://...`.
paddleseg's resume restores weights, momentum and rate, but neither the data order nor the best mIoU: train.py does.
"""

from __future__ import annotations

import argparse
import functools
import glob
import importlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.cli import CommandParser, UserError, did_you_mean, not_negative, positive, run_command
from common.labels import IGNORE
from common.weights.pdparams import load_without_code, read_pdparams
from stdc_seg.checkpoint import load_backbone, load_model, read_state
from stdc_seg.config import CONFIG_DIR
from stdc_seg.losses import DetailLoss, OhemCrossEntropy
from stdc_seg.models import STDCSeg
from stdc_seg.models.layers import refuse_single_value_batch_norm
from stdc_seg.models.stdcnet import STDC_LAYERS

import numpy as np
import paddle
import paddleseg
from paddleseg.cvlibs import Config, SegBuilder, manager

# The modules of paddleseg 2.8.0 that call paddle.load.
LOADING_MODULES = (
    "paddleseg.utils.utils",
    "paddleseg.models.backbones.vision_transformer",
    "paddleseg.models.backbones.cae",
)
# The flags that its train() takes as they are.
TRAIN_FLAGS = (
    *("save_dir", "resume_model", "save_interval", "log_iters", "num_workers", "use_vdl", "use_ema"),
    *("keep_checkpoint_max", "precision", "amp_level"),
)


class SegReproSTDCSeg(STDCSeg):
    """Our STDC-Seg as a model of paddleseg. Pairs with four losses: three for segmentation, one for details.

    Args:
        num_classes: Number of classes.
        name: "stdc1" or "stdc2".
        backbone_weights: ImageNet weights of the backbone (.pdparams or .safetensors), all of them or an error.
        pretrained: Weights of the whole network (see `load_weights`).
        in_channels: 3; paddleseg passes it on its own.
    """

    def __init__(
        self,
        num_classes: int,
        name: str = "stdc2",
        backbone_weights: str | None = None,
        pretrained: str | None = None,
        in_channels: int = 3,
    ):
        if name not in STDC_LAYERS:
            raise UserError(f"model.name '{name}' is unknown: {did_you_mean(str(name), list(STDC_LAYERS))}")
        if in_channels != 3:
            raise UserError(f"model.in_channels is {in_channels}: STDC-Seg takes RGB images, 3 channels")
        super().__init__(name, num_classes)
        if backbone_weights is not None:
            load_backbone(backbone_weights, self.backbone)
        if pretrained is not None:
            load_weights(self, pretrained)

    def forward(self, images: paddle.Tensor) -> list[paddle.Tensor]:
        """The outputs as the list that paddleseg's train and evaluate take: logits, in training also aux and detail."""
        outputs = super().forward(images)
        if not self.training:
            return [outputs]
        return [outputs["logits"], *outputs["aux"], outputs["detail"]]


class SegReproOhemCrossEntropyLoss(OhemCrossEntropy):
    """`stdc_seg.losses.OhemCrossEntropy` as a loss of paddleseg.

    Args:
        thresh: Pixels whose true class has less than this probability are hard.
        min_kept_fraction: Of all pixels of the batch: at least so many are kept (paddleseg's own loss counts pixels).
        ignore_index: 255; paddleseg passes it on its own.
    """

    def __init__(self, thresh: float = 0.7, min_kept_fraction: float = 0.0625, ignore_index: int = IGNORE):
        _require_ignore_index(ignore_index)
        super().__init__(thresh, min_kept_fraction)


class SegReproDetailLoss(DetailLoss):
    """`stdc_seg.losses.DetailLoss` as a loss of paddleseg: one scalar, BCE + Dice.

    Args:
        mask_ignored: See `DetailLoss`.
        ignore_index: 255; paddleseg passes it on its own.
    """

    def __init__(self, mask_ignored: bool = False, ignore_index: int = IGNORE):
        _require_ignore_index(ignore_index)
        super().__init__(mask_ignored)

    def forward(self, logits: paddle.Tensor, label: paddle.Tensor) -> paddle.Tensor:
        """Detail logits (B, 1, h, w), label int64 (B, H, W) -> scalar."""
        bce, dice, _ = super().forward(logits, label)
        return bce + dice


def apply() -> None:
    """Makes paddleseg's `train` and `evaluate` work and registers our components; a second call does nothing.

    Raises:
        UserError: Another version of paddleseg is installed: what is changed here may not fit it.
    """
    if SegReproSTDCSeg.__name__ in manager.MODELS.components_dict:
        return
    if paddleseg.__version__ != "2.8.0":
        raise UserError(
            f"paddleseg {paddleseg.__version__} is installed, this is for 2.8.0: pip install --no-deps paddleseg==2.8.0"
        )
    for loss in manager.LOSSES.components_dict.values():
        if "forward" in vars(loss):
            loss.forward = _right_operand_takes_left_type()(loss.forward)  # as a decorator
    core_train = importlib.import_module("paddleseg.core.train")  # paddleseg.core.train by attribute is the function
    core_train.loss_computation = _with_shape_1(core_train.loss_computation)
    importlib.import_module("paddleseg.utils.metrics").calculate_area = calculate_area
    for name in LOADING_MODULES:
        importlib.import_module(name).paddle = _PaddleThatLoadsSafely()
    manager.MODELS.add_component(SegReproSTDCSeg)
    manager.LOSSES.add_component([SegReproOhemCrossEntropyLoss, SegReproDetailLoss])


def load_weights(model: paddle.nn.Layer, path: str | os.PathLike) -> None:
    """Fills a whole network from a .pdparams of paddleseg's `train` or a checkpoint of our train.py (.safetensors).

    Raises:
        UserError: The file cannot be read, is refused, or lacks a tensor of the network.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        load_model(path, model, read_state(path).class_names)
        return
    stored, wanted = read_pdparams(path), model.state_dict()
    wrong = [name for name, value in wanted.items() if name not in stored or stored[name].shape != tuple(value.shape)]
    if wrong:
        raise UserError(
            f"{path}: fits another network: {len(wrong)} of {len(wanted)} tensors are missing or of another shape, "
            f"the first is '{wrong[0]}': check model and num_classes in the config"
        )
    model.set_state_dict({name: paddle.to_tensor(stored[name]) for name in wanted})


def load_as_tensors(path: str | os.PathLike, **_: Any) -> dict[str, Any]:
    """`paddle.load` for .pdparams and .pdopt that refuses, unrun, whatever is more than arrays and plain values.

    Raises:
        UserError: See `common.weights.pdparams.load_without_code`.
    """
    content = load_without_code(path)
    content.pop("StructuredToParameterName@@", None)
    return {name: paddle.to_tensor(v) if isinstance(v, np.ndarray) else v for name, v in content.items()}


def calculate_area(
    pred: paddle.Tensor, label: paddle.Tensor, num_classes: int, ignore_index: int = IGNORE
) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
    """Pixels per class as paddleseg counts them: intersection, predicted where not ignored, labelled.

    Shapes: pred and label integers, (B, 1, H, W) or (B, H, W) -> three of (num_classes,) int64.
    """
    if pred.size != label.size:
        raise ValueError(f"prediction {pred.shape} and label {label.shape} differ in size")
    pred, label = pred.flatten().astype("int64"), label.flatten().astype("int64")
    counted = label != ignore_index
    areas = (pred[counted & (pred == label)], pred[counted], label)
    return tuple(paddle.bincount(ids, minlength=num_classes)[:num_classes] for ids in areas)


class _PaddleThatLoadsSafely:
    """Stands for the name `paddle` in a module of paddleseg: all of paddle, with another `load`."""

    load = staticmethod(load_as_tensors)

    def __getattr__(self, name: str) -> Any:
        return getattr(paddle, name)


@contextmanager
def _right_operand_takes_left_type() -> Iterator[None]:
    """Within it, `left + right` (-, *) of tensors of different types converts the right one, as up to paddle 2.5."""
    originals = {name: getattr(paddle.Tensor, name) for name in ("__add__", "__sub__", "__mul__")}

    def converting(operate: Callable) -> Callable:
        def operator(left: paddle.Tensor, right: Any) -> paddle.Tensor:
            if isinstance(right, paddle.Tensor) and left.dtype != right.dtype:
                right = right.astype(left.dtype)
            return operate(left, right)

        return operator

    try:
        for name, operate in originals.items():
            setattr(paddle.Tensor, name, converting(operate))
        yield
    finally:
        for name, operate in originals.items():
            setattr(paddle.Tensor, name, operate)


def _with_shape_1(loss_computation: Callable) -> Callable:
    @functools.wraps(loss_computation)
    def wrapped(*args: Any, **kwargs: Any) -> list[paddle.Tensor]:
        return [loss.reshape([1]) for loss in loss_computation(*args, **kwargs)]

    return wrapped


def _require_ignore_index(ignore_index: int) -> None:
    if ignore_index != IGNORE:
        raise UserError(f"ignore_index is {ignore_index}: the losses of stdc_seg ignore {IGNORE}")


@contextmanager
def _paddleseg_errors(config: str) -> Iterator[None]:
    """Turns what paddleseg raises over a config or a data set into one line; our own errors stay as they are."""
    try:
        yield
    except UserError:
        raise
    except (AssertionError, AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error.__context__, UserError):  # paddleseg's builder wraps what a constructor raises
            raise error.__context__ from None
        raise UserError(f"{config}: {error}") from error


def _require_data(config: Config, *sections: str) -> None:
    """Raises UserError naming the folder, list or files that a data set lacks; paddleseg says neither."""
    for section in sections:
        dataset = config.dic.get(section, {})
        root, mode = dataset.get("dataset_root"), dataset.get("mode", "train")
        wanted = [glob.escape(str(place)) for place in (root, dataset.get(f"{mode}_path")) if place is not None]
        if dataset.get("type") == "Cityscapes" and wanted:
            files = ("leftImg8bit/{}/*/*_leftImg8bit.png", "gtFine/{}/*/*_gtFine_labelTrainIds.png")
            wanted += [f"{wanted[0]}/{pattern.format(mode)}" for pattern in files]
        for pattern in wanted:
            if not glob.glob(pattern):
                remedy = f"put the data there, or say where it is: --opts {section}.dataset_root=DIR"
                raise UserError(f"{section}: there is no {os.path.abspath(pattern)}: {remedy}")


def _build(args: argparse.Namespace, *sections: str, **changes: Any) -> tuple[Config, SegBuilder]:
    """The config and what builds its parts; the data sets of `sections` are there."""
    if not os.path.isfile(args.config):
        known = sorted(path.name for path in (CONFIG_DIR / "paddleseg").glob("*.yml"))
        nearest = did_you_mean(os.path.basename(args.config), known)
        raise UserError(f"no config file {args.config}; in configs/paddleseg/: {nearest}")
    if args.device:
        paddle.set_device(args.device)
    with _paddleseg_errors(args.config):
        config = Config(args.config, opts=args.opts, **changes)
        _require_data(config, *sections)
        return config, SegBuilder(config)


def _train(args: argparse.Namespace) -> None:
    sections = ("train_dataset", "val_dataset") if args.do_eval else ("train_dataset",)
    changes = {"learning_rate": args.learning_rate, "batch_size": args.batch_size, "iters": args.iters}
    config, builder = _build(args, *sections, **changes)
    if os.path.exists(args.save_dir) and not os.path.isdir(args.save_dir):  # paddleseg would delete the file
        raise UserError(f"--save_dir {args.save_dir} is a file: name a folder")
    resume = args.resume_model
    if resume and not (os.path.isdir(resume) and re.fullmatch(r".*iter_\d+/?", resume)):
        raise UserError(f"--resume_model {resume}: name a folder iter_N; paddleseg takes N from its name")
    paddleseg.utils.set_seed(args.seed)
    with _paddleseg_errors(args.config):
        model = builder.model
        if paddle.distributed.get_world_size() > 1 and paddle.device.get_device().startswith("gpu"):
            model = paddle.nn.SyncBatchNorm.convert_sync_batchnorm(model)
        parts = {"optimizer": builder.optimizer, "losses": builder.loss}
        parts |= {section: getattr(builder, section) for section in sections}
    with refuse_single_value_batch_norm(model):
        paddleseg.core.train(
            model,
            iters=config.iters,
            batch_size=config.batch_size,
            test_config=config.test_config,
            to_static_training=config.to_static_training,
            **parts,
            **{name: getattr(args, name) for name in TRAIN_FLAGS},
        )


def _val(args: argparse.Namespace) -> None:
    config, builder = _build(args, "val_dataset")
    with _paddleseg_errors(args.config):
        model, dataset = builder.model, builder.val_dataset
    load_weights(model, args.model_path)
    test_config = config.test_config
    if args.aug_eval or args.scales or args.flip_horizontal or args.flip_vertical:
        flips = {name: getattr(args, name) for name in ("flip_horizontal", "flip_vertical")}
        test_config |= {"aug_eval": True, "scales": args.scales or test_config.get("scales", 1.0), **flips}
    if args.is_slide:
        if not (args.crop_size and args.stride):
            raise UserError("--is_slide needs --crop_size W H and --stride W H")
        test_config |= {"is_slide": True, "crop_size": args.crop_size, "stride": args.stride}
    paddleseg.core.evaluate(model, dataset, num_workers=args.num_workers, **test_config)


def main() -> None:
    """The command."""
    args = _parse_args()
    apply()
    args.run(args)


def _parse_args() -> argparse.Namespace:
    parser = CommandParser(__doc__)
    commands = parser.add_subparsers(required=True, metavar="{train,val}")
    _add_train(commands.add_parser("train", help="paddleseg's training loop", description=__doc__))
    _add_val(commands.add_parser("val", help="paddleseg's evaluation", description=__doc__))
    return parser.parse_args()


def _add_train(parser: CommandParser) -> None:
    parser.set_defaults(run=_train)
    add = _add_experiment(parser)
    add("--learning_rate", type=float, metavar="X", help="rate at the start (default: the config's)")
    add("--batch_size", type=positive, metavar="N", help="images of an update per process (default: the config's)")
    add("--seed", type=not_negative, metavar="N", help="seed of weights and augmentation (default: random)")
    add("--use_ema", action="store_true", help="keep a moving average of the weights as well")
    add = parser.add_argument_group("data and output").add_argument
    save_help = "where iter_N/ and best_model/ go (default: output/paddleseg)"
    add("--save_dir", default="output/paddleseg", metavar="DIR", help=save_help)
    add("--keep_checkpoint_max", type=positive, default=5, metavar="N", help="folders iter_N to keep (default: 5)")
    add("--log_iters", type=positive, default=10, metavar="N", help="updates between log lines (default: 10)")
    add("--use_vdl", action="store_true", help="log for VisualDL")
    add = parser.add_argument_group("protocol").add_argument
    add("--do_eval", action="store_true", help="evaluate at every save")
    add = parser.add_argument_group("length and resuming").add_argument
    add("--iters", type=positive, metavar="N", help="updates in all (default: the config's)")
    add("--save_interval", type=positive, default=1000, metavar="N", help="updates between saves (default: 1000)")
    add("--resume_model", metavar="DIR", help="go on from a folder iter_N (default: a new run)")
    add = _add_machine(parser)
    add("--precision", choices=("fp32", "fp16"), default="fp32", help="fp16: mixed, on a GPU (default: fp32)")
    add("--amp_level", choices=("O1", "O2"), default="O1", help="of fp16 (default: O1)")


def _add_val(parser: CommandParser) -> None:
    parser.set_defaults(run=_val)
    add = _add_experiment(parser)
    add("--model_path", required=True, metavar="FILE", help=".pdparams, or .safetensors of our train.py")
    add = parser.add_argument_group("protocol").add_argument
    add("--aug_eval", action="store_true", help="evaluate at --scales and with flips")
    add("--scales", type=float, nargs="+", metavar="S", help="size factors: 0.5 is Seg50 (default: the config's)")
    add("--flip_horizontal", action="store_true", help="average with the mirrored image")
    add("--flip_vertical", action="store_true", help="average with the image upside down")
    add("--is_slide", action="store_true", help="slide a window of --crop_size by --stride")
    add("--crop_size", type=positive, nargs=2, metavar=("W", "H"), help="of the window in pixels (default: none)")
    add("--stride", type=positive, nargs=2, metavar=("W", "H"), help="pixels to the next window (default: none)")
    _add_machine(parser)


def _add_experiment(parser: CommandParser) -> Callable:
    """What both commands read; returns how more is added to the group."""
    add = parser.add_argument_group("experiment").add_argument
    add("--config", required=True, metavar="YML", help="paddleseg's config")
    add("--opts", nargs="+", metavar="KEY=VALUE", help="change the config: model.name=stdc1 (default: nothing)")
    return add


def _add_machine(parser: CommandParser) -> Callable:
    """Likewise."""
    add = parser.add_argument_group("speed and memory").add_argument
    add("--device", choices=("cpu", "gpu"), help="where it runs (default: gpu where there is one)")
    add("--num_workers", type=not_negative, default=0, metavar="N", help="loader processes (default: 0)")
    return add


if __name__ == "__main__":
    run_command(main)
