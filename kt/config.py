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


class JudgeConfig(Section):
    """Who judges, scores and checks: asked as `kt build-data` asks its writer, without a fallback.

    One judge's verdicts mixed with another's would be no comparison.
    """

    backend: Literal["vllm", "llama-cpp", "openai", "replay"] = "vllm"
    model: str = Field(min_length=1)
    revision: str = ""
    base_url: list[str] = []
    api_key_env: str = "KT_API_KEY"


class EvaluateConfig(Section):
    """Everything that `kt evaluate` needs; each key is also an option of the command."""

    answers: dict[str, str] = Field(min_length=1)
    data: list[str] = Field(min_length=1)
    out: str
    cache: str = Field(default_factory=lambda: os.environ.get("KT_CACHE", "cache/completions.sqlite"))
    metrics: list[Literal["meteor", "meteor-no-wordnet", "bertscore", "judge", "score", "facts"]] = Field(
        ["meteor", "bertscore", "judge", "facts"], min_length=1
    )
    judge: JudgeConfig | None = None
    second_judge: JudgeConfig | None = None
    criteria: list[Literal["completeness", "factuality", "logicality"]] = ["completeness", "factuality", "logicality"]
    rule: Literal["default", "strict"] = "default"
    all_pairs: bool = False
    compare: str | None = None
    evidence: list[str] = Field(["gold"], min_length=1)
    encoder: str | None = None
    encoder_layer: int | None = Field(None, gt=0)
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

    @model_validator(mode="after")
    def _consistent(self) -> EvaluateConfig:
        asked = [name for name in self.metrics if name in ("judge", "score", "facts")]
        if asked and self.judge is None:
            raise ValueError(f"metrics {', '.join(asked)} need a judge: give --judge MODEL, or leave them out of --metrics")
        if "judge" in self.metrics and len(self.answers) < 2:
            raise ValueError("metric judge compares: give --answers NAME=DIR twice or more, or leave judge out of --metrics")
        if self.compare is not None and self.compare not in self.answers:
            raise ValueError(f"compare: no answers of {self.compare}; there are those of {', '.join(self.answers)}")
        if "bertscore" in self.metrics and not self.encoder:
            raise ValueError(
                "metric bertscore needs a local encoder: give --encoder FOLDER (`kt doctor` says where one comes from), or"
                " leave bertscore out of --metrics"
            )
        if bad := [name for name in self.answers if not name or "/" in name]:
            raise ValueError(f"a method's name is a plain word, without slashes: {', '.join(map(repr, bad))}")
        if self.second_judge and self.judge and _who(self.second_judge) == _who(self.judge):
            raise ValueError("the second judge is the first one: another model tells how far judges agree")
        return self


def _who(judge: JudgeConfig) -> tuple[str, str]:
    return judge.model, judge.revision


class GenerateConfig(Section):
    """Everything that `kt generate` needs; each key is also an option of the command.

    `adapters` are LoRA folders by name, None for the base alone; without any, the base answers under the name "base".
    """

    data: list[str] = Field(min_length=1)
    out: str
    cache: str = Field(default_factory=lambda: os.environ.get("KT_CACHE", "cache/completions.sqlite"))
    model: str = Field(min_length=1)
    adapters: dict[str, str | None] = {}
    backend: Literal["transformers", "vllm", "replay"] = "transformers"
    revision: str = ""
    base_url: list[str] = []
    api_key_env: str = "KT_API_KEY"
    offline: bool = False
    inside: list[str] = []
    server: ServerConfig = ServerConfig()
    template: Literal["alpaca", "chat"] = "alpaca"
    max_tokens: int = Field(512, gt=0)
    temperature: float = Field(0.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    samples: int = Field(1, gt=0)
    seed: int = 42
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    limit: int | None = Field(None, gt=0)
    workers: int = Field(64, gt=0, le=4096)
    batch_size: int | None = Field(None, gt=0)
    timeout: float = Field(600.0, gt=0)
    retries: int = Field(3, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> GenerateConfig:
        if bad := [name for name in self.adapters if not name or name.startswith(".") or "/" in name or name == "items"]:
            raise ValueError(f"an adapter's name is that of its folder: a plain word, not {', '.join(map(repr, bad))}")
        if self.samples > 1 and not self.temperature:
            raise ValueError("several samples at temperature 0 are the same answer: give a temperature, for example 1")
        if self.base_url and self.backend == "transformers":
            raise ValueError("base_url names a vLLM server: set backend vllm, or leave base_url out")
        if self.dtype != "auto" and self.backend == "vllm":
            raise ValueError("dtype is for backend transformers: a server's is set where it is started (server: dtype)")
        return self

    @property
    def named(self) -> dict[str, str | None]:
        """The adapters by name, or the base alone."""
        return self.adapters or {"base": None}


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read one YAML 1.2 mapping (ruamel.yaml: `5e-7` is a number, a key given twice is an error)."""
    from ruamel.yaml import YAML, YAMLError

    try:
        loaded = YAML(typ="rt").load(Path(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: not a config: lists or keys nested hundreds deep") from error
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
        return model.model_validate(plain(values))
    except ValidationError as error:
        problems = "\n".join(f"  {_place(values, p['loc'])}: {_say(p, model)}" for p in error.errors())
        raise ConfigError(f"{source}: {error.error_count()} wrong setting(s):\n{problems}") from error


def plain(value: Any) -> Any:
    """Turn the YAML reader's own types into the builtin ones."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
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
