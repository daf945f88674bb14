"""Vectors for class names, read from a file in GloVe's text format: what GINet knows of the classes beforehand.

A line is a word and its numbers, separated by blanks; any dimension, the same for every word that is used. The first
line of a word counts. Such files are a gigabyte and more: lines are read one at a time, up to the last word wanted.

    read_word_embeddings("glove.6B.300d.txt", ["road", "traffic light"])   # float32 (2, 300)

A name of several words ("traffic light", "person-walking") is the mean of their vectors. Where the file lacks a word, a
YAML file beside it says what to take instead: `glove.6B.300d.aliases.yaml` with a line such as `tvmonitor: tv monitor`.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.cli import UserError
from common.config.strict_yaml import load_yaml
from common.config.typed import read_config_text

import numpy as np

FUSED_NAMES = {"diningtable": "dining table", "pottedplant": "potted plant", "tvmonitor": "tv monitor"}
"""Names of Pascal's that are two words in one; no GloVe file has them."""

MADE_UP_DIM = 50


def read_word_embeddings(path: str | os.PathLike, class_names: Sequence[str]) -> np.ndarray:
    """Reads a vector per class.

    Returns:
        float32 (num_classes, dim).

    Raises:
        UserError: The file is missing; a class has a word that is not in it; a line that is wanted has another
            dimension, or something that is not a finite number, in which case file and line are named.
    """
    path = Path(path)
    aliases_path = path.with_suffix(".aliases.yaml")
    aliases = FUSED_NAMES | _read_aliases(aliases_path)
    words = [_split(aliases.get(name, name)) or [name] for name in class_names]
    vectors = _find_vectors(path, {word for parts in words for word in parts})
    missing = [
        f"'{name}' (no word {', '.join(repr(word) for word in parts if word not in vectors)})"
        for name, parts in zip(class_names, words, strict=True)
        if not vectors.keys() >= set(parts)
    ]
    if missing:
        raise UserError(
            f"{path} has no vector for {', '.join(missing)}: write the words to take instead into {aliases_path}, "
            f"a line per class such as 'tvmonitor: tv monitor'"
        )
    return np.stack([np.mean([vectors[word] for word in parts], axis=0) for parts in words]).astype(np.float32)


def _split(name: str) -> list[str]:
    """The words of a name, in lower case: split at blanks, hyphens, underscores, commas and semicolons."""
    return [word for word in re.split(r"[\s\-_,;]+", name.lower()) if word]


def _read_aliases(path: Path) -> dict[str, str]:
    """Class name to the words to look up instead; empty where there is no such file."""
    if not path.exists():
        return {}
    aliases = load_yaml(read_config_text(path), str(path))
    entries = aliases.items() if isinstance(aliases, Mapping) else [(None, None)]
    if not all(isinstance(name, str) and isinstance(words, str) and _split(words) for name, words in entries):
        raise UserError(f"{path}: must hold a line per class such as 'tvmonitor: tv monitor'")
    return dict(aliases)


def _find_vectors(path: Path, words: set[str]) -> dict[str, np.ndarray]:
    """The vectors of those words that the file has, float64 (dim,)."""
    if not path.is_file():
        raise UserError(f"no word vectors {path}: give a file in GloVe's text format, such as glove.6B.300d.txt")
    wanted = {word.encode(): word for word in words}
    vectors: dict[str, np.ndarray] = {}
    dim, dim_line = 0, 0
    with open(path, "rb") as stream:
        for number, line in enumerate(stream, 1):
            start = line.split(None, 1)
            word = wanted.get(start[0]) if start else None
            if word is None or word in vectors:
                continue
            where = f"{path}, line {number} ('{word}')"
            vector = _parse(line, where)
            if dim and len(vector) != dim:
                raise UserError(f"{where}: {len(vector)} numbers, but {dim} in line {dim_line}: the file is damaged")
            dim, dim_line = len(vector), dim_line or number
            vectors[word] = vector
            if len(vectors) == len(wanted):
                break
    return vectors


def _parse(line: bytes, where: str) -> np.ndarray:
    try:
        numbers = [float(text) for text in line.split()[1:]]
    except ValueError:
        numbers = []
    if not numbers or not all(map(math.isfinite, numbers)):
        raise UserError(f"{where}: not a word and finite numbers: the file is damaged or not in GloVe's format")
    return np.array(numbers)


def made_up_vectors(words: Sequence[str]) -> np.ndarray:
    """Vectors that mean nothing: float32 (len(words), 50), drawn from a normal distribution seeded by each word.

    They stand in for word vectors where only shapes matter, and in the quickstart, which downloads nothing:
    `configs/made_up_word_vectors.txt` holds those of the words in Cityscapes' class names. Two words are as unlike each
    other as any other two.
    """
    rows = []
    for word in words:
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
        rows.append(np.random.default_rng(seed).normal(0.0, 0.4, MADE_UP_DIM).round(5))
    return np.array(rows, np.float32)
