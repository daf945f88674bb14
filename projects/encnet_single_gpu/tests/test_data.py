import dataclasses

from common.samples.roots import open_list
from encnet_single_gpu.config import read_config
from encnet_single_gpu.data.dataset import train_batches
from encnet_single_gpu.data.transforms import (
    augment,
    blur,
    jitter_color,
    normalize,
    pad_both_sides,
    random_scale,
    rotate,
)

import cv2
import numpy as np
from encnet_runs import write_data

FILL = (124, 116, 104)


def settings(**changes):
    return dataclasses.replace(read_config("encnet").augment, **changes)


def random_image(height, width):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (height, width, 3), np.uint8), rng.integers(0, 150, (height, width), np.uint8)


def test_both_readings_of_ade20k(tmp_path):
    """0 is ignored or class 0; 1 and 150 are 0 and 149, or themselves."""
    root = str(write_data(tmp_path, count=3, values=(0, 1, 150)))
    data = dataclasses.replace(read_config("pspnet").data, root=root)
    for name, ids in (("ade20k", {255, 0, 149}), ("ade20k_151", {0, 1, 150})):
        sample = open_list(dataclasses.replace(data, dataset=name), "train.txt").load(0)
        assert set(np.unique(sample.label)) == ids


def test_base_size_is_of_the_longer_side():
    rng = np.random.default_rng(0)
    for height, width in ((100, 50), (50, 100)):
        image, label = random_scale(*random_image(height, width), settings(base_size=200, scales=(1.0, 1.0)), rng)
        assert label.shape == image.shape[:2] == (2 * height, 2 * width)
    _, label = random_scale(*random_image(100, 50), settings(base_size=None, scales=(0.5, 0.5)), rng)
    assert label.shape == (50, 25)


def test_scales_stay_in_their_range():
    rng = np.random.default_rng(0)
    config = settings(base_size=100, scales=(0.5, 2.0))
    longer = [max(random_scale(*random_image(30, 60), config, rng)[1].shape) for _ in range(200)]
    assert 50 <= min(longer) < 60
    assert 190 < max(longer) <= 200


def test_a_quarter_turn_is_numpys():
    image, label = random_image(65, 65)
    turned_image, turned_label = rotate(image, label, 90, FILL)
    np.testing.assert_array_equal(turned_label, np.rot90(label))
    np.testing.assert_array_equal(turned_image, np.rot90(image))


def test_what_a_rotation_brings_in_is_filled_and_ignored():
    image, label = rotate(*random_image(64, 96), 10, FILL)
    assert label[0, 0] == 255
    assert tuple(image[0, 0]) == FILL
    assert label[32, 48] != 255
    unturned = random_image(64, 96)
    assert all(a is b for a, b in zip(rotate(*unturned, 0.0, FILL), unturned, strict=True))


def test_blur_keeps_the_mean_and_lowers_the_spread():
    image, _ = random_image(64, 64)
    blurred = blur(image, 1.0)
    assert abs(float(blurred.mean()) - float(image.mean())) < 1
    assert blurred.std() < 0.5 * image.std()
    np.testing.assert_array_equal(blur(image, 0.0), image)


def test_jitter_by_one_changes_nothing():
    image, _ = random_image(20, 20)
    np.testing.assert_array_equal(jitter_color(image, 1.0, 1.0, 1.0), image)
    np.testing.assert_allclose(jitter_color(image, 0.5, 1.0, 1.0), np.rint(image / 2), atol=1)


def test_augmented_pixels_keep_their_labels():
    """An image painted from its label still is, wherever flip, scale, rotation and crop put it."""
    label = np.random.default_rng(0).integers(0, 4, (12, 16), np.uint8).repeat(8, 0).repeat(8, 1)
    image = np.stack([60 * label] * 3, axis=2)
    config = settings(base_size=None, rotation_degrees=10.0, blur_probability=0.0, crop_size=(80, 120))
    for seed in range(10):
        new_image, new_label = augment(image, label, config, FILL, np.random.default_rng(seed))
        assert new_image.shape == (80, 120, 3)
        valid = new_label != 255
        near = np.abs(new_image[..., 0].astype(int) - 60 * new_label.astype(int)) <= 30
        assert near[valid].mean() > 0.8  # edges are mixed
        filled = (new_image == FILL).all(2)
        assert filled[~valid].sum() >= 0.5 * (~valid).sum()  # its edge is mixed too


