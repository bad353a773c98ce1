"""``--distill``, ``--missing-targets`` and ``--exchange-encoder``."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("fairseq")

from fairseq.logging import metrics as meters  # noqa: E402

from echostream import cli  # noqa: E402
from echostream.audio import CMVN  # noqa: E402
from echostream.checkpoint import System, load_model_dir, save_model_dir  # noqa: E402
from echostream.config import EmformerConfig  # noqa: E402
from echostream.fairseq_plugin.criterion import EchoStreamCriterion  # noqa: E402
from echostream.fairseq_plugin.data_config import ASR_TASK, MT_TASK, ST_TASK  # noqa: E402
from echostream.fairseq_plugin.export import export_checkpoint  # noqa: E402
from echostream.fairseq_plugin.imitation import parse_layers  # noqa: E402
from echostream.models.echostream_model import EchoStreamModel, freeze  # noqa: E402
from echostream.translator.pipeline import Pipeline  # noqa: E402
from tests.fairseq_plugin.corpus import edit_line  # noqa: E402
from tests.fairseq_plugin.criteria import (  # noqa: E402
    batch,
    make_criterion,
    make_model,
    make_task,
)
from tests.fairseq_plugin.trainer import logged, run_training  # noqa: E402

TEXTS = (("src_unigram", (ASR_TASK,)), ("tgt_unigram", (ST_TASK, MT_TASK)))


def save_system(corpus, path, arch):
    """A model directory of the corpus's vocabularies, as training would export it."""
    task = make_task(corpus)
    model = make_model(task, arch)
    plain = EchoStreamModel(task.config)
    plain.load_state_dict(model.state_dict())
    vocabularies = [task.text_tasks[name].vocabulary for name in (ASR_TASK, MT_TASK)]
    cmvn = CMVN(task.data_config.cmvn.mean, task.data_config.cmvn.std)
    save_model_dir(path, System(task.config, freeze(plain), *vocabularies, cmvn))
    return path


@pytest.fixture
def streamspeech(corpus, tmp_path):
    return save_system(corpus, tmp_path / "streamspeech", "streamspeech_tiny")


def forget(corpus, number, *, units=True, texts=True):
    """Take targets away from a line of the training manifest, counted from 1 behind its header."""
    path = corpus / "train.tsv"
    lines = path.read_text().splitlines()
    fields = lines[number].split("\t")
    if units:
        fields[5], fields[6] = "", "0"
    lines[number] = "\t".join(fields)
    path.write_text("\n".join(lines) + "\n")
    for folder, _ in TEXTS if texts else ():
        table = corpus.parent / folder / "train.tsv"
        kept = [line for line in table.read_text().splitlines() if not line.startswith(fields[0])]
        table.write_text("\n".join(kept) + "\n")


def forget_everything(corpus):
    """A manifest of audio alone, without even the columns of targets, and no tables of texts."""
    path = corpus / "train.tsv"
    lines = [line.split("\t")[:3] for line in path.read_text().splitlines()]
    path.write_text("\n".join("\t".join(fields) for fields in lines) + "\n")
    for folder, _ in TEXTS:
        (corpus.parent / folder / "train.tsv").unlink()


def prepared(corpus, arch="echostream_tiny", flags=None, options=None, **task_options):
    """Task with its training data, model and criterion."""
    task = make_task(corpus, **task_options)
    model = make_model(task, arch, **(flags or {}))
    criterion = make_criterion(task, n2=1, **(options or {}))
    task.load_dataset("train")
    return task, model, criterion


def learning(model):
    return {
        name.split(".")[0]
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and bool(parameter.grad.any())
    }


