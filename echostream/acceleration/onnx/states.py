"""What one stream remembers between steps, in numpy.

The counterparts of :class:`~echostream.models.echostream_model.ListeningState` and its kin, for one
row. Frozen and passed like those: an old state is a rollback.

Shapes: W waiting features, R right-context frames, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from echostream.acceleration.onnx.cache import ArrayCache
from echostream.models.decoders.ctc_collapse import CollapseState
from echostream.models.decoders.unit_layout import UnitTail
from echostream.text import Vocabulary


@dataclass(frozen=True)
class ArrayListening:
    """What encoder and CTC heads remember.

    Attributes:
        pending: (W, bins) features that do not make up an encoder frame yet.
        ahead: (R, D) subsampled frames held back as right context.
        tensors: the graphs' states, by name.
        asr, st: of the heads' layers; None for a head without.
        asr_collapse, st_collapse: of the heads' labels.
        frames, segments: encoder frames handed out, in so many segments.
    """

    pending: np.ndarray
    ahead: np.ndarray
    tensors: dict[str, np.ndarray]
    asr: ArrayCache | None
    st: ArrayCache | None
    asr_collapse: CollapseState = CollapseState()
    st_collapse: CollapseState = CollapseState()
    frames: int = 0
    segments: int = 0


@dataclass(frozen=True)
class ArrayMT:
    """What the text decoder remembers of a sentence.

    Attributes:
        cache: target positions processed.
        sources: source frames read.
        last_token: what the next position reads.
    """

    cache: ArrayCache
    sources: ArrayCache
    last_token: int = Vocabulary.eos

    @property
    def length(self) -> int:
        """Target positions processed."""
        return self.cache.length

    @property
    def source_length(self) -> int:
        """Source frames read."""
        return self.sources.length

    def truncate(self, length: int, last_token: int) -> ArrayMT:
        """Forget target positions from ``length`` on; the source stays."""
        return replace(self, cache=self.cache.truncate(length), last_token=last_token)


@dataclass(frozen=True)
class ArraySpeech:
    """What the text-to-unit model and the vocoder remember of a sentence.

    Attributes:
        t2u: of the text-to-unit encoder; None: it has no layers.
        units: unit frames labelled.
        texts: text states read.
        collapse: of the labels.
        tail: the last units.
        spoken: the unit of each of the last settled frames, as many as later samples depend on.
    """

    t2u: ArrayCache | None
    units: ArrayCache
    texts: ArrayCache
    collapse: CollapseState = CollapseState()
    tail: UnitTail = UnitTail()
    spoken: tuple[int, ...] = ()


@dataclass(frozen=True)
class ArrayState:
    """What one stream remembers; ``listening`` lives as long as it, the rest sentence by
    sentence."""

    listening: ArrayListening
    mt: ArrayMT
    speech: ArraySpeech
