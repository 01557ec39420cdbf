"""The maths of dqn.py by hand, and the transitions that it stores."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import read_log

import dqn
import gridworld
import her


def test_target_bootstraps_through_the_time_limit_but_not_through_termination():
    reward, terminated = torch.tensor([1.0, 1.0]), torch.tensor([0.0, 1.0])  # a truncated transition has terminated 0
    next_q = torch.tensor([[2.0, 4.0], [2.0, 4.0]])
    assert dqn.td_target(reward, terminated, next_q, 0.5).tolist() == [3.0, 1.0]


def test_target_takes_the_largest_value_of_each_row():
    next_q = torch.tensor([[1.0, -2.0], [-7.0, -5.0]])
    assert dqn.td_target(torch.zeros(2), torch.zeros(2), next_q, 0.9).tolist() == pytest.approx([0.9, -4.5])


def test_no_gradient_reaches_the_target():
    next_q = torch.ones(1, 2, requires_grad=True)
    assert not dqn.td_target(torch.zeros(1), torch.zeros(1), next_q, 0.9).requires_grad


def test_loss_is_the_mean_huber_loss_of_the_taken_actions():
    # errors -0.5 (quadratic: 0.125) and 3 (linear: 3 - 0.5); a (B, 1) - (B,) broadcast would average four pairs
    q = torch.tensor([[1.5, 9.0], [9.0, 4.0]], requires_grad=True)
    loss = dqn.td_loss(q, torch.tensor([0, 1]), torch.tensor([2.0, 1.0]))
    assert loss.item() == pytest.approx((0.125 + 2.5) / 2)
    loss.backward()
    assert q.grad.tolist() == [[-0.25, 0.0], [0.0, 0.5]]  # clipped to 1 before the mean, zero for other actions


@pytest.mark.parametrize(("step", "value"), [(0, 1.0), (5, 0.75), (10, 0.5), (99, 0.5)])
def test_schedule_visits_both_ends(step, value):
    assert dqn.linear_schedule(1.0, 0.5, 10, step) == pytest.approx(value)


def test_schedule_of_no_length_is_at_its_end():
    assert dqn.linear_schedule(1.0, 0.1, 0, 0) == 0.1


@pytest.mark.parametrize("stride", [1, 3, 4, 10, 25])
@pytest.mark.parametrize("every", [1, 4, 10])
def test_times_due_counts_every_multiple_once(stride, every):
    steps = range(stride, 1_000 * stride + 1, stride)
    assert sum(dqn.times_due(step, every, stride) for step in steps) == 1_000 * stride // every


def test_buffer_overwrites_the_oldest_and_keeps_transitions_whole():
    buffer, rng = dqn.ReplayBuffer(5, obs_dim=2), np.random.default_rng(0)
    for first in range(0, 9, 3):  # transitions 0 .. 8, three at a time: 4 .. 8 remain
        number = np.arange(first, first + 3)
        obs = np.stack([number, number], axis=1)
        buffer.add(obs, number, number * 0.5, obs + 1, number % 2)
    assert len(buffer) == 5
    obs, action, reward, next_obs, terminated = buffer.sample(400, rng)
    assert set(action.tolist()) == {4, 5, 6, 7, 8}
    assert torch.equal(obs, action.float()[:, None].expand(-1, 2))
    assert torch.equal(next_obs, obs + 1)
    assert torch.equal(reward, action * 0.5)
    assert torch.equal(terminated, (action % 2).float())


def test_sampling_is_uniform():
    buffer = dqn.ReplayBuffer(10, obs_dim=1)
    buffer.add(np.zeros((10, 1)), np.arange(10), np.zeros(10), np.zeros((10, 1)), np.zeros(10))
    counts = np.bincount(buffer.sample(20_000, np.random.default_rng(0))[1], minlength=10)
    assert ((counts - 2_000) ** 2 / 2_000).sum() < 27.9  # chi-square, 9 degrees of freedom, p = 0.001


def stored(args, monkeypatch) -> tuple[dqn.ReplayBuffer, torch.nn.Module]:
    """The replay buffer at the end of a run, and the network."""
    buffers = []
    with monkeypatch.context() as patch:
        make = dqn.ReplayBuffer.__init__
        patch.setattr(dqn.ReplayBuffer, "__init__", lambda self, *a: (make(self, *a), buffers.append(self))[0])
        network = dqn.train(args)
    return buffers[0], network


def test_stored_transitions_are_those_of_the_environment(short_args, monkeypatch, tmp_path):
    """No autoreset artefact: none starts at a terminal observation, none leads from an episode's end to a start."""
    args = short_args("dqn", max_episode_steps=9, grid_size=4, total_timesteps=2_000)
    grid, (buffer, _) = args.make_env().unwrapped, stored(args, monkeypatch)
    n = len(buffer)
    state, next_state = buffer.obs[:n].argmax(1).numpy(), buffer.next_obs[:n].argmax(1).numpy()
    action, terminated = buffer.action[:n].numpy(), buffer.terminated[:n].numpy()
    assert not grid.terminal[state].any()
    assert (next_state == grid.next_state[state, action]).all()
    assert np.allclose(buffer.reward[:n], grid.reward[state, action])
    assert (terminated == grid.terminal[next_state]).all()
    assert terminated.any()  # some episodes met the goal, and some were cut:
    assert any(
        value == pytest.approx(-0.9) for _, value in read_log(next(tmp_path.iterdir()))["charts/episodic_return"]
    )


