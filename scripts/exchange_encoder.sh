#!/usr/bin/env bash
# Puts a streaming Emformer in the place of a StreamSpeech's encoder (docs/exchange.md).
#
#   scripts/exchange_encoder.sh MODEL RECORDINGS WORK [LABELLED]
#
# MODEL: directory or name of a model with a chunk Conformer. RECORDINGS: folder or list of source
# speech, without any text. WORK: data, checkpoints and, in the end, WORK/model. LABELLED: folder of
# manifests (fbank2unit) in the model's vocabularies and normalisation, to tune all parts together.
#
# UPDATES (3000) and TUNING (600) are numbers of updates; FLAGS are further ones of fairseq-train, for
# both trainings (on a GPU: FLAGS="--autocast --max-tokens 40000 --num-workers 8"). Stopped at any place,
# the same command goes on from there.
set -euo pipefail
model="$1" recordings="$2" work="$3" labelled="${4:-}"
updates="${UPDATES:-3000}" tuning="${TUNING:-600}"
python="${PYTHON:-python3}"
plugin="$("$python" -m echostream.fairseq_plugin)"
read -r units lag stride device < <("$python" - "$model" <<'PYTHON'
import sys

import torch

from echostream.checkpoint import CONFIG_FILE
from echostream.config import load_config
from echostream.hub.names import resolve_model
from echostream.precision import computes_bfloat16

config = load_config(resolve_model(sys.argv[1]) / CONFIG_FILE)
device = "" if torch.cuda.is_available() else "--cpu --num-workers 0"
if device and computes_bfloat16(torch.device("cpu")):
    device += " --autocast"
print(config.num_units, config.policy.lagging_k1, config.policy.stride_n, device)
PYTHON
)

train() { # DATA SAVE UPDATES RATE flags...
    local data="$1" save="$2" number="$3" rate="$4"
    shift 4
    "$python" -m fairseq_cli.train "$data" --user-dir "$plugin" --task echostream \
        --criterion echostream --arch echostream --dropout 0 --target-code-size "$units" \
        --multichunk --k1 "$lag" --n1 "$stride" --distill "$model" \
        --stream-sentences 10 --stream-frames 1600 --max-tokens 8000 \
        --optimizer adam --adam-betas "(0.9,0.98)" --clip-norm 1.0 --lr "$rate" --lr-scheduler \
        polynomial_decay --warmup-updates "$((number / 20))" \
        --total-num-update "$number" --max-update "$number" --end-learning-rate 0.00001 \
        --valid-subset dev --save-dir "$save" --save-interval-updates 500 \
        --keep-interval-updates 1 --no-epoch-checkpoints --seed 1 --log-format json \
        --log-interval 50 $device "$@" ${FLAGS:-}
}

"$python" -m echostream.training.audio_folder \
    --model-dir "$model" --audio "$recordings" --out "$work/data"
train "$work/data/fbank2unit" "$work/distilled" "$updates" 0.001 \
    --exchange-encoder "$model" --missing-targets mask --distill-layers "${LAYERS:-}"
last="$work/distilled/checkpoint_last.pt"
"$python" -m echostream.cli convert --checkpoint "$last" --vocoder-from "$model" \
    --out "$work/distilled/model"
if [ -n "$labelled" ]; then
    train "$labelled" "$work/tuned" "$tuning" 0.0006 \
        --continue-from "$work/distilled/model" --unit-interval 4
    last="$work/tuned/checkpoint_last.pt"
fi
"$python" -m echostream.cli convert --checkpoint "$last" --vocoder-from "$model" --out "$work/model"
