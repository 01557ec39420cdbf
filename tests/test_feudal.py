"""The maths of feudal.py by hand and by finite differences, what its memory holds, and the paper's experiments."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import read_log

import feudal
import gridworld

Z = feudal.Feudal.latent


def make_network(obs_dim=6, c=3, manager=True):
    torch.manual_seed(0)
    return feudal.Feudal(obs_dim, 4, c, manager).double()


def play_through(network, obs, start):
    """(goal, pooled) of every step, and the memory at the end, for obs (T, N, D) and start (T, N)."""
    memory, steps = network.memory(obs.shape[1]), []
    for t in range(len(obs)):
        goal, pooled, memory = network.manage(obs[t], start[t], memory)
        steps.append((goal, pooled))
    return *(torch.stack(column) for column in zip(*steps, strict=True)), memory


def starts(steps, n, *where):
    start = torch.zeros(steps, n, dtype=torch.bool)
    start[0] = True
    for t, i in where:
        start[t, i] = True
    return start


# ----------------------------------------------------------------------------- goals and rewards


def test_gradient_of_the_cosine():
    """d cos / d g = (d - cos g) / |g| for unit d and g / |g|; it is orthogonal to g."""
    torch.manual_seed(0)
    movement, goal = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64, requires_grad=True)
    cosine = feudal.d_cos(movement, goal)
    (gradient,) = torch.autograd.grad(cosine, goal)
    d, g = movement / movement.norm(), (goal / goal.norm()).detach()
    assert torch.allclose(gradient, (d - cosine.detach() * g) / goal.norm().detach())
    assert (gradient @ g).item() == pytest.approx(0.0, abs=1e-12)


def test_intrinsic_reward_is_one_along_the_goals_and_minus_one_against_them():
    goal = torch.nn.functional.normalize(torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(0)), dim=2)
    past_goal, past_s = goal.expand(5, 3, 4), torch.stack([-i * goal[0] for i in (5.0, 4.0, 3.0, 2.0, 1.0)])
    assert feudal.intrinsic_reward(torch.zeros(3, 4), past_s, past_goal).tolist() == pytest.approx([1.0] * 3)
    assert feudal.intrinsic_reward(torch.zeros(3, 4), -past_s, past_goal).tolist() == pytest.approx([-1.0] * 3)


def test_intrinsic_reward_by_hand():
    """c = 2: from (0, 0) two steps ago with goal (0, 1), from (3, 0) with goal (1, 0), to (3, 4); 1 and 0."""
    past_s, past_goal = torch.tensor([[[0.0, 0.0]], [[3.0, 0.0]]]), torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]]])
    past_goal.requires_grad_()
    reward = feudal.intrinsic_reward(torch.tensor([[3.0, 4.0]]), past_s, past_goal)
    assert reward.tolist() == pytest.approx([(0.8 + 0.0) / 2])
    assert not reward.requires_grad
    with torch.no_grad():
        past_goal[0] = 0.0  # the episode began one step ago: that term is missing, c stays
        past_goal[1] = torch.tensor([0.0, 1.0])
    assert feudal.intrinsic_reward(torch.tensor([[3.0, 4.0]]), past_s, past_goal).tolist() == pytest.approx([0.5])


def test_returns_bootstrap_at_cuts_and_at_the_rollouts_end_but_not_at_termination():
    reward = torch.tensor([[1.0, 1.0, 1.0]] * 3)
    terminated = torch.tensor([[False, False, False], [True, False, False], [False, False, False]])
    ended = torch.tensor([[False, False, False], [True, True, False], [False, False, False]])
    next_value = torch.tensor([[9.0, 9.0, 9.0], [8.0, 8.0, 8.0], [4.0, 4.0, 4.0]], requires_grad=True)
    returns = feudal.n_step_return(reward, terminated, ended, next_value, 0.5)
    assert returns[:, 0].tolist() == [1.5, 1.0, 3.0]  # ends in a terminal state
    assert returns[:, 1].tolist() == [3.5, 5.0, 3.0]  # is cut: 1 + 0.5 * 8
    assert returns[:, 2].tolist() == [2.25, 2.5, 3.0]  # goes on: 1 + 0.5 * 2.5, 1 + 0.5 * 3, 1 + 0.5 * 4
    assert not returns.requires_grad


def test_movements_by_hand():
    """T = 6, c = 3. s_t is t; env 0 ends after step 1, env 1 never, env 2 after steps 3 and 5."""
    s = torch.arange(6.0)[:, None, None].expand(6, 3, 1)
    ended = torch.zeros(6, 3, dtype=torch.bool)
    ended[1, 0] = ended[3, 2] = ended[5, 2] = True
    movement, known = feudal.movements(s, s + 1.0, ended, 3)
    assert movement[:4, 0, 0].tolist() == [2, 1, 3, 3]
    assert known[:, 0].tolist() == [True, True, True, True, False, False]
    assert movement[:4, 1, 0].tolist() == [3, 3, 3, 3]
    assert known[:, 1].tolist() == [True, True, True, True, False, False]
    assert movement[:, 2, 0].tolist() == [3, 3, 2, 1, 2, 1]
    assert known[:, 2].all()


@pytest.mark.parametrize("c", [1, 2, 9])
def test_movements_of_any_horizon(c):
    """Against one environment and step at a time."""
    generator = torch.Generator().manual_seed(c)
    s, next_s = torch.randn(2, 7, 40, 2, generator=generator)
    ended = torch.rand(7, 40, generator=generator) < 0.2
    movement, known = feudal.movements(s, next_s, ended, c)
    for t in range(7):
        for i in range(40):
            last = next((k for k in range(t, 7) if ended[k, i] or k == t + c - 1), None)
            assert known[t, i] == (last is not None)
            assert last is None or torch.equal(movement[t, i], next_s[last, i] - s[t, i])


def test_manager_loss_by_hand():
    goal = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [1.0, 0.0]]], requires_grad=True)
    movement = torch.tensor([[[3.0, 4.0], [3.0, 4.0], [1.0, 1.0]]], requires_grad=True)
    advantage = torch.tensor([[2.0, -1.0, 100.0]], requires_grad=True)
    known = torch.tensor([[True, True, False]])
    loss = feudal.manager_loss(goal, movement, advantage, known)
    assert loss.item() == pytest.approx(-(2.0 * 0.6 - 1.0 * 0.8) / 2)
    loss.backward()
    assert movement.grad is None
    assert advantage.grad is None
    assert goal.grad[0, 0].tolist() == pytest.approx([0.0, -0.8])  # descent turns it to the movement; across only
    assert goal.grad[0, 1].tolist() == pytest.approx([0.6 / 4, 0.0])  # a bad one: away, by A / |g| / 2
    assert goal.grad[0, 2].tolist() == [0.0, 0.0]
    assert feudal.manager_loss(goal, movement, advantage, known & False).item() == 0.0


def test_transition_policy_gradient_by_finite_differences():
    """Through normalisation, pooling and the dilated LSTM over nine steps, in which an episode begins."""
    network, obs = make_network(), torch.rand(9, 2, 6, dtype=torch.float64)
    movement, advantage = torch.randn(9, 2, Z, dtype=torch.float64), torch.randn(9, 2, dtype=torch.float64)
    known, start = torch.rand(9, 2) < 0.8, starts(9, 2, (4, 1))

    def loss():
        return feudal.manager_loss(play_through(network, obs, start)[0], movement, advantage, known)

    for parameter in (network.lstm.weight_hh, network.lstm.bias_ih, network.space[0].weight):
        (gradient,) = torch.autograd.grad(loss(), parameter)
        i = gradient.abs().argmax()
        with torch.no_grad():
            parameter.view(-1)[i] += 1e-6
            high = loss()
            parameter.view(-1)[i] -= 2e-6
            low = loss()
            parameter.view(-1)[i] += 1e-6
        assert gradient.view(-1)[i].item() == pytest.approx(((high - low) / 2e-6).item(), rel=1e-4)


def test_policy_gradient_by_finite_differences():
    """E_pi[-d worker_loss / d theta] is the derivative of sum_a pi(a) Q(a), whatever the baseline; theta in U and phi."""
    network = make_network()
    obs, pooled = torch.rand(1, 1, 6, dtype=torch.float64), torch.randn(1, 1, Z, dtype=torch.float64)
    q, baseline = torch.tensor([1.0, 3.0, -2.0, 0.5], dtype=torch.float64), 0.7
    log_pi = network.log_pi(obs, pooled)
    loss = sum(
        p * feudal.worker_loss(log_pi[..., a], (q[a] - baseline)[None, None])
        for a, p in enumerate(log_pi.exp().detach()[0, 0])
    )
    for parameter in (network.worker[4].weight, network.phi.weight):
        (gradient,) = torch.autograd.grad(-loss, parameter, retain_graph=True)
        i, values = gradient.abs().argmax(), []
        for shift in (1e-6, -2e-6):
            with torch.no_grad():
                parameter.view(-1)[i] += shift
                values.append((network.log_pi(obs, pooled).exp() * q).sum().item())
        with torch.no_grad():
            parameter.view(-1)[i] += 1e-6
        assert gradient.view(-1)[i].item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4)


def test_worker_loss_by_hand():
    log_prob, advantage = torch.tensor([[-1.0, -2.0]], requires_grad=True), torch.ones(1, 2, requires_grad=True)
    loss = feudal.worker_loss(log_prob, torch.tensor([[2.0, -1.0]]) * advantage)
    assert loss.item() == pytest.approx(0.0)  # -(-1 * 2 + -2 * -1) / 2
    loss.backward()
    assert log_prob.grad.tolist() == [[-1.0, 0.5]]  # a good action is made likelier by descent
    assert advantage.grad is None


# ----------------------------------------------------------------------------- who learns from what


@pytest.mark.parametrize("manager", [True, False])
def test_each_loss_reaches_its_own_part_of_the_network(manager):
    network, obs = make_network(manager=manager), torch.rand(5, 2, 6, dtype=torch.float64)
    goal, pooled, _ = play_through(network, obs, starts(5, 2))
    ones = torch.ones(5, 2, dtype=torch.float64)

    def reached(loss):
        names, parameters = zip(*network.named_parameters(), strict=True)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
        return {name.split(".")[0] for name, g in zip(names, gradients, strict=True) if g is not None and g.any()}

    worker = reached(feudal.worker_loss(network.log_pi(obs, pooled)[..., 0], ones))
    if manager:
        assert worker == {"worker", "phi"}
        movement = torch.randn(5, 2, Z, dtype=torch.float64)
        assert reached(feudal.manager_loss(goal, movement, ones, ones.bool())) == {"space", "lstm"}
    else:  # an LSTM actor-critic
        assert worker == {"worker", "phi", "space", "lstm"}


def test_without_goals_the_worker_has_no_preference():
    """No bias in the embedding of the goal."""
    network = make_network()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_()
    log_pi = network.log_pi(torch.rand(3, 6, dtype=torch.float64), torch.zeros(3, Z, dtype=torch.float64))
    assert torch.allclose(log_pi.exp(), torch.full((3, 4), 0.25, dtype=torch.float64))


def test_worker_multiplies_actions_with_the_embedded_goal():
    network = make_network()
    with torch.no_grad():
        network.worker[4].weight.normal_()
    obs, pooled = torch.rand(1, 6, dtype=torch.float64), torch.randn(1, Z, dtype=torch.float64)
    u, w = network.worker(obs).reshape(4, 8), network.phi.weight @ pooled[0]
    logits = torch.stack([(u[a] * w).sum() for a in range(4)])
    assert torch.allclose(network.log_pi(obs, pooled)[0], logits.log_softmax(0))


def test_same_size_with_and_without_manager():
    shapes = [{n: p.shape for n, p in make_network(manager=m).named_parameters()} for m in (True, False)]
    assert shapes[0] == shapes[1]


# ----------------------------------------------------------------------------- what is remembered


@pytest.mark.parametrize("r", [1, 3, 5])
def test_one_group_of_the_dilated_lstm_moves_per_step(r):
    network, memory, n = make_network(c=r), None, 2
    obs, memory = torch.rand(4 * r, n, 6, dtype=torch.float64), network.memory(2)
    for t in range(4 * r):
        _, _, after = network.manage(obs[t], torch.full((n,), t == 0), memory)
        assert torch.equal(after[0][:-1], memory[0][1:])  # the others wait, in order
        memory = after


def test_a_group_remembers_every_rth_step_alone():
    network, obs, start = make_network(c=3), torch.rand(9, 1, 6, dtype=torch.float64), starts(9, 1)
    lstm = play_through(network, obs, start)[2][0]
    for t in (0, 3, 6):  # the steps of the oldest group: 0, 3, 6
        changed = obs.clone()
        changed[t] += 1.0
        differs = [
            not torch.equal(a, b) for a, b in zip(lstm, play_through(network, changed, start)[2][0], strict=True)
        ]
        assert differs == [True, False, False]
    hidden = network.lstm(network.space(obs[0]))
    for t in (3, 6):
        hidden = network.lstm(network.space(obs[t]), hidden)
    assert torch.allclose(lstm[0], torch.stack(hidden))


def test_goals_are_directions_of_length_one_and_pooled_over_c_and_now():
    network, obs = make_network(c=3), torch.rand(8, 2, 6, dtype=torch.float64)
    goal, pooled, (lstm, past_s, past_goal) = play_through(network, obs, starts(8, 2, (5, 1)))
    assert torch.allclose(goal.norm(dim=2), torch.ones(8, 2, dtype=torch.float64))
    for t in range(8):
        assert torch.allclose(pooled[t, 0], goal[max(t - 3, 0) : t + 1, 0].sum(dim=0))
        first = 5 if t >= 5 else 0
        assert torch.allclose(pooled[t, 1], goal[max(t - 3, first) : t + 1, 1].sum(dim=0))
    assert torch.allclose(goal[7], torch.nn.functional.normalize(lstm[:, 0].sum(dim=0), dim=1))
    assert torch.allclose(past_s, network.space(obs[5:]))
    assert torch.allclose(past_goal, goal[5:])
    assert not pooled.requires_grad
    assert not past_s.requires_grad
    assert not past_goal.requires_grad


@pytest.mark.parametrize("manager", [True, False])
def test_nothing_is_remembered_of_the_last_episode(manager):
    network, obs = make_network(manager=manager), torch.rand(12, 2, 6, dtype=torch.float64)
    goal, pooled, memory = play_through(network, obs, starts(12, 2, (7, 0)))
    again = play_through(network, obs[7:], starts(5, 2))
    assert torch.equal(goal[7:, 0], again[0][:, 0])
    assert torch.equal(pooled[7:, 0], again[1][:, 0])
    assert all(torch.equal(a[..., 0, :], b[..., 0, :]) for a, b in zip(memory, again[2], strict=True))
    assert not torch.equal(goal[7:, 1], again[0][:, 1])  # the other environment went on


def test_random_goals_replace_and_teach_nothing():
    network, obs = make_network(), torch.rand(2, 6, dtype=torch.float64)
    random_goal = torch.zeros(2, Z, dtype=torch.float64)
    random_goal[1, 3] = 7.0
    goal, _, memory = network.manage(obs, torch.ones(2, dtype=torch.bool), network.memory(2), random_goal)
    own, *_ = network.manage(obs, torch.ones(2, dtype=torch.bool), network.memory(2))
    assert torch.equal(goal[0], own[0])
    assert torch.equal(goal[1], random_goal[1] / 7.0)
    assert torch.equal(memory[2][-1], goal)
    assert not any(g.any() for g in torch.autograd.grad(goal[1].sum(), list(network.lstm.parameters())))


class Spy:
    """What the maths and the manager were given in a run, (arguments, result) of each call, and the trained network."""

    def __init__(self, monkeypatch, args):
        self.calls = {name: [] for name in ("manage", "intrinsic_reward", "movements", "manager_loss", "n_step_return")}
        for name, calls in self.calls.items():
            owner = feudal.Feudal if name == "manage" else feudal
            monkeypatch.setattr(owner, name, self.wrapped(getattr(owner, name), calls))
        self.network = feudal.train(args)

    def wrapped(self, function, calls):
        return lambda *a: (calls.append((a, result := function(*a))), result)[1]


def test_state_is_carried_from_rollout_to_rollout_and_dropped_at_episode_ends(short_args, monkeypatch):
    """Also: what arrives at an episode's end is its last observation, not the first of the next episode."""
    args = short_args("feudal", grid_size=3, max_episode_steps=7, num_envs=3, eval_every=0, random_goals=0.0)
    args = dataclasses.replace(
        args, total_timesteps=300, learning_rate=0.0
    )  # nothing is learned: states are comparable
    spy, steps = Spy(monkeypatch, args), 100
    calls, network = spy.calls, spy.network
    manage = calls["manage"][:steps]
    for ((_, _, _, memory, _), _), (_, (_, _, left)) in zip(manage[1:], manage[:-1], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(memory, left, strict=True))
        assert not memory[1].requires_grad
    start = torch.stack([arguments[2] for arguments, _ in manage])  # (100, 3)
    next_s, past_s, past_goal = (torch.cat([a[i] for a, _ in calls["intrinsic_reward"]], min(i, 1)) for i in range(3))
    age, ends = torch.zeros(3, dtype=torch.int64), 0
    for t in range(steps - 1):
        age = torch.where(start[t], 1, age + 1)
        remembered = (past_goal[:, t].norm(dim=-1) > 0).sum(dim=0)
        assert torch.equal(remembered, age.clamp(max=args.goal_horizon))  # of this episode alone
        arrived, seen_next = next_s[t], past_s[-1, t + 1]
        assert torch.equal(torch.isclose(arrived, seen_next, atol=1e-5).all(dim=1) | start[t + 1], torch.ones(3).bool())
        ends += int((start[t + 1] & ~torch.isclose(arrived, seen_next, atol=1e-2).all(dim=1)).sum())
    assert ends > 20  # some are cut in the first cell, where the next begins
    assert torch.equal(calls["movements"][0][0][0], past_s[-1, : args.num_steps])
    assert torch.equal(calls["manager_loss"][0][0][1], calls["movements"][0][1][0])

    # Values, too, are those of the states that are left, and arrived in.
    with torch.no_grad():
        everywhere = torch.as_tensor(gridworld.observe_all(args.make_env()))
        s = network.space(everywhere)
        worker, manager = network.worker_critic(everywhere)[:, 0], network.manager_critic(everywhere)[:, 0]
        left, arrived = (torch.cdist(x[: args.num_steps], s).argmin(dim=-1) for x in (past_s[-1], next_s))
    for (arguments, returns), value in zip(calls["n_step_return"][:2], (worker, manager), strict=True):
        assert torch.allclose(arguments[3], value[arrived], atol=1e-5)
        if value is manager:
            assert torch.allclose(returns - calls["manager_loss"][0][0][2], value[left], atol=1e-4)


