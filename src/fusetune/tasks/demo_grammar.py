"""The grammar of the embedded data set: five families of premise and hypothesis.

Each family is a function of a random generator that gives a premise, a hypothesis, and
whether the first entails the second: events (more or less said of the same, roles swapped,
passive), quantifiers (monotonicity), attitudes (managed to, forgot to), comparisons and
coordination.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass

from fusetune.tasks import demo_words as words

Pair = tuple[str, str, bool]  # premise, hypothesis, whether it is entailed


# ---------------------------------------------------------------- events


HARD = 0.15  # chance that voice changes, and that roles swap: word order alone tells these


@dataclass(frozen=True, slots=True)
class _Thing:
    """A person, animal or thing, named by its group or more closely."""

    group: str
    noun: str
    adjective: str = ""

    def __str__(self) -> str:
        return words.article(f"{self.adjective} {self.noun}".strip())

    @classmethod
    def draw(cls, rng: random.Random, group: str) -> _Thing:
        noun = rng.choice(words.GROUPS[group]) if rng.random() < 0.75 else group
        return cls(group, noun, rng.choice(cls.adjectives(group)) if rng.random() < 0.3 else "")

    @staticmethod
    def adjectives(group: str) -> tuple[str, ...]:
        return words.BEING_ADJECTIVES if group in words.BEINGS else words.THING_ADJECTIVES

    def weaker(self, rng: random.Random) -> _Thing:
        """Says less of the same, or the same."""
        if self.adjective and rng.random() < 0.7:
            return dataclasses.replace(self, adjective="")
        return dataclasses.replace(self, noun=self.group)

    def other(self, rng: random.Random) -> _Thing:
        """Says what does not follow: another kind of the group, or another adjective."""
        if rng.random() < 0.5:
            others = [a for a in self.adjectives(self.group) if a != self.adjective]
            return dataclasses.replace(self, adjective=rng.choice(others))
        others = [n for n in words.GROUPS[self.group] if n != self.noun]
        return dataclasses.replace(self, noun=rng.choice(others))


@dataclass(frozen=True, slots=True)
class _Event:
    subject: _Thing
    verb: tuple[str, str, str]
    object: _Thing
    adjunct: str
    passive: bool
    negated: bool = False

    def __str__(self) -> str:
        infinitive, past, participle = self.verb
        if self.passive:
            was = "was not" if self.negated else "was"
            told = f"{self.object} {was} {participle} by {self.subject}"
        else:
            did = f"did not {infinitive}" if self.negated else past
            told = f"{self.subject} {did} {self.object}"
        return f"{told} {self.adjunct}".strip()


def _event(rng: random.Random) -> Pair:
    """Up to three steps that keep the truth, or one that does not and perhaps one that does."""
    beings = rng.random() < 0.6
    one, two = rng.sample(sorted(words.BEINGS if beings else words.PEOPLE), 2)
    verbs = words.BEING_VERBS if beings else words.THING_VERBS
    (verb, weaker_verb), (other_verb, _) = rng.sample(verbs, 2)
    target = _Thing.draw(rng, two if beings else rng.choice(sorted(words.THINGS)))
    adjunct = rng.choice(words.ADJUNCTS) if rng.random() < 0.2 else ""
    elsewhere = [other for other in words.ADJUNCTS if other != adjunct]
    premise = _Event(_Thing.draw(rng, one), verb, target, adjunct, rng.random() < 0.2)

    keeping: list[Callable[[_Event], _Event]] = [
        lambda e: dataclasses.replace(e, subject=e.subject.weaker(rng)),
        lambda e: dataclasses.replace(e, object=e.object.weaker(rng)),
        lambda e: dataclasses.replace(e, verb=weaker_verb),
        lambda e: dataclasses.replace(e, adjunct=""),
    ]
    breaking: list[Callable[[_Event], _Event]] = [
        lambda e: dataclasses.replace(e, subject=premise.subject.other(rng)),
        lambda e: dataclasses.replace(e, object=premise.object.other(rng)),
        lambda e: dataclasses.replace(e, verb=other_verb),
        lambda e: dataclasses.replace(e, adjunct=rng.choice(elsewhere)),
        lambda e: dataclasses.replace(e, negated=True),
        lambda e: dataclasses.replace(e, negated=True),
    ]
    entailed = rng.random() < 0.5
    hypothesis = premise
    for step in rng.sample(keeping, rng.randint(1, 3) if entailed else rng.randint(0, 1)):
        hypothesis = step(hypothesis)
    if rng.random() < HARD:
        hypothesis = dataclasses.replace(hypothesis, passive=not hypothesis.passive)
    if not entailed and beings and rng.random() < HARD:
        # Roles swapped: never the same event, for the two are of different groups.
        hypothesis = dataclasses.replace(
            hypothesis, subject=hypothesis.object, object=hypothesis.subject
        )
    elif not entailed:
        hypothesis = rng.choice(breaking)(hypothesis)
    return str(premise), str(hypothesis), entailed


# ---------------------------------------------------------------- quantifiers

UP, SAME, DOWN = 1, 0, -1  # the hypothesis says it of more, of the same, of fewer
# Where noun, predicate and number may move so that the sentence stays true.
MONOTONE = {
    "some": (UP, UP, SAME),
    "every": (DOWN, UP, SAME),
    "no": (DOWN, DOWN, SAME),
    "not every": (UP, DOWN, SAME),
    "at least": (UP, UP, DOWN),
    "at most": (DOWN, DOWN, UP),
}


def _quantified(rng: random.Random) -> Pair:
    """Noun, predicate or number become more or less general."""
    quantifier = rng.choice(sorted(MONOTONE))
    counted = quantifier.startswith("at ")
    group = rng.choice(sorted(words.BEINGS))
    numbers = rng.sample(range(len(words.NUMBERS)), 2)
    scales = (
        (rng.choice(words.BEINGS[group]), group),
        rng.choice(words.PREDICATES),
        [words.NUMBERS[i] for i in sorted(numbers)] if counted else ("", ""),
    )
    moves = [rng.choice((UP, SAME, DOWN)) for _ in scales[: 3 if counted else 2]]
    told, claimed = [], []
    for (less, more), move in zip(scales, [*moves, SAME], strict=False):
        levels = {UP: (less, more), DOWN: (more, less)}
        same = rng.choice((less, more))
        before, after = levels.get(move, (same, same))
        told.append(before)
        claimed.append(after)
    entailed = all(m in (SAME, ok) for m, ok in zip(moves, MONOTONE[quantifier], strict=False))
    return _quantify(quantifier, *told), _quantify(quantifier, *claimed), entailed


def _quantify(quantifier: str, noun: str, predicate: str, number: str) -> str:
    single = quantifier in ("every", "no", "not every")
    nouns = noun if single else words.plural(noun)
    return " ".join(filter(None, (quantifier, number, nouns, predicate)))


# ---------------------------------------------------------------- attitudes


def _attitude(rng: random.Random) -> Pair:
    """Managed to, forgot to, wanted to: was it done, not done, or is it left open?"""
    phrase, done = rng.choice(words.ATTITUDES)
    subject = _Thing.draw(rng, rng.choice(sorted(words.PEOPLE)))
    target = _Thing.draw(rng, rng.choice(sorted(words.THINGS)))
    (infinitive, past, _), _ = rng.choice(words.THING_VERBS)
    premise = f"{subject} {phrase} {infinitive} {target}"
    negative = rng.random() < 0.3
    if rng.random() < 0.5:  # "a" in the scope of a negation: then less said says more
        claimed = target.weaker(rng)
        keeps = claimed == target or not negative
    else:
        claimed, keeps = target, True
    verb = f"did not {infinitive}" if negative else past
    who = subject.weaker(rng) if rng.random() < 0.3 else subject
    return premise, f"{who} {verb} {claimed}", keeps and done == (-1 if negative else 1)


# ---------------------------------------------------------------- comparisons, coordination


def _comparison(rng: random.Random) -> Pair:
    """The hypothesis goes along a scale, against it, or says equal; one step or two."""
    more, less, equal = rng.choice(words.COMPARISONS)
    if rng.random() < 0.5:
        more, less = less, more
    groups = words.THINGS if more in ("heavier", "lighter") else words.BEINGS
    chosen = rng.sample([noun for group in sorted(groups) for noun in groups[group]], 3)
    top, middle, bottom = (f"the {noun}" for noun in chosen)
    premise = f"{top} is {more} than {bottom}"
    if rng.random() < 0.4:
        premise = f"{top} is {more} than {middle}, and {middle} than {bottom}"
    kind = rng.choice(("along", "converse", "against", "against", "equal"))
    hypothesis = {
        "along": f"{top} is {more} than {bottom}",
        "converse": f"{bottom} is {less} than {top}",
        "against": rng.choice(
            (f"{bottom} is {more} than {top}", f"{top} is {less} than {bottom}")
        ),
        "equal": f"{top} is {equal} {bottom}",
    }[kind]
    return premise, hypothesis, kind in ("along", "converse")


def _coordination(rng: random.Random) -> Pair:
    """And, or, but not, neither … nor: what is said of one of the two?"""
    first, second = (_Thing.draw(rng, group) for group in rng.sample(sorted(words.BEINGS), 2))
    past, infinitive = rng.choice(words.ACTIONS)
    connective = rng.choice(("and", "or", "but not", "neither"))
    place = rng.choice(words.TIMES)
    if connective == "neither":
        premise, done = f"neither {first} nor {second} {past} {place}", (-1, -1)
    elif connective == "but not":
        premise, done = f"{first} but not {second} {past} {place}", (1, -1)
    else:
        both = (1, 1) if connective == "and" else (0, 0)
        premise, done = f"{first} {connective} {second} {past} {place}", both
    thing, fact = rng.choice(((first, done[0]), (second, done[1])))
    negative = rng.random() < 0.5
    weaker = thing.weaker(rng) if rng.random() < 0.4 and not negative else thing
    verb = f"did not {infinitive}" if negative else past
    return premise, f"{weaker} {verb} {place}", fact == (-1 if negative else 1)


FAMILIES: tuple[tuple[Callable[[random.Random], Pair], float], ...] = (
    (_event, 0.7),
    (_attitude, 0.15),
    (_quantified, 0.05),
    (_comparison, 0.05),
    (_coordination, 0.05),
)
