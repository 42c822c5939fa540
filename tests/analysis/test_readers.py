"""Arms from run directories and from what Stable-Baselines3 and CleanRL write."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from synthetic_runs import climb, statistics_table, write_parts, write_run
from torch.utils.tensorboard import SummaryWriter

from analysis.arm import Arm, InputError
from analysis.comparison import bin_statistics
from analysis.readers import read_arm, read_arms


def episodes(arm: Arm) -> pd.DataFrame:
    frames = [pd.DataFrame(batch._asdict()) for batch in arm.episodes()]
    return pd.concat(frames, ignore_index=True)


def test_a_run_directory_gives_back_its_episodes_and_settings(tmp_path: Path):
    run = write_run(tmp_path / "run", [climb] * 3, opt="upgd", steps=20_000, epochs=15)
    arm = read_arm(str(run))
    assert (arm.name, arm.environment, arm.finished, arm.planned) == (
        "upgd",
        "Ant-v4",
        True,
        20_000,
    )
    assert arm.settings is not None
    assert arm.settings["epochs"] == 15
    assert arm.versions == {"torch": "2.13.0", "numpy": "2.4.6", "python": "3.11.2"}
    assert arm.seeds.tolist() == [1, 2, 3]
    table = pd.read_parquet(run / "records/episodes")
    found = episodes(arm)
    assert len(found) == len(table) == 3 * 80
    assert found.episode_return.sum() == pytest.approx(table.episode_return.sum())
    assert found.groupby("member").step.max().tolist() == [20_000] * 3


def test_statistics_are_averaged_per_member_and_bin(tmp_path: Path):
    run = write_run(tmp_path / "run", [climb] * 2, steps=100_000)
    table = pd.read_parquet(run / "records/statistics").astype({"layer": str, "network": str})
    table["bin"] = (table.step - 1) * 100 // 100_000
    keys = ["network", "layer", "statistic", "member", "bin"]
    expected = table.groupby(keys, observed=True).value.mean()
    found = bin_statistics(read_arm(str(run)), 100_000)
    assert len(found) == 13
    assert sum(np.isfinite(curve).sum() for curve in found.values()) == len(expected)
    for (network, layer, statistic, member, place), value in expected.items():
        assert found[network, layer, statistic][member, place] == pytest.approx(value)


def test_statistics_written_as_plain_strings_read_the_same(tmp_path: Path):
    table = statistics_table(2, np.arange(2000, 100_001, 2000), {})
    for name, cast in (("encoded", False), ("plain", True)):
        run = write_run(tmp_path / name, [climb] * 2, statistics=False)
        if cast:
            for column in ("network", "layer", "statistic"):
                place = table.schema.get_field_index(column)
                table = table.set_column(place, column, table[column].cast(pa.string()))
        write_parts(run / "records/statistics", table, 100_000, 2)
    encoded, plain = (
        bin_statistics(read_arm(str(tmp_path / name)), 100_000) for name in ("encoded", "plain")
    )
    assert encoded.keys() == plain.keys()
    for key in encoded:
        np.testing.assert_array_equal(encoded[key], plain[key])


def test_a_halted_member_is_known_with_its_step_and_cause(tmp_path: Path):
    arm = read_arm(str(write_run(tmp_path / "run", [climb] * 3, halted={1: 40_000})))
    assert [member.halted for member in arm.members] == [None, 40_000, None]
    assert "NaN" in arm.members[1].cause
    assert arm.reached == 100_000


def test_a_member_that_halted_before_its_first_episode_is_not_lost(tmp_path: Path):
    arm = read_arm(str(write_run(tmp_path / "run", [climb] * 2, halted={1: 10})))
    assert [(m.seed, m.halted) for m in arm.members] == [(1, None), (2, 10)]


def test_returns_that_are_not_finite_count_as_a_halt(tmp_path: Path):
    broken = write_run(
        tmp_path / "run", [climb, lambda p: np.where(p > 0.5, np.nan, p)], steps=10_000
    )
    assert [m.halted for m in read_arm(str(broken)).members] == [None, 5250]


def test_an_unfinished_run_says_so(tmp_path: Path):
    arm = read_arm(str(write_run(tmp_path / "run", [climb], reached=60_000)))
    assert (arm.finished, arm.reached, arm.planned) == (False, 60_000, 100_000)


def test_sub_environments_that_sb3_monitors_together_are_one_seed(tmp_path: Path):
    seeds = []
    for seed in (0, 1):
        env = make_vec_env(
            "CartPole-v1", n_envs=2, seed=seed, monitor_dir=str(tmp_path / "arm" / f"run_{seed}")
        )
        ends: list[int] = []
        env.seed(seed)
        env.reset()
        random = np.random.default_rng(seed)
        for step in range(300):
            _, _, done, _ = env.step(random.integers(0, 2, size=2))
            ends += [2 * (step + 1)] * int(done.sum())
        env.close()
        seeds.append(ends)
    arm = read_arm(str(tmp_path / "arm"))
    found = episodes(arm)
    assert arm.environment == "CartPole-v1"
    assert "monitor" in arm.source
    assert len(arm.members) == 2
    for member in (0, 1):
        assert found[found.member == member].step.tolist() == seeds[member]


def test_other_monitor_files_are_a_seed_each(tmp_path: Path):
    for seed in (3, 4):
        env = Monitor(gym.make("CartPole-v1"), str(tmp_path / f"seed_{seed}"))
        env.reset(seed=seed)
        for _ in range(60):
            if any(env.step(0)[2:4]):
                env.reset()
        env.close()
    arm = read_arm(f"Mine={tmp_path}")
    assert (arm.name, len(arm.members)) == ("Mine", 2)
    assert (episodes(arm).episode_return > 7).all()


def test_sb3s_tensorboard_logs_are_read(tmp_path: Path):
    for seed in (0, 1):
        env = make_vec_env("CartPole-v1", seed=seed)
        model = PPO("MlpPolicy", env, n_steps=64, n_epochs=1, seed=seed, tensorboard_log=tmp_path)
        model.learn(256)
    with pytest.raises(InputError, match=r"do not name their environment: add --env"):
        read_arm(str(tmp_path))
    arm = read_arm(str(tmp_path), environment="CartPole-v1")
    assert (arm.environment, len(arm.members)) == ("CartPole-v1", 2)
    assert any("last 100 episodes" in note for note in arm.notes)
    found = episodes(arm)
    assert found[found.member == 0].step.tolist() == [64, 128, 192, 256]
    assert found.episode_return.between(5, 200).all()


def test_cleanrls_tensorboard_logs_bring_their_settings(tmp_path: Path):
    for seed in (1, 2):
        writer = SummaryWriter(str(tmp_path / f"Hopper-v4__ppo_continuous_action__{seed}__17000"))
        rows = {"env_id": "Hopper-v4", "seed": seed, "learning_rate": 0.0003}
        table = "\n".join(f"|{name}|{value}|" for name, value in rows.items())
        writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{table}")
        for step in range(100, 1000, 100):
            writer.add_scalar("charts/episodic_return", step * seed, step)
            writer.add_scalar("losses/value_loss", 0.5, step)
        writer.close()
    arm = read_arm(str(tmp_path))
    assert arm.environment == "Hopper-v4"
    assert arm.seeds.tolist() == [1, 2]
    assert arm.settings == {"env_id": "Hopper-v4", "learning_rate": "0.0003"}
    found = episodes(arm)
    assert found[found.member == 1].episode_return.tolist() == [200.0 * k for k in range(1, 10)]


def test_arms_of_one_environment_get_different_names(tmp_path: Path):
    paths = [
        write_run(tmp_path / name, [climb], opt="adam", env=env, steps=10_000)
        for name, env in (("a", "Ant-v4"), ("b", "Ant-v4"), ("c", "Hopper-v4"))
    ]
    assert [arm.name for arm in read_arms([str(path) for path in paths])] == ["a", "b", "adam"]


def test_bad_folders_are_refused_in_one_sentence(tmp_path: Path):
    (tmp_path / "nothing").mkdir()
    empty = write_run(tmp_path / "empty", [climb], steps=100, statistics=False)
    unnamed = write_run(tmp_path / "unnamed", [climb], steps=10_000)
    (unnamed / "config.yaml").write_text("opt: adam\n")
    broken = write_run(tmp_path / "broken", [climb], steps=10_000)
    (broken / "config.yaml").write_text("env: [Ant-v4\n")
    for text, match in (
        (tmp_path / "nothin", r"There is no folder .*nothin. Did you mean .*nothing\?"),
        (tmp_path / "nothing", "is not a run directory"),
        (empty, "has no finished episode yet"),
        (unnamed, "names no environment"),
        (broken, r"config.yaml is damaged"),
    ):
        with pytest.raises(InputError, match=match) as caught:
            read_arm(str(text))
        assert "\n" not in str(caught.value)
    run = write_run(tmp_path / "run", [climb], steps=10_000)
    with pytest.raises(InputError, match="given twice"):
        read_arms([str(run), str(tmp_path / "nothing/../run")])


@pytest.mark.parametrize("table", ["episodes", "statistics", "events"])
def test_a_damaged_part_is_named(tmp_path: Path, table: str):
    run = write_run(tmp_path / "run", [climb] * 2, halted={0: 50_000})
    part = sorted((run / "records" / table).iterdir())[-1]
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(InputError, match=f"{part.name} is not a readable Parquet file"):
        bin_statistics(read_arm(str(run)), 100_000)


def test_a_part_without_the_columns_is_named(tmp_path: Path):
    run = write_run(tmp_path / "run", [climb], steps=10_000)
    pd.DataFrame({"step": [1]}).to_parquet(run / "records/episodes/part-000000000001.parquet")
    with pytest.raises(InputError, match="lacks the column 'member'"):
        read_arm(str(run))


def test_damaged_logs_of_others_are_named(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x.monitor.csv").write_text("r,l,t\n1,2,3\n")
    with pytest.raises(InputError, match=r"x\.monitor\.csv is no monitor file"):
        read_arm(str(tmp_path / "a"))
    (tmp_path / "b").mkdir()
    (tmp_path / "b/events.out.tfevents.1.host").write_bytes(b"nonsense" * 9)
    with pytest.raises(InputError, match="so no returns can be read"):
        read_arm(str(tmp_path / "b"))


def test_a_monitor_file_cut_in_its_last_line_is_read_up_to_it(tmp_path: Path):
    header = '#{"t_start": 1.0, "env_id": "Ant-v4"}\nr,l,t\n'
    (tmp_path / "x.monitor.csv").write_text(header + "1.0,20,0.1\n2.0,30,0.2\n3.")
    arm = read_arm(str(tmp_path))
    assert episodes(arm).step.tolist() == [20, 50]
    assert "ends in the middle of a line" in arm.notes[0]


def test_a_tensorboard_log_that_is_cut_short_says_how_much_is_missing(tmp_path: Path):
    writer = SummaryWriter(str(tmp_path))
    for step in range(100):
        writer.add_scalar("rollout/ep_rew_mean", step, step)
    writer.close()
    log = next(tmp_path.iterdir())
    assert read_arm(str(tmp_path), "Ant-v4").notes[1:] == ()
    content = bytearray(log.read_bytes())
    content[2000:2004] = b"zzzz"
    log.write_bytes(content)
    arm = read_arm(str(tmp_path), "Ant-v4")
    assert len(episodes(arm)) < 50
    assert "is cut short or damaged" in " ".join(arm.notes)


def test_one_folder_of_two_tasks_is_no_arm(tmp_path: Path):
    for env in ("Hopper-v4", "Ant-v4"):
        (tmp_path / f"{env}.monitor.csv").write_text(
            f'#{{"t_start": 1.0, "env_id": "{env}"}}\nr,l,t\n1.0,20,0.1\n'
        )
    with pytest.raises(InputError, match="mixes the tasks Ant-v4 and Hopper-v4"):
        read_arm(str(tmp_path))
