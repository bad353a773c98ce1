"""StreamSpeech: simultaneous speech-to-speech translation agent.

simuleval --agent agents/streamspeech_s2st.py --model-dir DIR --source LIST --target TEXT ...
"""

from simuleval.agents import SpeechToSpeechAgent
from simuleval.utils import entrypoint

from echostream.agents.base import SpeechOutput
from echostream.agents.streamspeech_base import StreamSpeechAgent


@entrypoint
class StreamSpeechS2STAgent(StreamSpeechAgent, SpeechOutput, SpeechToSpeechAgent):
    """Simultaneous speech-to-speech translation with a StreamSpeech model."""

    task = "s2st"
