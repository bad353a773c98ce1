"""What real recordings have and synthetic speech lacks: rooms, noise, telephones, codecs, gain.

Every effect takes and gives a batch of waveforms; which clips get it is drawn per clip.

Shapes: B clips, T samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MU = 255.0  # G.711's companding, North American form


@dataclass(frozen=True)
class AugmentOptions:
    """Shares of clips that get an effect, and how strong it is.

    Attributes:
        room: share that is put into a room, decaying by 60 dB within ``room_ms``.
        noise: share with stationary noise at ``snr_db``.
        music: share with chords behind the speech at ``music_db`` below it.
        telephone, narrow: shares band-limited to 300 to 3600 Hz and to 5500 Hz.
        codec: share through eight companded bits.
        clipped: share that is louder than full scale.
        gain_db: range of loudness.
    """

    room: float = 0.3
    room_ms: tuple[float, float] = (80.0, 500.0)
    noise: float = 0.7
    snr_db: tuple[float, float] = (8.0, 45.0)
    music: float = 0.1
    music_db: tuple[float, float] = (8.0, 25.0)
    telephone: float = 0.2
    narrow: float = 0.2
    codec: float = 0.1
    clipped: float = 0.05
    gain_db: tuple[float, float] = (-16.0, 4.0)


def augment(
    waveforms: Tensor,
    lengths: Tensor,
    generator: torch.Generator,
    options: AugmentOptions | None = None,
    *,
    sample_rate: int = 16000,
) -> Tensor:
    """(B, T) waveforms, of which ``lengths`` samples are valid, as other places and devices would
    have recorded them; padding stays silent. The generator is on the device of the waveforms."""
    options = AugmentOptions() if options is None else options
    draw = _Draw(len(waveforms), generator, waveforms.device)
    power = waveforms.square().sum(dim=1) / lengths.clamp(min=1)
    level = power.sqrt()[:, None]
    x = waveforms
    # Every effect is computed for all clips: whether one has it, the host would have to ask.
    in_room = _in_room(x, draw.between(options.room_ms), draw, sample_rate)
    x = torch.where(draw.chosen(options.room), in_room, x)
    noise = _noise(x.shape, draw) * level * _ratio(-draw.between(options.snr_db))
    x = x + noise * draw.chosen(options.noise)
    music = _chords(x.shape, draw, sample_rate) * level * _ratio(-draw.between(options.music_db))
    x = x + music * draw.chosen(options.music)
    which = draw.uniform()
    x = _banded(x, which < options.telephone, (300.0, 3600.0), sample_rate)
    narrow = (which >= options.telephone) & (which < options.telephone + options.narrow)
    x = _banded(x, narrow, (0.0, 5500.0), sample_rate)
    x = torch.where(draw.chosen(options.codec), _companded(x), x)
    x = x * _ratio(draw.between(options.gain_db))
    loud = x / x.abs().amax(dim=1, keepdim=True).clamp(min=1e-4) * 2.5
    x = torch.where(draw.chosen(options.clipped), loud, x).clamp(-1.0, 1.0)
    return x * (torch.arange(x.size(1), device=x.device) < lengths[:, None])


class _Draw:
    """Random values of each clip."""

    def __init__(self, rows: int, generator: torch.Generator, device: torch.device) -> None:
        self.rows, self.generator, self.device = rows, generator, device

    def uniform(self, *shape: int) -> Tensor:
        """(B, 1) or (B, *shape) in [0, 1)."""
        shape = (self.rows, *(shape or (1,)))
        return torch.rand(shape, generator=self.generator, device=self.device)

    def between(self, limits: tuple[float, float]) -> Tensor:
        return limits[0] + (limits[1] - limits[0]) * self.uniform()

    def chosen(self, share: float) -> Tensor:
        return self.uniform() < share

    def normal(self, *shape: int) -> Tensor:
        shape = (self.rows, *shape)
        return torch.randn(shape, generator=self.generator, device=self.device)


def _ratio(decibels: Tensor) -> Tensor:
    return 10.0 ** (decibels / 20.0)


def _filtered(x: Tensor, response: Tensor, size: int) -> Tensor:
    return torch.fft.irfft(torch.fft.rfft(x, n=size) * response, n=size)[:, : x.size(1)]


def _in_room(x: Tensor, decay_ms: Tensor, draw: _Draw, rate: int) -> Tensor:
    """Direct sound and noise that decays exponentially, as loud as before."""
    taps = int(rate * 0.4)
    time = torch.arange(taps, device=x.device) / rate * 1000.0
    tail = draw.normal(taps) * 10.0 ** (-3.0 * time / decay_ms)
    tail[:, : rate // 200] = 0.0  # the first reflection comes after 5 ms
    tail = tail / tail.norm(dim=1, keepdim=True).clamp(min=1e-6) * (0.3 + 0.7 * draw.uniform())
    tail[:, 0] = 1.0
    size = 1 << math.ceil(math.log2(x.size(1) + taps))
    heard = _filtered(x, torch.fft.rfft(tail, n=size), size)
    return heard * (x.norm(dim=1) / heard.norm(dim=1).clamp(min=1e-6))[:, None]


def _noise(shape: torch.Size, draw: _Draw) -> Tensor:
    """Noise of unit power whose spectrum falls by 0 to 6 dB an octave."""
    spectrum = torch.fft.rfft(draw.normal(shape[1]))
    bins = torch.arange(1, spectrum.size(1) + 1, device=spectrum.device) / spectrum.size(1)
    noise = torch.fft.irfft(spectrum * bins ** -draw.uniform(), n=shape[1])
    return noise / noise.square().mean(dim=1, keepdim=True).sqrt().clamp(min=1e-6)


def _chords(shape: torch.Size, draw: _Draw, rate: int) -> Tensor:
    """Chords of three notes with overtones, a new one every half second to second, of unit
    power."""
    time = torch.arange(shape[1], device=draw.device) / rate
    length = (0.5 + 0.5 * draw.uniform()) * rate
    chord = (time * rate / length).long()
    roots = 110.0 * 2.0 ** (torch.floor(draw.uniform(2 * shape[1] // rate + 1) * 24.0) / 12.0)
    root = roots.gather(1, chord)
    x = torch.zeros(shape, device=draw.device)
    for interval in (1.0, 1.26, 1.5):
        for overtone in (1, 2, 3):
            x += torch.sin(2.0 * math.pi * root * interval * overtone * time) / overtone
    return x / x.square().mean(dim=1, keepdim=True).sqrt().clamp(min=1e-6)


def _banded(x: Tensor, chosen: Tensor, band: tuple[float, float], rate: int) -> Tensor:
    """The chosen clips, limited to a band with soft edges."""
    size = x.size(1) + x.size(1) % 2
    frequency = torch.linspace(0.0, rate / 2, size // 2 + 1, device=x.device)
    response = torch.sigmoid((band[1] - frequency) / 100.0)
    if band[0]:
        response = response * torch.sigmoid((frequency - band[0]) / 40.0)
    return torch.where(chosen, _filtered(x, response, size), x)


def _companded(x: Tensor) -> Tensor:
    """Through eight bits of G.711's mu-law."""
    coded = x.clamp(-1, 1).sign() * torch.log1p(MU * x.abs().clamp(max=1)) / math.log1p(MU)
    coded = torch.round(coded * 127.0) / 127.0
    return coded.sign() * torch.expm1(coded.abs() * math.log1p(MU)) / MU
