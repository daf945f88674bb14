"""List files: one `image,label` line per pair, paths relative to the data set's root, forward slashes, UTF-8.

A list is written with comma (default), tab, "|" or space between the paths. With comma, a path that holds a comma or a
quote is quoted as in CSV (PaddleSeg cannot read such a line; use a tab for it); another separator inside a path is
refused. The reader finds out the separator by itself and also takes what Windows tools leave behind: backslashes, CRLF,
a byte order mark.
"""

from __future__ import annotations

import contextlib
import csv
import gc
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from common.cli import UserError, did_you_mean
from common.files import atomic_write

SEPARATORS = {"comma": ",", "tab": "\t", "pipe": "|", "space": " "}
_SPELLINGS = {",": ",", "\t": "\t", "\\t": "\t", "|": "|", " ": " ", **SEPARATORS}
_SHOWN = 3  # how many of many files a message names
_BETWEEN = ("\t", ",", "|")  # what is told apart from a blank in a path
_LONGEST = 10_000  # characters of a line: systems know no paths of half of that
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


class Pair(NamedTuple):
    """An image and its label, both as full paths. The label is None in lists of images alone (test sets)."""

    image: Path
    label: Path | None = None


class Line(NamedTuple):
    """One line of a list: its number, and its paths as written apart from the slashes."""

    number: int
    paths: tuple[str, ...]


def separator_of(spelling: str) -> str:
    """Returns the separator for its name, for itself, or (tab) for a backslash and a t, as shells pass it.

    Raises:
        UserError: Any other text.
    """
    if spelling not in _SPELLINGS:
        raise UserError(f"unknown separator '{spelling}': {did_you_mean(spelling, list(SEPARATORS))}")
    return _SPELLINGS[spelling]


def format_list(pairs: Sequence[Pair], root: str | os.PathLike, separator: str = ",") -> str:
    """Returns the text of a list file.

    Args:
        pairs: In the order of the lines.
        root: What the paths are made relative to.
        separator: One of `SEPARATORS`, by name or itself.

    Raises:
        UserError: No pairs; a path outside of `root`; a path that the separator or the format cannot carry.
    """
    separator = separator_of(separator)
    if not pairs:
        raise UserError(f"no pairs to list under {root}")
    lines = []
    for pair in pairs:
        paths = [_relative(path, root) for path in pair if path is not None]
        lines.append(separator.join(_field(path, separator) for path in paths))
    return "\n".join(lines) + "\n"


def write_list(path: str | os.PathLike, pairs: Sequence[Pair], root: str | os.PathLike, separator: str = ",") -> None:
    """Writes a list file atomically. Arguments and errors are those of `format_list`."""
    text = format_list(pairs, root, separator)
    with atomic_write(path) as stream:
        stream.write(text)


def read_list(path: str | os.PathLike, root: str | os.PathLike | None = None, check_files: bool = True) -> list[Pair]:
    """Reads a list file.

    The separator is a tab, a comma or "|", whichever splits every line into the same one or two paths; a space only if
    each line then gives exactly two files that exist. Blank lines are skipped.

    Args:
        path: The list.
        root: What its paths are relative to; the list's own folder by default.
        check_files: Whether files that are missing are an error. Folders are listed once each, so this is cheap.

    Raises:
        UserError: No such list, no lines, a line that is no pair, a path that leaves the root, missing files.
    """
    root = Path(path).parent if root is None else Path(root)
    folders = FolderListing(root)
    with _garbage_uncollected():
        lines = _split(_read_lines(path), folders, path)
        for line in lines:
            _refuse_outside(line, path)
        if check_files:
            refuse_missing([name for line in lines for name in line.paths], folders, path)
        return [Pair(*map(folders.full_path, line.paths)) for line in lines]


@contextlib.contextmanager
def _garbage_uncollected() -> Iterator[None]:
    """Pauses the search for cycles: it would take as long as reading a long list, in which there are none."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class FolderListing:
    """Answers whether files below a root exist, listing each folder once (100 000 stat calls would take seconds)."""

    def __init__(self, root: Path):
        self.root = root
        self._names: dict[str, frozenset[str]] = {}
        self._folders: dict[str, Path] = {}

    def full_path(self, path: str) -> Path:
        """Returns `path` below the root; its folder is parsed once, as parsing is most of a list's reading."""
        folder, _, name = path.rpartition("/")
        if folder not in self._folders:
            self._folders[folder] = self.root / folder
        return self._folders[folder] / name

    def holds(self, path: str) -> bool:
        """Whether `path`, relative to the root with forward slashes, exists."""
        folder, _, name = path.rpartition("/")
        return name in self.names(folder)

    def names(self, folder: str) -> frozenset[str]:
        """The names of what lies in a folder; none where there is no such folder."""
        if folder not in self._names:
            try:
                self._names[folder] = frozenset(os.listdir(self.root / folder))
            except OSError:
                self._names[folder] = frozenset()
        return self._names[folder]

    def other_suffixes(self, path: str) -> list[str]:
        """The suffixes under which a missing file does exist: ["jpg"] for a.png where there is a.jpg."""
        folder, _, name = path.rpartition("/")
        stem = name.rpartition(".")[0] or name
        return sorted(other[len(stem) :] for other in self.names(folder) if other.rpartition(".")[0] == stem)


def refuse_missing(paths: Sequence[str], folders: FolderListing, source: str | os.PathLike) -> None:
    """Raises UserError where files are missing, naming the first few and the suffix that exists instead."""
    missing = [path for path in paths if not folders.holds(path)]
    if not missing:
        return
    shown = ", ".join(missing[:_SHOWN]) + (f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else "")
    suffixes = sorted({suffix for path in missing[:100] for suffix in folders.other_suffixes(path)})
    hint = f"with the suffix {' or '.join(suffixes)} they are there; " if suffixes else ""
    raise UserError(
        f"{source}: {len(missing)} of {len(paths)} files are not under {folders.root}: {shown}; "
        f"{hint}correct the list or the root, or make the list again with create_dataset_list.py"
    )


