"""gridworld.py against its rules written out a second time, numbers worked out by hand, and plain value iteration.

`outcomes` is the rules of the grid world once more, `distances` a search over them, `induction` backward induction over
any table P: none of them uses gridworld's own tables and solver.
"""

import dataclasses
import io
import itertools
import re
import subprocess
import sys
import tracemalloc
import warnings
from collections import Counter, deque
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import tyro
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from PIL import Image

import gridworld
from gridworld import GRID_IDS, TEST_SEEDS, EnvArgs, GoalGridWorldEnv, GridWorldEnv, GridWorldVectorEnv, layout_rows

ROOT = Path(__file__).parents[1]
# Two starts, of which one needs the key and a door and one does not; traps, and free cells written both ways.
OWN = "S.K#...\n.X.D.G.\n.# #.XS\n...D..."
TASKS = {
    "empty": {"size": 4},
    "four_rooms": {"layout": "four_rooms", "size": 7},
    "key_door": {"layout": "key_door", "size": 5},
    "maze": {"layout": "maze", "size": 7, "layout_seed": 3},
    "random": {"layout": "random", "size": 5, "layout_seed": 3},
    "dyna_maze": {"layout": "dyna_maze"},
    "cliff": {"layout": "cliff"},
    "own": {"layout": OWN},
}
OBSERVATIONS = ("onehot", "coords", "index")


# ----------------------------------------------------------------------------- the same things computed another way


def outcomes(rows, state, action, slip=0.0):
    """{(row, column, key): probability} after `action` in `state`, also a (row, column, key), not a terminal one."""

    def move(direction):
        row, col, key = state
        r, c = row + (-1, 0, 1, 0)[direction], col + (0, 1, 0, -1)[direction]
        if not (0 <= r < len(rows) and 0 <= c < len(rows[0])) or rows[r][c] == "#" or (rows[r][c] == "D" and not key):
            r, c = row, col
        return r, c, int(key or rows[r][c] == "K")

    chance = Counter({move(action): 1.0 - slip})
    elsewhere = [move(direction) for direction in range(4) if move(direction) != state]
    for arrival in elsewhere or [state]:
        chance[arrival] += slip / (len(elsewhere) or 1)
    return {arrival: p for arrival, p in chance.items() if p > 0}


def distances(rows):
    """Steps from the first S to every (row, column, key) that can be reached, by breadth-first search."""
    start = next((r, c, 0) for r, row in enumerate(rows) for c, symbol in enumerate(row) if symbol == "S")
    found, queue = {start: 0}, deque([start])
    while queue:
        state = queue.popleft()
        if rows[state[0]][state[1]] in "GX":
            continue
        for action in range(4):
            (arrival,) = outcomes(rows, state, action)
            if arrival not in found:
                found[arrival] = found[state] + 1
                queue.append(arrival)
    return found


def shortest(rows):
    return min((d for (r, c, _), d in distances(rows).items() if rows[r][c] == "G"), default=None)


def induction(table, horizon, gamma=1.0, best=True):
    """Q with `horizon` steps to go, as lists."""
    value = dict.fromkeys(table, 0.0)
    for _ in range(horizon):
        q = {
            s: [
                sum(p * (r + (0.0 if end else gamma * value[to])) for p, to, r, end in table[s][a])
                for a in sorted(table[s])
            ]
            for s in table
        }
        value = {s: max(row) if best else sum(row) / len(row) for s, row in q.items()}
    return [q[s] for s in sorted(q)]


class Ladder:
    """In place of a generator: evenly spaced numbers, so that `n` draws meet every multiple of 1 / n exactly."""

    def __init__(self, n):
        self.numbers = itertools.cycle((np.arange(n) + 0.5) / n)

    def random(self):
        return next(self.numbers)


def columns(log):
    """A list of observations as arrays, one for each part: [(T, ...)]."""
    return [np.array([obs[key] for obs in log]) for key in log[0]] if isinstance(log[0], dict) else [np.array(log)]


def flat(env, obs):
    return spaces.flatten(env.observation_space, obs)


def place_of(env, state):
    return (*env.cells[env.cell_of[state]].tolist(), int(env.key_of[state]))


# ----------------------------------------------------------------------------- Gymnasium


@pytest.mark.parametrize("random_goal", [False, True])
@pytest.mark.parametrize("observation", OBSERVATIONS)
@pytest.mark.parametrize("layout", [*gridworld.LAYOUTS, OWN])
@pytest.mark.parametrize("env_id", GRID_IDS)
def test_checker_passes_without_a_warning(env_id, layout, observation, random_goal):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(env_id, layout=layout, observation=observation, random_goal=random_goal, render_mode="ansi")
        check_env(env.unwrapped)


