import threading
import time

from common.cli import UserError
from common.labels import label_set
from common.samples.list_dataset import ListDataset
from common.samples.stream import BatchLoader, TrainStream, ValidPixels

import cv2
import numpy as np
import pytest


def crop(image, label, rng):
    """A random 65x65 window of both, image scaled to 0..1."""
    top, left = rng.integers(0, 15), rng.integers(0, 31)
    window = np.s_[top : top + 65, left : left + 65]
    return (image[window] / np.float32(255)).transpose(2, 0, 1), label[window]


@pytest.fixture
def dataset(tmp_path):
    """Seven images of 80x96 with labels 0..11 (11 = unlabelled)."""
    rng = np.random.default_rng(0)
    for i in range(7):
        cv2.imwrite(str(tmp_path / f"i{i}.png"), rng.integers(0, 256, (80, 96, 3), dtype=np.uint8))
        cv2.imwrite(str(tmp_path / f"l{i}.png"), rng.integers(0, 12, (80, 96), dtype=np.uint8))
    (tmp_path / "train.txt").write_text("".join(f"i{i}.png,l{i}.png\n" for i in range(7)))
    return ListDataset(label_set("camvid"), tmp_path, "train.txt")


def test_the_stream_is_a_function_of_seed_and_position(dataset):
    one, again, other = (TrainStream(dataset, crop, seed) for seed in (0, 0, 1))
    for position in (0, 5, 23):
        for a, b in zip(one[position], again[position], strict=True):
            np.testing.assert_array_equal(a, b)
    assert not np.array_equal(one[3][0], other[3][0])
    image, label, _ = one[0]
    assert (image.dtype, image.shape, label.dtype, label.shape) == (np.float32, (3, 65, 65), np.int64, (65, 65))


def test_every_epoch_sees_every_image_once_in_another_order(dataset):
    stream = TrainStream(dataset, crop, seed=0)
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
def test_threads_change_no_batch(dataset, num_workers):
    stream = TrainStream(dataset, crop, seed=0)
    for alone, threaded in zip(BatchLoader(stream, 3, 2, 9), BatchLoader(stream, 3, 2, 9, num_workers), strict=True):
        for a, b in zip(alone, threaded, strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_unreadable_image_arrives_as_it_was_raised(dataset, tmp_path, num_workers):
    path = tmp_path / "i0.png"
    path.write_bytes(path.read_bytes()[:5000])
    stream = TrainStream(dataset, crop, seed=0)
    with pytest.raises(UserError, match=r"i0\.png: truncated"):
        for _ in BatchLoader(stream, 3, 0, 4, num_workers):
            pass


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_image_that_never_arrives_stops_the_run_and_is_named(dataset, monkeypatch, num_workers):
    stream, real = TrainStream(dataset, crop, seed=0), dataset.load
    hanging = stream.pair_index(8)
    monkeypatch.setattr(dataset, "load", lambda i: threading.Event().wait() if i == hanging else real(i))
    monkeypatch.setattr(BatchLoader, "HANGS_AFTER", 0.2)
    monkeypatch.setattr("common.machine.parallel.Threads.PATIENCE", 0.1)
    batches, start = iter(BatchLoader(stream, 3, 0, 9, num_workers)), time.monotonic()
    assert len([next(batches) for _ in range(2)]) == 2
    with pytest.raises(UserError, match=rf"i{hanging}\.png or its label: not read in 0\.2 seconds"):
        next(batches)
    assert time.monotonic() - start < 60  # and not HANGS_AFTER's own 300


def test_labels_without_anything_to_learn_stop_the_run():
    valid = ValidPixels()
    label = np.full((100, 10, 10), 255)
    valid.look_at(label)
    label[0, 0, 0] = 3
    with pytest.raises(UserError, match=r"100\.0 % of the pixels of the first 200 labels are ignored"):
        valid.look_at(label)
    enough = ValidPixels()
    enough.look_at(np.full((200, 10, 10), 3))


def test_a_short_run_is_judged_at_its_end():
    valid = ValidPixels()
    valid.at_the_end()  # a run that had nothing left to train
    label = np.full((2, 10, 10), 255)
    valid.look_at(label)
    with pytest.raises(UserError, match=r"100\.0 % of the pixels of the first 2 labels are ignored"):
        valid.at_the_end()
    label[0, 0, 0] = 3
    valid.look_at(label)
    valid.at_the_end()