def test_rewards_and_discounts_of_manager_and_worker(short_args, monkeypatch):
    args = short_args("feudal", gamma=0.5, manager_gamma=0.75, intrinsic_coef=0.25, extrinsic_coef=2.0, eval_every=0)
    calls = Spy(monkeypatch, args).calls
    (worker, _), (manager, returns) = calls["n_step_return"][:2]
    assert (worker[4], manager[4]) == (0.5, 0.75)
    assert torch.allclose(worker[0], 2.0 * manager[0] + 0.25 * calls["intrinsic_reward"][0][1])
    assert calls["intrinsic_reward"][0][1].abs().max() > 0.1
    assert set(np.unique(manager[0].numpy().round(3))) <= {np.float32(-0.1), 10.0}
    goal, _, advantage, _ = calls["manager_loss"][0][0]
    assert (returns - advantage).std() < 1.0  # the manager's values, at their start
    assert torch.equal(torch.stack([result[0] for _, result in calls["manage"][: args.num_steps]]), goal)


def test_actions_are_drawn_from_the_policy(short_args, monkeypatch):
    pi, actions, log_pi = torch.tensor([0.1, 0.2, 0.3, 0.4]), [], feudal.Feudal.log_pi
    step = gridworld.GridWorldVectorEnv.step
    monkeypatch.setattr(feudal.Feudal, "log_pi", lambda self, *a: 0.0 * log_pi(self, *a) + pi.log())
    monkeypatch.setattr(gridworld.GridWorldVectorEnv, "step", lambda self, a: (actions.append(a), step(self, a))[1])
    feudal.train(short_args("feudal", total_timesteps=4_000, eval_every=0))
    share = np.bincount(np.concatenate(actions[:1_000]), minlength=4) / 4_000
    assert share.tolist() == pytest.approx(pi.tolist(), abs=0.03)