def test_a_model_that_imitates_itself_has_nothing_to_learn(corpus, tmp_path):
    own = save_system(corpus, tmp_path / "own", "echostream_tiny")
    task, model, criterion = prepared(
        corpus,
        flags={"init_from": str(own)},
        options={"distill": str(own), "distill_layers": "1,2"},
    )
    _, _, log = criterion(model.eval(), batch(task, 0, 1, 2))
    assert log["distill_loss"] == pytest.approx(0.0, abs=1e-6) and log["distill_frames"] > 0
    assert not list(criterion.parameters())
    model.train()
    task.num_updates = 7
    _, _, log = criterion(model, batch(task, 0, 1, 2))
    assert log["distill_loss"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("streams", [0, 3])
def test_audio_alone_teaches_the_encoder_alone(corpus, streamspeech, streams):
    forget_everything(corpus)
    task, model, criterion = prepared(
        corpus,
        flags={"encoder_embed_dim": 16},
        options={"distill": str(streamspeech), "distill_layers": "2:1", "multichunk": True},
        missing_targets="mask",
        stream_sentences=streams,
    )
    loss, size, log = criterion(model.train(), batch(task, 0, 1))
    loss.backward()
    assert learning(model) == {"encoder"}
    projections = list(criterion.parameters())
    assert len(projections) == 4 and all(bool(p.grad.any()) for p in projections)
    assert size == log["distill_frames"] > 0
    assert loss.item() == pytest.approx(log["distill_loss"], rel=1e-5)
    teacher = criterion.imitation._teacher.encoder
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert not any("teacher" in name for name in criterion.state_dict())
    assert [log[f"{head}_tokens"] for head in ("unit", "asr", "st", "mt")] == [0, 0, 0, 0]
    with meters.aggregate() as scores:
        EchoStreamCriterion.reduce_metrics([log])
    values = scores.get_smoothed_values()
    assert values["distill_loss"] == pytest.approx(loss.item() / size, abs=1e-4)
    assert "asr_loss" not in values


def test_audio_alone_needs_a_teacher(corpus):
    forget_everything(corpus)
    task, model, criterion = prepared(corpus, missing_targets="mask")
    with pytest.raises(ValueError, match="neither units nor texts .* without --distill"):
        criterion(model.train(), batch(task, 0))


def test_what_an_utterance_lacks_costs_nothing(corpus):
    """A batch in which one lacks everything and one its units costs what the rest of it costs."""
    task, model, criterion = prepared(corpus)
    model.eval()
    _, _, first = criterion(model, batch(task, 0))
    _, _, second = criterion(model, batch(task, 1))
    forget(corpus, 2, texts=False)
    forget(corpus, 3)
    task, _, criterion = prepared(corpus, missing_targets="mask")
    loss, size, log = criterion(model, batch(task, 0, 1, 2))
    assert float(log["unit_loss"]) == pytest.approx(float(first["unit_loss"]), rel=1e-5)
    assert (log["unit_tokens"], log["unit_errors"]) == (first["unit_tokens"], first["unit_errors"])
    for head in ("asr", "st", "mt"):
        expected = float(first[f"{head}_loss"]) + float(second[f"{head}_loss"])
        assert float(log[f"{head}_loss"]) == pytest.approx(expected, rel=1e-5), head
        for key in (f"{head}_tokens", f"{head}_errors"):
            assert log[key] == first[key] + second[key]
    assert size == first["unit_tokens"] and bool(torch.isfinite(loss))
    alone = batch(task, 1)
    _, size, log = criterion(model, alone)  # texts and no units: frames stand for them
    assert size == int(alone["net_input"]["src_lengths"].sum()) // 4
    assert log["unit_tokens"] == 0 and log["mt_tokens"] > 0


def test_streams_mask_what_is_not_known(corpus):
    forget(corpus, 2)
    task, model, criterion = prepared(corpus, missing_targets="mask", stream_sentences=4)
    dataset = task.datasets["train"]
    whole = [i for i, plan in enumerate(dataset.plans) if 1 not in plan.rows]
    lacking = [i for i, plan in enumerate(dataset.plans) if 1 in plan.rows]
    sample = batch(task, *lacking, *whole)
    lengths = sample["texts"][ASR_TASK]["target_lengths"]
    assert lengths[0] == 0 and (lengths[1:] > 0).all()
    words = sample["texts"][MT_TASK]["target_lengths"]
    assert int((words == 0).sum()) == 1  # the other sentences of its stream are still translated
    model.eval()
    _, _, log = criterion(model, sample)
    _, _, without = criterion(model, batch(task, *whole))
    assert log["asr_tokens"] == without["asr_tokens"]
    assert float(log["asr_loss"]) == pytest.approx(float(without["asr_loss"]), rel=1e-4)


def test_the_teacher_hears_what_was_not_augmented(corpus, streamspeech):
    options = {"distill": str(streamspeech)}
    task, _, _ = prepared(corpus, options=options)
    sample = batch(task, 0, 1)
    net_input, cmvn = sample["net_input"], task.data_config.cmvn
    for row, size in enumerate(net_input["src_lengths"].tolist()):
        expected = cmvn(sample["clean"][row, :size])
        assert torch.allclose(net_input["src_tokens"][row, :size], expected, atol=1e-5)
        assert not sample["clean"][row, size:].any()
    task, _, _ = prepared(corpus, options=options, stream_sentences=3)
    sample = batch(task, 0, 1)
    assert sample["clean"].shape == sample["net_input"]["src_tokens"].shape
    heard = cmvn(sample["clean"])
    assert not torch.allclose(sample["net_input"]["src_tokens"], heard, atol=0.1)
    task, _, _ = prepared(corpus)
    assert "clean" not in batch(task, 0, 1)


def test_distillation_joins_the_other_losses(corpus, streamspeech):
    options = {"distill": str(streamspeech), "distill_weight": 3.0}
    task, model, criterion = prepared(corpus, options=options)
    sample = batch(task, 0, 1)
    plain, size, _ = make_criterion(task, n2=1)(model.eval(), sample)
    loss, same_size, log = criterion(model, sample)
    distance = log["distill_loss"] / log["distill_frames"]
    assert size == same_size and distance > 0.1
    assert loss.item() == pytest.approx(plain.item() + 3.0 * size * distance, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distill_weight": 0.0}, "--distill-weight must be positive, got 0"),
        ({"distill_layers": "2-1"}, "--distill-layers: expected pairs .* got '2-1'"),
        ({"distill_layers": "3"}, "the student has layers 1 to 2, not 3"),
    ],
)
def test_wrong_flags(corpus, streamspeech, options, message):
    task = make_task(corpus)
    make_model(task)
    with pytest.raises(ValueError, match=message):
        make_criterion(task, distill=str(streamspeech), **options)
    assert parse_layers("1:2, 3") == [(1, 2), (3, 3)] and parse_layers("") == []


