"""Small models as the training plugin builds them."""

from __future__ import annotations

import torch

from echostream.fairseq_plugin.architectures import build_config
from echostream.fairseq_plugin.model import EchoStreamFairseqModel
from echostream.models.echostream_model import freeze

SEGMENT = 8
FRAMES_PER_CHUNK = 32
SIZES = {"source_vocab_size": 24, "target_vocab_size": 28, "num_units": 30, "num_mel_bins": 80}


def make_model(arch="echostream_tiny", seed=3, **flags):
    torch.manual_seed(seed)
    return freeze(EchoStreamFairseqModel(build_config(arch, flags, **SIZES)))


def emitting(model):
    """Make random CTC heads emit often and confidently, so that the policy has work to do."""
    for head in (model.source_unigram_decoder, model.ctc_target_unigram_decoder):
        head.proj.weight.mul_(12.0)
        head.proj.bias[0] += 4.0
    return model
