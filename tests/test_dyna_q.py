"""The maths of dyna_q.py by hand, and the experiments of the book."""

import dataclasses
import random

import gymnasium as gym
import numpy as np
import pytest
from conftest import read_log
from gymnasium import spaces

import dyna_q
import gridworld


def outcome(row, action, reward, discount, next_row):
    return (row, action, reward, discount, next_row, [0] * len(row))


def test_update_by_hand():
    row, next_row = [1.0, 2.0], [4.0, 8.0]
    assert dyna_q.update(outcome(row, 0, 1.0, 0.5, next_row), alpha=0.25) == pytest.approx(4.0)
    assert row == [pytest.approx(1.0 + 0.25 * (1.0 + 0.5 * 8.0 - 1.0)), 2.0]  # the largest value, not the first


def test_update_at_an_end_does_not_bootstrap():
    row = [0.0]
    dyna_q.update(outcome(row, 0, 10.0, 0.0, [99.0]), alpha=0.5)
    assert row == [5.0]


def test_ties_are_broken_at_random_and_the_best_is_taken():
    draw = random.Random(0).random
    counts = np.bincount([dyna_q.epsilon_greedy([0.0, 3.0, 3.0, 1.0], 0.0, draw) for _ in range(2_000)], minlength=4)
    assert counts[[0, 3]].tolist() == [0, 0]
    assert 900 < counts[1] < 1_100
    counts = np.bincount([dyna_q.epsilon_greedy([0.0, 3.0], 0.5, draw) for _ in range(2_000)])
    assert 430 < counts[0] < 570  # half of the exploring half


def test_model_keeps_the_latest_outcomes():
    kept = []
    for visits in range(7):
        dyna_q.remember(kept, visits, visits, capacity=3)
    assert sorted(kept) == [4, 5, 6]


def test_first_real_outcome_replaces_the_imagined_one():
    kept = ["imagined"]
    dyna_q.remember(kept, "real", visits=0, capacity=3)
    assert kept == ["real"]


def test_planning_draws_pairs_and_outcomes_uniformly():
    """Rewards 1 and 3 of one pair are averaged; the other pair gets half of the updates."""
    row = [0.0, 0.0]
    pairs = [[outcome(row, 0, 1.0, 0.0, row), outcome(row, 0, 3.0, 0.0, row)], [outcome(row, 1, 5.0, 0.0, row)]]
    dyna_q.plan(pairs, 20_000, 0.002, 0.0, 0, random.Random(1))
    assert row == [pytest.approx(2.0, abs=0.1), pytest.approx(5.0)]
    few = [0.0, 0.0]  # a pair that was seen thrice is not planned more often
    pairs = [[outcome(few, 0, 1.0, 0.0, few)] * 3, [outcome(few, 1, 1.0, 0.0, few)]]
    dyna_q.plan(pairs, 1_000, 1e-6, 0.0, 0, random.Random(1))
    assert few == [pytest.approx(5e-4, rel=0.1), pytest.approx(5e-4, rel=0.1)]


def test_bonus_grows_with_the_root_of_the_time_since_the_last_trial():
    row = [0.0, 0.0]
    pairs = [[(row, 1, 2.0, 0.0, row, [0, 7])]]
    dyna_q.plan(pairs, 1, 1.0, 0.5, 23, random.Random(0))
    assert row == [0.0, 2.0 + 0.5 * 4.0]  # tau = 23 - 7


def test_planning_uses_only_what_was_seen(short_args, monkeypatch):
    """Planning asks the model: what it updates are outcomes of the environment, each pair once in the list."""
    seen, plan = [], dyna_q.plan
    monkeypatch.setattr(dyna_q, "plan", lambda pairs, *rest: (seen.append(pairs), plan(pairs, *rest))[1])
    args = short_args("dyna_q", grid_size=4)
    q, grid = dyna_q.train(args), args.make_env().unwrapped
    number = {id(row): s for s, row in enumerate(q)}
    drawn = [(number[id(o[0])], o[1]) for outcomes in seen[-1] for o in outcomes[:1]]
    assert len(drawn) == len(set(drawn))
    for outcomes in seen[-1]:
        for row, action, reward, discount, next_row, _ in outcomes:
            s, next_s = number[id(row)], number[id(next_row)]
            assert next_s == grid.next_state[s, action]
            assert reward == grid.reward[s, action]
            assert discount == (0.0 if grid.terminal[next_s] else args.gamma)


