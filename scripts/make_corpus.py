"""Make the corpus echo-mini: texts, speech, features, units and manifests.

    python scripts/make_corpus.py --out DIR             everything, from the committed texts
    python scripts/make_corpus.py --out DIR --talks     talks for evaluating on continuous speech
    python scripts/make_corpus.py --write-test-audio    the committed test utterances
    python scripts/make_corpus.py --write-talk          the committed talk of the demonstration

Finished parts are kept, so an interrupted run goes on where it stopped.
"""

import sys

from echostream.training.corpus.make_corpus import main

if __name__ == "__main__":
    sys.exit(main())
