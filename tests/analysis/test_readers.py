"""Arms from run directories and from what Stable-Baselines3 and CleanRL write."""

import json
import shutil
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

from upgd_ppo.analysis.arm import Arm, InputError
from upgd_ppo.analysis.comparison import bin_statistics, compare
from upgd_ppo.analysis.notices import notices
from upgd_ppo.analysis.readers import read_arm, read_arms
from upgd_ppo.analysis.setting_differences import setting_differences


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


def continued_log(path: Path, steps: list[range], tag: str = "rollout/ep_rew_mean") -> Path:
    """A seed's TensorBoard folder with an event file for each start; values tell the start."""
    for start, span in enumerate(steps):
        writer = SummaryWriter(str(path), filename_suffix=f".{start}")
        for step in span:
            writer.add_scalar(tag, 1000 * start + step / 1000, step)
        writer.close()
        for log in path.glob(f"*.{start}"):  # as if a start took a second at least
            name = log.name.split(".")
            name[3] = str(1_700_000_000 + start)
            log.rename(path / ".".join(name))
    return path


def test_of_a_continued_tensorboard_run_the_newer_file_wins_from_its_first_step_on(tmp_path: Path):
    continued_log(tmp_path / "PPO_1", [range(1000, 20_001, 1000), range(10_000, 30_001, 1000)])
    arm = read_arm(str(tmp_path), "Ant-v4")
    found = episodes(arm)
    assert found.step.tolist() == list(range(1000, 30_001, 1000))
    newer = (found.episode_return >= 1000).tolist()
    assert newer == [False] * 9 + [True] * 21
    note = next(note for note in arm.notes if "continued" in note)
    assert "PPO_1 was continued from step 10,000: the 11 older values" in note


def test_a_tensorboard_run_that_was_continued_where_it_stopped_is_read_whole(tmp_path: Path):
    continued_log(tmp_path / "PPO_1", [range(1000, 10_001, 1000), range(11_000, 20_001, 1000)])
    arm = read_arm(str(tmp_path), "Ant-v4")
    assert episodes(arm).step.tolist() == list(range(1000, 20_001, 1000))
    assert not any("continued" in note for note in arm.notes)


def test_a_log_that_was_cut_off_does_not_shorten_the_others(tmp_path: Path):
    for seed in range(5):
        end = 3000 if seed == 2 else 100_000
        continued_log(tmp_path / f"PPO_{seed}", [range(500, end + 1, 500)])
    arm = read_arm(str(tmp_path), "Ant-v4")
    assert [member.reached for member in arm.cut_off] == [3000]
    assert arm.reached == 100_000
    (result,) = compare([arm]).environments
    assert result.horizon == 100_000
    assert result.arms[0].rows.tolist() == [0, 1, 3, 4]
    assert any("left out, it reached only 3,000 of 100,000" in n for n in notices(result))


def test_a_folder_of_runs_stands_for_all_of_them(tmp_path: Path):
    for name in ("a", "b"):
        write_run(tmp_path / "runs" / name, [climb] * 2, opt=name, steps=10_000)
    (tmp_path / "runs/wandb/files").mkdir(parents=True)
    (tmp_path / "runs/wandb/files/config.yaml").write_text("seed: 1\n")
    arms = read_arms([str(tmp_path / "runs")])
    assert [(arm.name, len(arm.members)) for arm in arms] == [("a", 2), ("b", 2)]
    with pytest.raises(InputError, match=r"holds 2 runs, which are an arm each"):
        read_arm(str(tmp_path / "runs"), "Ant-v4")
    with pytest.raises(InputError, match=r"so it cannot be the arm Mine: name them one by one"):
        read_arms([f"Mine={tmp_path / 'runs'}"])
    (tmp_path / "runs/sb3").mkdir()
    (tmp_path / "runs/sb3/0.monitor.csv").touch()
    with pytest.raises(InputError, match=r"holds 2 runs of train.py and other logs too"):
        read_arms([str(tmp_path / "runs")])


def test_the_mean_over_the_seeds_of_a_run_is_no_seed(tmp_path: Path):
    run = write_run(tmp_path / "run", [climb] * 2, steps=10_000)
    for name in ("seed_1", "seed_2", "population"):
        continued_log(run / "tensorboard" / name, [range(1000, 10_001, 1000)])
    with pytest.raises(InputError, match=r"is a part of the run .*: name the run"):
        read_arm(str(run / "tensorboard"), "Ant-v4")
    shutil.move(run / "tensorboard", tmp_path / "downloaded")
    assert len(read_arm(str(tmp_path / "downloaded"), "Ant-v4").members) == 2


def test_the_task_named_must_be_that_of_an_arm(tmp_path: Path):
    run = write_run(tmp_path / "run", [climb], steps=10_000)
    with pytest.raises(InputError, match=r"--env Hopper-v4 is for logs that do not name their"):
        read_arms([str(run)], "Hopper-v4")
    continued_log(tmp_path / "sb3/PPO_1", [range(1000, 10_001, 1000)])
    arms = read_arms([str(run), str(tmp_path / "sb3")], "Hopper-v4")
    assert [arm.environment for arm in arms] == ["Ant-v4", "Hopper-v4"]


