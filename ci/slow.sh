#!/usr/bin/env bash
# Everything: all tests with those marked slow, what they cover, then the faults with their table. Some hours on 2 cores.
#   bash ci/slow.sh             bash ci/slow.sh 10   (fuzz each reader for ten minutes)
set -euo pipefail
cd "$(dirname "$0")/.."
bash ci/setup.sh
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
.venv/bin/python -m pytest -n 2 --dist loadfile -m "" --ignore ci/faults --cov --cov-report=
bash ci/coverage.sh
.venv/bin/python ci/faults/run.py --minutes "${1:-0.2}"
