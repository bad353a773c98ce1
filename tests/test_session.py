"""A session joins what a stream's decisions brought, for any pipeline."""

import json

import numpy as np
import pytest

from echostream.config import EndpointConfig
from echostream.session import Session, TraceWriter, advance_sessions
from echostream.synthetic import synthetic_clip
from echostream.translator.pipeline import Pipeline
from tests.streams import push, total

RATE = 16000


@pytest.fixture(scope="module")
def clip():
    return synthetic_clip(2.9, RATE, seed=3)


@pytest.mark.parametrize("method", ["off", "pause"])
def test_a_session_is_the_pipeline_with_a_memory(system, clip, method):
    endpoint = EndpointConfig(method, endpoint_ms=80, min_tokens=1)
    pipeline = Pipeline(system, endpoint=endpoint)
    outputs, _ = push(pipeline, clip, RATE, 5000)
    session, told = Session(pipeline), []
    assert session.received == 0 and not session.finished
    for start in range(0, len(clip), 5000):
        told += session.push(clip[start : start + 5000], RATE, final=start + 5000 >= len(clip))
    expected = total(outputs)
    assert total(told) == expected
    assert session.transcript == expected["transcript"]
    assert session.translation == expected["translation"]
    assert session.units == expected["units"]
    assert session.samples_written == sum(expected["samples"])
    assert session.received == len(clip) and session.finished
    assert len(session.sentences) == 1 + max(o.sentence for o in outputs)
    assert (len(session.sentences) > 1) == (method == "pause")
    assert all(sentence.ended for sentence in session.sentences)
    vocabulary = system.target_vocabulary
    for sentence in session.sentences:
        assert " ".join(sentence.translation) == vocabulary.decode(sentence.mt)


def test_a_trace_holds_a_line_per_decision(system, clip, tmp_path):
    trace = TraceWriter(tmp_path / "deep" / "trace.jsonl")
    endpoint = EndpointConfig("pause", endpoint_ms=80, min_tokens=1)
    session = Session(Pipeline(system, endpoint=endpoint), index=4, trace=trace)
    outputs = session.push(clip, RATE, final=True)
    lines = [json.loads(line) for line in trace.path.read_text().splitlines()]
    assert len(lines) == len(outputs)
    assert {line["index"] for line in lines} == {4}
    assert [line["sentence"] for line in lines] == [o.sentence for o in outputs]
    assert [line["samples"] for line in lines] == [len(o.waveform) for o in outputs]
    assert [line["finished"] for line in lines] == [False] * (len(lines) - 1) + [True]
    last = {line["sentence"]: line for line in lines}
    for index, sentence in enumerate(session.sentences):
        assert last[index]["mt"] == sentence.mt and last[index]["units"] == sentence.units
        assert last[index]["translation"] == " ".join(sentence.translation)


def test_a_stream_without_end_need_not_keep_tokens(system, clip, tmp_path):
    """What a session holds of a sentence that has ended is its words; all else is in the trace."""
    endpoint = EndpointConfig("pause", endpoint_ms=80, min_tokens=1)
    pipeline = Pipeline(system, endpoint=endpoint)
    traces = [TraceWriter(tmp_path / name) for name in ("all", "words")]
    whole = Session(pipeline, trace=traces[0])
    lean = Session(pipeline, trace=traces[1], keep_tokens=False)
    for start in range(0, len(clip), 5000):
        told = lean.push(clip[start : start + 5000], RATE, final=start + 5000 >= len(clip))
        assert total(told) == total(
            whole.push(clip[start : start + 5000], RATE, final=start + 5000 >= len(clip))
        )
        for sentence in lean.sentences[:-1]:
            assert not (sentence.asr or sentence.st or sentence.mt or sentence.units)
            assert not (sentence.asr_tail or sentence.st_tail)
    assert len(lean.sentences) > 1 and whole.units and not lean.units
    assert lean.translation == whole.translation and lean.transcript == whole.transcript
    assert lean.samples_written == whole.samples_written
    written = [
        [{**json.loads(line), "compute_ms": None} for line in trace.path.open()] for trace in traces
    ]
    assert written[0] == written[1]


def test_a_new_trace_begins_anew(tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_text("old\n")
    TraceWriter(path)
    assert path.read_text() == ""


def test_nothing_is_taken_in_after_the_end(system, clip):
    session = Session(Pipeline(system))
    session.push(clip, RATE, final=True)
    with pytest.raises(ValueError, match="this stream has ended"):
        session.push(np.zeros(10, dtype=np.float32), RATE)


def test_what_is_fed_while_a_session_advances_is_not_lost(system, clip):
    """Whoever is done first, the other one is fed while it is still on its way."""
    pipeline = Pipeline(system)
    expected = total(push(pipeline, clip, RATE, len(clip))[0])
    sessions, told = [Session(pipeline), Session(pipeline)], [[], []]
    for session in sessions:
        session.feed(clip[:9000], RATE)
    first = True
    for index, result in advance_sessions(sessions):
        told[index] += result
        if first:
            sessions[1 - index].feed(clip[9000:], RATE, final=True)
            late, first = 1 - index, False
    assert sessions[late].received == len(clip) and not sessions[late].finished
    assert sessions[late].ready
    told[late] += sessions[late].advance()
    assert total(told[late]) == expected and sessions[late].finished


@pytest.mark.parametrize("length", [3 * 5120, 3 * 5120 + 100])
def test_a_session_can_advance_chunk_by_chunk(system, clip, length):
    pipeline = Pipeline(system)
    expected = total(push(pipeline, clip[:length], RATE, length)[0])
    session, told, turns = Session(pipeline), [], 0
    assert not session.ready
    session.feed(clip[:length], RATE, final=True)
    while session.ready:
        ((_, decisions),) = advance_sessions([session], chunks=1)
        told, turns = told + decisions, turns + 1
        assert session.processed == min(turns * 5120, length)
    # The end of a stream is taken in with its last whole chunk, or with what is left.
    assert turns == -(-length // 5120) and session.finished
    assert total(told) == expected
