"""The HiFi-GAN generator on a growing frame sequence: only what is new or still changes.

The samples of a write are the tail of what synthesising everything so far would give. The
network's convolutions look ahead, past the end they see zeros, and samples once given out are
never revised. So when frames arrive,

- a signal inside the network is *settled* up to R of its samples before the end of the settled
  frames, R being the look-ahead of the layers in front of it: those values never change again;
- the new samples depend on a signal from N of its samples before the first new frame on, N being
  the memory of the layers behind it.

Where N exceeds R, the N - R samples before the settled end are kept and everything after them is
computed, the R samples that had seen zeros included. Where it does not, nothing is kept and the
computation starts N samples before the new frames. Both bounds are exact: no sample is computed
twice unless its value may change, none unless it is audible.

Shapes: B streams, T positions, C channels; signals are (B, T, C).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from echostream.models.decoders.codehifigan_standalone import (
    LEAKY_SLOPE,
    CodeGenerator,
    ResBlock,
)
from echostream.models.decoders.time_major import TimeMajorConv, Upsampling, time_major
from echostream.models.decoders.unit_layout import Growth

LAST_SLOPE = 0.01  # the original's last activation has torch's default slope
FIRST_GRID = 4  # frames; see _grid


@dataclass(frozen=True)
class Span:
    """Where a signal is kept and computed.

    Attributes:
        rate: samples per frame.
        unsettled: R of the module docstring.
        memory: N.
        channels: C.
    """

    rate: int
    unsettled: int
    memory: int
    channels: int

    @property
    def kept(self) -> int:
        return max(0, self.memory - self.unsettled)

    def start(self, first_new: int) -> int:
        """First position to compute; position 0 is the end of the settled frames."""
        return -self.unsettled if self.kept else first_new * self.rate - self.memory


@dataclass(frozen=True)
class _Branch:
    """One residual block: pairs of convolutions, and the spans of all their inputs but the first
    (which the blocks of a stage share)."""

    convs: list[tuple[TimeMajorConv, TimeMajorConv]]
    spans: list[Span]


@dataclass(frozen=True)
class _Stage:
    """One upsampling with its residual blocks, and the spans of their inputs."""

    before: Span
    up: Upsampling
    inside: Span
    branches: list[_Branch]


class StreamingGenerator:
    """Synthesis with state over the weights of one :class:`CodeGenerator`.

    Holds copies of the weights in the layout of :mod:`~echostream.models.decoders.time_major`:
    build it anew when they change (:func:`streaming_generator` does).
    """

    def __init__(self, generator: CodeGenerator) -> None:
        config = generator.config
        self.unit_samples = config.unit_samples
        self.weight = generator.conv_pre.weight
        self.pre, self.post = time_major(generator.conv_pre), time_major(generator.conv_post)
        ups = [Upsampling(up) for up in generator.ups]
        kernels = len(config.resblock_kernel_sizes)
        blocks = [
            [_block(block) for block in generator.resblocks[i * kernels :][:kernels]]
            for i in range(len(ups))
        ]
        radii = [max(sum(_reaches(convs)) for convs in stage) for stage in blocks]
        # Backwards: how much of the signal behind each stage the layers after it remember.
        memories = [self.post.reach // 2]
        for up, radius in zip(reversed(ups), reversed(radii), strict=True):
            memories.append(-(-(memories[-1] + radius - up.padding) // up.rate) + up.taps - 1)
        memories.reverse()
        # Forwards: how far the layers up to here look ahead.
        unsettled, rate = self.pre.reach // 2, 1
        self.embedded = Span(rate, 0, memories[0] + unsettled, config.model_in_dim)
        self.stages: list[_Stage] = []
        for i, (layer, up) in enumerate(zip(generator.ups, ups, strict=True)):
            before = Span(rate, unsettled, memories[i], layer.in_channels)
            rate, unsettled = rate * up.rate, unsettled * up.rate + up.padding
            memory, channels = memories[i + 1], layer.out_channels
            branches = []
            for convs in blocks[i]:
                reaches = _reaches(convs)
                spans = [
                    Span(rate, unsettled + sum(reaches[:j]), memory + sum(reaches[j:]), channels)
                    for j in range(1, len(reaches))
                ]
                branches.append(_Branch(convs, spans))
            inside = Span(rate, unsettled, memory + radii[i], channels)
            self.stages.append(_Stage(before, up, inside, branches))
            unsettled += radii[i]
        self.last = Span(rate, unsettled, memories[-1], channels)

    def spans(self) -> Iterator[Span]:
        """Of every convolution's input, in the order in which they are computed."""
        yield self.embedded
        for stage in self.stages:
            yield stage.before
            yield stage.inside
            for branch in stage.branches:
                yield from branch.spans
        yield self.last

    def init_caches(self, batch_size: int = 1) -> tuple[Tensor, ...]:
        """What a fresh stream has kept: (B, kept, C) zeros per signal that keeps anything, as the
        convolutions see zeros before the first frame."""
        return tuple(
            self.weight.new_zeros(batch_size, span.kept, span.channels)
            for span in self.spans()
            if span.kept
        )

    def step(
        self, frames: Tensor, caches: Sequence[Tensor], growth: Sequence[Growth]
    ) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """Synthesise the new samples of B streams.

        Args:
            frames: (B, T, C) embedded frames from the end of the settled ones on, padded.
            caches: what :meth:`init_caches` or the previous write returned.
            growth: one per stream.

        Returns:
            (samples,) waveform of each stream's new frames, in [-1, 1], and the new caches.
        """
        run = _Write(self, frames, caches, growth)
        samples = run.waveform()
        unit = self.unit_samples
        first = run.first_new  # of all streams, on the grid
        waves = [
            samples[b, (g.first_new - first) * unit : (g.end - first) * unit]
            for b, g in enumerate(growth)
        ]
        return waves, tuple(run.new_caches)


