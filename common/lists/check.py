"""Opening every file of a data set's lists and naming what is wrong with it by its cause."""

from __future__ import annotations

import hashlib
import io
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from common.images.read import (
    SMALLEST_SIDE,
    UPRIGHT,
    ImageError,
    decode_image,
    hardly_used_bits,
    orientation,
    read_size,
)
from common.labels import IGNORE, INVALID, LabelSet
from common.lists.list_file import Pair
from common.lists.scan import LabelFacts, label_set_of_file, scan_label
from common.machine.parallel import parallel_map

import numpy as np

MAX_IGNORED_SHARE = 0.99
"""With a larger share of ignored pixels there is nothing to learn."""

_CITYSCAPES_ROAD, _CITYSCAPES_FREQUENT = 7, (11, 21, 23, 26)  # labelIds: road; building, vegetation, sky, car
_BINARY = {0, 255}
_SHOWN = 3

# What each problem means and what to do about it.
ADVICE = {
    "image unreadable": "copy or download it again",
    "label unreadable": "copy or download it again",
    "sizes differ": "image and label must have one size; labels are resized with nearest neighbour only",
    "colour mask": "colour mask, give a palette: put the classes' colours into classes.yaml and run "
    "create_dataset_list.py custom --convert",
    "grey as colour": "ids saved as three equal channels; save one channel",
    "16-bit label": "save it as one 8-bit channel of ids",
    "label saved as JPEG": "JPEG changes values; make the labels again as PNG",
    "cityscapes labelIds": "looks like Cityscapes labelIds; train ids are expected: use _gtFine_labelTrainIds.png "
    "(create_dataset_list.py cityscapes --convert)",
    "binary 0/255": "binary mask saved as 0/255, but 255 is ignored; save the second class as 1, or map it in "
    "classes.yaml with ids: {0: 0, 255: 1}",
    "1-based ids": "1-based ids (1..classes); subtract 1, or map them in classes.yaml with ids: {1: 0, 2: 1, ...}",
    "0 = other, then 1-based": "ids from 1 with 0 for everything else; map them in classes.yaml with "
    "ids: {0: 255, 1: 0, 2: 1, ...}",
    "full ADE20K release": "this is the full ADE20K release; the 150 classes are in ADEChallengeData2016.zip "
    "of the scene parsing benchmark",
    "value not allowed": "values that the classes do not have; correct the labels or the classes file",
    "image without label": "not in any list; add the label or remove the image",
    "label without image": "not in any list; add the image or remove the label",
    "in two splits": "the same image is in two lists that must not overlap; remove it from one",
    "listed twice": "the same image is twice in one list; remove one line",
    "nothing learnable": "more than 99 % of a list's pixels are ignored; the label values do not fit the classes",
}
# These do not make a check fail.
WARNINGS = {
    "image damaged": "decoded, but part of it is made up; copy or download it again",
    "turned by EXIF": "viewers turn it as its EXIF orientation says, here the pixels are taken as stored; if the label "
    "was drawn on the turned image, turn the pixels and take the tag out",
    "16 bits, hardly used": "the upper 8 of 16 bits are taken, and its largest value is far below 65535: scale it, or "
    "save 8 bits",
    "small image": f"a side is below {SMALLEST_SIDE} pixels, which no network here evaluates whole; enlarge it or take "
    "it out",
    "class nowhere": "in no label of this list; a network cannot learn it, and its score is not a number",
    "linked alone": "image or label is a link and its partner is not: if the link's target changes, they no longer fit",
    "label nearly all ignored": "more than 99 % of its pixels are ignored, it teaches nothing",
}


