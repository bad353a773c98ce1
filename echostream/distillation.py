"""A streaming encoder that learns from another encoder's frames. Needs audio alone.

The student's frames, through a linear projection where widths differ, imitate a teacher's at the
same times. The loss is the squared distance over the teacher's variance, so that 0 is equality and
1 is what its mean frame would reach, whatever the scale of its outputs.

A teacher is any object of the :class:`Teacher` protocol. :class:`EncoderTeacher` is one for the
encoders of this package, Emformer or chunk Conformer.

Shapes: B batch, T input frames, S student frames, D teacher width, bins of the filterbank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from echostream.audio import CMVN
from echostream.checkpoint import load_model_dir
from echostream.config import ENCODER_FRAME_MS
from echostream.models.echostream_model import EchoStreamModel
from echostream.streaming import lengths_to_padding_mask

SUBSAMPLING = 4  # filterbank frames per encoder frame
WHOLE = 1_000_000_000  # a segment longer than any input


@dataclass(frozen=True)
class Taught:
    """What a teacher makes of a batch.

    Attributes:
        frames: (B, S', D) its final frames, undefined behind ``lengths``.
        lengths: (B,) valid ones.
        hidden: outputs of the layers that were asked for, each (B, S', D), in that order.
    """

    frames: Tensor
    lengths: Tensor
    hidden: tuple[Tensor, ...] = ()


class Teacher(Protocol):
    """Whose frames a student imitates.

    Another kind of teacher (one that hears samples, or has another rate) needs no more than this::

        class WhisperTeacher:
            hears, width, frame_ms, by_sentence = "samples", 512, 20.0, False

            def teacher_frames(self, inputs, lengths, *, layers=(), segment_frames=None):
                with torch.no_grad():
                    frames = self.encoder(log_mel(inputs))      # (B, S', 512)
                return Taught(frames, lengths // 320)

    Attributes:
        hears: ``features``: log-mel filterbanks of :func:`echostream.audio.fbank` as they are,
            10 ms a frame, without normalisation; ``samples``: 16 kHz audio. Who calls provides the
            right one: fairseq-train has features only.
        width: D.
        frame_ms: how far its frames lie apart; the student's 40 ms must be a multiple. Several of
            its frames are averaged to one of the student's.
        by_sentence: it was made for single utterances, so that a stream of several is cut into
            sentences before it hears them.
    """

    hears: str
    width: int
    frame_ms: float
    by_sentence: bool

    def teacher_frames(
        self,
        inputs: Tensor,
        lengths: Tensor,
        *,
        layers: Sequence[int] = (),
        segment_frames: int | None = None,
    ) -> Taught:
        """Audio to frames, without gradients.

        Args:
            inputs: (B, T, bins) or (B, samples), zero behind ``lengths``.
            lengths: (B,).
            layers: which layers' outputs are wanted, from 1.
            segment_frames: the segments in which the student hears it, in frames of 40 ms. A
                teacher may hear more than that; None: all at once.
        """


class EncoderTeacher:
    """The encoder of a trained system.

    Args:
        model: in evaluation mode.
        cmvn: its normalisation.
    """

    hears = "features"
    frame_ms = float(ENCODER_FRAME_MS)

    def __init__(self, model: EchoStreamModel, cmvn: CMVN) -> None:
        self.encoder = model.encoder
        self.cmvn = cmvn
        self.width = self.encoder.embed_dim
        self.by_sentence = self.encoder.utterances_only
        self.layers = model.config.encoder.layers

    @torch.no_grad()
    def teacher_frames(
        self,
        inputs: Tensor,
        lengths: Tensor,
        *,
        layers: Sequence[int] = (),
        segment_frames: int | None = None,
    ) -> Taught:
        """See :class:`Teacher`.

        Raises:
            ValueError: it has no such layer.
        """
        for layer in layers:
            if not 1 <= layer <= self.layers:
                raise ValueError(f"the teacher has layers 1 to {self.layers}, not {layer}")
        weight = next(self.encoder.parameters())
        if weight.device != inputs.device:
            self.encoder.to(inputs.device)
            self.cmvn = CMVN(self.cmvn.mean.to(inputs.device), self.cmvn.std.to(inputs.device))
        x = self.cmvn(inputs.float())
        # Convolutions of a chunk Conformer read the padding.
        x = x.masked_fill(lengths_to_padding_mask(lengths, x.size(1))[..., None], 0.0)
        found = self.encoder(
            x.to(weight.dtype),
            lengths,
            segment_frames=WHOLE if segment_frames is None else segment_frames,
            return_all_hiddens=bool(layers),
        )
        frames = found["encoder_out"][0].transpose(0, 1)
        hidden = tuple(found["encoder_states"][layer - 1].transpose(0, 1) for layer in layers)
        return Taught(frames, -(-lengths // SUBSAMPLING), hidden)


def load_teacher(name: str | Path) -> EncoderTeacher:
    """The encoder of a model directory, or of a model by its name.

    Raises:
        FileNotFoundError, ValueError: no such model.
    """
    system = load_model_dir(name)
    return EncoderTeacher(system.model, system.cmvn)


def sentence_cuts(
    sentences: Tensor, lengths: Tensor, segment_frames: int | None
) -> list[list[int]]:
    """Where streams are cut for a teacher of single utterances: in the middle between two
    sentences, if there is room where a segment of the student ends, else where an encoder frame
    does.

    Args:
        sentences: (N, 3) stream, first frame of the speech, the one behind its last.
        lengths: (B,) filterbank frames of each stream.
        segment_frames: the student's segments; None: none.

    Returns:
        For every stream the filterbank frames of all cuts, with 0 and its end.
    """
    cuts = [[0] for _ in lengths]
    before: tuple[int, int] | None = None  # stream and end of the sentence before
    for stream, begin, end in sentences.tolist():
        if before is not None and before[0] == stream:
            middle = (before[1] + begin) // 2
            cut = round(middle / SUBSAMPLING) * SUBSAMPLING
            if segment_frames is not None:
                grid = segment_frames * SUBSAMPLING
                aligned = round(middle / grid) * grid
                cut = aligned if before[1] <= aligned <= begin else cut
            if cuts[stream][-1] < cut < int(lengths[stream]):
                cuts[stream].append(cut)
        before = stream, end
    for row, length in zip(cuts, lengths.tolist(), strict=True):
        row.append(int(length))
    return cuts


def teach_streams(
    teacher: Teacher,
    inputs: Tensor,
    lengths: Tensor,
    sentences: Tensor | None,
    *,
    layers: Sequence[int] = (),
    segment_frames: int | None = None,
) -> Taught:
    """A teacher's frames of streams; one of single utterances hears sentence by sentence.

    Args:
        inputs: (B, T, bins) filterbank frames.
        sentences: (N, 3) as in :func:`sentence_cuts`; None: single utterances.
    """
    if sentences is None or not teacher.by_sentence:
        return teacher.teacher_frames(inputs, lengths, layers=layers, segment_frames=segment_frames)
    cuts = sentence_cuts(sentences, lengths, segment_frames)
    pieces = [
        (row, start, stop)
        for row, places in enumerate(cuts)
        for start, stop in zip(places[:-1], places[1:], strict=True)
    ]
    sizes = [stop - start for _, start, stop in pieces]
    padded = nn.utils.rnn.pad_sequence(
        [inputs[row, start:stop] for row, start, stop in pieces], batch_first=True
    )
    each = teacher.teacher_frames(
        padded,
        torch.tensor(sizes, device=inputs.device),
        layers=layers,
        segment_frames=segment_frames,
    )
    found = []
    total = -(-int(lengths.max()) // SUBSAMPLING)
    for frames in (each.frames, *each.hidden):
        whole = frames.new_zeros(len(lengths), total, frames.size(2))
        for piece, (row, start, stop) in enumerate(pieces):
            first, last = start // SUBSAMPLING, -(-stop // SUBSAMPLING)
            whole[row, first:last] = frames[piece, : last - first]
        found.append(whole)
    return Taught(found[0], -(-lengths // SUBSAMPLING), tuple(found[1:]))


def relative_distance(student: Tensor, teacher: Tensor, lengths: Tensor) -> Tensor:
    """Squared distance over the teacher's variance, over all valid frames of the batch.

    Args:
        student, teacher: (B, S, D), S the same or longer for either.
        lengths: (B,) frames that count.
    """
    size = min(student.size(1), teacher.size(1))
    student, teacher = student[:, :size].float(), teacher[:, :size].float()
    valid = ~lengths_to_padding_mask(lengths, size)[..., None]
    count = valid.sum().clamp(min=1)
    mean = teacher.masked_fill(~valid, 0.0).sum(dim=(0, 1)) / count
    variance = (teacher - mean).square().masked_fill(~valid, 0.0).sum()
    # Undefined frames may hold anything: hidden before they are squared, they have no gradient.
    distance = (student - teacher).masked_fill(~valid, 0.0).square().sum()
    return distance / variance.clamp(min=1e-8)


class Distillation(nn.Module):
    """The loss, with the projections that it trains.

    Args:
        student_width, teacher_width: of the encoders.
        student_frame_ms, teacher_frame_ms: the former a multiple of the latter.
        layers: pairs of a student's and a teacher's layer, from 1, that imitate one another too.
        layer_weight: of each such pair; the final frames have weight 1.

    Raises:
        ValueError: the frame rates do not fit.
    """

    def __init__(
        self,
        student_width: int,
        teacher_width: int,
        *,
        student_frame_ms: float = float(ENCODER_FRAME_MS),
        teacher_frame_ms: float = float(ENCODER_FRAME_MS),
        layers: Sequence[tuple[int, int]] = (),
        layer_weight: float = 0.5,
    ) -> None:
        super().__init__()
        ratio = student_frame_ms / teacher_frame_ms
        if ratio < 1 or ratio != int(ratio):
            raise ValueError(
                "a student's frames must last a whole number of the teacher's, got "
                f"{student_frame_ms:g} ms and {teacher_frame_ms:g} ms"
            )
        self.ratio = int(ratio)
        self.layers = tuple(layers)
        self.layer_weight = layer_weight
        same = student_width == teacher_width
        self.projections = nn.ModuleList(
            nn.Identity() if same else nn.Linear(student_width, teacher_width)
            for _ in range(1 + len(self.layers))
        )

    @property
    def teacher_layers(self) -> list[int]:
        """What the teacher is to be asked for."""
        return [theirs for _, theirs in self.layers]

    def forward(
        self, frames: Tensor, lengths: Tensor, taught: Taught, hidden: Sequence[Tensor] = ()
    ) -> Tensor:
        """The loss of a batch, a mean over its frames.

        Args:
            frames: (B, S, D') of the student.
            lengths: (B,) valid ones.
            taught: what the teacher made of the same audio.
            hidden: outputs (B, S, D') of all the student's layers; needed for ``layers`` only.
        """
        # Where the last frames of the two do not come out alike, both must have been there.
        known = torch.minimum(lengths, taught.lengths // self.ratio)
        loss = relative_distance(self.projections[0](frames), self._slow(taught.frames), known)
        pairs = zip(self.layers, self.projections[1:], taught.hidden, strict=True)
        for (ours, _), projection, theirs in pairs:
            distance = relative_distance(projection(hidden[ours - 1]), self._slow(theirs), known)
            loss = loss + self.layer_weight * distance
        return loss

    def _slow(self, frames: Tensor) -> Tensor:
        """(B, S', D) of the teacher to (B, S, D) at the student's rate."""
        if self.ratio == 1:
            return frames
        size = frames.size(1) // self.ratio
        return frames[:, : size * self.ratio].unflatten(1, (size, self.ratio)).mean(dim=2)
