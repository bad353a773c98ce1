"""A whole system whose encoder and text decoder start from Whisper."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import Tokenizer
from torch import Tensor

from echostream.audio import CMVN
from echostream.checkpoint import System, load_model_dir
from echostream.config import (
    CTCHeadConfig,
    EchoStreamConfig,
    EndpointConfig,
    PolicyConfig,
    SpeechConfig,
)
from echostream.models.echostream_encoder import EchoStreamSpeechEncoder
from echostream.models.echostream_model import EchoStreamModel
from echostream.text import SPECIALS, Vocabulary
from echostream.whisper.plain_texts import plain_source
from echostream.whisper.tokens import LETTERS, CutTokenizer, CutVocabulary
from echostream.whisper.warm_start import (
    start_decoder,
    start_encoder,
    whisper_decoder,
    whisper_encoder,
    whisper_frontend,
)
from echostream.whisper.weights import WhisperWeights, read_alignment_heads


def train_source_vocabulary(texts: Iterable[str], size: int) -> Vocabulary:
    """A SentencePiece unigram vocabulary of plain transcripts, special symbols not counted.

    Raises:
        ValueError: the texts have too few different pieces.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            vocab_size=size,
            model_type="unigram",
            character_coverage=1.0,
            bos_id=-1,
            eos_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).rpartition("] ")[2]
        raise ValueError(f"no vocabulary of {size} source subwords: {reason}") from error
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    return Vocabulary([piece for piece in pieces if piece not in SPECIALS], processor)


def subword_ratio(
    sources: Iterable[str], targets: Iterable[str], source: Vocabulary, tokens: CutTokenizer
) -> float:
    """Target subwords for each source subword of texts and their translations, two digits.

    Raises:
        ValueError: the sources are empty.
    """
    heard = sum(len(source.encode(text)) for text in sources)
    written = sum(len(tokens.encode(text)) for text in targets)
    if not heard:
        raise ValueError("the source texts hold no subword")
    return round(written / heard, 2)


def start_with_texts(
    weights: WhisperWeights,
    tokenizer: Tokenizer,
    sources: Sequence[str],
    targets: Sequence[str],
    *,
    more_targets: Sequence[str] = (),
    language: str = "es",
    source_pieces: int = 500,
    least: int = 4,
    transcribes: bool = True,
    **sizes: Any,
) -> tuple[System, CutTokenizer, CutTokenizer | None]:
    """:func:`start_from_whisper` with vocabularies, and the pace of the translation, out of texts.

    Args:
        weights: of Whisper.
        tokenizer: Whisper's.
        sources: transcripts, as they are written.
        targets: their translations.
        more_targets: more texts in the target language, for its vocabulary.
        language: of the speech, as Whisper abbreviates it.
        source_pieces: size of the source vocabulary.
        least: how often a kept subword of a translation or a transcript occurs.
        transcribes: the text decoder writes the transcripts too.
        sizes: what else :func:`start_from_whisper` takes.

    Returns:
        The system, the tokenizer of its translations, and that of its transcripts.

    Raises:
        ValueError: as many translations as transcripts are needed; or a vocabulary's reasons.
    """
    if len(sources) != len(targets):
        raise ValueError(
            f"each transcript needs its translation: got {len(sources)} and {len(targets)}"
        )
    vocabulary = CutVocabulary.of(
        tokenizer, [*targets, *more_targets], language=language, least=least
    )
    plain = [plain_source(text, language) for text in sources]
    source = train_source_vocabulary(plain, source_pieces)
    tokens = CutTokenizer(tokenizer, vocabulary)
    ratio = subword_ratio(plain, targets, source, tokens)
    transcripts = None
    if transcribes:
        transcripts = CutVocabulary.of(
            tokenizer,
            sources,
            language=language,
            task="transcribe",
            least=least,
            letters=LETTERS.get(language, ""),
        )
    system = start_from_whisper(
        weights, vocabulary, source, transcripts=transcripts, target_per_source=ratio, **sizes
    )
    heard = None if transcripts is None else CutTokenizer(tokenizer, transcripts)
    return system, tokens, heard