@dataclass
class CheckReport:
    """What `check_lists` found.

    Attributes:
        found: Problem -> descriptions of the files it was found in, in the order of the lists.
        num_images: Different images looked at.
        num_labels: Different labels looked at.
        lists: List name -> number of lines.
    """

    found: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    num_images: int = 0
    num_labels: int = 0
    lists: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing but warnings was found."""
        return not any(problem in ADVICE for problem in self.found)

    def table(self) -> str:
        """Returns the findings as text: one line for each problem, with its count and first files, then the advice."""
        lists = ", ".join(f"{name} {count}" for name, count in self.lists.items())
        lines = [f"checked {self.num_images} images and {self.num_labels} labels in: {lists}"]
        if not self.found:
            return "\n".join([*lines, "no problems"])
        width = max(len("problem"), *(len(problem) for problem in self.found))
        lines.append(f"{'problem':<{width}}  {'files':>6}  first files")
        order = [problem for problem in {**ADVICE, **WARNINGS} if problem in self.found]
        for problem in order:
            files = self.found[problem]
            lines.append(f"{problem:<{width}}  {len(files):>6}  {'; '.join(files[:_SHOWN])}")
        for problem in order:
            kind = "" if problem in ADVICE else " (a warning)"
            lines.append(f"{problem}{kind}: {({**ADVICE, **WARNINGS})[problem]}")
        return "\n".join(lines)


class PairFacts(NamedTuple):
    """One image and its label (None without one), as read.

    Attributes:
        image_size: (height, width), None where the image cannot be read.
        reason: Why it cannot, or what its decoder complained about.
        digest: Of the image file's bytes; its size in bytes where only headers are read.
        label: The label's facts.
        warnings: Keys of `WARNINGS` for what a reader should know of the image.
    """

    image_size: tuple[int, int] | None
    reason: str
    digest: bytes | int
    label: LabelFacts | None
    warnings: tuple[str, ...] = ()


def check_lists(
    lists: Mapping[str, Sequence[Pair]],
    labels: LabelSet,
    root: str | os.PathLike,
    fast: bool = False,
    images_without_label: Sequence[Path] = (),
    labels_without_image: Sequence[Path] = (),
) -> CheckReport:
    """Opens every image and label of some lists once and collects what is wrong with them.

    Args:
        lists: List name -> pairs. Lists whose names begin with different ones of train, val, test must not share
            images, except that trainval and train++ hold the val images.
        labels: What the label files hold. For "cityscapes", files named _labelTrainIds are checked as train ids.
        root: Paths are shown relative to it.
        fast: Read only the headers of PNG and JPEG images; labels are always read whole.
        images_without_label: Images known to have no partner.
        labels_without_image: Labels known to have no partner.
    """
    pairs = list(dict.fromkeys(pair for listed in lists.values() for pair in listed))
    results = parallel_map(partial(look_at, fast=fast), pairs, "checking files")
    facts = dict(zip(pairs, results, strict=True))
    report = CheckReport(lists={name: len(listed) for name, listed in lists.items()})
    report.num_images = len({pair.image for pair in pairs})
    report.num_labels = len({pair.label for pair in pairs if pair.label})
    show = partial(_shown, root=Path(root))
    for pair, fact in facts.items():
        _check_pair(pair, fact, report, show)
    _check_values(lists, facts, labels, report, show)
    if images_without_label:
        report.found["image without label"] += map(show, images_without_label)
    if labels_without_image:
        report.found["label without image"] += map(show, labels_without_image)
    _check_overlap(lists, facts, report, show)
    return report


def look_at(pair: Pair, fast: bool) -> PairFacts:
    """Reads one pair; what is wrong is told in the result, not raised."""
    with _decoder_words() as words:
        label = scan_label(pair.label) if pair.label else None
    with _decoder_words() as words:
        try:
            if fast:
                size, digest = read_size(pair.image), os.path.getsize(pair.image)
                warned = _image_warnings(pair.image, None)
            else:
                data = pair.image.read_bytes()
                size, digest = decode_image(data, pair.image).shape[:2], hashlib.blake2b(data, digest_size=16).digest()
                warned = _image_warnings(pair.image, data)
        except ImageError as error:
            return PairFacts(None, error.reason, b"", label)
        except FileNotFoundError:
            return PairFacts(None, "there is no such file", b"", label)
        except OSError as error:
            return PairFacts(None, f"cannot be read ({error.strerror})", b"", label)
    complaint = next((line for line in words if "corrupt" in line.lower()), "")
    return PairFacts(size, complaint, digest, label, warned)


def _image_warnings(path: Path, data: bytes | None) -> tuple[str, ...]:
    """Keys of `WARNINGS` for one image; without its bytes only what its header says."""
    found = []
    if orientation(path if data is None else io.BytesIO(data)) not in (None, UPRIGHT):
        found.append("turned by EXIF")
    if data is not None and hardly_used_bits(data, path):
        found.append("16 bits, hardly used")
    return tuple(found)


@contextmanager
def _decoder_words() -> Iterator[list[str]]:
    """Collects what the image decoders write to file descriptor 2, their only way to tell of repaired damage."""
    words: list[str] = []
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield words
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            sink.seek(0)
            words += sink.read().decode(errors="replace").splitlines()


def _check_pair(pair: Pair, fact: PairFacts, report: CheckReport, show: partial) -> None:
    """Notes what can be said of one pair alone."""
    found, label = report.found, fact.label
    if fact.image_size is None:
        found["image unreadable"].append(f"{show(pair.image)} ({fact.reason})")
    elif fact.reason:
        found["image damaged"].append(f"{show(pair.image)} ({fact.reason})")
    for warning in fact.warnings:
        found[warning].append(show(pair.image))
    if fact.image_size and min(fact.image_size) < SMALLEST_SIDE:
        found["small image"].append("{} ({}x{})".format(show(pair.image), *fact.image_size))
    if pair.label is not None and pair.image.is_symlink() != pair.label.is_symlink():
        found["linked alone"].append(show(pair.image if pair.image.is_symlink() else pair.label))
    if label is None:
        return
    name = show(pair.label)
    if label.kind == "unreadable":
        found["label unreadable"].append(f"{name} ({label.reason})")
        return
    if fact.image_size and label.size != fact.image_size:
        sizes = "{}x{} and {}x{}".format(*fact.image_size, *label.size)
        found["sizes differ"].append(f"{show(pair.image)} and its label ({sizes})")
    if pair.label.suffix.lower() in (".jpg", ".jpeg"):
        found["label saved as JPEG"].append(name)
    elif label.kind == "colour" and name.endswith("_seg.png"):
        found["full ADE20K release"].append(name)
    elif label.kind != "ids":
        problem = {"colour": "colour mask", "16-bit": "16-bit label"}.get(label.kind, label.kind)
        found[problem].append(name)


def _check_values(
    lists: Mapping[str, Sequence[Pair]],
    facts: Mapping[Pair, PairFacts],
    labels: LabelSet,
    report: CheckReport,
    show: partial,
) -> None:
    """Notes values that must not occur, under the name of their cause, and lists that are ignored nearly whole."""
    # Cityscapes' test labels are dummies.
    learnt = {pair for name, listed in lists.items() if _split_of(name) != "test" for pair in listed}
    counts = {pair: fact.label.counts for pair, fact in facts.items() if fact.label and fact.label.counts is not None}
    seen = _values(counts[pair] for pair in learnt if pair in counts)
    bad_of: dict[Pair, set[int]] = {}
    for pair, count in counts.items():
        table = label_set_of_file(pair.label, labels).id_to_train
        bad = set(np.flatnonzero((count > 0) & (table == INVALID)).tolist())
        ignored = count[table == IGNORE].sum() / count.sum()
        if bad:
            bad_of[pair] = bad
        elif ignored > MAX_IGNORED_SHARE and pair in learnt:
            report.found["label nearly all ignored"].append(show(pair.label))
    if bad_of:
        expected = label_set_of_file(next(iter(bad_of)).label, labels)
        problem = name_cause(set.union(*bad_of.values()), seen, expected, [pair.label.name for pair in bad_of])
        report.found[problem] += [f"{show(pair.label)} (values {_short(bad)})" for pair, bad in bad_of.items()]
    if seen == _BINARY and labels.id_to_train[255] == IGNORE and labels.num_classes > 1:
        report.found["binary 0/255"] += [show(pair.label) for pair in counts if counts[pair][255]]
    for name, listed in lists.items():
        _check_absent(name, [pair for pair in listed if pair in counts and pair in learnt], counts, labels, report)
        _check_ignored(name, [pair for pair in listed if pair in counts], counts, labels, report)


def _check_absent(
    name: str, pairs: list[Pair], counts: Mapping[Pair, np.ndarray], labels: LabelSet, report: CheckReport
) -> None:
    """Notes classes that occur in no label of a list."""
    pixels = np.zeros(256, np.int64)
    for pair in pairs:
        np.add.at(pixels, label_set_of_file(pair.label, labels).id_to_train, counts[pair])
    absent = [labels.class_names[i] for i in range(labels.num_classes) if not pixels[i]]
    if pairs and absent:
        report.found["class nowhere"].append(f"list {name}: {_few(absent)}")


def _check_ignored(
    name: str, pairs: list[Pair], counts: Mapping[Pair, np.ndarray], labels: LabelSet, report: CheckReport
) -> None:
    total = sum(int(counts[pair].sum()) for pair in pairs)
    ignored = sum(
        int(counts[pair][label_set_of_file(pair.label, labels).id_to_train == IGNORE].sum()) for pair in pairs
    )
    if _split_of(name) != "test" and total and ignored / total > MAX_IGNORED_SHARE:
        report.found["nothing learnable"].append(f"list {name} ({100 * ignored / total:.1f} % ignored)")


def name_cause(bad: set[int], seen: set[int], labels: LabelSet, file_names: Sequence[str]) -> str:
    """Names the likely cause of values that must not occur.

    Args:
        bad: The values, over all files that have any.
        seen: All values of all labels.
        labels: What was expected.
        file_names: The files with bad values.

    Returns:
        A key of `ADVICE`.
    """
    count = labels.num_classes
    holds_train_ids = labels.id_to_train[:count].tolist() == list(range(count))
    if labels.name.startswith("ade20k") and max(bad) > 150:
        return "full ADE20K release"
    if holds_train_ids and max(bad) <= 33:
        street = _CITYSCAPES_ROAD in seen and len(seen.intersection(_CITYSCAPES_FREQUENT)) >= 2
        named = any("labelids" in name.lower() for name in file_names)
        if max(bad) > count and (street or named or labels.name == "cityscapes_trainids"):
            return "cityscapes labelIds"
    if holds_train_ids and bad == {count}:
        return "0 = other, then 1-based" if 0 in seen else "1-based ids"
    return "value not allowed"


def _check_overlap(
    lists: Mapping[str, Sequence[Pair]], facts: Mapping[Pair, PairFacts], report: CheckReport, show: partial
) -> None:
    """Notes images that stand in two lists that must not overlap, or twice in one list."""
    owners: dict[object, tuple[str, Path]] = {}
    noted: set[Path] = set()
    for name, listed in lists.items():
        own: set[Path] = set()
        for pair in listed:
            if pair.image in own:
                report.found["listed twice"].append(f"{show(pair.image)} in {name}")
            own.add(pair.image)
        split = _split_of(name)
        if split == "union":
            continue
        for pair in listed:
            for key in _identities(pair.image, facts[pair]):
                owner, other = owners.setdefault(key, (split, pair.image))
                if owner != split and pair.image not in noted:
                    noted.add(pair.image)
                    report.found["in two splits"].append(f"{show(pair.image)} ({split}) = {show(other)} ({owner})")


def _identities(image: Path, fact: PairFacts) -> list[object]:
    """Returns what makes an image the same as another: its path, and its content (fast: name and file size)."""
    if fact.image_size is None:
        return [image]
    return [image, (image.stem, fact.digest) if isinstance(fact.digest, int) else fact.digest]


def _split_of(list_name: str) -> str:
    """Returns "train", "val" or "test" for the name of a list, "union" for lists of train and val together."""
    name = list_name.lower()
    if name.startswith(("trainval", "train++")):
        return "union"
    return next((split for split in ("train", "val", "test") if name.startswith(split)), name)


def _few(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _values(counts: Iterator[np.ndarray]) -> set[int]:
    total = sum(counts, np.zeros(256, np.int64))
    return set(np.flatnonzero(total).tolist())


def _short(values: set[int]) -> str:
    ordered = sorted(values)
    return ", ".join(map(str, ordered[:6])) + (" ..." if len(ordered) > 6 else "")


def _shown(path: Path, root: Path) -> str:
    try:
        return path.relative_to(root).as_posix()
    except ValueError:
        return str(path)
