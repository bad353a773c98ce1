#!/usr/bin/env bash
# Run two systems over the same speech at several chunk sizes.
#
#   bash scripts/side_by_side.sh MODEL_A MODEL_B SOURCE TARGET [OUTPUT_DIR]
#
# MODEL_A and MODEL_B are model directories, SOURCE a list of sound files, TARGET a file with one
# reference per line. A model with StreamSpeech's encoder runs under the StreamSpeech agents, any
# other under the EchoStream agents. Leaves OUTPUT_DIR/MODEL/chunk-MS (default: outputs/side_by_side)
# as `echostream compare` reads them. Environment:
#
#   CHUNKS_MS="320 640 960 2560"   chunk sizes
#   TASK=s2st                      s2st, s2tt or asr
#   OPTIONS_A="" OPTIONS_B=""      more agent options, e.g. OPTIONS_A=--recompute
#   METRICS="AL LAAL ATD StartOffset EndOffset NumChunks"
#   QUALITY=ASR_BLEU               for s2st, BLEU for s2tt and asr
#
# Latency is reported with and without computation time.
set -euo pipefail
if [ $# -lt 4 ] || [ $# -gt 5 ]; then
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" >&2
    exit 2
fi
models=("$(realpath "$1")" "$(realpath "$2")")
source_list="$(realpath "$3")"
target="$(realpath "$4")"
output="$(realpath -m "${5:-outputs/side_by_side}")"
options=("${OPTIONS_A:-}" "${OPTIONS_B:-}")
task="${TASK:-s2st}"
quality=BLEU
if [ "$task" = s2st ]; then
    quality=ASR_BLEU
fi
names=("$(basename "${models[0]}")" "$(basename "${models[1]}")")
if [ "${names[0]}" = "${names[1]}" ]; then
    names=("${names[0]}-a" "${names[1]}-b")
fi
# A list may hold paths relative to where it is used from.
where="$PWD"
cd "$(dirname "$0")/.."
repository="$PWD"
set --
source scripts/setup.sh asr
cd "$where"

for index in 0 1; do
    family=echostream
    if grep -q "kind: chunk_conformer" "${models[$index]}/config.yaml"; then
        family=streamspeech
    fi
    for chunk_ms in ${CHUNKS_MS:-320 640 960 2560}; do
        folder="$output/${names[$index]}/chunk-$chunk_ms"
        echo "== ${names[$index]}, $chunk_ms ms: $folder"
        # shellcheck disable=SC2086  # options are words
        simuleval \
            --agent "$repository/agents/${family}_$task.py" \
            --model-dir "${models[$index]}" \
            --source "$source_list" \
            --target "$target" \
            --output "$folder" \
            --trace "$folder/trace.jsonl" \
            --source-segment-size "$chunk_ms" \
            --latency-metrics ${METRICS:-AL LAAL ATD StartOffset EndOffset NumChunks} \
            --computation-aware \
            --quality-metrics ${QUALITY:-$quality} \
            ${options[$index]}
    done
done
echo "compare with: echostream compare $output/*/chunk-* --output $output/comparison"
