"""Hindsight by hand, what a run stores, and the experiments of the paper."""

import dataclasses
import inspect
import itertools

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import read_log
from gymnasium import spaces
from torch import nn

import dqn
import gridworld
import her

SAME = "td_target td_loss linear_schedule times_due QNetwork ReplayBuffer".split()
ACHIEVED = np.array([[0.0], [1.0], [2.0], [3.0]])  # m(s_0) ... m(s_3): an episode of three steps
SEEN = np.array([[10.0], [11.0], [12.0]])


@pytest.mark.parametrize("name", SAME)
def test_the_rest_is_dqn(name):
    """tests/test_dqn.py works these out by hand."""
    assert inspect.getsource(getattr(her, name)) == inspect.getsource(getattr(dqn, name))


def drawn(strategy, k=3_000):
    """{t: the goals drawn for transition t} as arrays."""
    t, goal = her.hindsight_goals(strategy, k, ACHIEVED, SEEN, np.random.default_rng(0))
    assert len(t) == len(goal)
    return {i: goal[t == i, 0] for i in np.unique(t).tolist()}


@pytest.mark.parametrize(
    ("strategy", "possible"),
    [
        ("future", {0: [1, 2, 3], 1: [2, 3], 2: [3]}),  # only what was achieved after the transition
        ("episode", {0: [0, 1, 2, 3], 1: [0, 1, 2, 3], 2: [0, 1, 2, 3]}),
        ("random", {0: [10, 11, 12], 1: [10, 11, 12], 2: [10, 11, 12]}),  # nothing of this episode
    ],
)
def test_k_goals_are_drawn_uniformly_for_each_transition(strategy, possible):
    goals = drawn(strategy)
    assert {t: np.unique(goal).tolist() for t, goal in goals.items()} == possible
    for goal in goals.values():
        counts = np.unique(goal, return_counts=True)[1]
        assert counts.sum() == 3_000
        assert counts.min() > 0.9 * counts.mean()


def test_final_takes_the_last_achieved_goal_once():
    assert {t: goal.tolist() for t, goal in drawn("final").items()} == {0: [3.0], 1: [3.0], 2: [3.0]}


class Recorder(gym.Env):
    """A task on a line; remembers what it was asked for."""

    def __init__(self):
        place = spaces.Box(-9, 9, (1,), np.float32)
        self.observation_space = spaces.Dict(observation=spaces.Discrete(4), achieved_goal=place, desired_goal=place)
        self.action_space, self.asked = spaces.Discrete(2), []

    def compute_reward(self, achieved, desired, info):
        self.asked.append((achieved[:, 0].tolist(), desired[:, 0].tolist()))
        return np.where(achieved == desired, 0.0, -1.0)[:, 0]

    def compute_terminated(self, achieved, desired, info):
        return (achieved == desired)[:, 0]


def test_relabelled_transitions_by_hand():
    """Transitions 0 and 2 of three, for goals 1 and 5: the first is reached at s_1, the second is not."""
    env, t, goal = Recorder(), np.array([0, 2]), np.array([[1.0], [5.0]])
    obs, action, reward, next_obs, terminated = her.relabel(env, np.arange(4), ACHIEVED, np.array([7, 8, 9]), t, goal)
    assert env.asked == [([1.0, 3.0], [1.0, 5.0])]  # what was achieved at s_{t+1}, not at s_t
    assert obs.tolist() == [[1, 0, 0, 0, 1], [0, 0, 1, 0, 5]]  # s_t || g'
    assert next_obs.tolist() == [[0, 1, 0, 0, 1], [0, 0, 0, 1, 5]]  # s_{t+1} || g'
    assert action.tolist() == [7, 9]
    assert reward.tolist() == [0.0, -1.0]
    assert terminated.tolist() == [True, False]


