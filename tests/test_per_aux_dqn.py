"""The maths of per_aux_dqn.py by hand, that it is dqn.py when all is off, and the Blind Cliffwalk."""

import itertools

import numpy as np
import pytest
import torch
from conftest import read_log

import dqn
import per_aux_dqn

OFF = {"prioritized": False, "auxiliary": False, "augmentation": "none"}


def test_with_all_off_it_is_dqn_to_the_weight(short_args):
    theirs = (
        dqn.train(short_args("dqn", max_episode_steps=30, learning_rate=5e-4, anneal_lr=True)).state_dict().values()
    )
    ours = per_aux_dqn.train(short_args("per_aux_dqn", max_episode_steps=30, **OFF)).state_dict().values()
    assert all(torch.equal(a, b) for a, b in zip(theirs, itertools.islice(ours, 6), strict=True))


def test_error_and_loss_by_hand():
    # errors -0.5 (Huber 0.125) and 3 (Huber 2.5), weighted with 1 and 0.5
    q = torch.tensor([[1.5, 9.0], [9.0, 4.0]], requires_grad=True)
    error = per_aux_dqn.td_error(q, torch.tensor([0, 1]), torch.tensor([2.0, 1.0]))
    assert error.tolist() == [-0.5, 3.0]
    loss = per_aux_dqn.td_loss(error, torch.tensor([1.0, 0.5]))
    assert loss.item() == pytest.approx((0.125 + 0.5 * 2.5) / 2)
    loss.backward()
    assert q.grad.tolist() == [[-0.25, 0.0], [0.0, 0.25]]


def test_target_bootstraps_through_the_time_limit_but_not_through_termination():
    next_q = torch.tensor([[2.0, 4.0], [2.0, 4.0]])
    assert per_aux_dqn.td_target(torch.ones(2), torch.tensor([0.0, 1.0]), next_q, 0.5).tolist() == [3.0, 1.0]


def test_priority_is_a_power_of_the_size_of_the_error():
    assert per_aux_dqn.priority(np.array([-4.0, 4.0, 0.0]), 0.5, epsilon=0.0).tolist() == [2.0, 2.0, 0.0]
    assert per_aux_dqn.priority(np.array([0.0]), 1.0, 0.1)[0] == 0.1  # what is well predicted is still replayed
    assert per_aux_dqn.priority(np.array([3.0, 7.0]), 0.0, 0.1).tolist() == [1.0, 1.0]


def test_importance_weights_by_hand():
    # N P = 1.6 and 0.4: weights 0.625 and 2.5 at beta 1, divided by the largest
    assert per_aux_dqn.importance_weight(np.array([0.4, 0.1]), 4, 1.0).tolist() == pytest.approx([0.25, 1.0])
    assert per_aux_dqn.importance_weight(np.array([0.4, 0.1]), 4, 0.0).tolist() == [1.0, 1.0]
    assert per_aux_dqn.importance_weight(np.array([0.4, 0.1]), 4, 0.5).tolist() == pytest.approx([0.5, 1.0])


def filled(n: int, capacity: int = 16, prioritized: bool = True) -> per_aux_dqn.ReplayBuffer:
    buffer = per_aux_dqn.ReplayBuffer(capacity, 1, prioritized)
    number = np.arange(n)
    buffer.add(number[:, None], number, number, number[:, None], number)
    return buffer


def test_transitions_are_drawn_in_proportion_to_their_priorities():
    buffer, rng = filled(11), np.random.default_rng(0)
    weights = np.arange(1.0, 12.0)
    buffer.update(np.arange(11), weights)
    counts = np.zeros(11)
    for _ in range(2_000):  # batches of 7: the borders of the equal parts fall inside transitions
        rows, *columns, weight = buffer.sample(7, 1.0, rng)
        assert columns[1].tolist() == rows.tolist()
        assert weight.tolist() == pytest.approx((1 / weights[rows] / (1 / weights[rows]).max()).tolist())
        counts += np.bincount(rows, minlength=11)
    expected = 14_000 * weights / weights.sum()
    assert ((counts - expected) ** 2 / expected).sum() < 29.6  # chi-square, 10 degrees of freedom, p = 0.001


