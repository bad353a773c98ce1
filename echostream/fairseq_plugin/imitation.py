"""Distillation inside fairseq's training: flags, teacher, and the loss of a batch."""

# ruff: noqa: UP045  (fairseq turns annotations into flags and knows typing.Optional only)

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from echostream.config import EchoStreamConfig
from echostream.distillation import Distillation, Teacher, load_teacher, teach_streams


def parse_layers(text: str) -> list[tuple[int, int]]:
    """``student:teacher`` layers separated by commas; a single number means the same of both.

    Raises:
        ValueError: something else.
    """
    pairs = []
    for part in filter(None, text.split(",")):
        numbers = part.split(":")
        if len(numbers) > 2 or not all(number.strip().isdigit() for number in numbers):
            raise ValueError(
                f"--distill-layers: expected pairs such as 2:4,4:8 or numbers, got {part!r}"
            )
        pairs.append((int(numbers[0]), int(numbers[-1])))
    return pairs


class Imitation(nn.Module):
    """The student's encoder frames against a teacher's.

    Its parameters are the projections alone: a teacher is no part of what is trained or saved.

    Args:
        config: the student's.
        teacher: hears filterbanks.
        layers: of :func:`parse_layers`.
        whole: let the teacher hear everything at once.

    Raises:
        ValueError: the teacher hears something else, or there is no such layer.
    """

    def __init__(
        self,
        config: EchoStreamConfig,
        teacher: Teacher,
        *,
        layers: list[tuple[int, int]],
        whole: bool = False,
    ) -> None:
        super().__init__()
        if teacher.hears != "features":
            raise ValueError(
                f"--distill: the data folder holds filterbanks, this teacher hears {teacher.hears}"
            )
        for ours, _ in layers:
            if not 1 <= ours <= config.encoder.layers:
                raise ValueError(
                    f"--distill-layers: the student has layers 1 to {config.encoder.layers}, "
                    f"not {ours}"
                )
        self.loss = Distillation(
            config.encoder.embed_dim,
            teacher.width,
            teacher_frame_ms=teacher.frame_ms,
            layers=layers,
        )
        self._teacher = teacher
        self.default_segment = config.encoder.segment_frames
        self.whole = whole

    @classmethod
    def load(cls, config: EchoStreamConfig, name: str, layers: str, whole: bool) -> Imitation:
        """From the flags' values."""
        return cls(config, load_teacher(name), layers=parse_layers(layers), whole=whole)

    @property
    def needs_hidden(self) -> bool:
        """Whether the student's layers are looked at too."""
        return bool(self.loss.layers)

    def forward(
        self, sample: dict[str, Any], encoder_out: dict[str, list[Tensor]], lengths: Tensor,
        segment: int | None,
    ) -> Tensor:  # fmt: skip
        """The mean loss of a batch.

        Args:
            sample: with its ``clean`` (B, T, bins) features.
            encoder_out: of the student.
            lengths: (B,) its frames.
            segment: in which it heard them; None: the configured default.
        """
        net_input = sample["net_input"]
        heard = self.default_segment if segment is None else segment
        taught = teach_streams(
            self._teacher,
            sample["clean"].float(),
            net_input["src_lengths"],
            net_input.get("sentences"),
            layers=self.loss.teacher_layers,
            segment_frames=None if self.whole else heard,
        )
        hidden = [state.transpose(0, 1) for state in encoder_out["encoder_states"]]
        frames = encoder_out["encoder_out"][0].transpose(0, 1)
        with torch.autocast(frames.device.type, enabled=False):
            return self.loss(frames.float(), lengths, taught, [state.float() for state in hidden])
