"""Noun and verb phrases of trees of constructions, in Spanish and English at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from echostream.training.corpus.constructions import Tree
from echostream.training.corpus.lexicon import Entry, Lexicon
from echostream.training.corpus.pairs import Chooser
from echostream.training.corpus.phrases import NounPhrase, noun_phrase

_CLITICS = {  # object pronouns: Spanish, English, person (that the subject must not have)
    "me": ("me", "1"),
    "te": ("you", "2"),
    "nos": ("us", "1"),
    "lo": ("him", "-"),
    "la": ("her", "-"),
    "los": ("them", "-"),
}
_PRONOUNS = {
    "i": NounPhrase("", "I", "1s"),
    "you": NounPhrase("", "you", "2s"),
    "we": NounPhrase("", "we", "1p"),
    "he": NounPhrase("él", "he", "3s"),
    "she": NounPhrase("ella", "she", "3s", "f"),
    "they": NounPhrase("ellos", "they", "3p"),
    "nobody": NounPhrase("nadie", "nobody", "3s"),
    "everyone": NounPhrase("todo el mundo", "everyone", "3s"),
}
_JOINED = {  # verb phrases joined to others: Spanish with infinitive, English, and its form
    "to": ("para", "to", "base"),
    "before": ("antes de", "before", "ing"),
    "after": ("después de", "after", "ing"),
    "without": ("sin", "without", "ing"),
}
# Tense labels: Spanish tense, English auxiliary kind, and the tag of times.
TENSES = {
    "past": ("pret", "past", "tp"),
    "now": ("pres", "pres", "tn"),
    "fut": ("fut", "fut", "tf"),
    "perf": ("perf", "perf", ""),
    "prog": ("prog", "prog", ""),
    "going": ("going", "going", ""),
    "can": ("can", "can", ""),
}
_STATIVE = frozenset(
    "know understand need love hate respect admire fear trust depend miss remember see meet "
    "recognize own smell forget want hope prefer have lose find rely notice discover".split()
)
_ADJECTIVES = {  # tag of the adjectives that go with a kind of noun
    "person": "h",
    "thing": "q",
    "wear": "q",
    "food": "af",
    "fruit": "af",
    "drink": "af",
    "place": "ap",
    "animal": "aa",
    "text": "at",
    "issue": "at",
    "event": "at",
}
# Places that English is in, not at.
_IN = frozenset(
    "forest village park square cathedral church castle zoo valley cave desert jungle meadow "
    "vineyard orchard neighborhood hallway elevator greenhouse warehouse cemetery".split()
)


class Retry(Exception):
    """The draw is useless: a word twice, a subject that is its own object, no plural."""


@dataclass(frozen=True)
class VerbPhrase:
    """A verb with what follows it.

    Attributes:
        es_tail: of the person of the subject, on which reflexive infinitives depend.
        clitic: Spanish object pronoun.
        avoids: persons ("1", "2") of the object, which no subject may share.
    """

    es: str
    en: str
    es_tail: Callable[[str], str]
    en_tail: str
    clitic: str = ""
    avoids: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Scope:
    """What surrounds a verb phrase and so decides which verbs fit."""

    progressive: bool = False
    imperative: bool = False


@dataclass
class PhraseComposer:
    """Writes phrases of one sentence.

    Attributes:
        used: English words that were drawn already.
        combinations: pairs of verb or adjective and noun that were put together.
    """

    lexicon: Lexicon
    chooser: Chooser
    used: set[str] = field(default_factory=set)
    combinations: set[tuple[str, str]] = field(default_factory=set)

    # Words

    def entry(self, tag: str, accept: Callable[[Entry], bool] = lambda entry: True) -> Entry:
        """Draw an entry whose English is new to the sentence."""
        entries = [one for one in self.lexicon.entries(tag) if accept(one)]
        entry = self.chooser.choice(entries)
        if entry.english in self.used:
            raise Retry(entry.english)
        self.used.add(entry.english)
        return entry

    def verb(self, tag: str, scope: Scope) -> Entry:
        def fits(entry: Entry) -> bool:
            if scope.imperative and entry.es.endswith("se"):
                return False
            return not (scope.progressive and entry.en in _STATIVE)

        return self.entry(tag, fits)

    # Noun phrases

    def noun(self, tree: Tree, tag: str) -> NounPhrase:
        """Noun phrases other than pronouns; ``tag`` says of what kind the head is."""
        label = tree.label
        if label == "name":
            entry = self.entry("name")
            return NounPhrase(entry.es, entry.en, "3s", entry.gender, entry.en)
        if label == "kin":
            return noun_phrase(self.chooser, "my", self.entry("kin"), None, plurals=0)
        if label == "both":
            first, second = (self.noun(part, tag) for part in tree.parts)
            return NounPhrase(
                f"{first.es} y {second.es}",
                f"{first.en} and {second.en}",
                "3p",
                "f" if (first.gender, second.gender) == ("f", "f") else "m",
                first.head,
            )
        if label == "of_kin":
            owner = self.noun(tree.parts[0], tag)
            core = noun_phrase(self.chooser, "the", self.entry("kin"), None, plurals=0)
            return replace(core, es=f"{core.es} de {owner.es}", en=f"{core.en} of {owner.en}")
        entry = self.entry(tag)
        adjective = None
        if tree.parts[0].label == "an":
            adjective = self.entry(_ADJECTIVES[tag])
        determiner = {"of": "the", "which": "the", "who": "the"}.get(label, label)
        plurals = 0.05 if tag == "place" else 0.25
        core = noun_phrase(self.chooser, determiner, entry, adjective, plurals=plurals)
        if core is None:
            raise Retry(entry.english)
        if label == "of":
            owner = self.noun(tree.parts[1], "person")
            return replace(core, es=f"{core.es} de {owner.es}", en=f"{core.en} of {owner.en}")
        if label == "which":
            owner = self.noun(tree.parts[1], "person")
            verb = self.entry(f"v_{_verb_tag(tag)}", _takes_bare_object)
            self.combinations.add((verb.english, core.head))
            es = self.lexicon.conjugate(verb.es, "pret", owner.person)
            en = self.lexicon.inflect(verb.en, "past", owner.person)
            return replace(
                core,
                es=f"{core.es} que {es} {owner.es}",
                en=f"{core.en} that {owner.en} {en} {verb.en_rest}",
            )
        if label == "who":
            phrase = self.verb_phrase(tree.parts[1], Scope())
            es, en = self.finite(phrase, core, "past")
            return replace(core, es=f"{core.es} que {es}", en=f"{core.en} who {en}")
        return core

    def subject(self, tree: Tree) -> NounPhrase:
        return _PRONOUNS.get(tree.label) or self.noun(tree, "person")

    def place(self, tree: Tree) -> tuple[str, str]:
        """A place with its preposition, as an adverbial: "en el parque", "near the park"."""
        if tree.label == "city":
            entry = self.entry("city")
            return f"en {entry.es}", f"in {entry.en}"
        if tree.label == "link":
            link = self.entry("link")
            near = self.noun(tree.parts[0], "place")
            return f"{link.es} {near.es}", f"{link.en} {near.en}"
        where = self.noun(tree, "place")
        return f"en {where.es}", f"{'in' if where.head in _IN else 'at'} {where.en}"

    def goal(self, tree: Tree, preposition: str) -> tuple[str, str]:
        """A place without its preposition, as where somebody goes."""
        if tree.label == "city":
            entry = self.entry("city")
            return entry.es, entry.en
        if tree.label == "link":
            raise Retry("a goal is a place itself")
        where = self.noun(tree, "place")
        return where.es, where.en

    # Verb phrases

    def verb_phrase(self, tree: Tree, scope: Scope) -> VerbPhrase:
        label = tree.label
        if label == "intr":
            return _verb_phrase(self.verb("v_intr", scope))
        if label == "act":
            return _verb_phrase(self.verb("act", scope))
        if label == "pro":
            clitic = self.chooser.choice(list(_CLITICS))
            text, person = _CLITICS[clitic]
            verb = self.entry(
                "v_person",
                lambda one: (
                    _takes_bare_object(one) and not (scope.progressive and one.en in _STATIVE)
                ),
            )
            return VerbPhrase(verb.es, verb.en, lambda _: "", text, clitic, frozenset({person}))
        if label == "modal":
            verb, inner = self.verb("v_modal", scope), self.verb_phrase(tree.parts[0], scope)
            return VerbPhrase(
                verb.es,
                verb.en,
                lambda person: f"{verb.es_rest} {self.infinitive(inner, person)}",
                f"{verb.en_rest} {self.base(inner, 'base')}",
                avoids=inner.avoids,
            )
        if label == "move":
            verb = self.verb("v_move", scope)
            es, en = self.goal(tree.parts[0], verb.es_rest)
            return _verb_phrase(verb, es, en)
        if label == "give":
            verb = self.verb("v_give", scope)
            given = self.noun(tree.parts[0], self.chooser.choice(["thing", "wear", "text"]))
            taker = self.noun(tree.parts[1], "person")
            self.combinations.add((verb.english, given.head))
            clitic = "les" if taker.person == "3p" else "le"
            # "to" keeps long givers and takers apart better than two objects in a row.
            return VerbPhrase(
                verb.es,
                verb.en,
                lambda _: f"{given.es} {_personal(tree.parts[1], taker)}",
                f"{given.en} to {taker.en}",
                clitic,
            )
        if label in ("manner", "with", "at", *_JOINED):
            return self._modified(tree, scope)
        return self._transitive(tree, scope)

    def _transitive(self, tree: Tree, scope: Scope) -> VerbPhrase:
        label = tree.label
        verb = self.verb(f"v_{label}", scope)
        tag = self.chooser.choice(["food", "fruit"]) if label == "food" else label
        target = self.noun(tree.parts[0], tag)
        self.combinations.add((verb.english, target.head))
        if label == "person" and not verb.es_rest:
            return _verb_phrase(verb, _personal(tree.parts[0], target), target.en)
        return _verb_phrase(verb, target.es, target.en)

    def _modified(self, tree: Tree, scope: Scope) -> VerbPhrase:
        if tree.label == tree.parts[0].label:
            raise Retry("the same construction twice in a row")
        phrase = self.verb_phrase(tree.parts[0], scope)
        if tree.label == "manner":
            manner = self.entry("manner")
            return _extend(phrase, lambda _: manner.es, manner.en)
        if tree.label == "with":
            company = self.noun(tree.parts[1], "person")
            return _extend(phrase, lambda _: f"con {company.es}", f"with {company.en}")
        if tree.label == "at":
            es, en = self.place(tree.parts[1])
            return _extend(phrase, lambda _: es, en)
        link_es, link_en, form = _JOINED[tree.label]
        # What is joined follows another verb, so it stands in the infinitive.
        joined = self.verb_phrase(tree.parts[1], Scope(imperative=scope.imperative))
        extended = _extend(
            phrase,
            lambda person: f"{link_es} {self.infinitive(joined, person)}",
            f"{link_en} {self.base(joined, form)}",
        )
        return replace(extended, avoids=phrase.avoids | joined.avoids)

    def infinitive(self, phrase: VerbPhrase, person: str) -> str:
        verb = self.lexicon.conjugate(phrase.es, "inf", person)
        return f"{verb}{phrase.clitic} {phrase.es_tail(person)}"

    def base(self, phrase: VerbPhrase, form: str) -> str:
        return f"{self.lexicon.inflect(phrase.en, form)} {phrase.en_tail}"

    def spanish_verb(self, phrase: VerbPhrase, tense: str, person: str) -> tuple[str, str]:
        """The finite verb with its clitics, and what follows it."""
        conjugate, tail = self.lexicon.conjugate, phrase.es_tail(person)
        if tense == "prog":
            reflexive = phrase.es.endswith("se")
            clitic = phrase.clitic or (
                conjugate(phrase.es, "pres", person).split()[0] if reflexive else ""
            )
            gerund = conjugate(phrase.es.removesuffix("se"), "ger", person)
            return f"{clitic} {conjugate('estar', 'pres', person)} {gerund}", tail
        if tense in ("going", "can"):
            infinitive = self.infinitive(phrase, person)
            if tense == "can":
                return conjugate("poder", "pres", person), infinitive
            return conjugate("ir", "pres", person), f"a {infinitive}"
        return f"{phrase.clitic} {conjugate(phrase.es, tense, person)}", tail

    def english_verb(self, phrase: VerbPhrase, tense: str, person: str) -> tuple[str, str]:
        """Auxiliary (of questions and negation) and the rest."""
        inflect = self.lexicon.inflect
        helper, form = {
            "past": ("did", "base"),
            "pres": (inflect("do", "pres", person), "base"),
            "fut": ("will", "base"),
            "perf": (inflect("have", "pres", person), "pp"),
            "prog": (inflect("be", "pres", person), "ing"),
            "going": (inflect("be", "pres", person) + " going to", "base"),
            "can": ("can", "base"),
        }[tense]
        return helper, self.base(phrase, form)

    def finite(self, phrase: VerbPhrase, subject: NounPhrase, tense: str) -> tuple[str, str]:
        """Affirmative verb groups without the subject."""
        if subject.person[0] in phrase.avoids:
            raise Retry("a subject that is its own object")
        es_tense, en_tense, _ = TENSES[tense]
        es = " ".join(self.spanish_verb(phrase, es_tense, subject.person))
        if en_tense in ("past", "pres"):
            verb = self.lexicon.inflect(phrase.en, en_tense, subject.person)
            return es, f"{verb} {phrase.en_tail}"
        return es, " ".join(self.english_verb(phrase, en_tense, subject.person))


def _verb_tag(tag: str) -> str:
    return "food" if tag == "fruit" else tag


def _takes_bare_object(entry: Entry) -> bool:
    return not entry.es_rest and not entry.en_rest and not entry.es.endswith("se")


def _personal(tree: Tree, target: NounPhrase) -> str:
    """A person as an object; of two joined by "y" each has its own "a"."""
    joined = target.es.replace(" y ", " y a ", 1) if tree.label == "both" else target.es
    return f"a {joined}"


def _verb_phrase(verb: Entry, es: str = "", en: str = "") -> VerbPhrase:
    return VerbPhrase(verb.es, verb.en, lambda _: f"{verb.es_rest} {es}", f"{verb.en_rest} {en}")


def _extend(phrase: VerbPhrase, es: Callable[[str], str], en: str) -> VerbPhrase:
    return replace(
        phrase,
        es_tail=lambda person: f"{phrase.es_tail(person)} {es(person)}",
        en_tail=f"{phrase.en_tail} {en}",
    )
