"""Draws a measured matrix as a table and two images: `python report.py --help`. The code is matrix/report.py."""

from common.cli import run_command
from paddleseg_benchmark.matrix.report import main

if __name__ == "__main__":
    run_command(main)
