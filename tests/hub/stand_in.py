"""Stand-ins for the released models: their shapes, random weights, files as ``fairseq-train``
saves them, optimizer's state included."""

from __future__ import annotations

import json
import shutil
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from echostream.audio import CMVN
from echostream.checkpoint import System, save_model_dir
from echostream.config import ChunkConformerConfig, EchoStreamConfig, preset
from echostream.hub.file_checks import digest_file
from echostream.hub.table import (
    DATA_YAML,
    TASKS_YAML,
    WEIGHTS_REPO,
    WEIGHTS_REVISION,
    HubFile,
    Licence,
    Part,
    ReleasedModel,
    WebFile,
)
from echostream.models.echostream_model import seeded_model
from echostream.streamspeech.fairseq_export import export_to_fairseq
from echostream.synthetic import random_system as tiny_system
from echostream.text import SPECIALS, WORD_START, Vocabulary
from tests.hub.server import HubServer, Repo

CHECKPOINT = "streamspeech.simultaneous.fr-en.pt"
VOCODER_REPO, VOCODER_REVISION = "someone/vocoder", "b" * 40


def tiny_streamspeech(seed: int = 1) -> System:
    """A tiny system with StreamSpeech's encoder and decoders."""
    base = tiny_system()
    encoder = ChunkConformerConfig(
        conv_channels=16, embed_dim=32, layers=2, attention_heads=4, ffn_dim=64
    )
    config = as_converted(replace(base.config, encoder=encoder))
    return replace(base, config=config, model=seeded_model(config, seed))


def full_streamspeech() -> System:
    """The sizes of the published training command, with random weights."""
    config = as_converted(preset("streamspeech"))
    vocabularies = [
        Vocabulary([f"{WORD_START if number % 2 else ''}x{number}" for number in range(count)])
        for count in (
            config.source_vocab_size - len(SPECIALS),
            config.target_vocab_size - len(SPECIALS),
        )
    ]
    bins = config.frontend.num_mel_bins
    cmvn = CMVN(torch.full((bins,), 12.0), torch.full((bins,), 4.0))
    return System(config, seeded_model(config, 1), *vocabularies, cmvn)


def as_converted(config: EchoStreamConfig) -> EchoStreamConfig:
    """StreamSpeech's decoders look back over everything, and its CTC heads are projections."""
    return replace(
        config,
        asr_ctc=replace(config.asr_ctc, layers=0, context_frames=None),
        st_ctc=replace(config.st_ctc, layers=0, context_frames=None),
        mt=replace(config.mt, context_tokens=None, source_context_frames=None),
        t2u=replace(config.t2u, context_tokens=None),
        unit=replace(config.unit, context_tokens=None, positions="streamspeech"),
    )


@dataclass(frozen=True)
class Release:
    """What its authors would publish.

    Attributes:
        checkpoint, vocoder, vocoder_config: files.
        data: the data directory.
    """

    checkpoint: Path
    data: Path
    vocoder: Path
    vocoder_config: Path


def adam_state(count: int) -> dict[str, Any]:
    """What fairseq keeps of Adam after training with ``--fp16``: two flat tensors."""
    flat = torch.zeros(count)
    return {
        "state": {0: {"step": 50_000, "exp_avg": flat, "exp_avg_sq": torch.zeros(count)}},
        "param_groups": [
            {
                "lr": 4.5e-4,
                "betas": (0.9, 0.98),
                "eps": 1e-8,
                "weight_decay": 0.0,
                "amsgrad": False,
                "params": [0],
            }
        ],
        "loss_scale": 8.0,
    }


def as_trained(saved: dict[str, Any], *, bidirectional: bool = False) -> dict[str, Any]:
    """A checkpoint with all that ``fairseq-train`` saves beside the weights."""
    count = sum(
        tensor.numel()
        for tensor in {t.data_ptr(): t for t in saved["model"].values()}.values()
        if tensor.is_floating_point()
    )
    history = [
        {
            "criterion_name": "SpeechToUnit2passMultitaskTaskCriterion",
            "optimizer_name": "MemoryEfficientFP16Optimizer",
            "lr_scheduler_state": {"best": 4.2},
            "num_updates": 50_000,
        }
    ]
    if bidirectional:
        for part in ("model", "task"):
            vars(saved["cfg"][part]).pop("uni_encoder", None)
    return saved | {
        "criterion": OrderedDict(),
        "optimizer_history": history,
        "task_state": {},
        "extra_state": {
            "metrics": OrderedDict(),
            "previous_training_time": 1.0e5,
            "train_iterator": {"epoch": 60, "iterations_in_epoch": 0, "shuffle": True},
            "val_loss": 4.2,
        },
        "last_optimizer_state": adam_state(count),
    }


