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


def _chat_prompt(question: str, tokenizer: Any) -> str:
    if tokenizer is None:
        raise InputError("template 'chat' comes from a model's tokenizer and no model was named: use template 'alpaca'")
    if not tokenizer.chat_template:
        name = getattr(tokenizer, "name_or_path", "") or "this tokenizer"
        raise InputError(f"{name} has no chat template: use template 'alpaca' or add a chat_template.jinja")
    messages = [{"role": "user", "content": question}]
    return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
