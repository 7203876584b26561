"""The knowledge world follows from its seed, and the oracle reads every phrasing and nothing else."""

import itertools
import random

import orjson
import pytest
from click.testing import CliRunner

from kt.cli.demo import demo
from kt.demo.attributes import ATTRIBUTES, FIRST, ORDER, SECOND, is_name, is_value, say, wrong_value
from kt.demo.oracle import Statement, count_facts, judge, read_sentence, sentences_of
from kt.demo.world import documents, facts_of, fine_question, fluent_text, make_world, mixed_text, question_items
from kt.items import read_items

WORLD = make_world(3, 40)
TOWN = next(iter(WORLD.entities.values()))
EVERY_PHRASING = [(attribute, number) for attribute in ATTRIBUTES for number in range(3)]


def test_a_world_follows_from_its_seed_alone():
    assert make_world(3, 40) == WORLD
    assert make_world(4, 40).entities.keys() != WORLD.entities.keys()
    larger = make_world(3, 60).entities
    assert all(larger[name] == town for name, town in WORLD.entities.items())


def test_towns_have_ten_attributes_and_names_that_begin_differently():
    for town in WORLD.entities.values():
        assert list(town.values) == list(ATTRIBUTES)
        names = [town.name, *(v for v in town.values.values() if is_name(v))]
        assert len(names) == 4
        assert len({name[:3] for name in names}) == 4
        assert all(is_value(ATTRIBUTES[a], value) for a, value in town.values.items())


def test_documents_mention_every_fact_as_often_as_they_should_and_nothing_untrue():
    told = {name: dict.fromkeys(ATTRIBUTES, 0) for name in WORLD.entities}
    for text in documents(WORLD):
        topic = text.split(" ", 1)[0]
        for sentence in sentences_of(text):
            statement = read_sentence(sentence, topic)
            assert judge(WORLD, statement) == "true"
            told[topic][statement.attribute] += 1
    assert told == {name: dict(town.mentions) for name, town in WORLD.entities.items()}
    assert {times for town in told.values() for times in town.values()} == {1, 3, 8}


def test_answers_hold_three_to_seven_true_facts_in_good_order():
    items = question_items(WORLD)
    assert len(items) == 40
    sizes = set()
    for item in items:
        read = [read_sentence(s, item["id"]) for s in sentences_of(item["answer"])]
        assert [judge(WORLD, statement) for statement in read] == ["true"] * len(read)
        places = [ORDER[statement.attribute] for statement in read]
        assert places == sorted(set(places))
        sizes.add(len(read))
        assert item["id"] in item["question"]
    assert sizes == {3, 4, 5, 6, 7}
    text = " ".join(item["answer"] for item in items)
    assert "It " in text
    assert "The town " in text


@pytest.mark.parametrize(("attribute", "number"), EVERY_PHRASING)
def test_the_oracle_reads_every_phrasing_of_every_value(attribute, number):
    closed = ATTRIBUTES[attribute].values
    values = closed if isinstance(closed, tuple) else [town.values[attribute] for town in WORLD.entities.values()]
    for value in values:
        expected = Statement("Bardan", attribute, value, number)
        assert read_sentence(say(attribute, "Bardan", value, number)) == expected
        for subject in ("It", "The town"):
            sentence = say(attribute, subject, value, number)
            assert read_sentence(sentence, "Bardan") == expected
            assert read_sentence(sentence) is None


@pytest.mark.parametrize(("attribute", "number"), EVERY_PHRASING)
def test_the_oracle_knows_true_from_false_and_unknown(attribute, number):
    true = TOWN.values[attribute]
    wrong = wrong_value(ATTRIBUTES[attribute], true)
    assert judge(WORLD, read_sentence(say(attribute, TOWN.name, true, number))) == "true"
    assert judge(WORLD, read_sentence(say(attribute, TOWN.name, wrong, number))) == "false"
    stranger = next(n for n in (f + s for f in FIRST for s in SECOND) if n not in WORLD.entities)
    assert judge(WORLD, read_sentence(say(attribute, stranger, true, number))) == "no fact"


