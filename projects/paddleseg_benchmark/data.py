"""Where batches come from: paddleseg's data sets and transforms as a config has them, or random pictures."""

from __future__ import annotations

import copy
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from common.cli import UserError
from common.labels import IGNORE
from common.list_dataset import REPOSITORY, draw_toy, find_root
from common.parallel import Threads
from common.picture_files import read_image, read_label

import cv2
import numpy as np
import paddle
import paddle.distributed as dist
from paddleseg.cvlibs import Config, SegBuilder
from paddleseg.utils import worker_init_fn

TOY_ROOT = "data/toy_cityscapes_128x256"
TOY_TRAIN, TOY_VAL, TOY_SIZE = 200, 50, (128, 256)
AHEAD = 2  # batches in preparation
HANGS_AFTER = 300.0  # seconds
Batch = tuple[paddle.Tensor, paddle.Tensor, list[int]]


def with_data(config: Config, root: str | None) -> Config:
    """The config with `root` as its data, or as it is; with the embedded data if there is nothing where it says.

    Raises:
        UserError: There is no folder `root`.
    """
    if root is not None and find_root(root) is None:
        raise UserError(f"no data set in '{root}': name a folder in Cityscapes' layout with --data, or leave it out")
    wanted = root or config.train_dataset_cfg["dataset_root"]
    embedded = find_root(wanted) is None
    config = as_cityscapes(config) if embedded else copy.deepcopy(config)
    for name in ("train_dataset", "val_dataset"):
        config.dic[name]["dataset_root"] = TOY_ROOT if embedded else wanted
    return config


def as_cityscapes(config: Config) -> Config:
    """The config with data in Cityscapes' layout, whatever layout it has."""
    config = copy.deepcopy(config)
    for name in ("train_dataset", "val_dataset"):
        kept = {key: config.dic[name][key] for key in ("dataset_root", "mode", "transforms")}
        config.dic[name] = {"type": "Cityscapes"} | kept
    return config


def is_embedded(config: Config) -> bool:
    """Whether the config's data are the embedded ones."""
    return config.train_dataset_cfg["dataset_root"] == TOY_ROOT


def crop_size(config: Config) -> tuple[int, int]:
    """(height, width) of the training crops. Configs of PaddleSeg have [width, height].

    Raises:
        UserError: No transform of the config crops.
    """
    width, height = _crop(config)["crop_size"]
    return height, width


def with_crop_size(config: Config, size: tuple[int, int]) -> Config:
    """The config with training crops of (height, width)."""
    config = copy.deepcopy(config)
    _crop(config)["crop_size"] = [size[1], size[0]]
    return config


def open_dataset(config: Config, split: str) -> paddle.io.Dataset:
    """The data set of paddleseg for "train" or "val", with its transforms; the embedded one is drawn when missing.

    Raises:
        UserError: It cannot be opened, or has no pictures with labels.
    """
    section = getattr(config, f"{split}_dataset_cfg")
    root = find_root(section["dataset_root"])
    if is_embedded(config):
        root = REPOSITORY / TOY_ROOT
        if dist.get_rank() == 0:
            draw_toy("cityscapes", root, TOY_TRAIN, TOY_VAL, TOY_SIZE)
        if dist.get_world_size() > 1:
            dist.barrier()
    try:
        dataset = SegBuilder(config).build_component(section | {"dataset_root": str(root)})
    except RuntimeError as error:
        raise UserError(f"{split} data: {' '.join(str(error).split())}") from error
    dataset.transforms = _ReadWhole(dataset.transforms, dataset.num_classes)
    if len(dataset) == 0:
        raise UserError(
            f"no pictures with *_labelTrainIds.png in {root} ({split}): write these files with "
            f"python common/create_dataset_list.py cityscapes {root} --convert"
        )
    return dataset


class _ReadWhole:
    """The transforms of a paddleseg data set, given pictures and labels that were read whole and checked.

    paddleseg takes half a picture for a whole one and any value for a class.
    """

    def __init__(self, compose: Callable[[dict], dict], num_classes: int):
        self._compose = compose
        self._is_class = np.isin(np.arange(256), [*range(num_classes), IGNORE]).astype(np.uint8)
        compose.to_rgb = False  # it is RGB already

    def __call__(self, data: dict) -> dict:
        """Transforms {"img": file, "label": file, ...}; labels that the data set has read itself are left alone."""
        image, label = read_image(data["img"]), data.get("label")
        if isinstance(label, str):
            ids = read_label(label)
            if ids.shape != image.shape[:2]:
                raise UserError(f"{label}: {ids.shape}, its picture {image.shape[:2]}: one channel of ids is needed")
            if ids.dtype != np.uint8 or not cv2.LUT(ids, self._is_class).all():
                count = int(self._is_class.sum()) - 1
                raise UserError(f"{label}: holds values that are no class: 0..{count - 1} and {IGNORE} are: convert it")
            data["label"] = ids
        data["img"] = image.astype(np.float32)
        return self._compose(data)


