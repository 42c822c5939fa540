"""The laws: members are independent, resuming is exact, arms differ in the optimizer alone."""

import multiprocessing

import numpy as np
import pytest
import torch

from upgd_ppo.agents.optimizers import names
from upgd_ppo.agents.population.population import Population, make_learner
from upgd_ppo.agents.settings.config import TrainConfig

pytestmark = pytest.mark.usefixtures("computed_by")

SMALL = {
    "env": "Hopper-v4",
    "rollout_steps": 64,
    "minibatches": 4,
    "epochs": 3,
    "hidden_sizes": (16, 16),
    "steps": 64 * 4,
    "threads": 1,
}
NATURE = {
    "minibatches": 2,
    "normalize_observations": False,
    "normalize_rewards": False,
    "clip_actions": False,
    "clip_value_loss": False,
    "max_grad_norm": 0.0,
    "normalize_advantages": "rollout",
    "activation": "relu",
    "initialization": "lecun_uniform",
}
NO_REPRESENTATION = {
    "envs_per_seed": 2,
    "normalize_rewards": False,
    "fixed_normalization_steps": 50,
    "time_in_observation": True,
    "clip_value_loss": False,
    "separate_gradient_clipping": True,
    "separate_optimizers": True,
    "max_log_ratio": 20.7,
    "initialization": "pytorch",
    "state_dependent_std": True,
    "squash_actions": True,
}
PROTOCOLS = {
    "nature": NATURE,
    "no_representation": NO_REPRESENTATION,
    "squashed_free_std": {"squash_actions": True, "entropy_coef": 0.01},
    "network_std": {"state_dependent_std": True, "target_kl": 0.003, "layer_norm": True},
}
ODD = {"hidden_sizes": (13, 7), "rollout_steps": 45, "minibatches": 5, "steps": 45 * 4}


def config(**changes):
    return TrainConfig().with_flat({**SMALL, **changes})


def assert_equal(ours, theirs):
    """Two nested states have the same bits."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_equal(ours[key], theirs[key])
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs)
        for mine, other in zip(ours, theirs, strict=True):
            assert_equal(mine, other)
    elif isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs)
    elif isinstance(ours, np.ndarray):
        np.testing.assert_array_equal(ours, theirs)
    else:
        assert ours == theirs


def member_of(state, member, num_members):
    """The part of one member of a population's state."""
    if isinstance(state, dict):
        return {key: member_of(value, member, num_members) for key, value in state.items()}
    if isinstance(state, torch.Tensor | np.ndarray | list):
        size = len(state) // num_members
        return state[member * size : (member + 1) * size]
    return state


def advanced(population, iterations=3):
    for _ in range(iterations):
        report = population.advance()
    return population.state_dict(), report


OPTIMIZERS = ["adam", "upgd", "sgd", "rmsprop", "adamw", "torch.optim.NAdam"]


@pytest.mark.parametrize("shape", [{}, ODD], ids=["even", "odd"])
@pytest.mark.parametrize("opt", OPTIMIZERS)
def test_a_member_of_eight_equals_the_same_seed_alone(opt, shape):
    together, _ = advanced(Population(config(opt=opt, seeds=8, **shape)))
    for member in (0, 5):
        alone, _ = advanced(Population(config(opt=opt, seeds=1, seed=1 + member, **shape)))
        assert_equal(member_of(together, member, 8), alone)


@pytest.mark.parametrize(
    "changes",
    [
        {"activation": "relu"},
        {"activation": "leaky_relu"},
        {"activation": "elu"},
        {"activation": "silu"},
        {"layer_norm": True},
        {"envs_per_seed": 3, "bootstrap_time_limits": True},
        {"target_kl": 0.003},
        {"normalize_observations": False, "normalize_rewards": False},
        {"env": "Pendulum-v1"},
    ],
    ids=lambda changes: "-".join(f"{key}={value}" for key, value in changes.items()),
)
def test_a_member_is_independent_under_every_setting(changes):
    changes = {**ODD, **changes}
    together, report = advanced(Population(config(seeds=3, **changes)))
    alone, own = advanced(Population(config(seeds=1, seed=2, **changes)))
    assert_equal(member_of(together, 1, 3), alone)
    for name, values in own.scalars.items():
        np.testing.assert_array_equal(report.scalars[name][1:2], values)