def build_release(
    system: System, out: Path, *, language: str = "fr", bidirectional: bool = False
) -> Release:
    """Write a release under its published file names; the YAML's paths exist nowhere.

    Args:
        bidirectional: as the published command trains the offline models.
    """
    model, exported = out / "model", out / "exported"
    save_model_dir(model, system)
    export_to_fairseq(model, exported)
    saved = torch.load(exported / "streamspeech.pt", weights_only=False)
    checkpoint = out / CHECKPOINT
    torch.save(as_trained(saved, bidirectional=bidirectional), checkpoint)
    data = out / "data"
    places = {"src": f"src_unigram6000/spm_unigram_{language}"}
    places["tgt"] = f"tgt_unigram6000/spm_unigram_{language}"
    for side, place in places.items():
        (data / place).parent.mkdir(parents=True)
        shutil.copy(exported / "config" / side / "dict.txt", data / f"{place}.txt")
        spm = exported / "config" / side / "dict.model"
        if spm.is_file():
            shutil.copy(spm, data / f"{place}.model")
    shutil.copy(exported / "config" / "gcmvn.npz", data)
    nowhere = Path("/data/somebody/StreamSpeech/configs") / f"{language}-en"
    settings = yaml.safe_load((exported / "config" / DATA_YAML).read_text())
    settings["global_cmvn"]["stats_npz_path"] = str(nowhere / "gcmvn.npz")
    settings["vocoder"]["checkpoint"] = "/data/somebody/vocoder/g_00500000"
    settings["vocoder"]["config"] = "/data/somebody/vocoder/config.json"
    tasks = yaml.safe_load((exported / "config" / TASKS_YAML).read_text())
    for task, side in (("source_unigram", "src"), ("target_unigram", "tgt")):
        tasks[task]["dict"] = str(nowhere / f"{places[side]}.txt")
    tasks["ctc_target_unigram"]["dict"] = tasks["target_unigram"]["dict"]
    for task in tasks.values():
        task.pop("data", None)
    (data / DATA_YAML).write_text(yaml.safe_dump(settings))
    (data / TASKS_YAML).write_text(yaml.safe_dump(tasks))
    voice = exported / "config" / "voc"
    shutil.move(voice / "g", out / "g_00500000")
    config = json.loads((voice / "config.json").read_text()) | {"num_gpus": 0, "seed": 1234}
    (out / "config.json").write_text(json.dumps(config))
    shutil.rmtree(exported)
    shutil.rmtree(model)
    return Release(checkpoint, data, out / "g_00500000", out / "config.json")


def as_released(release: Release, *, name: str = "stand-in-fr-en", speaks: bool = True):
    """A table's entry for a release: hashes of the data and the vocoder are known, those of the
    checkpoint and of the vocoder's configuration only the Hub's metadata say."""
    parts = tuple(
        Part(
            path.relative_to(release.data).as_posix(),
            (WebFile("github", f"conf/{path.relative_to(release.data).as_posix()}"),),
            digest_file(path).sha256,
            roughly=10_000,
        )
        for path in sorted(p for p in release.data.rglob("*") if p.is_file())
    )
    vocoder = (
        Part(
            "vocoder/g_00500000",
            (
                HubFile(VOCODER_REPO, VOCODER_REVISION, "model.pt"),
                WebFile("fairseq", "voc/g_00500000"),
            ),
            digest_file(release.vocoder).sha256,
            size=release.vocoder.stat().st_size,
            large=True,
        ),
        Part("vocoder/config.json", (HubFile(VOCODER_REPO, VOCODER_REVISION, "config.json"),)),
    )
    return ReleasedModel(
        name=name,
        title="Stand-in French to English",
        source_language="fr",
        target_language="en",
        tasks=("asr", "s2tt", "s2st") if speaks else ("asr", "s2tt"),
        chunk_ms=320 if speaks else None,
        checkpoint=Part(
            CHECKPOINT,
            (HubFile(WEIGHTS_REPO, WEIGHTS_REVISION, CHECKPOINT),),
            roughly=release.checkpoint.stat().st_size,
            large=True,
        ),
        data=parts,
        vocoder=vocoder if speaks else None,
        licences=(Licence("none stated", "weights", "nowhere"),),
    )


def publish(release: Release, hub: HubServer) -> None:
    """Put a release where :func:`as_released` says it is."""
    weights, voice = Repo(), Repo()
    weights.commit(WEIGHTS_REVISION, {CHECKPOINT: release.checkpoint})
    voice.commit(
        VOCODER_REVISION, {"model.pt": release.vocoder, "config.json": release.vocoder_config}
    )
    hub.repos |= {WEIGHTS_REPO: weights, VOCODER_REPO: voice}
    for path in release.data.rglob("*"):
        if path.is_file():
            hub.web[f"/conf/{path.relative_to(release.data).as_posix()}"] = path
    hub.web["/voc/g_00500000"] = release.vocoder