@pytest.mark.parametrize("code", [["gridworld.py", "--grid-size", "3"], ["-c", "import gridworld, gridworld as again"]])
def test_registering_twice_does_not_warn(code):
    done = subprocess.run([sys.executable, "-W", "error", *code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_module_prefix_registers_from_anywhere(tmp_path):
    code = f"import gymnasium, sys; sys.path.append({str(ROOT)!r}); print(gymnasium.make('gridworld:GridWorld-v0'))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert "GridWorldEnv<GridWorld-v0>" in done.stdout, done.stderr


@pytest.mark.parametrize("observation", ["onehot", "coords"])
@pytest.mark.parametrize("env_id", GRID_IDS)
def test_observations_are_fresh_arrays(env_id, observation):
    single = gym.make(env_id, size=3, observation=observation).unwrapped
    vector = gym.make_vec(env_id, 2, "vector_entry_point", size=3, observation=observation, max_episode_steps=2)
    for env, action in (single, 0), (vector, np.zeros(2, int)):  # against the wall: the agent stays
        first, _ = env.reset(seed=1)
        kept = [part.copy() for part in columns([first])]
        for obs in env.step(action)[0], env.step(action)[0], env.reset()[0]:
            assert all(map(np.array_equal, columns([obs]), kept))
            for part in obs.values() if isinstance(obs, dict) else [obs]:
                part[:] = 7.0  # must not reach any other observation


@pytest.mark.parametrize("layout", ["empty", "four_rooms", "dyna_maze", "cliff", OWN])
@pytest.mark.parametrize("env_id", GRID_IDS)
def test_default_time_limit_is_four_times_the_cells(env_id, layout):
    rows = layout_rows(layout)
    limit = 4 * len(rows) * len(rows[0])
    env = gym.make(env_id, layout=layout)
    assert env.spec.max_episode_steps == limit
    assert gym.make_vec(env_id, 2, "vector_entry_point", layout=layout).max_episode_steps == limit
    assert EnvArgs(env_id, layout=layout).make_env().spec.max_episode_steps == limit


LOCKED = "SD#\n.KG\n"  # the goal is two steps away; going up and down never gets there


def lengths(step, limit):
    """How many steps until the episode is over, at most `limit`; and that it was truncated, not terminated."""
    for n in range(1, limit + 1):
        terminated, truncated = step(2 * (n % 2))
        if terminated or truncated:
            return n, truncated and not terminated
    return None


@pytest.mark.parametrize(
    ("given", "expected"), [(None, 24), (1, 1), (7, 7), (24, 24), (25, 25), (400, 400), (-1, None)]
)
@pytest.mark.parametrize("env_id", GRID_IDS)
def test_time_limit_is_obeyed_to_the_step(env_id, given, expected):
    env = gym.make(env_id, layout=LOCKED, max_episode_steps=given)
    vector = gym.make_vec(env_id, 1, "vector_entry_point", layout=LOCKED, max_episode_steps=given)
    again = gym.make(env.spec)  # a spec carries its limit along
    sync = gym.make_vec(env_id, 1, "sync", layout=LOCKED, max_episode_steps=given)
    assert env.spec.max_episode_steps == again.spec.max_episode_steps == expected or given == -1
    for _ in range(2):  # the count starts again with the episode
        for one in (env, again) if given != -1 else (env,):
            one.reset()
            result = lengths(lambda action, one=one: one.step(action)[2:4], 500)
            assert result == (expected and (expected, True))
        for many in vector, sync:
            many.reset()
            result = lengths(lambda action, many=many: [end[0] for end in many.step([action])[2:4]], 500)
            assert result == (expected and (expected, True))


@pytest.mark.parametrize("limit", [0, -5])
def test_senseless_time_limits_are_refused(limit):
    with pytest.raises(ValueError, match="max_episode_steps"):
        GridWorldVectorEnv(2, max_episode_steps=limit)


def test_render_modes_are_gymnasiums():
    assert gym.make("GridWorld-v0").metadata["render_modes"] == ["ansi", "rgb_array"]
    env = gym.make("GridWorld-v0", render_mode="rgb_array_list")
    env.reset()
    env.step(1)
    assert len(env.render()) == 2
    with pytest.warns(UserWarning, match="not in the possible render_modes"):
        gym.make("GridWorld-v0", render_mode="hologram")


def test_vector_form_names_its_autoreset_mode():
    assert GridWorldVectorEnv(2).metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    assert EnvArgs("CartPole-v1").make_vec(2).metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    assert isinstance(gym.make_vec("GridWorld-v0", 2), GridWorldVectorEnv)
    assert isinstance(EnvArgs().make_vec(2), GridWorldVectorEnv)


@pytest.mark.parametrize("action", [-1, 4])
def test_actions_out_of_range_are_refused(action):
    env, vector = GridWorldEnv(3), GridWorldVectorEnv(2, size=3)
    env.reset()
    vector.reset()
    with pytest.raises(ValueError, match="action"):
        env.step(action)
    for actions in ([0, action], [[0], [1]], [0], [0, 1, 2]):
        with pytest.raises(ValueError, match="actions must be 2 numbers"):
            vector.step(np.array(actions))


@pytest.mark.parametrize("state", [-1, 9])
def test_start_states_out_of_range_are_refused_and_change_nothing(state):
    env, vector = GridWorldEnv(3), GridWorldVectorEnv(2, size=3)
    env.reset(options={"state": 4})
    vector.reset(options={"state": [4, 5]})
    for one, states in (env, state), (vector, [4, state]):
        with pytest.raises(ValueError, match="state"):
            one.reset(options={"state": states})
    assert env.state == 4
    assert vector.states.tolist() == [4, 5]


# ----------------------------------------------------------------------------- lives


def assert_lives_agree(env_id, kwargs, seed, steps, num_envs=4):
    vector = gym.make_vec(env_id, num_envs, "vector_entry_point", **kwargs)
    singles = [gym.make(env_id, disable_env_checker=True, **kwargs) for _ in range(num_envs)]
    vector_obs, vector_end, single_end = [vector.reset(seed=seed)[0]], [], []
    single_obs = [env.reset(seed=seed + i)[0] for i, env in enumerate(singles)]
    vector_final, single_final, success = [], [], []
    for actions in np.random.default_rng(seed).integers(4, size=(steps, num_envs)):
        obs, *end, info = vector.step(actions)
        vector_obs.append(obs)
        vector_end.append(end)
        for i, env in enumerate(singles):
            obs, *end, single_info = env.step(int(actions[i]))
            single_end.append(end)
            if end[1] or end[2]:
                single_final.append(obs)
                vector_final.append(info["final_obs"][i])
                success.append((single_info["is_success"], info["final_info"]["is_success"][i]))
                obs, _ = env.reset()
            elif info:
                assert info["final_obs"][i] is None
            single_obs.append(obs)
        assert ("final_obs" in info) == any(end[1] or end[2] for end in single_end[-num_envs:])
    for one, many in zip(columns(single_obs), columns(vector_obs), strict=True):
        np.testing.assert_array_equal(one, many.reshape(one.shape))
    for one, many in zip(columns(single_final), columns(vector_final), strict=True):
        np.testing.assert_array_equal(one, many)
    np.testing.assert_array_equal(np.array(single_end), np.array(vector_end).transpose(0, 2, 1).reshape(-1, 3))
    assert all(one == many for one, many in success)
    return np.array(single_end), success


@pytest.mark.parametrize("slip", [0.0, 0.3])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("env_id", GRID_IDS)
def test_vector_and_single_forms_agree_step_for_step(env_id, task, slip):
    kwargs = TASKS[task] | {"slip": slip, "random_start": slip > 0, "max_episode_steps": 80}
    end, success = assert_lives_agree(env_id, kwargs, seed=list(TASKS).index(task), steps=2_500)  # x 4 = 10 000
    assert end[:, 1].any(), "no episode terminated"
    assert end[:, 2].any(), "no episode was cut"
    assert slip == 0 or any(one for one, _ in success), "no episode reached the goal"


@pytest.mark.parametrize("seed", [0, 1, 12345])
@pytest.mark.parametrize("observation", OBSERVATIONS)
@pytest.mark.parametrize("env_id", GRID_IDS)
def test_forms_agree_with_every_observation_random_goals_and_seeds(env_id, observation, seed):
    kwargs = TASKS["own"] | {"observation": observation, "random_goal": True, "random_start": seed == 1, "slip": 0.1}
    assert_lives_agree(env_id, kwargs, seed, steps=300)


@pytest.mark.parametrize("task", ["empty", "own", "cliff"])
@pytest.mark.parametrize("env_id", GRID_IDS)
def test_vector_form_is_a_sync_vector_env_of_single_ones(env_id, task):
    kwargs = TASKS[task] | {"slip": 0.2, "random_start": True, "max_episode_steps": 15}
    vector = gym.make_vec(env_id, 3, "vector_entry_point", **kwargs)
    same_step = {"vector_kwargs": {"autoreset_mode": AutoresetMode.SAME_STEP}}
    sync = gym.make_vec(env_id, 3, "sync", **same_step, **kwargs)
    assert vector.observation_space == sync.observation_space
    assert vector.action_space == sync.action_space
    assert all(map(np.array_equal, columns([vector.reset(seed=5)[0]]), columns([sync.reset(seed=5)[0]])))
    rng, ends = np.random.default_rng(0), 0
    for t in range(400):
        if t == 200:  # a reset of all in the middle of their lives
            assert all(map(np.array_equal, columns([vector.reset()[0]]), columns([sync.reset()[0]])))
        actions = rng.integers(4, size=3)
        obs, reward, terminated, truncated, info = vector.step(actions)
        sync_obs, *sync_rest, sync_info = sync.step(actions)
        for mine, theirs in zip((reward, terminated, truncated), sync_rest, strict=True):
            np.testing.assert_array_equal(mine, theirs)
            assert mine.dtype == theirs.dtype
        for one, many in zip(columns([obs]), columns([sync_obs]), strict=True):
            np.testing.assert_array_equal(one, many)
        assert ("final_obs" in info) == ("final_obs" in sync_info)
        if "final_obs" in info:
            ends += 1
            np.testing.assert_array_equal(info["_final_obs"], sync_info["_final_obs"])
            np.testing.assert_array_equal(info["final_info"]["is_success"], sync_info["final_info"]["is_success"])
            for mine, theirs in zip(info["final_obs"], sync_info["final_obs"], strict=True):
                assert (mine is None) == (theirs is None)
                assert mine is None or all(map(np.array_equal, columns([mine]), columns([theirs])))
    assert ends > 20


def life(env, seed, steps=200):
    """Everything an env tells during `steps` fixed actions, as one flat array."""
    told = [flat(env, env.reset(seed=seed)[0])]
    for action in np.random.default_rng(0).integers(4, size=steps):
        obs, reward, terminated, truncated, _ = env.step(action)
        told += [flat(env, obs), [reward, terminated, truncated]]
        if terminated or truncated:
            told.append(flat(env, env.reset()[0]))
    return np.concatenate(told)


@pytest.mark.parametrize("kwargs", [{"slip": 0.3}, {"random_start": True}, {"random_goal": True}])
@pytest.mark.parametrize("env_id", GRID_IDS)
def test_same_seed_same_life(env_id, kwargs):
    first, second = (gym.make(env_id, size=4, max_episode_steps=20, **kwargs) for _ in range(2))
    lives = [life(first, seed) for seed in (1, 2, 3)]
    assert np.array_equal(lives[0], life(second, 1))
    assert np.array_equal(lives[0], life(first, 1)), "a seeded reset leaves the past behind"
    assert len({one.tobytes() for one in lives}) == 3


def test_unseeded_reset_goes_on_with_the_stream():
    for env in GridWorldEnv(8, random_start=True), GridWorldVectorEnv(1, size=8, random_start=True):
        runs = [[np.argmax(env.reset(seed=seed)[0]) for seed in (3, None, None, None, None)] for _ in range(2)]
        assert runs[0] == runs[1]
        assert len(set(runs[0])) > 1
        assert env.reset()[0].argmax() is not None  # and without any seed at all


@pytest.mark.parametrize("env_id", GRID_IDS)
def test_no_transition_leads_from_an_ended_episode(env_id):
    """The observation returned at an end is a start of the next episode; the last one is in final_obs."""
    env = gym.make_vec(env_id, 8, "vector_entry_point", layout=OWN, max_episode_steps=25)
    grid = env.grid
    starts = {flat(grid, grid.observe(s)).tobytes() for s in grid.start_states}
    assert len(starts) == 2
    terminal = {flat(grid, grid.observe(s)).tobytes() for s in np.flatnonzero(grid.terminal)}
    env.reset(seed=0)
    cut = ended = 0
    for actions in np.random.default_rng(0).integers(4, size=(500, 8)):
        obs, _, terminated, truncated, info = env.step(actions)
        now = [flat(grid, {k: v[i] for k, v in obs.items()} if isinstance(obs, dict) else obs[i]) for i in range(8)]
        assert not any(one.tobytes() in terminal for one in now)
        for i in np.flatnonzero(terminated | truncated):
            assert now[i].tobytes() in starts
            assert (flat(grid, info["final_obs"][i]).tobytes() in terminal) == terminated[i]
            cut, ended = cut + truncated[i], ended + terminated[i]
    assert cut > 10
    assert ended > 10


# ----------------------------------------------------------------------------- maps

DRAWINGS = {
    "dyna_maze": """
.......#G
..#....#.
S.#....#.
..#......
.....#...
.........""",
    "cliff": """
............
............
............
SXXXXXXXXXXG""",
    "four_rooms": """
#############
#S....#.....#
#.....#.....#
#...........#
#.....#.....#
#.....#.....#
##.####.....#
#.....###.###
#.....#.....#
#.....#.....#
#...........#
#.....#....G#
#############""",
    "key_door": """
S...#...
....#...
....#...
....#...
....D...
....#...
....#...
K...#..G""",
}


@pytest.mark.parametrize("layout", DRAWINGS)
def test_named_layouts_are_the_drawings(layout):
    assert layout_rows(layout) == DRAWINGS[layout].strip().split("\n")


def test_empty_grid_starts_top_left_and_ends_bottom_right():
    assert layout_rows("empty", 3) == ["S..", "...", "..G"]
    assert layout_rows() == ["S.......", *["........"] * 6, ".......G"]


def test_four_rooms_has_104_free_cells():
    assert len(GridWorldEnv(layout="four_rooms").cells) == 104


@pytest.mark.parametrize("size", [7, 8, 9, 12, 20, 21])
@pytest.mark.parametrize("layout", ["four_rooms", "key_door", "random", "maze"])
def test_other_sizes_have_their_size_and_a_way(layout, size):
    if layout != "maze" or size % 2 == 1:
        rows = layout_rows(layout, size)
        assert [len(row) for row in rows] == [size] * size
        assert shortest(rows) is not None


def test_key_door_cannot_be_solved_without_the_key():
    for size in 3, 4, 5, 8, 9:
        rows = layout_rows("key_door", size)
        found = distances(rows)
        goals = [(r, c, key) for r, c, key in found if rows[r][c] == "G"]
        assert goals == [(size - 1, size - 1, 1)], "the goal, with the key only"
        without = [row.replace("K", ".") for row in rows]
        with pytest.raises(ValueError, match="cannot be reached"):
            GridWorldEnv(layout="\n".join(without))


@pytest.mark.parametrize(("layout", "size"), [("maze", 7), ("maze", 11), ("random", 4), ("random", 5), ("random", 8)])
def test_generated_maps_are_solvable_and_keep_training_and_testing_apart(layout, size):
    train, test = ({tuple(layout_rows(layout, size, first + i)) for i in range(1_000)} for first in (0, TEST_SEEDS))
    assert not train & test
    assert min(len(train), len(test)) > (5 if size == 7 else 400)
    for rows in sorted(train | test)[::5]:
        assert "".join(rows).count("S") == "".join(rows).count("G") == 1
        free = sum(symbol != "#" for row in rows for symbol in row)
        assert len(distances([row.replace("G", ".") for row in rows])) == free, "a cell is cut off"
        if layout == "maze":
            rooms = ((size - 1) // 2) ** 2
            assert free - rooms == rooms - 1, "a perfect maze has one passage less than rooms"
            assert all(rows[r][c] != "#" for r in range(1, size, 2) for c in range(1, size, 2))
            assert rows[1][1] == "S"
            assert rows[-2][-2] == "G"


@pytest.mark.parametrize(("layout", "size"), [("maze", 7), ("maze", 9), ("maze", 15), ("random", 4), ("random", 12)])
def test_the_same_layout_seed_draws_the_same_map_and_its_optimum_is_the_shortest_way(layout, size):
    maps = set()
    for seed in (*range(10), *range(TEST_SEEDS, TEST_SEEDS + 5)):
        rows = layout_rows(layout, size, seed)
        assert rows == layout_rows(layout, size, seed)
        maps.add(tuple(rows))
        env = gym.make("GridWorld-v0", size=size, layout=layout, layout_seed=seed)
        assert gridworld.optimal_return(env) == pytest.approx(10 - 0.1 * (shortest(rows) - 1))
    assert len(maps) > 3


def test_map_files_of_every_usual_form_are_read(tmp_path):
    expected = ["S.#", "#.G"]
    forms = [b"S.#\n#.G", b"S.#\n#.G\n", b"S.#\r\n#.G\r\n", b"S.#\n#.G\n\n\n", b"\xef\xbb\xbfS.#\n#.G\n"]
    for i, form in enumerate(forms):
        path = tmp_path / f"{i}.txt"
        path.write_bytes(form)
        assert layout_rows(str(path)) == expected
        assert gym.make("GridWorld-v0", layout=str(path)).unwrapped.map.shape == (2, 3)
    assert layout_rows("\nS.#\n#.G\n") == expected
    assert layout_rows("S G\n") == ["S G"]
    assert gridworld.optimal_return(gym.make("GridWorld-v0", layout="S G\n")) == pytest.approx(9.9)
    for tall in ("S\n" + ".\n" * 16_382 + "G\n", "S" + "." * 16_382 + "G\n"):  # the largest there may be
        (tmp_path / "tall.txt").write_text(tall)
        assert len("".join(layout_rows(str(tmp_path / "tall.txt")))) == gridworld.MAX_CELLS


BAD_MAPS = {
    "short line": ("S..\n..\n..G", ", line 2, column 3: 2 cells, but line 1 has 3"),
    "long line": ("S..\n...\n...G", ", line 3, column 4: 4 cells, but line 1 has 3"),
    "blank line": ("S..\n\n..G", ", line 2, column 1: 0 cells, but line 1 has 3"),
    "unknown character": ("S..\n.?G", ", line 2, column 2: unknown character '?'"),
    "small letter": ("s..\n..G", ", line 1, column 1: unknown character 's'"),
    "tab": ("S..\n..G\n.\t.", ", line 3, column 2: unknown character '\\t'"),
    "no start": ("...\n..G", ": no start 'S' from line 1, column 1 to line 2, column 3"),
    "no goal": ("S..\n...", ": no goal 'G' from line 1, column 1 to line 2, column 3"),
    "two goals": ("S.G\n.G.", ", line 2, column 2: another goal 'G', one is allowed"),
    "no way": ("..#G\nS.#.", ", line 2, column 1: the goal cannot be reached from this start"),
    "no way from one of the starts": ("S.#S\nG.#.", ", line 1, column 4: the goal cannot be reached from this start"),
    "trap on the only way": ("S.XG", ", line 1, column 1: the goal cannot be reached from this start"),
    "door without a key": ("S.DG", ", line 1, column 1: the goal cannot be reached from this start"),
    "key behind its door": ("S.DG\n##K#", ", line 1, column 1: the goal cannot be reached from this start"),
    "empty": ("", ", line 1, column 1: the map is empty"),
    "nothing but line ends": ("\n\n\n", ", line 1, column 1: the map is empty"),
    "one cell, a start": ("S", ": no goal 'G' from line 1, column 1 to line 1, column 1"),
    "one cell, a goal": ("G", ": no start 'S' from line 1, column 1 to line 1, column 1"),
    "too large": (("." * 129 + "\n") * 128, ": a map may have at most 16384 cells"),
}


@pytest.mark.parametrize("name", BAD_MAPS)
def test_bad_maps_are_refused_by_file_line_and_column(name, tmp_path):
    text, message = BAD_MAPS[name]
    path = tmp_path / "bad map.txt"
    path.write_text(text)
    for make in (
        lambda: EnvArgs(layout=str(path)),
        lambda: gym.make("GridWorld-v0", layout=str(path)),
        lambda: GridWorldVectorEnv(2, layout=str(path)),
    ):
        with pytest.raises(ValueError, match="bad map") as error:
            make()
        assert str(error.value) == f"{path}{message}"
    if "\n" in text.strip("\n"):
        with pytest.raises(ValueError, match="the map") as error:
            GridWorldEnv(layout=text)
        assert str(error.value) == f"the map{message}"


def test_what_is_no_map_file_is_refused_by_name(tmp_path):
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    (tmp_path / "utf-16").write_text("S.G", encoding="utf-16")
    for name in "missing", "binary", "utf-16", "":
        with pytest.raises(ValueError, match=r"neither one of empty, .* nor a text file: ") as error:
            EnvArgs(layout=str(tmp_path / name))
        assert str(tmp_path / name) in str(error.value)
        assert "\n" not in str(error.value)
    for name in "", "Empty", "S\0G", "x" * 5_000:
        with pytest.raises(ValueError, match=r"--layout '.*' is neither one of empty, "):
            EnvArgs(layout=name)


def test_huge_files_are_refused_without_being_read(tmp_path):
    path = tmp_path / "huge.txt"
    with open(path, "wb") as file:
        file.write((b"." * 10_000 + b"\n") * 20)
        file.truncate(10_000 * 10_001)  # 100 MB, sparse
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"huge.txt: a map may have at most 16384 cells"):
        EnvArgs(layout=str(path))
    assert tracemalloc.get_traced_memory()[1] < 5e6, "bytes held at once"
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("layout", "size"),
    [(layout, size) for layout in ("empty", "four_rooms", "key_door", "maze", "random") for size in (0, 1, -3, 10_000)]
    + [("empty", 129), ("maze", 8), ("maze", 5), ("four_rooms", 6), ("key_door", 2), ("random", 3), ("cliff", 8)]
    + [("dyna_maze", 6), ("S.G\n", 3)],
)
def test_sizes_out_of_range_are_refused(layout, size):
    with pytest.raises(ValueError, match=f"^--grid-size .*{size}$"):
        EnvArgs(layout=layout, grid_size=size)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_layout_seeds_out_of_range_are_refused(seed):
    with pytest.raises(ValueError, match=r"^--layout-seed must be"):
        EnvArgs(layout="maze", layout_seed=seed)


def shell(*arguments):
    return subprocess.run([sys.executable, "gridworld.py", *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["unknown character", "no way"])
def test_the_shell_sees_a_box_and_exit_code_2(name, tmp_path):
    path = tmp_path / "bad.txt"
    path.write_text(BAD_MAPS[name][0])
    done = shell("--layout", str(path))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "╭" in done.stderr
    told = re.sub(r"[│\s]+", "", done.stderr)  # the box breaks lines
    assert re.sub(r"\s", "", f"{path}{BAD_MAPS[name][1]}") in told


# ----------------------------------------------------------------------------- the table


@pytest.mark.parametrize("random_goal", [False, True])
@pytest.mark.parametrize("slip", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("task", TASKS)
def test_table_follows_the_rules(task, slip, random_goal):
    """P against `outcomes`, for every state and action."""
    rewards = {"step_reward": -0.5, "goal_reward": 7.0, "trap_reward": -3.0}
    env = GridWorldEnv(**TASKS[task], **rewards, slip=slip, random_goal=random_goal)
    rows = ["".join(row) for row in env.map]
    assert sorted(env.P) == list(range(env.n_states))
    assert len({(place_of(env, s), env.goal_of[s]) for s in env.P}) == env.n_states
    for s in range(env.n_states) if not random_goal else range(0, env.n_states, 7):
        row, col, key = place_of(env, s)
        goal = tuple(env.cells[env.goal_of[s]])
        assert sorted(env.P[s]) == [0, 1, 2, 3]
        for a in range(4):
            assert sum(p for p, *_ in env.P[s][a]) == pytest.approx(1.0, abs=1e-12)
            if (row, col) == goal or rows[row][col] == "X":
                assert env.P[s][a] == [(1.0, s, 0.0, True)], "terminal states keep to themselves"
                continue
            got = Counter()
            for p, to, reward, terminated in env.P[s][a]:
                r, c, _ = arrival = place_of(env, to)
                got[arrival] += p
                at_goal, in_trap = (r, c) == goal, rows[r][c] == "X"
                assert env.goal_of[to] == env.goal_of[s]
                assert reward == (7.0 if at_goal else -3.0 if in_trap else -0.5)
                assert terminated == (at_goal or in_trap)
            assert got == pytest.approx(outcomes(rows, (row, col, key), a, slip))


@pytest.mark.parametrize("slip", [0.0, 0.3])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("env_id", GRID_IDS)
def test_step_does_what_the_table_says(env_id, task, slip):
    """Every state and action, with 40 evenly spaced numbers: 0.3 / 1, / 2, / 3 and / 4 are multiples of 1 / 40."""
    env = gym.make(env_id, **TASKS[task], slip=slip).unwrapped
    env.np_random = Ladder(40)
    for s in range(env.n_states):
        for a in range(4):
            seen = Counter()
            for _ in range(40 if slip else 1):
                env.reset(options={"state": s})
                _, reward, terminated, _, info = env.step(a)
                seen[env.state, reward, terminated] += 1 / (40 if slip else 1)
                assert info["is_success"] == bool(env.at_goal[env.state])
            expected = Counter()
            for p, *outcome in env.P[s][a]:
                expected[tuple(outcome)] += p
            assert seen == pytest.approx(expected), (s, a)


@pytest.mark.parametrize("random_goal", [False, True])
@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_starts_are_uniform_as_the_distribution_says(task, random_start, random_goal):
    env = GridWorldEnv(**TASKS[task], random_start=random_start, random_goal=random_goal)
    distribution, rows = env.initial_state_distrib, ["".join(row) for row in env.map]
    assert distribution.shape == (env.n_states,)
    assert distribution.sum() == pytest.approx(1.0)
    n = len(env.start_states)
    env.np_random = Ladder(3 * n)
    seen = Counter()
    for _ in range(3 * n):
        env.reset()
        seen[env.state] += 1 / (3 * n)
    assert seen == pytest.approx({s: p for s, p in enumerate(distribution) if p > 0})
    places = Counter()
    for s in env.start_states:
        row, col, key = place_of(env, s)
        assert key == 0
        assert (row, col) != tuple(env.cells[env.goal_of[s]]), "a start is never its own goal"
        assert rows[row][col] in (". S" + "G" * random_goal if random_start else "S")
        places[row, col] += 1
    if not random_start:
        assert set(places) == {(r, c) for r, row in enumerate(rows) for c, symbol in enumerate(row) if symbol == "S"}
    elif not random_goal:
        cells = {(r, c) for r, row in enumerate(rows) for c, symbol in enumerate(row) if symbol in "S. "}
        assert set(places) == cells


def test_cells_without_a_way_to_the_goal_are_no_starts():
    env = GridWorldEnv(layout="S.G#..\n", random_start=True)
    assert [place_of(env, s) for s in env.start_states] == [(0, 0, 0), (0, 1, 0)]


# ----------------------------------------------------------------------------- exact solutions


def optimum(limit=None, **kwargs):
    return gridworld.optimal_return(gym.make("GridWorld-v0", max_episode_steps=limit, **kwargs))


@pytest.mark.parametrize(
    ("kwargs", "steps"),
    [
        ({}, 14),
        ({"size": 5}, 8),
        ({"layout": "dyna_maze"}, 14),
        ({"layout": "cliff"}, 13),
        ({"layout": "four_rooms"}, 20),
        ({"layout": "key_door"}, 20),  # 7 down to the key, 3 up and 4 right to the door, 3 down and 3 right
        ({"layout": "SKDG\n"}, 3),
        ({"layout": "G.D\n##.\nSK.\n"}, 6),
    ],
)
def test_optimal_returns_by_hand(kwargs, steps):
    assert optimum(**kwargs) == pytest.approx(10.0 - 0.1 * (steps - 1))
    assert optimum(**kwargs, step_reward=-1.0, goal_reward=0.0, trap_reward=-99.0) == pytest.approx(-(steps - 1))
    assert optimum(limit=steps, **kwargs) == pytest.approx(10.0 - 0.1 * (steps - 1))
    assert optimum(limit=steps - 1, **kwargs) == pytest.approx(-0.1 * (steps - 1)), "one step short of the goal"


def test_optimum_within_the_limit_by_hand():
    assert optimum(limit=1, layout="S.G\n") == pytest.approx(-0.1)
    assert optimum(limit=2, layout="XS..G\n", step_reward=-1.0, trap_reward=-1.5) == pytest.approx(-1.5), (
        "into the trap"
    )
    assert optimum(limit=3, layout="XS..G\n", step_reward=-1.0, trap_reward=-1.5) == pytest.approx(8.0)
    assert optimum(limit=6, layout="S.G\n", step_reward=1.0) == pytest.approx(5 + 10), "goal in the last step"
    assert optimum(limit=1, layout="SGS\n", random_start=True) == pytest.approx(10)
    assert optimum(layout="S.G\n", random_start=True) == pytest.approx((9.9 + 10) / 2)
    # A slip of 0.5 in a corridor: the move succeeds, or fails and goes either way; the first cell has one way only.
    assert optimum(limit=1, layout=".SG\n", slip=0.5) == pytest.approx(0.75 * 10 - 0.25 * 0.1)
    assert optimum(limit=1, layout="SG\n", slip=0.5) == pytest.approx(10)


def test_random_returns_by_hand():
    once = 0.25 * 10 - 0.75 * 0.1  # one of four actions arrives
    for limit, expected in (1, once), (2, 1.75 * once), (3, (1 + 0.75 + 0.75**2) * once):
        env = gym.make("GridWorld-v0", layout="SG\n", max_episode_steps=limit)
        assert gridworld.random_return(env) == pytest.approx(expected)
    forever = gym.make("GridWorld-v0", layout="SG\n", max_episode_steps=10_000)
    assert gridworld.random_return(forever) == pytest.approx(10 - 0.1 * 3)  # four steps on average


@pytest.mark.parametrize("task", ["own", "key_door"])
def test_random_return_is_what_random_actions_get(task):
    kwargs = TASKS[task] | {"slip": 0.25, "random_start": True}
    env = GridWorldVectorEnv(4_000, **kwargs)
    env.reset(seed=0)
    rng, returns, running = np.random.default_rng(0), np.zeros(4_000), np.ones(4_000, bool)
    while running.any():
        _, reward, terminated, truncated, _ = env.step(rng.integers(4, size=4_000))
        returns += reward * running
        running &= ~(terminated | truncated)
    error = returns.std() / 4_000**0.5
    exact = gridworld.random_return(gym.make("GridWorld-v0", **kwargs))
    assert abs(returns.mean() - exact) < 3 * error
    assert error < 0.2


@pytest.mark.parametrize("task", TASKS)
def test_greedy_actions_get_the_optimal_return(task):
    env = gym.make("GridWorld-v0", **TASKS[task])
    grid, returns = env.unwrapped, []
    q = gridworld.solve(env)
    for start in grid.start_states:
        env.reset(options={"state": start})
        total, ended = 0.0, False
        while not ended:
            _, reward, terminated, truncated, _ = env.step(q[grid.state].argmax())
            total, ended = total + reward, terminated or truncated
        returns.append(total)
    assert np.mean(returns) == pytest.approx(gridworld.optimal_return(env))


@pytest.mark.parametrize(
    ("env_id", "kwargs", "limit"),
    [
        ("FrozenLake-v1", {"map_name": "4x4", "is_slippery": True}, 100),
        ("FrozenLake-v1", {"map_name": "4x4", "is_slippery": False}, 100),
        ("FrozenLake-v1", {"map_name": "8x8", "is_slippery": True}, 200),
        ("FrozenLake-v1", {"map_name": "8x8", "is_slippery": False}, 200),
        ("FrozenLake-v1", {"map_name": "8x8", "is_slippery": False}, 13),
        ("Taxi-v4", {}, 200),
        ("Taxi-v4", {}, 10),
        ("CliffWalking-v1", {}, 50),
        ("CliffWalking-v1", {"is_slippery": True}, 50),
    ],
)
def test_exact_returns_agree_with_value_iteration_on_other_tables(env_id, kwargs, limit):
    env = gym.make(env_id, max_episode_steps=limit, **kwargs)
    start = env.unwrapped.initial_state_distrib
    best, uniform = (np.array(induction(env.unwrapped.P, limit, best=best)) for best in (True, False))
    assert gridworld.optimal_return(env) == pytest.approx(start @ best.max(axis=1), abs=1e-9)
    assert gridworld.random_return(env) == pytest.approx(start @ uniform.mean(axis=1), abs=1e-9)
    np.testing.assert_allclose(gridworld.solve(env), best, atol=1e-9)


def test_known_optima_of_other_environments():
    slippery = gym.make("FrozenLake-v1")
    assert slippery.unwrapped.initial_state_distrib @ gridworld.solve(slippery, horizon=20_000).max(axis=1) == (
        pytest.approx(14 / 17)  # reached with probability 14/17 from the start, when time does not count
    )
    assert gridworld.optimal_return(gym.make("FrozenLake-v1", is_slippery=False)) == 1.0
    assert gridworld.optimal_return(gym.make("FrozenLake-v1", is_slippery=False, max_episode_steps=5)) == 0.0
    assert gridworld.optimal_return(gym.make("CliffWalking-v1", max_episode_steps=100)) == -13.0


def test_solving_without_a_time_limit_is_refused():
    with pytest.raises(ValueError, match="CliffWalking-v1 has no time limit"):
        gridworld.optimal_return(gym.make("CliffWalking-v1"))


@pytest.mark.parametrize("best", [True, False])
@pytest.mark.parametrize("task", ["own", "key_door", "cliff"])
def test_discounted_values_agree_with_value_iteration(task, best):
    env = gym.make("GridWorld-v0", **TASKS[task], slip=0.2, max_episode_steps=60)
    for gamma, horizon in (0.9, None), (0.5, 3), (1.0, 1), (0.0, 20):
        expected = induction(env.unwrapped.P, 60 if horizon is None else horizon, gamma, best)
        found = gridworld.solve(env, gamma, None if best else 0.25, horizon)
        np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("slip", [0.0, 0.3])
def test_return_of_a_policy_by_brute_force(slip):
    env = gym.make("GridWorld-v0", size=3, slip=slip, max_episode_steps=5)
    action = np.array([1, 1, 2, 0, 1, 2, 3, 3, 0])  # right, right, down, ... to the goal in 4 steps

    def value(state, left):
        outcomes = env.unwrapped.P[state][action[state]] if left and not env.unwrapped.terminal[state] else []
        return sum(p * (r + value(s, left - 1)) for p, s, r, _ in outcomes)

    policy = np.eye(4)[action]
    found = (policy * gridworld.solve(env, policy=policy)).sum(axis=1)
    np.testing.assert_allclose(found, [value(state, 5) for state in range(9)])
    if not slip:
        assert found[0] == pytest.approx(9.7)
        assert found[6] == pytest.approx(-0.5)  # against the wall until the time is up
        assert found[8] == 0.0


def four_rooms_with_goal(row, col):
    rows = [list(line.replace("S", ".").replace("G", ".")) for line in layout_rows("four_rooms")]
    rows[row][col], rows[1][1] = "G", "S"
    return "\n".join("".join(line) for line in rows)


def test_mean_optimal_steps_of_the_option_critic_experiment():
    """Four rooms, slip 1/3, any cell the start: 12.06 steps to (7, 9), 13.86 to a cell of the south-east room."""

    def steps(row, col):
        kwargs = {"slip": 1 / 3, "random_start": True, "step_reward": -1.0, "goal_reward": -1.0}
        env = gym.make("GridWorld-v0", layout=four_rooms_with_goal(row, col), max_episode_steps=1_000, **kwargs)
        assert len(env.unwrapped.start_states) == 103
        return -gridworld.optimal_return(env)

    assert steps(7, 9) == pytest.approx(12.06, abs=0.01)
    room = [steps(row, col) for row in range(8, 12) for col in range(7, 12)]
    assert np.mean(room) == pytest.approx(13.86, abs=0.01)


def test_program_prints_map_sizes_returns_and_policy(capsys):
    layout = "KSDG\n"
    gridworld.main(EnvArgs(layout=layout))
    random_return = gridworld.random_return(gym.make("GridWorld-v0", layout=layout))
    assert capsys.readouterr().out == (
        "GridWorld-v0: 8 states, 4 actions, at most 16 steps an episode\n"
        f"optimal return 9.7, random return {random_return:.6g}\n"
        "\nmap    optimal policy\nKSDG   ↑←→G\n"
        "\nmap    optimal policy, key held\nKSDG   →→→G\n"
    )


def test_program_solves_other_tables_and_says_when_there_is_none(capsys):
    gridworld.main(EnvArgs("FrozenLake-v1"))
    assert capsys.readouterr().out.startswith("FrozenLake-v1: 16 states, 4 actions, at most 100 steps")
    with pytest.raises(SystemExit, match="CartPole-v1 has no table P"):
        gridworld.main(EnvArgs("CartPole-v1"))


# ----------------------------------------------------------------------------- goals


@pytest.mark.parametrize("random_goal", [False, True])
@pytest.mark.parametrize("observation", OBSERVATIONS)
@pytest.mark.parametrize("task", ["own", "key_door", "cliff"])
def test_rewards_can_be_recomputed_from_goals(task, observation, random_goal):
    """Every transition there is, one at a time and all at once."""
    env = GoalGridWorldEnv(**TASKS[task], observation=observation, random_goal=random_goal, goal_reward=3.0)
    achieved, desired, rewards, ends = [], [], [], []
    for s in np.flatnonzero(~env.terminal)[:: 5 if random_goal else 1]:
        for a in range(4):
            env.reset(options={"state": s})
            obs, reward, terminated, _, info = env.step(a)
            assert env.observation_space.contains(obs)
            goals = obs["achieved_goal"], obs["desired_goal"]
            assert env.compute_reward(*goals, info) == reward
            assert env.compute_terminated(*goals, info) == terminated
            for column, value in zip((achieved, desired, rewards, ends), (*goals, reward, terminated), strict=True):
                column.append(value)
    achieved, desired = np.array(achieved), np.array(desired)
    np.testing.assert_array_equal(env.compute_reward(achieved, desired, {}), rewards)
    np.testing.assert_array_equal(env.compute_terminated(achieved, desired, {}), ends)
    n = len(rewards) // 4 * 4  # and in a batch of two axes
    split = [goals[:n].reshape(4, -1, *goals.shape[1:]) for goals in (achieved, desired)]
    np.testing.assert_array_equal(env.compute_reward(*split, {}), np.reshape(rewards[:n], (4, -1)))
    assert env.compute_terminated(*split, {}).dtype == bool
    assert any(ends)
    assert {3.0, -0.1} <= set(rewards)
    assert task == "key_door" or -10.0 in rewards


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_another_goal_gives_another_reward(observation):
    """What hindsight asks: had the cell that was reached been the goal, the step would have brought goal_reward."""
    env = GoalGridWorldEnv(3, observation=observation)
    env.reset()
    obs, reward, terminated, _, info = env.step(1)
    assert (reward, terminated) == (-0.1, False)
    assert env.compute_reward(obs["achieved_goal"], obs["achieved_goal"], info) == 10.0
    assert env.compute_terminated(obs["achieved_goal"], obs["achieved_goal"], info)


def test_goal_observations_by_hand():
    env = GoalGridWorldEnv(layout="S.\nKG\n", observation="coords")
    obs, _ = env.reset()
    assert {key: part.tolist() for key, part in obs.items()} == {
        "observation": [0, 0, 0], "achieved_goal": [0, 0], "desired_goal": [1, 1],
    }  # fmt: skip
    obs, *_ = env.step(2)
    assert obs["observation"].tolist() == [1, 0, 1], "row, column, key"
    env = GoalGridWorldEnv(layout="S.\n#G\n")
    assert [part.tolist() for part in env.reset()[0].values()] == [[1, 0, 0], [1, 0, 0], [0, 0, 1]]
    env = GoalGridWorldEnv(layout="S.\n#G\n", observation="index")
    assert list(env.step(1)[0].values()) == [1, 1, 2]


@pytest.mark.parametrize("env_id", GRID_IDS)
@pytest.mark.parametrize("task", ["own", "key_door", "random", "maze"])
def test_random_goals_can_be_reached_and_are_not_the_start(env_id, task):
    env = gym.make(env_id, **TASKS[task], random_goal=True).unwrapped
    rows, goals = ["".join(row) for row in env.map], set()
    starts = {place_of(env, s) for s in env.start_states}
    for s in env.start_states:
        row, col = env.cells[env.goal_of[s]].tolist()
        assert place_of(env, s)[:2] != (row, col)
        assert rows[row][col] not in "#X"
        goals.add((place_of(env, s), row, col))
    for start in starts:
        free = [[symbol.replace("S", ".").replace("G", ".") for symbol in line] for line in rows]
        free[start[0]][start[1]] = "S"
        reached = {(r, c) for r, c, _ in distances(["".join(line) for line in free])} - {start[:2]}
        reached = {(r, c) for r, c in reached if rows[r][c] != "X"}
        assert {(r, c) for at, r, c in goals if at == start} == reached, "all that can be reached, and no other"
    seen = {env.goal_of[(env.reset(seed=seed), env.state)[1]] for seed in range(40)}
    assert len(seen) > 5


def test_goal_stays_for_an_episode_and_ends_it():
    env = GoalGridWorldEnv(4, random_goal=True)
    for seed in range(20):
        first, _ = env.reset(seed=seed)
        for action in np.random.default_rng(seed).integers(4, size=200):
            obs, reward, terminated, _, _ = env.step(action)
            assert np.array_equal(obs["desired_goal"], first["desired_goal"])
            at_goal = np.array_equal(obs["achieved_goal"], obs["desired_goal"])
            assert (reward == 10.0) == terminated == at_goal
            if terminated:
                break


# ----------------------------------------------------------------------------- observations and pictures


def test_observations_by_hand():
    kwargs = {"layout": "S.\n#K\n.G\n"}
    onehot, coords, index = (GridWorldEnv(**kwargs, observation=kind) for kind in OBSERVATIONS)
    for env, start, with_key in (
        (onehot, [1, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 1]),
        (coords, [0, 0, 0], [0.5, 1, 1]),
        (index, 0, 5 + 2),
    ):
        assert np.array_equal(env.reset()[0], start)
        env.step(1)
        assert np.array_equal(env.step(2)[0], with_key)
    assert onehot.reset()[0].dtype == coords.reset()[0].dtype == np.float32
    assert index.observation_space.n == 10
    goals = GridWorldEnv(2, random_goal=True, observation="coords")
    shown = {tuple(goals.reset(seed=seed)[0].tolist()) for seed in range(50)}
    assert shown == {(0, 0, 0, 1), (0, 0, 1, 0), (0, 0, 1, 1)}, "the agent's cell, then the goal's"


@pytest.mark.parametrize("observation", OBSERVATIONS)
@pytest.mark.parametrize("task", ["own", "empty"])
@pytest.mark.parametrize("random_goal", [False, True])
@pytest.mark.parametrize("env_id", GRID_IDS)
def test_observe_all_is_what_the_environment_shows(env_id, observation, task, random_goal):
    layout = {"layout": OWN} if task == "own" else {"grid_size": 3}
    env = EnvArgs(env_id, observation=observation, random_goal=random_goal, **layout).make_env()
    rows = gridworld.observe_all(env)
    assert rows.shape == (env.unwrapped.n_states, *env.observation_space.shape)
    assert rows.dtype == env.observation_space.dtype == np.float32
    for s in range(0, env.unwrapped.n_states, 3):
        assert np.array_equal(env.reset(options={"state": s})[0], rows[s])
    if env_id == "GridWorld-v0":
        assert len(np.unique(rows, axis=0)) == len(rows), "no two states look the same"


@pytest.mark.parametrize("env_id", GRID_IDS)
def test_text_picture_is_exact(env_id):
    env = gym.make(env_id, layout="S#G\n.D.\nKX.\n", render_mode="ansi")
    env.reset()
    assert env.render() == "A#G\n.D.\nKX.\n"
    env.step(2)
    assert env.render() == "S#G\nAD.\nKX.\n"
    env.step(2)  # takes the key: no key, no closed door any more
    assert env.render() == "S#G\n...\nAX.\n"
    env.step(0)
    env.step(1)
    assert env.render() == "S#G\n.A.\n.X.\n"


def test_random_goals_are_drawn_where_they_are():
    env = GridWorldEnv(2, random_goal=True, render_mode="ansi")
    pictures = {(env.reset(seed=seed), env.render())[1] for seed in range(30)}
    assert pictures == {"AG\n..\n", "A.\nG.\n", "A.\n.G\n"}


def test_pixel_picture():
    env = gym.make("GridWorld-v0", layout="S#G\n.D.\nKX.\n", render_mode="rgb_array")
    env.reset()

    def middle(row, col):
        image = env.render()
        side = image.shape[0] // 3
        return tuple(image[row * side + side // 2, col * side + side // 2].tolist())

    assert env.render().shape == (120, 120, 3)
    assert env.render().dtype == np.uint8
    agent, free, key, door = middle(0, 0), middle(1, 0), middle(2, 0), middle(1, 1)
    assert len({agent, free, key, door, middle(0, 1), middle(0, 2), middle(2, 1)}) == 7
    env.step(2)
    assert middle(1, 0) == agent != middle(0, 0)
    env.step(2)
    assert (middle(2, 0), middle(1, 0), middle(1, 1)) == (agent, free, free), "the key is gone, the door open"
    for rows, cols in (1, 2), (128, 128), (3, 200):
        layout = "S" + "." * (cols - 2) + "G\n" + ("." * cols + "\n") * (rows - 1)
        image = GridWorldEnv(layout=layout, render_mode="rgb_array").render()
        assert image.shape[0] / rows == image.shape[1] / cols
        assert max(image.shape) <= 800
    assert GridWorldEnv(3).render() is None


@pytest.mark.filterwarnings("error")  # matplotlib's about a layout without room
@pytest.mark.parametrize(("env_id", "layout"), [("GridWorld-v0", "cliff"), ("GoalGridWorld-v0", OWN)])
def test_drawing(env_id, layout):
    env = EnvArgs(env_id, layout=layout, random_goal=env_id == "GoalGridWorld-v0").make_env()
    q = gridworld.solve(env)
    values, policy, which = q.max(axis=1), q.argmax(axis=1), np.arange(len(q))
    panels = {
        "policy": (values, policy, None),
        "options": (which % 3, None, ["a", "b", "c"]),
        "many": (which % 12, None, list("abcdefghijkl")),
    }
    pictures = [gridworld.draw(env, {title: panel}) for title, panel in panels.items()]
    pictures.append(gridworld.draw(env, {"policy": (values, None, None)}))  # without the arrows
    pictures.append(gridworld.draw(env, {"policy": (values, None, (0.0, 50.0))}))  # with another colour bar
    for image in pictures:
        assert image.ndim == 3
        assert image.shape[2] == 3
        assert image.dtype == np.uint8
        assert len(np.unique(image.reshape(-1, 3), axis=0)) > 20
    assert len({image.tobytes() for image in pictures}) == 5, "each shows something else"
    if layout == OWN:
        assert pictures[0].shape[1] > 1.5 * pictures[0].shape[0], "without and with the key, side by side"
    else:
        assert gridworld.draw(env, panels).shape[1] > 2.5 * pictures[0].shape[1], "panels side by side"
        few, many = (np.unique(image.reshape(-1, 3), axis=0, return_counts=True)[1] for image in pictures[1:3])
        assert (many > 2_000).sum() - (few > 2_000).sum() == 12 - 3, "large areas of one colour: one for each name"


@pytest.mark.parametrize(("actions", "pictures"), [([1, 1, 2, 2], 5), ([0] * 6, 1)])  # to the goal; until the limit
def test_film_shows_one_episode_from_its_start_to_its_end(actions, pictures):
    env, told = EnvArgs(grid_size=3, max_episode_steps=6).make_env(render_mode="rgb_array"), []

    def policy(obs, start):
        told.append((obs.shape, start.tolist()))
        return np.array([actions[len(told) - 1]])

    gif = Image.open(io.BytesIO(gridworld.film(env, policy)))
    assert told == [((1, 9), [i == 0]) for i in range(len(actions))]
    shown = [(gif.seek(i), gif.convert("RGB").tobytes())[1] for i in range(gif.n_frames)]
    assert len(set(shown)) == pictures


# ----------------------------------------------------------------------------- flags

FLAGS = {"grid_size": 8, "layout": "empty", "layout_seed": 0, "slip": 0.0, "random_start": True, "random_goal": True}
FLAGS |= {"observation": "onehot", "step_reward": -0.1, "goal_reward": 0.0, "trap_reward": -10.0}


@pytest.mark.parametrize("flag", FLAGS)
def test_grid_flags_with_another_environment_are_refused_by_name(flag):
    name = "--" + flag.replace("_", "-")
    with pytest.raises(ValueError, match=f"^{name} can only be used with GridWorld-v0 and GoalGridWorld-v0.*CartPole"):
        EnvArgs("CartPole-v1", **{flag: FLAGS[flag]})
    for env_id in GRID_IDS:
        EnvArgs(env_id, **{flag: FLAGS[flag]})


def test_the_environment_is_the_one_the_flags_name():
    rewards = {"step_reward": -1.0, "goal_reward": 2.0, "trap_reward": -3.0}
    args = EnvArgs(
        layout="random", grid_size=6, layout_seed=7, slip=0.25, random_start=True, random_goal=True,
        observation="coords", max_episode_steps=9, **rewards,
    )  # fmt: skip
    for env in args.make_env(), args.make_vec(3):
        grid = env.grid if isinstance(env, GridWorldVectorEnv) else env.unwrapped
        assert ["".join(row) for row in grid.map] == layout_rows("random", 6, 7)
        assert (grid.slip, grid.step_reward, grid.goal_reward, grid.trap_reward) == (0.25, -1.0, 2.0, -3.0)
        assert len(set(grid.cell_of[grid.start_states])) == len(set(grid.goal_of[grid.start_states])) > 10
        assert grid.observe(0).shape == (4,)
    assert args.make_env().spec.max_episode_steps == args.make_vec(1).max_episode_steps == 9
    assert args.make_env(random_goal=False, size=4).unwrapped.map.shape == (4, 4), "changes replace flags"
    assert args.make_env(render_mode="ansi").render_mode == "ansi"


def test_zero_is_a_value_like_any_other():
    assert tyro.cli(EnvArgs, args=["--goal-reward", "0", "--slip", "0"]) == EnvArgs(goal_reward=0.0, slip=0.0)
    assert gridworld.optimal_return(EnvArgs(goal_reward=0.0).make_env()) == pytest.approx(-1.3)
    assert gridworld.optimal_return(EnvArgs(step_reward=0.0).make_env()) == pytest.approx(10)
    env = EnvArgs(layout="S.\nXG\n", trap_reward=0.0, slip=0.0).make_env()
    assert sorted(set(env.unwrapped.reward.ravel())) == [-0.1, 0.0, 10.0]
    assert EnvArgs(slip=0.5).make_env(slip=0.0).unwrapped.slip == 0.0


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "flags",
    [{"slip": value} for value in (-0.1, 1.1, NAN)]
    + [{flag: value} for flag in ("step_reward", "goal_reward", "trap_reward") for value in (NAN, INF, -INF, 2e6)]
    + [{"max_episode_steps": value} for value in (0, -1, 2_000_000_000, NAN)]
    + [{"observation": "pixels"}],
)
def test_values_out_of_range_are_refused_by_name(flags):
    ((flag, value),) = flags.items()
    with pytest.raises(ValueError, match=f"^--{flag.replace('_', '-')} must be .*got {re.escape(str(value))}$"):
        EnvArgs(**flags)


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("NoSuchWorld-v0", "doesn't exist"),
        ("CartPole-v99", "v99"),
        ("GridWorld-v1", "v1"),
        ("no_such_module:World-v0", "No module named 'no_such_module'"),
        ("not an id", "Malformed"),
        ("", "Malformed"),
        ("Pendulum-v1", "must have discrete actions from 0 on, got Box"),
        ("MountainCarContinuous-v0", "must have discrete actions from 0 on, got Box"),
    ],
)
def test_unusable_environments_are_refused_in_one_line(env_id, message):
    with pytest.raises(ValueError, match=f"^--env-id {re.escape(env_id)}.*{message}") as error:
        EnvArgs(env_id)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("env_id", "dim", "limit"),
    [("CartPole-v1", 4, 500), ("FrozenLake-v1", 16, 100), ("Taxi-v4", 500, 200), ("CliffWalking-v1", 48, 1_000),
     ("Blackjack-v1", 32 + 11 + 2, 1_000), ("GoalGridWorld-v0", 3 * 64, 256), ("gridworld:GridWorld-v0", 64, 256)],
)  # fmt: skip
def test_observations_become_flat_float32_vectors(env_id, dim, limit):
    args = EnvArgs(env_id)
    env, envs = args.make_env(), args.make_vec(3)
    assert env.spec.max_episode_steps == limit
    assert env.observation_space.shape == envs.single_observation_space.shape == (dim,)
    for obs in (env.reset(seed=0)[0], env.step(1)[0]):
        assert (obs.shape, obs.dtype) == ((dim,), np.float32)
    for obs in (envs.reset(seed=0)[0], envs.step(np.ones(3, int))[0]):
        assert (obs.shape, obs.dtype) == ((3, dim), np.float32)
    assert EnvArgs(env_id, max_episode_steps=5).make_env().spec.max_episode_steps == 5


def test_numbers_become_one_hot():
    env = EnvArgs(observation="index", grid_size=3).make_env()
    assert env.reset()[0].tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0]
    assert env.step(2)[0].tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0]
    envs = EnvArgs(observation="index", grid_size=3).make_vec(2)
    assert envs.reset(seed=0)[0].tolist() == [[1, 0, 0, 0, 0, 0, 0, 0, 0]] * 2
    raw = EnvArgs(observation="index", grid_size=3)
    assert raw.make_env(flatten=False).reset()[0] == 0
    assert raw.make_vec(2, flatten=False).reset()[0].tolist() == [0, 0]
    assert set(EnvArgs("GoalGridWorld-v0").make_vec(2, flatten=False).reset()[0]) == (
        {"observation", "achieved_goal", "desired_goal"}
    )


