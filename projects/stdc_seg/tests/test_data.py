import dataclasses

from common.samples.roots import open_list
from stdc_seg.config import read_config
from stdc_seg.data.dataset import train_stream

import cv2
import numpy as np

CONFIG = read_config("quickstart")
SMALL = dataclasses.replace(CONFIG.augment, crop_size=(65, 65), scales=(0.5, 1.0, 1.5))


def smooth_image(seed, size=(48, 64)):
    rng = np.random.default_rng(seed)
    return cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), size[::-1], interpolation=cv2.INTER_CUBIC)


def test_the_stream_augments_and_normalises(tmp_path):
    label = np.full((80, 96), 3, np.uint8)
    cv2.imwrite(str(tmp_path / "i.png"), np.full((80, 96, 3), 255, np.uint8))
    cv2.imwrite(str(tmp_path / "l.png"), label)
    (tmp_path / "train.txt").write_text("i.png,l.png\n")
    data = dataclasses.replace(CONFIG.data, dataset="camvid", root=str(tmp_path))
    config = dataclasses.replace(SMALL, color_jitter=0.0)
    image, label, index = train_stream(open_list(data, "train.txt"), data, config, seed=0)[5]
    assert (image.dtype, image.shape, label.dtype, label.shape) == (np.float32, (3, 65, 65), np.int64, (65, 65))
    expected = (1 - np.array(data.mean)) / np.array(data.std)
    np.testing.assert_allclose(image[:, 30, 30], expected, rtol=1e-5)
    assert (label == 3).all()
    assert index == 0
