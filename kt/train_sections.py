"""The sections of an experiment's config: what each stage, each rival, and a generated world take."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from kt.config import Section


class TrainerSection(Section):
    """Trainer settings under the names of transformers' TrainingArguments and TRL's SFTConfig, handed on unchanged.

    Those named here have bounds that the trainer itself does not check.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    learning_rate: float | None = Field(None, gt=0)
    num_train_epochs: float | None = Field(None, gt=0)
    per_device_train_batch_size: int | None = Field(None, gt=0)
    gradient_accumulation_steps: int | None = Field(None, gt=0)

    def settings(self) -> dict[str, Any]:
        """Return what is handed to the trainer."""
        bounded = {name: getattr(self, name) for name in TrainerSection.model_fields}
        return {**{name: value for name, value in bounded.items() if value is not None}, **(self.__pydantic_extra__ or {})}


class KcSection(TrainerSection):
    """The KC stage: the loss's β and γ, and its reference: the model that training starts from, or the raw base model.

    Here per_device_train_batch_size counts pairs.
    """

    beta: float = Field(0.1, gt=0)
    gamma: float = Field(0.2, ge=0)
    reference: Literal["ka", "base"] = "ka"


class BaselineSection(TrainerSection):
    """A rival that learns by plain DPO from preferences among the `sft` model's own answers to the training questions.

    `samples` answers a question are drawn at this temperature; their length and engine are those of `generate`. β and
    the trainer's settings are those of the KC stage unless said here; γ is 0 and the reference the `sft` model.
    """

    samples: int = Field(2, ge=2)
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    beta: float | None = Field(None, gt=0)


class RlaifSection(BaselineSection):
    """RLAIF: of every two answers a judge, asked in both orders, prefers the one that wins more of these criteria."""

    criteria: list[Literal["completeness", "factuality", "logicality"]] = Field(
        ["completeness", "factuality", "logicality"], min_length=1
    )
    rule: Literal["default", "strict"] = "default"


class FactTuneSection(BaselineSection):
    """FactTune: of two answers the one with the greater share of correct facts is preferred.

    Facts are checked against the gold answer, or (evidence none) by what the checker knows.
    """

    samples: int = Field(10, ge=2)
    evidence: Literal["gold", "none"] = "gold"


class WorldSection(Section):
    """A generated world (kt/demo/world.py) in the place of data: its first towns are trained on, the next ones tested."""

    seed: int
    towns: int = Field(120, gt=0)
    train: int = Field(60, gt=0)
    test: int = Field(60, gt=0)

    @model_validator(mode="after")
    def _enough(self) -> WorldSection:
        if self.train + self.test > self.towns:
            raise ValueError(f"train and test are {self.train + self.test} towns of {self.towns}")
        return self
