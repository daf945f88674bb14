"""How every command of the repository ends: quietly, or with one line that says what, where and what to do."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from difflib import get_close_matches
from typing import NoReturn


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


def shown(value: object) -> str:
    """Returns a value as an error shows it: as Python writes it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Runs a command's `main` and turns its outcome into an exit status.

    0 or main's own status when it returns; 1 with one line on standard error for a `UserError`, a full disk, a missing
    permission or too little memory; 130 for Ctrl-C. Anything else is a defect of ours and keeps its traceback.
    """
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
        status = _fail(f"not enough memory ({error}): make batches, crops or pictures smaller")
    except KeyboardInterrupt:
        status = _fail("stopped by the keyboard", status=130)
    sys.exit(status)


def _fail(message: str, status: int = 1) -> int:
    one_line = " ".join(message.split())
    # Names from files may hold what a terminal takes for commands.
    one_line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in one_line)
    print(f"error: {one_line}", file=sys.stderr, flush=True)
    return status
