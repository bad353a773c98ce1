"""StreamSpeech: simultaneous speech-to-text translation agent.

simuleval --agent agents/streamspeech_s2tt.py --model-dir DIR --source LIST --target TEXT ...
"""

from simuleval.agents import SpeechToTextAgent
from simuleval.utils import entrypoint

from echostream.agents.base import TextOutput
from echostream.agents.streamspeech_base import StreamSpeechAgent


@entrypoint
class StreamSpeechS2TTAgent(StreamSpeechAgent, TextOutput, SpeechToTextAgent):
    """Simultaneous speech-to-text translation with a StreamSpeech model."""

    task = "s2tt"
