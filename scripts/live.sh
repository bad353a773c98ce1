#!/usr/bin/env bash
# Set up, then serve the shipped systems to browsers on this machine and print the address.
#
#   bash scripts/live.sh [OPTION...]        options of `echostream serve`, e.g. --port 9000
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh serve voice

exec echostream serve "$@"