def test_without_compute_terminated_nothing_ends_in_hindsight(monkeypatch):
    monkeypatch.delattr(Recorder, "compute_terminated")
    t, goal = np.array([0, 2]), np.array([[1.0], [5.0]])
    *_, terminated = her.relabel(Recorder(), np.arange(4), ACHIEVED, np.array([7, 8, 9]), t, goal)
    assert terminated.tolist() == [False, False]


def test_input_is_state_and_desired_goal():
    space = spaces.Dict(
        observation=spaces.Box(0, 9, (2, 2)), achieved_goal=spaces.Discrete(3), desired_goal=spaces.Discrete(3, start=1)
    )
    obs = {"observation": np.arange(8.0).reshape(2, 2, 2), "achieved_goal": [0, 0], "desired_goal": np.array([3, 1])}
    assert her.join(space, obs).tolist() == [[0, 1, 2, 3, 0, 0, 1], [4, 5, 6, 7, 1, 0, 0]]
    one = {name: values[1] for name, values in obs.items()}
    assert her.join(space, one).tolist() == [4, 5, 6, 7, 1, 0, 0]
    assert her.join(space, one).dtype == np.float32


def policy_of(grid, choose):
    return lambda obs: np.array([choose(grid.cells[s], grid.cells[g]) for s, g in zip(
        obs["observation"].argmax(1), obs["desired_goal"].argmax(1), strict=True)])  # fmt: skip


def test_share_of_goals_reached():
    """On 3 x 3: straight to the goal, always right, and right with a limit of one step; S is no goal."""
    args = her.Args(grid_size=3)
    env = args.make_env(flatten=False, random_goal=True)

    def straight(s, g):
        return (0 if g[0] < s[0] else 2) if g[0] != s[0] else (3 if g[1] < s[1] else 1)

    nan = np.nan
    reached = her.goals_reached(env, policy_of(env.unwrapped, straight))
    np.testing.assert_array_equal(reached, [nan, 1, 1, 1, 1, 1, 1, 1, 1])
    right = policy_of(env.unwrapped, lambda s, g: 1)
    np.testing.assert_array_equal(her.goals_reached(env, right), [nan, 1, 1, 0, 0, 0, 0, 0, 0])
    env = args.make_env(flatten=False, random_goal=True, max_episode_steps=1)
    np.testing.assert_array_equal(her.goals_reached(env, right), [nan, 1, 0, 0, 0, 0, 0, 0, 0])


def test_slips_count_when_goals_are_reached():
    """If every move slips the agent walks at random, and in 500 steps on 3 x 3 is everywhere whatever it asks for."""
    env = her.Args(grid_size=3, slip=1.0).make_env(flatten=False, random_goal=True, max_episode_steps=500)
    assert (her.goals_reached(env, policy_of(env.unwrapped, lambda s, g: 1))[1:] == 1).all()


# ----------------------------------------------------------------------------- a run


def test_training_draws_goals_and_evaluation_keeps_to_the_task(short_args):
    args = short_args("her")
    n = 25  # cells
    evaluated = {int(args.make_env().reset(seed=seed)[0][n:].argmax()) for seed in range(20)}
    assert evaluated == {n - 1}  # G
    envs = args.make_vec(4, flatten=False, **args.training())
    trained = {int(g) for seed in range(20) for g in envs.reset(seed=seed)[0]["desired_goal"].argmax(1)}
    assert len(trained) > 10
    assert args.training()["max_episode_steps"] == 50 < args.make_env().spec.max_episode_steps == 100


def run_and_spy(args, monkeypatch):
    """The replay buffer at the end of a run, and the calls of relabel: its arguments and what it returned."""
    buffers, calls = [], []
    with monkeypatch.context() as patch:
        make, relabel = her.ReplayBuffer.__init__, her.relabel
        patch.setattr(her.ReplayBuffer, "__init__", lambda self, *a: (make(self, *a), buffers.append(self))[0])
        patch.setattr(her, "relabel", lambda *a: (calls.append((a, relabel(*a))), calls[-1][1])[1])
        her.train(args)
    return buffers[0], calls


