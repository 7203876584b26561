"""A converted Llama says in llama.cpp what it says in transformers."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path

import pytest
import tiny_models

from kt.errors import InputError
from kt.gguf import write_gguf


def test_greedy_text_is_the_same_in_both(tiny_llama: Path, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    write_gguf(tiny_llama, tmp_path / "m.gguf", "f32")
    engine = llama_cpp.Llama(str(tmp_path / "m.gguf"), n_ctx=256, verbose=False, logits_all=False)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    for text in [*tiny_models.sentences(4, seed=9), "Ünïcode, “quotes” and 12 345\n\nlines", " leading space"]:
        ids = tokenizer(text)["input_ids"]
        assert engine.tokenize(text.encode(), add_bos=False) == ids
        theirs = model.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)[0, len(ids) :]
        said = engine.create_completion(ids, max_tokens=24, temperature=0)["choices"][0]["text"]
        # Half a character at the end of a token is left out by one and marked by the other.
        assert said == tokenizer.decode(theirs, skip_special_tokens=True).replace("\ufffd", "")


def test_heads_of_another_size_than_hidden_by_heads_are_read_as_they_are(tiny_llama: Path, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

    shape = AutoConfig.from_pretrained(tiny_llama)
    shape.head_dim = 16
    torch.manual_seed(0)
    model = LlamaForCausalLM(shape)
    model.save_pretrained(tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.save_pretrained(tmp_path / "m")
    write_gguf(tmp_path / "m", tmp_path / "m.gguf", "f32")
    engine = llama_cpp.Llama(str(tmp_path / "m.gguf"), n_ctx=256, verbose=False)
    ids = tokenizer("The keeper paints the old town.")["input_ids"]
    theirs = model.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)[0, len(ids) :].tolist()
    assert list(itertools.islice(engine.generate(ids, temp=0.0), len(theirs))) == theirs


def test_a_sentencepiece_tokenizer_as_llama_2_has_it_reads_and_writes_the_same_tokens(tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = make_sentencepiece_llama(tmp_path / "spm")
    write_gguf(folder, tmp_path / "m.gguf", "f32")
    engine = llama_cpp.Llama(str(tmp_path / "m.gguf"), n_ctx=256, verbose=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for text in [*tiny_models.sentences(4, seed=9), "Ünïcode, “quotes” and 12 345\n\nlines", "### Response:\n"]:
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == 1
        assert engine.tokenize(text.encode(), add_bos=True, special=True) == ids
        theirs = model.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)[0, len(ids) :].tolist()
        assert list(itertools.islice(engine.generate(ids, temp=0.0), len(theirs))) == theirs


def make_sentencepiece_llama(folder: Path) -> Path:
    sentencepiece = pytest.importorskip("sentencepiece")
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    pieces = io.BytesIO()
    options = {"model_type": "bpe", "byte_fallback": True, "split_digits": True, "remove_extra_whitespaces": False}
    special = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1, "normalization_rule_name": "identity", "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(tiny_models.sentences(2000)), model_writer=pieces, vocab_size=500, **options, **special
    )
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    # More rows than pieces: a padded vocabulary.
    LlamaForCausalLM(LlamaConfig(vocab_size=512, initializer_range=0.2, **shape)).save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(pieces.getvalue())
    said = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**said, "add_bos_token": True, "legacy": False}))
    return folder


def test_what_cannot_be_converted_is_said(tiny_llama: Path, tmp_path: Path) -> None:
    other = tmp_path / "gpt"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(InputError, match="gpt2"):
        write_gguf(other, tmp_path / "x.gguf")
    with pytest.raises(InputError, match="dtype"):
        write_gguf(tiny_llama, tmp_path / "x.gguf", "q9")
    with pytest.raises(InputError, match=r"config\.json"):
        write_gguf(tmp_path / "nothing", tmp_path / "x.gguf")
