"""Proof that serving gives what batch scoring gives: partitions are replayed, and every value is compared.

Transactions go to an endpoint in the order of time, labels when they become known, at most an hour before they count;
what comes back is held against batch scoring of the same partitions: each window column, and the probability, to the
bit.
"""

from __future__ import annotations

import http.client
import itertools
import json
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fraud_ray.cluster import join_unless_few
from fraud_ray.data.kinds import Reading
from fraud_ray.data.listing import parquet_name
from fraud_ray.data.source import Source, list_partitions, open_source, read_partition, table_name
from fraud_ray.errors import DataError, ServerError, SettingsError
from fraud_ray.progress import Progress, Update
from fraud_ray.scoring.partitions import Model, score_partitions
from fraud_ray.settings import ClusterSettings, DataSettings
from fraud_ray.storage import Storage
from fraud_ray.values import Value
from fraud_ray.windows.definition import DAY, Definition
from fraud_ray.windows.state import add_windows

PROBABILITY = "probability"
_MOST_TRANSACTIONS = 200  # of a request
_EARLY = DAY // 24  # that a label is told before it counts, so that a request holds several
_PATIENCE_S = 60.0  # for which an endpoint may be away
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Expected:
    """Transactions in the order of time, and what batch scoring makes of them.

    sent: as JSON has them; times: microseconds since 1970, (rows,); values: window columns and probability, (rows,);
    labels: when each becomes known, of which transaction, and what is said then, in the order of time.
    """

    sent: list[dict[str, Any]]
    times: list[int]
    values: Mapping[str, Float32]
    labels: list[tuple[int, int, dict[str, Any]]]


@dataclass(frozen=True)
class Difference(Value):
    """One value that differs. transaction: as it was sent; None: NaN, there is none."""

    column: str
    batch: float | None
    online: float | None
    transaction: dict[str, Any]


@dataclass(frozen=True)
class Equality(Value):
    """What was compared, and how much of it differs; first: the first that does. again: requests that were repeated."""

    transactions: int
    labels: int
    values: int
    differing: int
    first: Difference | None
    again: int
    seconds: float


def expect(
    model: Model,
    source: Source,
    data: DataSettings,
    names: Sequence[str],
    scratch: Path,
    cluster: ClusterSettings,
    update: Update,
    progress: Progress | None = None,
) -> Expected:
    """What batch scoring makes of partitions, from no past. names: the columns that a transaction is sent with."""
    definition = Definition.from_json(model.windows["definition"]) if model.windows else None
    storage, output = Storage.at(str(scratch / "windows")), str(scratch / "scored")
    with join_unless_few(cluster, source.rows, progress):
        root = add_windows(source, definition, storage, update).root if definition else source.root
        score_partitions(model, root, output, cluster, update, progress, data.csv)
    computed = [*(definition.names if definition else ()), PROBABILITY]
    told = definition.labels if definition else ()
    raw, found = [], []
    for partition in source.partitions:
        if partition.rows:
            raw.append(read_partition(source.root, partition, data, [*dict.fromkeys([*names, *told])]))
            written = f"{output}/{parquet_name(table_name(source.root, partition.shown))}"
            found.append(pq.read_table(written, columns=computed, partitioning=None))
    return _in_time(pa.concat_tables(raw), pa.concat_tables(found), data, names, definition)


def first_partitions(data: DataSettings, rows: int | None) -> Source:
    """The first partitions that hold so many rows together; all by default."""
    source = open_source(data)
    if rows is None:
        return source
    held = itertools.accumulate((partition.rows for partition in source.partitions), initial=0)
    wanted = [p.shown for p, before in zip(source.partitions, held, strict=False) if before < rows]
    files = list_partitions(source.root).files
    return open_source(data, {name: files[name] for name in wanted})


def replay(expected: Expected, endpoint: Endpoint, update: Update) -> Equality:
    """Sends it all, and compares. Raises ServerError where nothing answers, and DataError for what is refused."""
    began, total = time.monotonic(), len(expected.sent)
    differing, compared, told, first = 0, 0, 0, None
    for begin, end, labels in _steps(expected):
        for some in _batches(labels):
            endpoint.post("/labels", {"labels": some})
        told += len(labels)
        scores = endpoint.post("/score?columns=true", {"transactions": expected.sent[begin:end]})["scores"]
        for row, score in zip(range(begin, end), scores, strict=True):
            online = {**score.get("columns", {}), PROBABILITY: score[PROBABILITY]}
            for name, values in expected.values.items():
                got = np.float32(np.nan if online[name] is None else online[name])
                compared += 1
                if got.tobytes() != values[row].tobytes() and not (np.isnan(got) and np.isnan(values[row])):
                    differing += 1
                    first = first or Difference(name, _number(values[row]), _number(got), expected.sent[row])
        update(end, total, f"{end:,} of {total:,} transactions, {differing:,} values differ")
    return Equality(total, told, compared, differing, first, endpoint.again, time.monotonic() - began)


