"""METEOR and BERTScore: the libraries' own figures to 1e-6, offline; what is missing is named."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import needs
from tiny_models import sentences

from kt.errors import InputError
from kt.metrics import BLOCK, bertscore, meteor, read_encoder
from kt.wordnet import find_wordnet, open_wordnet


def pairs(count: int = 30) -> tuple[list[str], list[str]]:
    draw = random.Random(3)
    said = sentences(4 * count, seed=5)
    answers = [" ".join(draw.sample(said, 2)) for _ in range(count)]
    golds = [" ".join([answer.split(". ")[0] + ".", draw.choice(said)]) for answer in answers]
    return [*answers, "", "The KEEPERS painted!"], [*golds, "Something.", "the keeper paints."]


def make_wordnet(folder: Path) -> Path:
    """Write a WordNet of two synsets, in WordNet's own format: harbour and haven are synonyms."""
    folder.mkdir()
    for part in ("adj", "adv", "noun", "verb"):
        (folder / f"{part}.exc").write_text("")
        (folder / f"index.{part}").write_text("")
        (folder / f"data.{part}").write_text("")
    head = "  1 This software and database is being provided to you. WordNet 3.0 Copyright\n"
    data, index, offset = head, "", len(head)
    for synset, words in ((1, ["harbour", "haven"]), (2, ["keeper"])):
        listed = " ".join(f"{word} 0" for word in words)
        line = f"{offset:08} 03 n {len(words):02x} {listed} 000 | synset {synset}\n"
        for word in words:
            index += f"{word} n 1 0 1 0 {offset:08}\n"
        data, offset = data + line, offset + len(line)
    (folder / "data.noun").write_text(data)
    (folder / "data.adj").write_text(head)
    (folder / "index.noun").write_text("".join(sorted(index.splitlines(keepends=True))))
    (folder / "cntlist.rev").write_text("")
    return folder


# ---- METEOR ----------------------------------------------------------------------------------------------------------


@needs("nltk")
def test_meteor_without_wordnet_is_nltks_own_figure_under_its_own_name() -> None:
    from nltk.tokenize import wordpunct_tokenize
    from nltk.translate.meteor_score import meteor_score

    class Nothing:
        def synsets(self, _: str) -> list[object]:
            return []

    answers, golds = pairs()
    found = list(meteor(with_wordnet=False)(answers, golds))
    for answer, gold, score in zip(answers, golds, found, strict=True):
        wanted = meteor_score([wordpunct_tokenize(gold)], wordpunct_tokenize(answer), wordnet=Nothing())
        assert score == {"meteor-no-wordnet": pytest.approx(wanted, abs=1e-6)}
    assert found[-2] == {"meteor-no-wordnet": 0}
    assert 0 < found[0]["meteor-no-wordnet"] < 1


@needs("nltk")
def test_meteor_by_hand() -> None:
    """4 of 4 tokens in one chunk: F 1, penalty 0.5 * (1/4)^3. Then 2 of 4 in two chunks: F 0.5, penalty 0.5."""
    whole, half = meteor(with_wordnet=False)(
        ["A keeper paints.", "keeper x paints y"], ["a Keepers PAINT.", "keeper paint c d"]
    )
    assert whole["meteor-no-wordnet"] == pytest.approx(1 - 0.5 / 64)
    assert half["meteor-no-wordnet"] == pytest.approx(0.25)


@needs("nltk")
def test_synonyms_count_with_wordnet_and_only_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KT_WORDNET", str(make_wordnet(tmp_path / "wordnet")))
    answers, golds = ["the haven"], ["the harbour"]
    [found] = meteor(with_wordnet=True)(answers, golds)
    [bare] = meteor(with_wordnet=False)(answers, golds)
    assert found["meteor"] == pytest.approx(1 - 0.5 / 8)
    assert bare["meteor-no-wordnet"] == pytest.approx(0.25)


@needs("nltk")
def test_without_wordnet_meteor_is_an_error_that_says_where_it_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KT_WORDNET", str(tmp_path))
    with pytest.raises(InputError, match=r"KT_WORDNET=.* holds no WordNet: apt install wordnet-base.*meteor-no-wordnet"):
        meteor(with_wordnet=True)


@needs("nltk")
def test_meteor_with_a_whole_wordnet_is_nltks_own_figure() -> None:
    from nltk.tokenize import wordpunct_tokenize
    from nltk.translate.meteor_score import meteor_score

    if find_wordnet() is None:
        pytest.skip("no WordNet here: apt install wordnet-base, or set KT_WORDNET")
    reader = open_wordnet()
    assert {lemma for synset in reader.synsets("harbour") for lemma in synset.lemma_names()} >= {"harbor", "seaport", "haven"}
    answers, golds = pairs()
    found = list(meteor(with_wordnet=True)([*answers, "a sailor finds the harbor"], [*golds, "a mariner found the harbour"]))
    for answer, gold, score in zip(answers, golds, found, strict=False):
        wanted = meteor_score([wordpunct_tokenize(gold)], wordpunct_tokenize(answer), wordnet=reader)
        assert score == {"meteor": pytest.approx(wanted, abs=1e-6)}
    # By hand: "a" and "the harbour" of five words each, so F 0.6 and two chunks of three matches.
    assert found[-1]["meteor"] == pytest.approx(0.6 * (1 - 0.5 * (2 / 3) ** 3))


