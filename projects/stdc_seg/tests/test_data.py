import dataclasses

from common.cli import UserError
from stdc_seg.config import read_config
from stdc_seg.data.dataset import BatchLoader, ListDataset, TrainStream
from stdc_seg.data.transforms import augment, jitter_color, normalize, random_crop, resize_pair

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance

CONFIG = read_config("quickstart")
SMALL = dataclasses.replace(CONFIG.augment, crop_size=(65, 65), scales=(0.5, 1.0, 1.5))


def smooth_picture(seed, size=(48, 64)):
    rng = np.random.default_rng(seed)
    return cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), size[::-1], interpolation=cv2.INTER_CUBIC)


def write_pair(root, stem, image, label, suffix=".png"):
    cv2.imwrite(str(root / f"{stem}_i.png"), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    cv2.imwrite(str(root / f"{stem}{suffix}"), label)
    return f"{stem}_i.png,{stem}{suffix}"


@pytest.fixture
def camvid(tmp_path):
    """Seven pictures of 80x96 with labels 0..11 (11 = unlabelled) and their list."""
    rng = np.random.default_rng(0)
    lines = []
    for i in range(7):
        label = rng.integers(0, 12, (10, 12)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
        lines.append(write_pair(tmp_path, f"p{i}", smooth_picture(i, (80, 96)), label))
    (tmp_path / "train.txt").write_text("\n".join(lines) + "\n")
    return dataclasses.replace(CONFIG.data, dataset="camvid", root=str(tmp_path))


@pytest.mark.parametrize(
    "factors", [(0.6, 1.0, 1.0), (1.4, 1.0, 1.0), (1.0, 0.5, 1.0), (1.0, 1.4, 1.0), (1.0, 1.0, 0.5), (1.2, 0.8, 1.3)]
)
def test_jitter_is_pillows_brightness_contrast_color(factors):
    image = smooth_picture(0)
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


def test_label_and_picture_stay_in_step():
    # The picture's red channel carries the label: after any augmentation they must still agree, up to resampled edges.
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
    image, label = smooth_picture(1, (40, 50)), np.full((40, 50), 3, np.uint8)
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
    _, out = resize_pair(smooth_picture(0, (40, 40)), label, (77, 33))
    assert out.shape == (77, 33)
    assert set(np.unique(out)) == {0, 18}


def test_dataset_decodes_and_maps(camvid):
    sample = ListDataset(camvid, "train.txt").load(2)
    assert sample.image.shape == (80, 96, 3)
    np.testing.assert_array_equal(sample.image, smooth_picture(2, (80, 96)))
    raw = cv2.imread(f"{camvid.root}/p2.png", cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(sample.label, np.where(raw == 11, 255, raw))


def test_cityscapes_ids_are_mapped_once(tmp_path):
    image = smooth_picture(0, (65, 65))
    ids = np.full((65, 65), 7, np.uint8)  # labelId 7 is road, train id 0; train id 7 is a traffic sign
    lines = [
        write_pair(tmp_path, "a", image, ids, "_gtFine_labelIds.png"),
        write_pair(tmp_path, "b", image, ids, "_gtFine_labelTrainIds.png"),
    ]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    data = dataclasses.replace(CONFIG.data, dataset="cityscapes", root=str(tmp_path))
    dataset = ListDataset(data, "train.txt")
    assert (dataset.load(0).label == 0).all()
    assert (dataset.load(1).label == 7).all()


def test_the_stream_is_a_function_of_seed_and_position(camvid):
    dataset = ListDataset(camvid, "train.txt")
    one, again, other = (TrainStream(dataset, camvid, SMALL, seed) for seed in (0, 0, 1))
    for position in (0, 5, 23):
        for a, b in zip(one[position], again[position], strict=True):
            np.testing.assert_array_equal(a, b)
    assert not np.array_equal(one[3][0], other[3][0])
    image, label, _ = one[0]
    assert (image.dtype, image.shape, label.dtype, label.shape) == (np.float32, (3, 65, 65), np.int64, (65, 65))


def test_every_epoch_sees_every_picture_once_in_another_order(camvid):
    stream = TrainStream(ListDataset(camvid, "train.txt"), camvid, SMALL, seed=0)
    epochs = [[stream.pair_index(position) for position in range(7 * e, 7 * e + 7)] for e in range(3)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_two_processes_share_the_batch_of_one():
    single = BatchLoader(None, 6, 3, 5)
    shares = [BatchLoader(None, 6, 3, 5, rank=rank, world_size=2) for rank in (0, 1)]
    assert [list(single.positions(step)) for step in single.steps] == [
        [18, 19, 20, 21, 22, 23],
        [24, 25, 26, 27, 28, 29],
    ]
    for step in single.steps:
        assert sorted([*shares[0].positions(step), *shares[1].positions(step)]) == list(single.positions(step))
    with pytest.raises(UserError, match="batch_size 5 cannot be shared equally by 2 processes"):
        BatchLoader(None, 5, 0, 1, rank=0, world_size=2)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_threads_change_no_batch(camvid, num_workers):
    stream = TrainStream(ListDataset(camvid, "train.txt"), camvid, SMALL, seed=0)
    for alone, threaded in zip(BatchLoader(stream, 3, 2, 9), BatchLoader(stream, 3, 2, 9, num_workers), strict=True):
        for a, b in zip(alone, threaded, strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_unreadable_picture_arrives_as_it_was_raised(camvid, tmp_path, num_workers):
    break_picture(tmp_path)
    stream = TrainStream(ListDataset(camvid, "train.txt"), camvid, SMALL, seed=0)
    with pytest.raises(UserError, match=r"p0_i\.png: truncated"):
        for _ in BatchLoader(stream, 3, 0, 4, num_workers):
            pass


def break_label_size(root):
    cv2.imwrite(str(root / "p0.png"), np.zeros((80, 95), np.uint8))


def break_label_range(root):
    cv2.imwrite(str(root / "p0.png"), np.full((80, 96), 77, np.uint8))


def break_label_channels(root):
    cv2.imwrite(str(root / "p0.png"), np.zeros((80, 96, 3), np.uint8))


def break_picture(root):
    data = (root / "p0_i.png").read_bytes()
    (root / "p0_i.png").write_bytes(data[: len(data) // 2])


def break_label_file(root):
    (root / "p0.png").write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_label_size, r"p0\.png: label is \(80, 95\), picture \(80, 96\)"),
        (break_label_range, r"p0\.png.*camvid.*77"),
        (break_label_channels, r"p0\.png: .*one channel"),
        (break_picture, r"p0_i\.png: truncated"),
        (break_label_file, r"p0\.png: the file is empty"),
    ],
)
def test_damaged_pairs_are_named(camvid, tmp_path, damage, message):
    damage(tmp_path)
    dataset = ListDataset(camvid, "train.txt")
    with pytest.raises(UserError, match=message):
        dataset.load(0)


def test_lists_that_cannot_train(camvid, tmp_path):
    with pytest.raises(UserError, match=r"val\.txt"):
        ListDataset(camvid, "val.txt")
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(UserError, match=r"empty\.txt.*empty|no entries|no lines"):
        ListDataset(camvid, "empty.txt")
    (tmp_path / "test.txt").write_text("p0_i.png\n")
    with pytest.raises(UserError, match=r"test\.txt: no label for .*p0_i\.png"):
        ListDataset(camvid, "test.txt")
