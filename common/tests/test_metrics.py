"""Scores against hand-computed values, cityscapesScripts' evaluator and torchmetrics."""

from __future__ import annotations

import copy

from common.cli import UserError
from common.labels import label_set
from common.metrics import ConfusionMatrix

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

NAN = float("nan")


def _scored(num_classes: int, label, pred, ignore_index: int = 255, dtype=np.uint8) -> ConfusionMatrix:
    confusion = ConfusionMatrix(num_classes, ignore_index)
    confusion.update(np.asarray(label, dtype), np.asarray(pred, dtype))
    return confusion


def _random_pair(seed: int, shape=(3, 37, 53), num_classes: int = 19) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, num_classes, shape).astype(np.uint8)
    pred = np.where(rng.random(shape) < 0.6, label, rng.integers(0, num_classes, shape)).astype(np.uint8)
    label[rng.random(shape) < 0.1] = 255
    return label, pred


def test_one_absent_class_leaves_the_mean():
    # IoU 1.0 / 0.6 / 0.6 / undefined: where eps tricks give 55.0 or 45.0 and "absent scores 1" gives 80.0.
    label = [0] * 5 + [1, 1, 1, 1, 2, 2, 2, 2]
    pred = [0] * 5 + [1, 1, 1, 2, 2, 2, 2, 1]
    confusion = _scored(4, [label], [pred])
    assert confusion.matrix.tolist() == [[5, 0, 0, 0], [0, 3, 1, 0], [0, 1, 3, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(confusion.iou(), [1.0, 0.6, 0.6, NAN])
    assert round(100 * confusion.mean_iou(), 1) == 73.3
    assert confusion.absent_classes() == [3]


def test_every_score_by_hand():
    # label  0 0 0 0 1 1 255 255 ; class 2 is predicted but never labelled; class 3 is nowhere.
    confusion = _scored(4, [[0, 0, 0, 0], [1, 1, 255, 255]], [[0, 0, 0, 1], [1, 2, 3, 77]])
    assert confusion.matrix.dtype == np.int64
    assert confusion.matrix.tolist() == [[3, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(confusion.iou(), [3 / 4, 1 / 3, 0, NAN])
    np.testing.assert_allclose(confusion.dice(), [6 / 7, 1 / 2, 0, NAN])
    np.testing.assert_allclose(confusion.accuracy(), [3 / 4, 1 / 2, NAN, NAN])
    assert confusion.mean_iou() == pytest.approx((3 / 4 + 1 / 3) / 3)
    assert confusion.mean_dice() == pytest.approx((6 / 7 + 1 / 2) / 3)
    assert confusion.mean_accuracy() == pytest.approx(5 / 8)
    assert confusion.pixel_accuracy() == pytest.approx(4 / 6)
    assert confusion.frequency_weighted_iou() == pytest.approx(4 / 6 * 3 / 4 + 2 / 6 * 1 / 3)
    # agreed 4/6; by chance (4 * 3 + 2 * 2) / 36 = 16/36
    assert confusion.kappa() == pytest.approx((4 / 6 - 16 / 36) / (1 - 16 / 36))
    assert confusion.absent_classes() == [3]


@pytest.mark.filterwarnings("error")
def test_nothing_counted_is_nan_and_no_crash():
    for confusion in (
        ConfusionMatrix(3),
        _scored(3, [[255, 255]], [[0, 9]]),
        _scored(3, np.empty((0, 4)), np.empty((0, 4))),
    ):
        assert confusion.matrix.sum() == 0
        assert np.isnan([*confusion.iou(), *confusion.dice(), *confusion.accuracy()]).all()
        scores = (
            confusion.mean_iou(),
            confusion.mean_dice(),
            confusion.mean_accuracy(),
            confusion.pixel_accuracy(),
            confusion.frequency_weighted_iou(),
            confusion.kappa(),
        )
        assert np.isnan(scores).all()
        assert confusion.absent_classes() == [0, 1, 2]


def test_kappa_of_a_single_class_is_undefined_and_of_chance_is_zero():
    assert np.isnan(_scored(2, [[0, 0]], [[0, 0]]).kappa())
    assert _scored(2, [[0, 0, 1, 1]], [[0, 1, 0, 1]]).kappa() == 0
    assert _scored(2, [[0, 0, 1, 1]], [[0, 0, 1, 1]]).kappa() == 1


def test_kappa_of_counts_whose_products_leave_int64():
    confusion = ConfusionMatrix(2)
    confusion.matrix[:] = [[4 * 10**9, 10**9], [10**9, 4 * 10**9]]
    assert confusion.kappa() == pytest.approx(0.6)  # agreed 0.8, by chance 0.5


def test_agrees_with_cityscapes_scripts(tmp_path):
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official

    cityscapes = label_set("cityscapes")
    rng = np.random.default_rng(3)
    labels, preds = [], []
    confusion = ConfusionMatrix(19)
    for index in range(3):
        raw = np.repeat(np.repeat(rng.integers(0, 33, (6, 9)), 8, 0), 8, 1).astype(
            np.uint8
        )  # 33, bicycle, stays absent
        train = cityscapes.encode(raw)
        guess = rng.integers(0, 18, raw.shape)
        pred = np.where((rng.random(raw.shape) < 0.7) & (train != 255), train, guess).astype(np.uint8)
        confusion.update(train, pred)
        labels.append(str(tmp_path / f"a_{index}_gtFine_labelIds.png"))
        preds.append(str(tmp_path / f"a_{index}_pred.png"))
        cv2.imwrite(labels[-1], raw)
        cv2.imwrite(preds[-1], cityscapes.decode(pred))
    args = copy.copy(official.args)
    args.evalInstLevelScore, args.JSONOutput, args.quiet = False, False, True
    result = official.evaluateImgLists(preds, labels, args)

    for name, iou in zip(cityscapes.class_names, confusion.iou(), strict=True):
        np.testing.assert_allclose(iou, result["classScores"][name], atol=1e-12)
    assert np.isnan(confusion.iou()[18])
    assert confusion.mean_iou() == pytest.approx(result["averageScoreClasses"], abs=1e-9)


def test_agrees_with_torchmetrics():
    import torch
    from torchmetrics.functional import classification as tm
    from torchmetrics.functional.segmentation import dice_score

    label, pred = _random_pair(0)
    confusion = _scored(19, label, pred)
    target, guess = torch.from_numpy(label).long(), torch.from_numpy(pred).long()
    kwargs = {"num_classes": 19, "ignore_index": 255}
    np.testing.assert_array_equal(confusion.matrix, tm.multiclass_confusion_matrix(guess, target, **kwargs).numpy())
    by_class = tm.multiclass_jaccard_index(guess, target, average=None, **kwargs).numpy()
    np.testing.assert_allclose(confusion.iou(), by_class, rtol=1e-6)
    recall = tm.multiclass_accuracy(guess, target, average=None, **kwargs).numpy()
    np.testing.assert_allclose(confusion.accuracy(), recall, rtol=1e-6)
    pixel_accuracy = tm.multiclass_accuracy(guess, target, average="micro", **kwargs).item()
    assert confusion.pixel_accuracy() == pytest.approx(pixel_accuracy, rel=1e-6)
    assert confusion.kappa() == pytest.approx(tm.multiclass_cohen_kappa(guess, target, **kwargs).item(), rel=1e-5)
    weighted = tm.multiclass_jaccard_index(guess, target, average="weighted", **kwargs).item()
    assert confusion.frequency_weighted_iou() == pytest.approx(weighted, rel=1e-6)
    counts = target != 255  # torchmetrics' Dice has no ignore_index
    dice = dice_score(guess[counts][None], target[counts][None], 19, average="none", input_format="index")[0].numpy()
    np.testing.assert_allclose(confusion.dice(), dice, rtol=1e-6)


@pytest.mark.parametrize("split", [1, 2, 3, 7])
def test_any_batch_split_counts_the_same(split):
    label, pred = _random_pair(1, (7, 20, 30))
    parts = ConfusionMatrix(19)
    for start in range(0, 7, split):
        parts.update(label[start : start + split], pred[start : start + split])
    np.testing.assert_array_equal(parts.matrix, _scored(19, label, pred).matrix)


def test_merge_and_add_equal_a_joint_update():
    label, pred = _random_pair(2, (4, 20, 30))
    first, second = _scored(19, label[:1], pred[:1]), _scored(19, label[1:], pred[1:])
    joint = _scored(19, label, pred).matrix
    before = first.matrix.copy()
    np.testing.assert_array_equal((first + second).matrix, joint)
    np.testing.assert_array_equal(first.matrix, before)
    first.merge(second)
    np.testing.assert_array_equal(first.matrix, joint)
    np.testing.assert_array_equal(second.matrix, joint - before)


def test_merge_refuses_another_kind():
    with pytest.raises(ValueError, match="19 and 20 classes"):
        ConfusionMatrix(19).merge(ConfusionMatrix(20))
    with pytest.raises(ValueError, match="ignore_index 255 and 0"):
        ConfusionMatrix(19).merge(ConfusionMatrix(19, ignore_index=0))


def test_inputs_are_not_changed_and_may_be_read_only_or_strided():
    label, pred = _random_pair(4)
    for dtype in (np.uint8, np.int64, np.int16):
        l_in, p_in = label.astype(dtype), pred.astype(dtype)
        l_in.flags.writeable = p_in.flags.writeable = False
        strided = _scored(19, l_in[:, ::2, ::-3], p_in[:, ::2, ::-3], dtype=dtype)
        expected = _scored(19, label[:, ::2, ::-3].copy(), pred[:, ::2, ::-3].copy())
        np.testing.assert_array_equal(strided.matrix, expected.matrix)
        np.testing.assert_array_equal(l_in, label)
        np.testing.assert_array_equal(p_in, pred)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_more_than_2_to_24_equal_pixels_are_counted_exactly(dtype):
    pixels = 2**24 + 3  # one float32 count of them gives 2**24 + 4
    confusion = ConfusionMatrix(3)
    for _ in range(2):
        confusion.update(np.full(pixels, 2, dtype), np.full(pixels, 1, dtype))
    assert confusion.matrix.tolist() == [[0, 0, 0], [0, 0, 0], [0, 2 * pixels, 0]]


ANY_INTEGER = st.sampled_from([np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64])


@settings(deadline=None, max_examples=60)
@given(
    data=st.data(),
    num_classes=st.integers(1, 40),
    ignore_index=st.sampled_from([255, 0, 254]),
    dtypes=st.tuples(ANY_INTEGER, ANY_INTEGER),
    shape=hnp.array_shapes(min_dims=2, max_dims=3, max_side=9),
)
def test_every_width_counts_like_a_loop(data, num_classes, ignore_index, dtypes, shape):
    classes = st.integers(0, num_classes - 1)
    label = data.draw(hnp.arrays(np.uint8, shape, elements=classes | st.just(ignore_index)))
    pred = data.draw(hnp.arrays(np.uint8, shape, elements=classes))
    expected = np.zeros((num_classes, num_classes), np.int64)
    for truth, guess in zip(label.ravel(), pred.ravel(), strict=True):
        if truth != ignore_index:
            expected[truth, guess] += 1
    confusion = ConfusionMatrix(num_classes, ignore_index)
    confusion.update(label.astype(dtypes[0]), pred.astype(dtypes[1]))
    confusion._add_wide(label.astype(dtypes[0]), pred.astype(dtypes[1]))
    np.testing.assert_array_equal(confusion.matrix, 2 * expected)


def test_more_classes_than_uint8_holds():
    label = np.array([[0, 299, 255, 65535]], np.uint16)
    pred = np.array([[299, 299, 0, 65535]], np.uint16)
    confusion = ConfusionMatrix(300, ignore_index=65535)
    confusion.update(label, pred)
    confusion.update(label[:, :1].astype(np.uint8), np.array([[200]], np.uint8))
    assert confusion.matrix.sum() == 4
    assert [confusion.matrix[at] for at in ((0, 299), (299, 299), (255, 0), (0, 200))] == [1, 1, 1, 1]


def test_negative_ignore_index():
    confusion = _scored(2, [[-1, 0, 1, -1]], [[1, 0, 0, -5]], ignore_index=-1, dtype=np.int64)
    assert confusion.matrix.tolist() == [[1, 0], [1, 0]]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
@pytest.mark.parametrize("junk", [3, 200, 255])
def test_predictions_under_ignored_labels_do_not_matter(dtype, junk):
    confusion = _scored(3, [[255, 1, 255]], [[junk, 1, 0]], dtype=dtype)
    assert confusion.matrix.tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_wide_predictions_under_ignored_labels_do_not_matter():
    confusion = _scored(3, [[255, 1, 255]], [[-7, 1, 10**9]], dtype=np.int64)
    assert confusion.matrix.tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_bad_values_are_named_and_leave_the_counts_alone(dtype):
    confusion = _scored(19, [[0, 18, 255]], [[0, 18, 0]])
    before = confusion.matrix.copy()
    with pytest.raises(UserError, match=r"label values 19, 33 are neither classes \(0..18\) nor ignored \(255\)"):
        confusion.update(np.array([[0, 19, 33, 255]], dtype), np.zeros((1, 4), dtype))
    with pytest.raises(UserError, match=r"predicted values 19, 254 are no classes \(0..18\)"):
        confusion.update(np.array([[0, 1, 2, 255]], dtype), np.array([[0, 19, 254, 99]], dtype))
    np.testing.assert_array_equal(confusion.matrix, before)


def test_negative_and_huge_values_are_named():
    with pytest.raises(UserError, match="label values -1, 70000 are neither"):
        _scored(19, [[-1, 70000, 0]], [[0, 0, 0]], dtype=np.int64)
    with pytest.raises(UserError, match="predicted values -1, 70000 are no classes"):
        _scored(19, [[0, 0, 0]], [[-1, 70000, 0]], dtype=np.int64)
    with pytest.raises(UserError, match="20, 21.* 29 and 5 more are neither"):
        _scored(20, [np.arange(20, 35)], [np.zeros(15)])


def test_shapes_and_types_are_checked():
    with pytest.raises(UserError, match=r"label \(2, 3\) and prediction \(3, 2\) differ in shape"):
        ConfusionMatrix(2).update(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8))
    with pytest.raises(UserError, match="the prediction holds float32"):
        ConfusionMatrix(2).update(np.zeros((2, 3), np.uint8), np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="at least 1"):
        ConfusionMatrix(0)
