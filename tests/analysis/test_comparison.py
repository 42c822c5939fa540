"""What a comparison concludes, and what it tells the reader to mind."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from upgd_ppo.analysis.arm import Arm, Episodes, InputError, Member
from upgd_ppo.analysis.collapse import BINS, Bins, measure
from upgd_ppo.analysis.comparison import (
    COMPARED,
    EnvironmentResult,
    compare,
    equal_fractions,
    improvement_in,
)
from upgd_ppo.analysis.intervals import holm
from upgd_ppo.analysis.notices import notices
from upgd_ppo.analysis.verdict import is_supported, suite_verdict, verdict

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
    assert "fewer seeds of upgd collapsed than of adam" in text
    assert "upgd falls later than adam" in text
    assert "upgd spends less of its training below half of its running peak than adam" in text


def test_the_order_of_the_arms_does_not_change_who_is_better():
    arms = [arm("adam", spread(5, 40, 10)), arm("upgd", spread(80, 110, 10))]
    assert "upgd ends with higher returns than adam" in said(only(arms[::-1]))


def test_five_overlapping_seeds_are_too_few_to_tell():
    text = said(only([arm("adam", spread(20, 90, 5)), arm("upgd", spread(30, 110, 5))]))
    assert "no difference, however large, is sure to be stated" not in text
    assert "which arm ends with higher returns is open: 5 seeds are too few to tell" in text
    assert "higher returns than" not in text


def test_three_seeds_are_too_few_whatever_they_show():
    text = said(only([arm("adam", [5, 6, 7]), arm("upgd", [98, 99, 100])]))
    assert "3 and 3 seeds are too few to tell, whatever they show" in text
    assert "higher returns than" not in text


def collapses(seeds: int, random: np.random.Generator, noise: float = 20, rise: float = 100.0):
    """Seeds that rise, three in ten of which fall at some time; two noisy episodes a bin."""
    progress = (np.arange(BINS) + 0.5) / BINS
    curve = np.tile(rise * np.minimum(progress / 0.3, 1), (seeds, 1))
    when = np.where(random.random((seeds, 1)) < 0.3, random.uniform(0.4, 1, size=(seeds, 1)), 1)
    curve = np.where(progress > when, 0.2 * rise, curve) * random.uniform(0.5, 1.5, (seeds, 1))
    odd, even = curve + noise * random.normal(size=(2, seeds, BINS))
    count = np.ones(curve.shape)
    return measure(Bins((odd + even) / 2, odd, even, count, np.zeros(curve.shape)))


def statements(first, second) -> dict[str, bool]:
    """What a page on two arms would state, by measure."""
    found = {name: improvement_in(name, [(first, second)]) for name in COMPARED}
    p_values = [*(one.p_value for one in found.values()), equal_fractions(first, second)]
    adjusted = holm(np.array(p_values))
    return {
        name: is_supported(replace(one, adjusted_p=p_value))
        for (name, one), p_value in zip(found.items(), adjusted, strict=False)
    } | {"collapsed": bool(adjusted[-1] < 0.05)}


def test_pages_on_equal_arms_rarely_state_anything():
    random = np.random.default_rng(1)
    stated = [
        any(statements(collapses(5, random), collapses(5, random)).values()) for _ in range(120)
    ]
    assert np.mean(stated) < 0.1


def test_a_noisy_arm_is_not_called_one_that_keeps_less():
    random = np.random.default_rng(2)
    progress = (np.arange(BINS) + 0.5) / BINS
    curve = np.tile(1000 * np.minimum(progress / 0.3, 1), (8, 1))

    def draw(noise: float):
        odd, even = curve + noise * random.normal(size=(2, *curve.shape))
        bins = Bins((odd + even) / 2, odd, even, np.ones(curve.shape), np.zeros(curve.shape))
        return measure(bins)

    stated = [statements(draw(100), draw(500)) for _ in range(25)]
    assert sum(one["retained"] for one in stated) <= 3
    assert not any(one["collapsed"] for one in stated)


def test_seeds_that_never_learned_lose_nothing_against_seeds_that_did():
    random = np.random.default_rng(3)
    never = [arm("sgd", [0.0] * 10), arm("upgd", spread(80, 99, 10))]

    def nothing():
        for k in range(10):
            step = np.arange(500, STEPS + 1, 500)
            yield Episodes(np.full(len(step), k), step, random.normal(size=len(step)))

    result = only([Arm(**{**never[0].__dict__, "episodes": nothing}), never[1]])
    text = said(result)
    assert result.arms[0].never_learned == 10
    assert "sgd: no seed can be judged for collapse: 10 seeds never learned" in text
    assert "keeps more of what it learned than" not in text
    assert "which arm keeps more of what it learned cannot be said: no seed of sgd" in text
    assert "upgd ends with higher returns than sgd" in text


def test_an_arm_whose_seeds_diverge_early_does_not_keep_more_than_one_that_lives():
    hot = arm("hot", [93.0] * 10, halted={k: 1_000 for k in range(5)})
    result = only([hot, arm("mild", spread(66, 68, 10))])
    text = said(result)
    assert "hot keeps more" not in text
    assert result.pairs[0].improvement["retained"].seeds == (10, 10)
    assert result.pairs[0].improvement["retained"].probability.value == pytest.approx(0.5)
    assert "A halted seed ranks below every seed that lived" in text
    dead = arm("dead", [93.0] * 10, halted={k: 1_000 for k in range(10)})
    assert "mild keeps more of what it learned than dead" in said(
        only([dead, arm("mild", spread(66, 68, 10))])
    )


def test_equal_returns_are_called_equal_not_separated():
    text = said(only([arm("adam", [100.0] * 10), arm("upgd", [100.0] * 10)]))
    assert "every seed of one" not in text
    assert "which arm ends with higher returns is open: all seeds are equal in it" in text


def test_only_complete_separation_is_called_so():
    text = said(only([arm("adam", spread(5, 40, 10)), arm("upgd", spread(80, 110, 10))]))
    assert text.count("every seed of one beating every seed of the other") >= 2
    tied = said(only([arm("adam", [50.0] * 10), arm("upgd", [50.0] * 9 + [60.0])]))
    assert "every seed of one" not in tied


def test_the_primary_measure_comes_first_and_the_others_are_exploratory():
    arms = [arm("adam", spread(20, 90, 6)), arm("upgd", spread(30, 110, 6))]
    for primary in COMPARED:
        result = only(arms, primary=primary)
        (sentences,) = (about for title, about in verdict(result).items() if "against" in title)
        assert sentences[0].startswith("Primary measure: ")
        assert sum(line.startswith("Primary measure: ") for line in sentences) == 1
        assert sum(line.startswith("Exploratory: ") for line in sentences) == len(COMPARED)


def test_p_values_are_adjusted_for_everything_that_the_page_compares():
    arms = [arm(name, spread(low, low + 40, 6)) for name, low in (("a", 5), ("b", 20), ("c", 60))]
    result = only(arms)
    assert result.comparisons == 3 * (len(COMPARED) + 1)
    plain = [
        p
        for pair in result.pairs
        for p in (*(one.p_value for one in pair.improvement.values()), pair.collapse_p_value)
    ]
    adjusted = [
        p
        for pair in result.pairs
        for p in (*(one.adjusted_p for one in pair.improvement.values()), pair.collapse_adjusted_p)
    ]
    np.testing.assert_allclose(adjusted, holm(np.array(plain)))


def test_numbers_run_in_one_direction_whoever_is_better():
    low, high = spread(5, 40, 10), spread(80, 110, 10)
    for finals, winner in (((low, high), "upgd"), ((high, low), "adam")):
        result = only([arm("adam", finals[0]), arm("upgd", finals[1])])
        (pair,) = result.pairs
        assert (pair.first, pair.second) == ("upgd", "adam")
        assert pair.improvement["final"].probability.value == (1 if winner == "upgd" else 0)
        text = said(result)
        assert f"{winner} ends with higher returns than" in text
        assert "a seed of upgd ends above one of adam with probability" in text
        assert "a seed of adam" not in text


def test_keeping_more_is_said_beside_what_there_was_to_keep():
    result = only([arm("adam", spread(5, 40, 10)), arm("upgd", spread(80, 110, 10))])
    (sentence,) = (
        line
        for about in verdict(result).values()
        for line in about
        if "keeps more of what it learned" in line
    )
    peak = result.arms[1].estimates["peak", "mean"].value
    assert f"mean peaks, which are what there was to lose: upgd {peak:,.4g}" in sentence


def test_what_so_few_seeds_could_have_shown_is_told():
    ten = said(only([arm("adam", spread(20, 90, 10)), arm("upgd", spread(30, 110, 10))]))
    assert "the smallest difference that four studies of five would state" in ten
    three = said(only([arm("adam", [5, 6, 7]), arm("upgd", [98, 99, 100])]))
    assert "no difference, however large, is sure to be stated" in three


def test_halting_is_a_fall_and_the_end_of_the_run_is_not():
    result = only([arm("adam", [100] * 5, halted={2: 70_000}), arm("upgd", [100] * 5)])
    adam, upgd = result.arms
    assert (adam.survival.events, upgd.survival.events) == (1, 0)
    assert adam.survival.time.tolist() == pytest.approx([0, 69_000, STEPS], abs=1_001)
    assert adam.survival.value.tolist() == pytest.approx([1, 0.8, 0.8])
    assert (adam.fell.value, upgd.fell.value) == (pytest.approx(0.2), 0)


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
    assert "Primary measure: upgd keeps more of what it learned than adam" in about[0]
    assert "Exploratory: upgd ends with higher returns than adam" in about[1]
    assert "12 and 12 seeds" in about[1]
    assert study.suite_arms[0].collapsed.low > 0.7  # exact: twelve of twelve is no certainty
    assert study.comparisons == 3 * 5 + 5 + 3