def test_environment_reset_next_step_would_be_noticed(short_args, monkeypatch):
    """The same check on Gymnasium's other envs, whose vector form is told SAME_STEP: FrozenLake's holes and goal."""
    args = short_args("dqn", env_id="FrozenLake-v1", grid_size=None, total_timesteps=2_000)
    table, (buffer, _) = args.make_env().unwrapped.P, stored(args, monkeypatch)
    n = len(buffer)
    for s, a, next_s, end in zip(
        buffer.obs[:n].argmax(1).tolist(), buffer.action[:n].tolist(), buffer.next_obs[:n].argmax(1).tolist(),
        buffer.terminated[:n].tolist(), strict=True
    ):  # fmt: skip
        assert (next_s, bool(end)) in {(outcome[1], outcome[3]) for outcome in table[s][a]}
        assert not all(outcome[1] == s and outcome[3] for outcome in table[s][a])


def test_target_network_changes_only_when_copied(short_args, monkeypatch):
    """With copies every 400 steps, the target's output for an observation changes at most 1 200 / 400 = 3 times."""
    seen, probe = [], torch.eye(25)
    td_target, copy = dqn.td_target, torch._foreach_copy_
    copied = []
    monkeypatch.setattr(torch, "_foreach_copy_", lambda to, source: (copied.append(to), copy(to, source)))

    def spy(reward, terminated, next_q, gamma):
        if copied:
            seen.append(tuple((probe @ copied[0][0].T).sum(1).tolist()))
        return td_target(reward, terminated, next_q, gamma)

    monkeypatch.setattr(dqn, "td_target", spy)
    dqn.train(short_args("dqn", target_network_frequency=400))
    assert len(copied) == 3
    assert len(set(seen)) == 2  # after the first and the second copy; the third comes with the last step


@pytest.mark.parametrize("epsilon", [0.0, 1.0])
@pytest.mark.parametrize("module", [dqn, her])
def test_the_loop_feeds_the_maths_with_the_batch_and_the_two_networks(module, epsilon, short_args, monkeypatch):
    """Q(s, a) is the network's, the bootstrap the target network's at s'; actions are greedy or not, as epsilon says.

    The loops of transfer.py, curriculum.py and per_aux_dqn.py are compared with that of dqn.py to the weight.
    """
    args = short_args(module.__name__, total_timesteps=800, start_e=epsilon, end_e=epsilon, eval_every=0)
    networks, batches, is_greedy, differs = [], [], [], []
    make, sample, step = module.QNetwork.__init__, module.ReplayBuffer.sample, gridworld.GridWorldVectorEnv.step
    td_target, td_loss = module.td_target, module.td_loss

    def watched_step(envs, action):
        if envs.num_envs == args.num_envs:  # not an evaluation
            obs = envs.grid.observe(envs.states)
            obs = her.join(envs.single_observation_space, obs) if module is her else obs
            is_greedy.extend(networks[0](torch.as_tensor(obs)).argmax(dim=1).numpy() == action)
        return step(envs, action)

    def watched_target(reward, terminated, next_q, gamma):
        assert torch.equal(next_q, networks[1](batches[-1][3]))
        assert torch.equal(reward, batches[-1][2])
        assert torch.equal(terminated, batches[-1][4])
        assert gamma == args.gamma
        differs.append(not torch.equal(next_q, networks[0](batches[-1][3])))
        return td_target(reward, terminated, next_q, gamma)

    def watched_loss(q, action, y):
        assert torch.equal(q, networks[0](batches[-1][0]))
        assert torch.equal(action, batches[-1][1])
        return td_loss(q, action, y)

    monkeypatch.setattr(module.QNetwork, "__init__", lambda self, *a: (make(self, *a), networks.append(self))[0])
    monkeypatch.setattr(module.ReplayBuffer, "sample", lambda *a: (batches.append(sample(*a)), batches[-1])[1])
    monkeypatch.setattr(gridworld.GridWorldVectorEnv, "step", watched_step)
    monkeypatch.setattr(module, "td_target", watched_target)
    monkeypatch.setattr(module, "td_loss", watched_loss)
    module.train(args)
    assert len(batches) == (800 - args.learning_starts) // args.train_frequency
    assert any(differs)
    assert len(is_greedy) == 800
    assert np.mean(is_greedy) == 1.0 if epsilon == 0.0 else 0.1 < np.mean(is_greedy) < 0.4


