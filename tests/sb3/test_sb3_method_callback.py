"""A method acts on Stable-Baselines3 policies: on which units, when, and on nothing else."""

import copy

import pytest
import torch
from stable_baselines3 import DQN, PPO, SAC

from upgd_ppo.sb3 import AdaptiveUPGD, MethodCallback, UPGDPolicy

SMALL = {"net_arch": [8, 8]}


class Watched(MethodCallback):
    """Notes what the policy was just before the method acted, and just after."""

    def _begin(self):
        super()._begin()
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.seen = []
        for optimizer, methods in self._acting.items():
            if methods.networks.layers:
                self._handles.append(optimizer.register_step_post_hook(self._watch(methods)))

    def _watch(self, methods):
        def hook(*_):
            before, count = self._copy(), methods.scalars["units_renewed"].sum()
            methods.after_step(torch.ones(1, dtype=torch.bool))
            if methods.scalars["units_renewed"].sum() > count:
                self.seen.append((methods.networks, before, self._copy()))

        return hook

    def _copy(self):
        policy = self.model.policy
        found = {(name, ""): p.detach().clone() for name, p in policy.named_parameters()}
        memory = next(iter(self._acting.values())).networks.memory
        for name in memory.names:
            for kind in memory.kinds(name):
                found[name, kind] = memory.read(name, kind)[0].clone()
        return found


def assert_one_unit_per_network_was_renewed(networks, before, after):
    untouched = {
        name: torch.ones_like(value).bool() for (name, kind), value in after.items() if not kind
    }
    for layers in networks.by_network.values():
        renewed = []
        for layer in layers:
            changed = (after[layer.incoming, ""] != before[layer.incoming, ""]).all(1)
            for unit in changed.nonzero().flatten().tolist():
                renewed.append(unit)
                untouched[layer.incoming][unit] = False
                for name in layer.own:
                    untouched[name][unit] = False
                for name in (layer.outgoing, *layer.also_outgoing):
                    untouched[name][:, unit] = False
                    assert not after[name, ""][:, unit].any()
        assert len(renewed) == 1
    for (name, kind), value in after.items():
        assert torch.equal(value[untouched[name]], before[name, kind][untouched[name]]), name
        if kind:
            assert not value[~untouched[name]].any()


def ppo(policy="MlpPolicy", **kwargs):
    settings = {"n_steps": 64, "batch_size": 32, "n_epochs": 2, "seed": 3, "device": "cpu"}
    return PPO(policy, "Pendulum-v1", policy_kwargs=dict(SMALL), **{**settings, **kwargs})


@pytest.mark.parametrize("policy", ["MlpPolicy", UPGDPolicy])
def test_units_of_a_ppo_policy_begin_anew(policy):
    model, callback = ppo(policy), Watched("random_reset", every=3)
    model.learn(192, callback=callback)
    networks, _, after = callback.seen[-1]
    assert len(networks.layers) == 4
    assert networks.initialization == "orthogonal"
    assert len(callback.seen) == 12 // 3
    for acted in callback.seen:
        assert_one_unit_per_network_was_renewed(*acted)
    kinds = {kind for _, kind in after if kind}
    assert ("utility" in kinds) == (policy is UPGDPolicy)
    assert callback.units_renewed == 2 * 4


def test_units_of_a_sac_policy_begin_anew_at_the_step_of_their_own_optimizer():
    model = SAC(
        "MlpPolicy",
        "Pendulum-v1",
        learning_starts=32,
        seed=3,
        device="cpu",
        policy_kwargs=dict(SMALL),
    )
    callback = Watched("random_reset", every=5)
    model.learn(60, callback=callback)
    assert {tuple(networks.by_network) for networks, _, _ in callback.seen} == {
        ("actor.latent_pi",),
        ("critic.qf0", "critic.qf1"),
    }
    for networks, before, after in callback.seen:
        assert_one_unit_per_network_was_renewed(networks, before, after)
    actor = next(n for n, _, _ in callback.seen if "actor.latent_pi" in n.by_network)
    # The last hidden layer feeds means and standard deviations alike.
    assert {actor.layers[-1].outgoing, *actor.layers[-1].also_outgoing} == {
        "actor.mu.weight",
        "actor.log_std.weight",
    }


def test_a_target_network_is_left_to_its_algorithm():
    model = DQN("MlpPolicy", "CartPole-v1", learning_starts=16, train_freq=1, seed=3, device="cpu")
    callback = Watched("random_reset", every=4)
    model.learn(40, callback=callback)
    assert callback.seen
    for networks, before, after in callback.seen:
        assert list(networks.by_network) == ["q_net.q_net"]
        for (name, kind), value in after.items():
            if name.startswith("q_net_target"):
                assert torch.equal(value, before[name, kind])


def test_a_method_that_never_acts_changes_nothing_and_draws_nothing():
    never = MethodCallback("random_reset", every=10**6)
    # One after the other: making a model seeds the global random numbers that it draws.
    models = [ppo().learn(128, callback=never), ppo().learn(128)]
    for ours, theirs in zip(*(model.policy.parameters() for model in models), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_training_that_goes_on_counts_on(elsewhere):
    model, callback = ppo(), MethodCallback("random_reset", every=5)
    model.learn(64, callback=callback)  # 4 steps
    assert callback.units_renewed == 0
    if elsewhere:
        state, callback = (
            copy.deepcopy(callback.state_dict()),
            MethodCallback("random_reset", every=5),
        )
        callback.load_state_dict(state)
    model.learn(64, callback=callback, reset_num_timesteps=False)
    assert callback.units_renewed == 2
    hooks = model.policy.optimizer._optimizer_step_post_hooks
    assert not hooks


def test_what_cannot_be_acted_on_is_said():
    with pytest.raises(ValueError, match="Perhaps you meant random_reset"):
        MethodCallback("random_rest")
    with pytest.raises(ValueError, match="whole number"):
        MethodCallback("random_reset", every=0)
    model = PPO(
        "MlpPolicy", "Pendulum-v1", n_steps=32, batch_size=32, policy_kwargs={"net_arch": []}
    )
    with pytest.raises(ValueError, match="finds nothing to act on"):
        model.learn(32, callback=MethodCallback("random_reset"))


def test_any_optimizer_of_the_package_will_do():
    model = ppo(policy="MlpPolicy")
    model.policy.optimizer = AdaptiveUPGD(model.policy.parameters(), lr=3e-4)
    callback = Watched("random_reset", every=1)
    model.learn(64, callback=callback)
    assert len(callback.seen) == 4
    assert_one_unit_per_network_was_renewed(*callback.seen[-1])