@pytest.mark.parametrize("layer_norm", [False, True], ids=["", "layer_norm"])
@pytest.mark.parametrize("hidden_sizes", [(1,), (1, 16), (16, 1), (4, 1, 16)], ids=str)
def test_a_member_is_independent_where_a_layer_has_one_unit(hidden_sizes, layer_norm):
    changes = dict(opt="adam", hidden_sizes=hidden_sizes, layer_norm=layer_norm)
    changes |= {"rollout_steps": 128, "minibatches": 2, "steps": 128 * 2}
    together, _ = advanced(Population(config(seeds=3, **changes)), 2)
    alone, _ = advanced(Population(config(seeds=1, seed=2, **changes)), 2)
    assert_equal(member_of(together, 1, 3), alone)


@pytest.mark.parametrize("opt", ["upgd_local", "feature_upgd"])
def test_a_member_is_independent_where_layers_are_large(opt):
    changes = dict(opt=opt, hidden_sizes=(129, 128), epochs=1, target_kl=None)
    together, _ = advanced(Population(config(seeds=3, **changes)), 1)
    alone, _ = advanced(Population(config(seeds=1, seed=2, **changes)), 1)
    assert_equal(member_of(together, 1, 3), alone)


@pytest.mark.parametrize("opt", [*names(), "torch.optim.NAdam"])
def test_a_threshold_that_is_never_reached_changes_nothing(opt):
    states = [
        advanced(Population(config(opt=opt, seeds=3, target_kl=target_kl, **ODD)), 2)[0]
        for target_kl in (None, 1e9)
    ]
    ours, theirs = [{**state, "optimizer": None} for state in states]
    assert_equal(ours, theirs)


