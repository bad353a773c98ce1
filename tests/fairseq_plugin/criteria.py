"""Tasks, models and criteria on the small corpus, for tests of what is trained."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("fairseq")

from omegaconf import OmegaConf  # noqa: E402

from echostream.fairseq_plugin import register  # noqa: E402, F401
from echostream.fairseq_plugin.criterion import (  # noqa: E402
    EchoStreamCriterion,
    EchoStreamCriterionConfig,
)
from echostream.fairseq_plugin.model import (  # noqa: E402
    EchoStreamFairseqModel,
    EchoStreamModelConfig,
)
from echostream.fairseq_plugin.task import EchoStreamTask, EchoStreamTaskConfig  # noqa: E402
from tests.fairseq_plugin.corpus import UNITS  # noqa: E402


def make_task(corpus, **options):
    options = {"data": str(corpus), "target_code_size": UNITS, "train_subset": "train", "seed": 1,
               "unfit_targets": "error", **options}  # fmt: skip
    return EchoStreamTask(EchoStreamTaskConfig(**options))


def make_model(task, arch="echostream_tiny", **flags):
    torch.manual_seed(0)
    cfg = OmegaConf.structured(EchoStreamModelConfig(dropout=0.0, **flags))
    cfg._name = arch
    return EchoStreamFairseqModel.build_model(cfg, task)


def make_criterion(task, **options):
    single = {"world_size": 1, "ddp_backend": "pytorch_ddp", "find_unused_parameters": False}
    cfg = EchoStreamCriterionConfig(**{"sentence_avg": False, "seed": 1, **single, **options})
    return EchoStreamCriterion(task, cfg)


def batch(task, *indices):
    dataset = task.datasets["train"]
    return dataset.collater([dataset[i] for i in indices])
