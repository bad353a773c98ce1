"""Who computes next, with whom, and whom a fault reaches."""

import queue
import threading
from dataclasses import replace

import numpy as np
import pytest

from echostream.live.protocol import encode_speech
from echostream.live.scheduler import Scheduler, Stream, run_batch
from echostream.session import Session
from echostream.translator.model_stages import ModelStages
from echostream.translator.pipeline import Pipeline
from tests.live.conftest import CHUNK_MS, read_clip

CLIPS = [f"test_00{index:02d}1.flac" for index in range(5)]
CHUNK = 16 * CHUNK_MS
PATIENCE_S = 300


class Idle(Pipeline):
    """Takes chunks in and computes nothing."""

    def take(self, samples, state):
        yield from ()
        return [], replace(state, processed=state.processed + len(samples))


class Listener:
    """A stream with what came of it."""

    def __init__(self, pipeline):
        self.results, self.error, self.news = [], None, queue.Queue()
        self.stream = Stream(Session(pipeline), 16000, on_turn=self.take, on_error=self.fail)

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
        return " ".join(w for r in self.results for d in r.decisions for w in d.translation)

    @property
    def waveform(self):
        return np.concatenate([d.waveform for r in self.results for d in r.decisions])


def play(listeners, clips, scheduler=None):
    """All clips to a scheduler that has not started; returns when every stream is over."""
    scheduler = scheduler or Scheduler()
    for listener, samples in zip(listeners, clips, strict=True):
        scheduler.add(listener.stream)
        scheduler.feed(listener.stream, samples, final=True)
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
    listen = ModelStages._listen
    monkeypatch.setattr(
        ModelStages,
        "_listen",
        lambda stages, features, *rest: (
            sizes.append(len(features)) or listen(stages, features, *rest)
        ),
    )
    pipeline = Pipeline(shipped, chunk_ms=CHUNK_MS)
    listeners = [Listener(pipeline) for _ in clips]
    assert play(listeners, clips) == ["done"] * len(clips)
    assert max(sizes) == len(clips)
    for listener, samples in zip(listeners, clips, strict=True):
        check(listener, samples, expected)
        assert listener.results[0].batch == len(clips)
        assert all(result.lag_ms >= result.compute_ms > 0 for result in listener.results)


def test_batches_are_bounded_and_keep_pipelines_apart(shipped, clips):
    batches, pipelines = [], [Idle(shipped), Idle(shipped)]

    def run(streams):
        batches.append([stream.session.pipeline for stream in streams])
        return run_batch(streams)

    listeners = [Listener(pipelines[index % 2]) for index in range(12)]
    play(listeners, clips[:1] * 12, Scheduler(run, max_batch=4))
    assert all(len(batch) <= 4 and len(set(map(id, batch))) == 1 for batch in batches)
    assert max(map(len, batches)) == 4


def test_workers_share_out_what_is_ready(shipped):
    """The first batches wait for each other: they can only go on if two workers have one."""
    together, first, sizes = threading.Barrier(2), threading.Semaphore(2), []

    def run(streams):
        if first.acquire(blocking=False):
            sizes.append(len(streams))
            together.wait(PATIENCE_S)
        return run_batch(streams)

    pipeline = Idle(shipped)
    listeners = [Listener(pipeline) for _ in range(6)]
    for listener in listeners:
        listener.stream.held = True
    scheduler = Scheduler(run, workers=2)
    scheduler.start()
    for listener in listeners:
        scheduler.add(listener.stream)
        scheduler.feed(listener.stream, np.zeros(3 * CHUNK, np.float32), final=True)
    with scheduler._wake:  # all of them at once
        for listener in listeners:
            scheduler.hold(listener.stream, False)
    assert [listener.wait() for listener in listeners] == ["done"] * 6
    scheduler.close()
    assert all(len(listener.results) == 3 for listener in listeners)
    assert 1 <= min(sizes) and sum(sizes) <= 6


def test_who_sends_faster_than_live_waits_behind_the_others(shipped):
    order = []

    def run(streams):
        order.extend(streams)
        return run_batch(streams)

    hasty, *live = (Listener(Idle(shipped)) for _ in range(4))
    scheduler = Scheduler(run)
    scheduler.add(hasty.stream)
    scheduler.feed(hasty.stream, np.zeros(50 * CHUNK, np.float32))
    for listener in live:
        scheduler.add(listener.stream)
        scheduler.feed(listener.stream, np.zeros(CHUNK, np.float32))
    for listener in (hasty, *live):
        scheduler.feed(listener.stream, np.zeros(0, np.float32), final=True)
    scheduler.start()
    for listener in (hasty, *live):
        listener.wait()
    scheduler.close()
    # The hasty one's first chunk came first; its second is due half a chunk later.
    firsts = [order.index(listener.stream) for listener in live]
    assert order[0] is hasty.stream and firsts == [1, 2, 3]
    assert order.count(hasty.stream) == 50


def test_a_fault_in_a_batch_stays_with_its_stream(shipped, expected, clips):
    faults = {len(clips[1]): 2 * CHUNK, len(clips[3]): 0}

    class Breaking(Pipeline):
        """Fails at one clip's third chunk, and at another one's first."""

        def take(self, samples, state):
            if state.processed >= faults.get(state.received, np.inf):
                raise RuntimeError(f"broken after {state.processed} samples")
            return (yield from super().take(samples, state))

    pipeline = Breaking(shipped, chunk_ms=CHUNK_MS)
    listeners = [Listener(pipeline) for _ in range(4)]
    said = play(listeners, clips[:4])
    assert said == ["done", "failed", "done", "failed"]
    for index in (0, 2):
        check(listeners[index], clips[index], expected)
    assert len(listeners[1].results) == 2 and not listeners[3].results
    assert "broken after 0 samples" in str(listeners[3].error)


def test_streams_that_cannot_listen_together_listen_alone(shipped, expected, clips, monkeypatch):
    listen = ModelStages._listen

    def fail(stages, features, *rest):
        if len(features) > 1:
            raise RuntimeError("out of memory")
        return listen(stages, features, *rest)

    monkeypatch.setattr(ModelStages, "_listen", fail)
    pipeline = Pipeline(shipped, chunk_ms=CHUNK_MS)
    listeners = [Listener(pipeline) for _ in range(2)]
    assert play(listeners, clips[3:5]) == ["done", "done"]
    for listener, samples in zip(listeners, clips[3:5], strict=True):
        check(listener, samples, expected)


def test_a_batch_that_breaks_down_ends_its_streams_and_no_other(shipped):
    broken, whole = Idle(shipped), Idle(shipped)

    def run(streams):
        if streams[0].session.pipeline is broken:
            raise RuntimeError("the batch broke down")
        return run_batch(streams)

    scheduler = Scheduler(run)
    bad = [Listener(broken) for _ in range(2)]
    good = [Listener(whole) for _ in range(2)]
    said = play([*bad, *good], [np.zeros(3 * CHUNK, np.float32)] * 4, scheduler)
    assert said == ["failed", "failed", "done", "done"]
    assert [len(listener.results) for listener in good] == [3, 3]
