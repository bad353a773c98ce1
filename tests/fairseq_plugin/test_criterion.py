"""Task, dataset and criterion inside one process."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("fairseq")

from fairseq.logging import metrics as meters  # noqa: E402

from echostream.fairseq_plugin import register  # noqa: E402, F401
from echostream.fairseq_plugin.criterion import (  # noqa: E402
    WHOLE,
    EchoStreamCriterion,
)
from tests.fairseq_plugin.corpus import UNITS, edit_line  # noqa: E402
from tests.fairseq_plugin.criteria import (  # noqa: E402
    batch,
    make_criterion,
    make_model,
    make_task,
)


@pytest.fixture
def trained(corpus):
    """Task with data, model, criterion; n2 fixed so that batches can be compared."""
    task = make_task(corpus)
    model = make_model(task).eval()
    task.load_dataset("train")
    return task, model, make_criterion(task, n2=1)


def test_a_batch_costs_what_its_utterances_cost(trained):
    """Whether a batch is padded or not must not change any loss."""
    task, model, criterion = trained
    singles = [criterion(model, batch(task, index)) for index in (0, 1, 2)]
    padded = criterion(model, batch(task, 0, 1, 2))
    twice = criterion(model, batch(task, 1, 1))
    for head in ("unit", "asr", "st", "mt"):
        key = f"{head}_loss"
        parts = [float(log[key]) for _, _, log in singles]
        assert float(padded[2][key]) == pytest.approx(sum(parts), rel=1e-5), head
        assert float(twice[2][key]) == pytest.approx(2 * parts[1], rel=1e-5), head
        assert padded[2][f"{head}_tokens"] == sum(log[f"{head}_tokens"] for *_, log in singles)
    assert padded[1] == sum(size for _, size, _ in singles)


def test_the_loss_is_weighted_as_the_yaml_says(trained):
    task, model, criterion = trained
    loss, _, log = criterion(model, batch(task, 0, 1))
    expected = log["unit_loss"] + 4 * log["asr_loss"] + 4 * log["st_loss"] + 8 * log["mt_loss"]
    assert float(loss.detach()) == pytest.approx(float(expected))


def test_every_parameter_learns(trained):
    task, model, criterion = trained
    model.train()
    loss, _, _ = criterion(model, batch(task, 0, 1))
    loss.backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


@pytest.mark.parametrize("arch", ["echostream_tiny", "streamspeech_tiny"])
def test_bfloat16_trains(corpus, arch):
    """What ``--bf16`` does on a GPU: weights and features in half precision, losses in float."""
    task = make_task(corpus)
    model = make_model(task, arch)
    task.load_dataset("train")
    criterion, sample = make_criterion(task, n2=1), batch(task, 0, 1)
    exact, _, _ = criterion(model.eval(), sample)
    sample["net_input"]["src_tokens"] = sample["net_input"]["src_tokens"].bfloat16()
    loss, _, _ = criterion(model.bfloat16(), sample)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(exact.detach()), rel=0.05)


@pytest.mark.parametrize(
    ("arch", "flags"),
    [
        ("echostream_tiny", {}),
        ("echostream_tiny", {"depthwise_conv_kernel_size": 5, "right_context_frames": 2}),
        ("streamspeech_tiny", {}),
    ],
)
def test_autocast_is_close_and_keeps_float32_weights(corpus, arch, flags):
    task = make_task(corpus)
    model = make_model(task, arch, **flags)
    task.load_dataset("train")
    sample = batch(task, 0, 1, 2)
    plain, mixed = make_criterion(task, n2=1), make_criterion(task, n2=1, autocast=True)
    assert torch.equal(plain(model.eval(), sample)[0], mixed(model, sample)[0])  # validation
    model.train()
    exact, _, _ = plain(model, sample)
    loss, _, _ = mixed(model, sample)
    assert loss.dtype == torch.float32 and not torch.equal(loss, exact)
    assert float(loss.detach()) == pytest.approx(float(exact.detach()), rel=0.01)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == torch.float32, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("arch", ["echostream_tiny", "streamspeech_tiny"])
def test_first_updates_can_train_recognition_alone(corpus, arch):
    task = make_task(corpus)
    model = make_model(task, arch).train()
    task.load_dataset("train")
    sample = batch(task, 0, 1)
    criterion = make_criterion(task, n2=1, asr_updates=3)
    task.num_updates = 2
    loss, size, log = criterion(model, sample)
    loss.backward()
    learns = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert learns == {"encoder", "source_unigram_decoder"}
    task.num_updates = 3
    _, full_size, full = criterion(model, sample)
    assert float(log["asr_loss"]) == pytest.approx(float(full["asr_loss"]), rel=1e-6)
    assert float(loss.detach()) == pytest.approx(4 * float(log["asr_loss"]))  # the YAML's weight
    # Distributed runs sum these key by key, so both kinds of update must have the same ones.
    assert log.keys() == full.keys() and size == full_size
    assert log["unit_tokens"] == 0 and full["unit_tokens"] > 0
    with meters.aggregate() as scores:
        EchoStreamCriterion.reduce_metrics([log])
    values = scores.get_smoothed_values()
    assert "unit_loss" not in values
    assert values["asr_loss"] == pytest.approx(
        float(log["asr_loss"]) / log["asr_tokens"] / np.log(2), abs=1e-3
    )


def test_units_can_be_learned_at_some_updates_only(corpus):
    task = make_task(corpus)
    model = make_model(task).train()
    task.load_dataset("train")
    sample = batch(task, 0, 1)
    criterion = make_criterion(task, n2=1, unit_interval=2)
    logs = {}
    for task.num_updates in (2, 3):
        model.zero_grad()
        loss, _, logs[task.num_updates] = criterion(model, sample)
        loss.backward()
        learns = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
        assert ("decoder" in learns) == (task.num_updates == 2)
        assert "target_unigram_decoder" in learns
    assert logs[2].keys() == logs[3].keys()
    assert logs[2]["unit_tokens"] > 0 == logs[3]["unit_tokens"]
    for head in ("asr_loss", "st_loss", "mt_loss"):
        assert float(logs[2][head]) == pytest.approx(float(logs[3][head]), rel=1e-6)
    with pytest.raises(ValueError, match="unit-interval must be at least 1, got 0"):
        make_criterion(task, unit_interval=0)


def test_processes_that_wait_for_every_gradient_are_refused(corpus):
    task = make_task(corpus)
    with pytest.raises(ValueError, match="2 processes needs --find-unused-parameters"):
        make_criterion(task, asr_updates=1, world_size=2)
    make_criterion(task, asr_updates=1, world_size=2, find_unused_parameters=True)
    make_criterion(task, asr_updates=1, world_size=2, ddp_backend="legacy_ddp")
    make_criterion(task, world_size=2)


def test_validation_is_always_about_everything(corpus):
    task = make_task(corpus)
    model = make_model(task).eval()
    task.load_dataset("train")
    _, _, log = make_criterion(task, asr_updates=1000)(model, batch(task, 0, 1))
    assert log["unit_tokens"] > 0 and log["checked"] == 1


def test_units_carry_no_end_of_sentence(trained):
    sample = batch(trained[0], 0)
    row = trained[0].datasets["train"].rows[0]
    assert sample["target"][0].tolist() == [unit + 4 for unit in row.units]


def test_validation_counts_errors_and_training_does_not(trained):
    task, model, criterion = trained
    _, _, log = criterion(model, batch(task, 0, 1))
    assert log["checked"] == 1 and 0 < log["mt_errors"] <= log["mt_tokens"]
    _, _, log = criterion(model.train(), batch(task, 0, 1))
    assert log["checked"] == 0 and log["unit_errors"] == 0


def test_segments_are_drawn_per_batch_and_repeatably(trained):
    task, *_ = trained
    criterion = make_criterion(task, multichunk=True)
    sample, drawn = batch(task, 0, 1), []
    for update in range(60):
        task.num_updates = update
        drawn.append(criterion.draw(sample, training=True))
        assert criterion.draw(sample, training=True) == drawn[-1]
    assert {segment for segment, _ in drawn} == {8, 16, 24, 32, WHOLE}
    longest = 1 + sample["net_input"]["prev_output_tokens"].size(1)
    strides = [stride for _, stride in drawn]
    assert set(strides) <= set(range(1, longest + 1))
    # As many below the root of the longest as above it: streams write a few tokens at a time.
    below = sum(stride < longest**0.5 for stride in strides) / len(strides)
    assert 0.3 < below < 0.7 and max(strides) > longest / 2
    assert criterion.draw(sample, training=False)[0] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rdrop_alpha": 1.0}, "--rdrop-alpha must be 0"),
        ({"segment_sizes": "8,big"}, "--segment-sizes: expected a number of frames or 'whole'"),
        ({"valid_segment": "0"}, "--valid-segment"),
        ({"label_smoothing": 1.5}, "--label-smoothing"),
    ],
)
def test_wrong_flags(trained, options, message):
    with pytest.raises(ValueError, match=message):
        make_criterion(trained[0], **options)


def test_text_heads_start_from_blank(corpus):
    task = make_task(corpus)
    model = make_model(task, blank_prior=0.8)
    out = model(torch.randn(2, 90, 80), torch.tensor([90, 90]), torch.full((2, 3), 2))
    for logits in (out.asr, out.st):
        blank = logits.detach().softmax(dim=-1)[..., 0]
        assert 0.6 < float(blank.mean()) < 0.95
    with pytest.raises(ValueError, match="--blank-prior must lie between 0 and 1, got 2"):
        model.start_from_blank(2.0)
    even = make_model(task, blank_prior=0.0)
    assert abs(even.source_unigram_decoder.proj.bias[0].item()) < 1


def test_a_collapsed_encoder_is_reported(trained, caplog):
    task, model, _ = trained
    criterion = make_criterion(task, collapse_after=0)
    task.num_updates = 5
    for layer in model.encoder.emformer.layers:
        layer.output_layer_norm.weight.data.zero_()
        layer.output_layer_norm.bias.data.fill_(1.0)
    _, _, log = criterion(model.train(), batch(task, 0, 1, 2))
    assert log["spread"] < 1e-6
    assert "may be collapsing" in caplog.text and "update 5" in caplog.text


def lengthen_units(path, line):
    lines = path.read_text().split("\n")
    fields = lines[line - 1].split("\t")
    fields[5] = " ".join(str(i % UNITS) for i in range(400))
    fields[6] = "400"
    lines[line - 1] = "\t".join(fields)
    path.write_text("\n".join(lines))


def test_targets_that_do_not_fit_are_an_error_or_reported(corpus, caplog):
    lengthen_units(corpus / "train.tsv", 4)
    task = make_task(corpus)
    make_model(task)
    with pytest.raises(ValueError, match=r"train.tsv: 1 of 8 .*line 4 .*need 400 CTC frames"):
        task.load_dataset("train")
    task = make_task(corpus, unfit_targets="skip")
    make_model(task)
    task.load_dataset("train")
    assert len(task.datasets["train"]) == 7
    assert "skipping 1 of 8" in caplog.text and "utterance_2" in caplog.text


def test_text_that_does_not_fit_the_encoder(corpus):
    path = corpus.parent / "src_unigram/train.tsv"
    edit_line(path, 3, "\ts", "\t" + "s1 s1 " * 60 + "s")
    task = make_task(corpus)
    make_model(task)
    with pytest.raises(ValueError, match="line 3 .*source_unigram need .* encoder frames"):
        task.load_dataset("train")


def test_a_missing_text_is_an_error(corpus):
    edit_line(corpus.parent / "tgt_unigram/train.tsv", 3, "utterance_1", "someone")
    task = make_task(corpus)
    make_model(task)
    with pytest.raises(ValueError, match=r"train.tsv, line 3: no text for id 'utterance_1'"):
        task.load_dataset("train")


def test_augmentation_depends_on_epoch_and_utterance_only(corpus):
    path = corpus / "config_gcmvn.yaml"
    data = yaml.safe_load(path.read_text())
    data["transforms"]["_train"] = ["global_cmvn", "specaugment"]
    path.write_text(yaml.safe_dump(data))
    task = make_task(corpus)
    make_model(task)
    for split in ("train", "dev"):
        task.load_dataset(split)
    train, dev = task.datasets["train"], task.datasets["dev"]
    first = train[2].features
    assert torch.equal(train[2].features, first)
    assert not torch.equal(dev[2].features, first)
    train.set_epoch(2)
    assert not torch.equal(train[2].features, first)
    raw = torch.cat([dev[i].features for i in range(8)])
    assert torch.allclose(raw.mean(dim=0), torch.zeros(80), atol=1e-4)
    assert torch.allclose(raw.std(dim=0, unbiased=False), torch.ones(80), atol=1e-3)


def test_order_is_by_length(trained):
    dataset = trained[0].datasets["train"]
    order = dataset.ordered_indices()
    assert sorted(order) == list(range(8))
    assert (np.diff(dataset.frames[order]) <= 0).all()


@pytest.mark.parametrize("multiple", [1, 2, 3, 8])
@pytest.mark.parametrize("limits", [(10000, None), (400, None), (300, 2), (None, 3)])
def test_batches_lose_nothing(trained, multiple, limits):
    dataset = trained[0].datasets["train"]
    order = dataset.ordered_indices()
    batches = dataset.batch_by_size(order, *limits, multiple)
    assert [index for rows in batches for index in rows] == list(order)
    for rows in batches:
        assert limits[0] is None or len(rows) * dataset.frames[rows].max() <= limits[0]
        assert limits[1] is None or len(rows) <= limits[1]
    if limits == (None, 3):
        assert [len(batch) for batch in batches] == [2, 2, 2, 2] if multiple == 2 else [3, 3, 2]


def test_an_utterance_longer_than_a_batch(trained):
    dataset = trained[0].datasets["train"]
    with pytest.raises(ValueError, match=r"train.tsv, line \d+: \d+ frames .*--max-tokens 50"):
        dataset.batch_by_size(dataset.ordered_indices(), 50)


def test_a_checkpoint_of_other_data_is_refused(corpus):
    task = make_task(corpus)
    make_model(task)
    saved = task.state_dict()
    task.load_state_dict(saved)
    edit_line(corpus.parent / "tgt_unigram/dict.txt", 2, "t1", "other")
    other = make_task(corpus)
    make_model(other)
    with pytest.raises(ValueError, match="the target vocabulary differs"):
        other.load_state_dict(saved)
