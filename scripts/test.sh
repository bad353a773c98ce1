#!/usr/bin/env bash
# Set up what the tests need and run them.
#
#   bash scripts/test.sh              checks of the source, then all tests, the slow ones too
#   bash scripts/test.sh ARG...       hand the arguments to pytest instead
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh dev asr moonshine eval hf hub vad whisper train serve browser \
    simulstream onnx voice docs

if [ "$#" -gt 0 ]; then
    exec python -m pytest "$@"
fi
# Checks of the source and the documentation come first: seconds, mypy's first run a few minutes.
ruff check .
ruff format --check --quiet .
NO_MKDOCS_2_WARNING=1 mkdocs build --quiet &   # strict, as mkdocs.yml says
mypy
wait $!
# Side by side, but for the live server, whose tests keep to the clock.
status=0
python -m pytest -m "slow or not slow" -n auto --maxprocesses 8 --dist loadfile \
    --ignore=tests/live --durations=10 || status=$?
python -m pytest -m "slow or not slow" --durations=10 tests/live || status=$?
exit "$status"
