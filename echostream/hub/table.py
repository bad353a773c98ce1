"""The models that can be had by name: those that ship, and those that others released.

A released model is a list of parts, each with its places on the net and with what is known of its
bytes. Hashes of the configuration files were computed from the repository's own objects at the
pinned commit. Where a hash is not known here, the Hub's own metadata at the pinned revision say it
(``remote.HubStore.expected``); a file whose hash nobody can tell is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from echostream import assets
from echostream.config.card import Task

WEIGHTS_REPO = "ICTNLP/StreamSpeech_Models"
WEIGHTS_REVISION = "e56f7b8595036f0eccf0da0b849e400d1a791699"
CONFIG_REPO = "ictnlp/StreamSpeech"
CONFIG_COMMIT = "375a73ab24f33b929ea55fe7809ece9d500c71cc"
VOCODER_REPO = "facebook/unit_hifigan_mhubert_vp_en_es_fr_it3_400k_layer11_km1000_lj_dur"
VOCODER_REVISION = "d217001792f70f5e6c02545f86af29313fea27ab"
VOCODER_FOLDER = (
    "fairseq/speech_to_speech/vocoder/code_hifigan/mhubert_vp_en_es_fr_it3_400k_layer11_km1000_lj"
)
# Where each kind of plain address begins; the variable overrides it, for mirrors.
WEB_BASES = {
    "github": ("ECHOSTREAM_GITHUB_RAW", "https://raw.githubusercontent.com"),
    "fairseq": ("ECHOSTREAM_FAIRSEQ_FILES", "https://dl.fbaipublicfiles.com"),
}
DATA_YAML, TASKS_YAML = "config_gcmvn.yaml", "config_mtl_asr_st_ctcst.yaml"


@dataclass(frozen=True)
class HubFile:
    """A file of a model repository of the Hub at one revision."""

    repo: str
    revision: str
    path: str

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    def __str__(self) -> str:
        return f"hf:{self.repo}@{self.revision}/{self.path}"


@dataclass(frozen=True)
class WebFile:
    """A file behind a plain address: a base of :data:`WEB_BASES` and the rest."""

    base: str
    path: str

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    def __str__(self) -> str:
        return f"{WEB_BASES[self.base][1]}/{self.path}"


@dataclass(frozen=True)
class Part:
    """One file that a released model needs.

    Attributes:
        place: where it lies for the converter.
        sources: where it can be had; the first that answers.
        sha256: of its bytes; None: the Hub's metadata say it.
        size: in bytes, if known.
        roughly: in bytes, where ``size`` is not known; to see beforehand whether it fits.
        large: the original is not needed any more once it is converted.
    """

    place: str
    sources: tuple[HubFile | WebFile, ...]
    sha256: str | None = None
    size: int | None = None
    roughly: int = 0
    large: bool = False

    @property
    def names(self) -> frozenset[str]:
        """What the file may be called in a folder of files brought by other means."""
        return frozenset({self.place.rpartition("/")[2], *(s.name for s in self.sources)})


@dataclass(frozen=True)
class Licence:
    """What covers some of a model's parts."""

    name: str
    covers: str
    where: str


@dataclass(frozen=True)
class ShippedModel:
    """A model directory inside the package."""

    name: str
    system: str  # of ``assets.FOLDERS``
    title: str
    source_language: str
    target_language: str
    tasks: tuple[Task, ...] = ("asr", "s2tt", "s2st")
    licence: str = "MIT"
    source: str = "ships with EchoStream"


