#!/usr/bin/env bash
# Trains a translator that starts from Whisper on a borrowed GPU: speech is made there, on all of
# its cores, and what goes there and back goes in pieces (docs/howto/start-from-whisper.md).
#
#   scripts/gpu_training.sh pack WORK PIECES               cut WORK into pieces of 60 MB
#   scripts/gpu_training.sh run PIECES WORK MINUTES [train's options]
#
# WORK holds whisper/ (weights, tokenizer.json) and everyday/ (what make_everyday.py wrote, packages
# included), pairs.tsv.gz and catalogues.tsv.gz. What is there of these takes part too: wheels/
# (Python packages that the other machine lacks), kokoro/ (graph, voices, vocabulary, for which
# make_everyday.py --phonemes has written the symbols), game/, stamps/, unlabelled/ (the fetch_
# scripts' folders), and run/checkpoint.pt, from which training goes on. PICO (22000) and KOKORO
# (12000) are numbers of sentences to speak; Kokoro speaks while training listens, until it ends.
# The model comes out in WORK/results, in pieces of 15 MB, stored in eight bits. INIT (everyday) is
# what a first run starts from, DEVICE is cuda.
set -euo pipefail
python="${PYTHON:-python3}"
root="$(cd "$(dirname "$0")/.." && pwd)"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS=1
case "${1:-}" in
pack)
    exec "$python" -m echostream.training.pieces pack "$3" "$2"/*
    ;;
run)
    pieces="$2" work="$3" minutes="$4"
    shift 4
    ;;
*)
    sed -n '2,/^set/{/^#/p}' "$0" >&2
    exit 2
    ;;
esac
mkdir -p "$work"
# Once unpacked it stays, and what is made there is not made again.
[ -d "$work/everyday" ] || "$python" -m echostream.training.pieces unpack "$pieces" "$work"
if [ -d "$work/wheels" ]; then
    [ -d "$work/site" ] || "$python" -m pip install --quiet --no-index --no-deps \
        --target "$work/site" "$work"/wheels/*.whl
    export PYTHONPATH="$PYTHONPATH:$work/site"
fi

jobs="$(nproc)"
everyday=("$python" "$root/scripts/make_everyday.py" --out "$work/everyday"
    --pairs "$work/pairs.tsv.gz" --catalogues "$work/catalogues.tsv.gz" --train "${KOKORO:-12000}")
"${everyday[@]}" --pico "${PICO:-22000}" --jobs "$jobs"
if [ -d "$work/kokoro" ]; then
    set -m # it and its processes are a group, and end together
    "${everyday[@]}" --kokoro "$work/kokoro" --jobs "$((jobs > 2 ? jobs - 2 : 1))" &
    speaking=$!
    set +m
    trap '{ kill -- "-$speaking" && wait "$speaking"; } 2>/dev/null || true' EXIT
fi

speech=("$work/everyday/pico" "$work/everyday/speech:4")
texts=("$work/everyday/pico/translations.tsv") sounds=()
for folder in game:4 stamps:1; do
    name="${folder%:*}"
    [ -d "$work/$name" ] || continue
    speech+=("$work/$folder") texts+=("$work/$name/translations.tsv")
done
[ ! -d "$work/unlabelled" ] || sounds=(--sounds "$work/unlabelled")
"$python" -m echostream.training.warm_start.train --whisper "$work/whisper" \
    --init "${INIT:-everyday}" --texts "$work/everyday/translations.tsv" \
    --more-texts "${texts[@]}" --speech "${speech[@]}" "${sounds[@]}" --out "$work/run" \
    --minutes "$minutes" --device "${DEVICE:-cuda}" --compile --int8 --save-minutes 1 "$@"
rm -rf "$work/results"
"$python" -m echostream.training.pieces pack "$work/results" "$work/run/model" --megabytes 15
