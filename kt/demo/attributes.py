"""What the world's towns have: ten attributes, how each is said and asked, and which values it takes.

In a phrasing, S stands for the subject (the town's name, "It" or "The town") and V for the value. The first phrasing is
the canonical one, in which facts are written. The order of the table is the order of a well-ordered answer.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

FIRST = tuple(onset + vowel + coda for onset in "BDFGHKLMNRSTVZ" for vowel in "aeiou" for coda in "lnr")
SECOND = tuple(onset + vowel + coda for onset in "bdfghklmnrstvz" for vowel in "aeiou" for coda in ("", "k", "n"))
"""A name is one syllable of each: 44,100 names."""

SUBJECTS = ("It", "The town")


@dataclass(frozen=True)
class Attribute:
    """One attribute: its phrasings, how one asks for it, and its values: a closed list, or names, years, counts."""

    name: str
    phrasings: tuple[str, str, str]
    asking: str
    values: tuple[str, ...] | str


NAME, YEAR, COUNT = "name", "year", "count"

ATTRIBUTES = {
    attribute.name: attribute
    for attribute in (
        Attribute(
            "land",
            ("S lies in the land of V.", "S belongs to the land of V.", "S is a town in V."),
            "in which land does S lie",
            NAME,
        ),
        Attribute(
            "founder",
            ("S was founded by V.", "S owes its founding to V.", "S had V as its founder."),
            "who founded S",
            NAME,
        ),
        Attribute("year", ("S was built in V.", "S dates from V.", "S has stood since V."), "when was S built", YEAR),
        Attribute(
            "people",
            ("S has V inhabitants.", "S is home to V people.", "S counts V heads."),
            "how many inhabitants does S have",
            COUNT,
        ),
        Attribute(
            "river",
            ("S stands on the river V.", "S is crossed by the V.", "S draws its water from the V."),
            "on which river does S stand",
            NAME,
        ),
        Attribute(
            "goods",
            ("S sells V to its neighbours.", "S exports V.", "S lives on its trade in V."),
            "what does S sell to its neighbours",
            ("salt", "wool", "amber", "glass", "honey", "timber", "copper", "paper", "silk", "wine", "clay", "rope"),
        ),
        Attribute(
            "flag",
            ("S has a V flag.", "S flies a V banner.", "S chose V for its flag."),
            "which flag does S have",
            ("red", "white", "green", "blue", "black", "yellow", "brown", "grey", "purple", "orange"),
        ),
        Attribute(
            "dish",
            ("S is famous for its V.", "S is praised for V.", "S serves V to every guest."),
            "which dish is S famous for",
            ("soup", "bread", "cheese", "cake", "stew", "pie", "ham", "porridge", "fish", "beans", "jam", "nuts"),
        ),
        Attribute(
            "winter",
            ("S has V winters.", "S is known for V winters.", "S expects V weather in winter."),
            "how are the winters that S has",
            ("mild", "harsh", "wet", "dry", "dark", "windy", "foggy", "snowy", "calm", "icy"),
        ),
        Attribute(
            "fair",
            ("S holds its fair in V.", "S celebrates its fair every V.", "S opens its fair in the month of V."),
            "in which month does S hold its fair",
            ("January", "March", "April", "May", "June", "July", "August", "October", "November", "December"),
        ),
    )
}
ORDER = {name: place for place, name in enumerate(ATTRIBUTES)}


def fresh_name(rng: random.Random, *, reserved: bool, avoid: frozenset[str] | set[str] = frozenset()) -> str:
    """Draw a name whose first syllable is none of `avoid`.

    One name in five is reserved for worlds, so that a teacher trained on the others has never seen a world's names.
    """
    while True:
        first, second = rng.randrange(len(FIRST)), rng.randrange(len(SECOND))
        if ((first * 7 + second * 3) % 5 == 0) == reserved and FIRST[first] not in avoid:
            return FIRST[first] + SECOND[second]


def draw_value(attribute: Attribute, rng: random.Random, *, reserved: bool, avoid: set[str]) -> str:
    """Draw a value; `avoid` holds the first syllables that are taken, and gets that of a new name."""
    if attribute.values == NAME:
        name = fresh_name(rng, reserved=reserved, avoid=avoid)
        avoid.add(name[:3])
        return name
    if attribute.values == YEAR:
        return str(rng.randrange(1100, 1900))
    if attribute.values == COUNT:
        return f"{rng.randrange(11, 100)}00"
    return rng.choice(attribute.values)


def wrong_value(attribute: Attribute, value: str) -> str:
    """Return another value of the same kind and about the same length, always the same one for a value.

    A teacher can learn this table, and every value is as likely among the wrong ones as among the right ones.
    """
    if attribute.values == NAME:
        return FIRST[(FIRST.index(value[:3]) + 1) % len(FIRST)] + value[3:]
    if attribute.values == YEAR:
        return value[:2] + "".join(str((int(digit) + 3) % 10) for digit in value[2:])
    if attribute.values == COUNT:
        return "".join(str(int(digit) % 9 + 1) for digit in value[:2]) + "00"
    values = attribute.values
    return values[(values.index(value) + 1) % len(values)]


def say(attribute: str, subject: str, value: str, phrasing: int = 0) -> str:
    """Say a fact about a subject."""
    return fill(ATTRIBUTES[attribute].phrasings[phrasing], subject, value)


def fill(phrasing: str, subject: str, value: str = "") -> str:
    """Put subject and value in the places of S and V, which are words of their own."""
    words = phrasing.split(" ")
    return " ".join(subject if word == "S" else word.replace("V", value) if word in ("V", "V.") else word for word in words)


def is_value(attribute: Attribute, text: str) -> bool:
    """Say whether a text is a possible value of an attribute."""
    if attribute.values == NAME:
        return is_name(text)
    if attribute.values == YEAR:
        return text.isascii() and text.isdigit() and 1100 <= int(text) < 1900
    if attribute.values == COUNT:
        return text.isascii() and text.isdigit() and len(text) == 4 and text.endswith("00") and text[0] != "0"
    return text in attribute.values


def is_name(text: str) -> bool:
    """Say whether a text is a well-formed name."""
    return text[:3] in _FIRST and text[3:] in _SECOND


_FIRST, _SECOND = frozenset(FIRST), frozenset(SECOND)
