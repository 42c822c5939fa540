"""A TensorBoard event file that can be cut back to where a checkpoint left it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.summary.writer.record_writer import RecordWriter

FILE_NAME = "events.out.tfevents.0"


class EventLog:
    """Appends to the one event file of a TensorBoard run.

    Args:
        folder: the run, as TensorBoard names it; made if missing.
        position: bytes of an existing file to keep; what follows them is cut off.
    """

    def __init__(self, folder: Path, position: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = open(folder / FILE_NAME, "ab")  # noqa: SIM115
        self._file.truncate(position)
        self._writer = RecordWriter(self._file)
        if position == 0:
            self._write(Event(file_version="brain.Event:2"))

    @property
    def position(self) -> int:
        """Bytes written so far."""
        return self._file.tell()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One scalar per tag at a step."""
        summary = Summary()
        for tag, value in values.items():
            summary.value.add(tag=tag, simple_value=value)
        self._write(Event(step=step, summary=summary))

    def text(self, step: int, tag: str, text: str) -> None:
        """A Markdown text at a step."""
        summary = Summary()
        summary.value.add(
            tag=tag,
            metadata=SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text")),
            tensor=TensorProto(
                dtype=DT_STRING,
                string_val=[text.encode()],
                tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
            ),
        )
        self._write(Event(step=step, summary=summary))

    def flush(self, sync: bool = False) -> None:
        """Hand what was written to the system; with `sync`, to the disk."""
        self._file.flush()
        if sync:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._writer.write(event.SerializeToString())
