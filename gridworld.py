"""Grid worlds small enough to solve exactly: maps, environments, exact returns, pictures and the flags that name them.

Run:     python gridworld.py --layout four_rooms
Use:     gymnasium.make("GridWorld-v0", layout="maze", size=11), or "gridworld:GridWorld-v0" from elsewhere
Layouts: Dyna maze and cliff from Sutton and Barto (2018), examples 8.1 and 6.6; four rooms from Sutton, Precup and
         Singh (1999), figure 2.
"""

import dataclasses
import functools
import io
import os
import re
import sys
import zlib
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import tyro
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

Observation = Literal["onehot", "coords", "index"]
MOVES = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])  # 0 up, 1 right, 2 down, 3 left
ARROWS = "↑→↓←"
SYMBOLS = "#. SGXKD"  # wall, free (two ways), start, goal, trap, key, door
COLOURS = {"#": "#343a40", "S": "#dee2e6", "G": "#40c057", "X": "#e03131", "K": "#facc15", "D": "#a16207"}
GRID_IDS = ("GridWorld-v0", "GoalGridWorld-v0")
MAX_CELLS = 16_384  # 128 x 128
TEST_SEEDS = 1_000_000  # layout seeds below draw training maps, from here on test maps; the two never share a map

# ----------------------------------------------------------------------------- maps


def _empty(size: int, rng: np.random.Generator) -> np.ndarray:
    grid = np.full((size, size), ".")
    grid[0, 0], grid[-1, -1] = "S", "G"
    return grid


