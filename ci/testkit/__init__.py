"""What the tests of all projects share: small data, commands run as a user does, and run folders read back.

`pyproject.toml` puts `ci/` and the folders of tests with shared modules on pytest's path.
"""

from testkit.commands import ENV, ENV_WITH_KIT, REPOSITORY, error_line, run_command, run_here
from testkit.data import CLASSES, write_data
from testkit.runs import numbers, run_folder

__all__ = [
    "CLASSES",
    "ENV",
    "ENV_WITH_KIT",
    "REPOSITORY",
    "error_line",
    "numbers",
    "run_command",
    "run_folder",
    "run_here",
    "write_data",
]
