"""The one confusion matrix of the repository, and every segmentation score derived from it."""

from __future__ import annotations

from typing import Self

from common.cli import UserError
from common.labels import IGNORE

import cv2
import numpy as np

# cv2.calcHist counts in float32, which holds every whole number up to 2**24: more pixels are counted in pieces.
_EXACT_PIXELS = 2**24


class ConfusionMatrix:
    """Counts pixels by label and prediction, and scores them.

    All scores are fractions 0..1, or NaN where they are not defined. A class that is in neither labels nor
    predictions is NaN per class and leaves the mean; one that is predicted but never labelled has IoU and Dice 0.

    Attributes:
        num_classes: The number of classes.
        ignore_index: Pixels with this label leave, whatever was predicted there.
        matrix: (num_classes, num_classes) int64 pixel counts, rows = label, columns = prediction.
    """

    def __init__(self, num_classes: int, ignore_index: int = IGNORE):
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, not {num_classes}")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.matrix = np.zeros((num_classes, num_classes), np.int64)

    def update(self, label: np.ndarray, pred: np.ndarray) -> None:
        """Adds pixels; where it raises, nothing is added.

        uint8 (or what fits into it, such as an int64 argmax) is counted in about 2 ms for 1024 x 2048 pixels.

        Args:
            label: Train ids, integers of any shape and width: (H, W), (B, H, W)...
            pred: Predicted train ids of the same shape.

        Raises:
            UserError: Shapes differ, no integers, a label that is neither a class nor ignored, or a prediction that
                is no class where the label counts.
        """
        label, pred = np.asarray(label), np.asarray(pred)
        if label.shape != pred.shape:
            raise UserError(f"label {label.shape} and prediction {pred.shape} differ in shape: resize the prediction")
        for name, values in (("label", label), ("prediction", pred)):
            if not np.issubdtype(values.dtype, np.integer):
                raise UserError(f"the {name} holds {values.dtype}: integer train ids are needed")
        if label.size == 0:
            return
        label8, pred8 = _as_uint8(label), _as_uint8(pred)
        if label8 is not None and pred8 is not None:
            self._add_pairs(_count_uint8_pairs(label8, pred8))
        else:
            self._add_wide(label, pred)

    def merge(self, other: ConfusionMatrix) -> None:
        """Adds the counts of another matrix, such as that of another process."""
        if (self.num_classes, self.ignore_index) != (other.num_classes, other.ignore_index):
            raise ValueError(
                f"cannot merge matrices of {self.num_classes} and {other.num_classes} classes, "
                f"ignore_index {self.ignore_index} and {other.ignore_index}"
            )
        self.matrix += other.matrix

    def __add__(self, other: ConfusionMatrix) -> Self:
        total = type(self)(self.num_classes, self.ignore_index)
        total.merge(self)
        total.merge(other)
        return total

    def iou(self) -> np.ndarray:
        """Intersection over union by class, (num_classes,) float64."""
        hits, labelled, predicted = self._totals()
        return _ratio(hits, labelled + predicted - hits)

    def dice(self) -> np.ndarray:
        """Dice (F1) by class, (num_classes,) float64."""
        hits, labelled, predicted = self._totals()
        return _ratio(2 * hits, labelled + predicted)

    def accuracy(self) -> np.ndarray:
        """Share of a class's labelled pixels that were found (recall), (num_classes,) float64; NaN if none labelled."""
        hits, labelled, _ = self._totals()
        return _ratio(hits, labelled)

    def mean_iou(self) -> float:
        """Mean of `iou` over the classes in labels or predictions."""
        return _mean_of_defined(self.iou())

    def mean_dice(self) -> float:
        """Mean of `dice` over the classes in labels or predictions."""
        return _mean_of_defined(self.dice())

    def mean_accuracy(self) -> float:
        """Mean of `accuracy` over the classes in labels."""
        return _mean_of_defined(self.accuracy())

    def pixel_accuracy(self) -> float:
        """Share of all counted pixels that are right."""
        hits, labelled, _ = self._totals()
        return float(_ratio(hits.sum(), labelled.sum()))

    def frequency_weighted_iou(self) -> float:
        """`iou` weighted by each class's share of the labelled pixels."""
        _, labelled, _ = self._totals()
        weighted = np.where(labelled > 0, labelled * self.iou(), 0.0)
        return float(_ratio(weighted.sum(), labelled.sum()))

    def kappa(self) -> float:
        """Cohen's kappa; NaN where chance alone would agree everywhere (one class in labels and predictions)."""
        hits, labelled, predicted = (totals.astype(np.float64) for totals in self._totals())
        total = labelled.sum()
        agreed = total * hits.sum()  # float64, since products of pixel counts can leave int64
        by_chance = (labelled * predicted).sum()
        return float(_ratio(agreed - by_chance, total * total - by_chance))

    def absent_classes(self) -> list[int]:
        """Train ids that are in neither labels nor predictions: the ones that leave the means."""
        _, labelled, predicted = self._totals()
        return np.flatnonzero(labelled + predicted == 0).tolist()

    def _totals(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns right, labelled and predicted pixels by class, each (num_classes,) int64."""
        return self.matrix.diagonal(), self.matrix.sum(axis=1), self.matrix.sum(axis=0)

    def _add_pairs(self, pairs: np.ndarray) -> None:
        """Adds (256, 256) counts of uint8 label and prediction pairs, which it changes."""
        if 0 <= self.ignore_index < 256:
            pairs[self.ignore_index] = 0
        classes = min(self.num_classes, 256)
        if pairs[classes:].any():
            raise self._bad_labels(classes + np.flatnonzero(pairs[classes:].any(axis=1)))
        if pairs[:, classes:].any():
            raise self._bad_predictions(classes + np.flatnonzero(pairs[:, classes:].any(axis=0)))
        self.matrix[:classes, :classes] += pairs[:classes, :classes]

    def _add_wide(self, label: np.ndarray, pred: np.ndarray) -> None:
        counts = label != self.ignore_index
        label, pred = label[counts], pred[counts]
        if (bad := label[(label < 0) | (label >= self.num_classes)]).size:
            raise self._bad_labels(np.unique(bad))
        if (bad := pred[(pred < 0) | (pred >= self.num_classes)]).size:
            raise self._bad_predictions(np.unique(bad))
        pairs = label.astype(np.int64) * self.num_classes + pred.astype(np.int64)
        self.matrix += np.bincount(pairs, minlength=self.num_classes**2).reshape(self.matrix.shape)

    def _bad_labels(self, values: np.ndarray) -> UserError:
        return UserError(
            f"label values {_listed(values)} are neither classes (0..{self.num_classes - 1}) nor ignored "
            f"({self.ignore_index}): check the data set's label set and number of classes"
        )

    def _bad_predictions(self, values: np.ndarray) -> UserError:
        return UserError(
            f"predicted values {_listed(values)} are no classes (0..{self.num_classes - 1}): "
            f"the network has another number of classes, or its output is not train ids"
        )


def _as_uint8(values: np.ndarray) -> np.ndarray | None:
    """Returns the values as uint8, or None where they do not fit. Checking and narrowing is cheaper than a bincount."""
    if values.dtype == np.uint8:
        return values
    if values.min() >= 0 and values.max() <= 255:
        return values.astype(np.uint8)
    return None


def _count_uint8_pairs(label: np.ndarray, pred: np.ndarray) -> np.ndarray:
    """Returns (256, 256) int64: how often each label meets each prediction."""
    label = np.ascontiguousarray(label).reshape(1, -1)
    pred = np.ascontiguousarray(pred).reshape(1, -1)
    pairs = np.zeros((256, 256), np.int64)
    for start in range(0, label.size, _EXACT_PIXELS):
        piece = [label[:, start : start + _EXACT_PIXELS], pred[:, start : start + _EXACT_PIXELS]]
        pairs += cv2.calcHist(piece, [0, 1], None, [256, 256], [0, 256, 0, 256]).astype(np.int64)
    return pairs


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divides in float64, 0 / 0 being NaN."""
    numerator, denominator = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator != 0)


def _mean_of_defined(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def _listed(values: np.ndarray) -> str:
    shown = ", ".join(str(value) for value in values[:10])
    return shown + (f" and {len(values) - 10} more" if len(values) > 10 else "")
