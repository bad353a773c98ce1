#!/usr/bin/env bash
# Set up, then translate recordings of a real person with the model `everyday`. After them come 15 synthetic
# Spanish utterances, and a talk of 27 sentences as one stream, translated to English speech by EchoStream and by
# its StreamSpeech baseline under SimulEval, in chunks of 320 ms, with scores and running examples.
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

python -m echostream.demo "$output" --recordings data/everyday/real

echo
echo "== echo-mini, EchoStream and its baseline side by side, $chunk_ms ms chunks (about a minute)"
# Both at once, with one thread each, so that neither slows the other.
system_runs() {
    export OMP_NUM_THREADS=1
    run "$1" data/echo_mini/test_audio "$output/$1" --end-index 15 \
        --latency-metrics AL LAAL ATD StartOffset EndOffset --quality-metrics ASR_BLEU
    run "$1" data/echo_mini/talk "$output/talk/$1" --no-scoring
}
export -f run system_runs
export output chunk_ms
printf '%s\n' echostream streamspeech | xargs -n 1 -P 2 bash -euo pipefail -c 'system_runs "$1"' demo
python -m echostream.demo "$output"
