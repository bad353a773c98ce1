"""StreamSpeech: streaming speech recognition agent.

simuleval --agent agents/streamspeech_asr.py --model-dir DIR --source LIST --target TEXT ...
"""

from simuleval.agents import SpeechToTextAgent
from simuleval.utils import entrypoint

from echostream.agents.base import TextOutput
from echostream.agents.streamspeech_base import StreamSpeechAgent


@entrypoint
class StreamSpeechASRAgent(StreamSpeechAgent, TextOutput, SpeechToTextAgent):
    """Streaming speech recognition with a StreamSpeech model."""

    task = "asr"
