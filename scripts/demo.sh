#!/usr/bin/env bash
# Set up, then translate the 30 shipped Spanish utterances to English speech with EchoStream and its
# StreamSpeech twin under SimulEval, in chunks of 320 ms, and show scores and running examples.
#
#   bash scripts/demo.sh [OUTPUT_DIR]       default: outputs/demo
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh asr

# SimulEval's YouTube reader misses ffmpeg, which nothing here needs.
export PYTHONWARNINGS="ignore::RuntimeWarning:pydub.utils"
# Small tensors: one thread is as fast as several.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
output="${1:-outputs/demo}"
chunk_ms=320
for system in echostream streamspeech; do
    echo "== $system, $chunk_ms ms chunks"
    # Only what an earlier demonstration left is replaced.
    if [ -f "$output/$system/simuleval.txt" ]; then
        rm -r "${output:?}/$system"
    elif [ -n "$(ls -A "$output/$system" 2>/dev/null)" ]; then
        echo "demo: $output/$system holds something else; choose another OUTPUT_DIR" >&2
        exit 1
    fi
    mkdir -p "$output/$system"
    simuleval \
        --agent "agents/${system}_s2st.py" \
        --model-dir "echostream/assets/echo_mini/$system" \
        --source data/echo_mini/test_audio/wav_list.txt \
        --target data/echo_mini/test_audio/target.txt \
        --output "$output/$system" \
        --trace "$output/$system/trace.jsonl" \
        --source-segment-size "$chunk_ms" \
        --latency-metrics AL LAAL ATD StartOffset EndOffset \
        --quality-metrics ASR_BLEU \
        --computation-aware >"$output/$system/simuleval.txt" 2>&1 ||
        { tail -n 20 "$output/$system/simuleval.txt" >&2; exit 1; }
done
python -m echostream.demo "$output"
