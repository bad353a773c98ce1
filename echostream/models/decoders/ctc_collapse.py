"""The incremental greedy collapse of CTC labels: repeats are merged, blanks dropped.

Labels are Python numbers here, whatever network they come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from echostream.text import SPECIALS, Vocabulary

UNIT_OFFSET = len(SPECIALS)  # unit u is token u + 4
NEVER = (Vocabulary.pad, Vocabulary.unk)  # CTC heads never choose these


@dataclass(frozen=True)
class CollapseState:
    """What an incremental collapse remembers: the last frame's label."""

    last: int | None = None


def collapse(
    labels: Sequence[int], state: CollapseState, blank: int, ignore: tuple[int, ...] = ()
) -> tuple[list[int], CollapseState]:
    """Merge repeats and drop blanks of the next frames' labels.

    Collapsing a sequence in any pieces equals collapsing it whole.

    Args:
        labels: best label per new frame.
        blank: the blank's id.
        ignore: further ids that are never emitted (padding).

    Returns:
        Newly emitted tokens and the state behind them.
    """
    positions, state = emissions(labels, state, blank, ignore)
    return [labels[position] for position in positions], state


def emissions(
    labels: Sequence[int], state: CollapseState, blank: int, ignore: tuple[int, ...] = ()
) -> tuple[list[int], CollapseState]:
    """:func:`collapse`, but returns at which of the new frames tokens are emitted."""
    positions = []
    last = state.last
    for position, label in enumerate(labels):
        if label != last and label != blank and label not in ignore:
            positions.append(position)
        last = label
    return positions, CollapseState(last)


def label_emissions(
    labels: Sequence[int], state: CollapseState
) -> tuple[list[int], list[int], CollapseState]:
    """Labels of new encoder frames to the text tokens they emit, at which of the frames, and the
    state behind them."""
    emitted, state = emissions(labels, state, Vocabulary.blank, (Vocabulary.pad,))
    return [labels[position] for position in emitted], emitted, state


def label_units(
    labels: Sequence[int], state: CollapseState, num_units: int
) -> tuple[list[int], CollapseState]:
    """Labels of new unit frames to the units they emit, and the state behind them; the blank comes
    after all units."""
    blank = num_units + UNIT_OFFSET
    tokens, state = collapse(labels, state, blank, tuple(range(UNIT_OFFSET)))
    return [token - UNIT_OFFSET for token in tokens], state
