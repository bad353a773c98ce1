"""CodeVocos: unit frames to waveform by causal ConvNeXt blocks and an inverse STFT.

After Vocos (Siuzdak, 2023): no upsampling, all layers at the rate of the units, and spectra at the
end. What differs is where phase comes from. Vocos learns it against discriminators, which takes
days. Here a pulse train at a predicted pitch and a fixed noise are filtered in the frequency
domain, as in harmonic-plus-noise and neural source-filter models (Wang et al., 2019): phase runs
on by itself, and spectral losses are enough. Both transforms are matrix products.

Streaming: whatever a stream depends on is in a :class:`CodeVocosState` of fixed shape, a row per
stream. A step takes any number of frames of each row; rows may stand at different places. Frame t
is computed once ``lookahead_frames`` more are there, its samples once the next spectrum is; a
``final`` step gives out the rest. The same code does whole utterances, so any way of cutting the
frames gives the same samples.

Shapes: B streams, T unit frames, F spectra, H samples of a hop, K frequencies, C channels.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from echostream.config import CodeVocosConfig
from echostream.models.module_list import module_list

NOISE_SEED = 2023
PULSE_LEVEL = 0.03  # so that filters of about 1 make speech of usual loudness
HIGHEST_LOG_GAIN = 6.0
SMALL_SINE = 1e-4


@dataclass(frozen=True)
class CodeVocosState:
    """What the next step depends on.

    Attributes:
        position: (B,) unit frames taken in, int64.
        embedded: (B, 2 * lookahead_frames, C) the last embedded frames.
        contexts: (B, blocks, kernel - 1, C) the last inputs of every block.
        f0: (B,) pitch of the last spectrum in Hz, 0 before the first.
        phase: (B,) of the pulse train behind it, in periods.
        pulses: (B, H) its last hop.
        overlap: (B, H) second half of the last spectrum's samples.
    """

    position: Tensor
    embedded: Tensor
    contexts: Tensor
    f0: Tensor
    phase: Tensor
    pulses: Tensor
    overlap: Tensor

    def to(self, device: torch.device | str) -> CodeVocosState:
        return CodeVocosState(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


@dataclass(frozen=True)
class CodeVocosOutput:
    """What a step returns.

    Attributes:
        samples: (B, S); of row b those from ``begins[b]`` on, ``lengths[b]`` of them, are new.
        begins, lengths: (B,) int64.
        f0: (B, F) predicted pitch of the spectra computed, Hz.
        state: for the next step.
    """

    samples: Tensor
    begins: Tensor
    lengths: Tensor
    f0: Tensor
    state: CodeVocosState

    def waves(self) -> list[Tensor]:
        """(samples,) new samples of each row."""
        spans = zip(self.begins.tolist(), self.lengths.tolist(), strict=True)
        return [
            row[begin : begin + length]
            for row, (begin, length) in zip(self.samples, spans, strict=True)
        ]


@dataclass(frozen=True)
class _Shape:
    """What the learned layers say of F spectra: gains, pitch, which have begun, their numbers; how
    many unit frames of each row are done with, and two parts of the new state."""

    log_gains: Tensor
    f0: Tensor
    started: Tensor
    which: Tensor
    done: Tensor
    embedded: Tensor
    contexts: Tensor


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution over the last ``kernel`` frames, norm, two pointwise layers, residual.

    The scale of the residual begins small (Liu et al., 2022).
    """

    def __init__(self, width: int, hidden: int, kernel: int, scale: float) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, kernel, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)
        self.scale = nn.Parameter(torch.full((width,), scale))

    def forward(self, read: Tensor, x: Tensor) -> Tensor:
        """(B, kernel - 1 + T, C) frames with their past and (B, T, C) themselves."""
        y = self.depthwise(read.transpose(1, 2)).transpose(1, 2)
        y = self.contract(F.gelu(self.expand(self.norm(y))))
        return x + self.scale * y


