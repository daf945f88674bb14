from awesome_pytorch_seg.config import AugmentConfig, StageConfig, read_config
from awesome_pytorch_seg.data.dataset import train_batches
from awesome_pytorch_seg.data.transforms import (
    augment,
    centre_crop,
    cut_and_resize,
    jitter_color,
    normalize,
    resize_pair,
)
from common.cli import UserError
from common.samples.roots import open_list

import numpy as np
import pytest
from awesome_runs import SMALL
from testkit import write_data

FILL = (10, 20, 30)


def random_image(height, width):
    """An image whose first channel is its label, and its places in the others."""
    rows, columns = np.mgrid[0:height, 0:width].astype(np.uint8)
    label = (rows // 4 + columns // 4) % 5
    return np.stack([label * 40, rows, columns], axis=2), label


def test_image_and_label_stay_in_step():
    stage = StageConfig(1.0, (1.0, 1.0), (40, 50))
    config = AugmentConfig(0.0, 0.5, (stage,))
    image, label = random_image(32, 64)
    for seed in range(20):
        out, ids = augment(image, label, config, stage, FILL, np.random.default_rng(seed))
        assert out.shape == (40, 50, 3)
        inside = ids != 255
        assert inside.sum() == 32 * 50
        assert np.array_equal(out[..., 0][inside], ids[inside] * 40)
        assert (out[~inside] == FILL).all()


def test_flips_half_of_the_images():
    stage = StageConfig(1.0, (1.0, 1.0), (32, 64))
    config = AugmentConfig(0.0, 0.5, (stage,))
    image, label = random_image(32, 64)
    firsts = [augment(image, label, config, stage, FILL, np.random.default_rng(s))[0][0, 0, 2] for s in range(200)]
    assert 70 < firsts.count(63) < 130
    assert firsts.count(63) + firsts.count(0) == 200


def test_scales_are_drawn_from_the_whole_range():
    stage = StageConfig(1.0, (0.5, 2.0), (256, 256))
    config = AugmentConfig(0.0, 0.0, (stage,))
    image, label = random_image(64, 64)
    sizes = [augment(image, label, config, stage, FILL, np.random.default_rng(s))[1] for s in range(100)]
    sides = np.array([np.sqrt((ids != 255).sum()) for ids in sizes])
    assert 32 <= sides.min() < 35
    assert 120 < sides.max() <= 128
    assert 40 < (sides < 64).sum() < 60


@pytest.mark.parametrize("size", [(20, 90), (90, 20), (20, 20), (90, 90), (40, 50)])
def test_crop_of_any_size(size):
    stage = StageConfig(1.0, (1.0, 1.0), (40, 50))
    image, label = random_image(*size)
    out, ids = augment(image, label, AugmentConfig(0.0, 0.0, (stage,)), stage, FILL, np.random.default_rng(0))
    assert out.shape[:2] == ids.shape == (40, 50)
    assert (ids != 255).sum() == min(size[0], 40) * min(size[1], 50)


def test_the_window_is_what_a_cut_after_resizing_would_give():
    image, label = random_image(64, 90)
    places = set()
    for seed in range(20):
        out, ids = cut_and_resize(image, label, 2.0, (40, 50), np.random.default_rng(seed))
        assert out.shape[:2] == ids.shape == (40, 50)
        top, left = int(out[0, 0, 1]), int(out[0, 0, 2])
        window = slice(top, top + 20), slice(left, left + 25)
        assert np.array_equal(ids, label[window].repeat(2, 0).repeat(2, 1))
        assert np.array_equal(out[::2, ::2, 1:][1:-1, 1:-1], image[window][..., 1:][1:-1, 1:-1])
        places.add((top, left))
    assert len(places) > 15


def test_a_window_ends_where_the_image_does():
    image, label = random_image(64, 90)
    out, ids = cut_and_resize(image, label, 0.5, (40, 30), np.random.default_rng(0))
    assert out.shape[:2] == ids.shape == (32, 30)


def test_scales_are_of_the_base_size_where_there_is_one():
    stage = StageConfig(1.0, (0.5, 0.5), (20, 40))
    image, label = random_image(80, 160)
    config = AugmentConfig(0.0, 0.0, (stage,), base_size=40)
    out, ids = augment(image, label, config, stage, FILL, np.random.default_rng(0))
    assert (ids != 255).all()
    assert (abs(out[:, 0, 1] - np.arange(20) * 4.0 - 1.5) <= 1).all()  # the whole image at a quarter of its sides


def test_blur_changes_the_image_alone():
    stage = StageConfig(1.0, (1.0, 1.0), (32, 64))
    image, label = random_image(32, 64)
    changed = []
    for seed in range(20):
        for probability in (0.0, 1.0):
            config = AugmentConfig(0.0, 0.0, (stage,), blur_probability=probability)
            out, ids = augment(image, label, config, stage, FILL, np.random.default_rng(seed))
            assert np.array_equal(ids, label)
            changed.append(not np.array_equal(out, image))
    assert not any(changed[::2])
    assert sum(changed[1::2]) > 5  # a blur of next to no width leaves everything as it is


@pytest.mark.parametrize("turned", [False, True])
def test_centre_crop_by_hand(turned):
    image, label = random_image(40, 81)
    label = np.broadcast_to(np.arange(81, dtype=np.uint8), (40, 81)).copy()
    if turned:
        image, label = image.transpose(1, 0, 2).copy(), label.T.copy()
    out, ids = centre_crop(image, label, 20)
    assert out.shape == (20, 20, 3)
    assert ids.shape == (20, 20)
    line = ids[:, 0] if turned else ids[0]
    # 81 columns become 40, column i being the one at (i + 0.5) * 81 / 40; the middle 20 begin with number 10.
    assert line.tolist() == [int((i + 0.5) * 81 / 40) for i in range(10, 30)]


def test_labels_are_resized_by_nearest():
    image, label = random_image(30, 40)
    for size in ((61, 83), (13, 17)):
        out, ids = resize_pair(image, label, size)
        assert out.shape[:2] == ids.shape == size
        assert set(np.unique(ids)) <= set(range(5))
    assert np.array_equal(resize_pair(image, label, (60, 80))[1], label.repeat(2, 0).repeat(2, 1))


def test_jitter_and_normalize_by_hand():
    grey = np.full((2, 2, 3), 100, np.uint8)
    assert (jitter_color(grey, 1.5, 1.0, 1.0) == 150).all()
    assert (jitter_color(grey, 1.0, 0.5, 0.3) == 100).all()
    values = normalize(np.full((1, 1, 3), 255, np.uint8), (0.5, 0.25, 0.0), (0.5, 0.25, 2.0))
    assert values.dtype == np.float32
    assert values[:, 0, 0] == pytest.approx([1.0, 3.0, 0.5])
    noise = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = ((noise / 255 - mean) / std).transpose(2, 0, 1)
    np.testing.assert_allclose(normalize(noise, tuple(mean), tuple(std)), expected, rtol=1e-6, atol=1e-6)


def test_batches_go_from_stage_to_stage_and_start_anywhere(tmp_path):
    root = write_data(tmp_path)
    config = read_config("enet_camvid", [*SMALL, f"data.root={root}", "train.iters=5"])
    dataset = open_list(config.data, "train.txt")
    whole = list(train_batches(dataset, config, 0))
    assert [images.shape[2:] for images, _, _ in whole] == [(32, 48)] * 2 + [(64, 64)] * 3
    assert [label.shape for _, label, _ in whole] == [(2, *images.shape[2:]) for images, _, _ in whole]
    for first in range(5):
        for part, other in zip(train_batches(dataset, config, first), whole[first:], strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(part, other, strict=True))


def test_stages_must_add_up():
    stage = StageConfig(0.4, (1.0, 1.0), (32, 32))
    with pytest.raises(UserError, match="shares add up to 1"):
        AugmentConfig(0.0, 0.5, (stage, stage))