class _Write:
    """The signals of one call of :meth:`StreamingGenerator.step`."""

    def __init__(
        self,
        network: StreamingGenerator,
        frames: Tensor,
        caches: Sequence[Tensor],
        growth: Sequence[Growth],
    ) -> None:
        self.network, self.growth = network, growth
        self.caches = iter(caches)
        self.new_caches: list[Tensor] = []
        # Libraries prepare a kernel for every new length, and oneDNN keeps the last 1024 only.
        # Speech has all lengths; so what is computed begins and ends on a grid, and what lies
        # beyond an end is blanked as it is for the shorter streams of a batch.
        self.end = _round_up(frames.size(1))
        first = min(g.first_new for g in growth)
        self.first_new = first - first % _grid(self.end)
        self.oldest = min(g.settled for g in growth)
        self.frames = F.pad(frames, (0, 0, 0, self.end - frames.size(1)))
        self.ragged = any(g.end != self.end for g in growth)
        self.masks: dict[tuple[int, int], Tensor] = {}

    def blank(self, x: Tensor, start: int, rate: int) -> Tensor:
        """Zero, in place, what lies before a stream's first frame or behind its last."""
        if not self.ragged and start >= -self.oldest * rate:
            return x
        if x.device.type == "cpu":
            for row, growth in zip(x, self.growth, strict=True):
                row[: max(-growth.settled * rate - start, 0)] = 0
                row[max(growth.end * rate - start, 0) :] = 0
            return x
        mask = self.masks.get((start, rate))
        if mask is None:
            at = torch.arange(start, start + x.size(1), device=x.device)
            low = torch.tensor([[-g.settled * rate] for g in self.growth], device=x.device)
            high = torch.tensor([[g.end * rate] for g in self.growth], device=x.device)
            mask = ((at >= low) & (at < high))[..., None].to(x.dtype)
            self.masks[start, rate] = mask
        return x.mul_(mask)

    def recall(self, fresh: Tensor, span: Span) -> tuple[Tensor, int]:
        """Put what was kept in front of what was computed; keep what the next write will need.

        Args:
            fresh: the signal from ``span.start`` on.

        Returns:
            The signal and the position of its first sample.
        """
        start = span.start(self.first_new)
        fresh = self.blank(fresh, start, span.rate)
        if not span.kept:
            return fresh, start
        signal = torch.cat([next(self.caches), fresh], dim=1)
        offsets = [g.newly_settled * span.rate for g in self.growth]
        if len(offsets) == 1:
            kept = signal[:, offsets[0] : offsets[0] + span.kept].clone()
        else:
            kept = torch.stack(
                [x[at : at + span.kept] for x, at in zip(signal, offsets, strict=True)]
            )
        self.new_caches.append(kept)
        return signal, start - span.kept

    def waveform(self) -> Tensor:
        """(B, samples) from the first stream's first new frame on."""
        network, new = self.network, self.first_new
        x, start = self.recall(self.frames[:, network.embedded.start(new) :], network.embedded)
        x, start = self.convolve(network.pre, x, start)
        for index, stage in enumerate(network.stages):
            x, start = self.recall(x[:, stage.before.start(new) - start :], stage.before)
            x = stage.up(F.leaky_relu(x, LEAKY_SLOPE))
            start = (start + stage.up.taps - 1) * stage.up.rate - stage.up.padding
            x, start = self.recall(x[:, stage.inside.start(new) - start :], stage.inside)
            behind = [stage.before for stage in network.stages[index + 1 :]] + [network.last]
            following = behind[0].start(new)
            active = F.leaky_relu(x, LEAKY_SLOPE)
            first, *others = stage.branches
            total = self.residual(x, active, start, first, following)
            for branch in others:
                total.add_(self.residual(x, active, start, branch, following))
            x, start = total.div_(len(stage.branches)), following
        x, start = self.recall(x, network.last)
        x, start = self.convolve(network.post, F.leaky_relu(x, LAST_SLOPE), start)
        return x[:, new * network.unit_samples - start :, 0].tanh()

    @staticmethod
    def convolve(conv: TimeMajorConv, x: Tensor, start: int) -> tuple[Tensor, int]:
        half = conv.reach // 2
        return conv(x, zeros_right=half), start + half

    def residual(
        self, x: Tensor, active: Tensor, start: int, branch: _Branch, until: int
    ) -> Tensor:
        """One residual block over the signal that starts at ``start``, which is given rectified
        too; its output from ``until`` on."""
        spans = iter(branch.spans)
        for dilated, plain in branch.convs:
            hidden_span = next(spans)
            hidden = dilated(active, zeros_right=dilated.reach // 2)
            hidden_start = start + dilated.reach // 2
            hidden = hidden[:, hidden_span.start(self.first_new) - hidden_start :]
            hidden = F.leaky_relu_(hidden, LEAKY_SLOPE)
            hidden, hidden_start = self.recall(hidden, hidden_span)
            span = next(spans, None)
            wanted = until if span is None else span.start(self.first_new)
            added = plain(hidden, zeros_right=plain.reach // 2)
            added = added[:, wanted - hidden_start - plain.reach // 2 :]
            x = added.add_(x[:, x.size(1) - added.size(1) :])
            start = wanted
            if span is not None:
                x, start = self.recall(x, span)
                active = F.leaky_relu(x, LEAKY_SLOPE)
        return x


def _grid(frames: int) -> int:
    """Width of the grid for this length: a quarter to an eighth of it, and at least four frames."""
    return max(FIRST_GRID, 1 << max(frames.bit_length() - 3, 0))


def _round_up(frames: int) -> int:
    """The next length on the grid."""
    step = _grid(frames)
    return -(-frames // step) * step


def _block(block: ResBlock) -> list[tuple[TimeMajorConv, TimeMajorConv]]:
    return [
        (time_major(dilated), time_major(plain))
        for dilated, plain in zip(block.convs1, block.convs2, strict=True)
    ]


def _reaches(convs: list[tuple[TimeMajorConv, TimeMajorConv]]) -> list[int]:
    """How far each convolution sees on either side."""
    return [conv.reach // 2 for pair in convs for conv in pair]


_built: weakref.WeakKeyDictionary[CodeGenerator, tuple[tuple[Any, ...], StreamingGenerator]]
_built = weakref.WeakKeyDictionary()


def streaming_generator(generator: CodeGenerator) -> StreamingGenerator:
    """The :class:`StreamingGenerator` of these weights, built when they are first used or have
    changed (loaded, converted, moved)."""
    key = tuple((p.data_ptr(), p._version, p.dtype, p.device) for p in generator.parameters())
    known = _built.get(generator)
    if known is None or known[0] != key:
        known = key, StreamingGenerator(generator)
        _built[generator] = known
    return known[1]
