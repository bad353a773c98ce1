"""Where ASR-BLEU goes between real target speech and the system as heard, one cause at a time.

    python scripts/speech_ablation.py --model-dir echostream/assets/echo_mini/echostream \
        --units DIR/dev.km200 --audio DIR/audio/target/dev --sources DIR/audio/source/dev \
        --texts DIR/fbank2unit/dev.tsv --out DIR/ablation --jobs 2
"""

import sys

from echostream.training.ablation.command import main

if __name__ == "__main__":
    sys.exit(main())
