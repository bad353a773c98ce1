#!/usr/bin/env bash
# Set up, then translate the 30 shipped Spanish utterances, and a talk of 27 sentences as one stream,
# to English speech with EchoStream and its StreamSpeech baseline under SimulEval, in chunks of 320 ms, and
# show scores and running examples. Last, recordings of real people go through the model `everyday`.
#
#   bash scripts/demo.sh [OUTPUT_DIR]       default: outputs/demo
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh asr eval voice

# SimulEval's YouTube reader misses ffmpeg, which nothing here needs.
export PYTHONWARNINGS="ignore::RuntimeWarning:pydub.utils"
# Threads that spin while they wait would hold up each other wherever the cores are shared.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
output="${1:-outputs/demo}"
chunk_ms=320

# run SYSTEM DATA FOLDER ARG...: translate what the lists in DATA name.
run() {
    local system="$1" data="$2" folder="$3"
    shift 3
    # Only what an earlier demonstration left is replaced.
    if [ -f "$folder/simuleval.txt" ]; then
        rm -r "${folder:?}"
    elif [ -n "$(ls -A "$folder" 2>/dev/null)" ]; then
        echo "demo: $folder holds something else; choose another OUTPUT_DIR" >&2
        exit 1
    fi
    mkdir -p "$folder"
    simuleval \
        --agent "agents/${system}_s2st.py" \
        --model-dir "echostream/assets/echo_mini/$system" \
        --source "$data/wav_list.txt" \
        --target "$data/target.txt" \
        --output "$folder" \
        --trace "$folder/trace.jsonl" \
        --source-segment-size "$chunk_ms" \
        --computation-aware "$@" >"$folder/simuleval.txt" 2>&1 ||
        { tail -n 20 "$folder/simuleval.txt" >&2; exit 1; }
}

for system in echostream streamspeech; do
    echo "== $system, $chunk_ms ms chunks"
    run "$system" data/echo_mini/test_audio "$output/$system" \
        --latency-metrics AL LAAL ATD StartOffset EndOffset --quality-metrics ASR_BLEU
    run "$system" data/echo_mini/talk "$output/talk/$system" --no-scoring
done
echo "== everyday, recordings of real people"
python -m echostream.demo "$output" --recordings data/everyday/real
