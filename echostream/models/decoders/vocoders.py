"""Which vocoder a configuration means, and what speaks streams with it."""

from __future__ import annotations

from echostream.config import CodeVocosConfig, VocoderConfig
from echostream.models.decoders.codevocos_vocoder import CodeVocosVocoder, StreamingCodeVocos
from echostream.models.decoders.vocoder import CodeHiFiGANVocoder
from echostream.models.decoders.vocoder_integration import StreamingVocoder
from echostream.models.decoders.vocoder_protocol import Vocoder, VocoderFront

AnyVocoderConfig = VocoderConfig | CodeVocosConfig


def build_vocoder(config: AnyVocoderConfig, num_units: int | None = None) -> Vocoder:
    """Networks of the sizes of ``config``, with fresh weights.

    Args:
        num_units: units that may be asked for; by default all embeddings.
    """
    kinds = {"codehifigan": CodeHiFiGANVocoder, "codevocos": CodeVocosVocoder}
    return kinds[config.kind](config, num_units)


def vocoder_front(vocoder: Vocoder, *, dur_prediction: bool = True) -> VocoderFront:
    """What speaks streams with a vocoder.

    Args:
        dur_prediction: predict how many frames each unit lasts; otherwise one each.

    Raises:
        ValueError: durations are to be predicted and the vocoder cannot.
    """
    if isinstance(vocoder, CodeVocosVocoder):
        return StreamingCodeVocos(vocoder, dur_prediction=dur_prediction)
    return StreamingVocoder(vocoder, dur_prediction=dur_prediction)
