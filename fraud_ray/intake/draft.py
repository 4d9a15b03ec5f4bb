"""A first configuration for data that nobody has declared yet, as a commented YAML file."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import yaml

from fraud_ray.data.keys import to_date, to_day
from fraud_ray.errors import DataError
from fraud_ray.intake.extract import Extract, open_extract
from fraud_ray.intake.facts import A_DAY, Facts, Labels, Roles, Survey, of_heads, repeats, survey
from fraud_ray.intake.guess import Guess, day_of, guess_columns, guess_roles, kept_roles, positive_of, too_many_labels
from fraud_ray.intake.plan import Reasoned, Span, plan_folds, plan_gate, plan_training
from fraud_ray.progress import Update, counted
from fraud_ray.settings import CsvSettings
from fraud_ray.settings.data import name_fault

_PREPARE: Reasoned = {
    "numeric_encodings": (["signed_log", "piecewise_linear"], "limits and ranges that decide are found in pieces"),
    "piecewise_bins": (32, "with edges at quantiles"),
}
_SECTIONS = {
    "train": "fit for the number of rows: minutes on a laptop",
    "gate": "a twentieth of the way from what needs no model, on the selection holdout, to a perfect one",
}
_CALENDAR = (True, "hour and weekday, from the timestamp")

_PLAUSIBLE = to_day(date(1990, 1, 1)), to_day(date(2100, 1, 1))
_LONGEST = 120  # of a comment
_WIDEST = 64  # of what comments stand beside: a longer line keeps its own after one space


@dataclass(frozen=True)
class Draft:
    """The columns as guessed, what could not be told, and the configuration. told: rows, frauds and days, in words."""

    guesses: tuple[Guess, ...]
    notes: tuple[str, ...]
    told: str
    text: str


def draft(path: str, name: str, root: str, label: str | None, update: Update) -> Draft:
    """Looks at all rows of the data at a path or a URI, and writes down what it takes to train on them.

    name: of the model and its experiment; root: an absolute path to store in; label: the label's column, where the user
    names it. update: gets rows done and rows in all. Raises DataError for data that cannot be read, and where nothing
    can be learnt from it: no label, one of three values, no column to read.
    """
    extract = open_extract(path)
    columns, heads = of_heads(extract)
    roles = guess_roles(columns, label)
    found = survey(extract, roles, update)
    rows = sum(extract.rows.values())
    positive = _positive(roles.label, found.columns[roles.label])
    roles, unfit = kept_roles(roles, found)
    guesses = [_checked(guess, extract) for guess in guess_columns(found, heads, roles, positive, unfit)]
    if not any(guess.kind in {"numeric", "amount", "categorical", "boolean"} for guess in guesses):
        left = "\n".join(f"  {guess.name}: {guess.why}" for guess in guesses if guess.kind is None)
        raise DataError(f"{extract.root} has no column that a model could read:\n{left}\nAdd numbers or categories.")
    of_days = found.known_days if roles.label_time else found.days if roles.timestamp else {}
    days = {d: rows for d, rows in of_days.items() if not roles.is_dated or _PLAUSIBLE[0] <= d < _PLAUSIBLE[1]}
    known_after = {} if min(found.known_after, default=0) < 0 else found.known_after
    to_the_second = roles.timestamp is not None and found.columns[roles.timestamp].sort != "day"
    plan = plan_folds(days, known_after, positive, rows, roles.label_time is not None, to_the_second)
    amount = next((guess.name for guess in guesses if guess.kind == "amount"), None)
    groups = [
        group
        for position, group in enumerate(extract.groups)
        if plan.holdout is None or _overlap(found.spans.get(position), plan.holdout)
    ]
    train, search = plan_training(plan.fit_rows)
    sections: dict[str, Reasoned] = {
        "folds": plan.folds,
        "prepare": _PREPARE | ({"calendar": _CALENDAR} if roles.timestamp and roles.is_dated else {}),
        "train": train,
        "search": search,
        "gate": plan_gate(extract, roles, amount, positive, groups, plan.holdout),
        "registry": {
            "experiment": (name, "MLflow's experiment"),
            "model_name": (f"{name}-fraud", "the model's name there"),
        },
        "storage": {"root": (root, "runs, prepared data and MLflow's store")},
    }
    labels = found.columns[roles.label].values or {}
    frauds = labels[positive].total()
    told = f"{counted(rows, 'row')} in {counted(len(extract.files), 'file')}, {counted(frauds, 'fraud')}"
    told += f" ({100 * frauds / rows:.3g} %)"
    if days:
        dates = f"{to_date(min(days))} to {to_date(max(days))}"
        told += f", {dates if roles.is_dated else counted(max(days) - min(days) + 1, 'day')}"
    notes = tuple(filter(None, [plan.note, *_untold(guesses, found, roles, days), *extract.notes]))
    return Draft(tuple(guesses), notes, told, _text(extract, guesses, notes, told, sections))


def _checked(guess: Guess, extract: Extract) -> Guess:
    """An id as guessed, if no two rows share one."""
    count = repeats(extract, guess.name) if guess.kind == "id" else 0
    if count == 0:
        return guess
    if count is None:
        return Guess(guess.name, None, "named like an id, of too many rows to tell whether each is met once")
    shared = f"named like an id, but {counted(count, 'row')} have that of another"
    return Guess(guess.name, None, f"{shared}: kind id and data.repeats: last would keep the last of each")


def _positive(label: str, facts: Facts) -> str:
    """The text of the label's value that means fraud. Raises DataError for a label that has not two values."""
    values = facts.values
    if values is None or len(values) > 2:
        raise too_many_labels(label, values)
    if len(values) < 2:
        held = f"only {next(iter(values))!r}" if values else "no value"
        raise DataError(
            f"column '{label}', the label, holds {held} in {counted(facts.rows, 'row')}: there is nothing to tell "
            "apart. Bring data with frauds, or name another column with --label"
        )
    if name_fault(label):
        raise DataError(f"column {label!r}, the label: its name {name_fault(label)}; write it under another")
    return positive_of(facts)[0] or "1"