@pytest.mark.parametrize("flags", [{"layout": "cliff", "slip": 0.2}, {"observation": "index", "random_start": True}])
@pytest.mark.parametrize("env_id", GRID_IDS)
def test_make_vec_lives_the_life_of_make_env(env_id, flags):
    args = EnvArgs(env_id, max_episode_steps=12, **flags)
    env, envs = args.make_env(), args.make_vec(2)
    obs, many = env.reset(seed=4)[0], envs.reset(seed=4)[0]
    for action in np.random.default_rng(0).integers(4, size=100):
        assert np.array_equal(obs, many[0])
        obs, reward, terminated, truncated, _ = env.step(action)
        many, rewards, ends, cuts, info = envs.step(np.array([action, 0]))
        assert (reward, terminated, truncated) == (rewards[0], ends[0], cuts[0])
        if terminated or truncated:
            assert np.array_equal(obs, info["final_obs"][0])
            obs, _ = env.reset()


class ToyImageEnv(gym.Env):
    """Dict observations with an image, as Minigrid has them."""

    observation_space = spaces.Dict(
        direction=spaces.Discrete(4), image=spaces.Box(0, 255, (3, 2, 3), np.uint8), mission=spaces.Text(9)
    )
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._obs(0), {}

    def step(self, action):
        return self._obs(int(action) + 1), 0.0, False, False, {}

    def _obs(self, n):
        return {"direction": 0, "image": np.full((3, 2, 3), n, np.uint8), "mission": "go"}


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_dict_observations_with_an_image_become_that_image():
    if "ToyImage-v0" not in gym.registry:
        gym.register("ToyImage-v0", entry_point=ToyImageEnv)
    args = EnvArgs("ToyImage-v0")
    env = args.make_env()
    assert env.observation_space == spaces.Box(0, 255, (18,), np.float32)
    assert env.reset()[0].tolist() == [0.0] * 18
    assert env.step(1)[0].tolist() == [2.0] * 18
    assert args.make_vec(2).reset()[0].shape == (2, 18)
    assert set(args.make_env(flatten=False).reset()[0]) == {"direction", "image", "mission"}
    assert env.spec.max_episode_steps == 1_000