@pytest.mark.parametrize("strategy", ["future", "final", "episode", "random", "none"])
def test_stored_transitions_are_those_of_the_environment(strategy, short_args, monkeypatch):
    """Each transition, relabelled or not, is one that the environment makes when it has that goal."""
    args = short_args("her", grid_size=4, total_timesteps=1_200, strategy=strategy, max_episode_steps=9, k=2)
    buffer, calls = run_and_spy(args, monkeypatch)
    grid = args.make_env(flatten=False, random_goal=True).unwrapped
    n, cells = len(buffer), 16
    obs, next_obs, action = buffer.obs[:n].numpy(), buffer.next_obs[:n].numpy(), buffer.action[:n].numpy()
    cell, goal = obs[:, :cells].argmax(1), obs[:, cells:].argmax(1)
    assert (next_obs[:, cells:].argmax(1) == goal).all()
    assert (obs.reshape(n, 2, cells).sum(axis=2) == 1).all()
    number = {(c, g): s for s, (c, g) in enumerate(zip(grid.cell_of.tolist(), grid.goal_of.tolist(), strict=True))}
    state = np.array([number[pair] for pair in zip(cell.tolist(), goal.tolist(), strict=True)])
    at_goal = cell == goal  # in hindsight only: the environment would have ended there
    assert at_goal.any() == (strategy != "none")
    assert (grid.cell_of[grid.next_state[state, action]] == next_obs[:, :cells].argmax(1))[~at_goal].all()
    arrived = next_obs[:, :cells].argmax(1) == goal
    assert (buffer.terminated[:n].numpy() == arrived).all()
    assert np.allclose(buffer.reward[:n], np.where(arrived, 10.0, -0.1))

    # All that was done for its own goal, and k times in hindsight what was done in the episodes that have ended.
    k = {"final": 1, "none": 0}.get(strategy, 2)
    lengths = [len(action) - 1 for (_, _, _, action, *_), _ in calls]
    assert n == 1_200 + k * sum(lengths)
    if strategy != "none":
        assert max(lengths) == 9
        assert 1_200 - 9 * args.num_envs < sum(lengths) <= 1_200


def test_episodes_are_not_mixed(short_args, monkeypatch):
    """What is replayed together is one environment's path from S, also when the ring buffer has come round."""
    args = short_args("her", grid_size=4, buffer_size=150, goal_steps=9)
    _, calls = run_and_spy(args, monkeypatch)
    for (_, obs, achieved, action, t, goal), _ in calls:
        row, col = np.divmod(obs.argmax(1), 4)
        assert (row[0], col[0]) == (0, 0)
        assert len(row) <= 10
        down, right = gridworld.MOVES[action[:-1]].T
        assert (row[1:] == np.clip(row[:-1] + down, 0, 3)).all()
        assert (col[1:] == np.clip(col[:-1] + right, 0, 3)).all()
        assert (achieved == obs).all()
        assert all((achieved[i + 1 :] == g).all(axis=1).any() for i, g in zip(t, goal, strict=True))


class BitFlip(gym.Env):
    """Section 3.1: action i flips bit i; -1 a step until the bits are those of the goal, which ends the episode."""

    def __init__(self, n):
        bits = spaces.MultiBinary(n)
        self.observation_space = spaces.Dict(observation=bits, achieved_goal=bits, desired_goal=bits)
        self.action_space = spaces.Discrete(n)

    def observe(self):
        return {"observation": self.bits.copy(), "achieved_goal": self.bits.copy(), "desired_goal": self.goal.copy()}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.bits, self.goal = self.np_random.integers(2, size=(2, self.action_space.n), dtype=np.int8)
        return self.observe(), {}

    def step(self, action):
        self.bits[action] ^= 1
        reached = bool(self.compute_terminated(self.bits, self.goal, {}))
        return self.observe(), float(reached) - 1.0, reached, False, {"is_success": reached}

    def compute_reward(self, achieved, desired, info):
        return self.compute_terminated(achieved, desired, info) - 1.0

    def compute_terminated(self, achieved, desired, info):
        return (achieved == desired).all(axis=-1)


