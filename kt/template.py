"""The training prompt around a question: one place for training, scoring and generation."""

from typing import Any

from kt.errors import InputError

# Stanford Alpaca's prompt for rows without input, as LLaMA-Factory's `alpaca` template renders it.
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{question}\n\n### Response:\n"
)
TEMPLATES = ("alpaca", "chat")


def render_prompt(question: str, template: str = "alpaca", tokenizer: Any = None) -> str:
    """Put a question into its prompt, up to where the answer begins; `chat` is the tokenizer's own template."""
    if template == "alpaca":
        # Not str.format: a brace in a template edited by a user must stay a brace.
        return ALPACA.replace("{question}", question)
    if template == "chat":
        return _chat_prompt(question, tokenizer)
    raise InputError(f"template {template!r} is unknown: choose one of {', '.join(TEMPLATES)}")


def prompt_tokens(tokenizer: Any, prompt: str) -> list[int]:
    """Tokenise a rendered prompt as training, generation and serving all see it: with BOS if the tokenizer writes one."""
    # A chat template has written the BOS already; a second one would change every number.
    special = not (tokenizer.bos_token and prompt.startswith(tokenizer.bos_token))
    ids: list[int] = tokenizer(prompt, add_special_tokens=special)["input_ids"]
    closed = ids and ids[-1] == tokenizer.eos_token_id and not prompt.endswith(tokenizer.eos_token)
    return ids[:-1] if closed else ids  # some tokenizers close every text; the prompt goes on


def check_ending(template: str, tokenizer: Any) -> None:
    """Refuse a chat template whose answers do not end in the tokenizer's EOS: what is trained would not end when served."""
    if template != "chat":
        return
    _chat_prompt("a", tokenizer)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "an answer"}]
    after = str(tokenizer.apply_chat_template(turns, tokenize=False)).rpartition("an answer")[2]
    if tokenizer.eos_token and tokenizer.eos_token not in after:
        raise InputError(
            f"the chat template ends an answer with {after!r}, not with the tokenizer's EOS {tokenizer.eos_token!r}: set"
            " eos_token in tokenizer_config.json to the token that ends a turn, or use template 'alpaca'"
        )


def alpaca_chat_template(tokenizer: Any) -> str:
    """Write the Alpaca prompt as a chat template, so that a served model is asked as it was trained.

    A tokenizer that begins every text with BOS leaves that to the template of a chat.
    """
    before, after = ALPACA.split("{question}")
    begins = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    turns = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ BEFORE }}{{ m['content'] }}{{ AFTER }}"
        "{% elif m['role'] == 'assistant' %}{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
    )
    said = {"BEFORE": repr(before), "AFTER": repr(after)}
    for name, text in said.items():
        turns = turns.replace(f"{{{{ {name} }}}}", f"{{{{ {text} }}}}")
    return ("{{ bos_token }}" if begins else "") + turns


def _chat_prompt(question: str, tokenizer: Any) -> str:
    if tokenizer is None:
        raise InputError("template 'chat' comes from a model's tokenizer and no model was named: use template 'alpaca'")
    if not tokenizer.chat_template:
        name = getattr(tokenizer, "name_or_path", "") or "this tokenizer"
        raise InputError(f"{name} has no chat template: use template 'alpaca' or add a chat_template.jinja")
    messages = [{"role": "user", "content": question}]
    return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
