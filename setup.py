"""Packaging of EchoStream.

The SimulEval adapters live in the top-level folder ``agents/`` because that is what
``simuleval --agent agents/...`` points at; they install as ``echostream.agents`` because a
top-level package called ``agents`` would clash with another distribution.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "echostream/__init__.py").read_text(), re.MULTILINE
).group(1)

setup(
    name="echostream",
    version=VERSION,
    description="Simultaneous speech-to-speech translation with a streaming Emformer encoder",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10,<3.14",
    packages=[*find_packages(include=["echostream", "echostream.*"]), "echostream.agents"],
    package_dir={"echostream.agents": "agents"},
    package_data={
        "echostream": ["py.typed"],
        "echostream.assets": ["echo_mini/*", "echo_mini/*/*", "voice/*"],
        "echostream.training.corpus": ["data/*"],
        "echostream.live": ["page/*", "page/*/*"],
    },
    install_requires=[
        "torch>=2.5",
        "torchaudio>=2.5",
        "simuleval>=1.1.4",
        "sacrebleu>=2.4",
        "soundfile>=0.12",
        "numpy>=1.26",
        "sentencepiece>=0.2",
        "safetensors>=0.4",
        "PyYAML>=6.0",
        "soxr>=0.5",
        "tqdm>=4.64",
        "joblib>=1.3",
        # SimulEval 1.1.4 imports these three without declaring all of them.
        "pandas>=2.0",
        "matplotlib>=3.8",
        "setuptools",
    ],
    extras_require={
        "train": ["fairseq-fixed==0.12.3.1", "cython", "scikit-learn>=1.4"],
        "asr": ["pocketsphinx>=5.0"],
        "eval": ["OmniSTEval>=0.1.10"],
        "hf": ["transformers>=4.40"],
        "hub": ["huggingface-hub>=1.0"],
        # Its network comes in the wheel.
        "vad": ["silero-vad>=5.1", "onnxruntime>=1.17"],
        # The exporter needs onnx and onnxscript, running only onnxruntime.
        "onnx": ["onnx>=1.17", "onnxscript>=0.5", "onnxruntime>=1.20"],
        # Its later wheels fetch the weights from a server.
        "moonshine": ["moonshine-voice>=0.0.49,<0.1"],
        "whisper": ["faster-whisper>=1.0"],
        "ray": ["ray>=2.9"],
        "serve": [
            "starlette>=0.40",
            "uvicorn>=0.34",
            "websockets>=14",
            "prometheus-client>=0.20",
        ],
        "live": ["sounddevice>=0.5", "websockets>=14"],
        "simulstream": ["simulstream>=1.0"],
        # English text to phonemes (phonemizer drives espeak-ng, from the system's packages).
        "voice": ["num2words>=0.5.13", "phonemizer>=3.2"],
        "browser": ["playwright>=1.50"],
        "dev": ["pytest>=8.0", "pytest-xdist>=3.5", "hypothesis>=6.100", "ruff>=0.5"],
    },
    entry_points={"console_scripts": ["echostream = echostream.cli:main"]},
    classifiers=[
        "License :: OSI Approved :: MIT License",
        "Programming Language :: Python :: 3",
        *[f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)],
        "Topic :: Multimedia :: Sound/Audio :: Speech",
    ],
)