def register(n):
    if f"BitFlip{n}-v0" not in gym.registry:
        gym.register(f"BitFlip{n}-v0", BitFlip, max_episode_steps=n, kwargs={"n": n})
    return f"BitFlip{n}-v0"


def test_other_environments_with_goals(short_args, tmp_path):
    """Four bits are learned. What is not a grid world has no known optimum and no map."""
    flags = {
        "total_timesteps": 4_000,
        "num_envs": 8,
        "eval_episodes": 50,
        "eval_every": 0,
        "end_e": 0.2,
        "batch_size": 64,
    }
    her.train(short_args("her", env_id=register(4), grid_size=None, **flags))
    log = read_log(next(tmp_path.iterdir()))
    assert log["eval/success"][-1][1] == 1.0
    assert not {"eval/score", "eval/goal_success"} & set(log)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "FrozenLake-v1", "GridWorld-v0"])
def test_an_environment_without_goals_is_refused(env_id):
    with pytest.raises(ValueError, match=f"--env-id must have goals.*{env_id} has none"):
        her.Args(env_id=env_id)


# ----------------------------------------------------------------------------- the paper's experiments


def flip_bits(args, monkeypatch, n, cycles, **flags):
    """eval/success over a run with the settings of appendix A, through her.train: (evaluations,).

    One hidden layer of 256; of 16 environments 16 n steps (16 episodes, if none succeeds), then 40 updates, here
    spread evenly over these steps; 128 transitions; gamma .98; targets clipped to [-1 / (1 - gamma), 0]; after each such
    cycle the target network moves by 5 %; a fifth of the actions is random.
    """

    class Wide(nn.Sequential):
        def __init__(self, obs_dim, n_actions):
            super().__init__(nn.Linear(obs_dim, 256), nn.ReLU(), nn.Linear(256, n_actions))

    settings = {
        "env_id": register(n), "grid_size": None, "num_envs": 16, "total_timesteps": cycles * 16 * n,
        "train_frequency": 16 * n // 40, "target_network_frequency": 16 * n, "batch_size": 128, "gamma": 0.98,
        "start_e": 0.2, "end_e": 0.2, "buffer_size": 1_000_000, "learning_starts": 16 * n, "eval_episodes": 100,
        "eval_every": 50 * 16 * n, "anneal_lr": False,
    }  # fmt: skip
    before, target = set(args.log_dir.glob("*")), her.td_target
    with monkeypatch.context() as patch:
        patch.setattr(her, "QNetwork", Wide)
        patch.setattr(her, "td_target", lambda *a: target(*a).clamp(-1 / (1 - 0.98), 0))
        patch.setattr(torch, "_foreach_copy_", lambda to, source: torch._foreach_lerp_(to, source, 0.05))
        her.train(dataclasses.replace(args, **(settings | flags)))
    (folder,) = set(args.log_dir.glob("*")) - before
    return np.array([value for _, value in read_log(folder)["eval/success"]])


# strategy: how many seeds, of how many cycles each
SERIES = {"future": (10, 150), "none": (10, 150), "episode": (3, 50), "final": (3, 50), "random": (3, 150)}


