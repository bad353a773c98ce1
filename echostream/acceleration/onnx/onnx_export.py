"""``echostream export-onnx``: a model directory to a folder of graphs; see
:mod:`echostream.acceleration.onnx.onnx_manifest` for what is in it."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchaudio.compliance.kaldi as kaldi
from torch import Tensor, nn

import echostream
from echostream.acceleration.onnx import graphs
from echostream.acceleration.onnx.numpy_filterbank import FilterbankTables
from echostream.acceleration.onnx.onnx_manifest import (
    FRONTEND_FILE,
    MANIFEST_FILE,
    SIDES,
    GraphSpec,
    Manifest,
    TensorSpec,
    VocoderSpec,
    is_export,
)
from echostream.checkpoint import System
from echostream.config import FrontendConfig, MTDecoderConfig
from echostream.files import atomic_directory
from echostream.models.decoders.ctc_decoder import CTCDecoderWithTransformerLayer
from echostream.models.echostream_encoder import EchoStreamSpeechEncoder
from echostream.models.transformer_layer import MultiheadAttention

MAX_GRAPH_BYTES = 2**31 - 1  # of a file in ONNX's format, weights included
POVEY_EXPONENT = 0.85
LOW_HZ = 20.0  # lower edge of the filterbank


@dataclass(frozen=True)
class Graph:
    """One function to export.

    Attributes:
        module: computes it.
        inputs: examples; lengths that vary are larger than 1.
        axes: by input, which axes vary, and what they are called.
        outputs: names.
    """

    module: nn.Module
    inputs: dict[str, Tensor]
    axes: dict[str, dict[int, str]]
    outputs: tuple[str, ...]

    @property
    def weight_bytes(self) -> int:
        return sum(p.numel() * p.element_size() for p in self.module.parameters())


class _Plan:
    """The graphs that a system needs, and the shapes of what a stream remembers."""

    def __init__(self, system: System) -> None:
        self.model, self.config = system.model, system.config
        if not self.config.num_units:
            raise ValueError("only systems with a unit decoder are exported; num_units is 0")
        if not isinstance(self.model.encoder, EchoStreamSpeechEncoder):
            raise ValueError("only systems with an Emformer encoder can be exported to ONNX")
        if self.config.mt.transcribes or self.model.source_frames > 1:
            raise ValueError(
                "only text decoders that read encoder frames and write translations alone can be "
                "exported to ONNX"
            )
        self.encoder = self.model.encoder
        self.state: dict[str, tuple[int | str, ...]] = {}
        self.graphs = {
            "subsampler": self._subsampler(),
            "encoder": self._encoder(),
            "source": self._source(),
            "text_decoder": self._text_decoder(),
            "unit_decoder": self._unit_decoder(),
        }
        vocoder = self.model.vocoder
        self.vocoder: VocoderSpec | None = None
        if vocoder is not None:
            generator = vocoder.generator
            units = {"units": torch.zeros(1, 11, dtype=torch.long)}
            if vocoder.predicts_durations:
                self.graphs["durations"] = Graph(
                    graphs.Durations(vocoder), units, {"units": {1: "N"}}, ("frames",)
                )
            self.graphs["vocoder"] = Graph(
                graphs.Vocoding(vocoder), units, {"units": {1: "F"}}, ("waveform",)
            )
            self.vocoder = VocoderSpec(
                generator.left_context_frames(), generator.duration_radius_units()
            )

    def _remember(self, **tensors: Tensor) -> dict[str, Tensor]:
        self.state.update({name: tuple(tensor.shape) for name, tensor in tensors.items()})
        return tensors

    def _past(self, name: str, length: int, layers: int, attention: MultiheadAttention) -> Tensor:
        shape = (layers, 2, attention.heads, attention.head_dim)
        self.state[name] = ("P", *shape)
        return torch.zeros(length, *shape)

    def _subsampler(self) -> Graph:
        first, second = self.encoder.subsample.init_state(1)
        inputs = {
            "features": torch.zeros(1, 32, self.config.encoder.input_dim),
            "valid": torch.ones(16),
            **self._remember(first=first, second=second),
        }
        return Graph(
            graphs.Subsampling(self.encoder),
            inputs,
            {"features": {1: "T"}, "valid": {0: "T/2"}},
            ("frames", "new_first", "new_second"),
        )

    def _encoder(self) -> Graph:
        config, size, ahead = self.encoder.config, 7, 0
        inputs = {"segment": torch.zeros(1, size, config.embed_dim)}
        axes = {"segment": {1: "S"}, "mask": {0: "Q", 1: "K"}}
        if config.right_context_frames:
            ahead = 3
            inputs["right"], axes["right"] = torch.zeros(1, ahead, config.embed_dim), {1: "R"}
        keys = config.memory_size + config.left_context_frames + ahead + size
        inputs["mask"] = torch.zeros(ahead + size + bool(config.memory_size), keys)
        remembered = {
            "left": (config.left_context_frames, 2 * config.embed_dim),
            "memory": (config.memory_size, 2 * config.embed_dim),
            "conv": (max(config.depthwise_kernel_size - 1, 0), config.embed_dim),
        }
        zeros = {
            name: torch.zeros(config.layers, *shape)
            for name, shape in remembered.items()
            if shape[0] or name == "left"
        }
        inputs.update(self._remember(**zeros))
        outputs = ["frames", "asr_logits", "asr_labels", "st_labels"]
        outputs += [f"new_{name}" for name in zeros]
        heads = {
            "asr": self.model.source_unigram_decoder,
            "st": self.model.ctc_target_unigram_decoder,
        }
        for name, head in heads.items():
            if isinstance(head, CTCDecoderWithTransformerLayer) and head.layers:
                past, attention = f"{name}_past", head.layers[0].self_attn
                inputs[past] = self._past(past, 5, len(head.layers), attention)
                inputs[f"{name}_mask"] = torch.ones(size, 5 + size, dtype=torch.bool)
                axes |= {f"{name}_past": {0: "P"}, f"{name}_mask": {0: "S", 1: "P+S"}}
                outputs.append(f"{name}_new")
        return Graph(graphs.Listening(self.model), inputs, axes, tuple(outputs))

    def _source(self) -> Graph:
        frames = torch.zeros(1, 7, self.config.encoder.embed_dim)
        return Graph(
            graphs.Reading(self.model), {"frames": frames}, {"frames": {1: "S"}}, ("read",)
        )

    def _text_decoder(self) -> Graph:
        config: MTDecoderConfig = self.config.mt
        layer = self.model.target_unigram_decoder.layers[0]
        inputs = {
            "token": torch.zeros(1, 1, dtype=torch.long),
            "position": torch.zeros(1, dtype=torch.long),
            "past": self._past("text_past", 3, config.layers, layer.self_attn),
            "sources": self._past("text_sources", 5, config.layers, layer.encoder_attn),
        }
        axes = {"past": {0: "P"}, "sources": {0: "K"}}
        outputs = ("hidden", "log_probs", "new")
        return Graph(graphs.Translating(self.model), inputs, axes, outputs)

    def _unit_decoder(self) -> Graph:
        config, count, past, read = self.config.unit, 3, 7, 5
        decoder, encoder = self.model.decoder, self.model.synthesizer_encoder
        if decoder is None or encoder is None:
            raise ValueError("this system has no unit decoder to export")
        layer, new = decoder.layers[0], count * config.upsample_ratio
        inputs = {
            "text": torch.zeros(1, count, config.embed_dim),
            "past": self._past("unit_past", past, config.layers, layer.self_attn),
            "mask": torch.ones(new, past + new, dtype=torch.bool),
            "sources": self._past("unit_sources", read, config.layers, layer.encoder_attn),
            "source_mask": torch.ones(read + count, dtype=torch.bool),
        }
        axes = {
            "text": {1: "N"},
            "past": {0: "P"},
            "mask": {0: "N*r", 1: "P+N*r"},
            "sources": {0: "K"},
            "source_mask": {0: "K+N"},
        }
        outputs = ["labels", "new", "read"]
        if self.config.t2u.layers:
            attention = encoder.layers[0].self_attn
            inputs["t2u_past"] = self._past("t2u_past", 4, self.config.t2u.layers, attention)
            inputs["t2u_mask"] = torch.ones(count, 4 + count, dtype=torch.bool)
            axes |= {"t2u_past": {0: "P"}, "t2u_mask": {0: "N", 1: "P+N"}}
            outputs.append("t2u_new")
        return Graph(graphs.Speaking(self.model), inputs, axes, tuple(outputs))


def export_onnx(system: System, folder: Path) -> Manifest:
    """Write a system as graphs for :func:`echostream.acceleration.onnx.runtime.load_onnx_dir`.

    Args:
        system: in float32 on the CPU.
        folder: is replaced if it holds an export already.

    Returns:
        What was written beside them.

    Raises:
        ValueError: a system that cannot be exported, or onnx or onnxscript are not installed.
        FileExistsError: the folder holds something else.
    """
    graphs.check_exportable(system.model)
    for module in ("onnx", "onnxscript"):
        if importlib.util.find_spec(module) is None:
            raise ValueError(f"{module} is not installed; pip install 'echostream[onnx]'")
    first = next(system.model.parameters())
    if first.dtype != torch.float32 or first.device.type != "cpu":
        raise ValueError(
            f"systems are exported in float32 from the CPU, got {first.dtype} on {first.device}"
        )
    plan = _Plan(system)
    for name, graph in plan.graphs.items():
        if graph.weight_bytes > MAX_GRAPH_BYTES:
            raise ValueError(
                f"an ONNX file holds at most {MAX_GRAPH_BYTES} bytes, {name} has "
                f"{graph.weight_bytes} bytes of weights"
            )
    with atomic_directory(Path(folder), is_export, "a folder of exported graphs") as staging:
        specs = {name: _write(name, graph, staging) for name, graph in plan.graphs.items()}
        tables = filterbank_tables(system)
        (staging / FRONTEND_FILE).write_bytes(tables.to_npz())
        vocabularies = dict(
            zip(SIDES, (system.source_vocabulary, system.target_vocabulary), strict=True)
        )
        for side, vocabulary in vocabularies.items():
            vocabulary.save(staging / f"{side}.dict.txt", staging / f"{side}.spm.model")
        manifest = Manifest(
            system.config,
            specs,
            plan.state,
            plan.vocoder,
            {side: len(vocabulary) for side, vocabulary in vocabularies.items()},
            _versions(staging / specs["encoder"].file),
            {
                file.name: hashlib.sha256(file.read_bytes()).hexdigest()
                for file in sorted(staging.iterdir())
            },
        )
        (staging / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def _write(name: str, graph: Graph, folder: Path) -> GraphSpec:
    file = f"{name}.onnx"
    with _quiet(), torch.no_grad():
        torch.onnx.export(
            graph.module.eval(),
            (),
            folder / file,
            kwargs=graph.inputs,
            dynamo=True,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_shapes={
                key: dict.fromkeys(graph.axes.get(key, {}), torch.export.Dim.DYNAMIC)
                for key in graph.inputs
            },
            external_data=False,
            verbose=False,
        )
    inputs = [
        TensorSpec(
            key,
            str(value.dtype).removeprefix("torch."),
            tuple(graph.axes.get(key, {}).get(axis, size) for axis, size in enumerate(value.shape)),
        )
        for key, value in graph.inputs.items()
    ]
    return GraphSpec(file, tuple(inputs), tuple(_output_specs(folder / file)))


def _output_specs(path: Path) -> Iterator[TensorSpec]:
    import onnx

    for output in onnx.load(path).graph.output:
        kind = output.type.tensor_type
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
        # What varies has names of its own here; those of the inputs say more.
        shape = tuple(axis.dim_value or "?" for axis in kind.shape.dim)
        yield TensorSpec(output.name, dtype, shape)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter and what it stands on log what they do, which users need not read."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _versions(path: Path) -> dict[str, str]:
    import onnx

    (opset,) = (one.version for one in onnx.load(path).opset_import if not one.domain)
    return {
        "echostream": echostream.__version__,
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "opset": str(opset),
    }


def filterbank_tables(system: System) -> FilterbankTables:
    """What :func:`echostream.audio.fbank` multiplies with, and the normalisation behind it."""
    config: FrontendConfig = system.config.frontend
    size = config.window_samples
    window = torch.hann_window(size, periodic=False).pow(POVEY_EXPONENT)
    points = 1 << (size - 1).bit_length()
    mel, _ = kaldi.get_mel_banks(
        config.num_mel_bins, points, config.sample_rate, LOW_HZ, 0.0, 100.0, -500.0, 1.0
    )
    arrays: list[Any] = [window, mel.T, system.cmvn.mean, system.cmvn.std]
    return FilterbankTables(*(np.ascontiguousarray(array.numpy()) for array in arrays))
