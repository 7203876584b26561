"""The teacher's lessons, tokenizer, training and examination; a short training shows that all of it fits together."""

import collections
import itertools
import json
import re
import urllib.request

import pytest
from click.testing import CliRunner

from kt.cli.demo import demo
from kt.demo.attributes import ATTRIBUTES, FIRST, SECOND, fresh_name
from kt.demo.exam import Marks, examine, mark
from kt.demo.lessons import CRITERIA, JUDGING, TASKS, WRITING, Lesson, checks, lessons
from kt.demo.oracle import read_all, read_sentence, sentences_of
from kt.demo.spelling import SPECIAL
from kt.prompts import load_prompts

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from kt.demo.feed import Feed, said  # noqa: E402
from kt.demo.teacher import Recipe, tokenizer_of, train_teacher  # noqa: E402

SMALL = Recipe(steps=6, batch=4, warm=2, hidden=32, layers=1, heads=2)


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_of(Recipe())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return train_teacher(tmp_path_factory.mktemp("teacher") / "tiny", SMALL)


def some(count, **options):
    return list(itertools.islice(lessons(5, **options), count))


# ---- lessons -------------------------------------------------------------------------------------------------------


def test_lessons_follow_from_their_seed_and_take_the_tasks_in_turn():
    assert some(20) == some(20)
    assert [lesson.task for lesson in some(2 * len(TASKS))] == [*TASKS, *TASKS]
    assert some(3) != list(itertools.islice(lessons(6), 3))


def test_lessons_say_what_the_oracle_reads():
    for lesson in itertools.islice(lessons(5, WRITING), 200):
        facts = lesson.values.get("facts") or json.loads(lesson.answer)["facts"]
        read = read_all(facts)
        town = read[0].entity
        assert {statement.entity for statement in read} == {town}
        told = [(s.attribute, s.value) for s in read]
        if lesson.task == "extract":
            answer = read_all(sentences_of(lesson.values["answer"]), town)
            assert [(s.attribute, s.value) for s in answer] == told
        elif lesson.task in ("rephrase", "rewrite-answer"):
            answer = read_all(sentences_of(lesson.answer), town)
            assert [(s.attribute, s.value) for s in answer] == told
        elif lesson.task == "revise":
            wrong = read_all(json.loads(lesson.answer)["facts"])
            assert [s.attribute for s in wrong] == [s.attribute for s in read]
            assert all(one.value != other.value for one, other in zip(wrong, read, strict=True))
            assert all(s.phrasing == 0 for s in wrong)


def verdict_of(values, statement):
    """What the oracle says of a statement beside the evidence: of this attribute of the town this value is told, no other."""
    told = []
    for passage in values["evidence"].split("\n"):
        sentences = sentences_of(passage)
        told += read_all(sentences, sentences[0].split(" ")[0])
    claim = read_sentence(statement)
    values_told = {s.value for s in told if (s.entity, s.attribute) == (claim.entity, claim.attribute)}
    return "correct" if values_told == {claim.value} else "incorrect"


def attributes_of(text):
    return [statement.attribute for statement in read_all(sentences_of(text), "Bardan")]


def test_verdicts_of_lessons_are_those_of_the_oracle():
    seen = collections.Counter()
    for lesson in itertools.islice(lessons(5, JUDGING), 600):
        values, found = lesson.values, json.loads(lesson.answer)
        seen[lesson.task, values.get("criterion"), found.get("verdict")] += 1
        if lesson.task == "check-fact":
            assert found["verdict"] == verdict_of(values, values["statement"])
            continue
        texts = [values[name] for name in ("answer_a", "answer_b", "answer") if name in values]
        if values["criterion"] == "completeness":
            scores = [len(set(attributes_of(text))) for text in texts]
        else:
            orders = [[list(ATTRIBUTES).index(attribute) for attribute in attributes_of(text)] for text in texts]
            scores = [max(1, 10 - 3 * sum(a > b for a, b in itertools.pairwise(order))) for order in orders]
        if lesson.task == "judge-single":
            assert found == {"score": scores[0]}
        else:
            assert found == {"verdict": "tie" if scores[0] == scores[1] else "A" if scores[0] > scores[1] else "B"}
    for verdict in ("correct", "incorrect"):
        assert seen["check-fact", None, verdict] > 60
    for criterion in CRITERIA:
        assert min(seen["judge-pair", criterion, verdict] for verdict in ("A", "B", "tie")) > 5


@pytest.mark.parametrize(("level", "sentences", "passages"), [(0, 1, 1), (1, 3, 1), (2, 7, 1), (3, 23, 5)])
def test_exercises_in_checking_grow_harder_and_are_right(level, sentences, passages):
    seen, lengths = collections.Counter(), []
    for lesson in itertools.islice(checks(5, level), 400):
        asked = [(lesson.values["statement"], lesson.answer), *lesson.further]
        assert len({read_sentence(statement).attribute for statement, _ in asked}) >= len(asked) / 2
        for statement, answer in asked:
            assert json.loads(answer) == {"verdict": verdict_of(lesson.values, statement)}
            seen[answer] += 1
        lengths.append((len(sentences_of(lesson.values["evidence"])), lesson.values["evidence"].count("\n") + 1))
    assert len(seen) == 2
    assert min(seen.values()) > 0.35 * seen.total()
    assert max(lengths)[0] <= sentences
    assert max(count for _, count in lengths) == passages


