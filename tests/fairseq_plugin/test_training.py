"""``fairseq-train`` itself: learning, resuming, several processes, and the way out."""

from __future__ import annotations

import socket

import pytest
import torch

pytest.importorskip("fairseq")

from echostream import cli  # noqa: E402
from echostream.checkpoint import load_model_dir  # noqa: E402
from echostream.fairseq_plugin.export import (  # noqa: E402
    export_checkpoint,
    read_training_checkpoint,
)
from echostream.models.decoders.vocoder import CodeHiFiGANVocoder  # noqa: E402
from echostream.torch_files import read_checkpoint  # noqa: E402
from echostream.translator.pipeline import Pipeline  # noqa: E402
from tests.fairseq_plugin.trainer import (  # noqa: E402
    logged,
    run_training,
    start_training,
    train_arguments,
)
from tests.forks import Forked  # noqa: E402

pytestmark = pytest.mark.slow

STEADY = ("--lr", "0.002", "--dropout", "0.1", "--multichunk", "--log-interval", "1")


def weights(path):
    return read_checkpoint(path, keep=("model",))["model"]


@pytest.mark.parametrize("arch", ["echostream_tiny", "streamspeech_tiny"])
def test_eight_utterances_are_learned_by_heart(corpus, tmp_path, arch):
    output = run_training(
        corpus, tmp_path / "save", "--arch", arch, "--lr", "0.002", "--dropout", "0.0",
        "--multichunk", "--max-update", "280", "--validate-interval", "280", "--no-save",
        "--log-interval", "100", timeout_s=1200,
    )  # fmt: skip
    result = logged(output, "dev")[-1]
    for head in ("unit", "asr", "st", "mt"):
        assert float(result[f"dev_{head}_error"]) < 5.0, (head, result)
    assert float(result["dev_encoder_spread"]) > 0.05
    assert float(logged(output, "train")[-1]["train_encoder_spread"]) > 0.05


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(corpus, tmp_path):
    shape = (*STEADY, "--batch-size", "3", "--required-batch-size-multiple", "1")
    run_training(corpus, tmp_path / "whole", *shape, "--max-update", "5")
    run_training(
        corpus, tmp_path / "parts", *shape, "--max-update", "2", "--tensorboard-logdir",
        str(tmp_path / "board"),
    )  # fmt: skip
    output = run_training(corpus, tmp_path / "parts", *shape, "--max-update", "5")
    assert "2 updates" in output
    whole, parts = (weights(tmp_path / name / "checkpoint_last.pt") for name in ("whole", "parts"))
    # Dropout draws from fairseq's per-update seed, so even that repeats.
    for name, value in whole.items():
        assert torch.allclose(parts[name], value, atol=1e-6), name


def test_two_processes_equal_one(corpus, tmp_path):
    shape = (
        "--lr", "0.002", "--dropout", "0.0", "--multichunk", "--log-interval", "1",
        "--batch-size", "2", "--required-batch-size-multiple", "1", "--max-update", "2",
        "--ddp-backend", "legacy_ddp",
    )  # fmt: skip
    alone = run_training(corpus, tmp_path / "alone", *shape, "--update-freq", "2")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pair = [
        start_training(
            corpus, tmp_path / "pair", *shape, "--distributed-world-size", "2",
            "--distributed-rank", str(rank), "--distributed-backend", "gloo",
            "--distributed-init-method", f"tcp://127.0.0.1:{port}", "--distributed-no-spawn",
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        outputs = [training.finish() for training in pair]
    finally:
        for training in pair:
            training.stop()
    for subset in ("train_inner", "dev"):
        one, two = logged(alone, subset), logged(outputs[0], subset)
        assert len(one) == len(two) > 0
        for left, right in zip(one, two, strict=True):
            for key in left:
                if key.endswith(("loss", "error")):
                    assert float(left[key]) == pytest.approx(float(right[key]), abs=2e-3), key
    one, two = (weights(tmp_path / name / "checkpoint_last.pt") for name in ("alone", "pair"))
    for name, value in one.items():
        assert torch.allclose(two[name], value, atol=1e-5), name


def test_a_checkpoint_becomes_a_model_directory_that_streams(corpus, tmp_path):
    run_training(
        corpus, tmp_path / "save", *STEADY, "--max-update", "1", "--k1", "1", "--n1", "2",
    )  # fmt: skip
    checkpoint = tmp_path / "save/checkpoint_last.pt"
    command = ["convert", "--checkpoint", str(checkpoint), "--out", str(tmp_path / "model")]
    assert cli.main(command) == 0
    system = load_model_dir(tmp_path / "model")
    saved = weights(checkpoint)
    assert set(saved) == set(system.model.state_dict())
    for name, value in system.model.state_dict().items():
        assert torch.equal(value, saved[name]), name
    assert (system.config.policy.lagging_k1, system.config.policy.stride_n) == (1, 2)
    assert system.source_vocabulary.pieces[4] == "s0" and len(system.cmvn.mean) == 80
    with pytest.raises(ValueError, match="got only one of them"):
        export_checkpoint(checkpoint, tmp_path / "other", vocoder=tmp_path / "g")

    from echostream.config import DurationPredictorConfig, VocoderConfig
    from echostream.fairseq_plugin.export import with_vocoder

    torch.manual_seed(0)
    vocoder = CodeHiFiGANVocoder(
        VocoderConfig(
            num_embeddings=30, embedding_dim=16, model_in_dim=16, upsample_initial_channel=32,
            dur_predictor_params=DurationPredictorConfig(16, 16, 3, 0.5),
        )
    )  # fmt: skip
    speaking = with_vocoder(read_training_checkpoint(checkpoint), vocoder)
    pipeline = Pipeline(speaking, chunk_ms=320)
    state = pipeline.init_state()
    audio = torch.randn(16000).numpy() * 0.1
    decisions = 0
    for output, _ in pipeline.iterate(audio, 16000, state, final=True):
        decisions += output is not None
    assert decisions > 1


def test_a_foreign_checkpoint_is_refused(tmp_path):
    torch.save({"model": {}, "task_state": {}}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="not written by echostream's fairseq plugin"):
        read_training_checkpoint(tmp_path / "a.pt")


def test_a_missing_data_folder_is_one_clear_error(tmp_path):
    """Of the command itself."""
    arguments = train_arguments(tmp_path / "nowhere", tmp_path / "save", "--lr", "0.1")
    training = Forked("fairseq_cli.train:cli_main", arguments, tmp_path)
    assert "no such data folder" in training.finish(fails=True)