@dataclass(frozen=True)
class ReleasedModel:
    """A model that its authors published; converting makes it a model directory.

    Attributes:
        chunk_ms: recommended; None: whole utterances.
        checkpoint: weights and an optimizer's state.
        data: its data directory.
        vocoder: weights and configuration; None: it does not speak.
    """

    name: str
    title: str
    source_language: str
    target_language: str
    tasks: tuple[Task, ...]
    chunk_ms: int | None
    checkpoint: Part
    data: tuple[Part, ...]
    vocoder: tuple[Part, Part] | None
    licences: tuple[Licence, ...]

    @property
    def parts(self) -> tuple[Part, ...]:
        # The small ones first: what is wrong with them shows before the long downloads.
        return (*self.data, *reversed(self.vocoder or ()), self.checkpoint)

    @property
    def licence(self) -> str:
        """All licences in one line, for lists and cards."""
        return "; ".join(f"{licence.covers}: {licence.name}" for licence in self.licences)

    @property
    def source(self) -> str:
        return f"hf:{WEIGHTS_REPO}"

    @property
    def download_bytes(self) -> int:
        """Roughly what is downloaded."""
        return sum(part.size or part.roughly for part in self.parts)


KnownModel = ShippedModel | ReleasedModel

SHIPPED = (
    ShippedModel("everyday", "everyday", "Everyday Spanish", *assets.LANGUAGES),
    ShippedModel("echo-mini", "echostream", "echo-mini", *assets.LANGUAGES),
    ShippedModel(
        "echo-mini-streamspeech", "streamspeech", "echo-mini (StreamSpeech)", *assets.LANGUAGES
    ),
)

LANGUAGES = {"fr": "French", "es": "Spanish", "de": "German"}
# sha256 of configs/<language>-en/ at CONFIG_COMMIT; "src" and "tgt" are folders there.
_DATA_HASHES = {
    "fr": (
        "e234d16861aa73eb8ec866b8e4eedac6b12c8b629a53b18b7393161968f3242d",
        "ede924f4bdd2c6a51597c8f19a8afd5010db034ceacba4e399404f9e27505974",
        "ea70c4e0e2465ce81e6dd9f9a7e580ed6d3c0d9f089567d1aea7a57ff4203566",
        "7917b5d10dac2aefc3119c42b3043b909afc6fd96ff05d05daae191f85d520e5",
        "a538c999e87352e07b635336accd1fcaa6b613702399187d3dd1a83c8505df9a",
        "9722dc6f2890302585a268c272172237d8361636d6cfa2074c2135a35a23dba8",
        "f48bbe27dd51e41697fe679ade7101449bfe78540633096b56c7852dcadb5607",
    ),
    "es": (
        "2a4d4e15850bb18ff6cd9b35031340a265b80fe32984281e03dc56d5fcd5b906",
        "c5ca1ae0d5890adb60462417284430e3e21fe7d058de15aec5b0390b794cdd99",
        "3ffac0a9b3fae4f914a5a5c723ffa876d83ade3179d5e45b98974b7fb8add823",
        "9a7a7b62a4eeb9e2d63c070864c031d10b64d5d42fd3f3c148fd9efe88a7343b",
        "a102dcda9989047734fd9f30625483ce821d9ea2da8831a1bfd922d1eab6a4fc",
        "333afbc60aaa4b05b0b92f0a39cbcc092c7238ab51a1785a871aa254d5ed0d9e",
        "e7d45096fb8f90032ce20a5ca2c226dcfc37f648a1a8ab7b5c28cc9e77804b16",
    ),
    "de": (
        "7466b87a4e48a44a89b05b5d2d51a92f08977c191bbb5537b497e8d5337f3c42",
        "733eb4dbbb71f7c8af99e35225a95f1b6e78e796b224a977f6fe5daa6d89357c",
        "e01eacdb51f6f1a461944c12c09d905347c1a4edab7d3cc53d462315b0b82e7c",
        "8c5dc18c8ff2989a95a645806c656355611b56f14afb7a8fdc808c086d3556d3",
        "f7a263c9ead77d9b1dc1f9c0b13269432d4557f4755b3ea1fb8bc0217ebbc481",
        "edbb7e7aac49ead78be0606edd7724901bc64cb6c077a37ecaf08e5ab13a0631",
        "ac513e8b771547e3aab616f3a8f1b9a2406f071f6bcdfe30304dc6cf3a1ca892",
    ),
}
# Known of one file only; the Hub's metadata say the others'.
_CHECKPOINT_HASHES = {
    "streamspeech.offline.fr-en.pt": (
        "29def4ca0327b37f2d44ebbe5736d81c342a22204ae03b127475491e1129fae4"
    ),
}
CHECKPOINT_BYTES = 862_000_000  # all of them have one shape and an optimizer's state


