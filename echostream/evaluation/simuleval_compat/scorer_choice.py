"""Changing the scorers that SimulEval builds from its options."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from simuleval.evaluator.evaluator import SentenceLevelEvaluator

ScorerChange = Callable[[dict[str, Any], dict[str, Any], argparse.Namespace], dict[str, Any]]


def change_scorers(change: ScorerChange) -> Any:
    """Let ``change`` see the quality and latency scorers before the evaluator is made with them.

    ``SentenceLevelEvaluator.from_args`` ends in ``cls(...)``, so a function in place of the class
    receives what was built.

    Args:
        change: takes quality scorers, latency scorers (which it may edit) and the options, and
            returns the quality scorers to use.

    Returns:
        The function that now stands behind ``from_args``, to be marked as patched.
    """
    original = SentenceLevelEvaluator.from_args.__func__

    def from_args(cls: type, args: argparse.Namespace) -> Any:
        def build(
            dataloader: Any, quality_scorers: dict, latency_scorers: dict, args: argparse.Namespace
        ) -> Any:
            scorers = change(quality_scorers, latency_scorers, args)
            return cls(dataloader, scorers, latency_scorers, args)

        return original(build, args)

    SentenceLevelEvaluator.from_args = classmethod(from_args)
    return from_args