def test_inherited_flags_do_not_count_as_grid_flags():
    @dataclasses.dataclass(frozen=True)
    class Args(EnvArgs):
        seed: int = 1

    assert Args("CartPole-v1", seed=0).make_env() is not None
    with pytest.raises(ValueError, match=r"--seed must be between 2 and 3, got 1"):
        Args().check(seed=(2, 3))
    Args(seed=3).check(seed=(2, 3))


# ----------------------------------------------------------------------------- mistakes that these tests must catch

# (old text, new text, the test that fails)
MUTANTS = [
    ('np.where(self.symbol[with_key] == "D", stay, with_key)', "with_key", "cannot_be_solved_without_the_key"),
    ("limit = 4 * self.grid.rows * self.grid.cols if", "limit = 2 * self.grid.rows * self.grid.cols if", "four_times_the_cells"),
    ("self._elapsed >= self.max_episode_steps", "self._elapsed > self.max_episode_steps", "obeyed_to_the_step"),
    ("gamma * p * (1 - terminated)", "gamma * p", "other_tables"),
    ("new = q.max(1) if policy is None else (policy * q).sum(1)", "new = q.max(1)", "random_returns_by_hand"),
    ("(policy * q).sum(1)", "q.mean(1)", "brute_force"),
    ("horizon = env.spec.max_episode_steps if horizon is None else horizon", "horizon = 10_000 if horizon is None else horizon", "within_the_limit"),
    ("slips = is_open / np.maximum(is_open.sum(axis=1, keepdims=True), 1)", "slips = np.full(is_open.shape, 0.25)", "follows_the_rules"),
    ("[self.at_goal, self.terminal], [self.goal_reward, self.trap_reward]", "[self.terminal], [self.goal_reward]", "follows_the_rules"),
    ("self.terminal = self.at_goal | (self.symbol[cell] == \"X\")", "self.terminal = self.at_goal", "follows_the_rules"),
    ("self.reward = np.where(self.terminal[:, None], 0.0, rewards[self.next_state])", "self.reward = rewards[self.next_state]", "follows_the_rules"),
    ("        reward = self.reward.item(self.state, action)\n        self.state = self.next_state.item(self.state, action)\n", "        self.state = self.next_state.item(self.state, action)\n        reward = self.reward.item(self.state, action)\n", "what_the_table_says"),
    ("            self._start(envs)\n        return", "            self._elapsed[envs] = 0\n        return", "agree_step_for_step"),
    ("final_obs[i] = grid.observe(self.states[i])", "final_obs[i] = grid.observe(int(grid.start_states[0]))", "agree_step_for_step"),
    ('{"is_success": grid.at_goal[self.states] & over', '{"is_success": over', "agree_step_for_step"),
    ("[None if seed is None else seed + i for i in range(self.num_envs)]", "[seed for i in range(self.num_envs)]", "agree_step_for_step"),
    ("starts[(self._uniform(envs) * len(starts)).astype(int)]", "starts[(self._uniform(envs) ** 2 * len(starts)).astype(int)]", "agree_with_every_observation"),
    ("self.start_states.item(int(self.np_random.random() * len(self.start_states)))", "self.start_states.item(int(self.np_random.random() ** 2 * len(self.start_states)))", "starts_are_uniform"),
    ('at_trap = cell == self.cell(desired_goal), self.symbol[cell] == "X"', "at_trap = cell == self.cell(desired_goal), cell < 0", "recomputed_from_goals"),
    ('(cell == self.cell(desired_goal)) | (self.symbol[cell] == "X")', "cell == self.cell(desired_goal)", "recomputed_from_goals"),
    ("for_test == (layout_seed >= TEST_SEEDS)", "True", "training_and_testing_apart"),
    ("np.maximum([self.rows - 1, self.cols - 1], 1)", "np.maximum([self.cols - 1, self.rows - 1], 1)", "observations_by_hand"),
    ("return self.coordinates.take(cells, axis=0)", "return self.coordinates[cells]", "fresh_arrays"),
    ("is_start = (key == 0) & ~np.isin(self.symbol[cell], [\"K\", \"D\"])", "is_start = key == 0", "starts_are_uniform"),
    ("        if self.slip > 0:\n            action = self", "        if False:\n            action = self", "what_the_table_says"),
]  # fmt: skip
