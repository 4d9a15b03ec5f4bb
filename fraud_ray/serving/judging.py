"""Champion and challenger judged on what was served: transactions that both scored, and whose labels have come."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fraud_ray.data.kinds import Reading, typed
from fraud_ray.data.source import absolute, open_filesystem, open_source
from fraud_ray.decision.bootstrap import Predictions
from fraud_ray.decision.comparison import Comparison, compare
from fraud_ray.errors import DataError, SettingsError
from fraud_ray.model.encoder import strings
from fraud_ray.model.scorer import GraphScorer
from fraud_ray.registry.opened import open_version
from fraud_ray.registry.tracking import Tracking
from fraud_ray.registry.versions import CHALLENGER, CHAMPION, existing_model, version_of
from fraud_ray.scoring.raw import read_labels
from fraud_ray.serving.hours import answered
from fraud_ray.settings import Settings
from fraud_ray.storage import Storage
from fraud_ray.values import Value

FEW_FRAUDS = 30  # below which an interval says little, however narrow it is


@dataclass(frozen=True)
class Judged(Value):
    """Two versions on the same served transactions, each id once.

    served: transactions that both scored; labelled: those of them whose labels have come; frauds: among those.
    comparison: None without frauds or without others.
    """

    model: str
    champion: int
    challenger: int
    served: int
    labelled: int
    frauds: int
    comparison: Comparison | None

    @property
    def has_few_frauds(self) -> bool:
        return self.frauds < FEW_FRAUDS

    @property
    def is_better(self) -> bool:
        """Whether the challenger may take the champion's place."""
        return self.comparison is not None and self.comparison.is_better and not self.has_few_frauds


def judge(settings: Settings, tracking: Tracking, storage: Storage, served: str, labels: str | None) -> Judged:
    """Compares the versions that hold the aliases champion and challenger now, as retraining compares two models.

    served: folder or URI of what was answered, as serving or `fraud-ray score` writes it; labels: of labels by id, as
    `fraud-ray score` takes them; None: they stand in a column beside the answers. Raises SettingsError where there is
    no challenger, and DataError where both have scored nothing.
    """
    aliases, name = existing_model(tracking).aliases, tracking.registry.model_name
    for alias in (CHAMPION, CHALLENGER):
        if alias not in aliases:
            raise SettingsError(
                f"no version of {name} is {alias}; `fraud-ray retrain -c FILE` registers another version, and "
                "`fraud-ray models promote VERSION` makes one champion"
            )
    champion, challenger = aliases[CHAMPION], aliases[CHALLENGER]
    rows = _scored_by_both(settings, absolute(served), f"{name}/{champion}", f"{name}/{challenger}")
    labelled = _with_labels(rows, settings, labels)
    fraud: npt.NDArray[np.int8] = labelled["label"].to_numpy()
    comparison = None
    if fraud.any() and not fraud.all():
        scores = (labelled["probability"].to_numpy(), labelled["shadow_probability"].to_numpy())
        stays, comes = (
            Predictions(score, _threshold(tracking, storage, version))
            for score, version in zip(scores, (champion, challenger), strict=True)
        )
        comparison = compare(comes, stays, champion, fraud, _entities(labelled), settings)
    return Judged(name, champion, challenger, rows.num_rows, len(fraud), int(fraud.sum()), comparison)


