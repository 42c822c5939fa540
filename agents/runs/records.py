"""Columnar records of a run: folders of Parquet parts that only ever grow.

`pandas.read_parquet("RUN/records/episodes")` opens a whole table.
"""

from __future__ import annotations

import io
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from upgd_ppo.agents.machine.whole_files import PARTIAL, make_folder, sync_folder, write_whole

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

    Attributes:
        written_rows: how many rows the parts hold.
    """

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self.folder = folder
        self.schema = schema
        self.written_rows = 0
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

    def flush(self, step: int, sync: bool = False) -> None:
        """Write the gathered rows as a new part, whole or not at all; no part is ever replaced.
        The first part is written even if it has no rows, so that the table can always be read.

        Args:
            step: environment steps of each member so far; no row is of a later one.
            sync: see the names of all parts through to the disk.
        """
        if self._pending or not any(self.folder.glob("part-*.parquet")):
            make_folder(self.folder)
            table = pa.Table.from_batches(self._pending, self.schema)
            content = io.BytesIO()
            pq.write_table(table, content, compression="zstd")
            # Not in the folder: readers take every file there for a part.
            partial = self.folder.with_name(f".{self.folder.name}{PARTIAL}")
            write_whole(self._new_part(step), content.getbuffer(), partial)
            self.written_rows += table.num_rows
            self._pending = []
        if sync and self.folder.is_dir():
            sync_folder(self.folder)

    def rewind(self, step: int, rows: int | None = None) -> list[str]:
        """Forget the parts written after `step`, as if the run had stopped there.

        Args:
            step: environment steps of each member.
            rows: how many rows had been written then; None if nobody knows.

        Returns:
            What is wrong with those that stay, a sentence each.
        """
        self._pending, self.written_rows = [], 0
        damages = []
        for path in sorted(self.folder.glob("part-*.parquet")):
            if _step_of(path) > step:
                path.unlink()
                continue
            try:
                self.written_rows += pq.read_metadata(path).num_rows
            except (pa.ArrowException, OSError):
                damages.append(
                    f"{path} is not a readable Parquet file (cut short or damaged); restore it, or"
                    " move it away to read the rest."
                )
        if rows is not None and self.written_rows < rows and not damages:
            damages.append(
                f"{self.folder} lacks {rows - self.written_rows:,} of the {rows:,} rows that it had"
                " at the checkpoint: parts of it are missing."
            )
        return damages

    def _new_part(self, step: int) -> Path:
        """A name that no part has. By name, parts are in the order in which they were written."""
        path = self.folder / f"part-{step:012d}.parquet"
        for number in count(1):
            if not path.exists():
                break
            path = self.folder / f"part-{step:012d}_{number:03d}.parquet"
        return path


def _step_of(part: Path) -> int:
    """Of `part-STEP.parquet`, or `part-STEP_N.parquet` where there was one already."""
    return int(part.stem.removeprefix("part-").partition("_")[0])
