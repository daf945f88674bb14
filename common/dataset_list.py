"""Image/label lists of a data set: find, write, read, check, and what the labels hold.

This is the door; the rooms are `lists.layouts` (where each data set keeps its files), `lists.list_file` (the lines),
`lists.convert` (label PNGs that have to be made first), `lists.make`, `lists.check` and `lists.scan`.
"""

from __future__ import annotations

from common.lists.check import CheckReport, check_lists
from common.lists.convert import convert_labels
from common.lists.layouts import FoundPairs, find_pairs
from common.lists.list_file import Pair, read_list, write_list
from common.lists.make import MadeLists, make_lists
from common.lists.scan import LabelStats, label_stats

__all__ = [
    "CheckReport",
    "FoundPairs",
    "LabelStats",
    "MadeLists",
    "Pair",
    "check_lists",
    "convert_labels",
    "find_pairs",
    "label_stats",
    "make_lists",
    "read_list",
    "write_list",
]
