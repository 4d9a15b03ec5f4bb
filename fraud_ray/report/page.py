"""One self-contained HTML page about a run, made from values alone: no network, no script, aggregates only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import jinja2

from fraud_ray.data.rows import PreparedFold
from fraud_ray.decision.curves import Curves
from fraud_ray.decision.evaluate import Evaluation, SliceEvaluation
from fraud_ray.decision.gate import GateDecision
from fraud_ray.decision.names import AT_THRESHOLD, beside_published, in_order, metric_name, rate
from fraud_ray.decision.rejection import Cutoff, cutoffs
from fraud_ray.progress import counted
from fraud_ray.redaction import without_passwords
from fraud_ray.report import canvas, pictures, training
from fraud_ray.report.pictures import Picture
from fraud_ray.runs import RunRecord
from fraud_ray.settings import Range, Settings, TrainSettings

if TYPE_CHECKING:
    from fraud_ray.data.drift import Drift
    from fraud_ray.decision.comparison import Comparison
    from fraud_ray.decision.rival import Rival
    from fraud_ray.registry.versions import RegisteredVersion
    from fraud_ray.training.search import SearchOutcome

MOST_DIGITS = 8


@dataclass(frozen=True)
class ReportValues:
    """Everything that page and card tell of a run.

    data: where the partitions lie; rows, partitions: how many they are. folds: selection folds, then the final one.
    version: None while nothing is registered. timings: seconds a stage. drift: None where none was measured.
    rival: a model of another kind on the same rows, or why there is none. comparison: with the champion, after a
    retraining. advice: after a rejection, what would likely help.
    """

    run: RunRecord
    settings: Settings
    data: str
    rows: int
    partitions: int
    folds: tuple[PreparedFold, ...]
    found: SearchOutcome
    refit_curve: Sequence[Mapping[str, Any]]
    evaluation: Evaluation
    curves: Curves
    decision: GateDecision
    version: RegisteredVersion | None = None
    timings: Mapping[str, float] = field(default_factory=dict)
    drift: Drift | None = None
    rival: Rival | str | None = None
    comparison: Comparison | None = None
    advice: tuple[str, ...] = ()

    @property
    def final(self) -> PreparedFold:
        return self.folds[-1]

    @property
    def verdict(self) -> str:
        if self.version:
            alias = f", {self.version.alias}" if self.version.alias else ""
            return f"Registered as version {self.version.version} of {self.version.name}{alias}"
        return "Passed the gate" if self.decision.passed else "Rejected by the gate"

    @property
    def summary(self) -> str:
        """What the threshold does on the holdout, in words."""
        evaluation, counts = self.evaluation, self.evaluation.confusion
        per, unit = pictures.alert_unit(self.curves, evaluation)
        raised = counts.tp + counts.fp
        return (
            f"On {counted(evaluation.rows, 'holdout row')} with {counted(evaluation.frauds, 'fraud')}, the threshold "
            f"{evaluation.threshold:.4f} raises {counted(raised, 'alert')}, {rate(raised / per)} {unit}. "
            f"{counts.tp:,} of them are fraud; it misses {counted(counts.fn, 'fraud')}."
        )

    @property
    def code(self) -> str:
        git = self.run.record["git"]
        return f"{git['commit'][:12]}{', with changes' if git['dirty'] else ''}" if git else "no git checkout"

    @property
    def metrics(self) -> list[tuple[str, float, tuple[float, float] | None, float | None]]:
        """Label, value, interval and best possible of each metric."""
        evaluation, best = self.evaluation, self.evaluation.best_possible or {}
        return [
            (_label(name), evaluation.metrics[name], evaluation.intervals.get(name), best.get(name))
            for name in in_order(evaluation.metrics)
        ]

    @property
    def beside_others(self) -> tuple[list[str], list[tuple[str, list[float | None], str]]]:
        """Labels of the metrics that others have published, and whose values, by metric, with their source."""
        names, lines = beside_published(self.evaluation.metrics, self.evaluation.published)
        return [_label(name) for name in names], lines

    @cached_property
    def cutoffs(self) -> tuple[Cutoff, ...]:
        return cutoffs(self.curves, self.evaluation)

    @cached_property
    def slices(self) -> dict[str, list[SliceEvaluation]]:
        """By column, largest first."""
        by_column: dict[str, list[SliceEvaluation]] = {}
        for part in self.evaluation.slices:
            by_column.setdefault(part.column, []).append(part)
        return by_column

    @property
    def drift_bounds(self) -> dict[str, float]:
        """By measure; a column has some of them."""
        columns = self.drift.columns if self.drift else ()
        return {measure.name: measure.bound for column in columns for measure in column.measures}

    @property
    def chosen(self) -> TrainSettings:
        """How the model was trained."""
        return self.settings.train_with(self.found.best.hyperparameters)

    @property
    def reads(self) -> str:
        """The columns that the model reads, and how categories enter it."""
        size = self.chosen.embedding_size
        how = "one-hot" if size is None else f"in place of its one-hot features {counted(size, 'learned number')}"
        return self.final.reads + (f"; each category {how}" if self.final.encoder.code_sizes else "")

    @property
    def trials(self) -> str:
        """How many there were, and what became of them."""
        statuses = Counter(trial.status for trial in self.found.trials)
        told = ", ".join(f"{count:,} {status}" for status, count in statuses.most_common())
        return f"{counted(len(self.found.trials), 'trial')} ({told})"

    @property
    def hyperparameters(self) -> list[tuple[str, Any, str]]:
        """Name, value and what was searched over, of every train setting that can change the result."""
        chosen = self.settings.model_copy(update={"train": self.chosen})
        prefix = "train."
        names = {key.removeprefix(prefix): value for key, value in chosen.identity().items() if key.startswith(prefix)}
        return [(name, value, _options(self.settings.search.space.get(name))) for name, value in names.items()]

    @property
    def other_settings(self) -> dict[str, Any]:
        """Settings that can change the result and stand nowhere else on the page."""
        told = ("data.", "train.", "registry.uri")
        return {key: value for key, value in self.settings.identity().items() if not key.startswith(told)}


def render(values: ReportValues) -> str:
    """The page as HTML text."""
    return _template().render(
        values=values,
        decision_pictures=_decision_pictures(values),
        slice_pictures={
            column: pictures.slices(column, parts, values.evaluation, values.settings.decision.confidence)
            for column, parts in values.slices.items()
            if any(part.frauds for part in parts)
        },
        importance=pictures.importance(values.evaluation.importance) if values.evaluation.importance else None,
        training_pictures=_training_pictures(values),
        alert_unit=pictures.alert_unit(values.curves, values.evaluation),
    )


def _decision_pictures(values: ReportValues) -> list[Picture]:
    curves, evaluation = values.curves, values.evaluation
    return [
        pictures.alerts(curves, evaluation),
        pictures.precision_recall(curves, evaluation),
        pictures.roc(curves, evaluation),
        pictures.scores(curves, evaluation),
        pictures.calibration(curves, evaluation, values.settings.decision.confidence),
    ]


def _training_pictures(values: ReportValues) -> list[Picture]:
    found, search = values.found, values.settings.search
    drawn = [training.selection_scores(found), training.losses(found, values.refit_curve)]
    if search.space and len(found.trials) >= training.FEWEST_TRIALS:
        drawn.append(training.parallel_coordinates(found, search))
    return drawn


@lru_cache(maxsize=1)
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fraud_ray.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        four=lambda value: "" if value is None else f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4f}",
        count=lambda value: f"{value:,}",
        counted=counted,
        interval=lambda value: "" if value is None else f"{value[0]:.4f} … {value[1]:.4f}",
        moment=lambda text: f"{text[:16].replace('T', ' ')} UTC",
        duration=lambda seconds: f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds))),
        by_name=lambda measures: {measure.name: measure for measure in measures},
        rate=rate,
        digits=lambda value: f"{value:.3g}",
        masked=without_passwords,
        setting=_shown,
    )
    environment.globals.update(
        recall_interval=pictures.recall_interval,
        slice_name=pictures.slice_name,
        accent=canvas.ACCENT,
        ink=canvas.INK,
        muted=canvas.MUTED,
        line=canvas.LINE,
    )
    return environment.get_template("template.html.j2")


def _label(name: str) -> str:
    """A metric at the beginning of a line."""
    words = metric_name(name)
    return f"{words[0].upper()}{words[1:]}{' at threshold' if name in AT_THRESHOLD else ''}"


def _shown(value: Any) -> str:
    """A setting's value in words."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_shown(one)}" for key, one in value.items()) or "none"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and len(str(value)) > MOST_DIGITS:  # drawn from a range
        return f"{value:.4g}"
    return "none" if value is None else str(value)


def _options(options: Any) -> str:
    """What a hyperparameter was searched over; nothing for one that was not."""
    if options is None:
        return ""
    if isinstance(options, Range):
        searched = f"{options.low:g} to {options.high:g}{', logarithmic' if options.log else ''}"
    else:
        searched = ", ".join(_shown(option) for option in options.values)
    conditions = " and ".join(f"{name} {' or '.join(map(_shown, values))}" for name, values in options.when.items())
    return f"{searched} (with {conditions})" if conditions else searched
