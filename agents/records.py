"""Columnar records of a run: folders of Parquet parts that only ever grow.

`pandas.read_parquet("RUN/records/episodes")` opens a whole table.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

EPISODES = pa.schema(
    [
        ("member", pa.int32()),
        ("seed", pa.int64()),
        ("step", pa.int64()),
        ("episode_return", pa.float64()),
        ("episode_length", pa.int32()),
        ("terminated", pa.bool_()),
    ]
)
STATISTICS = pa.schema(
    [
        ("member", pa.int32()),
        ("step", pa.int64()),
        ("network", pa.dictionary(pa.int16(), pa.string())),
        ("layer", pa.dictionary(pa.int16(), pa.string())),
        ("statistic", pa.dictionary(pa.int16(), pa.string())),
        ("value", pa.float64()),
    ]
)
EVENTS = pa.schema(
    [
        ("member", pa.int32()),
        ("seed", pa.int64()),
        ("step", pa.int64()),
        ("kind", pa.string()),
        ("message", pa.string()),
    ]
)


class RecordTable:
    """Rows of one table, gathered in memory and written as a part of the folder at each flush.

    Args:
        folder: where the parts lie; the first flush makes it.
        schema: the columns.
    """

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self.folder = folder
        self.schema = schema
        self._pending: list[pa.RecordBatch] = []

    def append(self, columns: dict[str, Any]) -> None:
        """Add rows, given as one sequence per column."""
        arrays = [pa.array(columns[column.name], column.type) for column in self.schema]
        if len(arrays[0]):
            self._pending.append(pa.RecordBatch.from_arrays(arrays, schema=self.schema))

    @property
    def pending_rows(self) -> int:
        """Rows not yet written."""
        return sum(batch.num_rows for batch in self._pending)

    def flush(self, step: int) -> None:
        """Write the gathered rows as `part-STEP.parquet`, whole or not at all. The first part is
        written even if it has no rows, so that the table can always be read."""
        if not self._pending and any(self.folder.glob("part-*.parquet")):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"part-{step:012d}.parquet"
        partial = path.with_suffix(".partial")
        table = pa.Table.from_batches(self._pending, self.schema)
        pq.write_table(table, partial, compression="zstd")
        os.replace(partial, path)
        self._pending = []

    def rewind(self, step: int) -> None:
        """Forget the parts written after `step`, as if the run had stopped there."""
        self._pending = []
        for partial in self.folder.glob("*.partial"):
            partial.unlink()
        for path in self.folder.glob("part-*.parquet"):
            if int(path.stem.removeprefix("part-")) > step:
                path.unlink()
