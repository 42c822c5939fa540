"""A policy that Stable-Baselines3 has saved, ready to be scored."""

from __future__ import annotations

import base64
import io
import json
import pickle
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.vec_env import VecNormalize

from upgd_ppo.agents.sb3.safe_pickle import safe_loads

MOST_DATA = 1 << 28
"""Bytes of a model's description, weights apart: one that is larger is made to fill the memory."""
_NEEDED = ("policy_class", "policy_kwargs", "observation_space", "action_space")


@dataclass
class SavedPolicy:
    """Observations in, actions out.

    Attributes:
        policy: the SB3 policy, on the CPU.
        normalizer: its observation statistics, or None.
        env_id: what it was trained on, where the file says so (those of `export_sb3` do). It is
            only a name: of "module:Id", nothing imports the module, and neither should you unless
            you trust the file.
        env_kwargs: keyword arguments of that environment's constructor.
    """

    policy: BasePolicy
    normalizer: VecNormalize | None = None
    env_id: str | None = None
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    _memory: Any = None

    @property
    def observation_space(self) -> gymnasium.Space:
        """Of one environment."""
        return self.policy.observation_space

    @property
    def action_space(self) -> gymnasium.Space:
        """Of one environment."""
        return self.policy.action_space

    def predict(
        self,
        observations: Any,
        episode_starts: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> NDArray[Any]:
        """Actions [B, …] for observations [B, …] as the environment gives them, clipped to its box.

        Args:
            observations: one for each of B environments, not normalised.
            episode_starts: [B], where an episode begins: a recurrent policy forgets there.
            deterministic: the mean or the likeliest action, rather than a sample.
        """
        if self.normalizer is not None:
            observations = self.normalizer.normalize_obs(observations)
        actions, self._memory = self.policy.predict(
            observations, self._memory, episode_starts, deterministic
        )
        return actions


def load_policy(
    path: str | Path,
    vec_normalize: str | Path | None = None,
    run_code: bool = False,
) -> SavedPolicy:
    """Load the policy of any SB3 or sb3-contrib model, without needing its environment.

    SB3's files can hold code that runs when SB3 loads them. Here only weights, spaces and the
    names of known classes are read, unless `run_code` allows the rest.

    Args:
        path: what `model.save` wrote; ".zip" may be left out.
        vec_normalize: what `VecNormalize.save` wrote; None takes NAME_vecnormalize.pkl beside
            NAME.zip (as `export_sb3` writes it) or NAME/vecnormalize.pkl (as the rl-zoo does), if
            there is one.
        run_code: load classes that the file defines or takes from other packages, as `PPO.load`
            does. Only for files whose author you trust.

    Raises:
        ValueError: if there is no such file, it is no SB3 model, or it needs `run_code`.
    """
    path = Path(path)
    if not path.exists() and path.suffix != ".zip":
        path = path.with_name(f"{path.name}.zip")
    data, weights = _read(path)
    settings = {name: _value(data, name, path, run_code) for name in _NEEDED}
    _check_types(path, data, settings)
    policy_class, policy_kwargs = settings["policy_class"], dict(settings["policy_kwargs"])
    if issubclass(policy_class, ActorCriticPolicy):
        policy_kwargs.setdefault("use_sde", data.get("use_sde", False))
    policy = policy_class(
        settings["observation_space"], settings["action_space"], lambda _: 0.0, **policy_kwargs
    )
    policy.load_state_dict(weights)
    policy.set_training_mode(False)
    statistics = _statistics_file(path) if vec_normalize is None else Path(vec_normalize)
    normalizer = None if statistics is None else _load_statistics(statistics, run_code)
    return SavedPolicy(policy, normalizer, data.get("env_id"), data.get("env_kwargs") or {})


def _check_types(path: Path, data: dict[str, Any], settings: dict[str, Any]) -> None:
    """Raise a ValueError if the file holds something else under the names that are read."""
    cls = settings["policy_class"]
    right = {
        "policy_class": isinstance(cls, type) and issubclass(cls, BasePolicy),
        "policy_kwargs": isinstance(settings["policy_kwargs"], dict),
        "observation_space": isinstance(settings["observation_space"], gymnasium.Space),
        "action_space": isinstance(settings["action_space"], gymnasium.Space),
        "env_id": isinstance(data.get("env_id"), str | None),
        "env_kwargs": isinstance(data.get("env_kwargs"), dict | None),
    }
    wrong = [name for name, is_right in right.items() if not is_right]
    if wrong:
        raise ValueError(
            f"{path} is not a model that Stable-Baselines3 saved: its {' and '.join(wrong)} is of"
            " another kind than expected; give the .zip that model.save() wrote."
        )


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo("data").file_size > MOST_DATA:
                raise KeyError(f"its description has more than {MOST_DATA:,} bytes")
            data = json.loads(archive.read("data"))
            if not isinstance(data, dict):
                raise KeyError("it describes no model")
            content = io.BytesIO(archive.read("policy.pth"))
        return data, torch.load(content, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"There is no model {path}.") from None
    except (
        *(zipfile.BadZipFile, KeyError, json.JSONDecodeError, UnicodeDecodeError),
        *(pickle.UnpicklingError, RecursionError, EOFError),
    ) as error:
        raise ValueError(
            f"{path} is not a model that Stable-Baselines3 saved: {error}; give the .zip that "
            "model.save() wrote."
        ) from None


def _value(data: dict[str, Any], name: str, path: Path, run_code: bool) -> Any:
    value = data.get(name)
    if not isinstance(value, dict) or ":serialized:" not in value:
        return value
    return _unpickle(base64.b64decode(value[":serialized:"]), path, run_code)


def _unpickle(content: bytes, path: Path, run_code: bool) -> Any:
    if run_code:
        return pickle.loads(content)
    try:
        return safe_loads(content)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} needs {error}, which could run code of its author's; if you trust it, load it "
            "with run_code=True."
        ) from None


def _statistics_file(path: Path) -> Path | None:
    candidates = (
        path.with_name(f"{path.stem}_vecnormalize.pkl"),
        path.with_suffix("") / "vecnormalize.pkl",
    )
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _load_statistics(path: Path, run_code: bool) -> VecNormalize:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"Cannot read the statistics {path}: {error.strerror}.") from None
    statistics = _unpickle(content, path, run_code)
    if not isinstance(statistics, VecNormalize):
        raise ValueError(f"{path} holds no VecNormalize statistics; give what its save() wrote.")
    return statistics
