"""The runner drives whatever keeps the contract of a learner, and knows none by name."""

import numpy as np
import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.util.tensor_util import make_ndarray

from upgd_ppo.agents.learners.iteration_report import Episode, IterationReport
from upgd_ppo.agents.learners.learner import Scalar
from upgd_ppo.agents.plasticity import EarlyWarningMonitor
from upgd_ppo.agents.runs.run_directory import RunDirectory
from upgd_ppo.agents.runs.runner import Outcome, Runner, newest_state
from upgd_ppo.agents.settings.config import LoggingConfig, TrainConfig


class Counter:
    """Two members that count; member 1 is halted in the third iteration."""

    name = "counter"
    scalars = (
        Scalar("count", "train/count", factor=-2.0, band="how far it has counted"),
        Scalar("sometimes", "train/sometimes"),
    )
    performance = "height"
    seeds = [4, 5]  # noqa: RUF012
    total_iterations, total_steps = 5, 50
    exact_state, why_no_kernels = True, None

    def __init__(self):
        self.iteration = 0
        self.healthy = np.array([True, True])

    @property
    def steps(self):
        return 10 * self.iteration

    def advance(self):
        self.iteration += 1
        scalars = {"count": np.array([1.0, 2.0]) * self.iteration, "undeclared": np.zeros(2)}
        if self.iteration > 3:
            scalars["sometimes"] = np.ones(2)
        halted = [(1, "it is tired")] if self.iteration == 3 else []
        self.healthy[[member for member, _ in halted]] = False
        episodes = [Episode(0, self.steps, float(self.iteration), 10, False)]
        return IterationReport(scalars, episodes, halted)

    def state_dict(self):
        return {"iteration": self.iteration, "healthy": self.healthy.copy()}

    def load_state_dict(self, state):
        self.iteration, self.healthy = state["iteration"], state["healthy"]

    def close(self):
        pass


def runner_of(directory, learner=None, state=None):
    monitor = EarlyWarningMonitor()
    learner, logging = learner or Counter(), LoggingConfig(print_every=1e-9, checkpoint_every=20)
    return Runner(learner, directory, logging, "counting", monitor, state=state)


@pytest.fixture
def directory(tmp_path):
    return RunDirectory.create(TrainConfig().with_flat({"out": tmp_path / "run"}))


def test_a_learner_is_recorded_and_shown_as_it_declares_itself(directory, capsys):
    assert runner_of(directory).run() is Outcome.FINISHED
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("counting: 50/50 steps/seed")
    assert lines[-1].endswith("height 3.0 · 1/2 healthy")
    assert "seed 5 halted at step 30: it is tired" in lines

    statistics = pd.read_parquet(directory.records / "statistics")
    assert set(statistics.network) == {"counter"}
    assert set(statistics.statistic) == {"count", "undeclared", "sometimes"}
    counts = statistics[(statistics.member == 0) & (statistics.statistic == "count")]
    assert counts.value.tolist() == [1, 2, 3, 4, 5]

    seed = EventAccumulator(str(directory.tensorboard / "seed_4")).Reload()
    assert [event.value for event in seed.Scalars("train/count")] == [-2, -4, -6, -8, -10]
    assert [event.step for event in seed.Scalars("train/sometimes")] == [40, 50]
    assert "train/undeclared" not in seed.Tags()["scalars"]
    population = EventAccumulator(str(directory.tensorboard / "population"), {"tensors": 0})
    [event] = population.Reload().Tensors("custom_scalars__config__")
    page = Layout.FromString(make_ndarray(event.tensor_proto).item())
    titles = [chart.title for chart in page.category[0].chart]
    assert "how far it has counted" in titles
    assert "height · every seed" in titles
    assert not any("policy std" in title for title in titles)


def test_any_learner_continues_from_its_newest_checkpoint(directory):
    class Dying(Counter):
        def advance(self):
            if self.iteration == 4:
                raise OSError("power failure")
            return super().advance()

    with pytest.raises(OSError, match="power failure"):
        runner_of(directory, Dying()).run()
    state = newest_state(directory)
    assert state["agent"]["iteration"] == 4
    assert state["halted"] == [{"seed": 5, "step": 30, "cause": "it is tired"}]
    assert runner_of(directory, state=state).run() is Outcome.FINISHED
    assert len(pd.read_parquet(directory.records / "episodes")) == 5
