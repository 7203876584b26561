"""The prompt around a question."""

import subprocess
import sys

import pytest

from kt.errors import InputError
from kt.template import ALPACA, render_prompt


def test_alpaca_is_the_released_training_prompt():
    assert render_prompt("What is a lichen?") == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nWhat is a lichen?\n\n### Response:\n"
    )
    assert ALPACA.endswith("### Response:\n")


@pytest.mark.parametrize("question", ["{question}", "{0} {x!r} {{", "a\nb", "é 漢字 🙂", "", "%s $x \\1"])
def test_a_question_is_put_in_verbatim(question):
    head, tail = ALPACA.split("{question}")
    assert render_prompt(question) == head + question + tail


class ChatTokenizer:
    """The two members of a tokenizer that the template uses."""

    chat_template = "{{ messages }}"

    def apply_chat_template(self, messages, *, add_generation_prompt, tokenize):
        assert (add_generation_prompt, tokenize) == (True, False)
        return f"<user>{messages[0]['content']}<bot>"


def test_chat_is_the_tokenizers_own():
    assert render_prompt("Hi?", "chat", ChatTokenizer()) == "<user>Hi?<bot>"


def test_chat_without_a_template_says_what_to_do():
    tokenizer = ChatTokenizer()
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="no chat template: use template 'alpaca'"):
        render_prompt("Hi?", "chat", tokenizer)
    with pytest.raises(InputError, match="no model was named"):
        render_prompt("Hi?", "chat")


def test_an_unknown_template_names_the_known():
    with pytest.raises(InputError, match="'vicuna' is unknown: choose one of alpaca, chat"):
        render_prompt("Hi?", "vicuna")


def test_importing_it_loads_no_torch():
    code = "import kt.template, sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_chat_template_must_end_its_answers_with_eos(tiny_llama):
    transformers = pytest.importorskip("transformers")
    from kt.template import check_ending

    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_llama)
    check_ending("chat", tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    check_ending("alpaca", tokenizer)
    with pytest.raises(InputError, match=r"ends an answer with '\\n', not with the tokenizer's EOS '<\|end\|>'"):
        check_ending("chat", tokenizer)