def test_every_part_is_taught_by_its_loss(short_args):
    """Without the entropy, too, which teaches the actor on its own."""
    args = short_args("feudal", start_ent_coef=0.0, end_ent_coef=0.0, eval_every=0)
    network = feudal.train(args)
    torch.manual_seed(args.seed)
    fresh = dict(feudal.Feudal(25, 4, args.goal_horizon).named_parameters())
    assert not [part for part, parameter in network.named_parameters() if torch.equal(parameter, fresh[part])]


@pytest.mark.parametrize("flags", [{"max_grad_norm": 0.0}, {"start_ent_coef": 10.0, "end_ent_coef": 10.0}])
def test_gradients_are_clipped_and_entropy_is_sought(flags, short_args, tmp_path):
    """A norm of 0 lets nothing be learned, though the loss is there; a large weight of entropy keeps policies uniform."""
    args = short_args("feudal", learning_rate=0.01, **flags)
    network = feudal.train(args)
    if "max_grad_norm" in flags:
        torch.manual_seed(args.seed)
        fresh = feudal.Feudal(25, 4, args.goal_horizon)
        assert all(torch.equal(a, b) for a, b in zip(network.parameters(), fresh.parameters(), strict=True))
    else:
        log = read_log(next(tmp_path.iterdir()))
        assert min(value for _, value in log["losses/entropy"]) > 1.3  # of at most 1.386


