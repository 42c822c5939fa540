"""A TensorBoard event file that can be cut back to where a checkpoint left it."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_DOUBLE, DT_STRING
from tensorboard.plugins.custom_scalar import metadata as custom_scalars
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.histogram import metadata as histograms
from tensorboard.summary.writer.record_writer import RecordWriter

FILE_NAME = "events.out.tfevents.0"
_FILE_VERSION = Event(file_version="brain.Event:2")


class EventLog:
    """Appends to the one event file of a TensorBoard run.

    What is logged is gathered in memory until `flush`.

    Args:
        folder: the run, as TensorBoard names it; made if missing.
        position: bytes of an existing file to keep; what follows them is cut off.

    Attributes:
        position: bytes of the file that are written for good.
    """

    def __init__(self, folder: Path, position: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / FILE_NAME
        self._buffer = io.BytesIO()
        self._writer = RecordWriter(self._buffer)
        self.position = position
        if position == 0:
            self._writer.write(_FILE_VERSION.SerializeToString())

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One scalar per tag at a step."""
        summary = Summary()
        for tag, value in values.items():
            summary.value.add(tag=tag, simple_value=value)
        self._write(Event(step=step, summary=summary))

    def text(self, step: int, tag: str, text: str) -> None:
        """A Markdown text at a step."""
        metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        tensor = TensorProto(
            dtype=DT_STRING, string_val=[text.encode()], tensor_shape=_tensor_shape((1,))
        )
        self._tensors(step, {tag: tensor}, metadata)

    def histograms(self, step: int, values: Mapping[str, NDArray]) -> None:
        """One histogram [bins, 3] (left edge, right edge, count) per tag at a step."""
        tensors = {
            tag: TensorProto(
                dtype=DT_DOUBLE,
                tensor_content=np.ascontiguousarray(bins, dtype=np.float64).tobytes(),
                tensor_shape=_tensor_shape(bins.shape),
            )
            for tag, bins in values.items()
        }
        self._tensors(step, tensors, histograms.create_summary_metadata(None, None))

    def layout(self, layout: Layout) -> None:
        """What the Custom Scalars page shows."""
        tensor = TensorProto(
            dtype=DT_STRING,
            string_val=[layout.SerializeToString()],
            tensor_shape=_tensor_shape(()),
        )
        metadata = custom_scalars.create_summary_metadata()
        self._tensors(0, {custom_scalars.CONFIG_SUMMARY_TAG: tensor}, metadata)

    def flush(self, sync: bool = False) -> None:
        """Write what was gathered to the file; with `sync`, through to the disk.

        Raises:
            OSError: if it cannot be written; it is then kept, and the next flush writes it.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        vanished = self.position > 0 and not self._path.exists()
        with open(self._path, "r+b" if self._path.exists() else "wb") as file:
            file.truncate(0 if vanished else self.position)
            file.seek(0, os.SEEK_END)
            if vanished:
                RecordWriter(file).write(_FILE_VERSION.SerializeToString())
            file.write(self._buffer.getbuffer())
            file.flush()
            if sync:
                os.fsync(file.fileno())
            self.position = file.tell()
        self._buffer.seek(0)
        self._buffer.truncate()

    def _tensors(
        self, step: int, tensors: Mapping[str, TensorProto], metadata: SummaryMetadata
    ) -> None:
        summary = Summary()
        for tag, tensor in tensors.items():
            summary.value.add(tag=tag, metadata=metadata, tensor=tensor)
        self._write(Event(step=step, summary=summary))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._writer.write(event.SerializeToString())


def _tensor_shape(shape: tuple[int, ...]) -> TensorShapeProto:
    return TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in shape])
