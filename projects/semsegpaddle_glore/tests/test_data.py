import dataclasses
import shutil

from common.cli import UserError
from common.dataset_list import make_lists
from common.samples.roots import open_list
from common.samples.stream import BatchLoader
from common.toy_dataset import write_toy_dataset
from semsegpaddle_glore.config import read_config
from semsegpaddle_glore.data import transforms
from semsegpaddle_glore.data.dataset import train_stream
from semsegpaddle_glore.data.transforms import (
    augment,
    gaussian_blur,
    normalize,
    pad_pair,
    random_crop,
    resize_pair,
    size_for_short_side,
)

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter1d

CONFIG = read_config("quickstart")
SMALL = dataclasses.replace(
    CONFIG.augment, base_size=80, scale_min=0.5, scale_max=2.0, crop_size=(65, 97), blur_probability=0.3
)


def smooth_image(seed, size=(48, 64)):
    rng = np.random.default_rng(seed)
    return cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), size[::-1], interpolation=cv2.INTER_CUBIC)


# -- the three data sets, written as they are published ---------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Layout name -> root of the embedded data in that layout, 4 + 2 images of 96x160."""
    base = tmp_path_factory.mktemp("layouts")
    return {
        layout: write_toy_dataset(layout, base / layout, 4, 2, (96, 160))
        for layout in ("cityscapes", "pascal_context", "ade20k")
    }


def data_config(dataset, root):
    return dataclasses.replace(CONFIG.data, dataset=dataset, root=str(root))


def check_stream(data, list_name, count):
    """Every image of the list comes out of a batch loader with labels that are classes; most pixels count."""
    dataset = open_list(data, list_name)
    assert len(dataset) == count
    loader = BatchLoader(train_stream(dataset, data, SMALL, seed=0), 2, 0, count, num_workers=2)
    seen, valid = set(), 0
    for images, labels, indices in loader:
        assert images.shape == (2, 3, 65, 97)
        assert images.dtype == np.float32
        assert ((labels < dataset.labels.num_classes) | (labels == 255)).all()
        assert np.isfinite(images).all()
        valid += (labels != 255).sum()
        seen |= set(indices.tolist())
    assert seen == set(range(count))
    assert valid > 0.3 * count * 2 * 65 * 97
    return dataset


@pytest.mark.parametrize("kind", ["trainIds", "labelIds"])
def test_cityscapes(written, kind, tmp_path):
    root = shutil.copytree(written["cityscapes"], tmp_path / "c")
    make_lists("cityscapes", root, labels=kind)
    data = data_config("cityscapes", root)
    dataset = check_stream(data, "train.txt", 4)
    assert (len(open_list(data, "val.txt")), len(open_list(data, "trainval.txt"))) == (2, 6)
    assert (len(open_list(data, "train+.txt")), len(open_list(data, "train++.txt"))) == (4 + 1, 4 + 2 + 1)
    sample = dataset.load(0)
    path = dataset.pairs[0].label
    assert path.name.endswith({"trainIds": "labelTrainIds.png", "labelIds": "labelIds.png"}[kind])
    path = path.with_name(path.name.replace("labelIds", "labelTrainIds"))
    train_ids = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(sample.label, train_ids)
    assert 0 < (train_ids != 255).mean() < 1


@pytest.mark.parametrize("separator", ["\t", " ", ","])
@pytest.mark.parametrize("place", ["root", "working folder"])
def test_the_originals_lists(written, separator, place, tmp_path, monkeypatch):
    # cityscapes_list/train.lst, tab-separated pairs below the root; the original names it from the working folder.
    root = shutil.copytree(written["cityscapes"], tmp_path / "data" / "cityscapes")
    made = make_lists("cityscapes", root, labels="labelIds", output=root / "cityscapes_list", separator=separator)
    for path in made.files.values():
        path.rename(path.with_suffix(".lst"))
    monkeypatch.chdir(tmp_path)
    folder = "cityscapes_list" if place == "root" else "./data/cityscapes/cityscapes_list"
    for name, count in (("train", 4), ("train+", 5), ("train++", 7), ("trainval", 6), ("val", 2)):
        dataset = open_list(data_config("cityscapes", root), f"{folder}/{name}.lst")
        assert len(dataset) == count
        assert set(np.unique(dataset.load(0).label)) <= {*range(19), 255}


