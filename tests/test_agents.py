"""The SimulEval agents: under the command, by class and by directory, and as objects."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pytest
import soundfile
import torch
from simuleval import options
from simuleval.data.segments import EmptySegment, SpeechSegment

from echostream.agents.base import normalize_device
from echostream.agents.echostream_asr import EchoStreamASRAgent
from echostream.agents.echostream_s2st import EchoStreamS2STAgent
from echostream.agents.echostream_s2tt import EchoStreamS2TTAgent
from echostream.synthetic import synthetic_clip
from echostream.translator.pipeline import Pipeline
from tests.forks import Forked

ROOT = Path(__file__).resolve().parents[1]
AGENTS = {"s2st": EchoStreamS2STAgent, "s2tt": EchoStreamS2TTAgent, "asr": EchoStreamASRAgent}
RATE = 16000


def make(task, model_dir, *flags):
    parser = options.general_parser()
    options.add_dataloader_args(parser, [])
    agent = AGENTS[task]
    agent.add_args(parser)
    args, _ = parser.parse_known_args(
        ["--model-dir", str(model_dir), "--source-segment-size", "320", *flags]
    )
    return agent.from_args(args)


def run(agent, samples, rate=RATE, states=None, size=5120):
    """Play an utterance as SimulEval does; returns the output segments."""
    outputs = []
    for start in range(0, max(len(samples), 1), size):
        segment = SpeechSegment(
            content=samples[start : start + size].tolist(),
            sample_rate=rate,
            finished=start + size >= len(samples),
            tgt_lang=None,
        )
        outputs.append(agent.pushpop(segment, states))
    return outputs


def speech(outputs):
    return [s for output in outputs if not output.is_empty for s in output.content]


def text(outputs):
    return " ".join(o.content for o in outputs if not o.is_empty and o.content)


@pytest.fixture(scope="module")
def clip():
    return synthetic_clip(2.5, RATE, seed=3)


def test_agent_says_what_the_pipeline_says(model_dir, system, clip):
    outputs, _ = Pipeline(system).step(clip, RATE, Pipeline(system).init_state(), final=True)
    expected = np.concatenate([output.waveform for output in outputs])
    agent = make("s2st", model_dir)
    agent.to("cpu")
    agent.reset()
    segments = run(agent, clip)
    np.testing.assert_allclose(speech(segments), expected, atol=1e-5)
    assert segments[-1].finished and segments[-1].sample_rate == 16000
    assert not any(segment.finished for segment in segments[:-1])
    words = [w for output in outputs for w in output.translation]
    assert text(run(make("s2tt", model_dir), clip)) == " ".join(words)
    words = [w for output in outputs for w in output.transcript]
    assert text(run(make("asr", model_dir), clip)) == " ".join(words)


def test_one_agent_serves_several_streams(model_dir, clip):
    agent = make("s2st", model_dir)
    expected = speech(run(agent, clip))
    first, second = agent.build_states(), agent.build_states()
    other = synthetic_clip(2.5, RATE, seed=8)
    mixed = []
    for start in range(0, len(clip), 5120):
        last = start + 5120 >= len(clip)
        for samples, states, sink in ((clip, first, mixed), (other, second, [])):
            piece = samples[start : start + 5120].tolist()
            segment = SpeechSegment(content=piece, sample_rate=RATE, finished=last, tgt_lang=None)
            sink.append(agent.pushpop(segment, states))
    np.testing.assert_allclose(speech(mixed), expected, atol=1e-6)


@pytest.mark.parametrize("task", sorted(AGENTS))
def test_nothing_is_left_for_the_next_utterance(model_dir, clip, task):
    agent = make(task, model_dir)
    read = speech if task == "s2st" else text
    expected = read(run(agent, clip))
    agent.reset()
    run(agent, clip[:9000])  # finished early
    agent.reset()
    for output in run(agent, clip[:0]):  # empty
        assert output.finished and not output.content
    agent.reset()
    agent.pushpop(
        SpeechSegment(content=clip[:7000].tolist(), sample_rate=RATE, tgt_lang=None)
    )  # abandoned
    agent.push(SpeechSegment(content=clip[:99].tolist(), sample_rate=RATE, tgt_lang=None))
    agent.reset()  # with samples that no policy call has seen
    assert read(run(agent, clip)) == expected
    # A caller that forgets to reset after a finished utterance still starts afresh.
    assert read(run(agent, clip)) == expected


def test_source_that_ends_with_an_empty_segment(model_dir, clip):
    agent = make("s2st", model_dir)
    agent.pushpop(SpeechSegment(content=clip.tolist(), sample_rate=RATE, tgt_lang=None))
    last = agent.pushpop(EmptySegment(finished=True))
    assert last.finished and agent.states.target_finished
    assert agent.pop().finished


def test_trace(model_dir, clip, tmp_path):
    agent = make("s2st", model_dir, "--trace", str(tmp_path / "out" / "trace.jsonl"))
    samples = []
    for _ in range(2):
        agent.reset()
        samples.append(speech(run(agent, clip)))
    lines = [json.loads(line) for line in (tmp_path / "out" / "trace.jsonl").open()]
    assert [line["index"] for line in lines] == sorted(line["index"] for line in lines)
    assert {line["index"] for line in lines} == {0, 1}
    first, second = ([line for line in lines if line["index"] == n] for n in (0, 1))
    for line in (*first, *second):
        line.pop("compute_ms" if line["index"] else "index")
    first = [dict(line) for line in first]
    timings = [line.pop("compute_ms") for line in first]
    assert [dict(line, index=0) for line in first] == [dict(line, index=0) for line in second]
    assert [line["source_ms"] for line in first] == [320.0 * n for n in range(1, 8)] + [2500.0]
    assert sum(line["samples"] for line in first) == len(samples[0])
    assert first[-1]["finished"] and not first[0]["finished"]
    assert {"features", "encoder", "ctc"} <= set(timings[0])
    for before, after in zip(first[:-1], first[1:], strict=True):
        for key in ("asr", "st", "mt", "units"):
            assert after[key][: len(before[key])] == before[key], "written tokens never change"
        assert after["write"] == (after["samples"] > 0 or after["mt"] != before["mt"])


def test_streams_of_one_agent_have_numbers_of_their_own(model_dir, clip, tmp_path):
    agent = make("asr", model_dir, "--trace", str(tmp_path / "trace.jsonl"))
    for states in (agent.build_states(), agent.build_states()):
        run(agent, clip, states=states)
    lines = [json.loads(line) for line in (tmp_path / "trace.jsonl").open()]
    assert sorted({line["index"] for line in lines}) == [0, 1]


def test_mixed_pushes_before_one_policy_call(model_dir, clip):
    agent = make("s2st", model_dir)
    expected = speech(run(agent, clip, size=len(clip)))
    agent.reset()
    pcm = (clip[:9000] * 32768).astype(np.int16)
    agent.push(SpeechSegment(content=pcm, sample_rate=RATE, tgt_lang=None))
    rest = clip[9000:].tolist()
    last = SpeechSegment(content=rest, sample_rate=RATE, finished=True, tgt_lang=None)
    np.testing.assert_allclose(len(speech([agent.pushpop(last)])), len(expected))
    agent.reset()
    agent.push(SpeechSegment(content=clip.tolist(), sample_rate=8000, tgt_lang=None))
    with pytest.raises(ValueError, match="8000 Hz before, 16000 Hz now"):
        agent.push(SpeechSegment(content=clip.tolist(), sample_rate=RATE, tgt_lang=None))


def test_running_text_is_printed(model_dir, clip, capsys):
    run(make("s2tt", model_dir, "--output-asr-translation"), clip)
    printed = capsys.readouterr().out
    assert "Streaming ASR:" in printed and "Simultaneous translation:" in printed


def test_flags_overlay_the_model_directory(model_dir, system):
    flags = ["--stride-n", "3", "--whole-word", "on", "--set", "policy.lagging_k1=2"]
    flags += ["--endpoint", "pause", "--max-backlog-ms", "900", "--min-piece-ms", "640"]
    pipeline = make("s2st", model_dir, *flags).pipeline
    config = system.config
    assert pipeline.policy_config == replace(
        config.policy, lagging_k1=2, stride_n=3, whole_word=True
    )
    assert pipeline.endpoints.config == replace(config.endpoint, method="pause")
    assert pipeline.backlog_config == replace(config.backlog, max_ms=900)
    assert pipeline.speech_config == replace(config.speech, min_piece_ms=640)
    assert make("asr", model_dir).pipeline.policy_config == config.policy


def test_threads_suit_the_model_or_are_what_was_asked_for(model_dir, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    try:
        make("asr", model_dir, "--threads", "2")
        assert torch.get_num_threads() == 2
        make("asr", model_dir)
        assert torch.get_num_threads() == 1, "the model is small"
    finally:
        torch.set_num_threads(1)


def test_alignatt_is_selectable(model_dir, system, clip):
    policy = replace(system.config.policy, name="alignatt", attention_frames=3, attention_layer=1)
    pipeline = Pipeline(system, policy=policy, task="s2tt")
    outputs, _ = pipeline.step(clip, RATE, pipeline.init_state(), final=True)
    flags = ["--policy", "alignatt", "--attention-frames", "3", "--attention-layer", "1"]
    words = [w for output in outputs for w in output.translation]
    assert words and text(run(make("s2tt", model_dir, *flags), clip)) == " ".join(words)


def test_devices():
    assert normalize_device("cpu") == "cpu" and normalize_device(None) == "cpu"
    if torch.cuda.is_available():
        assert normalize_device("gpu") == "cuda"
    else:
        with pytest.raises(ValueError, match="'gpu' was asked for, but 0 CUDA devices"):
            normalize_device("gpu")
    for name in ("gpux", "meta"):
        with pytest.raises(ValueError, match=f"must be cpu, cuda or cuda:N, got '{name}'"):
            normalize_device(name)


def test_half_precision_runs(model_dir, clip):
    agent = make("s2st", model_dir, "--dtype", "fp16")
    agent.to("cpu", fp16=True)
    assert run(agent, clip)[-1].finished


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two wavs (one stereo at 22.05 kHz) with SimulEval lists."""
    folder = tmp_path_factory.mktemp("data")
    soundfile.write(folder / "a.wav", synthetic_clip(2.2, 48000, seed=1), 48000)
    stereo = np.stack([synthetic_clip(1.5, 22050, seed=2)] * 2, axis=1)
    soundfile.write(folder / "b.wav", stereo, 22050)
    (folder / "source.txt").write_text(f"{folder / 'a.wav'}\n{folder / 'b.wav'}\n")
    (folder / "target.txt").write_text("a stand in reference\nanother one\n")
    return folder


