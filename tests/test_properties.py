"""Properties that hold for any data, on hundreds of drawn cases: maps, replay, relabelling, returns, statistics.

Each compares a function with a slow one that says the same in plain loops. Cases are drawn from seeded generators, so a
failure repeats.
"""

import importlib
import inspect
import warnings
from collections import deque

import numpy as np
import pytest
import torch
from conftest import SCRIPTS
from test_gridworld import distances, shortest

import evaluate
import feudal
import gridworld
import her
import per_aux_dqn
import world_model

MODULES = {name: importlib.import_module(name) for name in SCRIPTS}


def having(name: str) -> list[str]:
    """The scripts with a function or class of that name."""
    return [script for script, module in MODULES.items() if hasattr(module, name)]


# ----------------------------------------------------------------------------- maps and tables


def draw_map(rng) -> str:
    rows, cols = rng.integers(1, 6, size=2)
    weights = np.array([0.25, 0.55, 0.05, 0.05, 0.05, 0.05])
    cells = rng.choice(list("#.XKDS"), size=(rows, cols), p=weights)
    for symbol in "SG" if rng.random() < 0.9 else "G":
        cells[rng.integers(rows), rng.integers(cols)] = symbol
    return "".join("".join(row) + "\n" for row in cells)


def starts_at(rows: list[str], cell: tuple[int, int]) -> list[str]:
    """The map with S there alone."""
    return [
        "".join("S" if (r, c) == cell else "." if symbol == "S" else symbol for c, symbol in enumerate(row))
        for r, row in enumerate(rows)
    ]


def test_drawn_maps_are_sound_or_refused():
    """500 maps. A map is taken where G can be reached from every S by breadth-first search, and then its P is a sound
    table whose optimal return is that of the shortest ways."""
    rng, taken, refused = np.random.default_rng(0), 0, 0
    for _ in range(500):
        layout = draw_map(rng)
        rows = layout.split("\n")[:-1]
        marked = [(r, c) for r, row in enumerate(rows) for c, symbol in enumerate(row) if symbol == "S"]
        ways = [shortest(starts_at(rows, cell)) for cell in marked]
        slip, random_start, random_goal = float(rng.choice([0.0, 0.3, 1.0])), *(rng.random(2) < 0.5).tolist()
        flags = {"layout": layout, "slip": slip, "random_start": random_start, "random_goal": random_goal}
        if not ways or None in ways:
            with pytest.raises(ValueError, match=r"line \d+, column \d+"):
                gridworld.GridWorldEnv(**flags)
            refused += 1
            continue
        taken += 1
        env = gridworld.GridWorldEnv(**flags)
        check_table(env)
        exact = gridworld.GridWorldEnv(layout=layout)
        best = gridworld.solve(exact, horizon=99).max(axis=1)
        expected = [10 - 0.1 * (way - 1) for way in ways]
        assert (best @ exact.initial_state_distrib).item() == pytest.approx(np.mean(expected), abs=1e-9)
    assert taken > 150 < refused


def check_table(env) -> None:
    """Rows of P sum to 1, terminal states absorb unrewarded, starts are open cells without the key, from which the goal
    can be reached, each as likely as another; states are numbered apart."""
    table, n = env.P, env.n_states
    assert sorted(table) == list(range(n))
    for s in range(n):
        assert sorted(table[s]) == [0, 1, 2, 3]
        for outcomes in table[s].values():
            assert sum(p for p, *_ in outcomes) == pytest.approx(1.0, abs=1e-12)
            assert all(p > 0 and 0 <= target < n for p, target, *_ in outcomes)
            if env.terminal[s]:
                assert outcomes == [(1.0, s, 0.0, True)]
            assert all(ended == env.terminal[target] for _, target, _, ended in outcomes)
    starts = env.initial_state_distrib
    assert starts.sum() == pytest.approx(1.0)
    assert len(set(starts[starts > 0])) == 1
    assert set(np.flatnonzero(starts)) == set(env.start_states)
    assert not env.terminal[env.start_states].any()
    assert not env.key_of[env.start_states].any()
    successors = [{target for outcomes in table[s].values() for _, target, *_ in outcomes} for s in range(n)]
    reach = set(np.flatnonzero(env.at_goal))
    while grown := {s for s in range(n) if s not in reach and successors[s] & reach}:
        reach |= grown
    if env.slip < 1:  # with slip 1 the move that is asked for is the one that is not made
        assert set(env.start_states) <= reach
    assert len(np.unique(np.stack([env.cell_of, env.key_of, env.goal_of]), axis=1).T) == n


