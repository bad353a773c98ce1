"""CodeVocos as a vocoder: durations of units, speed, streams; its file.

Units become frames here, frames become samples in :mod:`echostream.models.decoders.codevocos`.
Durations look ahead by ``future_units``, so that many units wait for what follows them. A stream's
samples therefore depend on its units (and their speeds) alone, not on how they arrived.

Shapes: B streams, N units, T unit frames.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from echostream.config import CodeVocosConfig, UnitDurationConfig, from_dict, to_dict
from echostream.files import atomic_path
from echostream.models.decoders.codevocos import CodeVocos, CodeVocosState
from echostream.models.decoders.pace import approach, check_speed, paced
from echostream.models.decoders.vocoder_protocol import Vocoder

CONFIG_KEY = "config"
NO_UNIT = -1


class UnitDurations(nn.Module):
    """Predicts log(1 + frames) of a unit from a window of units around it."""

    def __init__(self, config: UnitDurationConfig, num_units: int) -> None:
        super().__init__()
        self.config = config
        self.units = nn.Embedding(num_units + 1, config.width)  # the first: no unit
        window = config.past_units + 1 + config.future_units
        self.hidden = nn.Linear(window * config.width, 2 * config.width)
        self.out = nn.Linear(2 * config.width, 1)

    def forward(self, units: Tensor) -> Tensor:
        """(B, past_units + N + future_units) units to (B, N)."""
        window = self.config.past_units + 1 + self.config.future_units
        around = self.units(units + 1).unfold(1, window, 1)  # (B, N, C, window)
        return self.out(F.gelu(self.hidden(around.flatten(2))))[..., 0]

    def frames(self, units: Tensor) -> Tensor:
        """The same in whole frames, at least 1."""
        return torch.round(self(units).exp() - 1).long().clamp(min=1)


@dataclass(frozen=True)
class CodeVocosStreams:
    """What the next step of B streams depends on; every shape is fixed.

    Attributes:
        network: of the frames.
        units: (B, past + future) the last units, -1 before the first; the last ``future`` wait.
        speeds: (B, future) of those that wait.
        owed_frames: (B,) by which what was laid out is too short for its speed.
        speed: (B,) of the last unit.
    """

    network: CodeVocosState
    units: Tensor
    speeds: Tensor
    owed_frames: Tensor
    speed: Tensor

    def at_speed_of(self, before: CodeVocosStreams) -> CodeVocosStreams:
        """Go on at the speed of what was spoken before."""
        return replace(self, speed=before.speed)


class CodeVocosVocoder(Vocoder):
    """Units to waveform by :class:`~echostream.models.decoders.codevocos.CodeVocos`."""

    def __init__(self, config: CodeVocosConfig, num_units: int | None = None) -> None:
        super().__init__(config, num_units)
        self.network = CodeVocos(config)
        self.durations = (
            UnitDurations(config.durations, config.num_embeddings) if config.durations else None
        )

    @classmethod
    def load(cls, path: Path) -> CodeVocosVocoder:
        """Read a file written by :meth:`save`, ready for synthesis.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not such a file, or one whose weights do not fit its configuration.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no such vocoder file: {path}")
        try:
            with safe_open(path, "pt") as stream:
                data = json.loads((stream.metadata() or {})[CONFIG_KEY])
                state = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"{path}: not a CodeVocos file: {error!r}") from error
        vocoder = cls(from_dict(CodeVocosConfig, data, str(path)))
        try:
            vocoder.load_state_dict({name: tensor.float() for name, tensor in state.items()})
        except RuntimeError as error:
            raise ValueError(f"{path}: weights do not fit the configuration: {error}") from error
        return vocoder.eval().requires_grad_(False)

    def save(self, path: Path, *, dtype: torch.dtype = torch.float16) -> None:
        """Write weights and configuration into one safetensors file, whole or not at all."""
        weights = {
            name: tensor.detach().to("cpu", dtype).contiguous()
            for name, tensor in self.state_dict().items()
        }
        with atomic_path(Path(path)) as temporary:
            save_file(weights, temporary, {CONFIG_KEY: json.dumps(to_dict(self.config))})
            temporary.chmod(0o644)

    @property
    def predicts_durations(self) -> bool:
        return self.durations is not None

    def generate(
        self, units: Sequence[int], *, dur_prediction: bool = True
    ) -> tuple[Tensor, Tensor]:
        front = StreamingCodeVocos(self, dur_prediction=dur_prediction)
        waveform, frames, _ = front.step(units, front.init_state(), final=True)
        return waveform, frames


