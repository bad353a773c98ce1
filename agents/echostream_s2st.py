"""Simultaneous speech-to-speech translation agent.

simuleval --agent agents/echostream_s2st.py --model-dir DIR --source LIST --target TEXT ...
"""

from simuleval.agents import SpeechToSpeechAgent
from simuleval.utils import entrypoint

from echostream.agents.base import SpeechOutput


@entrypoint
class EchoStreamS2STAgent(SpeechOutput, SpeechToSpeechAgent):
    """Simultaneous speech-to-speech translation with EchoStream."""

    task = "s2st"