class CodeVocos(nn.Module):
    """The network from unit frames to samples.

    Args:
        config: sizes.

    Attributes:
        trains_in_half: in training, the blocks compute in bfloat16.
    """

    # Of the Fourier transform, as (2 H,), (2 H, 2 K), (2 K, 2 H), and (frames, 2 K) of noise.
    window: Tensor
    analysis: Tensor
    synthesis: Tensor
    noise: Tensor

    def __init__(self, config: CodeVocosConfig) -> None:
        super().__init__()
        self.config, self.trains_in_half = config, False
        width, ahead = config.width, config.lookahead_frames
        self.states = nn.Embedding(config.num_embeddings // config.pitch_classes, width)
        self.pitches = (
            nn.Embedding(config.pitch_classes, width) if config.pitch_classes > 1 else None
        )
        self.around = nn.Conv1d(width, width, 2 * ahead + 1)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.blocks = module_list(
            ConvNeXtBlock(width, config.hidden_width, config.kernel, 1 / config.blocks)
            for _ in range(config.blocks)
        )
        self.last_norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, config.frames_per_unit * (3 * config.bins + 1))
        self._initialise()
        for name, table in _transforms(config.hop_samples).items():
            self.register_buffer(name, table.to(self.head.weight), persistent=False)
        noise = _noise(config.noise_frames, config.bins).to(self.head.weight)
        self.register_buffer("noise", noise, persistent=False)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv1d)):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.states.weight, std=0.5)
        nn.init.dirac_(self.around.weight)  # frames begin as themselves
        with torch.no_grad():
            self.around.weight.add_(torch.randn_like(self.around.weight) * 0.02)
            self.head.bias.view(self.config.frames_per_unit, -1)[:, : 2 * self.config.bins] = -1.0

    def init_state(self, batch_size: int = 1) -> CodeVocosState:
        """State of streams in which nothing was spoken yet, on the weights' device."""
        config, weight = self.config, self.head.weight
        hop = weight.new_zeros(batch_size, config.hop_samples)
        return CodeVocosState(
            position=torch.zeros(batch_size, dtype=torch.long, device=weight.device),
            embedded=weight.new_zeros(batch_size, 2 * config.lookahead_frames, config.width),
            contexts=weight.new_zeros(batch_size, config.blocks, config.kernel - 1, config.width),
            f0=weight.new_zeros(batch_size),
            phase=weight.new_zeros(batch_size),
            pulses=hop,
            overlap=hop.clone(),
        )

    def embed(self, units: Tensor) -> Tensor:
        """(B, T) units to (B, T, C)."""
        classes = self.config.pitch_classes
        if self.pitches is None:
            return self.states(units)
        return self.states(units // classes) + self.pitches(units % classes)

    def forward(self, units: Tensor, f0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Whole sequences.

        Args:
            units: (B, T) one unit per frame.
            f0: (B, F) pitch in Hz to speak at; by default the predicted one.

        Returns:
            (B, T * unit_samples) waveform and (B, F) predicted pitch in Hz.
        """
        config, (rows, frames) = self.config, units.shape
        counts = torch.full((rows,), frames, dtype=torch.long, device=units.device)
        skipped = config.lookahead_frames * config.frames_per_unit
        given = None if f0 is None else F.pad(f0, (skipped, 0))
        out = self.step(units, counts, self.init_state(rows), counts >= 0, f0=given)
        begin = (skipped + 1) * config.hop_samples
        samples = out.samples[:, begin : begin + frames * config.unit_samples]
        return samples, out.f0[:, skipped:]

    def step(
        self,
        units: Tensor,
        counts: Tensor,
        state: CodeVocosState,
        final: Tensor | None = None,
        *,
        f0: Tensor | None = None,
    ) -> CodeVocosOutput:
        """Take in new frames of B streams.

        Args:
            units: (B, T) one unit per frame; behind ``counts[b]`` whatever is in range.
            counts: (B,) new frames of each row, 0 to T.
            final: (B,) rows that end here, whose rest is given out and whose state starts anew;
                None: no row ends.
            f0: (B, F) pitch in Hz to speak at; by default the predicted one.
        """
        config = self.config
        ahead, per_unit = config.lookahead_frames, config.frames_per_unit
        shape = self._shape(units, counts, state, final)
        pitch = torch.where(shape.started, shape.f0 if f0 is None else f0, 0.0)
        pulses, phases, pitches = self._pulses(pitch, state)
        windows = self._filter(shape.log_gains, pulses, shape.which)
        hop = config.hop_samples
        ends = shape.done * per_unit
        inside = torch.arange(windows.size(1), device=units.device) < ends[:, None]
        windows = torch.where((shape.started & inside)[..., None], windows, 0.0)
        tails = torch.cat([state.overlap[:, None], windows[..., hop:]], dim=1)
        samples = tails + F.pad(windows[..., :hop], (0, 0, 0, 1))
        following = CodeVocosState(
            position=state.position + counts,
            embedded=shape.embedded,
            contexts=shape.contexts,
            f0=_pick(pitches, ends),
            phase=_pick(phases, ends),
            pulses=_pick(pulses, ends),
            overlap=_pick(tails, ends),
        )
        # A hop is complete when the spectrum behind it is there, or when none will come.
        before = ((state.position - ahead) * per_unit - 1).clamp(min=0)
        behind = ((state.position + shape.done - ahead) * per_unit - 1).clamp(min=0)
        if final is not None:
            behind = torch.where(final, (state.position + counts) * per_unit, behind)
            following = _restart(following, self.init_state(units.size(0)), final)
        first = (1 - (state.position - ahead) * per_unit).clamp(min=0)
        return CodeVocosOutput(
            samples.flatten(1), first * hop, (behind - before) * hop, shape.f0, following
        )

    def gains(self, units: Tensor) -> tuple[Tensor, Tensor]:
        """Whole sequences (B, T) to the (B, F, 3 K) log gains of pulses and of noise and phases of
        the former's filter, and the (B, F) pitch in Hz."""
        rows, frames = units.shape
        counts = torch.full((rows,), frames, dtype=torch.long, device=units.device)
        shape = self._shape(units, counts, self.init_state(rows), counts >= 0)
        skipped = self.config.lookahead_frames * self.config.frames_per_unit
        return shape.log_gains[:, skipped:], shape.f0[:, skipped:]

    def _shape(
        self, units: Tensor, counts: Tensor, state: CodeVocosState, final: Tensor | None
    ) -> _Shape:
        """The part of :meth:`step` that is learned."""
        config = self.config
        ahead, per_unit = config.lookahead_frames, config.frames_per_unit
        if units.size(1) == 0:
            units = F.pad(units, (0, 1))
        place = torch.arange(units.size(1), device=units.device)
        embedded = self.embed(units) * (place < counts[:, None])[..., None]
        done = counts
        if final is not None:
            embedded = F.pad(embedded, (0, 0, 0, ahead))
            done = counts + ahead * final
        read = torch.cat([state.embedded, embedded], dim=1)
        x = self.norm(self.around(read.transpose(1, 2)).transpose(1, 2))
        new_embedded = _last(read, done, 2 * ahead)
        # Frames before a stream's first one are zero to every layer.
        at = torch.arange(x.size(1), device=x.device) + (state.position - ahead)[:, None]
        started = (at >= 0)[..., None]
        contexts = []
        with self._arithmetic(x.device):
            for block, context in zip(self.blocks, state.contexts.unbind(1), strict=True):
                x = torch.where(started, x, 0.0)
                read = torch.cat([context, x], dim=1)
                contexts.append(_last(read, done, config.kernel - 1))
                x = block(read, x)
        spectra = self.head(self.last_norm(x)).unflatten(2, (per_unit, -1)).flatten(1, 2)
        log_gains, log_f0 = spectra.split([3 * config.bins, 1], dim=2)
        return _Shape(
            log_gains=log_gains,
            f0=self._pitch(log_f0[..., 0]),
            started=started.expand(-1, -1, per_unit).flatten(1),
            which=(at[..., None] * per_unit + torch.arange(per_unit, device=x.device)).flatten(1),
            done=done,
            embedded=new_embedded,
            contexts=torch.stack(contexts, dim=1),
        )

    def _arithmetic(self, device: torch.device) -> AbstractContextManager[object]:
        if self.training and self.trains_in_half:
            return torch.autocast(device.type, torch.bfloat16)
        return nullcontext()

    def _pitch(self, x: Tensor) -> Tensor:
        """Unbounded network output to Hz, between the bounds on a logarithmic scale."""
        low, high = math.log(self.config.lowest_f0), math.log(self.config.highest_f0)
        return torch.exp(low + (high - low) * torch.sigmoid(x))

    def _pulses(self, f0: Tensor, state: CodeVocosState) -> tuple[Tensor, Tensor, Tensor]:
        """(B, F) pitch to pulse trains (B, 1 + F, H), the hop before first; with them the phases
        at the ends of the hops and the pitches, (B, 1 + F) each."""
        config = self.config
        hop, rate = config.hop_samples, config.sampling_rate
        pitches = torch.cat([state.f0[:, None], f0], dim=1)
        previous = pitches[:, :-1]
        previous = torch.where(previous > 0, previous, f0)
        lasted = (previous + f0) * (0.5 * hop / rate)
        # Summed in float64: in float32 an hour of speech would lose its high harmonics.
        phases = torch.cat([state.phase[:, None], lasted], dim=1).double().cumsum(1)
        phases = (phases - phases.floor()).to(f0.dtype)
        n = torch.arange(hop, device=f0.device, dtype=f0.dtype)
        # Pitch glides from the previous spectrum's to this one's.
        periods = previous[..., None] * n + (f0 - previous)[..., None] * (n * n / (2 * hop))
        phase = phases[:, :-1, None] + periods / rate
        # Every harmonic below half the rate at one level, summed in closed form.
        highest = torch.maximum(previous, f0).clamp(min=config.lowest_f0)
        count = 2 * torch.floor(rate / 2 / highest)[..., None] + 1
        angle = math.pi * (phase - phase.round())
        sine = torch.sin(angle)
        small = sine.abs() < SMALL_SINE
        summed = torch.sin(count * angle) / torch.where(small, 1.0, sine)
        train = torch.where(small, count, summed) - 1
        train = torch.where(f0[..., None] > 0, train * PULSE_LEVEL, 0.0)
        return torch.cat([state.pulses[:, None], train], dim=1), phases, pitches

    def _filter(self, log_gains: Tensor, pulses: Tensor, which: Tensor) -> Tensor:
        """Shape pulses and noise.

        Args:
            log_gains: (B, F, 3 K) log gains of pulses and of noise, phase of the former's filter.
            pulses: (B, 1 + F, H).
            which: (B, F) number of each spectrum in its stream.

        Returns:
            (B, F, 2 H) windowed samples.
        """
        frames = torch.cat([pulses[:, :-1], pulses[:, 1:]], dim=2)
        if self.training:  # the same numbers, cheaper where gradients are wanted
            transformed = torch.fft.rfft(frames * self.window)
            real, imaginary = transformed.real, transformed.imag
        else:
            real, imaginary = (frames @ self.analysis).chunk(2, dim=2)
        noise = self.noise[torch.remainder(which, self.config.noise_frames)]
        noise_real, noise_imaginary = noise.chunk(2, dim=2)
        voiced, unvoiced, phase = log_gains.chunk(3, dim=2)
        voiced = voiced.clamp(max=HIGHEST_LOG_GAIN).exp()
        unvoiced = unvoiced.clamp(max=HIGHEST_LOG_GAIN).exp()
        cosine, sine = voiced * torch.cos(phase), voiced * torch.sin(phase)
        shaped = real * cosine - imaginary * sine + noise_real * unvoiced
        shaped_imaginary = real * sine + imaginary * cosine + noise_imaginary * unvoiced
        if self.training:
            return torch.fft.irfft(torch.complex(shaped, shaped_imaginary)) * self.window
        return torch.cat([shaped, shaped_imaginary], dim=2) @ self.synthesis


def _last(read: Tensor, done: Tensor, count: int) -> Tensor:
    """(B, past + T, C), of which ``done[b]`` were new, to the (B, count, C) before the next."""
    at = done[:, None] + torch.arange(count, device=read.device)
    return read.gather(1, at[..., None].expand(-1, -1, read.size(2)))


def _pick(values: Tensor, at: Tensor) -> Tensor:
    """(B, N, ...) to the (B, ...) at place ``at[b]`` of each row."""
    index = at.view(-1, *[1] * (values.dim() - 1)).expand(-1, 1, *values.shape[2:])
    return values.gather(1, index)[:, 0]


def _restart(state: CodeVocosState, fresh: CodeVocosState, rows: Tensor) -> CodeVocosState:
    """``state`` with some rows as in ``fresh``."""
    chosen = {}
    for field in fields(state):
        value = getattr(state, field.name)
        mask = rows.view(-1, *[1] * (value.dim() - 1))
        chosen[field.name] = torch.where(mask, getattr(fresh, field.name), value)
    return CodeVocosState(**chosen)


def _transforms(hop: int) -> dict[str, Tensor]:
    """Real matrices of the windowed Fourier transform of 2 * hop samples and of its inverse.

    Both windows are the root of a Hann window, so spectra that nobody changes overlap to what they
    were made of.
    """
    size = 2 * hop
    n = np.arange(size)
    window = np.sin(np.pi * (n + 0.5) / size)
    angle = 2 * np.pi * np.outer(n, np.arange(hop + 1)) / size
    analysis = np.concatenate([np.cos(angle), -np.sin(angle)], axis=1) * window[:, None]
    weight = np.full(hop + 1, 2.0 / size)
    weight[[0, -1]] = 1.0 / size
    inverse = np.concatenate([np.cos(angle) * weight, -np.sin(angle) * weight], axis=1)
    synthesis = (inverse * window[:, None]).T
    tables = {"window": window, "analysis": analysis, "synthesis": synthesis}
    return {name: torch.from_numpy(table) for name, table in tables.items()}


def _noise(frames: int, bins: int) -> Tensor:
    """(frames, 2 * bins) real and imaginary parts of spectra of noise, ever the same."""
    drawn = np.random.Generator(np.random.PCG64(NOISE_SEED)).random((2, frames, bins))
    # Box and Muller's way, whose result does not depend on a library's version.
    radius = np.sqrt(-2 * np.log1p(-drawn[0])) * math.sqrt(bins / 2) * PULSE_LEVEL
    angle = 2 * np.pi * drawn[1]
    parts = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return torch.from_numpy(parts)