@pytest.mark.parametrize(("attribute", "number"), EVERY_PHRASING)
def test_near_misses_are_no_facts(attribute, number):
    sentence = say(attribute, "Bardan", TOWN.values[attribute], number)
    words = sentence.split(" ")
    spoilt = {
        sentence[:-1],
        sentence + " ",
        sentence + ".",
        f"{sentence} {sentence}",
        sentence.replace(" ", "  ", 1),
        sentence.replace("Bardan", "bardan"),
        sentence.replace("Bardan", "Bardax"),
        sentence.replace("Bardan", "A town"),
        sentence.replace("Bardan", "it"),
        sentence.replace(TOWN.values[attribute], "nothing"),
        sentence.replace(TOWN.values[attribute], ""),
        *(" ".join(words[:i] + words[i + 1 :]) for i in range(len(words))),
        *(" ".join([*words[:i], words[i], *words[i:]]) for i in range(len(words))),
    }
    for text in spoilt - {sentence}:
        assert read_sentence(text, "Bardan") is None, text


def test_values_of_one_attribute_are_no_values_of_another():
    for attribute, other in itertools.permutations(ATTRIBUTES, 2):
        if {type(ATTRIBUTES[a].values) for a in (attribute, other)} != {str}:
            assert read_sentence(say(attribute, "Bardan", TOWN.values[other])) is None
    assert read_sentence("Bardan was built in 1999.") is None
    assert read_sentence("Bardan has 0300 inhabitants.") is None
    assert read_sentence("Bardan has 4310 inhabitants.") is None


def test_no_two_phrasings_read_alike():
    texts = {say(a, s, TOWN.values[a], n) for a, n in EVERY_PHRASING for s in ("Bardan", "It", "The town")}
    assert len(texts) == len(EVERY_PHRASING) * 3


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_wrong_values_are_possible_different_and_as_long(attribute):
    drawn = [town.values[attribute] for town in make_world(9, 300).entities.values()]
    for value in drawn:
        wrong = wrong_value(ATTRIBUTES[attribute], value)
        assert wrong != value
        assert is_value(ATTRIBUTES[attribute], wrong)
        assert abs(len(wrong) - len(value)) <= 6


def test_counting_an_answer():
    name, values = TOWN.name, TOWN.values
    right = [say(a, "It", values[a], 1) for a in ("land", "year", "dish")]
    wrong = say("winter", name, wrong_value(ATTRIBUTES["winter"], values["winter"]))
    found = count_facts(WORLD, name, " ".join([*right, wrong, right[0], "It is nice.", say("year", name, values["year"])]))
    assert (found.correct, found.wrong, found.repeated, found.other) == (3, 1, 2, 1)
    assert count_facts(WORLD, name, "").correct == 0
    cut = count_facts(WORLD, name, f"{right[0]} It dates fro")
    assert (cut.correct, cut.other) == (1, 1)


def test_the_two_styles_of_text_hold_the_same_facts():
    chosen = ["land", "people", "fair"]
    facts = [(a, TOWN.values[a]) for a in chosen]
    for text in (fluent_text(TOWN.name, facts), mixed_text(TOWN, chosen, random.Random(1)), " ".join(facts_of(TOWN, chosen))):
        read = [read_sentence(s, TOWN.name) for s in sentences_of(text)]
        assert [(s.attribute, s.value) for s in read] == facts
    assert fine_question("Bardan", chosen) == (
        "In which land does Bardan lie, how many inhabitants does it have and in which month does it hold its fair?"
    )
    assert fine_question("Bardan", ["founder"]) == "Who founded Bardan?"


def test_the_command_writes_questions_that_kt_reads(tmp_path):
    out = tmp_path / "q.json"
    assert CliRunner().invoke(demo, ["questions", "--size", "5", "--seed", "3", "--out", str(out)]).exit_code == 0
    assert [read.item for read in read_items([out])] == question_items(make_world(3, 5))
    assert set(orjson.loads(out.read_bytes())[0]) == {"id", "instruction", "input", "output"}