class StreamingCodeVocos:
    """Streams over the weights of a :class:`CodeVocosVocoder`.

    Args:
        vocoder: holds the weights.
        dur_prediction: predict how many frames each unit lasts; otherwise one each.
    """

    def __init__(self, vocoder: CodeVocosVocoder, *, dur_prediction: bool = True) -> None:
        if dur_prediction and vocoder.durations is None:
            raise ValueError("this vocoder has no duration predictor")
        self.vocoder = vocoder
        self.durations = vocoder.durations if dur_prediction else None
        durations = vocoder.config.durations if dur_prediction else None
        self.past = durations.past_units if durations else 0
        self.future = durations.future_units if durations else 0

    def init_state(self, batch_size: int = 1) -> CodeVocosStreams:
        network = self.vocoder.network.init_state(batch_size)
        device = network.position.device
        ones = torch.ones(batch_size, self.future + 1, dtype=torch.float64, device=device)
        shape = (batch_size, self.past + self.future)
        return CodeVocosStreams(
            network=network,
            units=torch.full(shape, NO_UNIT, dtype=torch.long, device=device),
            speeds=ones[:, 1:],
            owed_frames=torch.zeros_like(ones[:, 0]),
            speed=ones[:, 0],
        )

    def step(
        self,
        units: Sequence[int],
        state: CodeVocosStreams,
        *,
        speed: float = 1.0,
        final: bool = False,
    ) -> tuple[Tensor, Tensor, CodeVocosStreams]:
        """One stream's new units; see :class:`VocoderFront`. After ``final`` the state is that of
        a new stream, but for its speed."""
        waves, frames, state = self.step_rows([units], state, [speed], final=[final])
        return waves[0], frames[0], state

    @torch.no_grad()
    def step_rows(
        self,
        units: Sequence[Sequence[int]],
        state: CodeVocosStreams,
        speeds: Sequence[float],
        *,
        final: Sequence[bool] | None = None,
    ) -> tuple[list[Tensor], list[Tensor], CodeVocosStreams]:
        """:meth:`step` of B streams at once, each with its own units, speed and end."""
        ended = [False] * len(units) if final is None else final
        for row, speed in zip(units, speeds, strict=True):
            self.vocoder.check_units(row)
            check_speed(speed)
        device = state.units.device
        laid: list[list[int]] = []
        frames: list[list[int]] = []
        after: dict[str, list[Any]] = {"units": [], "speeds": [], "owed_frames": [], "speed": []}
        known = state.units.tolist()
        waiting = state.speeds.tolist()
        for index, new in enumerate(units):
            pace = approach(float(state.speed[index]), speeds[index], len(new))
            # Slots that no unit has reached yet are at the front of those that wait.
            empty = sum(unit == NO_UNIT for unit in known[index][self.past :])
            there = [*known[index], *new]
            ready = there[self.past + empty :]
            ahead = 0 if ended[index] else self.future
            ready = ready[: max(len(ready) - ahead, 0)]
            tempo = [*waiting[index][empty:], *pace]
            told, owed = self._lengths(there, empty, ready, tempo, float(state.owed_frames[index]))
            laid.append(ready)
            frames.append(told)
            width = self.past + self.future
            kept = [NO_UNIT] * width if ended[index] else there[len(there) - width :]
            after["units"].append(kept)
            after["speeds"].append(
                [1.0] * self.future
                if ended[index]
                else [*waiting[index], *pace][len(pace) : len(pace) + self.future]
            )
            after["owed_frames"].append(0.0 if ended[index] else owed)
            after["speed"].append(pace[-1] if pace else float(state.speed[index]))
        lengths = [sum(row) for row in frames]
        longest = max(lengths, default=0)
        table = torch.zeros(len(laid), longest, dtype=torch.long)
        for index, (some, told) in enumerate(zip(laid, frames, strict=True)):
            spread = torch.tensor(some, dtype=torch.long)
            table[index, : lengths[index]] = spread.repeat_interleave(torch.tensor(told).long())
        ends = torch.tensor(list(ended), device=device)
        out = self.vocoder.network.step(
            table.to(device),
            torch.tensor(lengths, device=device),
            state.network,
            ends if any(ended) else None,
        )
        following = replace(
            state,
            network=out.state,
            **{
                name: torch.tensor(values, dtype=getattr(state, name).dtype, device=device).view(
                    getattr(state, name).shape
                )
                for name, values in after.items()
            },
        )
        return out.waves(), [torch.tensor(row, dtype=torch.long) for row in frames], following

    def _lengths(
        self, there: list[int], empty: int, ready: list[int], tempo: list[float], owed: float
    ) -> tuple[list[int], float]:
        """Frames of the units that are laid out now, and what is owed behind them."""
        if not ready:
            return [], owed
        if self.durations is None:
            return [1] * len(ready), owed
        window = there[empty : self.past + empty + len(ready) + self.future]
        missing = self.past + len(ready) + self.future - len(window)
        device = self.durations.out.weight.device
        table = torch.tensor([window + [NO_UNIT] * missing], device=device)
        predicted = self.durations.frames(table)[0].tolist()
        pace = paced(predicted, tempo[: len(ready)], owed)
        return list(pace.frames), pace.owed[-1]
