#!/usr/bin/env bash
# What the tests covered, by room, after pytest --cov --cov-report= : fails under 90 % (projects: 80 %).
#   bash ci/coverage.sh
set -euo pipefail
cd "$(dirname "$0")/.."
status=0
for room in common weights_convert results; do
  .venv/bin/python -m coverage report --include "$room/*" --fail-under 90 --skip-covered --sort cover || status=1
done
for project in projects/*/; do
  .venv/bin/python -m coverage report --include "$project*" --fail-under 80 --skip-covered --sort cover || status=1
done
exit "$status"
