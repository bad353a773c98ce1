"""Trees of constructions as sentences, in Spanish and English at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from echostream.training.corpus import english, spanish
from echostream.training.corpus.constructions import Tree
from echostream.training.corpus.grammar import tidy
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
_CONJUNCTIONS = {
    "and": ("y", "and"),
    "but": ("pero", "but"),
    "because": ("porque", "because"),
}
_OPENINGS = {"although": ("aunque", "although"), "when": ("cuando", "when"), "if": ("si", "if")}
_JOINED = {  # verb phrases joined to others: Spanish with infinitive, English, and its form
    "to": ("para", "to", "base"),
    "before": ("antes de", "before", "ing"),
    "after": ("después de", "after", "ing"),
    "without": ("sin", "without", "ing"),
}
# Tense labels: Spanish tense, English auxiliary kind, and the tag of times.
_TENSES = {
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
_ABSOLUTE = frozenset("deaf blind bald silent".split())
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


@dataclass(frozen=True)
class Scope:
    """What surrounds a verb phrase and so decides which verbs fit."""

    progressive: bool = False
    imperative: bool = False


@dataclass
class Composer:
    """Writes one tree; ``combinations`` collects the pairs of verb and noun it put together."""

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
                lambda _: f"{given.es} a {taker.es}",
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
        personal = label == "person" and not verb.es_rest
        return _verb_phrase(verb, ("a " if personal else "") + target.es, target.en)

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
        es_tense, en_tense, _ = _TENSES[tense]
        es = " ".join(self.spanish_verb(phrase, es_tense, subject.person))
        if en_tense in ("past", "pres"):
            verb = self.lexicon.inflect(phrase.en, en_tense, subject.person)
            return es, f"{verb} {phrase.en_tail}"
        return es, " ".join(self.english_verb(phrase, en_tense, subject.person))

    def body(self, tree: Tree, tense: str) -> Clause:
        """A clause of subject and verb phrase, affirmed, denied or with "never"."""
        scope = Scope(progressive=tense == "prog")
        subject = self.subject(tree.parts[0])
        phrase = self.verb_phrase(tree.parts[1], scope)
        es, en = self.finite(phrase, subject, tense)
        helper, rest = self.english_verb(phrase, _TENSES[tense][1], subject.person)
        first, _, more = helper.partition(" ")
        negation_es = negation_en = ""
        if tree.label != "s":
            if subject.en == "nobody":
                raise Retry("nobody and a negation")
            negation_es, negation_en = ("no", "not") if tree.label == "no" else ("nunca", "never")
            if tree.label == "never" and tense in ("past", "now"):
                en = f"never {en}"
            else:
                space = "" if first == "can" and negation_en == "not" else " "
                en = f"{first}{space}{negation_en} {more} {rest}"
            es = f"{negation_es} {es}"
        verb, tail = self.spanish_verb(phrase, _TENSES[tense][0], subject.person)
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
        if subject.en == "nobody" and tree.label == "nst":
            raise Retry("nobody and a negation")
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
        time = self.entry(_TENSES[tense][2])
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


def _ask(subject: NounPhrase, verb: str, tail: str) -> str:
    """A question: the subject behind the verb, unless it is long or a negation itself."""
    if " que " in subject.es or subject.es == "nadie":
        return f"{subject.es} {verb} {tail}"
    return f"{verb} {subject.es} {tail}"


def _verb_tag(tag: str) -> str:
    return "food" if tag == "fruit" else tag


def _takes_bare_object(entry: Entry) -> bool:
    return not entry.es_rest and not entry.en_rest and not entry.es.endswith("se")


def _verb_phrase(verb: Entry, es: str = "", en: str = "") -> VerbPhrase:
    return VerbPhrase(verb.es, verb.en, lambda _: f"{verb.es_rest} {es}", f"{verb.en_rest} {en}")


def _extend(phrase: VerbPhrase, es: Callable[[str], str], en: str) -> VerbPhrase:
    return replace(
        phrase,
        es_tail=lambda person: f"{phrase.es_tail(person)} {es(person)}",
        en_tail=f"{phrase.en_tail} {en}",
    )
