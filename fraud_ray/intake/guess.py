"""What a column is, by its name and by what it holds, and why: each guess with its reason."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from fraud_ray.data.kinds import A_SECOND, YES
from fraud_ray.errors import DataError
from fraud_ray.intake.facts import A_DAY, MOST_VALUES, Facts, Labels, Roles, Survey
from fraud_ray.progress import counted
from fraud_ray.settings.data import is_written, name_fault

MOST_UNLABELLED = 0.01  # of a day's rows, so that its labels count as known: as folds count it
LISTED_VALUES, LISTED_LETTERS = 12, 48  # a contract names the values of a category that has at most as many
FEWEST_GROUPS = 5  # of files, for a column to be told to go on with time
ROWS_A_CATEGORY = 20  # as `prepare.min_category_rows` by default: with fewer, none would have a code of its own

# What names of columns tell: _FRAUD anywhere in the name, the others as one of its words.
_FRAUD = re.compile("fraud|betrug|fraude|frode|scam|chargeback|dispute")
_LABEL = re.compile("labels?|target|class|outcome|flag|y")
_NO_LABEL = re.compile("type|score|prob|probability|scenario|rule|reason|code|amount|at|time|date")
_TIME = re.compile("timestamp|time|datetime|ts|at|date|day|zeit|datum|zeitpunkt|when|booked|epoch|unix")
_CLOCK = re.compile("time|timestamp|ts|dt|seconds|secs|elapsed|transaction|tx")
_KNOWN = re.compile("label|labell?ed|report|reported|confirmed|known|investigated|gemeldet")
_OTHER_TIME = re.compile("valid|expir(y|es)|birth|open(ed|ing)|since|updated|loaded|ingested")
_DATE_PART = re.compile("year|month|day|week|quarter|date|dt|jahr|monat|tag")
_ID = re.compile("ids?|no|nr|num|number|nummer|hash|token|key|ref|reference|uuid|guid")
_OWN_ID = re.compile("transaction|tx|txn|trx|trans|payment|event|row|record|uuid|guid|buchung")
_CODE = re.compile("code|mcc|type|category|cat|zip|plz|postcode|country|currency|region|channel|bin")
_AMOUNTS = ("amount", "betrag", "montant", "importe", "bedrag", "amt", "umsatz", "value", "price", "total", "sum")
_ENTITIES = ("card", "pan", "karte", "account", "acct", "iban", "konto", "customer", "client", "kunde", "user")
_KNOWN_AT = "the time when the label became known"
_YES = (*YES, "x")
_NO = ("n", "no", "f", "false", "nein", "0", "0.0", "non")
_ISO = re.compile(r"\d{4}-\d\d-\d\d([ T]\d\d:\d\d.*)?$")
_DATE = re.compile(r"\d{1,2}[./]\d{1,2}[./]\d{2,4}\b")
_NUMBER = re.compile(r"-?\d[\d.,' ]*$")


@dataclass(frozen=True)
class Guess:
    """How a column is declared, and why; kind None: it is left out. keys: what stands beside the kind."""

    name: str
    kind: str | None
    why: str
    keys: Mapping[str, Any] = field(default_factory=dict)

    @property
    def declaration(self) -> dict[str, Any]:
        return {"kind": self.kind, **self.keys}


def guess_roles(columns: Mapping[str, Facts], label: str | None) -> Roles:
    """Label and times by the first rows of some files. label: the column that the user names, if any.

    Raises DataError where no column can be the label: what could be one, and what to write.
    """
    chosen = label or _label_of(columns)
    if chosen not in columns:
        raise DataError(f"--label {chosen}: there is no such column; there are {', '.join(columns)}")
    times = {name: unit for name, facts in columns.items() for unit in [_unit_of(name, facts)] if unit is not None}
    known = [name for name in times if name != chosen and (_has(name, _KNOWN) or _FRAUD.search(name.lower()))]
    known = known if len(times) > len(known) else []  # the only time is that of the transaction
    own = sorted((name for name in times if name not in known), key=lambda name: _time_rank(name, columns[name]))
    timestamp, label_time = next(iter(own), None), next(iter(known), None)
    running = next((name for name, facts in columns.items() if name != chosen and _may_run(name, facts)), None)
    if timestamp is None and running is not None:
        return Roles(chosen, running, "s", is_dated=False)
    return Roles(
        chosen,
        timestamp,
        (timestamp and times[timestamp]) or None,
        label_time,
        (label_time and times[label_time]) or None,
    )


def _label_of(columns: Mapping[str, Facts]) -> str:
    def rank(name: str) -> int:
        if _has(name, _NO_LABEL):
            return 0
        return 2 if _FRAUD.search(name.lower()) else int(_has(name, _LABEL))

    def values(name: str) -> int:
        held = columns[name].values
        return MOST_VALUES + 1 if held is None or columns[name].sort in {"time", "day"} else len(held)

    named = sorted(
        (name for name in columns if rank(name)),
        key=lambda name: (values(name) != 2, -rank(name), columns[name].missing.total() > 0),
    )
    fits = [name for name in named if 1 <= values(name) <= 2]  # where fraud is rare, the first rows may hold none
    if fits:
        return fits[0]
    several = next((name for name in named if 2 < values(name) <= LISTED_VALUES), None)
    if several:
        raise too_many_labels(several, columns[several].values)
    two = [name for name in columns if values(name) == 2]
    found = f"these columns hold two values: {', '.join(two)}" if two else "and no column holds two values"
    raise DataError(
        f"no label found: no column is named like one (fraud, label, chargeback, target), {found}. "
        + ("Name the one that says whether a row is fraud" if two else "Join the labels to the transactions, and name")
        + (f" with --label, such as --label {two[0]}" if two else " their column with --label")
    )


def too_many_labels(name: str, values: Mapping[str, Labels] | None) -> DataError:
    """The fault of a label that has more values than two, or more than are told apart (None)."""
    shown = [f"{value!r} in {counted(rows.total(), 'row')}" for value, rows in sorted((values or {}).items())]
    told = f": {', '.join(shown[:LISTED_VALUES])}" if shown else ""
    return DataError(
        f"column '{name}', the label, holds {len(shown) or f'more than {MOST_VALUES}'} values{told}; a label has two. "
        "Write it with two, leave out the rows that are neither fraud nor legitimate, or name another with --label"
    )


def _unit_of(name: str, facts: Facts) -> str | None:
    """The unit of times that are whole numbers, '' of those that need none, None for what is no time."""
    if facts.sort in {"time", "day"}:
        return ""
    if facts.sort != "whole" or not (_has(name, _TIME) or "time" in name.lower()):
        return None
    if facts.low is None or facts.high is None:
        return None
    years = datetime(2000, 1, 1, tzinfo=UTC).timestamp(), datetime(2100, 1, 1, tzinfo=UTC).timestamp()
    return next((u for u, n in A_SECOND.items() if years[0] * n <= facts.low and facts.high < years[1] * n), None)


def _may_run(name: str, facts: Facts) -> bool:
    """Whether numbers are named like a clock that runs from the beginning of the data, in seconds."""
    is_number = facts.sort in {"whole", "number"} and facts.low is not None and facts.low >= 0
    return is_number and all(map(_CLOCK.fullmatch, _words(name)))


def _time_rank(name: str, facts: Facts) -> tuple[Any, ...]:
    return _has(name, _OTHER_TIME), facts.missing.total() > 0, not _has(name, _TIME), facts.sort == "day"


def positive_of(facts: Facts) -> tuple[str | None, str]:
    """Which of two values means 1, None where it is the number 1; and why."""
    values = facts.values or {}
    texts = sorted(values)
    if set(texts) <= {"0", "1"} and facts.sort != "text":
        return None, ""
    yes = [text for text in texts if text.strip().lower() in _YES]
    no = [text for text in texts if text.strip().lower() in _NO]
    if len(yes) == 1 and (len(no) == 1 or len(texts) == 1):
        return yes[0], ""
    fraud = [text for text in texts if _FRAUD.search(text.lower()) and not re.match(r"no|kein", text.lower())]
    if len(fraud) == 1:
        return fraud[0], ""
    rarer = min(texts, key=lambda text: values[text].total())
    return rarer, f"{rarer!r} is the rarer value"


def kept_roles(roles: Roles, found: Survey) -> tuple[Roles, dict[str, str]]:
    """The roles that all rows bear out, and why the others are none."""
    unfit: dict[str, str] = {}
    if roles.timestamp and name_fault(roles.timestamp):
        unfit[roles.timestamp] = f"its name {name_fault(roles.timestamp)}: write it under another"
    elif roles.timestamp and not roles.is_dated and not _exceeds_a_day(found.columns[roles.timestamp]):
        unfit[roles.timestamp] = "named like a clock, but it does not run for a day: a time of day, or a duration?"
    elif roles.timestamp and roles.is_dated and found.columns[roles.timestamp].sort not in {"time", "day", "whole"}:
        unfit[roles.timestamp] = "named like the time of the transaction, but not all of its values are times"
    elif roles.label_time and min(found.known_after, default=0) < 0:
        unfit[roles.label_time] = "some are before the transaction: no time at which its label became known"
    elif roles.label_time and not any(
        rows[None] <= MOST_UNLABELLED * rows.total() for rows in found.known_days.values()
    ):
        missing = found.columns[roles.label_time].missing
        lack = f"{counted(missing.total() - missing[None], 'row')} with a label lack it"
        unfit[roles.label_time] = (
            f"named like {_KNOWN_AT}, but {lack}: kind label_time needs it of legitimate ones, too"
        )
    if roles.timestamp in unfit:
        return Roles(roles.label), unfit
    return (replace(roles, label_time=None) if unfit else roles), unfit


def _exceeds_a_day(facts: Facts) -> bool:
    return facts.low is not None and facts.high is not None and facts.high - facts.low > A_DAY


def guess_columns(
    found: Survey, heads: Mapping[str, Sequence[object]], roles: Roles, positive: str, unfit: Mapping[str, str]
) -> list[Guess]:
    """A guess a column, in their order. heads: values of the first rows of some files; positive: the label's, of fraud;
    unfit: columns that are left out anyway, and why.

    The first of the best names is the amount, the entity and the id; there is one of each.
    """
    columns = found.columns
    labels = sum((columns[roles.label].values or {}).values(), columns[roles.label].missing.copy())

    def best(rank: Callable[[str, Facts, Sequence[object]], int]) -> str | None:
        ranked = {n: rank(n, facts, heads.get(n, ())) for n, facts in columns.items() if n not in fixed}
        return max((n for n in ranked if ranked[n]), key=lambda n: ranked[n], default=None)

    fixed = {roles.label, roles.timestamp, roles.label_time, *unfit}
    amount = best(_amount_rank)
    fixed.add(amount)
    entity = best(_entity_rank)
    fixed.add(entity)
    named = {amount: "amount", entity: "entity", best(_id_rank): "id"}

    def guess(name: str, facts: Facts) -> Guess:
        if name == roles.label:
            return _label(name, facts)
        if name in {roles.timestamp, roles.label_time}:
            return _time(name, facts, roles)
        why = unfit.get(name) or _left_out(name, facts, positive, labels)
        if not why and name not in named and _goes_on(found.bounds.get(name, ())):
            why = "goes on with time: days to come hold values that no row here has"
        if why:
            return Guess(name, None, why)
        nulls = {"nulls": True} if facts.missing.total() else {}
        kind = named.get(name)
        if kind == "amount":
            return Guess(name, kind, f"named like an amount; {_range(facts)}", {**_bounds(facts), **nulls})
        if kind == "entity":
            return Guess(name, kind, "named like a card, account or customer; its values come again", nulls)
        if kind == "id":
            return Guess(name, kind, "named like an id; each value is met once", nulls)
        return _feature(name, facts, heads.get(name, ()), nulls)

    return [guess(name, facts) for name, facts in columns.items()]


def _goes_on(bounds: Sequence[tuple[float, float]]) -> bool:
    """Whether numbers grow from one group of files to the next, as a clock or a running number does."""
    rises = all(before[1] <= after[0] for before, after in pairwise(bounds))
    return len(bounds) >= FEWEST_GROUPS and rises and bounds[0][0] < bounds[-1][1]


def _label(name: str, facts: Facts) -> Guess:
    values = facts.values or {}
    one, why = positive_of(facts)
    shown = ", ".join(f"{value} in {rows.total():,}" for value, rows in sorted(values.items()))
    missing = f"; not known of {counted(facts.missing.total(), 'row')}" if facts.missing.total() else ""
    keys = {} if one is None else {"positive": one}
    return Guess(name, "label", "; ".join(filter(None, [f"{shown} rows{missing}", why])), keys)


def _time(name: str, facts: Facts, roles: Roles) -> Guess:
    is_own = name == roles.timestamp
    unit = roles.unit if is_own else roles.label_unit
    why = "when the transaction was" if is_own else f"named like {_KNOWN_AT}"
    if is_own and not roles.is_dated:
        why += f", from an unknown start: {_range(facts)}"
    nulls = is_own and facts.missing.total()  # of a label that is not known yet, there is none
    since = {} if roles.is_dated or not is_own else {"since": "start"}
    keys = {**({"unit": unit} if unit else {}), **since, **({"nulls": True} if nulls else {})}
    return Guess(name, "timestamp" if is_own else "label_time", why, keys)


def _left_out(name: str, facts: Facts, positive: str, labels: Labels) -> str | None:
    """Why a column is of no use, or would tell the label; None where neither is so."""
    fault = name_fault(name) or ("is that of a column which scoring writes" if is_written(name) else None)
    if fault:
        return f"its name {fault}: write it under another"
    if facts.sort == "nothing" or not facts.present:
        return "no row has a value"
    if facts.sort in {"time", "day"}:
        return f"a further time: the model reads none; {_range(facts)}"
    if facts.sort not in {"whole", "number", "boolean", "text"}:
        kinds = sorted(facts.types.items())
        if len(kinds) > 1:
            return "; ".join(f"{kind} in {file}" for kind, file in kinds) + ": write one type in all"
        if "binary" in facts.types:
            return "bytes, or text that is no UTF-8"
        return f"of type {facts.sort}, which no kind is for"
    if facts.infinite:
        return f"{counted(facts.infinite, 'row')} infinite: a number must be finite"
    values = facts.values
    if values is not None and len(values) == 1 and not facts.missing.total():
        return f"one value in all rows: {next(iter(values))}"
    if _tells_label(facts, positive, labels):
        return "tells the label of each row for sure: is it known when the transaction is?"
    if _DATE_PART.fullmatch(name.lower()):
        return "a part of the date, which days to come do not share"
    if _FRAUD.search(name.lower()):
        return "its name speaks of fraud: it may hold what is known only later"
    if facts.sort == "whole" and max(abs(facts.low or 0), abs(facts.high or 0)) >= 2.0**53 and values is None:
        return "whole numbers beyond 2^53, which a float64 would round: an identifier?"
    return None


def _tells_label(facts: Facts, positive: str, labels: Labels) -> bool:
    """Whether each value of a column, or that it has one, says for sure what the label is. labels: all rows."""
    legitimate = labels.total() - labels[None] - labels[positive]
    missing_frauds = facts.missing[positive]
    missing_others = facts.missing.total() - facts.missing[None] - missing_frauds
    if (missing_frauds, missing_others) in {(0, legitimate), (labels[positive], 0)} and legitimate and labels[positive]:
        return True
    groups = [rows for rows in (*(facts.values or {}).values(), facts.missing) if rows.total() > rows[None]]
    is_pure = all(rows[positive] in (0, rows.total() - rows[None]) for rows in groups)
    return facts.values is not None and is_pure and facts.rows >= ROWS_A_CATEGORY * len(groups)


def _feature(name: str, facts: Facts, head: Sequence[object], nulls: Mapping[str, Any]) -> Guess:
    values = facts.values
    if values is not None and facts.sort != "text" and set(values) <= {"0", "1"}:
        return Guess(name, "boolean", "0 and 1 only" if facts.sort != "boolean" else "true and false", nulls)
    if values is not None and {value.strip().lower() for value in values} <= {*_YES, *_NO} and len(values) == 2:
        one, _ = positive_of(facts)
        return Guess(
            name, "boolean", f"two values: {', '.join(sorted(values))}", {**({"true": one} if one else {}), **nulls}
        )
    is_name = _has(name, _CODE) or _has(name, _ID) or _is_unique(facts, head)
    if facts.sort in {"whole", "number"} and not (facts.sort == "whole" and is_name):
        return Guess(name, "numeric", _range(facts), {**_bounds(facts), **nulls})
    what = "text" if facts.sort == "text" else "whole numbers that name something"
    if values is None or len(values) * ROWS_A_CATEGORY > facts.present:
        few = f"more than {MOST_VALUES:,} values" if values is None else f"{len(values):,} values in as few rows"
        several = "another value in each row" if _is_unique(facts, head) else few
        return Guess(name, None, f"{what}, {several}: too many for a category{_hint(head)}")
    is_short = len(values) <= LISTED_VALUES and sum(map(len, values)) <= LISTED_LETTERS
    keys = {"values": sorted(values), **nulls} if is_short else nulls
    return Guess(name, "categorical", f"{what}, {counted(len(values), 'value')}", keys)


def _hint(head: Sequence[object]) -> str:
    """What texts would be if they were written as such."""
    texts = [value for value in head if isinstance(value, str)][:1_000]
    for pattern, told in ((_ISO, "times"), (_DATE, "dates"), (_NUMBER, "numbers")):
        if texts and all(pattern.match(text) for text in texts):
            return f". They look like {told}, such as {texts[0]!r}: write them as such"
    return ""


def _bounds(facts: Facts) -> dict[str, Any]:
    """Bounds that mean something, where all rows keep them: the observed range would refuse next month's rows."""
    if facts.low is None or facts.low < 0 or facts.high is None:
        return {}
    return {"min": 0, "max": 1} if facts.high <= 1 and facts.sort == "number" else {"min": 0}


