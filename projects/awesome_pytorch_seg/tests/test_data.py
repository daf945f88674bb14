from awesome_pytorch_seg.config import AugmentConfig, StageConfig, read_config
from awesome_pytorch_seg.data.dataset import open_list, train_batches
from awesome_pytorch_seg.data.transforms import augment, jitter_color, normalize, random_crop, resize_pair
from common.cli import UserError

import numpy as np
import pytest
from awesome_runs import SMALL, write_data

FILL = (10, 20, 30)


def picture(height, width):
    """A picture whose first channel is its label, and its places in the others."""
    rows, columns = np.mgrid[0:height, 0:width].astype(np.uint8)
    label = (rows // 4 + columns // 4) % 5
    return np.stack([label * 40, rows, columns], axis=2), label


def test_picture_and_label_stay_in_step():
    stage = StageConfig(1.0, (1.0, 1.0), (40, 50))
    config = AugmentConfig(0.0, 0.5, (stage,))
    image, label = picture(32, 64)
    for seed in range(20):
        out, ids = augment(image, label, config, stage, FILL, np.random.default_rng(seed))
        assert out.shape == (40, 50, 3)
        inside = ids != 255
        assert inside.sum() == 32 * 50
        assert np.array_equal(out[..., 0][inside], ids[inside] * 40)
        assert (out[~inside] == FILL).all()


def test_flips_half_of_the_pictures():
    stage = StageConfig(1.0, (1.0, 1.0), (32, 64))
    config = AugmentConfig(0.0, 0.5, (stage,))
    image, label = picture(32, 64)
    firsts = [augment(image, label, config, stage, FILL, np.random.default_rng(s))[0][0, 0, 2] for s in range(200)]
    assert 70 < firsts.count(63) < 130
    assert firsts.count(63) + firsts.count(0) == 200


def test_scales_are_drawn_from_the_whole_range():
    stage = StageConfig(1.0, (0.5, 2.0), (256, 256))
    config = AugmentConfig(0.0, 0.0, (stage,))
    image, label = picture(64, 64)
    sizes = [augment(image, label, config, stage, FILL, np.random.default_rng(s))[1] for s in range(100)]
    sides = np.array([np.sqrt((ids != 255).sum()) for ids in sizes])
    assert 32 <= sides.min() < 35
    assert 120 < sides.max() <= 128
    assert 40 < (sides < 64).sum() < 60


@pytest.mark.parametrize("size", [(20, 90), (90, 20), (20, 20), (90, 90), (40, 50)])
def test_crop_of_any_size(size):
    image, label = picture(*size)
    out, ids = random_crop(image, label, (40, 50), FILL, np.random.default_rng(0))
    assert out.shape[:2] == ids.shape == (40, 50)
    assert (ids != 255).sum() == min(size[0], 40) * min(size[1], 50)


def test_labels_are_resized_by_nearest():
    image, label = picture(30, 40)
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
