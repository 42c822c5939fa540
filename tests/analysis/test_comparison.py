"""What a comparison concludes, and what it tells the reader to mind."""

from pathlib import Path

import numpy as np
import pytest

from analysis.arm import Arm, Episodes, InputError, Member
from analysis.comparison import EnvironmentResult, compare
from analysis.intervals import probability_of_improvement
from analysis.notices import notices
from analysis.verdict import is_supported, suite_verdict, verdict

STEPS = 100_000


def arm(
    name: str,
    finals: list[float],
    environment: str = "Ant-v4",
    reached: int | list[int] = STEPS,
    halted: dict[int, int] | None = None,
    **facts: object,
) -> Arm:
    """An arm whose seeds rise to 100 and go over to `finals` after 60 % of 100,000 steps."""
    lengths = reached if isinstance(reached, list) else [reached] * len(finals)
    halts = halted or {}
    step = np.arange(500, STEPS + 1, 500)

    def episodes():
        for k, final in enumerate(finals):
            ended = step[step <= min(lengths[k], halts.get(k, STEPS))]
            value = np.where(ended < 60_000, np.minimum(ended / 300, 100), final)
            yield Episodes(np.full(len(ended), k), ended, value.astype(float))

    members = tuple(Member(k + 1, lengths[k], halts.get(k)) for k in range(len(finals)))
    facts = {"settings": {"env": environment, "opt": name, "epochs": 10}, "finished": True} | facts
    return Arm(name, Path(name), environment, "test", members, episodes, **facts)


def only(arms: list[Arm], **options: object) -> EnvironmentResult:
    (result,) = compare(arms, **options).environments
    return result


def said(result: EnvironmentResult) -> str:
    return " ".join(sentence for about in verdict(result).values() for sentence in about)


def minded(result: EnvironmentResult) -> str:
    return " ".join(notices(result))


def spread(low: float, high: float, seeds: int) -> list[float]:
    return np.linspace(low, high, seeds).tolist()


def test_a_clear_difference_is_stated_with_its_numbers():
    text = said(only([arm("adam", spread(5, 40, 10)), arm("upgd", spread(80, 110, 10))]))
    assert "adam: 10 of 10 seeds collapsed" in text
    assert "upgd: 0 of 10 seeds collapsed" in text
    assert "upgd ends with higher returns than adam" in text
    assert "upgd keeps more of what it learned than adam" in text
    assert "Fewer seeds of upgd collapsed than of adam" in text


def test_the_order_of_the_arms_does_not_change_who_is_better():
    arms = [arm("adam", spread(5, 40, 10)), arm("upgd", spread(80, 110, 10))]
    assert "upgd ends with higher returns than adam" in said(only(arms[::-1]))


def test_five_overlapping_seeds_are_too_few_to_tell():
    text = said(only([arm("adam", spread(20, 90, 5)), arm("upgd", spread(30, 110, 5))]))
    assert "Which arm ends with higher returns is open: 5 seeds are too few to tell" in text
    assert "higher returns than" not in text


def test_three_seeds_are_too_few_whatever_they_show():
    text = said(only([arm("adam", [5, 6, 7]), arm("upgd", [98, 99, 100])]))
    assert "3 and 3 seeds are too few to tell, whatever they show" in text
    assert "higher returns than" not in text


def test_equal_arms_are_told_apart_less_often_than_the_interval_alone_would():
    random = np.random.default_rng(1)
    found = [
        probability_of_improvement([(random.normal(size=5), random.normal(size=5))])
        for _ in range(100)
    ]
    stated = sum(is_supported(one) for one in found)
    assert stated <= 8
    assert stated < sum(one.probability.excludes(0.5) for one in found)


def test_one_seed_says_nothing_of_the_spread():
    assert "one seed of an arm says nothing" in said(only([arm("adam", [5]), arm("upgd", [99])]))


def test_many_alike_seeds_leave_it_open_without_calling_them_equal():
    finals = spread(20, 100, 20)
    text = said(only([arm("adam", finals), arm("upgd", finals)]))
    assert "the records neither show a difference nor rule one out" in text


def test_arms_that_differ_in_more_than_the_optimizer_are_flagged_by_name():
    settings = {"env": "Ant-v4", "opt": "upgd", "opt_kwargs": {"sigma": 1e-3}, "epochs": 20}
    arms = [arm("adam", spread(5, 40, 10)), arm("upgd", spread(80, 99, 10), settings=settings)]
    result = only(arms)
    assert "differ in more than the optimizer: epochs (10 and 20)." in minded(result)
    assert "no difference between them can be credited to it" in said(result)


