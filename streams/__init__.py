"""Streams of samples for supervised learners.

A stream of your own is a file that keeps the contract in `stream.py`, a line here and its name
beside the setting `stream`.
"""

from upgd_ppo.streams.regression import RegressionStream
from upgd_ppo.streams.stream import Stream

STREAMS: dict[str, type[Stream]] = {"regression": RegressionStream}
"""By the names that `--stream` takes."""
