"""Agents in another process: ``--standalone`` and ``--remote-eval``."""

from __future__ import annotations

from typing import get_origin

from simuleval.data.segments import SpeechSegment, TextSegment
from simuleval.evaluator.evaluator import SentenceLevelEvaluator
from simuleval.evaluator.remote import RemoteEvaluator

from echostream.evaluation.simuleval_compat.patch import Patch


def _segments_cannot_travel() -> bool:
    return TextSegment().tgt_lang is not None


def patch_segment_language() -> None:
    """Give segments no language by default; 1.1.4 gives them a typing object.

    A remote agent answers in JSON, which has no such thing, so it could not answer at all.
    """
    for segment in (TextSegment, SpeechSegment):
        defaults = segment.__init__.__defaults__ or ()
        segment.__init__.__defaults__ = tuple(
            None if get_origin(value) is not None else value for value in defaults
        )
        segment.tgt_lang = None


def _remote_evaluator_is_stale() -> bool:
    names = RemoteEvaluator.remote_eval.__code__.co_names
    return "instance_iterator" in names and not hasattr(SentenceLevelEvaluator, "instance_iterator")


def patch_remote_iterator() -> None:
    """Let ``--remote-eval`` find the utterances; 1.1.4 asks for them under their former name."""
    SentenceLevelEvaluator.instance_iterator = property(lambda self: self.iterator)


PATCHES = (
    Patch(patch_segment_language, _segments_cannot_travel),
    Patch(patch_remote_iterator, _remote_evaluator_is_stale),
)