def test_only_the_encoder_is_exchanged(corpus, streamspeech):
    other = load_model_dir(streamspeech)
    task = make_task(corpus)
    flags = {"exchange_encoder": str(streamspeech), "left_context_frames": 20}
    model = make_model(task, "echostream", **flags)
    encoder = task.config.encoder
    assert isinstance(encoder, EmformerConfig) and encoder.left_context_frames == 20
    assert encoder.embed_dim == other.config.encoder.embed_dim
    theirs = other.model.state_dict()
    for name, value in model.state_dict().items():
        if not name.startswith("encoder."):
            assert torch.equal(value, theirs[name]), name
    weight = "conformer_layers.1.self_attn.linear_out.weight"
    ours = model.encoder.emformer.layers[1].out_proj.weight
    assert torch.equal(ours, theirs[f"encoder.{weight}"])
    assert task.config.mt.layers == other.config.mt.layers
    # Streams without text teach nobody where sentences end.
    task = make_task(corpus, stream_sentences=3)
    make_model(task, "echostream", exchange_encoder=str(streamspeech))
    assert (
        task.config.endpoint == other.config.endpoint and other.config.endpoint.method != "learned"
    )
    task = make_task(corpus, stream_sentences=3)
    make_model(task, "echostream", continue_from=str(streamspeech))
    assert task.config.endpoint.method == "learned" and task.config.encoder == other.config.encoder


def test_what_cannot_be_exchanged_is_refused(corpus, streamspeech, tmp_path):
    task = make_task(corpus)
    with pytest.raises(ValueError, match="--decoder-layers: .* keeps everything but the encoder"):
        make_model(task, exchange_encoder=str(streamspeech), decoder_layers=1)
    emformer = save_system(corpus, tmp_path / "emformer", "echostream_tiny")
    with pytest.raises(ValueError, match="chunk Conformer .* has kind 'emformer'"):
        make_model(make_task(corpus), exchange_encoder=str(emformer))
    edit_line(corpus.parent / "src_unigram/dict.txt", 2, "s1 ", "other ")
    with pytest.raises(ValueError, match="has another source vocabulary"):
        make_model(make_task(corpus), exchange_encoder=str(streamspeech))


@pytest.mark.slow
def test_an_exchanged_encoder_learns_and_streams(corpus, streamspeech, tmp_path):
    """The whole way: audio alone, then all together, then a model directory that translates."""
    labelled = corpus / "train.tsv"
    kept = labelled.read_text()
    tables = {name: (corpus.parent / name / "train.tsv").read_text() for name, _ in TEXTS}
    forget_everything(corpus)
    shape = ("--distill", str(streamspeech), "--missing-targets", "mask", "--dropout", "0.0",
             "--lr", "0.002", "--multichunk", "--log-interval", "1", "--k1", "1", "--n1", "2",
             "--autocast")  # fmt: skip
    output = run_training(
        corpus, tmp_path / "first", *shape, "--exchange-encoder", str(streamspeech),
        "--stream-sentences", "3", "--distill-layers", "1", "--max-update", "24",
        "--validate-interval", "100", "--save-interval", "100",
    )  # fmt: skip
    losses = [float(line["distill_loss"]) for line in logged(output, "train_inner")]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5]), losses
    convert = ["convert", "--vocoder-from", "echo-mini", "--out"]
    first = tmp_path / "first/checkpoint_last.pt"
    assert (
        cli.main([*convert, str(tmp_path / "no"), "--checkpoint", str(first)]) == 2
    )  # other units
    model = tmp_path / "model"
    export_checkpoint(first, model)
    before, other = load_model_dir(model), load_model_dir(streamspeech)
    assert (before.config.policy.lagging_k1, before.config.policy.stride_n) == (1, 2)
    for name, value in before.model.state_dict().items():
        if not name.startswith("encoder."):
            assert torch.equal(value, other.model.state_dict()[name]), name
    labelled.write_text(kept)
    for name, text in tables.items():
        (corpus.parent / name / "train.tsv").write_text(text)
    run_training(
        corpus, tmp_path / "second", *shape, "--continue-from", str(model), "--max-update", "2"
    )
    export_checkpoint(tmp_path / "second/checkpoint_last.pt", model)
    after = load_model_dir(model)
    assert after.config.encoder == before.config.encoder
    changed = {
        name.split(".")[0]
        for name, value in after.model.state_dict().items()
        if not torch.equal(value, before.model.state_dict()[name])
    }
    assert {"encoder", "source_unigram_decoder", "target_unigram_decoder"} <= changed
    Pipeline(after, task="s2tt").init_state()