def simuleval(data, output, *flags):
    arguments = [*flags, "--source", data / "source.txt", "--target", data / "target.txt"]
    arguments += ["--output", output, "--source-segment-size", "320", "--no-progress-bar"]
    Forked("simuleval.cli:main", arguments, ROOT).finish()
    return pandas.read_csv(output / "scores.tsv", sep="\t")


@pytest.mark.parametrize("task", sorted(AGENTS))
def test_simuleval_by_file(data, model_dir, tmp_path, task):
    latency = ["AL", "ATD", "StartOffset", "EndOffset"] if task == "s2st" else ["AL", "LAAL"]
    scores = simuleval(
        data,
        tmp_path / "out",
        "--agent",
        f"agents/echostream_{task}.py",
        "--model-dir",
        model_dir,
        "--latency-metrics",
        *latency,
    )
    assert set(latency) <= set(scores.columns)
    lines = [json.loads(line) for line in (tmp_path / "out" / "instances.log").open()]
    assert len(lines) == 2
    if task == "s2st":
        for line in lines:
            assert soundfile.info(line["prediction"]).frames > 0


def test_simuleval_by_class_and_by_directory(data, model_dir, tmp_path):
    by_class = simuleval(
        data,
        tmp_path / "class",
        "--agent-class",
        "echostream.agents.echostream_s2st.EchoStreamS2STAgent",
        "--model-dir",
        model_dir,
        "--latency-metrics",
        "AL",
    )
    folder = tmp_path / "system"
    folder.mkdir()
    text = (ROOT / "eval_configs" / "s2st" / "main.yaml").read_text()
    assert "model_dir: model" in text
    (folder / "main.yaml").write_text(text)
    (folder / "model").symlink_to(model_dir)
    by_directory = simuleval(
        data, tmp_path / "directory", "--system-dir", folder, "--latency-metrics", "AL"
    )
    assert by_class["AL"].tolist() == by_directory["AL"].tolist()


def test_real_speech_under_the_agent(model_dir, clip_48k):
    agent = make("s2st", model_dir)
    samples, rate = clip_48k
    for _ in range(2):
        agent.reset()
        outputs = run(agent, samples, rate, size=rate * 320 // 1000)
        assert outputs[-1].finished and speech(outputs)
