#!/usr/bin/env bash
# Setup, lint, import arrows, tests. Arguments go to pytest: bash ci/test.sh -m slow
set -euo pipefail
cd "$(dirname "$0")/.."
bash ci/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/python ci/check_imports.py
# Two worker processes share two cores, so each computes with one thread.
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} .venv/bin/python -m pytest -n 2 --dist loadfile "$@"
