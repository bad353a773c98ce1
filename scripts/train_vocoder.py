"""Train a CodeHiFiGAN vocoder on speech and its units; run it again to resume.

    python scripts/train_vocoder.py --out DIR/vocoder --preset mini \
        --units DIR/train.km200 --audio DIR/audio/target/train \
        --valid-units DIR/dev.km200 --valid-audio DIR/audio/target/dev \
        --valid-texts DIR/fbank2unit/dev.tsv
"""

import sys

from echostream.training.vocoder.train_vocoder import main

if __name__ == "__main__":
    sys.exit(main())
