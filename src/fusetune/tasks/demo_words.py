"""The words of the embedded data set's grammar, and how they are inflected."""

from __future__ import annotations

# What is more general → what is one of them. Nothing is in two groups.
PEOPLE = {
    "musician": ("pianist", "violinist", "drummer", "cellist"),
    "scientist": ("chemist", "biologist", "physicist", "geologist"),
    "athlete": ("swimmer", "sprinter", "boxer", "gymnast"),
}
ANIMALS = {
    "dog": ("poodle", "beagle", "terrier", "spaniel"),
    "bird": ("sparrow", "eagle", "parrot", "pigeon"),
}
THINGS = {
    "vehicle": ("truck", "bus", "van", "tractor"),
    "fruit": ("apple", "pear", "peach", "plum"),
    "tool": ("hammer", "saw", "wrench", "drill"),
}
BEINGS = PEOPLE | ANIMALS
GROUPS = BEINGS | THINGS

BEING_ADJECTIVES = ("young", "tall", "tired", "friendly")
THING_ADJECTIVES = ("red", "old", "small", "expensive")
TIMES = ("yesterday", "on Monday", "last week")

ADJUNCTS = (*TIMES, "in the garden", "near the river", "behind the barn")

# (infinitive, past, participle); each verb with one that means no more than it does.
BEING_VERBS = (
    (("chase", "chased", "chased"), ("pursue", "pursued", "pursued")),
    (("frighten", "frightened", "frightened"), ("scare", "scared", "scared")),
    (("kick", "kicked", "kicked"), ("hit", "hit", "hit")),
    (("hug", "hugged", "hugged"), ("touch", "touched", "touched")),
)
THING_VERBS = (
    (("purchase", "purchased", "purchased"), ("buy", "bought", "bought")),
    (("steal", "stole", "stolen"), ("take", "took", "taken")),
    (("drag", "dragged", "dragged"), ("move", "moved", "moved")),
    (("smash", "smashed", "smashed"), ("break", "broke", "broken")),
)

# What some of a group did: (more said, less said).
PREDICATES = (
    ("slept behind the barn", "slept"),
    ("ran quickly", "ran"),
    ("arrived on Monday", "arrived"),
    ("jumped into the river", "jumped"),
    ("ate a ripe peach", "ate a fruit"),
    ("hid under a truck", "hid under a vehicle"),
    ("left before noon", "left"),
    ("followed a beagle", "followed a dog"),
    ("stood near an old bus", "stood near a bus"),
)
# (past, infinitive) of what two did.
ACTIONS = (
    ("slept", "sleep"),
    ("arrived", "arrive"),
    ("left", "leave"),
    ("jumped", "jump"),
    ("fell", "fall"),
    ("escaped", "escape"),
)

NUMBERS = ("two", "three", "four", "five", "six", "seven")

# Is what was managed, tried, … done (+1), not done (−1), or left open (0)?
ATTITUDES = (
    ("managed to", 1),
    ("remembered to", 1),
    ("did not forget to", 1),
    ("did not fail to", 1),
    ("tried to", 0),
    ("wanted to", 0),
    ("planned to", 0),
    ("promised to", 0),
    ("did not want to", 0),
    ("failed to", -1),
    ("forgot to", -1),
    ("refused to", -1),
    ("did not manage to", -1),
    ("did not remember to", -1),
)

# (more of it, less of it, equal)
COMPARISONS = (
    ("heavier", "lighter", "as heavy as"),
    ("taller", "shorter", "as tall as"),
    ("older", "younger", "as old as"),
    ("faster", "slower", "as fast as"),
    ("stronger", "weaker", "as strong as"),
)


def article(phrase: str) -> str:
    """The phrase with a or an."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def plural(noun: str) -> str:
    """The plural of a regular noun."""
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "ch", "x")) else "s")


def sentence(text: str) -> str:
    """The text with a capital letter and a full stop."""
    return text[0].upper() + text[1:] + "."
