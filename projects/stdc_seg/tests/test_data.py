import dataclasses

from common.cli import UserError
from stdc_seg.config import read_config
from stdc_seg.data.dataset import labels_of, open_list, train_stream
from stdc_seg.data.transforms import augment, jitter_color, normalize, random_crop, resize_pair

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance

CONFIG = read_config("quickstart")
SMALL = dataclasses.replace(CONFIG.augment, crop_size=(65, 65), scales=(0.5, 1.0, 1.5))


def smooth_image(seed, size=(48, 64)):
    rng = np.random.default_rng(seed)
    return cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), size[::-1], interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize(
    "factors", [(0.6, 1.0, 1.0), (1.4, 1.0, 1.0), (1.0, 0.5, 1.0), (1.0, 1.4, 1.0), (1.0, 1.0, 0.5), (1.2, 0.8, 1.3)]
)
def test_jitter_is_pillows_brightness_contrast_color(factors):
    image = smooth_image(0)
    expected = Image.fromarray(image)
    for enhance, factor in zip(
        (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), factors, strict=True
    ):
        expected = enhance(expected).enhance(factor)
    difference = np.abs(jitter_color(image, *factors).astype(int) - np.asarray(expected).astype(int))
    assert difference.max() <= 3  # Pillow truncates where OpenCV rounds, up to one level in each of three steps
    assert difference.mean() < 1.2


def test_normalize_by_hand():
    image = np.zeros((1, 2, 3), np.uint8)
    image[0, 0] = (255, 0, 51)  # red channel first
    out = normalize(image, (0.5, 0.25, 0.0), (0.5, 0.25, 0.1))
    assert out.shape == (3, 1, 2)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out[:, 0, 0], [1.0, -1.0, 2.0], atol=1e-6)


def test_red_and_blue_differ_as_documented():
    red, blue = np.zeros((2, 4, 4, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    np.testing.assert_allclose(normalize(red, mean, std)[:, 0, 0], [2.2489, -2.0357, -1.8044], atol=1e-3)
    np.testing.assert_allclose(normalize(blue, mean, std)[:, 0, 0], [-2.1179, -2.0357, 2.64], atol=1e-3)


def test_label_and_image_stay_in_step():
    # The image's red channel carries the label: after any augmentation they must still agree, up to resampled edges.
    label = np.kron(np.arange(12).reshape(3, 4), np.ones((40, 40), np.int64)).astype(np.uint8)
    image = np.stack([label * 20, label * 0, label * 0], axis=2)
    config = dataclasses.replace(SMALL, color_jitter=0.0)
    for seed in range(20):
        out, out_label = augment(image, label, config, np.random.default_rng(seed))
        assert out.shape == (65, 65, 3)
        assert out_label.shape == (65, 65)
        assert set(np.unique(out_label)) <= set(range(12))
        assert (np.abs(out[..., 0].astype(int) - 20 * out_label.astype(int)) <= 2).mean() > 0.85


def test_flip_mirrors_both():
    label = np.arange(80 * 96, dtype=np.uint64).reshape(80, 96).astype(np.uint8)
    image = np.stack([label] * 3, axis=2)
    config = dataclasses.replace(SMALL, color_jitter=0.0, flip_probability=1.0, scales=(1.0,), crop_size=(80, 96))
    out, out_label = augment(image, label, config, np.random.default_rng(0))
    np.testing.assert_array_equal(out_label, label[:, ::-1])
    np.testing.assert_array_equal(out[..., 0], out_label)


def test_crop_enlarges_what_is_too_small():
    image, label = smooth_image(1, (40, 50)), np.full((40, 50), 3, np.uint8)
    out, out_label = random_crop(image, label, (65, 70), np.random.default_rng(0))
    assert out.shape == (65, 70, 3)
    assert (out_label == 3).all()  # enlarged, not padded: no ignored pixel appears


def test_crop_reaches_every_corner():
    label = np.zeros((67, 68), np.uint8)
    image = np.stack([label] * 3, 2)
    ys, xs = np.mgrid[:67, :68]
    image[..., 0], image[..., 1] = ys, xs
    tops, lefts = set(), set()
    for seed in range(60):
        out, _ = random_crop(image, label, (65, 65), np.random.default_rng(seed))
        tops.add(int(out[0, 0, 0]))
        lefts.add(int(out[0, 0, 1]))
    assert tops == {0, 1, 2}
    assert lefts == {0, 1, 2, 3}


def test_resize_keeps_label_values():
    label = np.zeros((40, 40), np.uint8)
    label[:, 20:] = 18
    _, out = resize_pair(smooth_image(0, (40, 40)), label, (77, 33))
    assert out.shape == (77, 33)
    assert set(np.unique(out)) == {0, 18}


@pytest.mark.parametrize("length, size", [(2048, 256), (2048, 512), (2048, 768), (480, 300), (2048, 2816)])
def test_labels_stay_on_their_image(length, size):
    columns = np.tile((np.arange(length) % 251).astype(np.uint8), (8, 1))  # 255 is ignored
    _, out = resize_pair(np.zeros((8, length, 3), np.uint8), columns, (max(1, 8 * size // length), size))
    centres = (np.arange(size) + 0.5) * length / size  # of the output pixels, in input pixels
    sampled = centres + (out[0] + 0.5 - centres + 125) % 251 - 125  # the input pixel's centre that the label is from
    offset = (sampled - centres) * size / length  # in output pixels
    assert abs(offset.mean()) <= 0.13  # an even ratio has no pixel at the centre; INTER_NEAREST: 0.2 to 0.44


def test_an_unknown_data_set_is_answered_with_the_nearest():
    for wrong, right in (("citiscapes", "cityscapes"), ("costum", "custom")):
        with pytest.raises(UserError, match=f"unknown data set '{wrong}': did you mean '{right}'"):
            labels_of(dataclasses.replace(CONFIG.data, dataset=wrong))


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