def test_bookkeeping_and_the_optimizers_own_settings_are_no_difference():
    settings = {"env": "Ant-v4", "opt": "upgd", "opt_kwargs": {"sigma": 1}, "epochs": 10}
    settings |= {"seeds": 30, "threads": 4, "steps": 7, "warn_kl": 9}
    result = only([arm("adam", [5] * 4), arm("upgd", [9] * 4, settings=settings)])
    assert "more than the optimizer" not in minded(result)
    annealed = only(
        [arm("adam", [5] * 4), arm("upgd", [9] * 4, settings=settings | {"anneal": True})]
    )
    assert "steps (not set and 7)" in minded(annealed)


def test_unrecorded_settings_and_other_versions_are_told():
    result = only(
        [
            arm("adam", [5] * 4, versions={"torch": "2.12"}),
            arm("theirs", [9] * 4, settings=None, versions={"torch": "2.13"}),
        ]
    )
    assert "The settings of theirs are not in its logs" in minded(result)
    assert "torch (2.12 and 2.13)" in minded(result)
    assert "cannot be credited to the optimizer" in said(result)


def test_halted_seeds_count_as_collapsed_and_are_named():
    result = only([arm("adam", [100] * 5, halted={2: 70_000}), arm("upgd", [100] * 5)])
    adam = result.arms[0]
    assert adam.collapsed.value == pytest.approx(0.2)
    assert adam.collapse.final[2] == adam.collapse.start[2]
    assert "adam, seed 3: halted at step 70,000" in minded(result)
    assert "1 of them halted" in said(result)


def test_an_arm_that_halted_altogether_does_not_shorten_the_others():
    halted = arm("adam", [100] * 3, reached=30_000, halted={0: 30_000, 1: 30_000, 2: 30_000})
    result = only([halted, arm("upgd", [100] * 3)])
    assert result.horizon == STEPS
    assert result.arms[0].collapsed.value == 1


def test_different_lengths_are_measured_on_what_all_reached():
    result = only([arm("adam", [5] * 4), arm("upgd", [5] * 4, reached=50_000, finished=False)])
    assert result.horizon == 50_000
    assert "measured on the first 50,000 steps" in minded(result)
    assert "upgd is unfinished" in minded(result)
    assert result.arms[0].collapsed.value == 0
    assert "This is provisional: upgd is unfinished" in said(result)


def test_steps_leave_out_seeds_that_are_too_short_and_name_them():
    arms = [arm("adam", [5] * 3, reached=[STEPS, 40_000, STEPS]), arm("upgd", [100] * 3)]
    result = only(arms, steps=STEPS)
    assert result.arms[0].seeds.tolist() == [1, 3]
    assert "adam, seed 2: left out, it reached only 40,000 of 100,000 steps" in minded(result)
    with pytest.raises(InputError, match="No seed of adam reached 200,000 steps"):
        compare(arms, steps=200_000)


def test_seeds_that_cannot_be_judged_are_told_and_left_out_of_the_fraction():
    result = only([arm("flat", [5.0, 5.0]), arm("upgd", [100.0, 100.0])], steps=10_000)
    assert result.arms[0].collapsed.n == 2
    sparse = arm("sparse", [5.0, 5.0])
    sparse = Arm(
        **{
            **sparse.__dict__,
            "episodes": lambda: iter([Episodes(np.array([0]), np.array([9]), np.array([1.0]))]),
        }
    )
    result = only([sparse, arm("upgd", [100.0, 100.0])])
    assert result.arms[0].collapsed.n == 0
    assert "sparse, seed 1: too few episodes (episodes ended in 1 of 100 bins)" in minded(result)
    assert "sparse: no seed can be judged" in said(result)


def test_arms_without_a_common_task_cannot_be_compared():
    with pytest.raises(InputError, match=r"No two arms share a task .*adam on Ant-v4, upgd on Hop"):
        compare([arm("adam", [5.0]), arm("upgd", [5.0], environment="Hopper-v4")])


def test_several_environments_are_grouped_and_joined_as_strata():
    arms = [
        arm(name, finals, environment)
        for environment in ("Ant-v4", "Hopper-v4")
        for name, finals in (("adam", spread(5, 40, 6)), ("upgd", spread(80, 110, 6)))
    ]
    study = compare([*arms, arm("sgd", [4.0, 5.0], "Ant-v4")])
    assert [len(result.arms) for result in study.environments] == [3, 2]
    assert {suite.name: suite.collapsed.n for suite in study.suite_arms} == {"adam": 12, "upgd": 12}
    (about,) = suite_verdict(study).values()
    assert "upgd ends with higher returns than adam" in about[0]
    assert "12 and 12 seeds" in about[0]
