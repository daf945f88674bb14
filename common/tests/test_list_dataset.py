from common.labels import label_set
from common.samples.list_dataset import ListDataset

import cv2
import numpy as np
import pytest


def random_image(seed, size=(80, 96)):
    rng = np.random.default_rng(seed)
    return cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), size[::-1], interpolation=cv2.INTER_CUBIC)


def write_pair(root, stem, image, label, suffix=".png"):
    cv2.imwrite(str(root / f"{stem}_i.png"), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    cv2.imwrite(str(root / f"{stem}{suffix}"), label)
    return f"{stem}_i.png,{stem}{suffix}"


@pytest.fixture
def camvid(tmp_path):
    """Seven images of 80x96 with labels 0..11 (11 = unlabelled) and their list."""
    rng = np.random.default_rng(0)
    lines = []
    for i in range(7):
        label = rng.integers(0, 12, (10, 12)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
        lines.append(write_pair(tmp_path, f"p{i}", random_image(i), label))
    (tmp_path / "train.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_dataset_decodes_and_maps(camvid):
    sample = ListDataset(label_set("camvid"), camvid, "train.txt").load(2)
    assert sample.image.shape == (80, 96, 3)
    np.testing.assert_array_equal(sample.image, random_image(2))
    raw = cv2.imread(f"{camvid}/p2.png", cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(sample.label, np.where(raw == 11, 255, raw))


def test_cityscapes_ids_are_mapped_once(tmp_path):
    image = random_image(0, (65, 65))
    ids = np.full((65, 65), 7, np.uint8)  # labelId 7 is road, train id 0; train id 7 is a traffic sign
    lines = [
        write_pair(tmp_path, "a", image, ids, "_gtFine_labelIds.png"),
        write_pair(tmp_path, "b", image, ids, "_gtFine_labelTrainIds.png"),
    ]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    dataset = ListDataset(label_set("cityscapes"), tmp_path, "train.txt")
    assert (dataset.load(0).label == 0).all()
    assert (dataset.load(1).label == 7).all()


def break_label_size(root):
    cv2.imwrite(str(root / "p0.png"), np.zeros((80, 95), np.uint8))


def break_label_range(root):
    cv2.imwrite(str(root / "p0.png"), np.full((80, 96), 77, np.uint8))


def break_label_channels(root):
    cv2.imwrite(str(root / "p0.png"), np.zeros((80, 96, 3), np.uint8))


def break_image(root):
    data = (root / "p0_i.png").read_bytes()
    (root / "p0_i.png").write_bytes(data[: len(data) // 2])


def break_label_file(root):
    (root / "p0.png").write_bytes(b"")