class Endpoint:
    """Replicas that are asked in turn; one that does not answer, or cannot yet, is passed over and asked again.

    again: how many requests had to be repeated.
    """

    def __init__(self, urls: Sequence[str], token: str | None) -> None:
        """Raises SettingsError for what is no URL."""
        for url in urls:
            if urllib.parse.urlsplit(url).scheme not in {"http", "https"} or not urllib.parse.urlsplit(url).netloc:
                raise SettingsError(f"'{url}' is no URL of an endpoint; name one such as http://127.0.0.1:8000")
        self._urls = itertools.cycle([url.rstrip("/") for url in urls])
        self._token, self.again = token, 0
        self._held: dict[str, http.client.HTTPConnection] = {}

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The reply as JSON. Raises ServerError and DataError."""
        deadline, encoded = time.monotonic() + _PATIENCE_S, json.dumps(body)
        while True:
            url = next(self._urls)
            try:
                status, reply = self._request(url, path, encoded)
            except (OSError, http.client.HTTPException) as fault:
                self._held.pop(url, None)
                status, reply = 503, str(fault).encode()
            if status == 200:
                answered: dict[str, Any] = json.loads(reply)
                return answered
            if status != 503:
                raise DataError(f"{url}{path} answered {status}: {reply.decode(errors='replace')}")
            if time.monotonic() > deadline:
                raise ServerError(f"{url} has not answered for {_PATIENCE_S:g} s: {reply.decode(errors='replace')}")
            self.again += 1
            time.sleep(0.05)

    def _request(self, url: str, path: str, body: str) -> tuple[int, bytes]:
        if url not in self._held:
            where = urllib.parse.urlsplit(url)
            kind = http.client.HTTPSConnection if where.scheme == "https" else http.client.HTTPConnection
            self._held[url] = kind(where.netloc, timeout=_PATIENCE_S)
        headers = {"Content-Type": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        self._held[url].request("POST", urllib.parse.urlsplit(url).path + path, body, headers)
        response = self._held[url].getresponse()
        return response.status, response.read()


def _in_time(
    raw: pa.Table, computed: pa.Table, data: DataSettings, names: Sequence[str], definition: Definition | None
) -> Expected:
    timestamp = data.of_kind("timestamp")
    times = pc.cast(raw[timestamp], pa.int64()) if timestamp in raw.column_names else pa.array(range(len(raw)))
    order = pc.sort_indices(pa.table({"time": times}), sort_keys=[("time", "ascending")])
    raw, computed = raw.take(order), computed.take(order)
    columns = {name: _as_json(raw[name], Reading.declared(data.columns[name])) for name in names}
    sent = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    values = {name: pc.cast(computed[name], pa.float32()).to_numpy() for name in computed.column_names}
    at = pc.take(times, order).to_pylist()
    labels = sorted(_labels(raw, at, definition), key=lambda told: told[:2]) if definition else []
    return Expected(sent, at, values, labels)


def _labels(raw: pa.Table, times: Sequence[int], definition: Definition) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """What is said of which transaction, and when, in microseconds since 1970."""
    label, label_time, identifier = definition.data.label, definition.label_time, definition.data.of_kind("id")
    if identifier is None:
        return
    ids, labels = raw[identifier].to_pylist(), raw[label].to_pylist()
    delay = round(definition.windows.label_delay_days * DAY)
    known = [at + delay for at in times] if label_time is None else pc.cast(raw[label_time], pa.int64()).to_pylist()
    told_at = [None] * len(ids) if label_time is None else _as_json(raw[label_time], Reading("label_time"))
    for row, (id, fraud, at, since, said) in enumerate(zip(ids, labels, times, known, told_at, strict=True)):
        if id is not None and fraud is not None and since is not None:
            # No transaction knows its own label.
            yield max(since, at + 1), row, {identifier: id, label: fraud, **({label_time: said} if label_time else {})}


def _as_json(column: pa.ChunkedArray, reading: Reading) -> list[Any]:
    """A column as read, as JSON has it."""
    if reading.kind in {"timestamp", "label_time"}:
        return [None if text is None else f"{text}Z" for text in pc.strftime(column, "%Y-%m-%dT%H:%M:%S").to_pylist()]
    values = column.to_pylist()
    if reading.one is not None:
        return [None if value is None else reading.one if value else f"not {reading.one}" for value in values]
    return [None if value != value else value for value in values]


def _steps(expected: Expected) -> Iterator[tuple[int, int, list[dict[str, Any]]]]:
    """(first, end, what is said before it) of each request: no label becomes known between its transactions."""
    begin, told = 0, 0
    labels, times = expected.labels, expected.times
    while begin < len(times):
        due = told
        while due < len(labels) and labels[due][0] <= times[begin] + _EARLY and labels[due][1] < begin:
            due += 1
        end, until = begin + 1, labels[due][0] if due < len(labels) else None
        most = min(len(times), begin + _MOST_TRANSACTIONS)
        while end < most and (until is None or times[end] < until):
            end += 1
        yield begin, end, [said for *_, said in labels[told:due]]
        begin, told = end, due


def _batches(labels: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    for begin in range(0, len(labels), _MOST_TRANSACTIONS):
        yield labels[begin : begin + _MOST_TRANSACTIONS]


def _number(value: np.float32) -> float | None:
    return None if np.isnan(value) else float(value)
