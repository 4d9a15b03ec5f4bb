"""Data and prepared arrays that change between one step and the next: what is read is what was checked."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pyarrow import csv

from fraud_ray.data import cache
from fraud_ray.data.folds import plan_folds
from fraud_ray.data.prepare import Prepared, prepare
from fraud_ray.data.source import ChangedError, open_source, read_partition
from fraud_ray.storage import Storage
from tests.cards import card_settings, card_table, opened, write_days, write_partition
from tests.faults.test_data import PLAIN, flip, unheard

FOLDS = {"kind": "stratified", "holdout_share": 0.3, "selection_folds": 1}
CHANGED = "was changed or removed after this command had listed it; let nothing write .* run the same command again"


def named(day: int) -> str:
    return f"date=2024-01-{day:02d}/part-0.parquet"


def replaced(path: Path) -> None:
    """Other rows in a partition of the same time of change."""
    before = path.stat()
    write_partition(path.parent, path.name, card_table(seed=9))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced_by_its_size(path: Path) -> None:
    """By a file of the same size and time of change: only its footer tells."""
    before, content = path.stat(), path.read_bytes()
    path.write_bytes(content.replace(b"parquet-cpp-arrow", b"parquet-cpp-other"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def touched(path: Path) -> None:
    """Only the time tells."""
    os.utime(path, ns=(0, 0))


@pytest.mark.faults("19", "a partition is replaced between validate and prepare", "the run is refused; nothing is kept")
@pytest.mark.parametrize(
    "change",
    [replaced, *(pytest.param(one, marks=pytest.mark.quick) for one in (replaced_by_its_size, touched)), Path.unlink],
)
def test_what_is_prepared_is_what_was_fingerprinted(change, tmp_path):
    write_days(tmp_path / "data", 4)
    settings, source, census = opened(tmp_path / "data", folds=FOLDS)
    folds, storage = plan_folds(census, settings.folds), Storage.at(str(tmp_path / "root"))
    change(tmp_path / "data" / named(3))
    with pytest.raises(ChangedError, match=f"{named(3)} {CHANGED}"):
        prepare(source, folds, settings, storage, unheard)
    assert not any(key.endswith("manifest.json") for key in storage.keys("prepared"))
    if change is Path.unlink:
        return
    assert open_source(settings.data).fingerprint != source.fingerprint


def ready(tmp_path: Path) -> tuple[Callable[[], Prepared], Storage]:
    """A call that prepares four days, and its storage."""
    write_days(tmp_path / "data", 4)
    settings, source, census = opened(tmp_path / "data", folds=FOLDS)
    folds, storage = plan_folds(census, settings.folds), Storage.at(str(tmp_path / "root"))
    return lambda: prepare(source, folds, settings, storage, unheard), storage


@pytest.mark.faults("19", "a prepared manifest of another shape", "damaged: computed anew, and removed by prune")
@pytest.mark.quick
@pytest.mark.parametrize(
    "other", [{}, {"value": {}}, {"value": {"folds": []}}, {"made": "yesterday"}, {"writer": None}, {"parts": 0}]
)
def test_a_manifest_of_another_shape_is_damaged(other, tmp_path):
    start, storage = ready(tmp_path)
    manifest = f"prepared/{start().key}/manifest.json"
    value = {} if not other else storage.kept(manifest) | other
    if "parts" in other:
        for fold in value["value"]["folds"]:
            fold["fit"] = [part | {"size": 0} for part in fold["fit"]]
    storage.delete([manifest])
    storage.keep(manifest, value)
    assert cache.list_entries(storage) == []
    again = start()
    assert not again.cached
    assert again.remark.endswith("manifest.json was damaged, so it was computed anew")
    assert start().cached


@pytest.mark.faults("19", "an entry from the future, by a clock that was ahead", "goes stale, and is pruned")
@pytest.mark.quick
def test_an_entry_from_the_future_goes_stale(tmp_path):
    start, storage = ready(tmp_path)
    manifest = f"prepared/{start().key}/manifest.json"
    value = storage.kept(manifest)
    storage.delete([manifest])
    storage.keep(manifest, value | {"made": "2199-01-01T00:00:00.000+00:00"})
    again = start()
    assert (again.cached, again.remark) == (
        False,
        "computed anew, as the entry is dated 2199-01-01 00:00, by a clock that was ahead",
    )
    value = storage.kept(manifest)
    storage.delete([manifest])
    storage.keep(manifest, value | {"made": "2199-01-01T00:00:00.000+00:00"})
    assert cache.prune(storage, timedelta(days=7)).entries


in_place = pytest.mark.faults(
    "in place", "a page is edited in place, size and time kept", "noticed by data.fingerprint: content"
)


def edited(path: Path) -> None:
    before = path.stat()
    flip(path, "amount")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@in_place
@pytest.mark.quick
def test_the_fingerprint_of_content_notices_an_edit_in_place(tmp_path):
    pq.write_table(card_table(), tmp_path / "a.parquet", **PLAIN)

    def fingerprint(of: str) -> str:
        return open_source(data_of(tmp_path, of)).fingerprint

    before = {of: fingerprint(of) for of in ("footer", "content")}
    edited(tmp_path / "a.parquet")
    assert {of: fingerprint(of) == found for of, found in before.items()} == {"footer": True, "content": False}


@in_place
def test_an_edit_in_place_after_the_listing_is_refused_by_content(tmp_path):
    pq.write_table(card_table(), tmp_path / "a.parquet", **PLAIN)
    (tmp_path / "csv").mkdir()
    csv.write_csv(card_table().select(["amount", "is_fraud"]), tmp_path / "csv" / "a.csv")
    for folder, change in ((tmp_path, edited), (tmp_path / "csv", rewritten)):
        data = data_of(folder, "content", ["amount", "is_fraud"])
        source = open_source(data)
        first = source.partitions[0]
        read_partition(source.root, first, data, ["amount"])
        touched(folder / first.shown)  # the same bytes are the same data
        read_partition(source.root, first, data, ["amount"])
        change(folder / first.shown)
        with pytest.raises(ChangedError, match=CHANGED):
            read_partition(source.root, first, data, ["amount"])


def rewritten(path: Path) -> None:
    before = path.stat()
    path.write_bytes(path.read_bytes().replace(b"1", b"2"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def data_of(folder: Path, fingerprint: str, columns: list[str] | None = None) -> Any:
    data = card_settings(folder).data
    kept = {name: data.columns[name] for name in columns or data.columns}
    return data.model_copy(update={"fingerprint": fingerprint, "columns": kept})
