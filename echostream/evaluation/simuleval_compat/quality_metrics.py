"""The metrics and options of recognised speech in SimulEval's command."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import simuleval.utils.agent as agent_module
from simuleval.evaluator.evaluator import SentenceLevelEvaluator
from simuleval.evaluator.scorers.quality_scorer import QUALITY_SCORERS_DICT

from echostream.evaluation.simuleval_compat import quality
from echostream.evaluation.simuleval_compat.patch import Patch, mark, unmarked
from echostream.evaluation.simuleval_compat.scorer_choice import change_scorers


def _lacks_our_scorers() -> bool:
    return any(
        QUALITY_SCORERS_DICT.get(name) is not scorer for name, scorer in quality.SCORERS.items()
    )


def patch_quality_metrics() -> None:
    """Put ASR_BLEU, ASR_BLEU_NOSIL, WER and CHRF where ``--quality-metrics`` looks."""
    QUALITY_SCORERS_DICT.update(quality.SCORERS)


def patch_asr_columns() -> None:
    """Give ASR_BLEU its companions: the figure without silence, and the recogniser's name."""

    def change(
        quality_scorers: dict[str, Any], latency_scorers: dict[str, Any], args: argparse.Namespace
    ) -> dict[str, Any]:
        return quality.with_companions(quality_scorers, args)

    change_scorers(change).echostream_asr_columns = True


def _lacks_asr_columns() -> bool:
    return not hasattr(SentenceLevelEvaluator.from_args.__func__, "echostream_asr_columns")


def patch_asr_options() -> None:
    """Make ``--asr-model`` and ``--asr-device`` options of the command.

    SimulEval collects the scorers' options before it loads the agent, hence before this module,
    but the agent's own after: the hook is the call that follows the agent's. A system folder
    (``--system-dir``) has no such call, and there the options are taken off the command line.
    """
    original = agent_module.add_command_helper_arg

    def add_command_helper_arg(parser: argparse.ArgumentParser) -> None:
        quality.add_asr_args(parser)
        original(parser)

    agent_module.add_command_helper_arg = mark(add_command_helper_arg)
    if any(argument.partition("=")[0] == "--system-dir" for argument in sys.argv):
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        quality.add_asr_args(parser)
        options, sys.argv[1:] = parser.parse_known_args(sys.argv[1:])
        quality.set_default_asr_options(options)


PATCHES = (
    Patch(patch_quality_metrics, _lacks_our_scorers),
    Patch(patch_asr_columns, _lacks_asr_columns),
    Patch(patch_asr_options, unmarked(agent_module, "add_command_helper_arg")),
)