def test_priorities_follow_the_errors_of_what_was_replayed(short_args, monkeypatch):
    """In training: after each update p^alpha of its rows is (|delta| + epsilon)^alpha, alpha applied once."""
    errors, drawn, renewed, buffer = [], [], [], per_aux_dqn.ReplayBuffer
    error, sample, update = per_aux_dqn.td_error, buffer.sample, buffer.update
    monkeypatch.setattr(per_aux_dqn, "td_error", lambda *a: (errors.append(error(*a)), errors[-1])[1])
    monkeypatch.setattr(buffer, "sample", lambda self, *a: (drawn.append(sample(self, *a)), drawn[-1])[1])
    monkeypatch.setattr(buffer, "update", lambda self, *a: (renewed.append(a), update(self, *a))[1])
    per_aux_dqn.train(short_args("per_aux_dqn", alpha=0.5, priority_epsilon=0.01, eval_every=0, total_timesteps=400))
    assert len(errors) == len(drawn) == len(renewed) > 50
    for delta, (rows, *_), (changed, priorities) in zip(errors, drawn, renewed, strict=True):
        assert np.array_equal(rows, changed)
        assert priorities == pytest.approx((np.abs(delta.detach().numpy()) + 0.01) ** 0.5)


def test_a_batch_takes_one_from_each_equal_part_of_the_mass():
    buffer = filled(8, capacity=8)
    rows = buffer.sample(8, 1.0, np.random.default_rng(0))[0]  # equal priorities: each once
    assert rows.tolist() == list(range(8))


def test_weighted_mean_is_unbiased_at_beta_one():
    """sum_i P(i) w_i x_i is proportional to the plain mean of x: the same for any priorities."""
    rng = np.random.default_rng(0)
    p, x = rng.random(9), rng.standard_normal(9)
    p /= p.sum()
    weight = per_aux_dqn.importance_weight(p, 9, 1.0)
    assert (p * weight * x).sum() / (p * weight).sum() == pytest.approx(x.mean())


def test_new_transitions_have_the_highest_priority_and_overwrite_the_oldest():
    buffer = filled(5, capacity=5)
    buffer.update(np.array([1, 3]), np.array([7.0, 0.5]))
    assert buffer.priorities().tolist() == [1, 7, 1, 0.5, 1]
    number = np.array([5, 6])
    buffer.add(number[:, None], number, number, number[:, None], number)
    assert buffer.priorities().tolist() == [7, 7, 1, 0.5, 1]
    assert buffer.action.tolist() == [5, 6, 2, 3, 4]


def test_sums_equal_the_leaves_after_many_changes():
    tree, rng, leaves = per_aux_dqn.SumTree(1_000), np.random.default_rng(0), np.zeros(1_000)
    for _ in range(10_000):
        rows, values = rng.integers(1_000, size=8), 10.0 ** rng.uniform(-6, 6, size=8)
        tree.set(rows, values)
        leaves[rows] = values  # of a row given twice the last counts, in both
    assert tree.sums[tree.leaves :][:1_000].tolist() == leaves.tolist()
    assert tree.sums[1] == pytest.approx(leaves.sum(), rel=1e-12)


def test_mass_is_found_where_the_sums_say():
    tree = per_aux_dqn.SumTree(5)
    tree.set(np.arange(5), np.array([1.0, 0.0, 2.0, 0.5, 0.5]))
    assert tree.find(np.array([0.0, 0.99, 1.0, 2.99, 3.0, 3.5, 3.99])).tolist() == [0, 0, 2, 2, 3, 4, 4]


def test_reward_loss_by_hand():
    predicted = torch.tensor([[1.0, 5.0], [2.0, 7.0]])
    assert per_aux_dqn.reward_loss(predicted, torch.tensor([0, 1]), torch.tensor([3.0, 4.0])).item() == (2.0 + 4.5) / 2


def test_next_observation_is_not_learned_beyond_an_end():
    predicted = torch.tensor([[[1.0, 0.0], [9.0, 9.0]], [[3.0, 3.0], [5.0, 5.0]]], requires_grad=True)
    next_obs, terminated = torch.tensor([[0.0, 2.0], [0.0, 0.0]]), torch.tensor([0.0, 1.0])
    loss = per_aux_dqn.next_obs_loss(predicted, torch.tensor([0, 1]), next_obs, terminated)
    assert loss.item() == 0.5 * (1.0 + 4.0) / 2
    loss.backward()
    assert predicted.grad.tolist() == [[[0.5, -1.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]


def test_auxiliary_losses_reach_the_trunk_of_q():
    network = per_aux_dqn.QNetwork(3, 4)
    obs, action = torch.rand(5, 3), torch.tensor([0, 1, 2, 3, 0])
    features = network.trunk(obs)
    losses = {
        "reward_head": per_aux_dqn.reward_loss(network.reward_head(features), action, torch.ones(5)),
        "next_obs_head": per_aux_dqn.next_obs_loss(network.next_obs_head(features), action, obs, torch.zeros(5)),
    }
    for head, loss in losses.items():
        gradients = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True, allow_unused=True)
        names = [name.split(".")[0] for name, _ in network.named_parameters()]
        assert {name for name, g in zip(names, gradients, strict=True) if g is not None and g.any()} == {"trunk", head}


def test_auxiliary_losses_change_what_q_becomes(short_args):
    """In training too each of them reaches the trunk: with it Q ends elsewhere than without."""
    off, reward, next_obs = (
        per_aux_dqn.train(
            short_args(
                "per_aux_dqn", eval_every=0, prioritized=False, reward_weight=weights[0], next_obs_weight=weights[1]
            )
        ).q_head.weight
        for weights in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))
    )
    assert not torch.equal(off, reward)
    assert not torch.equal(off, next_obs)


