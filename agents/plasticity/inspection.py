"""What was measured of some members' networks: data alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from upgd_ppo.agents.plasticity.population_statistics import StatisticsTable


@dataclass(frozen=True)
class Inspection:
    """What was measured of S members after one iteration.

    Attributes:
        table: every statistic of every layer.
        histograms: "weights/NETWORK/LAYER", "unit_activations/…", "scaled_utilities/…" →
            [S, bins, 3]: left edge, right edge and count.
    """

    table: StatisticsTable
    histograms: dict[str, NDArray]

    @staticmethod
    def concatenate(inspections: Sequence[Inspection | None]) -> Inspection | None:
        """Those of blocks of members, measured at the same iteration, as one."""
        measured = [inspection for inspection in inspections if inspection is not None]
        if not measured:
            return None
        return Inspection(
            StatisticsTable.concatenate([inspection.table for inspection in measured]),
            {
                name: np.concatenate([inspection.histograms[name] for inspection in measured])
                for name in measured[0].histograms
            },
        )