@pytest.mark.paper
def test_bit_flipping(short_args, monkeypatch):
    """Figure 1 and section 4.5, 15 bits: HER solves what DQN never meets, and the choice of goals decides how soon.

    Success of the greedy policy in 100 episodes after 50, 100 and 150 cycles.
    """
    args, curves = short_args("her"), {}
    for strategy, (seeds, cycles) in SERIES.items():
        runs = [dataclasses.replace(args, seed=seed, strategy=strategy) for seed in range(1, seeds + 1)]
        curves[strategy] = np.array([flip_bits(run, monkeypatch, 15, cycles) for run in runs])
        print(f"{strategy:8}", curves[strategy].mean(axis=0).round(3), "last, each seed:", curves[strategy][:, -1])
    early = {strategy: curve[:3, 0].mean() for strategy, curve in curves.items()}
    assert (curves["future"][:, -1] >= 0.95).all()
    assert (curves["none"][:, -1] <= 0.05).all()
    assert (curves["random"][:, -1] <= 0.05).all()
    assert early["future"] > early["episode"] > early["final"] > early["random"]


@pytest.mark.paper
def test_four_rooms_with_random_goals(tmp_path):
    """Goals all over the four rooms, in 50 steps from S: with hindsight nearly all are reached, without less than half."""
    reached = {"future": [], "none": []}
    for strategy, seed in itertools.product(reached, range(1, 6)):
        args = her.Args(layout="four_rooms", max_episode_steps=50, strategy=strategy, seed=seed, eval_every=0)
        her.train(dataclasses.replace(args, total_timesteps=40_000, log_dir=tmp_path / strategy))
        (folder,) = (tmp_path / strategy).glob(f"*__{seed}__*")
        reached[strategy].append(read_log(folder)["eval/goal_success"][-1][1])
    print({strategy: np.round(shares, 3).tolist() for strategy, shares in reached.items()})
    assert min(reached["future"]) >= 0.9
    assert max(reached["none"]) <= 0.5


# (what stands there, a known misreading, the test that must notice); python -m pytest -m mutants
MUTANTS = [
    ("env.unwrapped, achieved[t + 1]", "env.unwrapped, achieved[t]", "transitions_by_hand"),
    ('"desired_goal": goal}) for i', '"desired_goal": goal if i is t else achieved[i]}) for i', "transitions_by_hand"),
    ("reward = task.compute_reward(arrived, goal, {})", "reward = np.full(len(t), -1.0)", "transitions_by_hand"),
    ("np.broadcast_to(terminated, len(t))", "np.zeros(len(t), bool)", "transitions_by_hand"),
    ('"future": t + 1', '"future": t', "drawn_uniformly"),
    ('"future": t + 1', '"future": 0 * t', "drawn_uniformly"),
    ("return t, pool[rng.integers(first, len(pool), size=len(t))]", "return t, pool[rng.integers(0, t + 1)]", "drawn_uniformly"),
    ('"final": len(pool) - 1', '"final": 0', "final_takes"),
    ('pool = seen if strategy == "random" else achieved', "pool = achieved", "drawn_uniformly"),
    ('1 if strategy == "final" else k)', "1)", "drawn_uniformly"),
    ("buffer.add(joined, action, reward, join(space, last_obs), terminated)", "pass", "are_those_of_the_environment"),
    ("join(space, last_obs), terminated)", "join(space, last_obs), ended)", "are_those_of_the_environment"),
    ("if ended[i]:", "if terminated[i]:", "are_not_mixed"),
    ('append((obs["observation"][i]', 'append((obs["observation"][0]', "are_not_mixed"),
    ('append((last_obs["observation"][i]', 'append((next_obs["observation"][i]', "are_not_mixed"),
    ('for name in "observation", "desired_goal":', 'for name in "observation", "observation":', "input_is_state"),
    ("super().make_env(False, **changes)", 'super().make_env(False, **({"random_goal": True} | changes))', "keeps_to_the_task"),
    ('({"random_goal": True} if', "({} if", "draws_goals"),
    ("hits / np.where", "np.ones_like(hits) / np.where", "share_of_goals_reached"),
    ("(1.0 - terminated) * next_q", "next_q", "the_rest_is_dqn"),
    ("seen[:step], rng)", "seen, rng)", "are_those_of_the_environment"),
]  # fmt: skip