@pytest.mark.parametrize("layout", ["maze", "random"])
def test_layout_seeds_draw_sound_tables(layout):
    for seed in (*range(20), gridworld.TEST_SEEDS, gridworld.TEST_SEEDS + 1):
        env = gridworld.GridWorldEnv(layout=layout, size=7, layout_seed=seed)
        check_table(env)
        rows = ["".join(row) for row in env.map]
        assert shortest(rows) == min(d for (r, c, _), d in distances(rows).items() if rows[r][c] == "G")


# ----------------------------------------------------------------------------- replay


def make_buffer(script: str, capacity: int):
    cls = MODULES[script].ReplayBuffer
    known = {"capacity": capacity, "obs_dim": 2, "prioritized": True}
    return cls(*(known[name] for name in list(inspect.signature(cls).parameters)))


@pytest.mark.parametrize("script", having("ReplayBuffer"))
def test_replay_holds_the_last_transitions_whole(script):
    """Against a deque, with blocks of any size, also larger than the buffer; each row holds one transition."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        capacity, number = int(rng.integers(1, 20)), 0
        buffer, kept = make_buffer(script, capacity), deque(maxlen=capacity)
        for size in rng.integers(1, 30, size=8):
            block = np.arange(number, number + size)
            number += size
            kept.extend(block.tolist())
            buffer.add(np.stack([block, -block], 1), block % 4, block, np.stack([block, block + 1], 1), block % 2)
            assert len(buffer) == len(kept)
            columns = [column[: len(buffer)].tolist() for column in buffer.columns]
            rows = sorted(zip(*columns, strict=True), key=lambda row: row[2])
            assert rows == [([n, -n], n % 4, n, [n, n + 1], n % 2) for n in kept]


@pytest.mark.parametrize("script", having("ReplayBuffer"))
def test_replay_draws_what_it_holds_uniformly(script):
    """Half full, then overwritten once and a half: every row kept is drawn, none else, in whole transitions."""
    for added in 10, 30:
        buffer, rng = make_buffer(script, 20), np.random.default_rng(0)
        for n in range(added):
            buffer.add(*(np.array(column) for column in ([[n, n]], [n % 4], [n], [[n, n]], [n % 2])))
        if "beta" in inspect.signature(buffer.sample).parameters:  # that of per_aux_dqn: rows, columns, weights
            obs, action, reward, next_obs, terminated = buffer.sample(8_000, 1.0, rng)[1:6]
        else:
            obs, action, reward, next_obs, terminated = buffer.sample(8_000, rng)
        assert torch.equal(obs, reward[:, None].expand(-1, 2))
        assert torch.equal(next_obs, obs)
        assert torch.equal(action, reward.long() % 4)
        assert torch.equal(terminated, reward % 2)
        counts = np.bincount(reward.long().numpy(), minlength=added)[max(0, added - 20) :]
        assert counts.sum() == 8_000
        expected = 8_000 / len(counts)
        assert ((counts - expected) ** 2 / expected).sum() < 50  # chi-square, at most 19 degrees of freedom, p < 0.001


def test_sum_trees_find_rows_as_cumulative_sums_do():
    """Priorities that are multiples of 1/8, zeros among them, so that sums are exact; any capacity."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        capacity = int(rng.integers(1, 40))
        tree, leaves = per_aux_dqn.SumTree(capacity), np.zeros(capacity)
        for _ in range(5):
            rows = rng.permutation(capacity)[: rng.integers(1, capacity + 1)]
            leaves[rows] = rng.integers(0, 5, size=len(rows)) / 8
            tree.set(rows, leaves[rows])
        total = leaves.sum()
        assert tree.sums[1] == total
        if total:
            mass = np.arange(0, total, 1 / 16)
            assert tree.find(mass).tolist() == np.searchsorted(leaves.cumsum(), mass, side="right").tolist()


def test_priorities_and_weights_are_those_of_plain_loops():
    rng = np.random.default_rng(0)
    for _ in range(200):
        n, alpha, beta = int(rng.integers(1, 30)), rng.random(), rng.random()
        error = rng.normal(size=n) * 10 ** rng.uniform(-4, 4)
        scaled = per_aux_dqn.priority(error, alpha, 1e-3)
        assert scaled == pytest.approx([(abs(delta) + 1e-3) ** alpha for delta in error])
        p = scaled / scaled.sum()
        weight = per_aux_dqn.importance_weight(p, n, beta)
        plain = [(1 / n / chance) ** beta for chance in p]
        assert weight == pytest.approx([w / max(plain) for w in plain])
        assert weight.max() == 1.0


