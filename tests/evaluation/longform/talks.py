"""A talk of ten sentences and runs on it, written as the evaluation leaves them."""

from __future__ import annotations

import json

from echostream.evaluation.runs.run_folder import load_run

SENTENCES = [f"the {a} {b} sees one {c} today" for a, b, c in zip(
    "red blue green old new tall small big fast slow".split(),
    "dog cat bird horse cow fish mouse sheep goat duck".split(),
    "tree house car river road table chair window door lamp".split(), strict=True,
)]  # fmt: skip
HEADER = "talk\tindex\tutterance\tstart_ms\tend_ms\tsrc_text\ttgt_text"


def write_run(folder, said, *, lag_ms=0.0, rate=16000, compute_ms=10.0, speaks=True):
    """A run on one talk: each sentence is written whole, with a second of speech, when it ends."""
    folder.mkdir(parents=True)
    times = [4000.0 * i + 3000 + lag_ms for i in range(len(said))]
    lines = [
        {
            "index": 0, "source_ms": time, "write": True,
            "finished": i + 1 == len(said), "sentence": i, "transcript": "x", "translation": text,
            "samples": rate * speaks, "backlog_ms": 0.0, "compute_ms": {"mt": compute_ms},
        }
        for i, (time, text) in enumerate(zip(times, said, strict=True))
    ]  # fmt: skip
    (folder / "trace.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    entry = {
        "index": 0, "prediction": "wavs/0_pred.wav", "delays": times,
        "elapsed": [time + compute_ms * (i + 1) for i, time in enumerate(times)],
        "durations": [1000.0] * len(said), "reference": " ".join(SENTENCES),
        "source": ["talk_01.wav", "samplerate: 16000"], "source_length": 40000.0,
    }  # fmt: skip
    (folder / "instances.log").write_text(json.dumps(entry) + "\n")
    return load_run(f"{folder.name}={folder}")


def write_sentences_alone(folder, said, *, lag_ms=0.0):
    """The same sentences, one a file of four seconds, spoken from 500 ms on; and their list."""
    folder.mkdir(parents=True)
    rows, lines, entries = [HEADER], [], []
    for i, (text, out) in enumerate(zip(SENTENCES, said, strict=True)):
        name = f"alone_{i:03d}"
        rows.append(f"{name}\t1\tu{i}\t500\t3500\tfuente\t{text}")
        lines.append(
            {
                "index": i, "source_ms": 3500 + lag_ms, "sentence": 0, "translation": out,
                "samples": 8000, "compute_ms": {"mt": 5.0},
            }
        )  # fmt: skip
        entries.append(
            {
                "index": i, "prediction": f"wavs/{i}_pred.wav", "delays": [3500 + lag_ms],
                "elapsed": [3505 + lag_ms], "durations": [500.0], "reference": text,
                "source": [f"{name}.wav"], "source_length": 4000.0,
            }
        )  # fmt: skip
    (folder / "trace.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "instances.log").write_text("".join(json.dumps(e) + "\n" for e in entries))
    (folder / "sentences.tsv").write_text("\n".join(rows) + "\n")
    return load_run(f"{folder.name}={folder}")