def test_names_that_were_given_are_kept_or_refused(tmp_path: Path):
    one, two = (write_run(tmp_path / name, [climb], steps=10_000) for name in ("one", "two"))
    assert [arm.name for arm in read_arms([str(one), f"adam={two}"])] == ["one", "adam"]
    with pytest.raises(InputError, match="Two arms on Ant-v4 are named x"):
        read_arms([f"x={one}", f"x={two}"])


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
        ("Mine=", "'Mine=' names no folder"),
        (tmp_path / "broken/config.yaml", "is a file, but an arm is a folder"),
        (empty, "has no finished episode yet"),
        (unnamed, "names no environment"),
        (broken, r"config.yaml is damaged"),
    ):
        with pytest.raises(InputError, match=match) as caught:
            read_arm(str(text))
        assert "\n" not in str(caught.value)
    run = write_run(tmp_path / "run", [climb], steps=10_000)
    with pytest.raises(InputError, match="Name at least one arm"):
        read_arms([])
    with pytest.raises(InputError, match="given twice"):
        read_arms([str(run), str(tmp_path / "nothing/../run")])


@pytest.mark.parametrize("table", ["episodes", "statistics", "events"])
def test_a_part_that_was_cut_short_is_left_out_and_named(tmp_path: Path, table: str):
    run = write_run(tmp_path / "run", [climb] * 2, halted={0: 50_000})
    whole = read_arm(str(run))
    before = len(list(whole.statistics()))
    part = sorted((run / "records" / table).iterdir())[-1]
    part.write_bytes(part.read_bytes()[:-20])
    arm = read_arm(str(run))
    assert (whole.notes, before) == ((), 3)
    assert any(f"{part.name} is not a readable Parquet file" in note for note in arm.notes)
    if table == "episodes":
        assert episodes(arm).step.max() <= 66_666
    if table == "statistics":
        assert len(list(arm.statistics())) == 2


def test_episodes_of_a_part_that_was_lost_are_missed(tmp_path: Path):
    run = write_run(tmp_path / "run", [climb] * 2, halted={0: 50_000})
    sorted((run / "records/episodes").iterdir())[1].unlink()
    (note,) = read_arm(str(run)).notes
    assert "missing from the records of 1 of 2 seeds, the most from seed 2" in note
    assert "those of 33,250 steps" in note


def test_a_halt_that_only_the_status_knows_of_counts(tmp_path: Path):
    run = write_run(tmp_path / "run", [climb] * 3, state="finished")
    status = json.loads((run / "status.json").read_text())
    status["halted"] = [{"seed": 2, "step": 40_000, "cause": "the critic's weights became NaN"}]
    (run / "status.json").write_text(json.dumps(status))
    arm = read_arm(str(run))
    assert [member.halted for member in arm.members] == [None, 40_000, None]
    assert "NaN" in arm.members[1].cause
    assert any("records of events do not know of it" in note for note in arm.notes)


@pytest.mark.parametrize(
    ("told", "note"),
    [
        ([], "status.json does not know of it"),
        ([{"seed": 2, "step": 30_000, "cause": "?"}], "at step 30,000 by status.json"),
        ([{"seed": 2, "step": 40_000, "cause": "?"}], None),
    ],
)
def test_records_and_status_that_differ_in_a_halt_are_said(tmp_path: Path, told, note):
    run = write_run(tmp_path / "run", [climb] * 3, halted={1: 40_000})
    (run / "status.json").write_text(json.dumps({"state": "finished", "halted": told}))
    arm = read_arm(str(run))
    assert arm.members[1].halted == min([40_000, *(halt["step"] for halt in told)])
    assert [note in said for said in arm.notes] == ([True] if note else [])


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "cut short"),
        ("---\nenv: Ant-v4\nopt: adam\n", "cut short"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nenv: [*b, *b]\n", "aliases"),
        ("a: " + "[" * 5000, "damaged"),
        ("a: " + "x" * 70_000, "too large"),
    ],
    ids=["empty", "cut", "aliases", "deep", "large"],
)
def test_settings_that_are_cut_short_or_a_trap_are_refused_at_once(tmp_path, content, complaint):
    run = write_run(tmp_path / "run", [climb] * 3)
    (run / "config.yaml").write_text(content)
    with pytest.raises(InputError, match=complaint):
        read_arm(str(run))


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


def test_an_arm_is_named_after_its_optimizer_and_methods_which_arms_may_differ_in(tmp_path):
    plain = write_run(tmp_path / "a", [climb], methods={})
    acted_on = write_run(tmp_path / "b", [climb], methods={"random_reset": {"every": 9}})
    former = write_run(tmp_path / "c", [climb], opt="upgd")  # before there were methods
    arms = read_arms([str(plain), str(acted_on), str(former)])
    assert [arm.name for arm in arms] == ["adam", "adam+random_reset", "upgd"]
    assert setting_differences(arms[0], arms[1]) == setting_differences(arms[1], arms[2]) == ()