@pytest.mark.parametrize("opt", ["adam", "upgd"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_member_is_independent_under_every_protocol(protocol, opt):
    changes = {"opt": opt, **ODD, **PROTOCOLS[protocol], "minibatches": 5}
    together, report = advanced(Population(config(seeds=3, **changes)))
    alone, own = advanced(Population(config(seeds=1, seed=2, **changes)))
    assert_equal(member_of(together, 1, 3), alone)
    for name, values in own.scalars.items():
        np.testing.assert_array_equal(report.scalars[name][1:2], values)


@pytest.mark.parametrize("opt", ["adam", "upgd"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_under_every_protocol_a_restored_population_goes_on(protocol, opt):
    changes = {"opt": opt, **PROTOCOLS[protocol]}
    whole = Population(config(seeds=2, **changes))
    halfway, _ = advanced(whole, 2)
    expected, _ = advanced(whole, 2)
    restored = Population(config(seeds=2, threads=2, **changes))
    restored.load_state_dict(halfway)
    assert_equal(advanced(restored, 2)[0], expected)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_under_every_protocol_arms_differ_in_the_optimizer_alone(protocol):
    learners = [
        make_learner(config(opt=name, **PROTOCOLS[protocol]), [7]) for name in ("adam", "upgd")
    ]
    assert torch.equal(*[learner.networks.parameters.data for learner in learners])
    for learner in learners:
        learner.collector.collect()
    for name in ("observations", "actions", "rewards", "dones", "log_probs", "values"):
        np.testing.assert_array_equal(*[getattr(learner.rollout, name) for learner in learners])


def test_the_number_of_threads_changes_nothing():
    one, _ = advanced(Population(config(seeds=5)))
    two, _ = advanced(Population(config(seeds=5, threads=2)))
    assert_equal(one, two)


def test_what_is_saved_is_the_iteration_last_reported_however_far_a_block_is():
    one, two = Population(config(seeds=2)), Population(config(seeds=2, threads=2))
    for _ in range(SMALL["steps"] // SMALL["rollout_steps"]):
        assert_equal(two.state_dict(), one.state_dict())
        ours, theirs = two.advance(), one.advance()
        assert ours.episodes == theirs.episodes
    assert_equal(two.state_dict(), one.state_dict())


def test_the_death_of_a_worker_process_is_said():
    population = Population(config(seeds=2, threads=2, steps=64 * 1000))
    population.advance()
    children = multiprocessing.active_children()
    for child in children:
        child.kill()
        child.join()
    assert children
    with pytest.raises(RuntimeError, match="worker process died"):
        advanced(population)


@pytest.mark.parametrize("opt", ["upgd", "sgd"])
def test_arms_differ_in_the_optimizer_alone(opt):
    learners = [make_learner(config(opt=name), [7]) for name in ("adam", opt)]
    assert torch.equal(*[learner.networks.parameters.data for learner in learners])
    for learner in learners:
        learner.collector.collect()
    for name in ("observations", "actions", "rewards", "dones", "log_probs", "values"):
        np.testing.assert_array_equal(*[getattr(learner.rollout, name) for learner in learners])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("opt", ["adam", "upgd", "sgd", "torch.optim.NAdam"])
def test_a_restored_population_goes_on_as_if_it_had_not_stopped(opt, threads):
    whole = Population(config(opt=opt, seeds=3))
    halfway, _ = advanced(whole, 2)
    expected, _ = advanced(whole, 2)
    restored = Population(config(opt=opt, seeds=3, threads=threads))
    restored.load_state_dict(halfway)
    assert restored.steps == 2 * SMALL["rollout_steps"]
    assert_equal(advanced(restored, 2)[0], expected)


RESETS = {"methods": {"random_reset": {"every": 2}}}
ACTED_ON = ["adam", "upgd", "feature_upgd", "torch.optim.NAdam"]


@pytest.mark.parametrize("changes", [{}, PROTOCOLS["network_std"]], ids=["", "network_std"])
@pytest.mark.parametrize("opt", ACTED_ON)
def test_a_member_that_a_method_acts_on_is_independent(opt, changes):
    changes = {"opt": opt, **ODD, **changes, **RESETS, "minibatches": 5}
    together, report = advanced(Population(config(seeds=3, **changes)))
    alone, own = advanced(Population(config(seeds=1, seed=2, **changes)))
    assert_equal(member_of(together, 1, 3), alone)
    assert own.scalars["units_renewed"][0] > 0
    np.testing.assert_array_equal(
        report.scalars["units_renewed"][1:2], [own.scalars["units_renewed"][0]]
    )


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("opt", ACTED_ON)
def test_a_restored_population_that_a_method_acts_on_goes_on(opt, threads):
    changes = {"opt": opt, "methods": {"random_reset": {"every": 7}}}
    whole = Population(config(seeds=3, **changes))
    halfway, _ = advanced(whole, 2)
    expected, _ = advanced(whole, 2)
    restored = Population(config(seeds=3, threads=threads, **changes))
    restored.load_state_dict(halfway)
    assert_equal(advanced(restored, 2)[0], expected)


def test_an_arm_with_a_method_begins_like_one_without():
    learners = [make_learner(config(opt="adam", **changes), [7]) for changes in ({}, RESETS)]
    assert torch.equal(*[learner.networks.parameters.data for learner in learners])
    for learner in learners:
        learner.collector.collect()
    for name in ("observations", "actions", "rewards", "dones", "log_probs", "values"):
        np.testing.assert_array_equal(*[getattr(learner.rollout, name) for learner in learners])


def test_a_method_that_does_not_act_changes_nothing():
    never = {"methods": {"random_reset": {"every": 10**6}}}
    states = [advanced(Population(config(seeds=2, **changes)))[0] for changes in ({}, never)]
    ours, theirs = [{**state, "methods": None} for state in states]
    assert_equal(ours, theirs)
