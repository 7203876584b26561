"""YAML into validated models; an unknown or mistyped key is an error that names file, line and key."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kt.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)


class Section(BaseModel):
    """A part of a config: unknown keys are errors, values are checked, `5e-7` is a number."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FallbackConfig(Section):
    """The second place to ask, only if allowed: by default the real API with the key in OPENAI_API_KEY."""

    backend: Literal["openai"] = "openai"
    model: str = "gpt-4o-mini"
    base_url: list[str] = ["https://api.openai.com/v1"]
    api_key_env: str = "OPENAI_API_KEY"


class ServerConfig(Section):
    """How `kt` starts a server itself when no base_url is given."""

    max_model_len: int | None = Field(None, gt=0)
    dtype: str = "auto"
    extra_args: list[str] = []


class DifficultyConfig(Section):
    """Stage I filter (paper 3.2): keep the share of facts with the highest perplexity under the SFT model."""

    mode: Literal["ppl", "random", "all"] = "ppl"
    share: float = Field(0.5, gt=0, le=1)
    context: Literal["question", "none"] = "question"
    template: Literal["alpaca", "chat"] = "alpaca"
    scorer: str | None = None
    adapter: str | None = None


class BuildConfig(Section):
    """Everything that `kt build-data` needs; each key is also an option of the command."""

    data: list[str] = Field(min_length=1)
    out: str
    cache: str = Field(default_factory=lambda: os.environ.get("KT_CACHE", "cache/completions.sqlite"))
    backend: Literal["vllm", "llama-cpp", "openai", "replay"] = "vllm"
    model: str = Field(min_length=1)
    revision: str = ""
    base_url: list[str] = []
    api_key_env: str = "KT_API_KEY"
    fallback: FallbackConfig | None = None
    offline: bool = False
    inside: list[str] = []
    server: ServerConfig = ServerConfig()
    prompts: str = "default"
    limit: int | None = Field(None, gt=0)
    workers: int = Field(64, gt=0, le=4096)
    seed: int = 42
    attempts: int = Field(3, gt=0)
    timeout: float = Field(600.0, gt=0)
    retries: int = Field(3, ge=0)
    max_cost: float | None = Field(None, ge=0)
    difficulty: DifficultyConfig = DifficultyConfig()
    delete_share: float = Field(0.5, gt=0, lt=1)
    aspects: list[Literal["completeness", "factuality", "logicality"]] = ["completeness", "factuality", "logicality"]
    rejected: Literal["concatenate", "rephrase"] = "concatenate"

    @model_validator(mode="after")
    def _consistent(self) -> BuildConfig:
        if self.offline and self.fallback:
            raise ValueError("offline and fallback exclude each other: remove one of them")
        if self.backend == "openai" and not self.base_url:
            raise ValueError("backend openai needs base_url, for example http://127.0.0.1:8000/v1")
        if self.fallback and self.fallback.model == self.model and not self.revision:
            raise ValueError(
                f"model and fallback bear the same name, {self.model}: the cache could not tell their answers apart;"
                " give a revision, for example `revision: local`"
            )
        return self


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read one YAML 1.2 mapping (ruamel.yaml: `5e-7` is a number, a key given twice is an error)."""
    from ruamel.yaml import YAML, YAMLError

    try:
        loaded = YAML(typ="rt").load(Path(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{place}: not YAML: {problem}") from error
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(loaded).__name__}")
    return loaded


def validate(model: type[Model], values: Mapping[str, Any], source: str | Path) -> Model:
    """Make a validated section of plain values; ConfigError lists every wrong key with its line."""
    try:
        return model.model_validate(_plain(values))
    except ValidationError as error:
        problems = "\n".join(f"  {_place(values, p['loc'])}: {_say(p, model)}" for p in error.errors())
        raise ConfigError(f"{source}: {error.error_count()} wrong setting(s):\n{problems}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value


def _place(values: Any, location: tuple[Any, ...]) -> str:
    """Name the key as a.b.c, with its line where the YAML reader knows it."""
    line = None
    for part in location:
        marks = getattr(values, "lc", None)
        if marks is not None and isinstance(part, str) and part in (marks.data or {}):
            line = marks.data[part][0] + 1
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            break
    name = ".".join(map(str, location)) or "config"
    return f"line {line}: {name}" if line else name


def _say(problem: Any, model: type[BaseModel]) -> str:
    if problem["type"] == "extra_forbidden":
        section: Any = model
        for part in problem["loc"][:-1]:
            field = getattr(section, "model_fields", {}).get(part)
            section = _section_of(field.annotation) if field else None
        known = ", ".join(sorted(getattr(section, "model_fields", {}) or {}))
        return f"unknown key{f'; known keys: {known}' if known else ''}"
    text = str(problem["msg"]).removeprefix("Value error, ")
    given = problem.get("input")
    return f"{text} (given: {given!r})" if isinstance(given, str | int | float | bool) else text


def _section_of(annotation: Any) -> Any:
    options = getattr(annotation, "__args__", ()) or (annotation,)
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def find_shipped(kind: str, name: str | Path) -> Path:
    """Find a shipped file or folder of `kind` ("prompts" or "configs"): the working directory first, then the package.

    A path that exists is itself. Raises ConfigError naming the places that were looked at.
    """
    here = Path(__file__).parent
    places = [Path(name), Path(kind) / name, here.parent / kind / name, here / f"_{kind}" / name]
    for place in places:
        if place.exists():
            return place
    looked = ", ".join(str(p) for p in places)
    raise ConfigError(f"{name}: no such file or folder of {kind}; looked at {looked}")