def test_examinations_use_names_that_no_lesson_has():
    import random

    rng = random.Random(1)
    taught = {fresh_name(rng, reserved=False) for _ in range(5000)}
    asked = {fresh_name(rng, reserved=True) for _ in range(5000)}
    assert not taught & asked


# ---- tokenizer -----------------------------------------------------------------------------------------------------


def test_a_name_is_two_tokens_wherever_it_stands(tokenizer):
    for first, second in itertools.chain(zip(FIRST, SECOND, strict=True), [("Bar", "dan"), ("Zul", "ze")]):
        name = first + second
        for text in (name, f'["{name} lies', f"\n{name} was"):
            assert [first, second] == [t for t in tokenizer.tokenize(text) if t in (first, second)], text
        for text in (f" {name}.", f"about {name}?", f"by the {name}."):
            assert [f"Ġ{first}", second] == [t for t in tokenizer.tokenize(text) if t in (f"Ġ{first}", second)], text


def test_digits_stand_alone_and_text_comes_back(tokenizer):
    assert tokenizer.tokenize(" in 1843.") == ["Ġin", "Ġ1", "8", "4", "3", "."]
    for text in ("Bardan has 4800 inhabitants.", 'a\n  "b" é 漢字 🙂', *(lesson.answer for lesson in some(24))):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_chat_template_marks_every_turn(tokenizer):
    message = load_prompts("compact")["extract"].render({"question": "Q?", "answer": "A."})
    assert said(tokenizer, message) == "<|user|>extract\nQ?\nA.<|end|><|assistant|>"
    assert tokenizer.convert_ids_to_tokens(range(len(SPECIAL))) == list(SPECIAL)


def test_batches_mark_where_answers_stand(tokenizer):
    feed = Feed(tokenizer, 1, 4, TASKS)
    for stage in ("drill", "check", "narrow", "wide"):
        batch = feed.batch(stage)
        for row, weights in zip(batch.inputs.tolist(), batch.weights.tolist(), strict=True):
            text = tokenizer.decode([token for token in row if token != tokenizer.pad_token_id])
            runs = [(bool(weight), list(group)) for weight, group in itertools.groupby(range(len(row)), weights.__getitem__)]
            answers = [tokenizer.decode([row[at] for at in places]) for weighed, places in runs if weighed]
            assert answers == re.findall(r"<\|assistant\|>(.*?<\|end\|>)", text, re.DOTALL)
            for weighed, places in runs:
                assert not weighed or weights[places[0]] == pytest.approx(len(places) ** -0.5)
            if row[1:2] == tokenizer.convert_tokens_to_ids(["copy"]):
                prompt, answer = (places for _, places in runs[:2])
                assert [row[at] for at in prompt[3:-2]] == [row[at] for at in answer[:-1]]


# ---- marking -------------------------------------------------------------------------------------------------------

FACTS = ["Bardan was built in 1200.", "Bardan has a red flag."]


@pytest.mark.parametrize(
    ("task", "answer", "expected"),
    [
        ("extract", json.dumps({"facts": FACTS}), Marks(2, 2, 1, 1)),
        ("extract", json.dumps({"facts": FACTS[:1]}), Marks(1, 2, 0, 1)),
        ("extract", json.dumps({"facts": FACTS[::-1]}), Marks(0, 2, 0, 1)),
        ("extract", json.dumps({"facts": [*FACTS, "Bardan is nice."]}), Marks(2, 3, 0, 1)),
        ("extract", '{"facts": ["Bardan', Marks(0, 2, 0, 1)),
        ("extract", "[]", Marks(0, 2, 0, 1)),
        ("rephrase", "Bardan was built in 1200. It flies a red banner.", Marks(2, 2, 1, 1)),
        ("rephrase", "Bardan was built in 1200. It flies a blue banner.", Marks(1, 2, 0, 1)),
        ("rewrite-question", "When was Bardan built?", Marks(0, 1, 0, 1)),
        ("revise", json.dumps({"facts": ["Bardan was built in 1100.", "Bardan has a blue flag."]}), Marks(2, 2, 1, 1)),
        ("revise", json.dumps({"facts": ["Bardan was built in 1200.", "Bardan has a blue flag."]}), Marks(1, 2, 0, 1)),
        ("revise", json.dumps({"facts": ["Bardan dates from 1100.", "Barda has a blue flag."]}), Marks(0, 2, 0, 1)),
        ("revise", json.dumps({"facts": ["Bardan was built in 1100."]}), Marks(1, 2, 0, 1)),
        ("check-fact", '{"verdict":"correct"}', Marks(1, 1, 1, 1)),
        ("check-fact", '{"verdict": "incorrect"}', Marks(0, 1, 0, 1)),
        ("judge-pair", '{"verdict": "A"}', Marks(1, 1, 1, 1)),
        ("judge-pair", "A", Marks(0, 1, 0, 1)),
        ("judge-single", '{"score": 3}', Marks(0, 1, 0, 1)),
    ],
)
def test_an_answer_is_marked_line_by_line(task, answer, expected):
    answers = {
        "extract": json.dumps({"facts": FACTS}),
        "revise": json.dumps({"facts": ["Bardan was built in 1233.", "Bardan has a white flag."]}),
        "rephrase": "Bardan was built in 1200. It flies a red banner.",
        "rewrite-question": "When was Bardan built and which flag does it have?",
        "check-fact": '{"verdict": "correct"}',
        "judge-pair": '{"verdict": "A"}',
        "judge-single": '{"score": 4}',
    }
    assert mark(Lesson(task, {"question": "?", "facts": FACTS}, answers[task]), answer) == expected


