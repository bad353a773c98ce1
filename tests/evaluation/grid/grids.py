"""Grid files of scripted systems."""

from __future__ import annotations

from pathlib import Path

import yaml

from tests.evaluation.conftest import Corpus


def grid_content(corpus: Corpus, **changes: object) -> dict[str, object]:
    system = {"agent": "agent.py", "files": [], "trace": True}
    content: dict[str, object] = {
        "output": "results",
        "systems": [
            {"name": "fast", "options": ["--wait", "0.02"], **system},
            {"name": "slow", "options": ["--wait", "0.02", "--pace", "3"], **system},
        ],
        "chunk_ms": [320, 640, 960],
        "test_sets": [
            {"name": "demo", "source": "source.txt", "target": "target.txt", "shard_size": None}
        ],
        "quality_metrics": ["BLEU"],
        "latency_metrics": ["AL", "ATD", "StartOffset", "DiscontinuitySum"],
        "computation_aware": True,
        "target_speech_lang": "en",
        "asr_model": "pocketsphinx",
        "device": "cpu",
    }
    return {**content, **changes}


def write_grid(corpus: Corpus, name: str = "grid.yaml", **changes: object) -> Path:
    path = corpus.folder / name
    path.write_text(yaml.safe_dump(grid_content(corpus, **changes)))
    return path
