import pytest


@pytest.fixture
def tree(tmp_path):
    from results_tree import make_tree

    return make_tree(tmp_path)