@pytest.mark.parametrize("kind", ["none", "noise", "dropout", "scaling"])
def test_augmentations(kind):
    strength = {"none": 9.0, "noise": 0.5, "dropout": 0.25, "scaling": 0.2}[kind]
    scale, shift = per_aux_dqn.draw_augmentation(kind, strength, (4_000, 3), np.random.default_rng(0))
    assert (scale.float().mean().item(), shift.mean().item()) == pytest.approx(
        (0.75 if kind == "dropout" else 1.0, 0.0), abs=0.02
    )
    assert shift.std(correction=0).item() == pytest.approx(0.5 if kind == "noise" else 0.0, abs=0.02)
    if kind == "scaling":
        assert scale.shape == (4_000, 1)  # one for the whole observation
        assert (0.8 <= scale).all()
        assert (scale <= 1.2).all()
        assert scale.std().item() == pytest.approx(0.4 / 12**0.5, abs=0.01)


def test_an_observation_and_the_next_one_are_augmented_alike(short_args, monkeypatch):
    """Moves into a wall have s = s': after augmentation they are still one observation."""
    seen = []
    loss = per_aux_dqn.next_obs_loss
    monkeypatch.setattr(per_aux_dqn, "next_obs_loss", lambda *a: (seen.append(a[2]), loss(*a))[1])
    trunk = []
    monkeypatch.setattr(
        per_aux_dqn.QNetwork, "__init__", hooked(per_aux_dqn.QNetwork.__init__, lambda obs: trunk.append(obs))
    )
    for kind in "noise", "dropout", "scaling":
        seen.clear(), trunk.clear()
        per_aux_dqn.train(short_args("per_aux_dqn", augmentation=kind, total_timesteps=160, num_envs=1, eval_every=0))
        obs = [x for x in trunk if x.shape == seen[0].shape][1::2]  # the network's input, after the target's
        same = [(o[i], n[i]) for o, n in zip(obs, seen, strict=True) for i in range(len(o)) if near(o[i], n[i])]
        assert len(same) > 20
        assert all(torch.equal(o, n) for o, n in same)


def near(obs: torch.Tensor, next_obs: torch.Tensor) -> bool:
    """Whether both are of one cell, however they are augmented; not where nothing is left of the cell."""
    return bool(obs.max() > 0.5 and next_obs.max() > 0.5 and obs.argmax() == next_obs.argmax())


def hooked(make, hook):
    def patched(self, *arguments):
        make(self, *arguments)
        self.trunk.register_forward_pre_hook(lambda _, inputs: hook(inputs[0].detach()))

    return patched


def test_log_says_what_is_replayed_and_what_each_loss_weighs(short_args, tmp_path):
    per_aux_dqn.train(short_args("per_aux_dqn"))
    log = read_log(next(tmp_path.iterdir()))
    for tag in "losses/reward_loss losses/next_obs_loss losses/td_loss replay/priority_p5 replay/priority_p95".split():
        assert tag in log
    assert log["replay/beta"][-1][1] == pytest.approx(0.4 + 0.6 * 1_000 / 1_200)
    assert "pictures/replay" in log["images"]


# ----------------------------------------------------------------------------- the paper's experiment, section 3.1