def test_bonus_counts_from_the_last_real_trial(short_args, monkeypatch):
    """What planning is given as the steps of the last trials is what happened; the model's own updates are no trials."""
    last, plan, checked = {}, dyna_q.plan, []

    def spy(pairs, steps, alpha, kappa, now, rng):
        s, a = taken[-1]
        last[s, a] = now
        tried = {id(o[0]): o[5] for outcomes in pairs for o in outcomes}
        assert len(tried) == len({s for s, _ in last})
        assert sorted(n for row in tried.values() for n in row if n) == sorted(last.values())
        checked.append(now)
        plan(pairs, steps, alpha, kappa, now, rng)

    args, taken = short_args("dyna_q", grid_size=3, kappa=0.1, total_timesteps=200), []
    step = gridworld.GridWorldEnv.step
    monkeypatch.setattr(gridworld.GridWorldEnv, "step", lambda env, a: (taken.append((env.state, a)), step(env, a))[1])
    monkeypatch.setattr(dyna_q, "plan", spy)
    dyna_q.train(dataclasses.replace(args, eval_every=0))
    assert checked == list(range(1, 201))


def test_step_size_falls_to_zero_over_the_run_unless_told_otherwise(short_args, monkeypatch):
    seen, update = [], dyna_q.update
    monkeypatch.setattr(dyna_q, "update", lambda outcome, alpha: (seen.append(alpha), update(outcome, alpha))[1])
    dyna_q.train(short_args("dyna_q", total_timesteps=4, learning_rate=0.5, planning_steps=0))
    dyna_q.train(short_args("dyna_q", total_timesteps=2, learning_rate=0.5, anneal_lr=False))
    assert seen == [0.375, 0.25, 0.125, 0.0, 0.5, 0.5]


@pytest.mark.parametrize("layout", gridworld.LAYOUTS)
def test_values_converge_to_the_exact_ones(layout, short_args):
    """With alpha 1, random actions from random starts and much planning, Q = Q* in every state that can be entered and
    left; nobody stands on the key without holding it."""
    size, limit = (5, 100) if layout == "key_door" else (None, 50)  # random actions seldom fetch the key
    args = short_args(
        "dyna_q", layout=layout, grid_size=size, learning_rate=1.0, anneal_lr=False, epsilon=1.0, random_start=True,
        planning_steps=150, total_timesteps=8_000, max_episode_steps=limit, eval_every=0,
    )  # fmt: skip
    env = args.make_env()
    exact = gridworld.solve(env, gamma=args.gamma, horizon=3_000)
    error, grid = np.abs(np.array(dyna_q.train(args)) - exact), env.unwrapped
    entered = np.isin(np.arange(grid.n_states), grid.start_states)
    while (grown := entered | np.isin(np.arange(grid.n_states), grid.next_state[entered])).sum() > entered.sum():
        entered = grown
    assert entered.sum() >= grid.n_states - 3
    assert error[entered & ~grid.terminal].max() < 1e-6


# ----------------------------------------------------------------------------- the experiments of the book


def steps_of_episodes(args, seeds, episodes):
    """Mean over seeds of the steps in each of the first episodes: (episodes,)."""
    rows = []
    for seed in seeds:
        before = set(args.log_dir.glob("*"))
        dyna_q.train(dataclasses.replace(args, seed=seed))
        (folder,) = set(args.log_dir.glob("*")) - before
        rows.append([length for _, length in read_log(folder)["charts/episodic_length"]][:episodes])
    return np.mean(rows, axis=0)


@pytest.mark.paper
def test_dyna_maze(short_args):
    """Figure 8.2: planning brings the second episode from hundreds of steps to a few dozen. 20 seeds.

    Without planning the second episode is a random walk but for one pair, and takes 690.7 steps in expectation (solved
    as a linear system); its standard deviation is about as large.
    """
    steps = {}
    for planning, total in (0, 40_000), (5, 12_000), (50, 8_000):
        args = short_args(
            "dyna_q", layout="dyna_maze", grid_size=None, step_reward=0.0, goal_reward=1.0, max_episode_steps=20_000,
            learning_rate=0.1, anneal_lr=False, gamma=0.95, epsilon=0.1, planning_steps=planning, total_timesteps=total,
            eval_every=0,
        )  # fmt: skip
        steps[planning] = steps_of_episodes(args, range(1, 21), 50)
    print({planning: row[[1, 2, 4, 9]].round(1).tolist() for planning, row in steps.items()})
    assert steps[50][1] <= 60
    assert steps[50][2] <= 20
    assert steps[5][4] <= 35
    assert 400 <= steps[0][1] <= 690.7 + 3 * 690.7 / 20**0.5
    assert steps[0][1:50].sum() / steps[50][1:50].sum() >= 3