def test_pascal_context_from_mat_files(written, tmp_path):
    root = shutil.copytree(written["pascal_context"], tmp_path / "p")
    published = {path.name: cv2.imread(str(path), -1) for path in (root / "GroundTruth_trainval_png").iterdir()}
    shutil.rmtree(root / "GroundTruth_trainval_png")
    with pytest.raises(UserError, match="add --convert"):
        make_lists("pascal_context", root)
    assert make_lists("pascal_context", root, convert=True).converted == 6
    dataset = check_stream(data_config("pascal_context", root), "train.txt", 4)
    assert dataset.labels.num_classes == 59
    for index, pair in enumerate(dataset.pairs):
        raw = published[pair.label.name].astype(int)
        np.testing.assert_array_equal(dataset.load(index).label, np.where(raw == 0, 255, raw - 1))


def test_ade20k(written, tmp_path):
    root = shutil.copytree(written["ade20k"], tmp_path / "a")
    make_lists("ade20k", root)
    dataset = check_stream(data_config("ade20k", root), "train.txt", 4)
    assert dataset.labels.num_classes == 150
    raw = cv2.imread(str(dataset.pairs[0].label), cv2.IMREAD_UNCHANGED).astype(int)
    np.testing.assert_array_equal(dataset.load(0).label, np.where(raw == 0, 255, raw - 1))


def test_a_wrong_value_names_the_file(written, tmp_path):
    root = shutil.copytree(written["ade20k"], tmp_path / "a")
    make_lists("ade20k", root)
    dataset = open_list(data_config("ade20k", root), "train.txt")
    label = cv2.imread(str(dataset.pairs[1].label), cv2.IMREAD_UNCHANGED)
    label[5, 5] = 200
    cv2.imwrite(str(dataset.pairs[1].label), label)
    with pytest.raises(UserError, match=rf"{dataset.pairs[1].label.name}: not label values of 'ade20k': 200"):
        dataset.load(1)


# -- transforms -------------------------------------------------------------------------------------------------------


def test_size_for_short_side_by_hand():
    assert size_for_short_side((1024, 2048), 700) == (700, 1400)
    assert size_for_short_side((500, 375), 520) == (693, 520)  # 693.3
    assert size_for_short_side((375, 500), 260) == (260, 346)  # 346.7, rounded down as in the original
    assert size_for_short_side((64, 64), 65) == (65, 65)


def test_pad_is_centred_black_and_ignored():
    image, label = np.full((3, 4, 3), 9, np.uint8), np.full((3, 4), 7, np.uint8)
    out, out_label = pad_pair(image, label, (6, 4))
    np.testing.assert_array_equal(out_label[:, 0], [255, 7, 7, 7, 255, 255])
    np.testing.assert_array_equal(out[:, 0, 0], [0, 9, 9, 9, 0, 0])
    out, out_label = pad_pair(image[:, ::-1], label[:, ::-1], (2, 7))  # a mirrored view is a fair input
    assert (out.shape, out_label.shape) == ((3, 7, 3), (3, 7))
    np.testing.assert_array_equal(out_label[0], [255, 7, 7, 7, 7, 255, 255])
    assert pad_pair(image, label, (3, 4))[0] is image


def test_label_and_image_stay_in_step():
    # The image's red channel carries the label: after any augmentation they must still agree, up to resampled edges
    # and padding.
    label = np.kron(np.arange(12).reshape(3, 4), np.ones((40, 40), np.int64)).astype(np.uint8)
    image = np.stack([label * 20 + 20, label * 0, label * 0], axis=2)
    shares = []
    for seed in range(30):
        out, out_label = augment(image, label, SMALL, np.random.default_rng(seed))
        assert (out.shape, out_label.shape) == ((65, 97, 3), (65, 97))
        assert set(np.unique(out_label)) <= {*range(12), 255}
        valid = out_label != 255
        expected = np.where(valid, 20 * out_label.astype(int) + 20, 0)
        shares.append((np.abs(out[..., 0].astype(int) - expected) <= 2).mean())
        assert (out[..., 1:] == 0).all()
    assert min(shares) > 0.75
    assert np.mean(shares) > 0.9


def test_padding_is_as_large_as_the_scale_says():
    # Images of 80x96 at a short side of 40: 40x48 in a crop of 65x97.
    config = dataclasses.replace(SMALL, scale_max=0.5)
    image, label = smooth_image(0, (80, 96)), np.full((80, 96), 3, np.uint8)
    for seed in range(10):
        _, out = augment(image, label, config, np.random.default_rng(seed))
        assert (out == 3).sum() == 40 * 48
        assert (out == 255).sum() == 65 * 97 - 40 * 48


