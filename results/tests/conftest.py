import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # results_tree.py, shared by the tests


@pytest.fixture
def tree(tmp_path):
    from results_tree import make_tree

    return make_tree(tmp_path)