class BlockingMaze(gym.Env):
    """Example 8.2: the short way on the right is blocked after 1 000 steps, a longer one on the left opens."""

    def __init__(self):
        self.observation_space, self.action_space = spaces.Discrete(54), spaces.Discrete(4)
        self.lived, self.at = 0, (5, 3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = (5, 3)
        return 48, {}

    def step(self, action):
        row, col = np.array(self.at) + gridworld.MOVES[action]
        is_wall = row == 3 and (col < 8 if self.lived < 1_000 else col > 0)
        self.lived += 1
        if 0 <= row < 6 and 0 <= col < 9 and not is_wall:
            self.at = (int(row), int(col))
        at_goal = self.at == (0, 8)
        return self.at[0] * 9 + self.at[1], float(at_goal), at_goal, False, {}


@pytest.mark.paper
def test_blocking_maze(short_args, tmp_path):
    """Figure 8.4: the bonus finds the new way sooner. Cumulative reward after 3 000 steps, 20 seeds."""
    if "BlockingMaze-v0" not in gym.registry:
        gym.register("BlockingMaze-v0", BlockingMaze)
    rewards = {}
    for kappa in 0.0, 1e-3:
        args = short_args(
            "dyna_q", env_id="BlockingMaze-v0", grid_size=None, max_episode_steps=3_000, kappa=kappa, gamma=0.95,
            learning_rate=1.0, anneal_lr=False, planning_steps=50, model_outcomes=1, total_timesteps=3_000, eval_every=0,
            eval_episodes=1,
        )  # fmt: skip
        for seed in range(1, 21):
            dyna_q.train(dataclasses.replace(args, seed=seed, exp_name=f"kappa{kappa}"))
        logs = [read_log(folder) for folder in tmp_path.glob(f"*kappa{kappa}__*")]
        rewards[kappa] = [sum(value for _, value in log["charts/episodic_return"]) for log in logs]
        assert len(rewards[kappa]) == 20
    print({kappa: (np.mean(values), np.std(values)) for kappa, values in rewards.items()})
    assert np.mean(rewards[1e-3]) >= 1.5 * np.mean(rewards[0.0])
    assert np.mean(rewards[1e-3]) >= 80


@pytest.mark.paper
@pytest.mark.parametrize("env_id", ["FrozenLake-v1", "Taxi-v4", "CliffWalking-v1"])
def test_ends_within_a_tenth_of_the_optimum_elsewhere(env_id, short_args):
    """The greedy policy is solved exactly, not sampled: a slippery FrozenLake hides a bad one in ten episodes."""
    args, returns = short_args("dyna_q", env_id=env_id, grid_size=None, total_timesteps=50_000, eval_every=0), []
    env = args.make_env()
    for seed in range(1, 11):
        q = dyna_q.train(dataclasses.replace(args, seed=seed))
        policy = np.eye(env.action_space.n)[np.array(q).argmax(axis=1)]
        value = (policy * gridworld.solve(env, policy=policy)).sum(axis=1)
        returns.append(env.unwrapped.initial_state_distrib @ value)
    best = gridworld.optimal_return(env)
    print(env_id, "optimum", round(best, 3), "seeds", np.round(returns, 3).tolist())
    assert min(returns) >= best - 0.1 * abs(best)


# (what stands there, a known misreading, the test that must notice); python -m pytest -m mutants
MUTANTS = [
    ("reward + discount * max(next_row) - row[action]\n    row", "reward + discount * next_row[0] - row[action]\n    row", "update_by_hand"),
    ("0.0 if terminated else args.gamma", "args.gamma", "uses_only_what_was_seen"),
    ("0.0 if terminated else args.gamma", "0.0 if terminated or truncated else args.gamma", "converge_to_the_exact"),
    ("actions[int(draw() * len(actions))]", "actions[0]", "ties_are_broken"),
    ("in rng.choices(pairs, k=steps)", "in [pairs[-1]] * steps", "uniformly"),
    ("1 - step / args.total_timesteps if args.anneal_lr else 1", "1", "falls_to_zero"),
    ("outcomes[int(draw() * len(outcomes))]", "outcomes[-1]", "uniformly"),
    ("math.sqrt(now - tried[action])", "math.sqrt(now)", "root_of_the_time"),
    ("outcomes[visits % capacity] = outcome", "pass", "latest_outcomes"),
    ("outcomes.clear()", "pass", "replaces_the_imagined"),
    ("in rng.choices(pairs, k=steps)", "in rng.choices(pairs, [len(outcomes) for outcomes in pairs], k=steps)", "uniformly"),
    ("if args.kappa == 0 and visits[s][a] == 0:", "if args.kappa == 0:", "uses_only_what_was_seen"),
    ("visits[s][a], tried[s][a] = visits[s][a] + 1, step", "visits[s][a] += 1", "last_real_trial"),
    ("outcome = (q[s], a, float(reward),", "outcome = (q[s], a, 0.0,", "uses_only_what_was_seen"),
]  # fmt: skip
