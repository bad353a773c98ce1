"""EchoStream as a speech processor of the simulstream package."""

from echostream.simulstream.processor import EchoStreamProcessor

__all__ = ["EchoStreamProcessor"]