def _four_rooms(size: int, rng: np.random.Generator) -> np.ndarray:
    """Four rooms joined by four hallways; size 13 is the map of Sutton, Precup and Singh."""
    grid, mid = np.full((size, size), "."), size // 2
    grid[[0, -1]] = grid[:, [0, -1]] = grid[:, mid] = grid[mid, :mid] = grid[mid + 1, mid:] = "#"
    grid[mid // 2, mid] = grid[(mid + size + 1) // 2, mid] = "."
    grid[mid, (mid - 1) // 2] = grid[mid + 1, (mid + size - 1) // 2] = "."
    grid[1, 1], grid[-2, -2] = "S", "G"
    return grid


def _key_door(size: int, rng: np.random.Generator) -> np.ndarray:
    """Two rooms; the door between them opens once the key in the near corner has been fetched."""
    grid, mid = _empty(size, rng), size // 2
    grid[:, mid] = "#"
    grid[mid, mid], grid[-1, 0] = "D", "K"
    return grid


def _maze(size: int, rng: np.random.Generator) -> np.ndarray:
    """Perfect maze by depth-first search: one path between any two cells; rooms at odd rows and columns."""
    if size % 2 == 0:
        raise ValueError(f"--grid-size must be odd for layout maze, got {size}")
    grid = np.full((size, size), "#")
    grid[1, 1], stack = ".", [(1, 1)]
    while stack:
        row, col = stack[-1]
        rooms = [(row + 2 * dr, col + 2 * dc) for dr, dc in MOVES]
        rooms = [(r, c) for r, c in rooms if 0 < r < size and 0 < c < size and grid[r, c] == "#"]
        if rooms:
            r, c = rooms[rng.integers(len(rooms))]
            grid[r, c] = grid[(row + r) // 2, (col + c) // 2] = "."
            stack.append((r, c))
        else:
            stack.pop()
    grid[1, 1], grid[-2, -2] = "S", "G"
    return grid


def _random(size: int, rng: np.random.Generator) -> np.ndarray:
    """Each cell is a wall with probability 0.3; cells cut off from the start are walled up."""
    while True:
        free = rng.random((size, size)) > 0.3
        free[0, 0] = free[-1, -1] = True
        reached = np.zeros((size + 2, size + 2), bool)  # a border spares the tests at the edge
        reached[1, 1], count = True, 0
        while count != (count := reached.sum()):
            near = reached[:-2, 1:-1] | reached[2:, 1:-1] | reached[1:-1, :-2] | reached[1:-1, 2:]
            reached[1:-1, 1:-1] |= near & free
        if reached[-2, -2]:
            return np.where(reached[1:-1, 1:-1], _empty(size, rng), "#")


# name: (generator, smallest size, default size), or the rows of a map of one size
LAYOUTS: dict[str, Any] = {
    "empty": (_empty, 2, 8),
    "four_rooms": (_four_rooms, 7, 13),
    "key_door": (_key_door, 3, 8),
    "maze": (_maze, 7, 11),
    "random": (_random, 4, 8),
    "dyna_maze": [".......#G", "..#....#.", "S.#....#.", "..#......", ".....#...", "........."],
    "cliff": ["............", "............", "............", "SXXXXXXXXXXG"],
}


def layout_rows(layout: str = "empty", size: int | None = None, layout_seed: int = 0) -> list[str]:
    """The rows of a map, checked. `layout` is a name, the path of a text file, or the map itself (several lines).

    `size` None is the layout's own. Generated maps (maze, random) depend on `layout_seed`; a checksum of the map tells
    whether it is for training or for testing, so that no seed below TEST_SEEDS shares a map with one from there on.
    Raises ValueError, naming the flag, or the file with line and column.
    """
    known = LAYOUTS.get(layout)
    if not isinstance(known, tuple):
        if size is not None:
            raise ValueError(f"--grid-size cannot be used with a map of fixed size (--layout {layout!r}), got {size}")
        return known or read_map(layout)
    generate, smallest, default = known
    size = default if size is None else size
    if not smallest <= size <= 128:
        raise ValueError(f"--grid-size must be between {smallest} and 128 for layout {layout}, got {size}")
    if not 0 <= layout_seed < 2**63:
        raise ValueError(f"--layout-seed must be 0 or more and below 2^63, got {layout_seed}")
    rng = np.random.default_rng(layout_seed)
    while True:
        rows = ["".join(row) for row in generate(size, rng)]
        for_test = zlib.crc32("\n".join(rows).encode()) % 2 == 1
        if layout not in ("maze", "random") or for_test == (layout_seed >= TEST_SEEDS):
            return rows


def read_map(layout: str) -> list[str]:
    """The rows of a map given as text or as the path of a file. GridWorldEnv checks the way to G."""
    if "\n" in layout:
        text, source = layout.lstrip("\n"), "the map"
    else:
        try:
            with open(layout, encoding="utf-8-sig") as file:
                text, source = file.read(2 * MAX_CELLS + 1), layout  # enough for MAX_CELLS lines of one cell
        except (OSError, ValueError) as error:  # ValueError: bytes that are not text
            names, reason = ", ".join(LAYOUTS), getattr(error, "strerror", None) or error
            raise ValueError(f"--layout {layout!r} is neither one of {names} nor a text file: {reason}") from None
    rows = text.rstrip("\n").split("\n")
    cells, width = "".join(rows), len(rows[0])
    if not cells:
        raise ValueError(f"{source}, line 1, column 1: the map is empty")
    if len(cells) > MAX_CELLS:
        raise ValueError(f"{source}: a map may have at most {MAX_CELLS} cells")
    for line, row in enumerate(rows, 1):
        if len(row) != width:
            column = min(len(row), width) + 1
            raise ValueError(f"{source}, line {line}, column {column}: {len(row)} cells, but line 1 has {width}")
        if unknown := row.lstrip(SYMBOLS):
            column = width - len(unknown) + 1
            raise ValueError(f"{source}, line {line}, column {column}: unknown character {unknown[0]!r}")
    for symbol, name in ("S", "start"), ("G", "goal"):
        if symbol not in cells:
            end = f"line {len(rows)}, column {width}"
            raise ValueError(f"{source}: no {name} {symbol!r} from line 1, column 1 to {end}")
    if cells.count("G") > 1:
        line, column = divmod(cells.rindex("G"), width)
        raise ValueError(f"{source}, line {line + 1}, column {column + 1}: another goal 'G', one is allowed")
    return rows


# ----------------------------------------------------------------------------- environments


class GridWorldEnv(gym.Env):
    """One agent on a map of cells.

    Description: the agent walks from the start S to the goal G. A map may have walls, traps, a key and doors that open
        once the key has been fetched.
    Action space: Discrete(4): 0 up, 1 right, 2 down, 3 left. Moves into a wall, a closed door or over the edge stay.
        With probability `slip` the move fails and the agent goes to one of the open cells around it, each equally
        likely (Bacon et al. 2017, section 5.1).
    Observation space: `onehot` is a float32 vector over the free cells; `coords` is [row / (rows - 1), col / (cols -
        1)]; `index` is Discrete(number of states). A map with a key adds one entry, 1 while the key is held;
        `random_goal` adds the goal, encoded as the agent's cell is.
    Rewards: `goal_reward` for arriving at the goal, `trap_reward` for a trap, else `step_reward`.
    Starting state: a cell marked S (one drawn uniformly where there are several), or any cell from which the goal can
        be reached if `random_start`; `reset(options={"state": s})` starts in state s.
    Episode end: terminates at the goal or in a trap. `gymnasium.make` adds a TimeLimit of 4 x rows x cols steps, or of
        its `max_episode_steps`.
    Arguments: as for `layout_rows` (size, layout, layout_seed), and those named above.

    The environment is a table. States are numbered s = (goal * keys + key) * cells + cell, where goal and key count on
    maps that have them; S is their number.
        next_state (S, 4) int64, reward (S, 4) float64, terminal (S,) bool: the outcome of each move
        P[s][a] = [(probability, next state, reward, terminated), ...], as in Gymnasium's toy_text
        initial_state_distrib (S,) float64, cells (cells, 2) int64: row and column of each cell
    """

    metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": 8}

    def __init__(
        self, size: int | None = None, layout: str = "empty", slip: float = 0.0, step_reward: float = -0.1,
        goal_reward: float = 10.0, trap_reward: float = -10.0, observation: Observation = "onehot",
        random_start: bool = False, random_goal: bool = False, layout_seed: int = 0, render_mode: str | None = None
    ) -> None:  # fmt: skip
        if not 0.0 <= slip <= 1.0:
            raise ValueError(f"--slip must be between 0 and 1, got {slip}")
        for name, value in ("step", step_reward), ("goal", goal_reward), ("trap", trap_reward):
            if not abs(value) <= 1e6:
                raise ValueError(f"--{name}-reward must be between -1e6 and 1e6, got {value}")
        if observation not in ("onehot", "coords", "index"):
            raise ValueError(f"--observation must be onehot, coords or index, got {observation}")
        self.map = np.array([list(row) for row in layout_rows(layout, size, layout_seed)])  # (rows, cols) symbols
        self.rows, self.cols = self.map.shape
        self.slip, self.observation, self.render_mode = slip, observation, render_mode
        self.step_reward, self.goal_reward, self.trap_reward = step_reward, goal_reward, trap_reward
        self._build_tables(random_start, random_goal, "the map" if "\n" in layout else layout)
        self.action_space, self.observation_space = spaces.Discrete(4), self._observation_space(random_goal)
        self.state = int(self.start_states[0])

    def _build_tables(self, random_start: bool, random_goal: bool, source: str) -> None:
        self.cells = np.argwhere(self.map != "#")
        self.symbol = self.map[self.map != "#"]  # (cells,)
        n, self.n_keys = len(self.cells), 1 + int((self.symbol == "K").any())
        self.goal_cell = int(np.flatnonzero(self.symbol == "G")[0])
        goals = np.flatnonzero(self.symbol != "X") if random_goal else np.array([self.goal_cell])
        self.n_states = n * self.n_keys * len(goals)
        if self.n_states > 2**20:
            raise ValueError(f"--random-goal makes {self.n_states} states of this map, at most {2**20} are possible")

        # Where each move leads: cell to cell, with and without the key, then state to state.
        self.number = np.full((self.rows + 2, self.cols + 2), -1)  # of each cell, with a wall all round
        self.number[1:-1, 1:-1][self.map != "#"] = np.arange(n)
        target = self.number[tuple((self.cells[:, None] + MOVES + 1).transpose(2, 0, 1))]  # (cells, 4)
        stay, here = np.arange(n)[:, None], np.arange(self.n_states)[:, None]
        with_key = np.where(target >= 0, target, stay)
        without_key = np.where(self.symbol[with_key] == "D", stay, with_key)
        goal, key, cell = np.unravel_index(here[:, 0], (len(goals), self.n_keys, n))
        self.cell_of, self.key_of, self.goal_of = cell, key, goals[goal]  # (S,) each
        arrival = np.where(key[:, None] == 1, with_key[cell], without_key[cell])  # (S, 4) cells
        has_key = np.maximum(key[:, None], self.symbol[arrival] == "K")
        self.at_goal = cell == self.goal_of
        self.terminal = self.at_goal | (self.symbol[cell] == "X")
        moved = (goal[:, None] * self.n_keys + has_key) * n + arrival
        self.next_state = np.where(self.terminal[:, None], here, moved)
        rewards = np.select([self.at_goal, self.terminal], [self.goal_reward, self.trap_reward], self.step_reward)
        self.reward = np.where(self.terminal[:, None], 0.0, rewards[self.next_state])

        # The chance that each move is made when one is asked for: a slip makes one of those that lead elsewhere.
        is_open = self.next_state != here
        slips = is_open / np.maximum(is_open.sum(axis=1, keepdims=True), 1)
        self.chance = (1.0 - self.slip) * np.eye(4) + self.slip * slips[:, None]  # (S, 4 asked for, 4 made)
        self.chance[~is_open.any(axis=1)] = np.eye(4)
        self.cumulative = self.chance.cumsum(axis=2)[:, :, :3]  # a uniform number is at or above as many as its move

        # Starts from which the goal can be reached.
        solvable = self.at_goal
        while (grown := solvable | solvable[self.next_state].any(axis=1)).sum() > solvable.sum():
            solvable = grown
        is_start, is_task = (self.symbol[cell] == "S") & (key == 0), self.goal_of == self.goal_cell
        if (stuck := is_start & is_task & ~solvable).any():
            line, column = self.cells[cell[stuck.argmax()]] + 1
            raise ValueError(f"{source}, line {line}, column {column}: the goal cannot be reached from this start")
        if random_start:
            is_start = (key == 0) & ~np.isin(self.symbol[cell], ["K", "D"])
        self.start_states = np.flatnonzero(is_start & ~self.terminal & solvable)
        self.initial_state_distrib = np.bincount(self.start_states, minlength=self.n_states) / len(self.start_states)

    def _observation_space(self, show_goal: bool) -> spaces.Space:
        self._show_goal = show_goal
        self.coordinates = (self.cells / np.maximum([self.rows - 1, self.cols - 1], 1)).astype(np.float32)  # (cells, 2)
        self._n_shown = self.n_states if show_goal else len(self.cells) * self.n_keys
        if self.observation == "index":
            return spaces.Discrete(self._n_shown)
        return spaces.Box(0.0, 1.0, GridWorldEnv.observe(self, 0).shape, np.float32)

    def place(self, cells: np.ndarray | int) -> Any:
        """Cells as observations show them: (...) int -> (..., cells) one-hot or (..., 2) coordinates; `index` as is."""
        if self.observation == "index":
            return cells
        if self.observation == "coords":
            return self.coordinates.take(cells, axis=0)
        if isinstance(cells, np.integer):  # the one of a single environment, in half the time
            one_hot = np.zeros(len(self.cells), np.float32)
            one_hot[cells] = 1.0
        else:
            one_hot = np.zeros((*np.shape(cells), len(self.cells)), np.float32)
            one_hot.reshape(-1)[np.arange(0, one_hot.size, len(self.cells)) + np.ravel(cells)] = 1.0
        return one_hot

    def observe(self, states: np.ndarray | int) -> Any:
        """The observations of states, in fresh arrays: () or (N,) int -> (D,) or (N, D) float32; `index` as is."""
        if self.observation == "index":
            return states % self._n_shown
        shown = self.place(self.cell_of[states])
        if self.n_keys == 2:
            shown = np.concatenate([shown, self.key_of[states, None].astype(np.float32)], axis=-1)
        return np.concatenate([shown, self.place(self.goal_of[states])], axis=-1) if self._show_goal else shown

    @functools.cached_property
    def P(self) -> dict[int, dict[int, list[tuple[float, int, float, bool]]]]:
        """P[s][a] = [(probability, next state, reward, terminated), ...]; terminal states keep to themselves."""
        target, reward, end = self.next_state.tolist(), self.reward.tolist(), self.terminal.tolist()
        table: dict = {s: {} for s in range(self.n_states)}
        for (s, a, b), p in np.ndenumerate(self.chance):
            if p > 0:
                table[s].setdefault(a, []).append((float(p), target[s][b], reward[s][b], end[target[s][b]]))
        return table

    # Every chance event takes one uniform number, here as in the vector form, so that both live the same lives.

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        if options and "state" in options:
            if not 0 <= options["state"] < self.n_states:
                raise ValueError(f"options['state'] must be between 0 and {self.n_states - 1}, got {options['state']}")
            self.state = int(options["state"])
        else:
            self.state = self.start_states.item(int(self.np_random.random() * len(self.start_states)))
        return self.observe(self.state), {"is_success": False}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        if not 0 <= action < 4:
            raise ValueError(f"action must be 0, 1, 2 or 3, got {action}")
        if self.slip > 0:
            action = self.cumulative[self.state, action].searchsorted(self.np_random.random(), side="right")
        reward = self.reward.item(self.state, action)
        self.state = self.next_state.item(self.state, action)
        terminated = self.terminal.item(self.state)
        return self.observe(self.state), reward, terminated, False, {"is_success": self.at_goal.item(self.state)}

    def render(self) -> str | np.ndarray | None:
        """`ansi`: the map with the agent as A. `rgb_array`: (H, W, 3) uint8."""
        symbols, agent = self.map.copy(), tuple(self.cells[self.cell_of[self.state]])
        symbols[symbols == "G"] = "."
        symbols[tuple(self.cells[self.goal_of[self.state]])] = "G"
        if self.key_of[self.state]:
            symbols[(symbols == "K") | (symbols == "D")] = "."
        if self.render_mode == "ansi":
            symbols[agent] = "A"
            return "\n".join("".join(row) for row in symbols) + "\n"
        if self.render_mode != "rgb_array":
            return None
        side = max(4, min(40, 640 // max(self.rows, self.cols)))  # pixels of a cell
        image = np.full((self.rows, self.cols, 3), 248, np.uint8)
        for symbol, colour in COLOURS.items():
            image[symbols == symbol] = list(bytes.fromhex(colour[1:]))
        image = image.repeat(side, axis=0).repeat(side, axis=1)
        image[::side], image[:, ::side] = 206, 206  # grid lines
        y, x = np.mgrid[:side, :side] - (side - 1) / 2
        row, col = agent[0] * side, agent[1] * side
        image[row : row + side, col : col + side][y**2 + x**2 <= (0.35 * side) ** 2] = (28, 126, 214)
        return image


class GoalGridWorldEnv(GridWorldEnv):
    """GridWorldEnv with the goal as an input, in the form of gymnasium-robotics.

    Observation space: Dict of `observation` (as GridWorldEnv's), `achieved_goal` (the agent's cell) and `desired_goal`,
        both encoded as `observation` is. With `random_goal` each episode draws a goal that can be reached; else G.
    """

    def _observation_space(self, show_goal: bool) -> spaces.Space:
        inner, n = super()._observation_space(show_goal=False), len(self.cells)
        width = 2 if self.observation == "coords" else n
        place = spaces.Discrete(n) if self.observation == "index" else spaces.Box(0.0, 1.0, (width,), np.float32)
        return spaces.Dict(observation=inner, achieved_goal=place, desired_goal=place)

    def observe(self, states: np.ndarray | int) -> dict[str, Any]:
        achieved, desired = self.place(self.cell_of[states]), self.place(self.goal_of[states])
        return {"observation": super().observe(states), "achieved_goal": achieved, "desired_goal": desired}

    def cell(self, places: np.ndarray) -> np.ndarray:
        """The inverse of `place`: (..., G) -> (...) int."""
        if self.observation == "index":
            return np.asarray(places)
        if self.observation == "onehot":
            return np.argmax(places, axis=-1)
        row_col = np.rint(np.asarray(places) * [self.rows - 1, self.cols - 1]).astype(int) + 1
        return self.number[row_col[..., 0], row_col[..., 1]]

    def compute_reward(self, achieved_goal: np.ndarray, desired_goal: np.ndarray, info: Any = None) -> Any:
        """Reward of arriving at `achieved_goal` (..., G) when `desired_goal` (..., G) was wanted: (...) float64."""
        cell = self.cell(achieved_goal)
        at_goal, at_trap = cell == self.cell(desired_goal), self.symbol[cell] == "X"
        return np.select([at_goal, at_trap], [self.goal_reward, self.trap_reward], self.step_reward)[()]

    def compute_terminated(self, achieved_goal: np.ndarray, desired_goal: np.ndarray, info: Any = None) -> Any:
        """Whether that arrival ends the episode: (...) bool."""
        cell = self.cell(achieved_goal)
        return (cell == self.cell(desired_goal)) | (self.symbol[cell] == "X")


class GridWorldVectorEnv(gym.vector.VectorEnv):
    """N grid worlds stepped together in numpy; env i, seeded with s + i, lives the life of a single env of that seed.

    Autoreset is SAME_STEP: the observation returned at an episode's end is the first of the next episode, the last one
    is in `info["final_obs"][i]`, and `info["final_info"]["is_success"]` says whether it ended at the goal.
    Arguments: those of GridWorldEnv, `max_episode_steps` (None: 4 x rows x cols; -1: no limit) and `goal_conditioned`.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(
        self, num_envs: int = 1, max_episode_steps: int | None = None, goal_conditioned: bool = False, **kwargs: Any
    ) -> None:
        self.grid = (GoalGridWorldEnv if goal_conditioned else GridWorldEnv)(**kwargs)
        limit = 4 * self.grid.rows * self.grid.cols if max_episode_steps is None else max_episode_steps
        if limit != -1 and not limit >= 1:
            raise ValueError(f"max_episode_steps must be at least 1, or -1 for no limit, got {limit}")
        self.num_envs, self.max_episode_steps = num_envs, np.inf if limit == -1 else limit
        self.single_observation_space, self.single_action_space = self.grid.observation_space, self.grid.action_space
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, num_envs)
        self.states, self._elapsed = np.zeros(num_envs, np.int64), np.zeros(num_envs, np.int64)
        self._generators: list[np.random.Generator] = []

    def _uniform(self, envs: np.ndarray) -> np.ndarray:
        """One uniform number for each env in `envs` (indices), from its own generator."""
        return np.array([self._generators[i].random() for i in envs.tolist()])

    def _start(self, envs: np.ndarray) -> None:
        starts = self.grid.start_states
        self.states[envs], self._elapsed[envs] = starts[(self._uniform(envs) * len(starts)).astype(int)], 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        if seed is not None or not self._generators:
            seeds = [None if seed is None else seed + i for i in range(self.num_envs)]
            self._generators = [gym.utils.seeding.np_random(s)[0] for s in seeds]
        if options and "state" in options:
            if np.min(options["state"]) < 0 or np.max(options["state"]) >= self.grid.n_states:
                raise ValueError(f"options['state'] must be between 0 and {self.grid.n_states - 1}")
            self.states[:], self._elapsed[:] = options["state"], 0
        else:
            self._start(np.arange(self.num_envs))
        return self.grid.observe(self.states), {}

    def step(self, actions: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict]:
        grid, actions = self.grid, np.asarray(actions)
        if actions.shape != self.states.shape or actions.min() < 0 or actions.max() > 3:
            raise ValueError(f"actions must be {self.num_envs} numbers 0, 1, 2 or 3, got {actions}")
        if grid.slip > 0:
            u = self._uniform(np.arange(self.num_envs))[:, None]
            actions = (u >= grid.cumulative[self.states, actions]).sum(axis=1)
        move = 4 * self.states + actions
        reward, self.states = grid.reward.take(move), grid.next_state.take(move)
        self._elapsed += 1
        terminated, truncated = grid.terminal.take(self.states), self._elapsed >= self.max_episode_steps
        info: dict[str, Any] = {}
        if (over := terminated | truncated).any():
            envs, final_obs = np.flatnonzero(over), np.full(self.num_envs, None, dtype=object)
            for i in envs:
                final_obs[i] = grid.observe(self.states[i])
            ending = {"is_success": grid.at_goal[self.states] & over, "_is_success": over}
            info = {"final_obs": final_obs, "_final_obs": over, "final_info": ending, "_final_info": over}
            self._start(envs)
        return grid.observe(self.states), reward, terminated, truncated, info


def make_grid(goal_conditioned: bool = False, **kwargs: Any) -> gym.Env:
    """The environment in a TimeLimit of 4 x rows x cols steps, unless gym.make was given a limit, or a spec with one.

    gym.make keeps the limit to itself and wraps its own TimeLimit outside, where a longer one would have no effect; so
    it is read from the caller's frame.
    """
    env, caller = (GoalGridWorldEnv if goal_conditioned else GridWorldEnv)(**kwargs), sys._getframe(1).f_locals
    limits = caller.get("max_episode_steps"), getattr(caller.get("env_spec"), "max_episode_steps", None)
    return env if any(limits) else gym.wrappers.TimeLimit(env, 4 * env.rows * env.cols)


make_grid.metadata = GridWorldEnv.metadata  # gym.make checks render_mode against it
if "GridWorld-v0" not in gym.registry:  # run as a program and imported by name, this file is loaded twice
    for env_id, goal_conditioned in zip(GRID_IDS, (False, True), strict=True):
        paths = {"entry_point": "gridworld:make_grid", "vector_entry_point": "gridworld:GridWorldVectorEnv"}
        gym.register(env_id, **paths, kwargs={"goal_conditioned": goal_conditioned})

# ----------------------------------------------------------------------------- exact solutions


def solve(
    env: gym.Env, gamma: float = 1.0, policy: np.ndarray | float | None = None, horizon: int | None = None
) -> np.ndarray:
    """Q(s, a) with `horizon` steps to go, by backward induction over the table P: (S, A) float64.

    Q_0 = 0,  Q_h(s, a) = sum_{s'} p(s' | s, a) (r + gamma (1 - terminated) V_{h-1}(s')),  V = sum_a policy(s, a) Q,
    policy (S, A) or one chance for all actions; without one V = max_a Q. `horizon` None is the env's time limit.
    """
    table = env.unwrapped.P
    horizon = env.spec.max_episode_steps if horizon is None else horizon
    if horizon is None:
        raise ValueError(f"{env.spec.id} has no time limit; an exact return needs one: --max-episode-steps")
    outcomes = [table[s][a] for s in range(len(table)) for a in range(len(table[s]))]
    branches = max(map(len, outcomes))
    padded = np.array([o + [(0.0, 0, 0.0, True)] * (branches - len(o)) for o in outcomes], dtype=float)  # (S A, K, 4)
    p, target, r, terminated = np.moveaxis(padded, 2, 0)
    reward, weight, target = (p * r).sum(1), gamma * p * (1 - terminated), target.astype(np.int64)
    q, value = np.zeros((len(table), len(outcomes) // len(table))), np.zeros(len(table))
    for _ in range(horizon):
        q = (reward + (weight * value[target]).sum(1)).reshape(q.shape)
        new = q.max(1) if policy is None else (policy * q).sum(1)
        if np.array_equal(new, value):  # a fixed point: more steps to go change nothing
            break
        value = new
    return q


def optimal_return(env: gym.Env) -> float:
    """Expected undiscounted return of the best policy from the start states within the time limit, exact.

    For any env with a table `P` and `initial_state_distrib`, as Gymnasium's toy_text has them.
    """
    return float(env.unwrapped.initial_state_distrib @ solve(env).max(axis=1))


def random_return(env: gym.Env) -> float:
    """The same for the policy that draws actions uniformly."""
    return float(env.unwrapped.initial_state_distrib @ solve(env, policy=1 / env.action_space.n).mean(axis=1))


# ----------------------------------------------------------------------------- pictures


Scale = list[str] | tuple[float, float] | None  # names of indices, or the ends of the colour bar (None: the data's)


def draw(env: gym.Env, panels: dict[str, tuple[np.ndarray, np.ndarray | None, Scale]]) -> np.ndarray:
    """A picture with one map of a grid world for each panel {title: (values, policy, scale)}: (H, W, 3) uint8.

    values (S,) colour the cells: floats with a colour bar, or indices of names with a legend; policy (S,) adds the
    arrow of each state's action. A map with a key is drawn twice, without and with it; with random goals, for goal G.
    """
    import matplotlib as mpl  # here: few runs draw often, and importing it takes half a second
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    grid: GridWorldEnv = env.unwrapped
    maps = [(title, *panel, key) for title, panel in panels.items() for key in range(grid.n_keys)]
    columns = min(len(maps), 3)
    lines = -(-len(maps) // columns)
    height = 4.4 * max(0.5, min(1.3, grid.rows / grid.cols))
    height += 0.125 * max(len(scale) if isinstance(scale, list) else 0 for *_, scale in panels.values())  # the legend
    figure = Figure((4.4 * columns, height * lines), layout="constrained")
    for i, (title, values, policy, scale, key) in enumerate(maps):
        axes = figure.add_subplot(lines, columns, i + 1, xticks=[], yticks=[])
        axes.set_title(title if grid.n_keys == 1 else f"{title}, {('no key', 'key held')[key]}", fontsize=10)
        shown = np.flatnonzero((grid.goal_of == grid.goal_cell) & (grid.key_of == key) & ~grid.terminal)
        row, col = grid.cells[grid.cell_of[shown]].T
        image = np.full((grid.rows, grid.cols), np.nan)
        image[row, col] = values[shown]
        if isinstance(scale, list):
            palette = mpl.colormaps["tab10"] if len(scale) <= 10 else mpl.colormaps["turbo"].resampled(len(scale))
            colours = palette(range(len(scale)))
            axes.imshow(image, cmap=mpl.colors.ListedColormap(colours), vmin=-0.5, vmax=len(scale) - 0.5)
            handles = [mpl.patches.Patch(color=c, label=name) for c, name in zip(colours, scale, strict=True)]
            axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2, frameon=False)
        else:
            low, high = scale or (None, None)
            figure.colorbar(axes.imshow(image, cmap="viridis", vmin=low, vmax=high), ax=axes, shrink=0.8)
        if policy is not None:
            dy, dx = 0.6 * MOVES[policy[shown]].T
            arrows = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.008, "headwidth": 5}
            axes.quiver(col - dx / 2, row - dy / 2, dx, dy, color="white", **arrows)
        for (r, c), symbol in np.ndenumerate(grid.map):
            if symbol in "#GX":
                axes.add_patch(mpl.patches.Rectangle((c - 0.5, r - 0.5), 1, 1, color=COLOURS[symbol]))
            if symbol in "SGXKD":  # in the corner, beside the arrow
                axes.text(c - 0.3, r - 0.25, symbol, ha="center", va="center", fontsize=8, color="white")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[:, :, :3]


def film(env: gym.Env, policy: Any) -> bytes:
    """An animated GIF of one episode; `env` renders rgb_array, `policy(obs (1, ...), start (1,)) -> actions (1,)`."""
    from PIL import Image

    obs, _ = env.reset(seed=10_000)
    frames, start, ended = [Image.fromarray(env.render())], True, False
    while not ended:
        obs, _, terminated, truncated, _ = env.step(int(policy(np.array([obs]), np.array([start]))[0]))
        frames.append(Image.fromarray(env.render()))
        start, ended = False, terminated or truncated
    gif = io.BytesIO()
    frames[0].save(gif, "GIF", save_all=True, append_images=frames[1:], duration=150, loop=0)
    return gif.getvalue()


def observe_all(env: gym.Env) -> np.ndarray:
    """The observation of every state of a grid world, flat as `EnvArgs.make_env` has it: (S, D) float32."""
    grid = env.unwrapped
    rows = [spaces.flatten(grid.observation_space, grid.observe(s)) for s in range(grid.n_states)]
    return np.array(rows, dtype=np.float32)


# ----------------------------------------------------------------------------- flags


@dataclasses.dataclass(frozen=True)
class EnvArgs:
    """The flags that name the task; every script's Args inherits them."""

    env_id: str = "GridWorld-v0"
    """Any Gymnasium id with discrete actions; module:Name-v0 imports the module first. The flags from --grid-size to
    --trap-reward are for GridWorld-v0 and GoalGridWorld-v0 alone."""
    grid_size: int | None = None
    """Rows and columns; without it the layout's own: empty, random and key_door 8, maze 11, four_rooms 13."""
    layout: str | None = None
    """empty (default), four_rooms, key_door, maze, random, dyna_maze, cliff, or the path of a map file: # wall, . free,
    S start, G goal, X trap, K key, D door."""
    layout_seed: int | None = None
    """Which maze or random map (default 0); from 1000000 on, maps that no smaller seed draws."""
    slip: float | None = None
    """Chance that a move fails and ends in a random open cell next to the agent (default 0)."""
    random_start: bool = False
    """Start each episode in a random cell instead of at S."""
    random_goal: bool = False
    """Draw a goal for each episode and show it in the observation."""
    observation: Observation | None = None
    """What the agent sees: its cell as a one-hot vector (default), as two coordinates, or as a number."""
    step_reward: float | None = None
    """Reward of a step (default -0.1)."""
    goal_reward: float | None = None
    """Reward for arriving at the goal (default 10)."""
    trap_reward: float | None = None
    """Reward for stepping into a trap (default -10)."""
    max_episode_steps: int | None = None
    """Steps until an episode is cut; without it 4 x rows x columns on grids, elsewhere the environment's own limit, or
    1000 where it has none."""

    def __post_init__(self) -> None:
        if self.max_episode_steps is not None:
            self.check(max_episode_steps=(1, 1e9))
        if self.env_id not in GRID_IDS and (given := self._given().keys() - {"max_episode_steps"}):
            names = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(given))
            raise ValueError(f"{names} can only be used with {' and '.join(GRID_IDS)}, got --env-id {self.env_id}")
        try:
            env = self.make_env()
        except (gym.error.Error, ImportError, SyntaxError, TypeError, ValueError) as error:
            if isinstance(error, ValueError) and self.env_id in GRID_IDS:
                raise  # it names its own flag
            raise ValueError(f"--env-id {self.env_id}: {' '.join(str(error).split())}") from None
        if not isinstance(env.action_space, spaces.Discrete) or env.action_space.start != 0:
            raise ValueError(f"--env-id {self.env_id} must have discrete actions from 0 on, got {env.action_space}")
        env.close()

    def check(self, **bounds: tuple[float, float]) -> None:
        """Raise ValueError, naming flag, bound and value, unless low <= flag <= high for each `flag=(low, high)`."""
        for name, (low, high) in bounds.items():
            if not low <= (value := getattr(self, name)) <= high:  # written so that NaN fails
                raise ValueError(f"--{name.replace('_', '-')} must be between {low:g} and {high:g}, got {value}")

    def check_run(self) -> None:
        """Check the flags that every script's Args has beside these."""
        self.check(seed=(0, 2**32 - 1), total_timesteps=(1, 1e12), eval_every=(0, 1e12), eval_episodes=(1, 1e5))
        if not re.fullmatch(r"[\w.-]{1,60}", self.exp_name):
            raise ValueError(f"--exp-name must be 1 to 60 letters, digits, '.', '_' and '-', got {self.exp_name!r}")
        path = self.log_dir.absolute()
        try:
            folder = next(folder for folder in (path, *path.parents) if folder.exists() or folder.is_symlink())
            usable = folder.is_dir() and os.access(folder, os.W_OK)
        except OSError:  # a name that is too long, or a folder that may not be entered
            usable = False
        if not usable:
            raise ValueError(f"--log-dir must be a folder that can be written to, got {self.log_dir}")
        if self.device != "cpu":
            import torch  # here: this file has no other use for it

            if not getattr(torch, self.device).is_available():
                raise ValueError(f"--device must be one that this machine has, got {self.device}")
        if self.capture_video:
            try:
                (env := self.make_env(render_mode="rgb_array")).reset()
                env.render()
            except gym.error.Error as error:
                raise ValueError(f"--capture-video needs an environment that can be drawn: {error}") from None

    def _given(self) -> dict[str, Any]:
        """The flags but --env-id that were given, by name."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(EnvArgs)[1:]}
        return {name: value for name, value in values.items() if value is not None and value is not False}

    def _kwargs(self, changes: dict[str, Any]) -> dict[str, Any]:
        return {name.removeprefix("grid_"): value for name, value in self._given().items()} | changes

    def make_env(self, flatten: bool = True, **changes: Any) -> gym.Env:
        """One environment in its time limit; `changes` are arguments of gym.make that replace flags.

        `flatten` turns every observation into a flat float32 vector: Discrete ones into one-hot, Dict ones into their
        `image` if they have one, else all their parts in a row.
        """
        env = gym.make(self.env_id, **self._kwargs(changes))
        if env.spec.max_episode_steps is None:
            env = gym.wrappers.TimeLimit(env, 1_000)
        if flatten and isinstance(env.observation_space, spaces.Dict) and "image" in env.observation_space.spaces:
            env = gym.wrappers.TransformObservation(env, lambda obs: obs["image"], env.observation_space["image"])
        if flatten and not (isinstance(env.observation_space, spaces.Box) and len(env.observation_space.shape) == 1):
            env = gym.wrappers.FlattenObservation(env)
        if flatten and env.observation_space.dtype != np.float32:
            env = gym.wrappers.DtypeObservation(env, np.float32)
        return env

    def make_vec(self, num_envs: int, flatten: bool = True, **changes: Any) -> gym.vector.VectorEnv:
        """`num_envs` of them stepped together, autoreset SAME_STEP."""
        is_flat = self.env_id == "GridWorld-v0" and self.observation != "index"
        if is_flat or (self.env_id in GRID_IDS and not flatten):
            return gym.make_vec(self.env_id, num_envs, "vector_entry_point", **self._kwargs(changes))
        makers = [lambda: self.make_env(flatten, **changes)] * num_envs
        return gym.vector.SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)


def main(args: EnvArgs) -> None:
    """Print the map, its sizes, the exact returns and an optimal policy."""
    env = args.make_env(flatten=False)
    if not hasattr(env.unwrapped, "P"):
        raise SystemExit(f"{args.env_id} has no table P of transitions: there is nothing to solve exactly")
    q, limit = solve(env), env.spec.max_episode_steps
    print(f"{args.env_id}: {len(q)} states, {q.shape[1]} actions, at most {limit} steps an episode")
    print(f"optimal return {optimal_return(env):.6g}, random return {random_return(env):.6g}")
    grid = env.unwrapped
    for key in range(grid.n_keys) if isinstance(grid, GridWorldEnv) else ():
        shown = np.flatnonzero((grid.key_of == key) & (grid.goal_of == grid.goal_cell) & ~grid.terminal)
        arrows = grid.map.copy()
        arrows[tuple(grid.cells[grid.cell_of[shown]].T)] = np.array(list(ARROWS))[q[shown].argmax(axis=1)]
        print(f"\n{'map':{grid.cols + 3}}optimal policy{', key held' * key}")
        for row, arrow in zip(grid.map, arrows, strict=True):
            print("".join(row), "".join(arrow), sep="   ")


if __name__ == "__main__":
    import gridworld  # by name, so that this file's classes are those of the registered environments

    gridworld.main(tyro.cli(gridworld.EnvArgs, description=__doc__.split("\n")[0]))