def blind_cliffwalk(n: int, alpha: float | None, seed: int) -> int:
    """Updates of tabular Q until its mean squared error is below 1e-3; alpha None is uniform replay.

    n states, two actions of which one, by turns, leads on and the other ends the episode; only the last right action is
    rewarded, with 1. The memory holds the transitions of all 2^n sequences of actions. Step 1/4, gamma = 1 - 1/n.
    """
    rng, gamma = np.random.default_rng(seed), 1 - 1 / n
    memory = []  # (state, action, reward, next state or None)
    for actions in itertools.product((0, 1), repeat=n):
        for s, action in enumerate(actions):
            on = action == s % 2
            memory.append((s, action, float(on and s == n - 1), s + 1 if on and s < n - 1 else None))
            if not on:
                break
    assert len(memory) == 2 ** (n + 1) - 2
    true = np.array([[gamma ** (n - 1 - s) * (action == s % 2) for action in (0, 1)] for s in range(n)])
    q, tree = 0.1 * rng.standard_normal((n, 2)), per_aux_dqn.SumTree(len(memory))
    tree.set(np.arange(len(memory)), 1.0)
    for updates in itertools.count(1):
        row = rng.integers(len(memory)) if alpha is None else int(tree.find(rng.random(1) * tree.sums[1])[0])
        s, action, reward, next_s = memory[row]
        error = reward + (0.0 if next_s is None else gamma * q[next_s].max()) - q[s, action]
        q[s, action] += 0.25 * error
        if alpha is not None:
            tree.set(np.array([row]), per_aux_dqn.priority(np.array([error]), alpha, 1e-3))
        if updates % 10 == 0 and np.square(q - true).mean() < 1e-3:
            return updates
    raise AssertionError


@pytest.mark.paper
def test_blind_cliffwalk():
    """Figure 1: with rare rewards prioritized replay needs several times fewer updates. 10 seeds."""
    kinds = {"uniform": None, "alpha 0.6": 0.6, "alpha 1": 1.0}
    updates = {
        (n, name): [blind_cliffwalk(n, alpha, seed) for seed in range(10)]
        for n in (8, 10)
        for name, alpha in kinds.items()
    }
    median = {key: float(np.median(values)) for key, values in updates.items()}
    print(median)
    assert median[10, "uniform"] / median[10, "alpha 0.6"] >= 4.5
    assert 3_500 <= median[10, "alpha 0.6"] <= 6_000  # alpha applied twice: 7 761


# (what stands there, a known misreading, the test that must notice); python -m pytest -m mutants
MUTANTS = [
    ("(np.abs(error) + epsilon) ** alpha", "np.abs((error + epsilon) ** 1.0)", "power_of_the_size"),
    ("(np.abs(error) + epsilon)", "np.maximum(error + epsilon, 0)", "power_of_the_size"),
    ("(size * probability) ** -beta", "(size * probability) ** beta", "importance_weights_by_hand"),
    ("    return weight / weight.max()", "    return weight / weight.sum()", "importance_weights_by_hand"),
    ("self.tree.set(rows, self.highest)", "self.tree.set(rows, 1.0)", "highest_priority"),
    ("(np.arange(batch_size) + rng.random(batch_size)) / batch_size * total", "rng.random(batch_size) * total", "one_from_each"),
    ("mass - left * to_right", "mass", "where_the_sums_say"),
    ("self.sums[node] = self.sums[2 * node] + self.sums[2 * node + 1]", "self.sums[node] += priorities", "sums_equal_the_leaves"),
    ("error.square().sum(dim=1) * (1.0 - terminated)", "error.square().sum(dim=1)", "not_learned_beyond"),
    ("(weight * F.smooth_l1_loss", "(F.smooth_l1_loss", "error_and_loss_by_hand"),
    ("network.reward_head(features)", "network.reward_head(features.detach())", "change_what_q_becomes"),
    ("network.next_obs_head(features)", "network.next_obs_head(features.detach())", "change_what_q_becomes"),
    ("b_next_obs * scale + shift", "b_next_obs", "augmented_alike"),
    ("(1.0 - terminated) * next_q", "next_q", "through_termination"),
    ("self.tree.sums[rows + self.tree.leaves] / total, len(self), beta", "self.tree.sums[rows + self.tree.leaves] / total, len(self), 1 - beta", "proportion_to_their"),
    ("priority(error.detach().cpu().numpy(), args.alpha, args.priority_epsilon))", "priority(error.detach().cpu().numpy(), args.alpha, args.priority_epsilon) ** args.alpha)", "follow_the_errors"),
    ("                if args.prioritized:\n                    buffer.update", "                if False:\n                    buffer.update", "follow_the_errors"),
    ("buffer.add(obs, action, reward, last_obs, terminated)", "buffer.add(obs, action, reward, last_obs, ended)", "off_it_is"),
    ("linear_schedule(args.beta, 1.0,", "linear_schedule(args.beta, args.beta,", "log_says"),
    ("self.highest = max(self.highest, priorities.max())", "self.max_priority = max(self.max_priority, priorities.max())", "log_says"),
]  # fmt: skip
