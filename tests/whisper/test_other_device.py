"""Training on another device than the host's, by tensors of the device ``meta``, which have no
values: the host reads nothing back, mixes nothing up, and checkpoints find their way."""

from __future__ import annotations

import contextlib
import random

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from echostream.training.warm_start.clips import draw_batch
from tests.whisper.small_training import LOSSES_OF_TEXT, build


def ctc_loss(logits: Tensor, goals: Tensor, *lengths: Tensor, **_: object) -> Tensor:
    """In place of PyTorch's, which has none for such tensors; a GPU's wants lengths of the host."""
    assert logits.device == goals.device
    assert all(one.device.type == "cpu" for one in lengths)
    return logits[0, :, 0]


def test_an_update_reads_nothing_back(hugging_face_folder, tokenizer, pool, monkeypatch):
    with pytest.raises(RuntimeError):
        bool(torch.zeros(1, device="meta").any())
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(F, "ctc_loss", ctc_loss)
    pool.samples = pool.samples.to("meta")
    trainer = build(hugging_face_folder, tokenizer, pool, augmented=1.0, st_share=1.0)
    rng = random.Random(0)
    batch = draw_batch(pool, 12.0, rng, sounds=0.0, speed=0.1)
    losses = trainer.losses(batch, rng, torch.Generator())
    assert set(losses) == LOSSES_OF_TEXT | {"distance", "hidden"}
    sum(losses.values()).backward()
    for parameters, _ in trainer.groups:
        assert torch.nn.utils.clip_grad_norm_(parameters, 1.0).device.type == "meta"


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta")
def test_a_checkpoint_goes_on_where_the_trainer_computes(
    hugging_face_folder, tokenizer, pool, tmp_path
):
    here = build(hugging_face_folder, tokenizer, pool)
    here.update()
    here.save(tmp_path / "checkpoint.pt")
    pool.samples = pool.samples.to("meta")
    there = build(hugging_face_folder, tokenizer, pool)
    there.load(tmp_path / "checkpoint.pt")
    assert there.progress == here.progress
    states = there.optimizer.state_dict()["state"].values()
    # The counters of steps too: the fused optimiser reads them where it computes.
    assert {one.device.type for state in states for one in state.values()} == {"meta"}
    assert {one.device.type for one in there.model.state_dict().values()} == {"meta"}
