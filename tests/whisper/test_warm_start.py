"""What starts from Whisper computes what Whisper computes, whole or as a stream."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from echostream.audio import (
    LogMelFrontend,
    log_mel,
    running_peak,
    scale_log_mel,
)
from echostream.config import FrontendConfig
from echostream.models.decoders.transformer_decoder import TransformerMTDecoder
from echostream.models.echostream_encoder import EchoStreamSpeechEncoder
from echostream.streaming import join_rows
from echostream.text import Vocabulary
from echostream.whisper.tokens import END, LETTERS, PROMPT, CutTokenizer, CutVocabulary
from echostream.whisper.warm_start import (
    interpolate,
    start_decoder,
    start_encoder,
    whisper_decoder,
    whisper_encoder,
)
from echostream.whisper.weights import read_whisper

TEXTS = ["the cat sat on a mat", "and it was good"]


@pytest.fixture(scope="module")
def weights(hugging_face_folder):
    return read_whisper(hugging_face_folder)


@pytest.fixture(scope="module")
def encoder(weights):
    encoder = EchoStreamSpeechEncoder(whisper_encoder(weights, segment_frames=4))
    start_encoder(encoder, weights)
    return encoder.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def vocabulary(tokenizer):
    return CutVocabulary.of(tokenizer, TEXTS, language="es")


@pytest.fixture(scope="module")
def decoder(weights, vocabulary):
    config = whisper_decoder(weights, vocabulary)
    decoder = TransformerMTDecoder(config, weights.width, len(vocabulary.origins))
    start_decoder(decoder, weights, vocabulary)
    return decoder.eval().requires_grad_(False)


def test_encoder_with_full_attention_is_whispers(reference, encoder):
    """One segment over the whole utterance, before frames are merged."""
    features = torch.randn(2, 120, 80, generator=torch.Generator().manual_seed(0))
    wanted = reference.model.encoder(features.transpose(1, 2)).last_hidden_state
    out = encoder(features, torch.tensor([120, 120]), segment_frames=[30], return_all_hiddens=True)
    found = encoder.layer_norm(out["encoder_states"][-1].transpose(0, 1))
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)
    merged = out["encoder_out"][0].transpose(0, 1)
    torch.testing.assert_close(
        merged, wanted.unflatten(1, (30, 2)).mean(dim=2), atol=2e-5, rtol=1e-4
    )


@pytest.mark.parametrize("ahead", [0, 4])
@pytest.mark.parametrize("cut", [1, 7, 32, 200])
def test_stream_equals_whole(weights, cut, ahead):
    """Any cut of the features, with look-ahead too; a chunk's frames are a segment of the whole
    computation."""
    encoder = EchoStreamSpeechEncoder(
        whisper_encoder(weights, segment_frames=4, right_context_frames=ahead)
    )
    start_encoder(encoder, weights)
    encoder.eval().requires_grad_(False)
    features = torch.randn(1, 141, 80, generator=torch.Generator().manual_seed(cut))
    state, outs, segments = encoder.init_state(), [], []
    for start in range(0, 141, cut):
        final = start + cut >= 141
        out, state = encoder.step(features[:, start : start + cut], state, final=final)
        outs.append(out)
        segments += [out.size(1)] if out.size(1) else []
    whole = encoder(features, torch.tensor([141]), segment_frames=segments)["encoder_out"][0]
    torch.testing.assert_close(torch.cat(outs, 1), whole.transpose(0, 1), atol=1e-4, rtol=1e-4)
    assert list(state.frames) == [36]


def test_positions_come_round_again(encoder):
    """After a whole period everything that is in reach is the same, so the output is too."""
    period = encoder.config.position_period * 2  # log-mel frames
    repeated = torch.randn(1, period, 80, generator=torch.Generator().manual_seed(5)).repeat(
        1, 12, 1
    )
    state, outs = encoder.init_state(), []
    for start in range(0, repeated.size(1), 40):
        out, state = encoder.step(repeated[:, start : start + 40], state)
        outs.append(out)
    out = torch.cat(outs, dim=1)
    late = out[:, -30:]
    torch.testing.assert_close(late, out[:, -60:-30], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(out[:, :30], out[:, 1:31], atol=1e-2)


def test_rows_of_a_batch_are_streams(encoder):
    generator = torch.Generator().manual_seed(7)
    features = torch.randn(3, 96, 80, generator=generator)
    alone, joined = [], encoder.init_state(3)
    first, joined = encoder.step(features[:, :40], joined, lengths=[40, 17, 0])
    second, joined = encoder.step(features[:, 40:], joined, lengths=[10, 56, 33], final=[1, 0, 1])
    for row, (a, b, end) in enumerate(((40, 10, True), (17, 56, False), (0, 33, True))):
        own = features[row : row + 1]
        x, state = encoder.step(own[:, :a], encoder.init_state())
        y, state = encoder.step(own[:, 40 : 40 + b], state, final=end)
        alone.append(state)
        torch.testing.assert_close(first[row, : x.size(1)], x[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(second[row, : y.size(1)], y[0], atol=1e-5, rtol=1e-4)
    assert list(joined.frames) == [frames for state in alone for frames in state.frames]


def test_training_offsets_are_a_later_place_of_the_stream(encoder):
    """A clip at an offset is what a stream computes there, with the past out of reach."""
    features = torch.randn(1, 64, 80, generator=torch.Generator().manual_seed(9))
    lengths = torch.tensor([64])
    at_zero = encoder(features, lengths)["encoder_out"][0]
    moved = encoder(features, lengths, position_offsets=torch.tensor([20]))["encoder_out"][0]
    again = encoder(features, lengths, position_offsets=torch.tensor([60 * 4]))["encoder_out"][0]
    assert not torch.allclose(at_zero, moved, atol=1e-2)
    torch.testing.assert_close(at_zero, again)


def test_decoder_is_whispers(reference, decoder, vocabulary, tokenizer):
    source = torch.randn(2, 11, 128, generator=torch.Generator().manual_seed(1))
    words = CutTokenizer(tokenizer, vocabulary).encode(TEXTS[0])
    inputs = torch.tensor([[Vocabulary.eos, *words]]).expand(2, -1)
    logits, _ = decoder(inputs, source.transpose(0, 1))
    theirs = torch.tensor([[vocabulary.origins[i] for i in (*vocabulary.prompt, *words)]])
    wanted = reference(decoder_input_ids=theirs.expand(2, -1), encoder_outputs=(source,)).logits[
        :, len(vocabulary.prompt) - 1 :
    ]
    known = [index for index, origin in enumerate(vocabulary.origins) if origin >= 0]
    origins = [vocabulary.origins[index] for index in known]
    torch.testing.assert_close(logits[..., known], wanted[..., origins], atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def both_tasks(weights, vocabulary, tokenizer):
    """A decoder that transcribes too, and the vocabulary of transcripts."""
    heard = CutVocabulary.of(tokenizer, [TEXTS[1]], language="es", task="transcribe")
    config = whisper_decoder(weights, vocabulary, transcripts=heard)
    decoder = TransformerMTDecoder(config, weights.width, len(vocabulary.origins))
    start_decoder(decoder, weights, vocabulary, transcripts=heard)
    return decoder.eval().requires_grad_(False), heard


def test_transcripts_are_whispers(reference, both_tasks, vocabulary, tokenizer):
    """The same layers behind the other prompt, in the other part of the vocabulary."""
    decoder, heard = both_tasks
    source = torch.randn(1, 9, 128, generator=torch.Generator().manual_seed(2))
    words = CutTokenizer(tokenizer, heard).encode(TEXTS[1])
    first = len(vocabulary.origins)
    inputs = torch.tensor([[Vocabulary.eos, *(first + word for word in words)]])
    logits, _ = decoder(inputs, source.transpose(0, 1), transcribes=True)
    theirs = torch.tensor([[heard.origins[i] for i in (*heard.prompt, *words)]])
    assert vocabulary.prompt != heard.prompt
    wanted = reference(decoder_input_ids=theirs, encoder_outputs=(source,)).logits
    wanted = wanted[:, len(heard.prompt) - 1 :]
    known = [index for index, origin in enumerate(heard.origins) if origin >= 0]
    known.remove(Vocabulary.eos)  # one for both
    found = logits[..., [first + index for index in known]]
    origins = [heard.origins[index] for index in known]
    torch.testing.assert_close(found, wanted[..., origins], atol=1e-4, rtol=1e-4)
    other = torch.arange(first) != Vocabulary.eos
    assert bool(logits[..., :first][..., other].isinf().all())
    assert bool(decoder(inputs, source.transpose(0, 1))[0][..., first:].isinf().all())


def test_rows_of_both_tasks_are_decoded_together(both_tasks, decoder, vocabulary):
    two, heard = both_tasks
    source = torch.randn(2, 6, 128, generator=torch.Generator().manual_seed(4))
    states = [two.init_state(), two.init_state(transcribes=True)]
    states = [two.read(row[None], own) for row, own in zip(source, states, strict=True)]
    together = two.decode_rows(join_rows(states), [6, 6], True)
    alone = [two.decode_rows(own, [6], True)[0] for own in states]
    assert [one.tokens for one in together] == [one.tokens for one in alone]
    first = len(vocabulary.origins)
    assert max(together[0].tokens) < first <= min(together[1].tokens)
    assert (
        together[0].tokens
        == decoder.decode(
            decoder.read(source[:1], decoder.init_state()), max_new_tokens=6, final=True
        ).tokens
    )
    assert len(two.transcript_prompt) == len(heard.prompt)
    with pytest.raises(ValueError, match="writes no transcripts"):
        decoder.init_state(transcribes=True)


def test_decoder_streams(decoder, vocabulary, tokenizer):
    """The prompt is read with the first frames; then steps equal the whole computation."""
    source = torch.randn(1, 9, 128, generator=torch.Generator().manual_seed(2))
    words = CutTokenizer(tokenizer, vocabulary).encode(TEXTS[1])
    state = decoder.read(source[:, :0], decoder.init_state())
    assert state.length == 0
    state = decoder.read(source, state)
    assert state.length == len(vocabulary.prompt) - 1
    hidden, _ = decoder.step(torch.tensor([[state.last_token, *words]]), state)
    logits, _ = decoder(torch.tensor([[Vocabulary.eos, *words]]), source.transpose(0, 1))
    torch.testing.assert_close(decoder.logits(hidden), logits, atol=1e-4, rtol=1e-4)


def test_rows_read_the_prompt_when_their_speech_begins(decoder):
    source = torch.randn(2, 6, 128, generator=torch.Generator().manual_seed(4))
    early = decoder.read(source[:1, :3], decoder.init_state())
    both = join_rows([early, decoder.init_state()])
    both = decoder.read(source, both, lengths=[3, 6])
    ahead = len(decoder.prompt) - 1
    assert list(both.cache.lengths) == [ahead, ahead]
    written = decoder.decode_rows(both, [5, 5], True)
    late = decoder.read(source[1:], decoder.init_state())
    (alone,) = decoder.decode_rows(late, [5], True)
    assert written[1].tokens == alone.tokens
    prompt = set(decoder.prompt)
    assert not prompt & {token for one in written for token in one.tokens}


def test_log_mel_is_whispers():
    """Against Hugging Face's feature extractor, which scales by the loudest of all."""
    transformers = pytest.importorskip("transformers")
    config = FrontendConfig(kind="whisper")
    samples = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    samples[:400] = 0.0  # Whisper mirrors the beginning, a stream cannot
    extractor = transformers.WhisperFeatureExtractor(chunk_length=1)
    wanted = extractor(samples, sampling_rate=16000, return_tensors="pt").input_features[0].T
    raw = log_mel(torch.from_numpy(np.pad(samples, (200, 200))), config)[:100]
    found = scale_log_mel(raw, raw.max())
    torch.testing.assert_close(found[:98], wanted[:98], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cut", [160, 333, 5120, 16000])
def test_log_mel_streams(cut):
    config = FrontendConfig(kind="whisper")
    frontend = LogMelFrontend(config)
    samples = np.random.default_rng(1).normal(0, 0.1, 16000).astype(np.float32)
    samples[8000:] *= 10.0
    state, parts = frontend.init_state(), []
    for start in range(0, len(samples), cut):
        out, state = frontend.step(
            samples[start : start + cut], 16000, state, final=start + cut >= len(samples)
        )
        parts.append(out)
    raw = log_mel(torch.from_numpy(np.pad(samples, (200, 200))), config)
    whole = scale_log_mel(raw, running_peak(raw))
    torch.testing.assert_close(torch.cat(parts, 1)[0], whole, atol=1e-5, rtol=1e-5)
    assert state.frames == len(whole)


def test_cut_vocabulary_spells_what_it_lacks(tokenizer, vocabulary):
    tokens = CutTokenizer(tokenizer, vocabulary)
    target = Vocabulary(vocabulary.pieces)
    for text in ("the cat", "a zebra sat", "Don't 12"):
        assert target.decode(tokens.encode(text)) == text
    assert target.decode(tokens.encode("ma\u00f1ana")) == "maana"


def test_vocabulary_of_transcripts_has_letters_of_its_language(tokenizer):
    """Those that a subword holds; the tokenizer's alphabet is bytes."""
    text = "ma\u00f1ana"
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    names = [part.format(language="es", task="transcribe") for part in (*PROMPT, END)]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=names,
        show_progress=False,
    )
    made.train_from_iterator([f" {text}"] * 5, trainer)
    options = {"language": "es", "task": "transcribe"}
    plain = CutVocabulary.of(made, [text], **options)
    spelled = CutVocabulary.of(made, [text], letters=LETTERS["es"], **options)
    assert Vocabulary(spelled.pieces).decode(CutTokenizer(made, spelled).encode(text)) == text
    assert Vocabulary(plain.pieces).decode(CutTokenizer(made, plain).encode(text)) == "maana"


