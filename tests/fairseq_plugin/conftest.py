"""Fixtures of the training tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fairseq_plugin.corpus import write_corpus


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A data folder of 8 utterances."""
    return write_corpus(tmp_path / "corpus")