def _overlap(one: Span | None, other: Span) -> bool:
    return one is not None and one[0] <= other[1] and other[0] <= one[1]


def _untold(guesses: Iterable[Guess], found: Survey, roles: Roles, days: Mapping[int, Labels]) -> Iterator[str]:
    """What could not be told, and what goes without it."""
    kinds = {guess.kind for guess in guesses}
    if "entity" not in kinds:
        yield "no card, account or customer (kind: entity): figures of a card are left out"
    if "amount" not in kinds:
        yield "no amount (kind: amount): figures of money are left out"
    if roles.timestamp and not found.known_after:
        yield "nothing tells when labels become known (kind: label_time): folds.delay_days is a guess"
    odd = [day for day in found.days if roles.timestamp and day not in days]
    if odd:
        rows = sum(found.days[day].total() for day in odd)
        yield (
            f"{counted(rows, 'row')} of '{roles.timestamp}' outside of 1990 to 2099, such as "
            f"{day_of(min(odd) * A_DAY)}: a time that is not known is null"
        )


def _text(
    extract: Extract, guesses: Sequence[Guess], notes: Sequence[str], told: str, sections: Mapping[str, Reasoned]
) -> str:
    """The file: comments stand beside what they are of, one under the other."""
    head = [
        f"Written by fraud-ray init: {told}.",
        "Nulls, bounds and values hold for all of these rows. Each guess has its reason beside it: mend what is wrong.",
        *(f"Note: {note}." for note in notes),
    ]
    columns = [(f"    {_flow(guess.name)}: {_flow(guess.declaration)}", guess.why) for guess in guesses if guess.kind]
    out = [(f"    # {_flow(guess.name)}", guess.why) for guess in guesses if not guess.kind]
    lines = [
        "data:",
        f"  path: {_flow(extract.root)}",
        *([f"  csv: {{{_quoted(extract.csv)}}}"] if extract.csv else []),
    ]
    lines += ["  columns:", *_aligned(columns)]
    if out:
        lines += ["    # Left out:", *_aligned(out)]
    for section, settings in sections.items():
        why = f"  # {_SECTIONS[section]}" if section in _SECTIONS else ""
        lines += [
            "",
            f"{section}:{why}",
            *_aligned([(f"  {key}: {_flow(v)}", why) for key, (v, why) in settings.items()]),
        ]
    comments = [line for text in head for line in textwrap.wrap(text, 118, subsequent_indent="  ")]
    return "\n".join([*(f"# {line}" for line in comments), "", *lines, ""])


def _quoted(csv: CsvSettings) -> str:
    """As a person would write them: JSON's quotes are YAML's."""
    return ", ".join(f"{key}: {json.dumps(value)}" for key, value in csv.model_dump().items())


def _aligned(lines: Sequence[tuple[str, str]]) -> list[str]:
    """Lines with their comments, one under the other but for lines that are too long."""
    width = max((len(line) for line, _ in lines if len(line) <= _WIDEST), default=0)
    return [f"{line:<{width}}  # {_printed(comment)}" for line, comment in lines]


def _printed(comment: str) -> str:
    """On one line, whatever the data holds that it tells of."""
    text = "".join(letter if letter.isprintable() else "?" for letter in comment)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


class _OneLine(yaml.SafeDumper):
    """Texts that would take several lines are escaped."""

    def represent_str(self, text: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_OneLine.add_representer(str, _OneLine.represent_str)


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    text = yaml.dump(value, None, _OneLine, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**9)
    return text.removesuffix("...\n").strip().replace("'true': ", "true: ")  # a key, which is text in settings