# ----------------------------------------------------------------------------- relabelling

MAP = "S..#.\n.#.X.\n..K..\n.D.#.\n..#.G\n"


@pytest.mark.parametrize("observation", ["onehot", "coords", "index"])
@pytest.mark.parametrize("strategy", ["future", "final", "episode", "random"])
def test_hindsight_is_what_the_world_would_have_done(strategy, observation):
    """Episodes of random actions, relabelled: reward, end and input are those of the state (cell, key, g') in P."""
    env = gridworld.EnvArgs("GoalGridWorld-v0", layout=MAP, random_goal=True, observation=observation).make_env(False)
    grid, rng, checked = env.unwrapped, np.random.default_rng(0), 0
    state_of = {(c, k, g): s for s, (c, k, g) in enumerate(zip(grid.cell_of, grid.key_of, grid.goal_of, strict=True))}
    for episode in range(15):
        env.reset(seed=episode)
        states, actions = [grid.state], []
        while not grid.terminal[grid.state] and len(actions) < 30:
            actions.append(int(rng.integers(4)))
            env.step(actions[-1])
            states.append(grid.state)
        shown = [grid.observe(s) for s in states]
        obs, achieved = (np.array([row[name] for row in shown]) for name in ("observation", "achieved_goal"))
        seen = achieved[rng.integers(len(achieved), size=50)]
        t, goal = her.hindsight_goals(strategy, 4, achieved, seen, rng)
        columns = her.relabel(env, obs, achieved, np.array(actions), t, goal)
        assert len(t) == len(actions) * (1 if strategy == "final" else 4)
        for row, (i, wanted) in enumerate(zip(t, np.ravel(grid.cell(goal)), strict=True)):
            cells = [(grid.cell_of[states[j]], grid.key_of[states[j]], wanted) for j in (i, i + 1)]
            if cells[0] not in state_of or cells[0][0] == wanted:  # a trap is no goal; an episode ends at its goal
                continue
            here, there = state_of[cells[0]], state_of[cells[1]]
            ((_, target, reward, terminated),) = grid.P[here][actions[i]]
            assert target == there
            assert columns[1][row] == actions[i]
            assert columns[2][row] == reward
            assert columns[4][row] == terminated
            for column, state in (columns[0], here), (columns[3], there):
                assert np.array_equal(column[row], her.join(env.observation_space, grid.observe(state)))
            checked += 1
    assert checked > 100


# ----------------------------------------------------------------------------- returns


@pytest.mark.parametrize("script", having("td_target"))
def test_targets_are_those_of_plain_loops(script):
    rng = np.random.default_rng(0)
    target = MODULES[script].td_target
    maximises = "next_q" in inspect.signature(target).parameters  # (B, A), else (B,), a value
    for _ in range(50):
        n, gamma = int(rng.integers(1, 9)), float(rng.random())
        reward, terminated, q = rng.normal(size=n), rng.integers(2, size=n) * 1.0, rng.normal(size=(n, 3))
        next_value = [max(row) for row in q.tolist()]
        arrays = (reward, terminated, q if maximises else np.array(next_value))
        got = target(*map(torch.tensor, arrays), gamma)
        plain = [r if end else r + gamma * v for r, end, v in zip(reward, terminated, next_value, strict=True)]
        assert got.tolist() == pytest.approx(plain)


