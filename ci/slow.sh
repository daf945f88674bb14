#!/usr/bin/env bash
# Everything that ci/test.sh leaves out: the slow tests, then the faults with their table. Some hours on 2 cores.
#   bash ci/slow.sh             bash ci/slow.sh 10   (fuzz each reader for ten minutes)
set -euo pipefail
cd "$(dirname "$0")/.."
bash ci/setup.sh
.venv/bin/python -m pytest -m slow --ignore ci/faults
.venv/bin/python ci/faults/run.py --minutes "${1:-0.2}"
