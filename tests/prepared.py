"""Small prepared folds for tests of training, made without Ray."""

from __future__ import annotations

import hashlib

import numpy as np

from fraud_ray.data.rows import Part, PreparedFold, Rows, RowSet, serialize, to_table
from fraud_ray.model.encoder import Encoder, FeatureColumn, NumericEncoding
from fraud_ray.storage import Storage

FEATURES = tuple("abcd")


def made_rows(count: int, seed: int = 0) -> Rows:
    """Rows whose label depends on a product of two features, so that no linear model finds it."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, len(FEATURES))).astype(np.float32)
    chance = 1 / (1 + np.exp(3 - 2.5 * features[:, 0] * features[:, 1]))
    label = (rng.random(count) < chance).astype(np.int8)
    return Rows(features, np.zeros((count, 0), np.int32), label)


def coded(rows: Rows) -> Rows:
    """The rows with two columns of codes, 0 to 2, that say nothing of the label."""
    codes = np.random.default_rng(0).integers(0, 3, (len(rows), 2)).astype(np.int32)
    return Rows(rows.features, codes, rows.label)


def stored(storage: Storage, key: str, rows: Rows, parts: int = 2) -> RowSet:
    """The rows as stored parts."""
    made = []
    for number, cut in enumerate(np.array_split(np.arange(len(rows)), parts)):
        block = Rows(rows.features[cut], rows.codes[cut], rows.label[cut])
        content = serialize(to_table(block.features, block.codes, block.label, {}))
        name = f"{key}/part-{number}.arrow"
        storage.put(name, content)
        digest = hashlib.sha256(content).hexdigest()
        made.append(Part(name, len(block), int(block.label.sum()), len(content), digest))
    return RowSet(tuple(made))


def made_fold(storage: Storage, name: str, fit_rows: int, holdout_rows: int, seed: int = 0) -> PreparedFold:
    """A prepared fold of made rows."""
    columns = tuple(FeatureColumn(feature, "numeric", ("standard",)) for feature in FEATURES)
    encoder = Encoder(columns, tuple(NumericEncoding(f, "standard", 0.0, 1.0) for f in FEATURES), (), ())
    rows = made_rows(fit_rows + holdout_rows, seed)
    fit = Rows(rows.features[:fit_rows], rows.codes[:fit_rows], rows.label[:fit_rows])
    holdout = Rows(rows.features[fit_rows:], rows.codes[fit_rows:], rows.label[fit_rows:])
    return PreparedFold(
        name, "", encoder, stored(storage, f"{name}/fit", fit), stored(storage, f"{name}/holdout", holdout)
    )
