"""The network, how it is trained, and what is searched over."""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    ByteSize,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    Tag,
    model_serializer,
    model_validator,
)

from fraud_ray.settings.base import NO_EFFECT, Frozen, Resources, alternatives, is_number


def _branch_of_weight(value: Any) -> str | None:
    return "<number>" if is_number(value) else "<balanced>" if value == "balanced" else None


PositiveWeight = Annotated[
    Annotated[PositiveFloat, Tag("<number>")] | Annotated[Literal["balanced"], Tag("<balanced>")],
    alternatives(_branch_of_weight, "a number above 0 or 'balanced'"),
]


class TrainSettings(Frozen):
    network: Literal["mlp", "residual"] = "mlp"
    """mlp: one layer after the other; residual: blocks that each add their output to their input."""
    hidden_sizes: tuple[PositiveInt, ...] = (128, 64)
    """Units of the hidden layers; residual: units throughout, then the hidden units of each block."""
    activation: Literal["relu", "silu"] = "relu"
    """What follows a hidden layer."""
    layer_norm: bool = False
    """Whether hidden units are normalised, before each activation or at the start of each block."""
    embedding_size: PositiveInt | None = None
    """Size of a learned embedding for each categorical column; null: one-hot."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Share of hidden units dropped in training."""
    members: PositiveInt = 1
    """Networks trained side by side, whose mean probability counts."""
    member_weights: Literal["own", "shared"] = "own"
    """Whether members have weights of their own, or share them but for scales of inputs and outputs (TabM)."""
    positive_weight: PositiveWeight = 1.0
    """Weight of a fraud in the loss; `balanced` is legitimate rows over frauds."""
    negative_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the legitimate rows drawn afresh each epoch, weighted back."""
    optimizer: Literal["adam", "adamw"] = "adamw"
    """Optimiser."""
    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate."""
    weight_decay: NonNegativeFloat = 0.01
    """adamw: decoupled weight decay."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate over the steps: constant, or a cosine to zero over `epochs`."""
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of all steps in which the learning rate rises linearly to its peak."""
    epochs: PositiveInt = 50
    """Most passes over the fit rows."""
    patience_epochs: PositiveInt | None = 5
    """Epochs without a better selection AP before a trial stops; the best one counts. null: all are trained, and the
    last one counts."""
    batch_size: PositiveInt = 256
    """Rows a step, over all ranks."""
    workers: PositiveInt = 1
    """Ranks, each of which trains on its share of a batch."""
    use_gpu: bool = False
    """Whether each rank trains on a GPU."""
    resources_per_worker: Resources = Field(default={"CPU": 1}, json_schema_extra=NO_EFFECT)
    """What Ray reserves for a rank: CPU and GPU in devices (fractions allowed), memory in bytes or as 32GiB."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16: autocast on a GPU."""
    residency: Literal["auto", "resident", "streamed"] = "auto"
    """Whether prepared rows lie in the object store or are streamed from storage; auto: by `memory_budget`."""
    memory_budget: ByteSize = Field(default=ByteSize(4 * 2**30), json_schema_extra=NO_EFFECT)
    """Most bytes of prepared rows held resident; beyond it they are streamed."""
    seed: NonNegativeInt = 42
    """Seed of weights, order and dropout."""
    max_failures: NonNegativeInt = Field(default=3, json_schema_extra=NO_EFFECT)
    """How often training is recovered from its checkpoint after a worker died."""

    @property
    def ranks(self) -> str:
        """How many train, and on what, in words."""
        return f"{self.workers:,} rank{'' if self.workers == 1 else 's'} ({'GPU' if self.use_gpu else 'CPU'})"


def _as_tuple(value: Any) -> Any:
    return tuple(tuple(v) if isinstance(v, list) else v for v in value) if isinstance(value, list | tuple) else value


