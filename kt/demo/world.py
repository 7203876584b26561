"""The knowledge world: fictional towns, documents that mention their facts often or rarely, questions and answers.

Everything follows from the seed. Names come from syllables, so nothing in it is known to any model beforehand.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kt.demo.attributes import ATTRIBUTES, ORDER, SUBJECTS, draw_value, fill, fresh_name, say
from kt.records import Record, write_json

QUESTIONS = ("Tell me about S.", "What is known about S?", "Describe S.")
MENTIONS = (1, 1, 3, 8)
"""How often the documents mention a fact: drawn for each, so that a reader half-knows some and knows others well."""


@dataclass(frozen=True)
class Entity:
    """A town: its values by attribute, and how often the documents mention each."""

    name: str
    values: Mapping[str, str]
    mentions: Mapping[str, int]


@dataclass(frozen=True)
class World:
    """The towns of one seed, by name."""

    seed: int
    entities: Mapping[str, Entity]


def make_world(seed: int, size: int = 120) -> World:
    """Make a world of `size` towns of different names."""
    entities: dict[str, Entity] = {}
    names = random.Random(f"{seed}:names")
    while len(entities) < size:
        name = fresh_name(names, reserved=True)
        if name not in entities:
            entities[name] = make_entity(name, random.Random(f"{seed}:entity:{name}"), reserved=True)
    return World(seed, entities)


def make_entity(name: str, rng: random.Random, *, reserved: bool) -> Entity:
    """Give a town its values; the names among them differ in their first syllable."""
    avoid = {name[:3]}
    values = {a.name: draw_value(a, rng, reserved=reserved, avoid=avoid) for a in ATTRIBUTES.values()}
    return Entity(name, values, {attribute: rng.choice(MENTIONS) for attribute in values})


# ---- text about the towns ------------------------------------------------------------------------------------------


def facts_of(entity: Entity, attributes: Sequence[str]) -> list[str]:
    """Return facts in their canonical wording."""
    return [say(attribute, entity.name, entity.values[attribute]) for attribute in attributes]


def mixed_text(entity: Entity, attributes: Sequence[str], rng: random.Random) -> str:
    """Say facts in mixed phrasings, the first by the town's name, the others by name or pronoun."""
    sentences = []
    for place, attribute in enumerate(attributes):
        subject = rng.choice((entity.name, *SUBJECTS)) if place else entity.name
        sentences.append(say(attribute, subject, entity.values[attribute], rng.randrange(3)))
    return " ".join(sentences)


def fluent_text(name: str, facts: Sequence[tuple[str, str]]) -> str:
    """Say (attribute, value) pairs as one text: the first by name, then "It" and "The town" in turn.

    The subject decides the phrasing, so that there is one right text, which a small teacher can learn.
    """
    sentences = []
    for place, (attribute, value) in enumerate(facts):
        form = 0 if place == 0 else 2 - place % 2
        sentences.append(say(attribute, (name, *SUBJECTS)[form], value, form))
    return " ".join(sentences)


def broad_question(name: str, rng: random.Random) -> str:
    """Ask about a town as a whole."""
    return rng.choice(QUESTIONS).replace("S", name)


def fine_question(name: str, attributes: Sequence[str]) -> str:
    """Ask for exactly these attributes, the town named once."""
    clauses = [fill(ATTRIBUTES[a].asking, "it" if place else name) for place, a in enumerate(attributes)]
    text = clauses[0] if len(clauses) == 1 else f"{', '.join(clauses[:-1])} and {clauses[-1]}"
    return f"{text[0].upper()}{text[1:]}?"


# ---- what a study needs of a world ---------------------------------------------------------------------------------


def documents(world: World) -> Iterator[str]:
    """Yield short texts that together mention every fact as often as its town says, in random order."""
    texts = []
    for entity in world.entities.values():
        rng = random.Random(f"{world.seed}:documents:{entity.name}")
        pool = [attribute for attribute, times in entity.mentions.items() for _ in range(times)]
        rng.shuffle(pool)
        while pool:
            count = min(len(pool), rng.randint(2, 5))
            texts.append(mixed_text(entity, pool[:count], rng))
            del pool[:count]
    random.Random(f"{world.seed}:documents").shuffle(texts)
    yield from texts


def question_items(world: World, names: Sequence[str] | None = None) -> list[Record]:
    """Return one question with its answer of 3 to 7 facts, in good order, for each town."""
    items = []
    for name in names if names is not None else world.entities:
        rng = random.Random(f"{world.seed}:question:{name}")
        entity = world.entities[name]
        chosen = sorted(rng.sample(list(entity.values), rng.randint(3, 7)), key=ORDER.__getitem__)
        answer = mixed_text(entity, chosen, rng)
        items.append({"id": name, "question": broad_question(name, rng), "answer": answer})
    return items


def write_questions(path: str | Path, items: Sequence[Record]) -> None:
    """Write items as an Alpaca JSON file."""
    write_json(path, [{"id": i["id"], "instruction": i["question"], "input": "", "output": i["answer"]} for i in items])
