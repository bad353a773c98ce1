"""Prepare CVSS-C and CoVoST 2 for training, in StreamSpeech's folders.

    python scripts/prepare_cvss.py --covost-root COVOST --cvss-root CVSS --src-lang es \
        --hubert MHUBERT --kmeans KMEANS --device cuda --jobs 16

Finished parts are kept, so an interrupted run goes on where it stopped.
"""

import sys

from echostream.training.preparation.prepare_cvss import main

if __name__ == "__main__":
    sys.exit(main())
