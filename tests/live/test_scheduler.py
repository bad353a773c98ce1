"""Who computes next, with whom, and whom a fault reaches."""

import queue

import numpy as np
import pytest

from echostream import pipeline_batch
from echostream.live.protocol import encode_speech
from echostream.live.scheduler import Scheduler, Stream
from echostream.live.translator import StreamTranslator
from echostream.translator.pipeline import Pipeline
from tests.live.conftest import CHUNK_MS, read_clip

CLIPS = [f"test_00{index:02d}1.flac" for index in range(5)]
CHUNK = 16 * CHUNK_MS
PATIENCE_S = 300


class Listener:
    """A stream with what came of it."""

    def __init__(self, make_translator, batch_key=0):
        self.results, self.error, self.news = [], None, queue.Queue()
        self.stream = Stream(
            make_translator,
            batch_key=batch_key,
            chunk=CHUNK,
            sample_rate=16000,
            on_result=self.take,
            on_error=self.fail,
        )

    def take(self, result):
        self.results.append(result)
        if result.final:
            self.news.put("done")

    def fail(self, error):
        self.error = error
        self.news.put("failed")

    def wait(self):
        return self.news.get(timeout=PATIENCE_S)

    @property
    def translation(self):
        return " ".join(w for r in self.results for u in r.updates for w in u.translation)

    @property
    def waveform(self):
        return np.concatenate([u.waveform for r in self.results for u in r.updates])


def play(listeners, clips, scheduler=None):
    """All clips to a scheduler that has not started; returns when every stream is over."""
    scheduler = scheduler or Scheduler()
    for listener, samples in zip(listeners, clips, strict=True):
        scheduler.add(listener.stream)
        scheduler.feed(listener.stream, samples)
        scheduler.end(listener.stream)
    scheduler.start()
    try:
        return [listener.wait() for listener in listeners]
    finally:
        scheduler.close()


def check(listener, samples, expected):
    """Equal to a separate run: words exactly, samples to 1e-4 of full scale."""
    _, translation, speech = expected(samples, 16000)
    assert listener.error is None
    assert listener.translation == translation
    heard = np.frombuffer(encode_speech(listener.waveform), "<i2").astype(int)
    wanted = np.frombuffer(speech, "<i2")
    assert len(heard) == len(wanted)
    assert np.abs(heard - wanted).max(initial=0) <= 4


@pytest.fixture(scope="module")
def clips():
    return [read_clip(name)[0] for name in CLIPS]


def test_streams_that_are_ready_together_form_a_batch(shipped, expected, clips, monkeypatch):
    sizes = []
    listen = pipeline_batch.listen
    monkeypatch.setattr(
        pipeline_batch,
        "listen",
        lambda model, features, *rest, **options: (
            sizes.append(len(features)) or listen(model, features, *rest, **options)
        ),
    )
    pipeline = Pipeline(shipped, chunk_ms=CHUNK_MS)
    listeners = [Listener(lambda: StreamTranslator(pipeline)) for _ in clips]
    assert play(listeners, clips) == ["done"] * len(clips)
    assert max(sizes) == len(clips)
    for listener, samples in zip(listeners, clips, strict=True):
        check(listener, samples, expected)
        assert listener.results[0].batch == len(clips)
        assert all(result.lag_ms >= result.compute_ms > 0 for result in listener.results)


def test_batches_are_bounded_and_keep_pipelines_apart(clips):
    batches = []

    def run(jobs):
        batches.append([job.stream.batch_key for job in jobs])
        return [(job, []) for job in jobs]

    listeners = [Listener(lambda: None, batch_key=index % 2) for index in range(12)]
    play(listeners, clips[:1] * 12, Scheduler(run, max_batch=4))
    assert all(len(batch) <= 4 and len(set(batch)) == 1 for batch in batches)
    assert max(map(len, batches)) == 4


def test_who_sends_faster_than_live_waits_behind_the_others():
    order = []

    def run(jobs):
        order.extend(job.stream for job in jobs)
        return [(job, []) for job in jobs]

    hasty, *live = (Listener(lambda: None, batch_key=index) for index in range(4))
    scheduler = Scheduler(run)
    scheduler.add(hasty.stream)
    scheduler.feed(hasty.stream, np.zeros(50 * CHUNK, np.float32))
    for listener in live:
        scheduler.add(listener.stream)
        scheduler.feed(listener.stream, np.zeros(CHUNK, np.float32))
    for listener in (hasty, *live):
        scheduler.end(listener.stream)
    scheduler.start()
    for listener in (hasty, *live):
        listener.wait()
    scheduler.close()
    # The hasty one's first chunk came first; its second is due half a chunk later.
    firsts = [order.index(listener.stream) for listener in live]
    assert order[0] is hasty.stream and firsts == [1, 2, 3]
    assert order.count(hasty.stream) == 50


def test_a_fault_in_a_batch_stays_with_its_stream(shipped, expected, clips):
    pipeline = Pipeline(shipped, chunk_ms=CHUNK_MS)

    def broken():
        raise RuntimeError("no translator")

    class Breaking(StreamTranslator):
        """Its state is unusable from the third chunk on."""

        def updates(self, outputs):
            if self.state.processed >= 2 * CHUNK:
                self.state = None
            return super().updates(outputs) if self.state else []

    kinds = [StreamTranslator, Breaking, StreamTranslator]
    listeners = [Listener(lambda kind=kind: kind(pipeline)) for kind in kinds]
    listeners.append(Listener(broken))
    said = play(listeners, clips[:4])
    assert said == ["done", "failed", "done", "failed"]
    for index in (0, 2):
        check(listeners[index], clips[index], expected)
    assert "no translator" in str(listeners[3].error)


def test_streams_that_cannot_listen_together_listen_alone(shipped, expected, clips, monkeypatch):
    def fail(*given, **options):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(pipeline_batch, "listen", fail)
    pipeline = Pipeline(shipped, chunk_ms=CHUNK_MS)
    listeners = [Listener(lambda: StreamTranslator(pipeline)) for _ in range(2)]
    assert play(listeners, clips[3:5]) == ["done", "done"]
    for listener, samples in zip(listeners, clips[3:5], strict=True):
        check(listener, samples, expected)


def test_a_batch_that_breaks_down_ends_its_streams_and_no_other():
    def run(jobs):
        for job in jobs:
            if job.stream.batch_key == "bad":
                raise RuntimeError("the batch broke down")
            yield job, []

    scheduler = Scheduler(run)
    bad = [Listener(lambda: None, batch_key="bad") for _ in range(2)]
    good = [Listener(lambda: None, batch_key="good") for _ in range(2)]
    said = play([*bad, *good], [np.zeros(3 * CHUNK, np.float32)] * 4, scheduler)
    assert said == ["failed", "failed", "done", "done"]
    assert [len(listener.results) for listener in good] == [3, 3]