def batches(dataset: paddle.io.Dataset, batch_size: int, num_workers: int) -> Iterator[Batch]:
    """Batches of this process without end: images float32 (B, 3, H, W), labels int64 (B, H, W), and which pairs.

    paddleseg's own way: a sampler that shuffles by the number of the epoch, and loader processes if asked for. Without
    them a thread prepares batches ahead: paddle's own would wait for ever after an error in a picture.

    Raises:
        UserError: There are fewer pictures than one batch of all processes takes; from iteration: a picture or label
            that cannot be used, a loader process that has ended, or a batch that has not come after `HANGS_AFTER` s.
    """
    sampler = paddle.io.DistributedBatchSampler(dataset, batch_size=batch_size, shuffle=True, drop_last=True)
    if len(sampler) == 0:
        raise UserError(f"{len(dataset)} training pictures are less than one batch: lower the batch size")
    threads = Threads(1)
    try:
        for epoch in itertools.count():
            sampler.set_epoch(epoch)
            order = list(sampler)
            sampler.set_epoch(epoch)
            prepared = map(partial(_load, dataset), order)
            if num_workers:
                loader = paddle.io.DataLoader(
                    dataset, batch_sampler=sampler, num_workers=num_workers, worker_init_fn=worker_init_fn
                )
                prepared = _from_processes(iter(loader), len(order))
            yield from _in_time(threads, prepared, order, dataset)
    finally:
        threads.stop()


def _load(dataset: paddle.io.Dataset, indices: list[int]) -> dict[str, np.ndarray]:
    samples = [dataset[index] for index in indices]
    return {name: np.stack([sample[name] for sample in samples]) for name in ("img", "label")}


def _from_processes(loaded: Iterator[dict], count: int) -> Iterator[dict]:
    for _ in range(count):
        try:
            yield next(loaded)
        except (RuntimeError, SystemError, StopIteration) as error:
            raise _loader_failure(error) from None


@contextmanager
def loader_failures_explained() -> Iterator[None]:
    """Where the batches are used: paddle raises there, from a signal handler, when a loader process dies.

    Raises:
        UserError: It has.
    """
    try:
        yield
    except SystemError as error:
        if "DataLoader" not in str(error):
            raise
        raise _loader_failure(error) from None


def _loader_failure(error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200]
    return UserError(f"a loader process has ended ({reason}): is there enough memory? --num_workers 0 does without")


def _in_time(
    threads: Threads, prepared: Iterator[dict], order: list[list[int]], dataset: paddle.io.Dataset
) -> Iterator[Batch]:
    """The batches of an epoch, which the thread takes from `prepared`, up to two ahead."""
    pending = deque(threads.submit(next, prepared) for _ in order[:AHEAD])
    for number, indices in enumerate(order):
        if number + AHEAD < len(order):
            pending.append(threads.submit(next, prepared))
        future = pending.popleft()
        try:
            batch = future.result(HANGS_AFTER)
        except TimeoutError:
            if future.done():  # the error is the batch's own
                raise
            names = ", ".join(dataset.file_list[index][0] for index in indices)
            raise UserError(
                f"{names}: not read in {HANGS_AFTER:g} seconds: is the disk or network drive still there?"
            ) from None
        yield paddle.to_tensor(batch["img"]), paddle.to_tensor(batch["label"]).astype("int64"), indices


def synthetic_batches(batch_size: int, size: tuple[int, int], num_classes: int, seed: int) -> Iterator[Batch]:
    """One random batch over and over: what a network takes without any loader. Shapes as `batches`, of no pairs."""
    rng = np.random.default_rng(seed)
    images = paddle.to_tensor(rng.standard_normal((batch_size, 3, *size), dtype=np.float32))
    labels = paddle.to_tensor(rng.integers(0, num_classes, (batch_size, *size)))
    while True:
        yield images, labels, []


def _crop(config: Config) -> dict:
    for transform in config.train_dataset_cfg["transforms"]:
        if "crop_size" in transform:
            return transform
    raise UserError("train_dataset.transforms: none has a crop_size (RandomPaddingCrop): add one")
