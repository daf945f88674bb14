#!/usr/bin/env bash
# Setup, lint, import arrows, twins, tests with the network closed. Arguments go to pytest: bash ci/test.sh -m slow
set -euo pipefail
cd "$(dirname "$0")/.."
bash ci/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/python ci/check_imports.py
.venv/bin/python ci/check_twins.py
NETWORK_TRIED=$(mktemp)
export NETWORK_TRIED PYTHONPATH="$PWD/ci/closed_network"
# Two worker processes share two cores, so each computes with one thread.
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} .venv/bin/python -m pytest -n 2 --dist loadfile "$@"
if [ -s "$NETWORK_TRIED" ]; then
    echo "a test reached for the network:" && cat "$NETWORK_TRIED" && exit 1
fi
rm "$NETWORK_TRIED"