def test_n_step_returns_are_those_of_plain_loops():
    """Of every step: rewards up to the end of the episode or the rollout, there the value unless terminated."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        steps, n, gamma = int(rng.integers(1, 9)), int(rng.integers(1, 4)), float(rng.random())
        reward, value = rng.normal(size=(2, steps, n))
        terminated = rng.random((steps, n)) < 0.2
        ended = terminated | (rng.random((steps, n)) < 0.2)
        got = feudal.n_step_return(*map(torch.tensor, (reward, terminated, ended, value)), gamma)
        for t in range(steps):
            for i in range(n):
                last = next((u for u in range(t, steps) if ended[u, i]), steps - 1)
                plain = sum(gamma ** (u - t) * reward[u, i] for u in range(t, last + 1))
                plain += 0 if terminated[last, i] else gamma ** (last - t + 1) * value[last, i]
                assert got[t, i].item() == pytest.approx(plain, rel=1e-5, abs=1e-6)  # gamma is rounded to float32


def test_lambda_returns_are_the_definition():
    """R_t = (1 - lambda) sum_n lambda^(n - 1) G_t^(n) + lambda^(T - t - 1) G_t^(T - t), each discount on its own step."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        steps, lam = int(rng.integers(1, 9)), float(rng.choice([0.0, 1.0, rng.random()]))
        reward, discount, value = rng.normal(size=steps), rng.random(steps), rng.normal(size=steps)

        def n_step(t, n, reward=reward, discount=discount, value=value):
            """r_t + g_t r_(t+1) + ... + g_t ... g_(t+n-1) v_(t+n); value[u] is v_(u+1)."""
            total, weight = 0.0, 1.0
            for u in range(t, t + n):
                total, weight = total + weight * reward[u], weight * discount[u]
            return total + weight * value[t + n - 1]

        got = world_model.lambda_returns(*(torch.tensor(x)[:, None] for x in (reward, discount, value)), lam)
        for t in range(steps):
            horizon = steps - t
            plain = sum((1 - lam) * lam ** (n - 1) * n_step(t, n) for n in range(1, horizon))
            plain += lam ** (horizon - 1) * n_step(t, horizon)
            assert got[t].item() == pytest.approx(plain)
        weight = world_model.reach_weights(torch.tensor(discount)[:, None])[:, 0]
        assert weight.tolist() == pytest.approx([np.prod(discount[:t]) for t in range(steps)])


@pytest.mark.parametrize("script", having("linear_schedule"))
def test_schedules_end_where_they_should(script):
    rng, schedule = np.random.default_rng(0), MODULES[script].linear_schedule
    for _ in range(100):
        first, last, duration = *rng.normal(size=2), float(rng.choice([0.0, 1.0, 10.5, 1e6]))
        steps = [0, 0.5 * duration, duration, duration + 1]
        values = [schedule(first, last, duration, step) for step in steps]
        assert values[0] == (first if duration else last)
        assert values[2:] == [last, last]
        assert values[1] == pytest.approx((first + last) / 2 if duration else last)


@pytest.mark.parametrize("script", having("times_due"))
def test_what_is_due_is_done_as_often_as_the_steps_ask(script):
    """Whatever the stride: after n steps there were n // every, and a stride that spans several does several."""
    rng, due = np.random.default_rng(0), MODULES[script].times_due
    for _ in range(200):
        every, stride, times = (int(x) for x in rng.integers(1, 20, size=3))
        counts = [due(step, every, stride) for step in range(stride, (times + 1) * stride, stride)]
        assert sum(counts) == times * stride // every
        assert max(counts) - min(counts) <= 1


# ----------------------------------------------------------------------------- statistics of evaluate.py


def interval(x):
    return evaluate.bootstrap_interval(evaluate.iqm, x)