def test_greedy_policy_keeps_its_own_memory_and_starts_anew(short_args, monkeypatch):
    args, policies = short_args("feudal", eval_episodes=3, total_timesteps=40, grid_size=3), []
    play = feudal.Run.play
    monkeypatch.setattr(feudal.Run, "play", lambda self, policy: (policies.append(policy), play(self, policy))[1])
    spy = Spy(monkeypatch, args)
    first = next(arguments for arguments, _ in spy.calls["manage"] if len(arguments[1]) == 3)  # 4 in training
    assert not any(part.any() for part in first[3])
    spy.calls["manage"].clear()
    obs = np.eye(9, dtype=np.float32)
    policies[-1](obs[[3, 3, 3]], np.array([True, True, True]))
    policies[-1](obs[[4, 4, 4]], np.array([False, True, False]))
    (_, (_, _, left)), ((_, _, _, memory), (goal, _, _)) = spy.calls["manage"]
    assert all(a is b for a, b in zip(memory, left, strict=True))
    fresh, *_ = spy.network.manage(torch.as_tensor(obs[[4]]), torch.tensor([True]), spy.network.memory(1))
    assert torch.allclose(goal[1], fresh[0], atol=1e-5)
    assert not torch.allclose(goal[0], fresh[0], atol=1e-3)