def test_decoder_layers_may_be_fewer(weights, vocabulary):
    config = whisper_decoder(weights, vocabulary, layers=[0, 2])
    decoder = TransformerMTDecoder(config, weights.width, len(vocabulary.origins))
    start_decoder(decoder, weights, vocabulary, layers=[0, 2])
    own = weights.tensors["decoder.layers.2.fc1.weight"]
    torch.testing.assert_close(decoder.layers[1].fc1.weight, own)


def test_alignment_heads_say_where_the_decoder_looks(reference, weights, vocabulary):
    """The mean of two heads' weights, as the reference has them for the last token."""
    config = whisper_decoder(
        weights, vocabulary, layers=[0, 2], alignment_heads=[(0, 1), (1, 0), (2, 0), (2, 1)]
    )
    assert config.alignment_heads == ((0, 1), (1, 0), (1, 1))
    config = whisper_decoder(weights, vocabulary, alignment_heads=[(0, 1), (2, 0)])
    decoder = TransformerMTDecoder(config, weights.width, len(vocabulary.origins)).eval()
    start_decoder(decoder, weights, vocabulary)
    source = torch.randn(1, 7, 128, generator=torch.Generator().manual_seed(8))
    state = decoder.read(source, decoder.init_state())
    with torch.no_grad():
        _, _, seen = decoder.step_attending(torch.tensor([[state.last_token]]), state, -1)
    prompt = torch.tensor([[vocabulary.origins[token] for token in vocabulary.prompt]])
    out = reference(
        decoder_input_ids=prompt, encoder_outputs=(source,), output_attentions=True
    ).cross_attentions
    wanted = (out[0][0, 1, -1] + out[2][0, 0, -1]) / 2
    (own,) = state.sources.newest_slots(None)
    torch.testing.assert_close(seen[0, 0, own], wanted, atol=1e-5, rtol=1e-4)


def test_interpolation():
    trained, start = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    wanted = 0.25 * trained.weight.detach() + 0.75 * start.weight.detach()
    interpolate(trained, start.state_dict(), 0.25)
    torch.testing.assert_close(trained.weight.detach(), wanted)
    with pytest.raises(ValueError, match=r"between 0 and 1, got 1\.5"):
        interpolate(trained, start.state_dict(), 1.5)


def test_what_does_not_fit_is_named(weights):
    from dataclasses import replace

    wrong = EchoStreamSpeechEncoder(replace(whisper_encoder(weights), ffn_dim=64))
    with pytest.raises(ValueError, match=r"does not fit: emformer\.layers\.0\.fc1\.weight"):
        start_encoder(wrong, weights)
