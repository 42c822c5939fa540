"""Watching the plasticity of a policy while Stable-Baselines3 trains it."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any, TextIO

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import HumanOutputFormat, Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from torch import Tensor
from torch.optim import Optimizer

from upgd_ppo.agents.plasticity import (
    EarlyWarning,
    EarlyWarningMonitor,
    Measurement,
    Row,
)
from upgd_ppo.agents.plasticity.early_warnings import check_limits
from upgd_ppo.agents.sb3.latest_batch import MAX_SAMPLES, latest_batch
from upgd_ppo.agents.sb3.statistics import (
    copy_of_parameters,
    optimizers_of,
    policy_activations,
    policy_statistics,
)

DEFAULT_CADENCE = 10_000
LARGEST_SHARE = 0.02
FILE = "plasticity.csv"
COLUMNS = ("step", "network", "layer", "statistic", "value")


class PlasticityWarning(UserWarning):
    """A layer or the policy has crossed into trouble."""


class PlasticityCallback(BaseCallback):
    """Logs how able every layer still is to learn, and warns when one is dying.

    The statistics, those of `agents.plasticity`, are measured on 1024 samples of the latest
    rollout (of several, if they are shorter) or of the replay buffer. They go to SB3's logger as
    `statistics/NETWORK/LAYER/STATISTIC`, for TensorBoard and CSV, and to `plasticity.csv` with the
    columns step, network, layer, statistic, value. A crossing into trouble is told once: as a
    `PlasticityWarning`, as text in TensorBoard, and in `warnings`. Nothing that training depends
    on is touched, random streams included.

    Works with every algorithm that has a rollout or replay buffer, and with every policy whose
    activations are modules.

    Args:
        every: environment steps between two measurements; each takes place where a rollout or
            training ends. None is 10 000, and more where measuring would else take over 2 % of
            the time. The first is due after 1024 steps, or `every` if that is less.
        thresholds: where trouble begins, where that is not the default, by the settings of
            train.py: {"warn_dormant_fraction": 0.6}, or None for one that is not to be watched.
        log_dir: folder of `plasticity.csv`; None is that of SB3's logs where it keeps some, else
            the current folder. A file of an earlier training stays: the next one's is
            `plasticity_2.csv`. A continued training (`reset_num_timesteps=False`) continues it.
        stdout: the statistics that SB3's table on the terminal shows, too.
        verbose: SB3's.

    Raises:
        ValueError: `every` is not positive, or there is no such threshold; while training, the
            policy has no hidden layer.
        TypeError: at the start of training, if the algorithm has neither buffer.

    Attributes:
        path: the file of the latest training, None before the first.
        warnings: (step, message) of every early warning so far.
    """

    def __init__(
        self,
        every: int | None = None,
        thresholds: Mapping[str, float | None] | None = None,
        log_dir: str | Path | None = None,
        stdout: Collection[str] = ("dormant_fraction", "effective_rank"),
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        if every is not None and every < 1:
            raise ValueError(f"PlasticityCallback(every=…) must be at least 1, not {every}.")
        self.every = DEFAULT_CADENCE if every is None else every
        self._largest_share = LARGEST_SHARE if every is None else 1.0
        self.thresholds = dict(thresholds or {})
        check_limits(self.thresholds)
        self.log_dir = None if log_dir is None else Path(log_dir)
        self.stdout = frozenset(stdout)
        self.path: Path | None = None
        self.warnings: list[tuple[int, str]] = []
        self._initial: dict[str, Tensor] = {}
        self._activations: dict[tuple[str, str], str] = {}
        self._monitors: dict[str, EarlyWarningMonitor] = {}
        self._due: int | None = None
        self._latest_step: int | None = None
        self._iteration: _Iteration | None = None

    def _init_callback(self) -> None:
        self._batch = latest_batch(self.model)
        if not self._initial:
            self._initial = copy_of_parameters(self.model.policy)

    def _on_training_start(self) -> None:
        if self.num_timesteps == 0 or self._due is None:
            # Once there are samples enough for the ranks to mean something, then at the cadence.
            self._due = self.num_timesteps + min(self.every, MAX_SAMPLES)
            self._latest_step = None
        else:
            self._due = min(self._due, self.num_timesteps + self.every)
        self._rest_until = 0.0
        self._end_iteration()  # of a training that was interrupted
        self._file, self._writer = self._open()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self._batch.collect()
        if self._iteration is not None:
            start = perf_counter()
            self._record(with_sb3s=not isinstance(self.model, OffPolicyAlgorithm))
            self._rest_until = start + (perf_counter() - start) / self._largest_share
        assert self._due is not None
        if self.num_timesteps >= self._due and perf_counter() >= self._rest_until:
            self._iteration = _Iteration(self.model.policy)
            self._due = self.num_timesteps + self.every

    def _on_training_end(self) -> None:
        if self._iteration is not None and self._latest_step != self.num_timesteps:
            self._record(with_sb3s=False)
        self._end_iteration()
        self._file.close()
        if self._latest_step is None:
            warnings.warn(
                f"PlasticityCallback measured nothing: training ended at step {self.num_timesteps},"
                f" and the first measurement follows the first rollout that ends at step "
                f"{self._due} or later; train longer, or give it a smaller every=….",
                stacklevel=2,
            )

    def _end_iteration(self) -> dict[str, Tensor]:
        """The gradients that were seen, by name."""
        iteration, self._iteration = self._iteration, None
        return {} if iteration is None else iteration.end()

    def _record(self, with_sb3s: bool) -> None:
        """Measure, and log together with what SB3 is about to log or at once.

        Off-policy algorithms log where episodes end, which may be much later, and none logs at
        the end of training.
        """
        assert self._iteration is not None
        before, gradients = self._iteration.before, self._end_iteration()
        logger = self.logger if with_sb3s else Logger(self.logger.dir, self.logger.output_formats)
        policy, inputs, forward = self.model.policy, self._batch.inputs(), self._batch.forward
        if not self._activations:
            self._activations = policy_activations(policy, inputs, forward)
        measurements = policy_statistics(policy, inputs, forward, self._initial, before, gradients)
        self._latest_step = self.num_timesteps
        self._writer.writerows([self.num_timesteps, *row] for row in measurements)
        self._file.flush()
        for network, layer, statistic, value in measurements:
            shown = statistic in self.stdout
            place = network if layer == "all" else f"{network}/{layer}"
            key = f"statistics/{place}/{statistic}"  # as train.py's, so that runs overlay
            logger.record(key, value, exclude=None if shown else ("stdout", "log"))
            if shown:
                self._make_room_for(key)
        self._warn(measurements, logger)
        if not with_sb3s:
            logger.dump(self.num_timesteps)

    def _warn(self, measurements: list[Measurement], logger: Logger) -> None:
        rows = [Row(0, self.num_timesteps, *row) for row in measurements]
        for row in [*rows, *self._rows_of_the_policy()]:
            for warning in self._judge(row):
                self.warnings.append((warning.step, warning.description))
                warnings.warn(
                    f"step {warning.step}: {warning.description}", PlasticityWarning, stacklevel=2
                )
                logger.record(
                    "statistics/warning",
                    warning.description,
                    exclude=("stdout", "log", "csv", "json"),
                )
        logger.record("statistics/warnings", len(self.warnings))

    def _judge(self, row: Row) -> list[EarlyWarning]:
        activation = self._activations.get((row.network, row.layer), "")
        if activation not in self._monitors:
            self._monitors[activation] = EarlyWarningMonitor(self.thresholds, activation)
        return self._monitors[activation].observe([row])

    def _rows_of_the_policy(self) -> list[Row]:
        """Exploration, and how far the latest update moved the policy, where they are known."""
        log_std = getattr(self.model.policy, "log_std", None)
        scalars: dict[str, float] = {}
        if isinstance(log_std, Tensor) and log_std.ndim == 1:
            scalars |= {f"std_{i}": std for i, std in enumerate(log_std.exp().tolist())}
        if "train/approx_kl" in self.logger.name_to_value:
            scalars["approx_kl"] = float(self.logger.name_to_value["train/approx_kl"])
        return [
            Row(0, self.num_timesteps, "policy", "", name, value) for name, value in scalars.items()
        ]

    def _make_room_for(self, key: str) -> None:
        """SB3's table cuts long names, and refuses two that are then the same."""
        for output in self.logger.output_formats:
            if isinstance(output, HumanOutputFormat):
                output.max_length = max(output.max_length, len(key))

    def _open(self) -> tuple[TextIO, Any]:
        keeps_logs = self.model.tensorboard_log is not None or self.model._custom_logger
        folder = self.log_dir or Path((self.logger.dir if keeps_logs else None) or ".")
        folder.mkdir(parents=True, exist_ok=True)
        if self.path is None or self.path.parent != folder:
            self.path = folder / FILE
        goes_on = self.num_timesteps > 0 and self.path.exists()
        if not goes_on:
            self.path = _new_file(folder / FILE)
        file = open(self.path, "a", newline="", encoding="utf-8")  # noqa: SIM115
        writer = csv.writer(file, lineterminator="\n")
        if not goes_on:
            writer.writerow(COLUMNS)
        return file, writer


