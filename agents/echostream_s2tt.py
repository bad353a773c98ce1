"""Simultaneous speech-to-text translation agent.

simuleval --agent agents/echostream_s2tt.py --model-dir DIR --source LIST --target TEXT ...
"""

from simuleval.agents import SpeechToTextAgent
from simuleval.utils import entrypoint

from echostream.agents.base import TextOutput


@entrypoint
class EchoStreamS2TTAgent(TextOutput, SpeechToTextAgent):
    """Simultaneous speech-to-text translation with EchoStream."""

    task = "s2tt"