def _read_lines(path: str | os.PathLike) -> list[tuple[int, str]]:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        there = sorted(other.name for other in Path(path).parent.glob("*.txt"))
        hint = f", {did_you_mean(Path(path).name, there)}" if there else ""
        raise UserError(f"{path}: there is no such list{hint}; make it with common/create_dataset_list.py") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save the list as UTF-8") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a list file") from error
    control = _CONTROL.search(text)
    if control:
        number = text.count("\n", 0, control.start()) + 1
        raise UserError(f"{path}, line {number}: {control[0]!r} is in it, which no path has: give a list file")
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise UserError(f"{path}: the list is empty; make it again with common/create_dataset_list.py")
    for number, line in lines:
        if len(line) > _LONGEST:
            raise UserError(f"{path}, line {number}: {len(line)} characters are no paths: give a list file")
    return lines


def _split(lines: list[tuple[int, str]], folders: FolderListing, path: str | os.PathLike) -> list[Line]:
    first_number, first_text = lines[0]
    split = _choose_splitter(first_text, folders)
    if split is None:
        return [_split_at_space(number, text, folders, path) for number, text in lines]
    count = len(split(first_text))
    result = []
    for number, text in lines:
        paths = tuple(_tidy(part) for part in split(text))
        more = count == 1 and not folders.holds(paths[0]) and max(len(split(text)) for split in _SPLITTERS) > 1
        if len(paths) != count or more or not all(paths):
            if text.rstrip(" \r")[-1:] in _BETWEEN:
                raise UserError(f"{path}, line {number}: '{text.strip()[:120]}' ends with a separator: take it away")
            like = f", unlike line {first_number}" if number != first_number else ""
            raise UserError(
                f"{path}, line {number}: '{text.strip()[:120]}' is not {_KINDS[count]}{like}; all lines need the "
                "same paths and separator (quote a path that holds a comma)"
            )
        result.append(Line(number, paths))
    return result


def _choose_splitter(text: str, folders: FolderListing) -> Callable[[str], list[str]] | None:
    """Decides from a list's first line how its lines are split; None: at a space.

    What gives files that exist comes first, then what gives two paths, then the order of `_SPLITTERS`.
    """
    fitting = []
    for split in (*_SPLITTERS, _whole):
        parts = [_tidy(part) for part in split(text)]
        if len(parts) <= 2:
            exists = all(folders.holds(part) for part in parts)
            fitting.append(((not exists, len(parts) != 2, len(fitting)), split))
    (missing, single, _), split = min(fitting, key=lambda entry: entry[0])
    if not single:
        return split
    return None if missing and " " in text.strip() else _whole


def _split_tab(text: str) -> list[str]:
    return text.split("\t")


def _split_csv(text: str) -> list[str]:
    return next(csv.reader([text], skipinitialspace=True), [""]) if '"' in text else text.split(",")


def _split_pipe(text: str) -> list[str]:
    return text.split("|")


def _whole(text: str) -> list[str]:
    return _split_csv(text) if text.startswith('"') else [text]


_SPLITTERS = (_split_tab, _split_csv, _split_pipe)
_KINDS = {1: "one image", 2: "an image and its label"}


def _split_at_space(number: int, text: str, folders: FolderListing, path: str | os.PathLike) -> Line:
    """Splits where both sides exist; there must be exactly one such place."""
    text = text.strip()
    cuts = [(_tidy(text[: at.start()]), _tidy(text[at.end() :])) for at in re.finditer(" +", text)]
    existing = [cut for cut in cuts if all(folders.holds(part) for part in cut)]
    if len(existing) == 1:
        return Line(number, existing[0])
    found = "no place" if not existing else f"{len(existing)} places"
    raise UserError(
        f"{path}, line {number}: {found} where a space parts two files under {folders.root}: '{text[:120]}'; "
        "check the root and the names, or write the list with a tab or comma between the paths"
    )


def _tidy(part: str) -> str:
    return part.strip().replace("\\", "/")


def _refuse_outside(line: Line, path: str | os.PathLike) -> None:
    for name in line.paths:
        if name.startswith("/") or ".." in name and ".." in name.split("/") or name[1:2] == ":":
            raise UserError(
                f"{path}, line {line.number}: '{name}' leaves the data set's folder; paths in a list are relative to "
                "the root, without '..' and without a leading slash or drive"
            )


def _relative(path: Path, root: str | os.PathLike) -> str:
    """Returns `path` relative to `root` with forward slashes."""
    try:
        relative = Path(path).relative_to(root)
    except ValueError:
        raise UserError(f"{path}: not under {root}, which the list's paths are relative to") from None
    text = relative.as_posix()
    if ".." in relative.parts:
        raise UserError(f"{path}: leads out of {root}, which the list's paths are relative to")
    if any(character in text for character in "\n\r\\"):
        raise UserError(f"{text!r}: a list cannot hold a path with a line break or backslash; rename the file")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{text!r}: the name is not UTF-8; rename the file") from None
    return text


def _field(path: str, separator: str) -> str:
    """Returns a path as it stands in a line."""
    if path != path.strip():
        raise UserError(f"'{path}' begins or ends with a blank, which a list cannot hold; rename the file")
    if separator == "," and ("," in path or '"' in path):
        return '"' + path.replace('"', '""') + '"'
    if separator in path:
        raise UserError(f"'{path}' holds the separator {separator!r}; write the list with another --separator")
    return path