def data_parts(language: str) -> tuple[Part, ...]:
    """The data directory of ``<language>-en``; its target files carry the source's name too."""
    places = (
        DATA_YAML,
        TASKS_YAML,
        "gcmvn.npz",
        *(
            f"{side}_unigram6000/spm_unigram_{language}.{kind}"
            for side in ("src", "tgt")
            for kind in ("model", "txt")
        ),
    )
    folder = f"{CONFIG_REPO}/{CONFIG_COMMIT}/configs/{language}-en"
    return tuple(
        Part(place, (WebFile("github", f"{folder}/{place}"),), sha256, roughly=500_000)
        for place, sha256 in zip(places, _DATA_HASHES[language], strict=True)
    )


VOCODER = Part(
    "vocoder/g_00500000",
    (
        HubFile(VOCODER_REPO, VOCODER_REVISION, "model.pt"),
        # Taken to be the same bytes: the hash decides.
        WebFile("fairseq", f"{VOCODER_FOLDER}/g_00500000"),
    ),
    sha256="0d1f7188b95b06304bc05e524fddf93c7fe682fdd93acff022685663a5e26b97",
    size=54_051_213,
    large=True,
)
VOCODER_CONFIG = Part(
    "vocoder/config.json",
    (
        HubFile(VOCODER_REPO, VOCODER_REVISION, "config.json"),
        WebFile("fairseq", f"{VOCODER_FOLDER}/config.json"),
    ),
    roughly=2_000,
)
WEIGHTS_LICENCE = Licence(
    "none stated by its authors", "weights", f"https://huggingface.co/{WEIGHTS_REPO}"
)
DATA_LICENCE = Licence("MIT", "configuration", f"https://github.com/{CONFIG_REPO}")
VOCODER_LICENCE = Licence(
    "CC-BY-NC-4.0 (not for commercial use)", "vocoder", f"https://huggingface.co/{VOCODER_REPO}"
)


def _released(language: str, variant: str) -> ReleasedModel:
    file = f"streamspeech.{variant}.{language}-en.pt"
    offline = variant == "offline"
    return ReleasedModel(
        name=f"streamspeech-{language}-en" + (":offline" if offline else ""),
        title=f"StreamSpeech {LANGUAGES[language]} to English" + (", offline" if offline else ""),
        source_language=language,
        target_language="en",
        # By their published training command, the offline models' text-to-unit encoder looks
        # ahead. There is none like it here, so they transcribe and translate, and do not speak.
        tasks=("asr", "s2tt") if offline else ("asr", "s2tt", "s2st"),
        chunk_ms=None if offline else 320,
        checkpoint=Part(
            file,
            (HubFile(WEIGHTS_REPO, WEIGHTS_REVISION, file),),
            sha256=_CHECKPOINT_HASHES.get(file),
            roughly=CHECKPOINT_BYTES,
            large=True,
        ),
        data=data_parts(language),
        vocoder=None if offline else (VOCODER, VOCODER_CONFIG),
        licences=(WEIGHTS_LICENCE, DATA_LICENCE)
        if offline
        else (WEIGHTS_LICENCE, VOCODER_LICENCE, DATA_LICENCE),
    )


RELEASED = tuple(
    _released(language, variant)
    for language in LANGUAGES
    for variant in ("simultaneous", "offline")
)
_ALL: tuple[KnownModel, ...] = (*SHIPPED, *RELEASED)
KNOWN = {model.name: model for model in _ALL}