def continue_model(
    path: str | Path, weights: WhisperWeights, tokenizer: Tokenizer
) -> tuple[System, CutTokenizer, CutTokenizer | None, dict[str, Tensor]]:
    """A model that started from Whisper, to be trained on.

    Args:
        path: model directory, or a model's name.
        weights: of the Whisper that it started from, all of whose decoder layers it has.
        tokenizer: that Whisper's.

    Returns:
        The system, the tokenizer of its translations, that of its transcripts if it writes any, and
        the text decoder's weights as they were at the start.

    Raises:
        FileNotFoundError, ValueError: those of
            :func:`~echostream.checkpoint.load_model_dir`; or the model did not start from this
            Whisper.
    """
    system = load_model_dir(path)
    sizes = system.config.mt
    vocabulary = CutVocabulary.of_pieces(tokenizer, system.target_vocabulary.pieces, sizes.prompt)
    transcripts = None
    if system.transcript_vocabulary is not None:
        transcripts = CutVocabulary.of_pieces(
            tokenizer, system.transcript_vocabulary.pieces, sizes.transcript_prompt
        )
    decoder = copy.deepcopy(system.model.target_unigram_decoder)
    start_decoder(decoder, weights, vocabulary, transcripts=transcripts)
    heard = None if transcripts is None else CutTokenizer(tokenizer, transcripts)
    return system, CutTokenizer(tokenizer, vocabulary), heard, decoder.state_dict()


def start_from_whisper(
    weights: WhisperWeights,
    vocabulary: CutVocabulary,
    source_vocabulary: Vocabulary,
    *,
    transcripts: CutVocabulary | None = None,
    decoder_weights: WhisperWeights | None = None,
    decoder_layers: Sequence[int] | None = None,
    head_layers: int = 2,
    segment_frames: int = 8,
    left_context_frames: int = 128,
    right_context_frames: int = 0,
    memory_size: int = 0,
    target_per_source: float = 1.0,
) -> System:
    """A system with Whisper's encoder and decoder; its heads are fresh, and a voice says its text.

    Args:
        weights: of Whisper.
        vocabulary: of the translation.
        decoder_weights: of another Whisper, for the text decoder; None: of the same.
        source_vocabulary: of the ASR head.
        transcripts: of the transcripts that the text decoder writes; None: it writes none.
        decoder_layers: which of Whisper's decoder layers are kept; None: all.
        head_layers: of the two CTC heads.
        segment_frames, left_context_frames, right_context_frames, memory_size: of the encoder
            (:func:`~echostream.whisper.warm_start.whisper_encoder`).
        target_per_source: how many target subwords a source subword makes on average
            (:func:`subword_ratio`), which paces the translation.
    """
    encoder = whisper_encoder(
        weights,
        segment_frames=segment_frames,
        left_context_frames=left_context_frames,
        right_context_frames=right_context_frames,
        memory_size=memory_size,
    )
    decoder_weights = weights if decoder_weights is None else decoder_weights
    folder = decoder_weights.where.parent
    decoder = whisper_decoder(
        decoder_weights,
        vocabulary,
        layers=decoder_layers,
        alignment_heads=read_alignment_heads(folder),
        transcripts=transcripts,
        source="stack",
    )
    head = CTCHeadConfig(
        layers=head_layers,
        attention_heads=weights.heads,
        ffn_dim=2 * weights.width,
        context_frames=128,
    )
    target_vocabulary = Vocabulary(vocabulary.pieces)
    config = EchoStreamConfig(
        source_vocab_size=len(source_vocabulary),
        target_vocab_size=len(target_vocabulary),
        num_units=0,
        frontend=whisper_frontend(weights),
        encoder=encoder,
        asr_ctc=head,
        st_ctc=replace(head),
        mt=decoder,
        vocoder=None,
        # The recognition head learns first, so it is what a young system can be paced by.
        policy=PolicyConfig(
            name="wait_k_ctc", lagging_k1=2, target_per_source=target_per_source, max_len=40
        ),
        endpoint=EndpointConfig(method="learned", endpoint_ms=1000),
        speech=SpeechConfig(voice="shipped", voice_words=1, whole_words=True),
    )
    model = EchoStreamModel(config)
    assert isinstance(model.encoder, EchoStreamSpeechEncoder)  # as configured above
    start_encoder(model.encoder, weights)
    start_decoder(
        model.target_unigram_decoder,
        decoder_weights,
        vocabulary,
        layers=decoder_layers,
        transcripts=transcripts,
    )
    cmvn = CMVN.identity(weights.bins)
    written = None if transcripts is None else Vocabulary(transcripts.pieces)
    return System(
        config,
        model,
        source_vocabulary,
        target_vocabulary,
        cmvn,
        transcript_vocabulary=written,
    )
