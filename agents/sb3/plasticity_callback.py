"""Watching the plasticity of a policy while Stable-Baselines3 trains it."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Collection
from pathlib import Path
from time import perf_counter
from typing import Any, TextIO

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import HumanOutputFormat
from torch import Tensor
from torch.optim import Optimizer

from agents.plasticity import EarlyWarningMonitor, Measurement, Row, Thresholds
from agents.sb3.latest_batch import MAX_SAMPLES, latest_batch
from agents.sb3.statistics import copy_of_parameters, optimizers_of, policy_statistics

DEFAULT_CADENCE = 10_000
LARGEST_SHARE = 0.02
COLUMNS = ("step", "network", "layer", "statistic", "value")


class PlasticityWarning(UserWarning):
    """A layer or the policy has crossed into trouble."""


class PlasticityCallback(BaseCallback):
    """Logs how able every layer still is to learn, and warns when one is dying.

    The statistics, those of `agents.plasticity`, are measured on 1024 samples of the latest
    rollout (of several, if they are shorter) or of the replay buffer. They go to SB3's logger as
    `plasticity/NETWORK/LAYER/STATISTIC`, for TensorBoard and CSV, and to `plasticity.csv` with the
    columns step, network, layer, statistic, value. A crossing into trouble is told once: as a
    `PlasticityWarning`, as text in TensorBoard, and in `warnings`. Nothing that training depends
    on is touched, random streams included.

    Works with every algorithm that has a rollout or replay buffer, and with every policy whose
    activations are modules.

    Args:
        every: environment steps between two measurements; each takes place where a rollout ends.
            None is 10 000, and more where measuring would else take over 2 % of the time.
        thresholds: where trouble begins; None is fit to the policy's activation.
        log_dir: folder of `plasticity.csv`; None is that of SB3's logs where it keeps some, else
            the current folder.
        stdout: the statistics that SB3's table on the terminal shows, too.
        verbose: SB3's.

    Raises:
        ValueError: `every` is not positive; while training, the policy has no hidden layer.
        TypeError: at the start of training, if the algorithm has neither buffer.

    Attributes:
        warnings: (step, message) of every early warning so far.
    """

    def __init__(
        self,
        every: int | None = None,
        thresholds: Thresholds | None = None,
        log_dir: str | Path | None = None,
        stdout: Collection[str] = ("dormant_fraction", "effective_rank"),
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        if every is not None and every < 1:
            raise ValueError(f"PlasticityCallback(every=…) must be at least 1, not {every}.")
        self.every = DEFAULT_CADENCE if every is None else every
        self._largest_share = LARGEST_SHARE if every is None else 1.0
        self.thresholds = thresholds
        self.log_dir = None if log_dir is None else Path(log_dir)
        self.stdout = frozenset(stdout)
        self.warnings: list[tuple[int, str]] = []
        self._initial: dict[str, Tensor] = {}
        self._iteration: _Iteration | None = None

    def _init_callback(self) -> None:
        self._batch = latest_batch(self.model)
        if not self._initial:
            self._initial = copy_of_parameters(self.model.policy)
            self._monitor = EarlyWarningMonitor(self.thresholds or self._fitting_thresholds())

    def _on_training_start(self) -> None:
        # Once there are samples enough for the ranks to mean something, then at the cadence.
        self._due = self.num_timesteps + min(self.every, MAX_SAMPLES)
        self._rest_until = 0.0
        self._iteration = None
        self._file, self._writer = self._open()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self._batch.collect()
        if self._iteration is not None:
            start = perf_counter()
            self._record(self._iteration.end())
            self._iteration = None
            self._rest_until = start + (perf_counter() - start) / self._largest_share
        if self.num_timesteps >= self._due and perf_counter() >= self._rest_until:
            self._iteration = _Iteration(self.model.policy)
            self._due = self.num_timesteps + self.every

    def _on_training_end(self) -> None:
        if self._iteration is not None:
            self._iteration.end()
        self._file.close()

    def _record(self, gradients: dict[str, Tensor]) -> None:
        assert self._iteration is not None
        measurements = policy_statistics(
            self.model.policy,
            self._batch.inputs(),
            self._batch.forward,
            self._initial,
            self._iteration.before,
            gradients,
        )
        self._writer.writerows([self.num_timesteps, *row] for row in measurements)
        self._file.flush()
        for network, layer, statistic, value in measurements:
            shown = statistic in self.stdout
            key = f"plasticity/{network}/{layer}/{statistic}"
            self.logger.record(key, value, exclude=None if shown else ("stdout", "log"))
            if shown:
                self._make_room_for(key)
        self._warn(measurements)

    def _warn(self, measurements: list[Measurement]) -> None:
        rows = [Row(0, self.num_timesteps, *row) for row in measurements]
        for warning in self._monitor.observe([*rows, *self._rows_of_the_policy()]):
            message = warning.message.split(": ", 1)[1]  # without member and step
            self.warnings.append((warning.step, message))
            warnings.warn(f"step {warning.step}: {message}", PlasticityWarning, stacklevel=2)
            self.logger.record(
                "plasticity/warning", message, exclude=("stdout", "log", "csv", "json")
            )
        self.logger.record("plasticity/warnings", len(self.warnings))

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

    def _fitting_thresholds(self) -> Thresholds:
        activation: Any = getattr(self.model.policy, "activation_fn", None)
        return Thresholds.for_activation(getattr(activation, "__name__", "").lower())

    def _make_room_for(self, key: str) -> None:
        """SB3's table cuts long names, and refuses two that are then the same."""
        for output in self.logger.output_formats:
            if isinstance(output, HumanOutputFormat):
                output.max_length = max(output.max_length, len(key))

    def _open(self) -> tuple[TextIO, Any]:
        keeps_logs = self.model.tensorboard_log is not None or self.model._custom_logger
        folder = self.log_dir or Path((self.logger.dir if keeps_logs else None) or ".")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "plasticity.csv"
        goes_on = self.num_timesteps > 0 and path.exists()
        file = open(path, "a" if goes_on else "w", newline="", encoding="utf-8")  # noqa: SIM115
        writer = csv.writer(file, lineterminator="\n")
        if not goes_on:
            writer.writerow(COLUMNS)
        return file, writer


class _Iteration:
    """One update of a policy: its parameters before, and the last gradients that it saw.

    Gradients are taken where an optimizer steps, because later they may be another loss's: SAC's
    actor loss leaves its own in the critic.
    """

    def __init__(self, policy: Any) -> None:
        self.before = copy_of_parameters(policy)
        self._names = {p: name for name, p in policy.named_parameters()}
        self._gradients: dict[str, Tensor] = {}
        self._handles = [
            optimizer.register_step_pre_hook(self._keep) for optimizer in optimizers_of(policy)
        ]

    def end(self) -> dict[str, Tensor]:
        """The gradients by name, as the optimizers got them."""
        for handle in self._handles:
            handle.remove()
        return self._gradients

    def _keep(self, optimizer: Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._gradients[self._names[p]] = p.grad.detach().clone()