def _scored_by_both(settings: Settings, root: str, champion: str, challenger: str) -> pa.Table:
    """id, entity and label where they are there, probability and shadow_probability of what both scored, by id once."""
    data = settings.raw_data
    id, entity = data.of_kind("id"), data.of_kind("entity")
    if id is None:
        raise DataError("labels come by id; declare a column of kind 'id' under data.columns")
    renamed = {id: "id", data.label: "label", **({entity: "entity"} if entity else {})}
    kinds = {name: Reading.declared(data.columns[name]) for name in (id, data.label)}
    made = ("probability", "model_version", "shadow_probability", "shadow_version")
    filesystem, base = open_filesystem(root)
    seen: Counter[tuple[str, str]] = Counter()
    tables = []
    for name in answered(root):
        with filesystem.open_input_file(f"{base}/{name}") as opened:
            file = pq.ParquetFile(opened, page_checksum_verification=True)
            if not {id, *made} <= set(file.schema_arrow.names):
                continue
            table = file.read([one for one in (*renamed, *made) if one in file.schema_arrow.names])
        pairs = table.group_by(["model_version", "shadow_version"]).aggregate([([], "count_all")]).to_pylist()
        seen.update({(pair["model_version"], pair["shadow_version"]): pair["count_all"] for pair in pairs})
        both = pc.and_(pc.equal(table["model_version"], champion), pc.equal(table["shadow_version"], challenger))
        table = table.filter(both)
        read = typed(table, {}, kinds)
        columns = {"id": strings(read[id])}
        columns["label"] = read[data.label] if data.label in read.column_names else pa.nulls(len(read), pa.int8())
        if entity:
            known = entity in table.column_names
            columns["entity"] = strings(table[entity]) if known else pa.nulls(len(table), pa.string())
        columns |= {name: pc.cast(table[name], pa.float32()) for name in made if name.endswith("probability")}
        tables.append(pa.table(columns))
    found = pa.concat_tables(tables) if tables else None
    if found is None or not found.num_rows:
        raise DataError(_what_was_served(root, champion, challenger, seen))
    found = found.filter(pc.is_valid(found["id"]))
    found = found.append_column("at", pa.array(range(found.num_rows), pa.int64()))
    first = found.group_by("id").aggregate([("at", "min")]).sort_by("at_min")["at_min"]
    return found.take(first).drop(["at"])


def _what_was_served(root: str, champion: str, challenger: str, seen: Counter[tuple[str, str]]) -> str:
    pairs = (f"{rows:,} of {one} {f'with {other}' if other else 'alone'}" for (one, other), rows in seen.most_common(5))
    there = "; ".join(pairs) or "nothing that serving wrote"
    return (
        f"{root} holds no transaction that {champion} answered and {challenger} scored in the shadow, but {there}; set "
        "serving.shadow: challenger and let `fraud-ray serve` answer for a while, or name another folder with --served"
    )


def _with_labels(rows: pa.Table, settings: Settings, labels: str | None) -> pa.Table:
    """The rows whose labels have come, with them as `label`."""
    if labels is not None:
        data = settings.raw_data.model_copy(update={"path": absolute(labels)})
        read = read_labels(open_source(data), data)
        read = pa.table({"id": strings(read["id"]), "label": read["label"]}).filter(pc.is_valid(read["label"]))
        known = read.group_by("id", use_threads=False).aggregate([("label", "last")]).rename_columns(["id", "label"])
        rows = rows.drop(["label"]).join(known, "id", join_type="left outer").sort_by("id")
    return rows.filter(pc.is_valid(rows["label"]))


def _entities(rows: pa.Table) -> npt.NDArray[np.int64] | None:
    """A number for each entity, (rows,), one of its own for a row that has none; None where none is known."""
    if "entity" not in rows.column_names or rows["entity"].null_count == rows.num_rows:
        return None
    codes = pc.cast(rows["entity"].combine_chunks().dictionary_encode().indices, pa.int64())
    alone = pa.array(-1 - np.arange(rows.num_rows, dtype=np.int64))
    found: npt.NDArray[np.int64] = pc.if_else(pc.is_valid(codes), codes, alone).to_numpy(zero_copy_only=False)
    return found


def _threshold(tracking: Tracking, storage: Storage, version: int) -> float:
    with tempfile.TemporaryDirectory() as scratch:
        opened = open_version(tracking, version_of(tracking, version)[0], storage, Path(scratch))
        return GraphScorer(opened.graph).threshold
