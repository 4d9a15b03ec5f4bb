"""Prepared rows: the arrays that preparing writes, and that training and evaluation read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fraud_ray.model.encoder import Encoder
from fraud_ray.model.profile import Profile
from fraud_ray.progress import counted
from fraud_ray.storage import Storage

Array = npt.NDArray[np.generic]

# The roles that are carried beside features, codes and label, where the data declares them.
ROLES = ("id", "timestamp", "entity", "amount", "true_probability")

# What the names of carried columns begin with: roles, columns of slices, feature columns as the partitions hold them.
ROLE, SLICE, RAW = "role:", "slice:", "raw:"

_NOUNS = {
    "numeric": ("number",),
    "categorical": ("category", "categories"),
    "boolean": ("boolean",),
    "timestamp": ("timestamp",),
}


@dataclass(frozen=True)
class Part:
    """One stored block of rows: its key in the storage, its rows, its frauds, and what its bytes must hash to."""

    key: str
    rows: int
    frauds: int
    size: int
    sha256: str


@dataclass(frozen=True)
class RowSet:
    """The parts of one side of a fold, in order."""

    parts: tuple[Part, ...]

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def frauds(self) -> int:
        return sum(part.frauds for part in self.parts)

    @property
    def size(self) -> int:
        """Bytes as stored, which is about what the arrays take in memory."""
        return sum(part.size for part in self.parts)


@dataclass(frozen=True)
class PreparedFold:
    """A fold whose rows are encoded by an encoder fitted on its fit rows. span: its dates or shares, in words.

    profile: of the fit rows; of the final fold alone, whose model is kept.
    """

    name: str
    span: str
    encoder: Encoder
    fit: RowSet
    holdout: RowSet
    profile: Profile | None = None

    @property
    def reads(self) -> str:
        """The columns that the model reads, as they are declared, and as how many features they enter the network.

        A feature a number, and one a category: `6 columns: 3 numbers, 3 categories, as 41 features`.
        """
        encoder = self.encoder
        kinds = Counter(column.kind for column in encoder.columns)
        told = [counted(kinds[kind], *noun) for kind, noun in _NOUNS.items() if kinds[kind]]
        ratios = [counted(len(encoder.ratios), "ratio of them", "ratios of them")] if encoder.ratios else []
        features = len(encoder.feature_names) + sum(encoder.code_sizes)
        columns = counted(len(encoder.columns), "column")
        return f"{columns}: {', '.join([*told, *ratios])}, as {counted(features, 'feature')}"


@dataclass(frozen=True)
class Rows:
    """Arrays of the same n rows.

    features: float32 (n, F); codes: int32 (n, C); label: int8 (n,), 0 or 1; roles: by name from ROLES, each (n,),
    timestamp as datetime64[us]; slices: by column name, each (n,) of str objects.
    """

    features: npt.NDArray[np.float32]
    codes: npt.NDArray[np.int32]
    label: npt.NDArray[np.int8]
    roles: dict[str, Array] = field(default_factory=dict)
    slices: dict[str, Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.label)


def to_table(
    features: npt.NDArray[np.float32],
    codes: npt.NDArray[np.int32],
    label: npt.NDArray[np.int8],
    carried: Mapping[str, pa.Array | pa.ChunkedArray],
) -> pa.Table:
    """The Arrow table that a part is stored as. carried: columns (n,) by name, which begins with ROLE, SLICE or RAW."""
    encoded = {
        "features": _fixed(features, pa.float32()),
        "codes": _fixed(codes, pa.int32()),
        "label": pa.array(label, pa.int8()),
    }
    return pa.table({**encoded, **carried})


def serialize(table: pa.Table) -> memoryview:
    """A part's bytes: the Arrow IPC file format, uncompressed, so that a reader can map it."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return memoryview(sink.getvalue()).cast("B")


def read_part(storage: Storage, part: Part) -> pa.Table:
    """One part as an Arrow table; a local part is mapped, not copied."""
    source = pa.memory_map(storage.path(part.key)) if storage.is_local else pa.BufferReader(storage.get(part.key))
    return pa.ipc.open_file(source).read_all()


def load(storage: Storage, rows: RowSet, with_roles: bool = False) -> Rows:
    """All parts as contiguous arrays; roles and slices only when asked for."""
    return from_tables([read_part(storage, part) for part in rows.parts], with_roles)


def raw_table(storage: Storage, rows: RowSet) -> pa.Table:
    """The feature columns as the partitions hold them, which holdout parts carry for models with other encoders."""
    table = pa.concat_tables([read_part(storage, part) for part in rows.parts])
    names = [name for name in table.column_names if name.startswith(RAW)]
    return table.select(names).rename_columns([name.removeprefix(RAW) for name in names])


def from_tables(tables: Iterable[pa.Table], with_roles: bool = False) -> Rows:
    """The arrays of tables as `to_table` made them, one after the other."""
    carried_prefixes = (ROLE, SLICE) if with_roles else ()
    needed = ("features", "codes", "label")
    table = pa.concat_tables(
        [t.select([c for c in t.column_names if c in needed or c.startswith(carried_prefixes)]) for t in tables]
    )
    carried = table.column_names

    def named(prefix: str) -> dict[str, Array]:
        return {c.removeprefix(prefix): table[c].to_numpy() for c in carried if c.startswith(prefix)}

    return Rows(
        features=matrix(table["features"]),
        codes=matrix(table["codes"]),
        label=table["label"].to_numpy(),
        roles=named(ROLE),
        slices=named(SLICE),
    )


def matrix(column: pa.ChunkedArray) -> Any:
    """A fixed-size-list column as an array of shape (rows, width); no copy where it is one chunk."""
    width = column.type.list_size
    chunks = [chunk.flatten().to_numpy().reshape(len(chunk), width) for chunk in column.chunks if len(chunk)]
    if len(chunks) == 1:
        return chunks[0]
    return np.concatenate(chunks) if chunks else np.empty((0, width), column.type.value_type.to_pandas_dtype())


def _fixed(values: Array, kind: pa.DataType) -> pa.Array:
    count, width = values.shape
    if width == 0:
        return pa.FixedSizeListArray.from_buffers(pa.list_(kind, 0), count, [None], children=[pa.array([], kind)])
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1), kind), width)
