import threading

from common.cli import UserError
from common.labels import load_custom
from common.samples import survey as surveying
from common.samples.list_dataset import ListDataset
from common.samples.stream import BatchLoader
from common.samples.survey import Survey, survey, survey_for_training

import cv2
import numpy as np
import pytest


def listed(root, labels, name="train", sizes=((40, 50),)):
    """A data set of 4 classes with these label values, one image each."""
    root.mkdir(exist_ok=True)
    (root / "classes.yaml").write_text("name: mine\nclasses: [road, kerb, person, {name: 车}]\n")
    lines = []
    for number, values in enumerate(labels):
        size = sizes[number % len(sizes)]
        label = np.resize(np.array(values, np.uint8), size)
        cv2.imwrite(str(root / f"{name}{number}.png"), np.zeros((*size, 3), np.uint8))
        cv2.imwrite(str(root / f"{name}{number}_l.png"), label)
        lines.append(f"{name}{number}.png,{name}{number}_l.png\n")
    (root / f"{name}.txt").write_text("".join(lines))
    return ListDataset(load_custom(root / "classes.yaml"), root, f"{name}.txt")


def test_sizes_and_absent_classes(tmp_path):
    dataset = listed(tmp_path, [[0, 1], [0, 255], [1]], sizes=((40, 50), (32, 90), (33, 35)))
    found = survey(dataset)
    assert found == Survey(3, (33, 35), (32, 90), 3, ("person", "车"))
    assert found.text("train") == "train: 3 images of 33x35 to 32x90; in none of 3 labels looked at: person, 车"
    assert Survey(2, (4, 5), (4, 5), 2, ()).text("val") == "val: 2 images of 4x5"


def test_a_sample_is_spread_over_a_long_list(tmp_path):
    labels = [[0, 1]] * 99 + [[0, 1, 2, 3]]
    found = survey(listed(tmp_path, labels, sizes=((8, 8),)))
    assert (found.images, found.sampled) == (100, 64)
    assert found.absent == ("person", "车")  # the last label of 100 is not among the 64


def test_labels_of_one_class_are_refused_before_a_training(tmp_path):
    """Two classes whose masks hold 0 and 255: all that is not ignored is one class."""
    train = listed(tmp_path, [[0, 255], [0, 0], [255, 0]])
    with pytest.raises(UserError, match=r"the 3 labels of the training list show nothing but 'road' \(of 4 classes\)"):
        survey_for_training(train, train)
    ignored = listed(tmp_path / "b", [[255], [255]])
    with pytest.raises(UserError, match="show no class at all"):
        survey_for_training(ignored, ignored)


def test_a_second_class_in_one_label_of_many_is_found(tmp_path):
    labels = [[0]] * 70 + [[0, 3]]
    train = listed(tmp_path, labels, sizes=((8, 8),))
    val = listed(tmp_path, [[0, 3]], "val")
    lines = survey_for_training(train, val).splitlines()
    assert lines[0].startswith("train: 71 images of 8x8; in none of 64 labels looked at: kerb, person")
    assert lines[1] == "val: 1 images of 40x50; in none of 1 labels looked at: kerb, person"


def test_a_wrong_value_is_named_before_the_training(tmp_path):
    val = listed(tmp_path, [[0, 1]] * 2 + [[0, 9]], "val")
    with pytest.raises(UserError, match=r"val2_l\.png: not label values of 'mine': 9"):
        survey_for_training(val, val)


def test_large_labels_are_fewer(tmp_path, monkeypatch):
    monkeypatch.setattr(surveying, "SAMPLED_PIXELS", 3 * 8 * 8)
    found = survey(listed(tmp_path, [[0, 1, 2, 3], [0], [0], [1], [1], [1], [2], [2], [2]], sizes=((8, 8),)))
    assert (found.sampled, found.absent) == (3, ())
    assert survey(listed(tmp_path / "b", [[0], [1]], sizes=((40, 50),))).sampled == 1  # one at least


def test_a_file_that_never_arrives_ends_the_look(tmp_path, monkeypatch):
    train = listed(tmp_path, [[0, 1], [0, 1]])
    hanging, real = train.pairs[1].image, surveying.read_size
    monkeypatch.setattr(
        surveying, "read_size", lambda path: threading.Event().wait() if path == hanging else real(path)
    )
    monkeypatch.setattr(BatchLoader, "HANGS_AFTER", 0.2)
    monkeypatch.setattr("common.machine.parallel.Threads.PATIENCE", 0.1)
    with pytest.raises(UserError, match=r"train1\.png: not read in 0\.2 seconds"):
        survey(train)