def _range(facts: Facts) -> str:
    if facts.low is None or facts.high is None:
        return ""
    if facts.sort in {"time", "day"}:
        return " to ".join(day_of(bound / 1e6) for bound in (facts.low, facts.high))
    return f"{facts.low:,.6g} to {facts.high:,.6g}"


def day_of(seconds: float) -> str:
    """The day of a time in seconds since 1970; of one that no calendar here has, only that."""
    try:
        return datetime.fromtimestamp(seconds, UTC).date().isoformat()
    except (OverflowError, ValueError, OSError):
        return "beyond the year 9999" if seconds > 0 else "before the year 1"


def _amount_rank(name: str, facts: Facts, head: Sequence[object]) -> int:
    if facts.sort not in {"whole", "number"} or _has(name, _ID) or _has(name, _CODE):
        return 0
    return _place(name, _AMOUNTS)


def _entity_rank(name: str, facts: Facts, head: Sequence[object]) -> int:
    comes_again = 2 < len(set(head)) < len(head)
    is_key = (_is_key(name) or len(_words(name)) == 1) and facts.sort in {"whole", "text"}
    return _place(name, _ENTITIES) if is_key and comes_again else 0


def _id_rank(name: str, facts: Facts, head: Sequence[object]) -> int:
    if not _is_unique(facts, head) or not _is_key(name):
        return 0
    return 2 if _has(name, _OWN_ID) else 1


def _is_unique(facts: Facts, head: Sequence[object]) -> bool:
    """Whether whole numbers or texts are others in each row, as far as the first rows tell."""
    is_repeated = len(set(head)) < len(head) or (facts.values is not None and len(facts.values) < facts.present)
    return facts.sort in {"whole", "text"} and not is_repeated and len(head) > LISTED_VALUES


def _is_key(name: str) -> bool:
    return _has(name, _ID) or _has(name, _OWN_ID) or name.lower().endswith(("id", "nr", "nummer", "number", "no"))


def _place(name: str, stems: Sequence[str]) -> int:
    """How early the first of the stems comes that a name holds; 0 for none."""
    return next((len(stems) - place for place, stem in enumerate(stems) if stem in name.lower()), 0)


def _has(name: str, words: re.Pattern[str]) -> bool:
    return any(map(words.fullmatch, _words(name)))


def _words(name: str) -> set[str]:
    """The words of a name, in lower case: of isFraud, TX_FRAUD, card-id."""
    return {word.lower() for word in re.findall(r"[A-ZÄÖÜ]+(?![a-zäöü])|[A-ZÄÖÜ]?[a-zäöüß]+|\d+", name)}
