"""Letter CTC recognisers: greedy decoding, and the models of transformers.

These and fairseq's (``fairseq_wav2vec2``) are decoded as StreamSpeech's toolkit decodes them:
layer normalisation of each waveform where the model was trained with it, the best symbol of every
frame, repeats merged, blanks dropped, letters joined and the silence symbol turned into a space.
The toolkit calls a beam decoder with a beam of one and no language model: the same thing.

Letters: T samples, F frames, V symbols.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from echostream.evaluation.recognizers.words import RecognizedWord

SAMPLE_RATE = 16000


def resolve_device(device: str) -> torch.device:
    """``auto`` is the GPU when there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def greedy_ctc(emissions: Tensor, tokens: Sequence[str], blank: int, silence: str) -> str:
    """Decode frames (F, V) to lower-case text."""
    best = emissions.argmax(dim=-1).tolist()
    letters = [tokens[index] for index, _ in groupby(best) if index != blank]
    return "".join(letters).replace(silence, " ").strip().lower()


def greedy_ctc_words(
    emissions: Tensor, tokens: Sequence[str], blank: int, silence: str, frame_ms: float
) -> list[RecognizedWord]:
    """The words of :func:`greedy_ctc`, each from its first letter's frame to its last one's.

    Args:
        frame_ms: how far apart frames are.
    """
    words: list[RecognizedWord] = []
    text, start, end, frame = "", 0, 0, 0
    # A silence at the end closes the last word.
    for token, run in [
        *((index, len(list(run))) for index, run in groupby(emissions.argmax(dim=-1).tolist())),
        (None, 0),
    ]:
        if token is None or (token != blank and tokens[token] == silence):
            if text:
                words.append(RecognizedWord(text.lower(), start * frame_ms, end * frame_ms))
            text = ""
        elif token != blank:
            start = start if text else frame
            text, end = text + tokens[token], frame + run
        frame += run
    return words


class CTCRecognizer:
    """A frame classifier over letters with greedy decoding.

    Args:
        name: what score tables print.
        emit: maps a waveform (1, T) to emissions (1, F, V).
        tokens: the symbol of each of the V columns.
        blank: column of the CTC blank.
        silence: the symbol between words.
        normalize: whether the model expects a waveform of zero mean and unit variance.
        min_samples: the shortest waveform that yields a frame.
    """

    def __init__(
        self,
        name: str,
        emit: Callable[[Tensor], Tensor],
        tokens: Sequence[str],
        *,
        blank: int,
        silence: str,
        normalize: bool,
        min_samples: int,
        device: torch.device,
        sample_rate: int = SAMPLE_RATE,
    ) -> None:
        self.name = name
        self.sample_rate = sample_rate
        self.tokens = list(tokens)
        self.normalize = normalize
        self._emit = emit
        self._blank = blank
        self._silence = silence
        self._min_samples = min_samples
        self._device = device

    @torch.inference_mode()
    def emissions(self, samples: np.ndarray) -> Tensor:
        """Emissions (F, V) of mono speech (T)."""
        waveform = torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))[None]
        waveform = waveform.to(self._device)
        if self.normalize:
            waveform = nn.functional.layer_norm(waveform, waveform.shape)
        return self._emit(waveform)[0].float().cpu()

    def transcribe(self, samples: np.ndarray) -> str:
        if len(samples) < self._min_samples:
            return ""
        return greedy_ctc(self.emissions(samples), self.tokens, self._blank, self._silence)

    def transcribe_words(self, samples: np.ndarray) -> list[RecognizedWord]:
        if len(samples) < self._min_samples:
            return []
        emissions = self.emissions(samples)
        frame_ms = 1000 * len(samples) / self.sample_rate / len(emissions)
        return greedy_ctc_words(emissions, self.tokens, self._blank, self._silence, frame_ms)


def receptive_field(conv_layers: Sequence[tuple[int, int, int]]) -> int:
    """Samples that the convolutional front-end needs for its first frame."""
    length = 1
    for _, kernel, stride in reversed(conv_layers):
        length = (length - 1) * stride + kernel
    return length


def load_hf_recognizer(path: str, device: torch.device) -> CTCRecognizer:
    """Load a CTC model of transformers from a folder or the name of a published model.

    Raises:
        ImportError: transformers is not installed.
        ValueError: the vocabulary has no word separator.
    """
    try:
        from transformers import AutoFeatureExtractor, AutoModelForCTC, AutoTokenizer
    except ImportError as error:
        raise ImportError(
            "hf recognisers need the package transformers: pip install 'echostream[hf]'"
        ) from error
    model = AutoModelForCTC.from_pretrained(path).to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    extractor = AutoFeatureExtractor.from_pretrained(path)
    by_index = {index: token for token, index in tokenizer.get_vocab().items()}
    columns = model.config.vocab_size
    tokens = [by_index.get(index, f"{tokenizer.unk_token}1") for index in range(columns)]
    silence = next((symbol for symbol in ("|", " ") if symbol in tokens), None)
    if silence is None:
        raise ValueError(f"{path}: neither '|' nor a space is in the vocabulary, so no words")
    config = model.config
    layers = zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True)
    return CTCRecognizer(
        f"hf:{Path(path).name}",
        lambda waveform: model(waveform).logits,
        tokens,
        blank=tokens.index(tokenizer.pad_token),
        silence=silence,
        normalize=bool(extractor.do_normalize),
        min_samples=receptive_field(list(layers)),
        device=device,
        sample_rate=extractor.sampling_rate,
    )
