"""Clauses and sentences of trees of constructions, in Spanish and English at once."""

from __future__ import annotations

from dataclasses import dataclass

from echostream.training.corpus import english, spanish
from echostream.training.corpus.constructions import Tree
from echostream.training.corpus.grammar import tidy
from echostream.training.corpus.phrase_composer import (
    TENSES,
    PhraseComposer,
    Retry,
    Scope,
    VerbPhrase,
)
from echostream.training.corpus.phrases import NounPhrase

_CONJUNCTIONS = {
    "and": ("y", "and"),
    "but": ("pero", "but"),
    "because": ("porque", "because"),
}
_OPENINGS = {"although": ("aunque", "although"), "when": ("cuando", "when"), "if": ("si", "if")}
_ABSOLUTE = frozenset("deaf blind bald silent".split())


@dataclass(frozen=True)
class Clause:
    """A finite clause in both languages.

    Attributes:
        es_asked, en_asked: its form as a question.
        is_ambiguous: only a time tells its preterite from the present, as in "hablamos".
    """

    es: str
    en: str
    es_asked: str = ""
    en_asked: str = ""
    is_ambiguous: bool = False


class Composer(PhraseComposer):
    """Writes one sentence."""

    def body(self, tree: Tree, tense: str) -> Clause:
        """A clause of subject and verb phrase, affirmed, denied or with "never"."""
        scope = Scope(progressive=tense == "prog")
        subject = self.subject(tree.parts[0])
        phrase = self.verb_phrase(tree.parts[1], scope)
        es, en = self.finite(phrase, subject, tense)
        helper, rest = self.english_verb(phrase, TENSES[tense][1], subject.person)
        first, _, more = helper.partition(" ")
        negation_es = negation_en = ""
        if tree.label != "s":
            _require_deniable(subject)
            negation_es, negation_en = ("no", "not") if tree.label == "no" else ("nunca", "never")
            if tree.label == "never" and tense in ("past", "now"):
                en = f"never {en}"
            else:
                space = "" if first == "can" and negation_en == "not" else " "
                en = f"{first}{space}{negation_en} {more} {rest}"
            es = f"{negation_es} {es}"
        verb, tail = self.spanish_verb(phrase, TENSES[tense][0], subject.person)
        return Clause(
            f"{subject.es} {es}",
            f"{subject.en} {en}",
            _ask(subject, f"{negation_es} {verb}", tail),
            f"{first} {subject.en} {negation_en} {more} {rest}",
            tense == "past" and self.spanish_verb(phrase, "pres", subject.person)[0] == verb,
        )

    def state(self, tree: Tree, tense: str) -> Clause:
        """A clause with ser or estar; in the past, the imperfect."""
        [what] = tree.parts
        conjugate, inflect = self.lexicon.conjugate, self.lexicon.inflect
        label = what.label
        if label in ("q", "b", "loc"):
            subject = self.noun(what.parts[0], self.chooser.choice(["thing", "wear"]))
        elif label == "e":
            subject = self.subject(what.parts[0])
        else:
            subject = self.noun(what.parts[0], "person")
        verb = "ser" if label in ("q", "h", "than") else "estar"
        if label in ("loc", "here"):
            es_rest, en_rest = self.place(what.parts[1])
        else:
            # Nobody is deafer than somebody.
            adjective = self.entry(
                "h" if label == "than" else label,
                lambda one: label != "than" or one.en not in _ABSOLUTE,
            )
            number = "p" if subject.person[1] == "p" else "s"
            es_rest = spanish.inflect_adjective(adjective.es, subject.gender, number)
            en_rest = adjective.en
            self.combinations.add((adjective.english, subject.head))
            if label == "than":
                other = self.noun(what.parts[1], "person")
                es_rest = f"más {es_rest} que {other.es}"
                en_rest = f"{english.comparative(adjective.en)} than {other.en}"
        if tree.label == "nst":
            _require_deniable(subject)
        es_tense, en_tense = ("imperf", "past") if tense == "was" else ("pres", "pres")
        es = f"{conjugate(verb, es_tense, subject.person)} {es_rest}"
        be = inflect("be", en_tense, subject.person)
        no, negated = ("no ", "not ") if tree.label == "nst" else ("", "")
        return Clause(
            f"{subject.es} {no}{es}",
            f"{subject.en} {be} {negated}{en_rest}",
            _ask(subject, no + conjugate(verb, es_tense, subject.person), es_rest),
            f"{be} {subject.en} {negated}{en_rest}",
        )

    def subjunctive(self, who: NounPhrase, phrase: VerbPhrase) -> str:
        verb, tail = self.spanish_verb(phrase, "subj", who.person)
        return f"{who.es} {verb} {tail}"

    # Clauses

    def clause(self, tree: Tree) -> Clause:
        label, parts = tree.label, tree.parts
        if label in _CONJUNCTIONS:
            first, second = map(self.clause, parts)
            es, en = _CONJUNCTIONS[label]
            comma = "" if label == "because" else ","
            return Clause(
                f"{first.es}{comma} {es} {second.es}", f"{first.en}{comma} {en} {second.en}"
            )
        if label in _OPENINGS:
            first, second = map(self.clause, parts)
            es, en = _OPENINGS[label]
            return Clause(f"{es} {first.es}, {second.es}", f"{en} {first.en}, {second.en}")
        if label in ("said", "says"):
            who = self.subject(parts[0])
            verb = self.entry("v_say")
            inner = self.clause(parts[1])
            tense, form = ("pret", "past") if label == "said" else ("pres", "pres")
            es = self.lexicon.conjugate(verb.es, tense, who.person)
            en = self.lexicon.inflect(verb.en, form, who.person)
            return Clause(
                f"{who.es} {es} {verb.es_rest} que {inner.es}",
                f"{who.en} {en} that {inner.en}",
            )
        if label == "wishes":
            who, other = self.subject(parts[0]), self.noun(parts[1], "person")
            verb = self.entry("v_wish")
            phrase = self.verb_phrase(parts[2], Scope())
            es = self.lexicon.conjugate(verb.es, "pres", who.person)
            en = self.lexicon.inflect(verb.en, "pres", who.person)
            return Clause(
                f"{who.es} {es} que {self.subjunctive(other, phrase)}",
                f"{who.en} {en} {other.en} to {self.base(phrase, 'base')}",
            )
        if label == "important":
            other, adjective = self.noun(parts[0], "person"), self.entry("imp")
            phrase = self.verb_phrase(parts[1], Scope())
            return Clause(
                f"es {adjective.es} que {self.subjunctive(other, phrase)}",
                f"it is {adjective.en} for {other.en} to {self.base(phrase, 'base')}",
            )
        if label == "exists":
            es, en = self.place(parts[0])
            things = self.noun(Tree("num", (Tree("n"),)), self.chooser.choice(["thing", "animal"]))
            return Clause(f"hay {things.es} {es}", f"there are {things.en} {en}")
        if label in ("whenever", "until"):
            return self._future_time(tree)
        if label in ("is", "was"):
            return self.state(parts[0], label)
        return self._tensed(tree)

    def _future_time(self, tree: Tree) -> Clause:
        """Clauses of time in the future: subjunctive against present."""
        whenever = tree.label == "whenever"
        who_tree, phrase_tree, main_tree = (
            tree.parts
            if whenever
            else (
                *tree.parts[1:],
                tree.parts[0],
            )
        )
        who = self.noun(who_tree, "person")
        phrase = self.verb_phrase(phrase_tree, Scope())
        main = self.clause(main_tree)
        es = self.subjunctive(who, phrase)
        _, en = self.finite(phrase, who, "now")
        if whenever:
            return Clause(f"cuando {es}, {main.es}", f"when {who.en} {en}, {main.en}")
        return Clause(f"{main.es} hasta que {es}", f"{main.en} until {who.en} {en}")

    def _tensed(self, tree: Tree) -> Clause:
        """A clause in a tense, with a time before or behind it or none."""
        tense = tree.label.removeprefix("t_").removesuffix("_t")
        clause = self.body(tree.parts[0], tense)
        if tense == tree.label:
            if tense == "past" and clause.is_ambiguous:
                raise Retry("present or preterite?")
            return clause
        time = self.entry(TENSES[tense][2])
        if tree.label.startswith("t_"):
            return Clause(f"{time.es} {clause.es}", f"{time.en} {clause.en}")
        return Clause(f"{clause.es} {time.es}", f"{clause.en} {time.en}")

    def sentence(self, tree: Tree) -> tuple[str, str]:
        [inner] = tree.parts
        if tree.label in ("please", "order", "dont"):
            phrase = self.verb_phrase(inner, Scope(imperative=True))
            es, en = " ".join(self.spanish_verb(phrase, "subj", "3s")), self.base(phrase, "base")
            if tree.label == "please":
                return f"por favor, {es}.", f"please {en}."
            if tree.label == "dont":
                return f"no {es}.", f"do not {en}."
            return f"{es}.", f"{en}."
        clause = self.clause(inner)
        if tree.label == "stmt":
            return f"{clause.es}.", f"{clause.en}."
        if " nobody" in clause.en_asked and tree.label == "why":
            raise Retry("why nobody")
        if tree.label == "ask":
            return f"¿{clause.es_asked}?", f"{clause.en_asked}?"
        return f"¿por qué {clause.es_asked}?", f"why {clause.en_asked}?"

    def __call__(self, tree: Tree) -> tuple[str, str]:
        """The Spanish and the English sentence.

        Raises:
            Retry: the words that were drawn do not go together.
        """
        es, en = (" ".join(text.split()) for text in self.sentence(tree))
        return tidy(spanish.contract(es)), tidy(english.choose_articles(en))


def _require_deniable(subject: NounPhrase) -> None:
    """Nobody does not, and "every ... not" has two readings."""
    if subject.en.startswith(("nobody", "every ", "everyone")):
        raise Retry("no negation behind nobody or every")


def _ask(subject: NounPhrase, verb: str, tail: str) -> str:
    """A question: the subject behind the verb, unless it is long or a negation itself."""
    if " que " in subject.es or subject.es == "nadie":
        return f"{subject.es} {verb} {tail}"
    return f"{verb} {subject.es} {tail}"
