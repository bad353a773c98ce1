"""EchoStream: simultaneous speech-to-speech translation with a streaming Emformer encoder."""

__version__ = "0.1.0"
