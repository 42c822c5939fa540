"""A TensorBoard event file that can be cut back to where a checkpoint left it."""

from __future__ import annotations

import io
import os
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

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
from tensorboard.summary.writer.record_writer import RecordWriter, masked_crc32c

from upgd_ppo.agents.machine.whole_files import make_folder, sync_folder

FILE_NAME = "events.out.tfevents.0"
_FILE_VERSION = Event(file_version="brain.Event:2")


class EventLog:
    """Appends to the one event file of a TensorBoard run.

    What is logged is gathered in memory until `flush`.

    Args:
        folder: the run, as TensorBoard names it; made with the first flush.
        position: bytes of an existing file to keep; what follows them is cut off.

    Attributes:
        path: the file.
        position: bytes of the file that are written for good.
        lost_bytes: of those that were to be kept, how many are not there or cannot be read.
    """

    def __init__(self, folder: Path, position: int = 0) -> None:
        self.path = folder / FILE_NAME
        self._buffer = io.BytesIO()
        self._writer = RecordWriter(self._buffer)
        self.position = 0
        if position and self.path.is_file():
            with open(self.path, "rb") as file:
                self.position = _end_of_whole_events(file, position)
        self.lost_bytes = position - self.position
        if self.position == 0:
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
        make_folder(self.path.parent)
        exists = self.path.exists()
        with open(self.path, "r+b" if exists else "wb") as file:
            position = self.position
            if file.seek(0, os.SEEK_END) < position:  # Somebody has cut or removed it.
                position = _end_of_whole_events(file, position)
            file.truncate(position)
            file.seek(position)
            if position == 0 < self.position:
                RecordWriter(file).write(_FILE_VERSION.SerializeToString())
            file.write(self._buffer.getbuffer())
            file.flush()
            if sync:
                os.fsync(file.fileno())
            self.position = file.tell()
        self._buffer.seek(0)
        self._buffer.truncate()
        if not exists:
            sync_folder(self.path.parent)

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


def _end_of_whole_events(file: BinaryIO, limit: int) -> int:
    """Where the last event ends that lies within the first `limit` bytes, as do all before it."""
    limit = min(limit, file.seek(0, os.SEEK_END))
    end = 0
    # An event is its length, that one's checksum, the event and its checksum.
    while end + 16 <= limit:
        file.seek(end)
        size, checksum = file.read(8), file.read(4)
        following = end + 16 + struct.unpack("<Q", size)[0]
        if struct.pack("<I", masked_crc32c(size)) != checksum or following > limit:
            break
        end = following
    return end
