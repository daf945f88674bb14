"""Measures one cell of the matrix: `python measure.py --help`. The code is matrix/measure.py.

It is run as a file: imported as a part of the package it would import Paddle, which the interpreter of a peer may lack.
"""

import runpy
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).parent / "matrix" / "measure.py"), run_name="__main__")
