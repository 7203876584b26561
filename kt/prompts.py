"""A prompt file and a record into chat messages: Jinja2 in a sandbox, with the schema of the answer beside it.

A prompt is one YAML file, a set of prompts is one folder; prompts/README.md describes the format.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import orjson
from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment

from kt.config import find_shipped, plain, read_yaml
from kt.errors import ConfigError, PromptError

Message = dict[str, str]

KEYS = ("description", "fields", "system", "examples", "user", "schema", "params")
PARAMS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "max_tokens",
    "max_completion_tokens",
    "seed",
    "stop",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "reasoning_effort",
    "chat_template_kwargs",
)
"""Sampling parameters a prompt may set: a key misspelt would be ignored by the servers without a word."""

_TEMPLATES = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=False)


@dataclass(frozen=True)
class Prompt:
    """One prompt, ready to be rendered.

    `prefix` holds the messages that are the same for every record (system, worked examples), `schema` is the JSON schema
    of the answer or None for plain text, `hash` the SHA-256 of all that reaches the model.
    """

    name: str
    description: str
    fields: tuple[str, ...]
    prefix: tuple[Message, ...]
    schema: Mapping[str, Any] | None
    params: Mapping[str, Any]
    hash: str
    source: Path
    fill: Callable[..., str] = field(repr=False, compare=False)

    def render(self, values: Mapping[str, Any]) -> list[Message]:
        """Return the messages for a record; PromptError, with the record's id, if it lacks a field."""
        try:
            content = self.fill(*[values[name] for name in self.fields])
        except KeyError as error:
            self._fail_on(values, f"has no field {error}, which the prompt names; it has {', '.join(values)}")
        except (TemplateError, TypeError, ValueError) as error:
            self._fail_on(values, f"cannot be put into the prompt: {error}")
        return [*self.prefix, {"role": "user", "content": content}]

    def _fail_on(self, values: Mapping[str, Any], problem: str) -> NoReturn:
        raise PromptError(f"{self.source}: record {values.get('id', '(without id)')} {problem}")


def find_prompts(name: str | Path) -> Path:
    """Find a set of prompts: a folder of that name, ./prompts/NAME, or the set shipped with kt."""
    try:
        found = find_shipped("prompts", name)
    except ConfigError as error:
        raise PromptError(f"{error}; shipped sets are {', '.join(shipped_sets())}") from error
    if not found.is_dir():
        raise PromptError(f"{found}: a file, not a folder of prompts; give the folder that it lies in")
    return found


def shipped_sets() -> list[str]:
    """Return the names of the sets that come with kt."""
    return sorted(path.name for path in find_shipped("prompts", "default").parent.iterdir() if path.is_dir())


def load_prompts(where: str | Path) -> dict[str, Prompt]:
    """Read every prompt of a set, given by name or folder, in order of name."""
    folder = find_prompts(where)
    prompts = [load_prompt(path) for path in sorted(folder.glob("*.yaml"))]
    if not prompts:
        raise PromptError(f"{folder}: holds no prompt; expected files such as extract.yaml")
    return {prompt.name: prompt for prompt in prompts}


def load_prompt(path: str | Path) -> Prompt:
    """Read one prompt file; PromptError names the file, the key and what to do."""
    path = Path(path)
    try:
        raw = plain(read_yaml(path))
    except ConfigError as error:
        raise PromptError(str(error)) from error
    _check_keys(path, raw)
    fields = _strings(path, "fields", raw["fields"])
    prefix = _prefix(path, raw)
    schema = _schema(path, raw.get("schema"), prefix)
    params = _params(path, raw.get("params") or {})
    user = _text(path, "user", raw["user"])
    sent = {"prefix": prefix, "user": user, "schema": schema, "params": params}
    return Prompt(
        name=path.stem,
        description=_text(path, "description", raw["description"]),
        fields=fields,
        prefix=prefix,
        schema=schema,
        params=params,
        hash=hashlib.sha256(orjson.dumps(sent)).hexdigest(),
        source=path,
        fill=_template(path, user, fields),
    )