def test_normalize_by_hand():
    image = np.array([[[255, 0, 51]]], np.uint8)
    values = normalize(image, (0.5, 0.25, 0.2), (0.5, 0.5, 0.1))
    assert values.shape == (3, 1, 1)
    np.testing.assert_allclose(values.ravel(), [1.0, -0.5, 0.0], atol=1e-6)


def test_batches_follow_from_seed_and_step(tmp_path):
    root = str(write_data(tmp_path))
    config = read_config("pspnet", ["train.iters=5", "train.batch_size=2", "augment.crop_size=[40, 48]"])
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, root=root))
    dataset = open_list(config.data, "train.txt")
    whole, rest = list(train_batches(dataset, config, 0)), list(train_batches(dataset, config, 3))
    assert len(whole) == 5
    assert len(rest) == 2
    for one, other in zip(whole[3:], rest, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)
    images, label, indices = whole[0]
    assert (images.shape, images.dtype) == ((2, 3, 40, 48), np.float32)
    assert (label.shape, label.dtype, indices.shape) == ((2, 40, 48), np.int64, (2,))


class Draws:
    """A generator whose draws are given."""

    def __init__(self, uniform, random, integers):
        self.draws = {"uniform": list(uniform), "random": list(random), "integers": list(integers)}

    def uniform(self, low, high, size=None):
        return np.ones(3) if size == 3 else self.draws["uniform"].pop(0)

    def random(self):
        return self.draws["random"].pop(0)

    def integers(self, end):
        return min(self.draws["integers"].pop(0), end - 1)


def test_semsegs_steps_by_opencv():
    """hszhao/semseg: scale (bilinear), rotation of every second image, blur 5x5, flip, padding on both sides, crop."""
    image, label = random_image(60, 80)
    config = settings(transforms="semseg", base_size=None, crop_size=(64, 40), rotation_degrees=10.0)
    config = dataclasses.replace(config, blur_probability=0.5, color_jitter=0.0)
    rng = Draws(uniform=[0.75, 6.0], random=[0.4, 0.4, 0.4], integers=[0, 7])
    got, got_label = augment(image, label, config, FILL, rng)
    image = cv2.resize(image, (60, 45), interpolation=cv2.INTER_LINEAR)
    label = cv2.resize(label, (60, 45), interpolation=cv2.INTER_NEAREST_EXACT)
    image, label = rotate(image, label, 6.0, FILL)
    image = cv2.GaussianBlur(image, (5, 5), 0)[:, ::-1]
    padded = np.full((64, 60, 3), FILL, np.uint8)
    padded_label = np.full((64, 60), 255, np.uint8)
    padded[9:54], padded_label[9:54] = image, label[:, ::-1]  # 19 rows are lacking: 9 above, 10 below
    np.testing.assert_array_equal(got, padded[:, 7:47])
    np.testing.assert_array_equal(got_label, padded_label[:, 7:47])
    unturned = Draws(uniform=[1.0], random=[0.5, 0.5, 0.5], integers=[0, 0])  # neither rotated, blurred nor mirrored
    same, _ = augment(*random_image(64, 40), config, FILL, unturned)
    np.testing.assert_array_equal(same, random_image(64, 40)[0])


def test_padding_on_both_sides():
    image, label = pad_both_sides(*random_image(4, 3), (4, 6), FILL)
    assert label[0].tolist() == [255, *random_image(4, 3)[1][0].tolist(), 255, 255]
    assert image.shape == (4, 6, 3)
