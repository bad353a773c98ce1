"""Constructions that contain one another, and the trees they make: patterns of the extension.

A pattern is a tree, written ``because(past(s(name,intr)),was(st(q(the(n)))))``. ``GRAMMAR`` says
which constructions belong to a category and of which categories their parts are; the parts of
some are of the category itself, so that patterns have no bounded number.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

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
_GRAMMAR = """
TEXT: stmt(CL) 8, ask(ASK) 1, why(ASK) .5, please(VPO) .35, order(VPO) .25, dont(VPO) .3
CL: P 3, N 3, F 2
ASK: past(BODY) 1, now(BODY) 1, fut(BODY) 1, perf(ACT) .7, prog(ACT) .7, is(STATE) .6
P: PAST 8, perf(PERF) 1.5, was(STATE) 1.2, and(P,P) .7, but(P,P) .6, because(P,P) .9, although(P,P) .5, when(PAST,PAST) .6, said(HUM,SAID) 1.2
PAST: past(BODY) 3, past_t(BODY) 1.2, t_past(BODY) .9
SAID: P 2, F 1
N: now(BODY) 2.5, now_t(BODY) 1.2, prog(ACT) 1.5, is(STATE) 1.7, can(BODY) .9, exists(PLACE) .5, and(N,N) .6, but(N,N) .6, because(N,P) .5, because(N,N) .5, although(N,N) .4, says(SAYER,CL) 1.3, wishes(SAYER,HUM,VP) 1.2, important(HUM,VP) .8
F: fut(BODY) 2.5, fut_t(BODY) 1.3, t_fut(BODY) .9, going(ACT) 1, and(F,F) .5, but(F,F) .4, because(F,N) .6, if(IF,F) .9, whenever(HUM,VP,F) .7, until(F,HUM,VP) .5
IF: now(BODY) 1, can(BODY) .3
BODY: s(SUBJ,VP) 4, no(SUBJ,VP) 1.3, never(SUBJ,VP) .4
ACT: s(SUBJ,VPA) 4, no(SUBJ,VPA) 1.3
PERF: s(SUBJ,VPA) 4, no(SUBJ,VPA) 1, never(SUBJ,VPA) .6
STATE: st(X) 3, nst(X) 1
X: q(THING) 1, b(THING) 1, h(HUM) 1, e(SUBJ) 1.2, loc(THING,PLACE) 1, here(HUM,PLACE) .7, than(HUM,HUM) .7
VP: VPA 5, modal(VP) 1.1
VPA: VPO 6, give(OBJ,HUM) .7, pro .7
VPO: intr .9, act .6, thing(OBJ) 1.2, wear(OBJ) .7, food(OBJ) .8, drink(OBJ) .5, person(HUM) 1.2, animal(OBJ) .7, place(OBJ) .7, text(OBJ) .9, issue(OBJ) .9, event(OBJ) .7, move(PLACE) .8, manner(VPO) .5, with(VPO,HUM) .5, at(VPO,PLACE) .5, to(VPO,VPO) .4, before(VPO,VPO) .3, after(VPO,VPO) .3, without(VPO,VPO) .25
THING: OBJ
OBJ: a(NB) 2, the(NB) 2, my(NB) .9, this(NB) .6, that(NB) .5, num(NB) .8, many(NB) .4, of(NB,HUM) .6, which(NB,HUM) .5
NB: n 3, an 1.2
PLACE: city .6, the(NB) 2, a(NB) .5, link(OBJ0) .7
OBJ0: the(NB) 1, my(NB) .3
HUM: name 2.5, kin 1.2, the(NB) 2, a(NB) .6, of_kin(HUM) .6, who(NB,VPO) .6, both(WHO,WHO) .5, num(NB) .4, every(NB) .3
WHO: name 1, kin 1, the(NB) 1
SAYER: name 2, kin 1, the(NB) 1, i 1.2, we .4, you .3
SUBJ: HUM 3, i 1, you .6, we .7, he .5, she .5, they .5, nobody .2, everyone .2
"""


@cache
def load_grammar() -> dict[str, tuple[Production, ...]]:
    """The grammar as productions by category."""
    grammar = {}
    for line in _GRAMMAR.strip().splitlines():
        category, _, right = line.partition(": ")
        productions = []
        for item in re.split(r", (?=[a-zA-Z])", right):
            name, parts, weight = re.fullmatch(r"(\w+)(?:\(([\w,]+)\))? ?([\d.]*)", item).groups()
            amount = float(weight or 1)
            if name[0].isupper():
                productions.append(Production("", (name,), amount))
            else:
                productions.append(
                    Production(name, tuple(parts.split(",")) if parts else (), amount)
                )
        grammar[category] = tuple(productions)
    return grammar


@cache
def _height(category: str) -> int:
    """Depth of the smallest tree of a category."""
    return _heights()[category]


@cache
def _heights() -> dict[str, int]:
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
        need = max((_height(part) for part in production.parts), default=0)
        if need + bool(production.label) > depth:
            continue
        grows = sum(_height(part) for part in production.parts if production.label)
        options.append((production.weight * _DECAY ** max(0, grows - depth / 2), production))
    at = chooser.fraction() * sum(weight for weight, _ in options)
    for weight, production in options:
        at -= weight
        if at < 0:
            break
    below = depth - bool(production.label)
    parts = tuple(sample_tree(chooser, part, below) for part in production.parts)
    return Tree(production.label, parts) if production.label else parts[0]


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