def test_statistics_are_those_of_plain_loops():
    rng = np.random.default_rng(0)
    for _ in range(300):
        n = int(rng.integers(1, 30))
        x = rng.choice([rng.normal(size=n), rng.integers(3, size=n) / 2, np.full(n, 0.7)])
        trimmed = sorted(x)[n // 4 : n - n // 4]
        assert evaluate.iqm(x) == pytest.approx(sum(trimmed) / len(trimmed))
        assert evaluate.kept_score(x) == min(x[-max(1, n // 5) :])
        steps = np.cumsum(rng.integers(1, 9, size=n))
        kept = [step for i, step in enumerate(steps) if all(np.float32(score) >= 0.5 for score in x[i:])]
        assert evaluate.steps_to_kept(steps, x, 0.5) == (kept[0] if kept else np.inf)
        value, low, high = interval(x)
        assert value == pytest.approx(evaluate.iqm(x))
        if n == 1:
            assert np.isnan([low, high]).all()
        else:
            assert min(x) - 1e-9 <= low <= high <= max(x) + 1e-9
            assert (low == high) == (len(set(x)) == 1) or n < 5 or len(set(x)) == 2


def test_statistics_of_degenerate_data():
    """One seed, all alike, none that got there, no evaluation; NaN is never taken for a score that was kept."""
    nan, inf = np.nan, np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert interval(np.array([3.0])).tolist()[0] == 3.0
        assert interval(np.full(10, 0.5)).tolist() == [0.5, 0.5, 0.5]
        assert interval(np.full(4, inf)).tolist() == [inf, inf, inf]
        assert interval(np.array([1.0, 1.0, 1.0, inf])).tolist()[0] == 1.0  # a quarter never got there
        assert interval(np.array([1.0, 1.0, inf, inf])).tolist()[0] == inf
        assert np.isnan(evaluate.kept_score(np.empty(0)))
        assert np.isnan(evaluate.kept_score(np.array([1.0, 1.0, 1.0, nan])))
        assert evaluate.kept_score(np.array([nan, 1.0, 1.0, 1.0, 1.0])) == 1.0
        assert evaluate.kept_score(np.array([-inf])) == -inf
        steps = np.array([1, 2, 3])
        assert evaluate.steps_to_kept(np.empty(0), np.empty(0)) == inf
        assert evaluate.steps_to_kept(steps, np.array([1.0, nan, 1.0])) == 3
        assert evaluate.steps_to_kept(steps, np.full(3, nan)) == inf
        assert evaluate.steps_to_kept(steps, np.full(3, inf)) == 1
        assert evaluate.steps_to_kept(steps, np.full(3, -inf)) == inf
    assert np.isnan(interval(np.full(5, nan))).all()


# ----------------------------------------------------------------------------- mistakes that these tests must catch

# (file, old text, new text, the test that fails)
MUTANTS = [
    ("gridworld", "self.chance[~is_open.any(axis=1)] = np.eye(4)", "pass", "drawn_maps"),
    ("gridworld", "if (stuck := is_start & is_task & ~solvable).any():", "if (stuck := is_start & False).any():", "drawn_maps"),
    ("gridworld", "np.flatnonzero(is_start & ~self.terminal & solvable)", "np.flatnonzero(is_start & ~self.terminal)", "drawn_maps"),
    ("gridworld", "self.next_state = np.where(self.terminal[:, None], here, moved)", "self.next_state = moved", "drawn_maps"),
    ("gridworld", 'np.maximum(key[:, None], self.symbol[arrival] == "K")', "key[:, None]", "drawn_maps"),
    ("dqn", "np.arange(self.added, self.added + len(transitions[0])) % self.capacity", "np.arange(len(transitions[0])) % self.capacity", "replay_holds"),
    ("her", "return min(self.added, self.capacity)", "return self.capacity", "replay_holds"),
    ("dqn", "rng.integers(len(self), size=batch_size)", "rng.integers(self.capacity, size=batch_size)", "replay_draws"),
    ("per_aux_dqn", "self.added += len(rows)", "self.added += 1", "replay_holds"),
    ("per_aux_dqn", "to_right = mass >= left", "to_right = mass > left", "sum_trees"),
    ("per_aux_dqn", "(np.abs(error) + epsilon) ** alpha", "(error**2 + epsilon) ** alpha", "priorities_and_weights"),
    ("per_aux_dqn", "return weight / weight.max()", "return weight / weight.mean()", "priorities_and_weights"),
    ("her", "task, arrived = env.unwrapped, achieved[t + 1]", "task, arrived = env.unwrapped, achieved[t]", "hindsight_is"),
    ("her", "terminated = task.compute_terminated(arrived, goal, {}) if", "terminated = False if", "hindsight_is"),
    ("feudal", "gamma * ~terminated[t] *", "gamma * ~ended[t] *", "n_step_returns"),
    ("world_model", "(1 - lam) * next_value[t] + lam * following", "lam * next_value[t] + (1 - lam) * following", "lambda_returns"),
    ("world_model", "torch.cat([torch.ones_like(discount[:1]), discount[:-1].cumprod(dim=0)])", "discount.cumprod(dim=0)", "lambda_returns"),
    ("model_based", "gamma * (1.0 - terminated) * next_value", "gamma * next_value", "targets_are"),
    ("dqn", "return step // every - (step - stride) // every", "return int(step % every == 0)", "what_is_due"),
    ("her", "return end if step >= duration", "return start if step >= duration", "schedules_end"),
    ("evaluate", "float(np.min(score[", "float(np.nanmin(score[", "degenerate"),
    ("evaluate", "first = below[-1] + 1 if", "first = below[-1] if", "statistics_are"),
]  # fmt: skip
