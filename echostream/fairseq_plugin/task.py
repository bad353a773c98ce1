"""The fairseq task: data, vocabularies, and the model's configuration."""

# ruff: noqa: UP045  (fairseq turns annotations into flags and knows typing.Optional only)

import base64
import dataclasses
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import torch
from fairseq.data import Dictionary
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.tasks import FairseqTask, register_task
from omegaconf import II

from echostream.checkpoint import load_model_dir
from echostream.config import EchoStreamConfig, EndpointConfig, to_dict
from echostream.fairseq_plugin.architectures import (
    build_config,
    exchange_config,
    report_superseded,
)
from echostream.fairseq_plugin.data_config import (
    ASR_TASK,
    MT_TASK,
    DataConfig,
    load_text_tasks,
)
from echostream.fairseq_plugin.dataset import EchoStreamDataset
from echostream.fairseq_plugin.export import STATE_KEY
from echostream.fairseq_plugin.streams import StreamDataset, StreamOptions
from echostream.text import Vocabulary

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    UnfitTargets = str
    MissingTargets = str
else:  # fairseq makes flags' choices of them
    UnfitTargets = ChoiceEnum(["error", "skip"])
    MissingTargets = ChoiceEnum(["error", "mask"])


@dataclass
class EchoStreamTaskConfig(FairseqDataclass):
    """Flags of the task."""

    data: str = field(default="", metadata={"help": "folder with manifests and YAML files"})
    config_yaml: str = field(
        default="config_gcmvn.yaml", metadata={"help": "features, in the data folder"}
    )
    multitask_config_yaml: str = field(
        default="config_mtl_asr_st_ctcst.yaml", metadata={"help": "texts, in the data folder"}
    )
    target_is_code: bool = field(
        default=True, metadata={"help": "accepted; targets always are units"}
    )
    target_code_size: int = field(default=1000, metadata={"help": "number of units"})
    vocoder: str = field(
        default="code_hifigan", metadata={"help": "accepted; code_hifigan is the only one"}
    )
    n_frames_per_step: int = field(default=1, metadata={"help": "units per step: 1"})
    max_source_positions: int = field(
        default=6000, metadata={"help": "longest source, in filterbank frames"}
    )
    max_target_positions: int = field(default=4096, metadata={"help": "longest target, in units"})
    unfit_targets: UnfitTargets = field(
        default="error",
        metadata={"help": "utterances whose target is longer than CTC can align"},
    )
    missing_targets: MissingTargets = field(
        default="error",
        metadata={
            "help": "utterances that lack units or texts; mask: what they lack costs nothing, and "
            "audio alone serves --distill"
        },
    )
    stream_sentences: int = field(
        default=0,
        metadata={
            "help": "join up to so many utterances into streams, with pauses and sounds that "
            "nobody spoke, and teach the CTC heads where sentences end; 0: single utterances"
        },
    )
    stream_frames: int = field(
        default=2400, metadata={"help": "longest stream, in filterbank frames"}
    )
    stream_pause_ms: int = field(default=2000, metadata={"help": "longest pause in streams"})
    stream_single_share: float = field(
        default=0.3, metadata={"help": "share of streams that hold one sentence"}
    )
    train_subset: str = II("dataset.train_subset")
    seed: int = II("common.seed")