# ---- BERTScore -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["bert", "roberta"])
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random encoder of three layers whose tokenizer does not say that it takes 128 tokens."""
    if missing := needs("torch", "transformers", "bert_score").args[0]:
        pytest.skip(f"BERTScore's libraries are not all here: {missing}")
    make = {"bert": make_encoder, "roberta": make_roberta}[request.param]
    return make(tmp_path_factory.mktemp("models") / "encoder")


def make_roberta(folder: Path) -> Path:
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaConfig, RobertaModel, RobertaTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    trained = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(sentences(500), vocab_size=600, special_tokens=special, show_progress=False)
    trained.save_model(str(folder))
    tokenizer = RobertaTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer.save_pretrained(folder)
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    config = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=130, pad_token_id=1, **sizes)
    RobertaModel(config).save_pretrained(folder)
    return folder


def make_encoder(folder: Path) -> Path:
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,!"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    model = BertModel(BertConfig(vocab_size=len(vocabulary), max_position_embeddings=128, **sizes))
    model.save_pretrained(folder)
    return folder


def test_bertscore_is_bert_scores_own_figure(encoder: Path) -> None:
    from bert_score import BERTScorer

    answers, golds = pairs(BLOCK + 5)
    answers[0] = "long " * 200
    found = list(bertscore(read_encoder(encoder, 2))(answers, golds))
    scorer = BERTScorer(model_type=str(encoder), num_layers=2)
    scorer._tokenizer.model_max_length = 128
    full = [i for i, answer in enumerate(answers) if answer]
    columns = scorer.score([answers[i] for i in full], [golds[i] for i in full])
    for place, number in enumerate(full):
        names = ("bertscore-precision", "bertscore-recall", "bertscore-f1")
        wanted = {name: pytest.approx(float(column[place]), abs=1e-6) for name, column in zip(names, columns, strict=True)}
        assert found[number] == wanted
    assert found[-2] == {"bertscore-precision": 0, "bertscore-recall": 0, "bertscore-f1": 0}
    assert len(found) == len(answers)


def test_the_layer_changes_the_score_and_must_be_named_for_an_unknown_encoder(encoder: Path) -> None:
    one, three = (next(bertscore(read_encoder(encoder, layer))(["the keeper"], ["a sailor"])) for layer in (1, 3))
    assert one != three
    with pytest.raises(InputError, match=r"of 3 layers; say which of them counts with --encoder-layer N"):
        read_encoder(encoder, None)
    with pytest.raises(InputError, match="has layers 1 to 3"):
        read_encoder(encoder, 4)


def test_roberta_large_is_read_at_the_papers_layer(tmp_path: Path) -> None:
    (tmp_path / "roberta").mkdir()
    text = '{"model_type": "roberta", "num_hidden_layers": 24, "max_position_embeddings": 514, "pad_token_id": 1}'
    (tmp_path / "roberta/config.json").write_text(text)
    for name in ("model.safetensors", "vocab.json"):
        (tmp_path / "roberta" / name).touch()
    found = read_encoder(tmp_path / "roberta", None)
    assert (found.layer, found.longest) == (17, 512)
    (tmp_path / "set5").mkdir()
    (tmp_path / "set5/config.json").write_text(text)
    with pytest.raises(InputError, match="rename the folder"):
        read_encoder(tmp_path / "set5", None)
    with pytest.raises(InputError, match="no encoder's folder"):
        read_encoder(tmp_path, None)


def test_a_machine_without_wordnet_or_with_it_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KT_WORDNET", raising=False)
    place = make_wordnet(tmp_path / "data")
    (tmp_path / "nltk/corpora").mkdir(parents=True)
    place.rename(tmp_path / "nltk/corpora/wordnet")
    monkeypatch.setenv("NLTK_DATA", os.pathsep.join([str(tmp_path / "none"), str(tmp_path / "nltk")]))
    assert find_wordnet() == tmp_path / "nltk/corpora/wordnet"


@pytest.mark.parametrize("lacking", ["model.safetensors", "tokenizer.json"])
def test_an_encoder_without_weights_or_tokenizer_is_an_error(encoder: Path, tmp_path: Path, lacking: str) -> None:
    shutil.copytree(encoder, tmp_path / "e")
    (tmp_path / "e" / "pytorch_model.bin").write_bytes(b"pickle")
    for path in (tmp_path / "e").iterdir():
        if path.name == lacking or (lacking == "tokenizer.json" and path.name.startswith("vocab")):
            path.unlink()
    with pytest.raises(InputError, match=r"lacks weights as \*\.safetensors .* or a tokenizer"):
        read_encoder(tmp_path / "e", 2)