def _new_file(path: Path) -> Path:
    """A new file of that name or, where there is one, of the name with the next free number."""
    number, free = 1, path
    while True:
        try:
            free.touch(exist_ok=False)
        except FileExistsError:
            number += 1
            free = path.with_stem(f"{path.stem}_{number}")
        else:
            break
    if number > 1:
        warnings.warn(
            f"{path} holds the statistics of an earlier training; those of this one go to "
            f"{free.name}.",
            stacklevel=2,
        )
    return free


class _Iteration:
    """One update of a policy: its parameters before, and the gradients of its last step.

    A gradient is kept as the loss gave it, before it is clipped, when the optimizer that owns the
    parameter steps: later it may be another loss's, as SAC's actor loss leaves its own in the
    critic.
    """

    def __init__(self, policy: Any) -> None:
        self.before = copy_of_parameters(policy)
        self._names = {p: name for name, p in policy.named_parameters()}
        self._latest: dict[Tensor, Tensor] = {}
        self._gradients: dict[str, Tensor] = {}
        self._handles = [
            *(
                p.register_post_accumulate_grad_hook(self._note)
                for p in self._names
                if p.requires_grad
            ),
            *(optimizer.register_step_pre_hook(self._keep) for optimizer in optimizers_of(policy)),
        ]

    def end(self) -> dict[str, Tensor]:
        """The gradients by name."""
        for handle in self._handles:
            handle.remove()
        return self._gradients

    def _note(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self._latest[parameter] = parameter.grad.clone()

    def _keep(self, optimizer: Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None and p in self._latest:
                    self._gradients[self._names[p]] = self._latest[p]