def test_flip_mirrors_both():
    label = np.arange(80 * 97, dtype=np.uint64).reshape(80, 97).astype(np.uint8)
    image = np.stack([label] * 3, axis=2)
    config = dataclasses.replace(
        SMALL, scale_min=1.0, scale_max=1.0, flip_probability=1.0, crop_size=(80, 97), blur_probability=0.0
    )
    out, out_label = augment(image, label, config, np.random.default_rng(0))
    np.testing.assert_array_equal(out_label, label[:, ::-1])
    np.testing.assert_array_equal(out[..., 0], out_label)


def test_flip_and_blur_happen_as_often_as_asked(monkeypatch):
    label = np.tile(np.arange(97, dtype=np.uint8), (80, 1))
    image = np.stack([label] * 3, axis=2)
    sigmas = []
    monkeypatch.setattr(transforms, "gaussian_blur", lambda image, sigma: sigmas.append(sigma) or image * 0)
    config = dataclasses.replace(SMALL, scale_min=1.0, scale_max=1.0, crop_size=(80, 97))
    flips = blurs = 0
    for seed in range(500):
        out, out_label = augment(image, label, config, np.random.default_rng(seed))
        flips += int(out_label[0, 0] == 96)
        blurs += int(not out.any())
    assert 210 < flips < 290  # 250, standard deviation 11
    assert blurs == len(sigmas)
    assert 115 < blurs < 185  # 150, standard deviation 10
    assert 0 < min(sigmas) < max(sigmas) <= 1
    assert abs(np.mean(sigmas) - 0.5) < 0.1


def test_the_whole_range_of_scales_is_drawn():
    # One object of 20x20 in 80x80: its area tells the scale.
    label = np.zeros((80, 80), np.uint8)
    label[30:50, 30:50] = 1
    image = np.zeros((80, 80, 3), np.uint8)
    config = dataclasses.replace(SMALL, crop_size=(160, 160))
    scales = []
    for seed in range(200):
        _, out = augment(image, label, config, np.random.default_rng(seed))
        scales.append(np.sqrt((out == 1).sum()) / 20)
    assert 0.45 <= min(scales) < 0.6
    assert 1.9 < max(scales) <= 2.05
    assert abs(np.mean(scales) - 1.25) < 0.1  # uniform


def test_crop_reaches_every_corner():
    ys, xs = np.mgrid[:67, :68].astype(np.uint8)
    image = np.stack([ys, xs, xs], 2)
    places = set()
    for seed in range(200):
        out, _ = random_crop(image, ys, (65, 65), np.random.default_rng(seed))
        places.add((int(out[0, 0, 0]), int(out[0, 0, 1])))
    assert places == {(top, left) for top in range(3) for left in range(4)}


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


@pytest.mark.parametrize("sigma", [1e-9, 0.3, 0.7, 1.0])
def test_blur_is_a_gaussian(sigma):
    image = smooth_image(3)
    expected = image.astype(np.float64)
    if sigma > 1e-3:
        for axis in (0, 1):
            expected = gaussian_filter1d(expected, sigma, axis=axis, mode="mirror", radius=3)
    assert np.abs(gaussian_blur(image, sigma) - expected).max() <= 1.01  # rounded to 8 bits
    pillow = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)))
    inner = np.abs(gaussian_blur(image, sigma)[4:-4, 4:-4].astype(int) - pillow[4:-4, 4:-4])
    assert inner.mean() < 1.0  # Pillow's approximation of the same


def test_normalize_by_hand():
    image = np.zeros((1, 2, 3), np.uint8)
    image[0, 0] = (255, 0, 51)  # red channel first
    out = normalize(image, (0.5, 0.25, 0.0), (0.5, 0.25, 0.1))
    assert (out.shape, out.dtype) == ((3, 1, 2), np.float32)
    np.testing.assert_allclose(out[:, 0, 0], [1.0, -1.0, 2.0], atol=1e-6)


def test_a_sample_follows_from_seed_and_position(written, tmp_path):
    root = shutil.copytree(written["cityscapes"], tmp_path / "c")
    make_lists("cityscapes", root)
    data = data_config("cityscapes", root)
    dataset = open_list(data, "train.txt")
    first, second = (train_stream(dataset, data, SMALL, seed=5) for _ in range(2))
    wanted = [first[position] for position in (0, 1, 2, 9)]
    for position, (image, label, index) in zip((9, 2, 0, 1), [wanted[3], wanted[2], wanted[0], wanted[1]], strict=True):
        again = second[position]
        np.testing.assert_array_equal(again[0], image)
        np.testing.assert_array_equal(again[1], label)
        assert again[2] == index
    assert not np.array_equal(train_stream(dataset, data, SMALL, seed=6)[0][0], wanted[0][0])