def _as_alternatives(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


Conditions = dict[str, Annotated[tuple[Any, ...], BeforeValidator(_as_alternatives)]]


class Range(Frozen):
    low: float
    """Smallest value."""
    high: float
    """Largest value."""
    log: bool = False
    """Draw evenly on a logarithmic scale."""
    when: Conditions = Field(default={})
    """Searched only where these hyperparameters have this value, or one of these."""

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if not self.low < self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range starts above 0, not at {self.low}")
        return self


class Listed(Frozen):
    values: Annotated[tuple[Any, ...], BeforeValidator(_as_tuple), Field(min_length=1)]
    """The values to choose from."""
    when: Conditions = Field(default={})
    """Searched only where these hyperparameters have this value, or one of these."""

    @property
    def plain(self) -> list[Any]:
        """The values as JSON gives them back, so that a point and its stored form have the same identity."""
        values: list[Any] = json.loads(json.dumps(self.values))
        return values

    @model_serializer(mode="wrap")
    def _short(self, dump: SerializerFunctionWrapHandler) -> Any:
        return dump(self) if self.when else self.plain


def _branch_of_options(value: Any) -> str | None:
    if isinstance(value, Listed | list | tuple) or (isinstance(value, dict) and "values" in value):
        return "<list>"
    return "<range>" if isinstance(value, dict | Range) else None


def _listed(value: Any) -> Any:
    return {"values": value} if isinstance(value, list | tuple) else value


Options = Annotated[
    Annotated[Range, Tag("<range>")] | Annotated[Listed, BeforeValidator(_listed), Tag("<list>")],
    alternatives(_branch_of_options, "a list of values or {low: …, high: …, log: true or false}"),
]


# What `search.space: default` stands for.
DEFAULT_SPACE: Mapping[str, Any] = types.MappingProxyType(
    {
        "network": ["mlp", "residual"],
        "hidden_sizes": [[128, 64], [64, 128, 128], [128, 128, 128]],
        "activation": ["relu", "silu"],
        "layer_norm": [False, True],
        "members": [1, 4],
        "member_weights": {"values": ["own", "shared"], "when": {"members": 4}},
        "dropout": {"low": 0.0, "high": 0.4},
        "learning_rate": {"low": 0.001, "high": 0.005, "log": True},
        "weight_decay": {"low": 0.001, "high": 0.3, "log": True, "when": {"optimizer": "adamw"}},
        "schedule": ["constant", "cosine"],
    }
)


def spelled_out(space: Any) -> Any:
    return dict(DEFAULT_SPACE) if space == "default" else space


class SearchSettings(Frozen):
    space: Annotated[dict[str, Options], BeforeValidator(spelled_out)] = Field(default={})
    """Hyperparameters of `train` to search: a list of values, or {low, high, log}; {values, when: {NAME: VALUE}} and
    {low, high, log, when} only where an earlier one has a value. `default`: a space around what did well on the
    handbook's selection folds, for random and tpe. Empty: one trial."""
    algorithm: Literal["grid", "random", "tpe"] = "grid"
    """grid: every combination of the lists; random; tpe: Optuna's estimator."""
    trials: PositiveInt = 16
    """random, tpe: trials to run, of which the first is `train` as given."""
    scheduler: Literal["auto", "none", "asha"] = "auto"
    """How weak trials are stopped early; auto: asha for random and tpe, none for grid."""
    grace_epochs: PositiveInt = 5
    """asha: epochs before a trial can be stopped by the scheduler."""
    concurrency: PositiveInt | None = Field(default=None, json_schema_extra=NO_EFFECT)
    """Most trials at once; by default as many as the resources hold."""
    time_budget_s: PositiveFloat | None = None
    """Seconds after which no further trial starts and running ones end."""
    resources_per_trial: Resources | None = Field(default=None, json_schema_extra=NO_EFFECT)
    """What one rank of a trial reserves, where it differs from `train.resources_per_worker` (GPU: 0.25 packs four
    trials on one)."""
    seed: NonNegativeInt = 42
    """Seed of the draws."""

    @property
    def stops_weak_trials(self) -> bool:
        return self.scheduler == "asha" or (self.scheduler == "auto" and self.algorithm != "grid")

    @property
    def in_words(self) -> str:
        """What is searched, for the plan."""
        if not self.space:
            return "one trial with the settings as given"
        count = f"{self.trials:,} trial{'' if self.trials == 1 else 's'}, "
        return f"search: {'' if self.algorithm == 'grid' else count}{self.algorithm} over {', '.join(self.space)}"
