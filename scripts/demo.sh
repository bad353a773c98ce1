#!/usr/bin/env bash
# Set up, then translate two clips with the EchoStream agent under SimulEval and show the scores.
#
#   bash scripts/demo.sh [OUTPUT_DIR]       default: outputs/demo
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh asr

# SimulEval's YouTube reader misses ffmpeg, which nothing here needs.
export PYTHONWARNINGS="ignore::RuntimeWarning:pydub.utils"
output="${1:-outputs/demo}"
chunk_ms=320
python -m echostream.demo prepare "$output"
simuleval \
    --agent agents/echostream_s2st.py \
    --model-dir "$output/model" \
    --source "$output/source.txt" \
    --target "$output/target.txt" \
    --output "$output/s2st" \
    --trace "$output/trace.jsonl" \
    --source-segment-size "$chunk_ms" \
    --latency-metrics AL LAAL ATD StartOffset EndOffset NumChunks \
    --quality-metrics ASR_BLEU \
    --computation-aware
python -m echostream.demo report "$output"
