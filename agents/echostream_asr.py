"""Streaming speech recognition agent.

simuleval --agent agents/echostream_asr.py --model-dir DIR --source LIST --target TEXT ...
"""

from simuleval.agents import SpeechToTextAgent
from simuleval.utils import entrypoint

from echostream.agents.base import TextOutput


@entrypoint
class EchoStreamASRAgent(TextOutput, SpeechToTextAgent):
    """Streaming speech recognition with EchoStream."""

    task = "asr"
