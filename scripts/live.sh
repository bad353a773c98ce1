#!/usr/bin/env bash
# Set up, then serve the shipped systems to browsers on this machine and print the address.
#
#   bash scripts/live.sh [OPTION...]        options of `echostream serve`, e.g. --port 9000
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh serve

# Small tensors: one thread is as fast as several.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec echostream serve "$@"