@pytest.mark.parametrize("module", [dqn, her])
def test_exploration_comes_down_as_the_flags_say(module, short_args, monkeypatch):
    seen, schedule = [], module.linear_schedule
    monkeypatch.setattr(module, "linear_schedule", lambda *a: (seen.append(a), schedule(*a))[1])
    args = short_args(module.__name__, total_timesteps=200, start_e=0.9, end_e=0.2, exploration_fraction=0.25)
    module.train(dataclasses.replace(args, anneal_lr=False))
    assert seen == [(0.9, 0.2, 50.0, step) for step in range(4, 204, 4)]


# ----------------------------------------------------------------------------- the paper's experiment, on the Dyna maze


def areas(tmp_path, name):
    """The mean eval/score of each run of that --exp-name."""
    logs = [read_log(folder) for folder in sorted(tmp_path.glob(f"*__{name}__*"))]
    return [np.mean([value for _, value in log["eval/score"]]) for log in logs]


@pytest.mark.paper
def test_values_and_policy_are_right_and_replay_matters(short_args, monkeypatch, tmp_path):
    """max |Q - Q*| over visited pairs is a small part of the range of Q*; without replay less area, as in table 3."""
    errors, lengths = [], []
    args = short_args("dqn", layout="dyna_maze", grid_size=None, total_timesteps=30_000, eval_every=500)
    args = dataclasses.replace(args, learning_starts=500)
    env = args.make_env()
    exact = gridworld.solve(env, gamma=args.gamma, horizon=2_000)
    for seed in range(1, 11):
        buffer, network = stored(dataclasses.replace(args, seed=seed, exp_name="full"), monkeypatch)
        n = len(buffer)
        visited = buffer.obs[:n].argmax(1).numpy(), buffer.action[:n].numpy()
        with torch.no_grad():
            q = network(torch.as_tensor(gridworld.observe_all(env))).numpy()
        errors.append(np.abs(q - exact)[visited].max() / np.ptp(exact[~env.unwrapped.terminal]))
        log = read_log(next(tmp_path.glob(f"*__full__{seed}__*")))
        lengths.append(log["eval/length"][-1][1])
    for seed in range(1, 6):
        dqn.train(dataclasses.replace(args, seed=seed, exp_name="no-replay", buffer_size=args.num_envs))
        dqn.train(dataclasses.replace(args, seed=seed, exp_name="no-target", target_network_frequency=args.num_envs))
    area = {name: float(np.mean(areas(tmp_path, name))) for name in ("full", "no-target", "no-replay")}
    print({"errors": np.round(errors, 4).tolist(), "lengths": lengths, "area": area})
    assert lengths == [14.0] * 10
    assert max(errors) <= 0.1
    assert area["no-replay"] <= 0.95 * area["full"]


# (what stands there, a known misreading, the test that must notice); python -m pytest -m mutants
MUTANTS = [
    ("(1.0 - terminated) * next_q", "next_q", "through_termination"),
    ("buffer.add(obs, action, reward, last_obs, terminated)", "buffer.add(obs, action, reward, last_obs, ended)", "are_those_of_the_environment"),
    ("buffer.add(obs, action, reward, last_obs, terminated)", "buffer.add(obs, action, reward, next_obs, terminated)", "are_those_of_the_environment"),
    ("next_q.max(dim=1).values).detach()", "next_q.mean(dim=1)).detach()", "largest_value_of_each_row"),
    ("values).detach()", "values)", "no_gradient_reaches"),
    ("action[:, None]).squeeze(1), target", "action[:, None]), target", "mean_huber_loss"),
    ("F.smooth_l1_loss", "F.mse_loss", "mean_huber_loss"),
    ("if times_due(step, args.target_network_frequency, args.num_envs):", "if True:", "only_when_copied"),
    ("end if step >= duration else", "", "visits_both_ends"),
    ("% self.capacity", "% max(len(self), 3)", "overwrites_the_oldest"),
    ("rng.integers(len(self), size=batch_size)", "rng.integers(len(self) // 2, size=batch_size)", "sampling_is_uniform"),
    ("step // every - (step - stride) // every", "int(step % every == 0)", "counts_every_multiple_once"),
    ("target(b_next_obs), args.gamma)", "target(b_obs), args.gamma)", "loop_feeds and dqn"),
    ("target(b_next_obs), args.gamma)", "network(b_next_obs), args.gamma)", "loop_feeds and dqn"),
    ("td_loss(network(b_obs), b_action, y)", "td_loss(network(b_next_obs), b_action, y)", "loop_feeds and dqn"),
    ("rng.random(args.num_envs) < epsilon", "rng.random(args.num_envs) > epsilon", "loop_feeds and dqn"),
    ("if step > args.learning_starts else 0", "if True else 0", "loop_feeds and dqn"),
    ("args.exploration_fraction * args.total_timesteps, step)", "args.exploration_fraction * args.total_timesteps, 0)", "exploration_comes and dqn"),
]  # fmt: skip
