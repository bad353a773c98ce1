"""Filterbank and encoders."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from echostream.config.checks import require, require_heads, require_layers
from echostream.config.loading import MAY_BE_MISSING

ENCODER_FRAME_MS = 40  # 10 ms fbank shift times 4x subsampling


@dataclass(frozen=True)
class FrontendConfig:
    """Log-mel filterbank: Kaldi's, or Whisper's.

    Whisper's windows are centred on their frames, and its values are scaled by the loudest so far
    (in an utterance by itself, Whisper takes the loudest of all).
    """

    sample_rate: int = 16000
    num_mel_bins: int = 80
    window_ms: int = 25
    shift_ms: int = 10
    kind: Literal["kaldi", "whisper"] = field(default="kaldi", metadata=MAY_BE_MISSING)

    def __post_init__(self) -> None:
        require(
            self.window_ms >= self.shift_ms > 0,
            "frontend: window_ms must be at least shift_ms and shift_ms positive, "
            f"got {self.window_ms} and {self.shift_ms}",
        )

    @property
    def window_samples(self) -> int:
        return self.sample_rate * self.window_ms // 1000

    @property
    def shift_samples(self) -> int:
        return self.sample_rate * self.shift_ms // 1000


@dataclass(frozen=True)
class EmformerConfig:
    """Streaming Emformer encoder (Shi et al., ICASSP 2021).

    ``segment_frames`` is only the default partition: weights serve any segment length.
    ``conv_channels`` counts the channels of both Conv2d layers, or those of the first
    Conv1d-GLU layer before its gate; ``conv1d_glu_linear`` has a linear layer behind them, as
    StreamSpeech's encoder has. ``depthwise_kernel_size`` frames enter a causal convolution
    behind the attention of every layer; 0 leaves it out, as the paper and torchaudio do.
    ``first_ffn_dim`` hidden units of a feed-forward block in front of the attention, where a
    Conformer has one; 0 leaves it out. ``distance_reach`` frames to either side have a learned
    bias of their own in every head's attention; 0 leaves biases out.

    The last fields are for weights that were not born as an Emformer (Whisper's encoder):

    - ``subsampler`` ``whisper``: its stem of two convolutions halves the frame rate only. The
      stack then works on frames of 20 ms, which its contexts count; pairs of its frames become one
      encoder frame.
    - ``output_norm``: the Emformer normalises what each layer gives out, other pre-norm stacks
      only what the last does.
    - ``positions``: sinusoids added behind the subsampler, counted from a stream's beginning
      modulo ``position_period``, so that they never end.
    """

    kind: Literal["emformer"] = "emformer"
    input_dim: int = 80
    subsampler: Literal["conv2d", "conv1d_glu", "conv1d_glu_linear", "whisper"] = "conv2d"
    conv_channels: int = 64
    conv_kernel_sizes: tuple[int, ...] = (5, 5)
    embed_dim: int = 256
    layers: int = 16
    attention_heads: int = 4
    ffn_dim: int = 2048
    dropout: float = 0.1
    activation: Literal["relu", "gelu", "silu"] = "relu"
    segment_frames: int = 8
    left_context_frames: int = 32
    right_context_frames: int = 0
    memory_size: int = 4
    tanh_on_memory: bool = False
    depthwise_kernel_size: int = 0
    first_ffn_dim: int = field(default=0, metadata=MAY_BE_MISSING)
    distance_reach: int = field(default=0, metadata=MAY_BE_MISSING)
    output_norm: Literal["layers", "stack"] = field(default="layers", metadata=MAY_BE_MISSING)
    positions: Literal["none", "sinusoid"] = field(default="none", metadata=MAY_BE_MISSING)
    position_period: int = field(default=1500, metadata=MAY_BE_MISSING)

    @property
    def stack_frames(self) -> int:
        """Frames of the stack in one encoder frame."""
        return 2 if self.subsampler == "whisper" else 1

    def __post_init__(self) -> None:
        require_heads("encoder", self.embed_dim, self.attention_heads)
        require(
            self.position_period > 0,
            f"encoder: position_period must be positive, got {self.position_period}",
        )
        require(
            self.right_context_frames % self.stack_frames == 0,
            "encoder: right_context_frames must fill whole encoder frames of "
            f"{self.stack_frames}, got {self.right_context_frames}",
        )
        require_layers("encoder", self.layers)
        require(self.segment_frames > 0, "encoder: segment_frames must be positive")
        for name in (
            "left_context_frames",
            "right_context_frames",
            "memory_size",
            "depthwise_kernel_size",
            "first_ffn_dim",
            "distance_reach",
        ):
            require(getattr(self, name) >= 0, f"encoder: {name} must not be negative")


@dataclass(frozen=True)
class ChunkConformerConfig:
    """StreamSpeech's chunk Conformer encoder, under StreamSpeech's state-dict names.

    ``conv_chunk_frames`` is the chunk of the convolutions; the original ties it to 8 or 16
    whatever the attention chunk is. ``None`` derives it from the segment length as the
    original's agent does.
    """

    kind: Literal["chunk_conformer"] = "chunk_conformer"
    input_dim: int = 80
    conv_channels: int = 1024
    conv_kernel_sizes: tuple[int, ...] = (5, 5)
    embed_dim: int = 256
    layers: int = 12
    attention_heads: int = 4
    ffn_dim: int = 2048
    depthwise_kernel_size: int = 31
    dropout: float = 0.1
    segment_frames: int = 8
    conv_chunk_frames: int | None = None

    def __post_init__(self) -> None:
        require_heads("encoder", self.embed_dim, self.attention_heads)
        require_layers("encoder", self.layers)
        require(self.segment_frames > 0, "encoder: segment_frames must be positive")
        require(
            self.depthwise_kernel_size % 2 == 1,
            f"encoder: depthwise_kernel_size must be odd, got {self.depthwise_kernel_size}",
        )


EncoderConfig = EmformerConfig | ChunkConformerConfig
