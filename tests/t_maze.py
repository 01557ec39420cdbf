"""A T-shaped corridor whose right arm is shown at the start only: a policy of the observation alone is right by halves.

Use: PYTHONPATH=tests python feudal.py --env-id t_maze:TMaze-v0
"""

import gymnasium as gym
import numpy as np

import gridworld


class TMaze(gym.Env):
    """A corridor of `length` cells, then a junction and two arms, up and down, of `arm` cells each.

    Action space: Discrete(4), as in gridworld.py. Observation space: the cell as a one-hot vector, and two entries that
        show the right arm, (1, 0) up or (0, 1) down, in the first cell alone.
    Rewards: -0.1 a step; arriving at the end of the right arm 10, of the wrong arm -0.1 like any step.
    Starting state: the first cell; either arm, equally likely. Episode end: at the end of either arm.
    Table, as in gridworld.py: state = right arm * cells + cell, P[s][a] and initial_state_distrib.
    """

    def __init__(self, length: int = 6, arm: int = 2) -> None:
        places = [(0, x) for x in range(length + 1)] + [(y, length) for y in range(-arm, arm + 1) if y != 0]
        number = {place: i for i, place in enumerate(places)}
        self.n_cells, ends = len(places), [number[-arm, length], number[arm, length]]
        self.P, self.initial_state_distrib = {}, np.zeros(2 * self.n_cells)
        self.initial_state_distrib[[0, self.n_cells]] = 0.5
        for right in range(2):
            for (y, x), cell in number.items():
                moves = {}
                for action, (dy, dx) in enumerate(gridworld.MOVES.tolist()):
                    to = cell if cell in ends else number.get((y + dy, x + dx), cell)
                    reward = 0.0 if cell in ends else 10.0 if to == ends[right] else -0.1
                    moves[action] = [(1.0, right * self.n_cells + to, reward, to in ends)]
                self.P[right * self.n_cells + cell] = moves
        self.observation_space = gym.spaces.Box(0.0, 1.0, (self.n_cells + 2,), np.float32)
        self.action_space = gym.spaces.Discrete(4)

    def observe(self) -> np.ndarray:
        right, cell = divmod(self.state, self.n_cells)
        obs = np.zeros(self.n_cells + 2, np.float32)
        obs[cell] = 1.0
        if cell == 0:
            obs[self.n_cells + right] = 1.0
        return obs

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        self.state = int(self.np_random.integers(2)) * self.n_cells
        return self.observe(), {}

    def step(self, action: int):
        ((_, self.state, reward, terminated),) = self.P[self.state][int(action)]
        return self.observe(), reward, terminated, False, {"is_success": reward > 0}


gym.register("TMaze-v0", TMaze, max_episode_steps=60)