def test_a_perfect_pupil_has_full_marks():
    def answering(conversations):
        asked = itertools.islice(lessons(9, reserved=True), len(conversations))
        return (lesson.answer for lesson in asked)

    marks = examine(answering, seed=9, count=20)
    assert {task: found.share for task, found in marks.items()} == dict.fromkeys(TASKS, 1.0)
    assert all(found.answers == found.whole == 20 for found in marks.values())


# ---- training ------------------------------------------------------------------------------------------------------


def test_the_same_recipe_gives_the_same_weights(folder, tmp_path):
    losses = []
    again = train_teacher(tmp_path / "again", SMALL, watch=lambda progress: losses.append(progress.loss))
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert len(losses) == 6
    assert losses[-1] < losses[0]


def test_a_trained_folder_is_marked_and_ends_at_its_end_mark(folder):
    result = CliRunner().invoke(demo, ["score-teacher", str(folder), "--count", "1", "--json"])
    assert result.exit_code == 0, result.output
    assert list(json.loads(result.output)) == list(TASKS)
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 0


def test_time_ends_the_schedule(tmp_path):
    seen = []
    train_teacher(tmp_path / "t", Recipe(steps=10_000, batch=2, hidden=32, layers=1, heads=2), minutes=0.01, watch=seen.append)
    assert 0 < len(seen) < 10_000


def test_the_shipped_weights_are_those_of_the_committed_recipes() -> None:
    import dataclasses

    from kt.demo.teacher import SHIPPED, SHIPPED_TEACHER
    from kt.weights import fingerprint

    said = json.loads((SHIPPED_TEACHER / "training.json").read_bytes())
    assert said["recipes"] == json.loads(json.dumps([dataclasses.asdict(recipe) for recipe in SHIPPED]))
    assert said["fingerprint"] == fingerprint(SHIPPED_TEACHER)
    both = [*SHIPPED_TEACHER.iterdir(), SHIPPED_TEACHER.with_suffix(".gguf")]
    assert sum(path.stat().st_size for path in both) < 12_000_000


def test_the_shipped_gguf_is_the_shipped_folder(tmp_path) -> None:
    from kt.demo.teacher import SHIPPED_TEACHER
    from kt.gguf import write_gguf

    write_gguf(SHIPPED_TEACHER, tmp_path / "teacher.gguf")
    assert (tmp_path / "teacher.gguf").read_bytes() == SHIPPED_TEACHER.with_suffix(".gguf").read_bytes()


# ---- the shipped teacher, served ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param("llama-cpp", marks=pytest.mark.xdist_group("llama")),
        pytest.param("vllm", marks=pytest.mark.xdist_group("vllm")),
    ],
)
def test_engines_answer_as_the_shipped_folder_does(engine, tmp_path):
    """Greedy answers of real engines are transformers' own, but for near-ties, and are worth as many marks."""
    pytest.importorskip({"llama-cpp": "llama_cpp", "vllm": "vllm"}[engine])
    from kt.demo.exam import model_at
    from kt.demo.teacher import SHIPPED_TEACHER
    from kt.serving import serve

    model = SHIPPED_TEACHER.with_suffix(".gguf") if engine == "llama-cpp" else SHIPPED_TEACHER
    asked = list(itertools.islice(lessons(3, WRITING, reserved=True), 25))
    prompts = load_prompts("compact")
    conversations = [prompts[lesson.task].render(lesson.values) for lesson in asked]
    own = list(model_at(SHIPPED_TEACHER)(conversations))
    with serve(engine, model, max_model_len=1024, log_path=tmp_path / "engine.log") as server:
        served = [ask(server, messages) for messages in conversations]
    assert sum(one == other for one, other in zip(own, served, strict=True)) >= 22
    right = [sum(mark(*pair).right for pair in zip(asked, answers, strict=True)) for answers in (own, served)]
    assert abs(right[0] - right[1]) <= 5
    assert right[1] > 60


def ask(server, messages):
    body = {"model": server.model, "messages": messages, "temperature": 0, "max_tokens": 320}
    headers = {"Authorization": f"Bearer {server.api_key}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{server.base_url}/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=300) as reply:
        return json.load(reply)["choices"][0]["message"]["content"]