def test_log_and_pictures_say_what_the_goals_do(short_args, tmp_path):
    feudal.train(short_args("feudal"))
    log = read_log(next(tmp_path.iterdir()))
    assert all(-1.0 <= value <= 1.0 for _, value in log["goals/cosine"])
    assert all(0.0 <= value <= 1.0 for tag in ("changed", "norm_of_mean") for _, value in log[f"goals/{tag}"])
    assert "losses/manager" in log
    assert "pictures/goals" in log["images"]


def test_without_manager_there_are_no_goals_and_no_intrinsic_reward(short_args, tmp_path, monkeypatch):
    spy = Spy(monkeypatch, short_args("feudal", manager=False, intrinsic_coef=1.0))
    log = read_log(next(tmp_path.iterdir()))
    assert not any(tag.startswith("goals/") or tag == "losses/manager" for tag in log)
    assert not spy.calls["intrinsic_reward"]
    rewards = np.unique(torch.cat([a[0] for a, _ in spy.calls["n_step_return"]]).numpy().round(3))
    assert set(rewards.tolist()) <= {np.float32(-0.1).item(), 10.0}


# ----------------------------------------------------------------------------- the paper's experiments


def run_seeds(tmp_path, seeds, **flags):
    """{tag: [value at the end, a seed each]}; goals/* are means over the last fifth of the run. And the networks."""
    logs, networks = [], []
    for seed in seeds:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        networks.append(feudal.train(feudal.Args(seed=seed, log_dir=folder, **{"eval_every": 0} | flags)))
        logs.append(read_log(next(folder.iterdir())))
    scalars = [tag for tag in logs[0] if tag.startswith(("eval/", "goals/"))]
    share = {tag: max(1, len(logs[0][tag]) // 5) for tag in scalars}
    return {tag: [np.mean([v for _, v in log[tag][-share[tag] :]]) for log in logs] for tag in scalars}, networks


def score_with(change, networks, **flags):
    """Scores of the greedy policies of the networks, 256 episodes each, where the worker is given change(pooled)."""
    args, scores = feudal.Args(**flags), []
    env, envs = args.make_env(), args.make_vec(256)
    low, high = gridworld.random_return(env), gridworld.optimal_return(env)
    for network in networks:
        obs, _ = envs.reset(seed=1)
        total, running, start, memory = np.zeros(256), np.ones(256, bool), np.ones(256, bool), network.memory(256)
        while running.any():
            with torch.no_grad():
                _, pooled, memory = network.manage(torch.as_tensor(obs), torch.as_tensor(start), memory)
                action = network.log_pi(torch.as_tensor(obs), change(pooled)).argmax(dim=1).numpy()
            obs, reward, terminated, truncated, _ = envs.step(action)
            start, total = terminated | truncated, total + reward * running
            running &= ~start
        scores.append((total.mean() - low) / (high - low))
    return scores


def show(title, rows):
    print(f"\n{title}")
    for name, values in rows.items():
        print(
            f"  {name:34} mean {np.mean(values):6.3f}  from {np.min(values):6.3f} to {np.max(values):6.3f}  n {len(values)}"
        )


@pytest.mark.paper
def test_a_reward_ten_steps_away_is_found(tmp_path):
    """E1: a corridor of eleven cells, a reward at its end alone; beside an LSTM actor-critic of the same size."""
    flags = {"layout": "S.........G\n", "step_reward": 0.0, "total_timesteps": 30_000}
    rows = {
        name: run_seeds(tmp_path, range(1, 11), manager=manager, **flags)[0]["eval/success"]
        for name, manager in (("feudal", True), ("LSTM actor-critic", False))
    }
    show("corridor, success", rows)
    assert np.mean(rows["feudal"]) >= 0.8
    assert np.mean(rows["feudal"]) >= np.mean(rows["LSTM actor-critic"])


@pytest.mark.paper
def test_the_worker_moves_along_a_fixed_goal(tmp_path, monkeypatch):
    """E2: no outer reward; the goal is always the latent direction of one of the four ways across an open grid."""
    flags = {"observation": "coords", "grid_size": 16, "random_start": True, "max_episode_steps": 10}
    flags |= {"extrinsic_coef": 0.0, "gamma": 0.9, "total_timesteps": 15_000}
    manage, rows = feudal.Feudal.manage, {}
    for name, coef in (("intrinsic reward", 1.0), ("none: as untrained", 0.0)):
        rows[name] = []
        for seed in range(1, 11):
            ways = torch.tensor([[1.0, 0.5], [0.5, 0.0], [0.0, 0.5], [0.5, 1.0]])  # up goes from the bottom to the top

            def fixed(self, obs, start, memory, random_goal=None, way=seed % 4, ways=ways):
                with torch.no_grad():
                    across = self.space(1.0 - ways[way : way + 1]) - self.space(ways[way : way + 1])
                return manage(self, obs, start, memory, across.expand(len(obs), -1))

            monkeypatch.setattr(feudal.Feudal, "manage", fixed)
            rows[name] += run_seeds(tmp_path, [seed], intrinsic_coef=coef, **flags)[0]["goals/cosine"]
    show("fixed goal, cosine of s_{t+c} - s_t with it", rows)
    gains = np.subtract(*rows.values())
    assert gains.mean() >= 0.3
    assert gains.min() > 0.1


# Where the worker is paid for following goals alone, and each episode has its own destination: only through the manager
# can the environment's reward reach the worker.
PURELY_FEUDAL = {"observation": "coords", "grid_size": 5, "random_start": True, "random_goal": True}
PURELY_FEUDAL |= {"max_episode_steps": 30, "extrinsic_coef": 0.0, "intrinsic_coef": 1.0, "gamma": 0.9, "num_envs": 16}


@pytest.mark.paper
def test_goals_matter_where_the_worker_is_paid_for_following_them_alone(tmp_path, monkeypatch):
    """E3, and: training the manager beats leaving it untrained, which beats training it the wrong way round."""
    rows, loss, kinds = {}, feudal.manager_loss, {"trained": 1.0, "untrained": 0.0, "sign flipped": -1.0}
    changes = {"": lambda p: p, ", goals shuffled": lambda p: p.roll(1, 0), ", goals zero": torch.zeros_like}
    for kind, sign in kinds.items():
        monkeypatch.setattr(feudal, "manager_loss", lambda *a, sign=sign: sign * loss(*a))
        result, networks = run_seeds(tmp_path, range(1, 11), total_timesteps=60_000, **PURELY_FEUDAL)
        rows |= {kind + name: score_with(change, networks, **PURELY_FEUDAL) for name, change in changes.items()}
        rows |= {f"{kind}: {tag}": result[f"goals/{tag}"] for tag in ("cosine", "changed")}
    show("purely feudal worker, random start and goal, score", rows)
    assert np.mean(rows["trained"]) >= 0.4
    assert np.min(rows["trained"]) > np.max(rows["untrained"])
    assert np.max(rows["untrained"]) < 0.2
    assert np.max(rows["sign flipped"]) < 0.2
    assert np.mean(rows["trained"]) - np.mean(rows["trained, goals shuffled"]) >= 0.6
    assert np.mean(rows["trained: changed"]) >= 0.5


# (what stands there, a known misreading, the test that must notice); python -m pytest -m mutants
MUTANTS = [
    ("d_cos(next_s - past_s, past_goal).mean(dim=0).detach()", "d_cos(past_s - next_s, past_goal).mean(dim=0).detach()", "one_along_the_goals"),
    ("d_cos(next_s - past_s, past_goal)", "d_cos(next_s - past_s, past_goal[-1])", "intrinsic_reward_by_hand"),
    ("d_cos(next_s - past_s, past_goal).mean(dim=0)", "((next_s - past_s) * past_goal).sum(-1).mean(dim=0)", "one_along_the_goals"),
    ("gamma * ~terminated[t] *", "gamma * ~ended[t] *", "returns_bootstrap"),
    ("torch.where(ended[t], next_value[t], following)", "following", "returns_bootstrap"),
    ("known[: max(len(ended) - c + 1, 0)] = True", "known[:] = True", "movements_by_hand"),
    ("goes_on = (goes_on & ~ended[k:])[:-1]", "goes_on = goes_on[:-1]", "movements_by_hand"),
    ("arrival, known, goes_on = next_s.clone(), ended.clone(), ~ended[:-1]", "arrival, known, goes_on = next_s.clone(), ended.clone(), ended[:-1] | True", "movements_by_hand"),
    ("return -gain[known].sum()", "return gain[known].sum()", "manager_loss_by_hand"),
    ("d_cos(movement.detach(), goal)", "d_cos(movement, goal)", "manager_loss_by_hand"),
    ("gain = advantage.detach()", "gain = advantage", "manager_loss_by_hand"),
    ("-(log_prob * advantage.detach()).mean()", "(log_prob * advantage.detach()).mean()", "policy_gradient_by_finite"),
    ("nn.Linear(z, k, bias=False)", "nn.Linear(z, k)", "no_preference"),
    ("past_goal = (part * ~start[:, None] for part in memory)", "past_goal = memory", "nothing_is_remembered"),
    ("torch.cat([lstm[1:], torch.stack(self.lstm(s, (lstm[0, 0], lstm[0, 1])))[None]])", "torch.stack([torch.stack(self.lstm(s, (part[0], part[1]))) for part in lstm])", "one_group_of_the_dilated"),
    ("self.lstm(s, (lstm[0, 0], lstm[0, 1]))", "self.lstm(s, (lstm[-1, 0], lstm[-1, 1]))", "every_rth_step_alone"),
    ("pooled = past_goal.sum(dim=0) + goal.detach()", "pooled = goal.detach()", "pooled_over_c_and_now"),
    ("past_goal.sum(dim=0) + goal.detach()", "past_goal.sum(dim=0) + goal", "own_part_of_the_network"),
    ("        goal = F.normalize(goal, dim=1)\n", "", "directions_of_length_one"),
    ("memory, rollout = tuple(part.detach() for part in memory), []", "memory, rollout = network.memory(n), []", "carried_from_rollout"),
    ("last_obs[start] = np.stack(info[\"final_obs\"][start])", "pass", "carried_from_rollout"),
    ("reward = reward + args.intrinsic_coef * r_i", "reward = reward + args.intrinsic_coef * r_i.sum(dim=0)", "rewards_and_discounts"),
    ("network.manager_critic, b_reward, args.manager_gamma", "network.manager_critic, reward, args.manager_gamma", "rewards_and_discounts"),
    ("memory = memory or network.memory(len(obs))", "memory = network.memory(len(obs))", "keeps_its_own_memory"),
    ("critic(b_last_obs)[..., 0].detach()", "critic(b_obs)[..., 0].detach()", "carried_from_rollout"),
    ("value, next_value = critic(b_obs)[..., 0]", "value, next_value = critic(b_last_obs)[..., 0]", "carried_from_rollout"),
    ("movements(past_s[:, -1], next_s", "movements(past_s[:, 0], next_s", "carried_from_rollout"),
    ("next_s = network.space(b_last_obs).detach()", "next_s = network.space(b_obs).detach()", "carried_from_rollout"),
    ('losses["manager"] = manager_loss(', 'losses["manager"] = 0.0 * manager_loss(', "every_part_is_taught"),
    ("(log_pi + rng.gumbel(size=(n, n_actions)))", "(0 * log_pi + rng.gumbel(size=(n, n_actions)))", "drawn_from_the_policy"),
    ("action = (log_pi + rng.gumbel(size=(n, n_actions))).argmax(axis=1)", "action = log_pi.argmax(axis=1)", "drawn_from_the_policy"),
    ("nn.utils.clip_grad_norm_(network.parameters(), args.max_grad_norm)", "pass", "gradients_are_clipped"),
    ("(sum(losses.values()) - ent_coef * entropy)", "(sum(losses.values()) + ent_coef * entropy)", "entropy_is_sought"),
    ('losses["worker"] = worker_loss(', 'losses["worker"] = 0.0 * worker_loss(', "every_part_is_taught"),
    ('losses[f"{name}_value"], advantage[name] = F.mse_loss(value, target)', 'losses[f"{name}_value"], advantage[name] = 0.0 * F.mse_loss(value, target)', "every_part_is_taught"),
    ("return F.cosine_similarity(movement, goal, dim=-1)", "return (movement * goal).sum(dim=-1)", "gradient_of_the_cosine"),
    ("network.worker_critic, reward, args.gamma)", "network.worker_critic, reward, 1.0)", "rewards_and_discounts"),
]  # fmt: skip
