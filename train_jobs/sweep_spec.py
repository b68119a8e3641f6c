"""The sweep spec: one train spec, and which of its fields take which values, in Ray Tune's own words."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from runtime.core.config import ConfigModel
from runtime.core.errors import ConfigError
from runtime.core.lookup import did_you_mean
from storage.names import check_name

LISTS = ("choice", "grid_search")
"""Tune's words that take the values themselves."""

RANGES = {
    "uniform": ("lower", "upper"),
    "quniform": ("lower", "upper", "q"),
    "loguniform": ("lower", "upper"),
    "qloguniform": ("lower", "upper", "q"),
    "randint": ("lower", "upper"),
    "qrandint": ("lower", "upper", "q"),
    "lograndint": ("lower", "upper"),
    "qlograndint": ("lower", "upper", "q"),
}
"""Tune's words that take numbers, and which."""


class Asha(ConfigModel):
    """Tune's ASHA scheduler: at some steps a trial that is not among the best so far is stopped."""

    grace_period: int = Field(ge=1)
    """Steps that every trial does before it may be stopped."""

    max_t: int = Field(ge=1)
    """Trials are compared at ``grace_period``, ``grace_period * reduction_factor`` and so on, up to this
    step. Whoever is left then trains to its end."""

    reduction_factor: float = Field(4, gt=1)
    """Of so many trials one goes on at each comparison."""

    @model_validator(mode="after")
    def _in_order(self) -> Asha:
        if self.max_t < self.grace_period:
            raise ValueError(
                f"max_t is {self.max_t}, but grace_period is {self.grace_period}: no trial would ever be "
                "compared. Set max_t to the recipe's steps, and grace_period to a part of them."
            )
        return self


class SweepSpec(ConfigModel):
    """Several runs of one recipe with different values."""

    name: str
    """Name of the sweep and of its runs: ``tandem runs NAME`` lists them."""

    train: dict[str, Any] | str
    """The train spec, or the path of its file, seen from the sweep's file. Its ``name`` is the sweep's."""

    search: dict[str, dict[str, list[Any]]]
    """For each field of the train spec (``llamafactory.learning_rate``, ``scaling.num_workers``) what it may
    be: ``{grid_search: [8, 16]}`` (each of them), or drawn: ``{choice: [8, 16]}``,
    ``{uniform: [lower, upper]}``, ``{loguniform: [lower, upper]}``, ``{randint: [lower, upper]}`` (without
    upper), with a step ``q`` as third number ``quniform``, ``qloguniform``, ``qrandint``."""

    num_samples: int = Field(1, ge=1)
    """How often is drawn; with ``grid_search`` so many times the whole grid."""

    metric: str | None = None
    """What trials are compared by, a name in their metrics; its last value counts. Default: ``eval_loss``
    where the recipe evaluates, else ``loss``."""

    mode: Literal["min", "max"] = "min"
    """Whether a low or a high value is good."""

    max_concurrent_trials: int | None = Field(None, ge=1)
    """How many runs at once. Default: as many as the whole cluster has CPUs and GPUs for."""

    seed: int = 0
    """What the draws come from: the same spec draws the same values."""

    asha: Asha | None = None
    """Stop poor trials early. Default: every trial trains to its end."""

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        try:
            return check_name(value, field="the name")
        except ConfigError as error:
            raise ValueError(str(error)) from None

    @field_validator("search")
    @classmethod
    def _can_be_drawn(cls, value: dict[str, dict[str, list[Any]]]) -> dict[str, dict[str, list[Any]]]:
        if not value:
            raise ValueError(
                "is empty. Name at least one field, such as llamafactory.learning_rate: {loguniform: [...]}."
            )
        faults = [f"{field}: {fault}" for field, words in value.items() if (fault := _fault(words))]
        if faults:
            raise ValueError("; ".join(faults))
        return value


def _fault(words: dict[str, list[Any]]) -> str | None:
    """What is wrong with one field's distribution, or None."""
    if len(words) != 1:
        return f"has {len(words)} distributions ({', '.join(words) or 'none'}). Write one."
    ((word, values),) = words.items()
    if word in LISTS:
        return None if values else f"{word}: is empty. Write the values in it."
    if word not in RANGES:
        return f"{word!r} is no distribution of Tune. {did_you_mean(word, [*LISTS, *RANGES])}"
    return _range_fault(word, values, RANGES[word])


def _range_fault(word: str, values: list[Any], wanted: tuple[str, ...]) -> str | None:
    shown = f"{word}: is {values}"
    if len(values) != len(wanted):
        return f"{shown}; it takes [{', '.join(wanted)}]."
    for value in values:
        if isinstance(value, str) and (number := _number(value)) is not None:
            # YAML 1.1 takes 1e-5 for text: a number with an exponent needs a point.
            return f"{shown}, of which {value!r} is text. Write {number:.1e} (YAML takes 1e-5 for text)."
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return f"{shown}, of which {value!r} is no number."
        if "int" in word and not isinstance(value, int):
            return f"{shown}; {word} draws whole numbers between whole numbers."
    lower, upper = values[:2]
    if lower >= upper:
        return f"{shown}: lower {lower} is not below upper {upper}. Exchange them, or remove the field."
    if word.removeprefix("q").startswith("log") and lower <= 0:
        return f"{shown}: a logarithmic range begins above 0."
    if len(values) == 3 and values[2] <= 0:
        return f"{shown}: the step q must be above 0."
    return None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
