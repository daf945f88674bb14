import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # pdseg_runs.py, shared by the tests
