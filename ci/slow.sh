#!/usr/bin/env bash
# Everything: all tests with those marked slow, what they cover, then the faults with their table. Some hours on 2 cores.
#   bash ci/slow.sh             bash ci/slow.sh 10   (fuzz each reader for ten minutes)
set -euo pipefail
cd "$(dirname "$0")/.."
bash ci/setup.sh
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
status=0  # one part that fails does not keep the others from being tried
.venv/bin/python -m pytest -n 2 --dist loadfile -m "" --ignore ci/faults --cov --cov-report= || status=1
bash ci/coverage.sh || status=1
.venv/bin/python ci/faults/run.py --minutes "${1:-0.2}" || status=1
exit $status