def _check_keys(path: Path, raw: Mapping[str, Any]) -> None:
    for key in raw:
        if key not in KEYS:
            raise PromptError(f"{path}: unknown key {key!r}; known keys: {', '.join(KEYS)}")
    for key in ("description", "fields", "user"):
        if key not in raw:
            raise PromptError(f"{path}: the key {key!r} is missing; every prompt needs description, fields and user")


def _text(path: Path, key: str, value: Any) -> str:
    """Check a text and drop the line end that YAML's block style puts after it."""
    if not isinstance(value, str) or not value.strip():
        raise PromptError(f"{path}: {key}: expected a text, found {value!r}")
    return value.removesuffix("\n")


def _strings(path: Path, key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(name, str) and name.isidentifier() for name in value):
        raise PromptError(f"{path}: {key}: expected a list of names such as [question, answer], found {value!r}")
    return tuple(value)


def _prefix(path: Path, raw: Mapping[str, Any]) -> tuple[Message, ...]:
    messages = []
    if "system" in raw:
        messages.append({"role": "system", "content": _text(path, "system", raw["system"])})
    examples = raw.get("examples") or []
    if not isinstance(examples, list):
        raise PromptError(f"{path}: examples: expected a list of user and assistant texts, found {examples!r}")
    for number, example in enumerate(examples, 1):
        if not isinstance(example, dict) or set(example) != {"user", "assistant"}:
            raise PromptError(f"{path}: examples: number {number} must have exactly the keys user and assistant")
        for role in ("user", "assistant"):
            messages.append({"role": role, "content": _text(path, f"examples: number {number}: {role}", example[role])})
    return tuple(messages)


def _schema(path: Path, schema: Any, prefix: Sequence[Message]) -> Mapping[str, Any] | None:
    """Check the schema, and the worked examples' answers against it."""
    if schema is None:
        return None
    import jsonschema_rs

    if not isinstance(schema, dict):
        raise PromptError(f"{path}: schema: expected a JSON schema, found {schema!r}")
    try:
        validator = jsonschema_rs.validator_for(schema)
    except (ValueError, jsonschema_rs.ValidationError) as error:
        raise PromptError(f"{path}: schema: not a JSON schema: {str(error).splitlines()[0]}") from error
    for number, answer in enumerate((m["content"] for m in prefix if m["role"] == "assistant"), 1):
        try:
            validator.validate(orjson.loads(answer))
        except (orjson.JSONDecodeError, jsonschema_rs.ValidationError) as error:
            problem = str(error).splitlines()[0]
            raise PromptError(f"{path}: examples: number {number}: assistant: does not fit the schema: {problem}") from error
    return schema


def _params(path: Path, params: Any) -> Mapping[str, Any]:
    if not isinstance(params, dict):
        raise PromptError(f"{path}: params: expected settings such as temperature, found {params!r}")
    for name, value in params.items():
        if name not in PARAMS:
            raise PromptError(f"{path}: params: unknown setting {name!r}; known settings: {', '.join(PARAMS)}")
        if name not in ("stop", "reasoning_effort", "chat_template_kwargs") and (
            isinstance(value, bool) or not isinstance(value, int | float)
        ):
            raise PromptError(f"{path}: params: {name}: expected a number, found {value!r}")
    return params


def _template(path: Path, user: str, fields: Sequence[str]) -> Callable[..., str]:
    """Compile the user's text into a macro of the fields: calling one costs a third of rendering a whole template."""
    try:
        named = find_undeclared_variables(_TEMPLATES.parse(user))
        macro = f"{{% macro fill({', '.join(fields)}) %}}{user}{{% endmacro %}}"
        filled: Callable[..., str] = _TEMPLATES.from_string(macro).module.fill  # type: ignore[attr-defined]
    except TemplateSyntaxError as error:
        raise PromptError(f"{path}: user: line {error.lineno}: not a Jinja2 template: {error.message}") from error
    if unknown := sorted(named - set(fields)):
        raise PromptError(f"{path}: user: uses {', '.join(unknown)}, not among fields ({', '.join(fields)}); add it there")
    return filled
