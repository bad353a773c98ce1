#!/usr/bin/env bash
# Trains a voice from aligned speech (docs/howto/train-a-voice.md) and puts it into a folder that speaks.
#
#   scripts/train_voice.sh SPEECH WORK VOICE
#
# SPEECH: folder of aligned speech. WORK: units, checkpoints, reports. VOICE: the folder to write.
# Stopped at any place, the same command goes on from there. PROSODY_UPDATES says how long durations
# and pitch are trained, MINUTES limits the vocoder's training. INIT names the folder of a voice to
# begin with, in its symbols and pitch classes. RETIME names the instances.log of a text agent, whose
# policy's pieces the voice learns to hold until there are more.
set -euo pipefail
speech="$1" work="$2" voice="$3"
python="${PYTHON:-python3}"
here="$(cd "$(dirname "$0")" && pwd)"

[ -f "$work/units/inventory.json" ] ||
    "$python" -m echostream.training.voice.material --speech "$speech" --out "$work/units" \
        ${INIT:+--inventory "$INIT/inventory.json"}
read -r units classes < <("$python" - "$work/units/inventory.json" <<'PYTHON'
import sys
from pathlib import Path

from echostream.voice.folder import read_inventory

inventory = read_inventory(Path(sys.argv[1]))
print(inventory.num_units, inventory.pitch_classes)
PYTHON
)
"$python" -m echostream.training.voice.prosody --speech "$speech" \
    --inventory "$work/units/inventory.json" --out "$work/prosody" \
    ${INIT:+--init-from "$INIT/prosody.safetensors"} \
    ${PROSODY_UPDATES:+--updates "$PROSODY_UPDATES"} \
    ${RETIME:+--retime "$RETIME"}
"$python" "$here/train_vocoder.py" --out "$work/vocoder" \
    --preset "vocos${INIT:+-tune}" ${INIT:+--init-from "$INIT/vocoder.safetensors"} \
    --num-units "$units" --pitch-classes "$classes" \
    --units "$work/units/train.units" --pitch "$work/units/train.f0" --audio "$speech" \
    --valid-units "$work/units/dev.units" --valid-pitch "$work/units/dev.f0" \
    --valid-audio "$speech" --valid-texts "$work/units/dev.tsv" \
    ${MINUTES:+--max-minutes "$MINUTES"}
"$python" -m echostream.training.voice.assemble --inventory "$work/units/inventory.json" \
    --prosody "$work/prosody/prosody.safetensors" --vocoder "$work/vocoder/model.safetensors" \
    --out "$voice"