@register_task("echostream", dataclass=EchoStreamTaskConfig)
class EchoStreamTask(FairseqTask):
    """Simultaneous speech-to-speech translation with units.

    Raises:
        FileNotFoundError, ValueError: the data folder's YAML files are wrong.
    """

    def __init__(self, cfg: EchoStreamTaskConfig) -> None:
        super().__init__(cfg)
        if cfg.n_frames_per_step != 1:
            raise ValueError(f"--n-frames-per-step must be 1, got {cfg.n_frames_per_step}")
        if cfg.vocoder != "code_hifigan":
            raise ValueError(f"--vocoder must be code_hifigan, got {cfg.vocoder!r}")
        self.folder = Path(cfg.data)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"no such data folder: {self.folder}")
        self.data_config = DataConfig.load(self.folder / cfg.config_yaml)
        self.text_tasks = load_text_tasks(self.folder / cfg.multitask_config_yaml)
        self.unit_dictionary = Dictionary()
        for unit in range(cfg.target_code_size):
            self.unit_dictionary.add_symbol(str(unit))
        self.unit_dictionary.add_symbol("<blank>")
        self.config: Optional[EchoStreamConfig] = None
        self.num_updates = 0
        self.keep_clean = False  # set before data is loaded by a criterion that has a teacher

    def resolve_model(self, cfg: FairseqDataclass) -> EchoStreamConfig:
        """The model's full configuration; remembered, and stored in every checkpoint."""
        arch = cfg["_name"]
        sources = ("init_from", "continue_from", "exchange_encoder")
        given = ["--" + name.replace("_", "-") for name in sources if cfg[name]]
        if len(given) > 1:
            raise ValueError(f"{given[0]} and {given[1]} exclude each other")
        own = ("_name", "blank_prior", *sources)
        flags = {name: cfg[name] for name in cfg if name not in own}
        if cfg["exchange_encoder"]:
            self.config = exchange_config(self._trained("exchange_encoder", cfg), flags)
        elif cfg["continue_from"]:
            trained = self._trained("continue_from", cfg)
            self.config = dataclasses.replace(trained, vocoder=None)
        else:
            self.config = build_config(
                arch,
                flags,
                source_vocab_size=len(self.text_tasks[ASR_TASK].vocabulary),
                target_vocab_size=len(self.text_tasks[MT_TASK].vocabulary),
                num_units=self.cfg.target_code_size,
                num_mel_bins=self.data_config.bins,
            )
        learned = self.config.endpoint.method == "learned"
        if self.cfg.stream_sentences and not learned and not cfg["exchange_encoder"]:
            # A model says in its own directory that it knows where sentences end. Heads that are
            # not trained know what they knew.
            endpoint = EndpointConfig("learned", endpoint_ms=max(self.cfg.stream_pause_ms, 1))
            self.config = dataclasses.replace(self.config, endpoint=endpoint)
        report_superseded(self.text_tasks, self.config)
        self.state.merge_state_dict({STATE_KEY: self._describe(self.config)})
        return self.config

    def _trained(self, name: str, cfg: FairseqDataclass) -> EchoStreamConfig:
        """The configuration of the model that a flag names.

        Raises:
            FileNotFoundError, ValueError: no such model, or the data folder was prepared for
                another one: its weights would mean something else.
        """
        other, flag = load_model_dir(cfg[name]), f"--{name.replace('_', '-')} {cfg[name]}"
        for what, task, theirs in (
            ("source vocabulary", ASR_TASK, other.source_vocabulary),
            ("target vocabulary", MT_TASK, other.target_vocabulary),
        ):
            if self.text_tasks[task].vocabulary.pieces != theirs.pieces:
                raise ValueError(
                    f"{flag}: {self.folder} has another {what}; prepare the data with the model's"
                )
        for part in ("mean", "std"):
            here, there = getattr(self.data_config.cmvn, part), getattr(other.cmvn, part)
            if here.shape != there.shape or not torch.allclose(here, there, atol=1e-3):
                raise ValueError(
                    f"{flag}: {self.folder} normalises features with another {part}; prepare the "
                    "data with the model's"
                )
        return other.config

    def _describe(self, config: EchoStreamConfig) -> dict[str, Any]:
        """All that a model directory needs besides weights, as plain data."""
        return {
            "config": to_dict(config),
            "source": _plain_vocabulary(self.text_tasks[ASR_TASK].vocabulary),
            "target": _plain_vocabulary(self.text_tasks[MT_TASK].vocabulary),
            "cmvn": {
                "mean": self.data_config.cmvn.mean.tolist(),
                "std": self.data_config.cmvn.std.tolist(),
            },
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Accept a checkpoint's task state if it describes the same system.

        Raises:
            ValueError: vocabularies or normalisation changed, so that its weights would mean
                something else.
        """
        before, now = state_dict.get(STATE_KEY), self.state.state_dict.get(STATE_KEY)
        if before is not None and now is not None:
            for part, name in (
                ("source", "the source vocabulary"),
                ("target", "the target vocabulary"),
                ("cmvn", "the normalisation"),
            ):
                if before[part] != now[part]:
                    raise ValueError(
                        f"the checkpoint was trained with other data: {name} differs from that "
                        f"of {self.folder}"
                    )
        if before is not None and now is None:
            super().load_state_dict({STATE_KEY: before})

    def load_dataset(self, split: str, epoch: int = 1, combine: bool = False, **_: Any) -> None:
        """Read a split; the model must have been built, as its sizes limit the targets."""
        if self.config is None:
            raise RuntimeError("build the model before loading data: its sizes limit the targets")
        kind = StreamDataset if self.cfg.stream_sentences else EchoStreamDataset
        dataset = kind.load(
            split,
            self.folder,
            self.data_config,
            self.text_tasks,
            self.config,
            training=split == self.cfg.train_subset,
            unfit=str(self.cfg.unfit_targets),
            seed=self.cfg.seed,
            may_miss_targets=str(self.cfg.missing_targets) == "mask",
        )
        dataset.keep_clean = self.keep_clean
        if self.cfg.stream_sentences:
            options = StreamOptions(
                self.cfg.stream_sentences,
                self.cfg.stream_frames,
                self.cfg.stream_pause_ms,
                self.cfg.stream_single_share,
            )
            dataset.join(options, self.config.frontend)
        self.datasets[split] = dataset

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        self.num_updates = update_num
        return super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)

    def max_positions(self) -> tuple[int, int]:
        return self.cfg.max_source_positions, self.cfg.max_target_positions

    @property
    def source_dictionary(self) -> None:
        return None  # sources are features

    @property
    def target_dictionary(self) -> Dictionary:
        return self.unit_dictionary


def _plain_vocabulary(vocabulary: Vocabulary) -> dict[str, Any]:
    """Pieces, and the SentencePiece model as text, which any reader of checkpoints admits."""
    model = vocabulary.processor
    return {
        "pieces": list(vocabulary.pieces[4:]),
        "sentencepiece": (
            None
            if model is None
            else base64.b64encode(model.serialized_model_proto()).decode("ascii")
        ),
    }
