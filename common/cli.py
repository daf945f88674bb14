"""Shared command-line conventions: --help from the module docstring, and every user error on one line."""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

LONGEST_ERROR = 4000  # characters
LONGEST_NUMBER = 18  # digits; longer integers do not fit into 64 bits


class UserError(ValueError):
    """Something the user can put right.

    The message is one line: what is wrong, where (file, key, line), and what to do about it. Libraries raise it;
    `run_command` prints it without a traceback and exits 1.
    """


def did_you_mean(name: str, valid: list[str]) -> str:
    """Returns a sentence that names the valid names, the nearest first: "did you mean 'x'? valid: x, y"."""
    nearest = get_close_matches(name, valid, n=1, cutoff=0.6)
    hint = f"did you mean '{nearest[0]}'? " if nearest else ""
    return f"{hint}valid: {', '.join(valid)}"


def positive(text: str) -> int:
    """Type of an option: an integer of at least 1."""
    return _number_from(1, text)


def not_negative(text: str) -> int:
    """Type of an option: an integer of at least 0."""
    return _number_from(0, text)


def _number_from(lowest: int, text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text[:LONGEST_NUMBER]) < lowest or len(text) > LONGEST_NUMBER:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a number from {lowest}")
    return int(text)


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose help is the module's docstring, examples included.

    A mistake in the arguments is one line with the nearest valid name, and status 2.

    Args:
        description: The module's docstring.
        more: Passed on to `argparse.ArgumentParser`.
    """

    def __init__(self, description: str, **more: Any):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, **more)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """Reads the words; see `argparse.ArgumentParser`."""
        self._words = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Ends the command with one line; `argparse` calls it."""
        names = [word.partition("=")[0] for word in self._words if word.startswith("--") and word != "--"]
        parser = self._with_the_options()
        unknown = [name for name in names if parser is not None and not parser._is_option(name)]
        if unknown:  # said first: a word that is missing may be one that was misspelt
            nearest = get_close_matches(unknown[0], parser._option_string_actions, n=1, cutoff=0.6)
            hint = f"did you mean {nearest[0]}? " if nearest else ""
            message = f"{unknown[0]} is no option: {hint}see {parser.prog} --help"
        sys.exit(_fail(message, status=2))

    def _with_the_options(self) -> CommandParser | None:
        """Whose options the words are: the subcommand's; None where the subcommand itself is misspelt."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                return next((action.choices[word] for word in self._words if word in action.choices), None)
        return self

    def _is_option(self, name: str) -> bool:
        options = self._option_string_actions
        return name in options or (self.allow_abbrev and any(option.startswith(name) for option in options))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            valid = [str(choice) for choice in action.choices]
            raise argparse.ArgumentError(action, f"{shown(value)}: {did_you_mean(str(value), valid)}")


def few(names: Sequence[object], count: int = 3) -> str:
    """The first of many names, for a message: "a, b, c, ..."; "none" where there are none."""
    return (", ".join(map(str, names[:count])) + (", ..." if len(names) > count else "")) if len(names) else "none"


def shown(value: object) -> str:
    """Returns a value as an error shows it: as Python writes it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Runs a command's `main` and turns its outcome into an exit status.

    0 or main's own status when it returns; 1 with one line on standard error for a `UserError`, a full disk, a missing
    permission or too little memory; 130 for Ctrl-C. Anything else is a defect of ours and keeps its traceback.

    What standard output or error cannot encode (a class named in Chinese, on a terminal of Latin-1) comes as an escape.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = main() or 0
        sys.stdout.flush()
    except UserError as error:
        status = _fail(str(error))
    except BrokenPipeError:
        # The reader of a pipe (`... | head`) went away; silence the interpreter's own flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except OSError as error:
        if error.errno == errno.ENOSPC:
            status = _fail(
                f"no space left on the device while writing {error.filename or 'a file'}: free some, run again"
            )
        elif error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            status = _fail(f"no permission for {error.filename}: choose another place or change its rights")
        else:
            raise
    except MemoryError as error:
        status = _fail(f"not enough memory ({error}): make batches, crops or images smaller")
    except KeyboardInterrupt:
        status = _fail("stopped by the keyboard", status=130)
    sys.exit(status)


def _fail(message: str, status: int = 1) -> int:
    one_line = " ".join(message.split())
    # Names from files may hold what a terminal takes for commands.
    one_line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in one_line)
    if len(one_line) > LONGEST_ERROR:  # a file can hold names of any length
        one_line = f"{one_line[: LONGEST_ERROR // 2]} ... {one_line[-LONGEST_ERROR // 2 :]}"
    print(f"error: {one_line}", file=sys.stderr, flush=True)
    return status
