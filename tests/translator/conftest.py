"""Systems that the tests of the driver share."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from echostream.models.echostream_model import seeded_model
from echostream.synthetic import synthetic_clip
from echostream.text import Vocabulary
from echostream.translator.pipeline import Pipeline
from tests.streams import push


@pytest.fixture(scope="session")
def ending_system(double_system):
    """Random weights whose recognition head says end-of-sentence now and then: where it would
    have said the rarest of its words."""
    clip = synthetic_clip(4.1, 16000, seed=3)
    model = seeded_model(double_system.config, 1).double()
    head = model.source_unigram_decoder.proj
    with torch.no_grad():
        head.weight.mul_(4.0)
    system = replace(double_system, model=model)
    outputs, _ = push(Pipeline(system, task="asr"), clip, 16000, len(clip))
    said = Counter(token for output in outputs for token in output.asr_tokens)
    rare = [token for token, count in said.most_common() if count >= 2][-1]
    order = list(range(len(head.bias)))
    order[Vocabulary.eos], order[rare] = rare, Vocabulary.eos
    with torch.no_grad():
        head.weight.copy_(head.weight[order])
        head.bias.copy_(head.bias[order])
    return system
