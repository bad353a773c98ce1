"""Constructions that contain one another, and the trees they make: patterns of the extension.

A pattern is a tree, written ``stmt(because(past(s(name,intr)),was(st(q(the(n))))))``.
``data/constructions.yaml`` says which constructions belong to a category and of which categories
their parts are; the parts of some are of the category itself, so patterns have no bounded number.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

import yaml

from echostream.training.corpus.lexicon import DATA
from echostream.training.corpus.pairs import Chooser

ROOT = "TEXT"
MAX_DEPTH = 9
# How fast larger constructions give way to smaller ones further down a tree.
_DECAY = 0.62


@dataclass(frozen=True)
class Tree:
    """A construction and its parts."""

    label: str
    parts: tuple[Tree, ...] = ()

    def __str__(self) -> str:
        inner = ",".join(map(str, self.parts))
        return f"{self.label}({inner})" if self.parts else self.label

    def labels(self) -> set[str]:
        return {self.label}.union(*(part.labels() for part in self.parts))


@dataclass(frozen=True)
class Production:
    """One way to make a category: a construction of parts, or (no label) another category."""

    label: str
    parts: tuple[str, ...]
    weight: float


# category: construction(parts) weight; a name in capitals alone is another category.


@cache
def load_grammar() -> dict[str, tuple[Production, ...]]:
    """The grammar as productions by category."""
    grammar = {}
    for category, items in yaml.safe_load((DATA / "constructions.yaml").read_text("utf-8")).items():
        productions = []
        for item, weight in items.items():
            name, _, parts = item.rstrip(")").partition("(")
            if name.isupper():
                productions.append(Production("", (name,), weight))
            else:
                productions.append(Production(name, tuple(filter(None, parts.split(","))), weight))
        grammar[category] = tuple(productions)
    return grammar


@cache
def _heights() -> dict[str, int]:
    """Depth of the smallest tree of each category."""
    grammar = load_grammar()
    heights: dict[str, int] = {}
    while len(heights) < len(grammar):
        for category, productions in grammar.items():
            known = [
                max((heights[part] for part in one.parts), default=0) + bool(one.label)
                for one in productions
                if all(part in heights for part in one.parts)
            ]
            if known:
                heights[category] = min(known)
    return heights


def sample_tree(chooser: Chooser, category: str = ROOT, depth: int = MAX_DEPTH) -> Tree:
    """Draw a tree no deeper than ``depth``."""
    options = []
    for production in load_grammar()[category]:
        need = max((_heights()[part] for part in production.parts), default=0)
        if need + bool(production.label) > depth:
            continue
        grows = sum(_heights()[part] for part in production.parts if production.label)
        options.append((production.weight * _DECAY ** max(0, grows - depth / 2), production))
    at = chooser.fraction() * sum(weight for weight, _ in options)
    chosen = options[-1][1]
    for weight, production in options:
        at -= weight
        if at < 0:
            chosen = production
            break
    below = depth - bool(chosen.label)
    parts = tuple(sample_tree(chooser, part, below) for part in chosen.parts)
    return Tree(chosen.label, parts) if chosen.label else parts[0]


def parse(text: str) -> Tree:
    """Read a pattern.

    Raises:
        ValueError: malformed, or no tree of the grammar.
    """
    position = 0

    def read() -> Tree:
        nonlocal position
        match = re.compile(r"[a-z_]+").match(text, position)
        if match is None:
            raise ValueError(f"pattern {text!r}: expected a name at {position}")
        position = match.end()
        parts = []
        if text[position : position + 1] == "(":
            while text[position : position + 1] in ("(", ","):
                position += 1
                parts.append(read())
            if text[position : position + 1] != ")":
                raise ValueError(f"pattern {text!r}: expected ')' at {position}")
            position += 1
        return Tree(match[0], tuple(parts))

    tree = read()
    if position != len(text):
        raise ValueError(f"pattern {text!r}: text left at {position}")
    if not belongs(tree, ROOT):
        raise ValueError(f"pattern {text!r} is no {ROOT} of the grammar")
    return tree


def belongs(tree: Tree, category: str) -> bool:
    """Whether a tree is of a category."""
    for production in load_grammar()[category]:
        if not production.label:
            if belongs(tree, production.parts[0]):
                return True
        elif production.label == tree.label and len(production.parts) == len(tree.parts):
            if all(map(belongs, tree.parts, production.parts)):
                return True
    return False
