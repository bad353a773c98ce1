"""The talk's list of sentences."""

import pytest

from tests.evaluation.longform.talks import HEADER, SENTENCES


@pytest.fixture
def listed(tmp_path):
    rows = [
        f"talk_01\t{i + 1}\tu{i}\t{4000 * i}\t{4000 * i + 3000}\tfuente\t{text}"
        for i, text in enumerate(SENTENCES)
    ]
    path = tmp_path / "sentences.tsv"
    path.write_text("\n".join([HEADER, *rows]) + "\n")
    return path
