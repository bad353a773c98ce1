"""What a recogniser makes of real target speech, and of the same remade from its units.

    python scripts/vocoder_topline.py --model-dir echostream/assets/echo_mini/echostream \
        --units DIR/test.km200 --audio DIR/audio/target/test --texts DIR/fbank2unit/test.tsv
"""

import sys

from echostream.training.vocoder.topline import main

if __name__ == "__main__":
    sys.exit(main())
