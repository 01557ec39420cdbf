"""The four-rooms experiment of Bacon et al. (2017) on tables: the goal moves after 1000 episodes, who finds it again?

Run:   python benchmarks/options_four_rooms.py
       prints the table and draws results/options_four_rooms.svg; python -m pytest -m paper tests/test_options_critic.py
       runs the same and demands its outcome. Ten seeds, two to three minutes of one core.

Four rooms of 13 x 13; a move fails with probability 1/3 and leads to a random open cell around the agent; reward 1 at
the goal, 0 elsewhere; episodes start in any other cell and are cut after 1000 steps. The goal is the hallway (7, 9),
then a random cell of the south-east room. Option-critic here is the one of options_critic.py, its own functions on
tables: 4 options, gamma 0.99, steps of 0.5 for the values and 0.25 for policies and terminations, options drawn
epsilon-greedily with epsilon 0.01 (the command in the authors' program, github.com/jeanharb/option_critic). Their
table holds the logits times the temperature T and leaves the factor 1 / T out of the gradient, so that T acts as a
step size of 0.25 / T for the logits, and is written so here. Unlike theirs, option-critic has no table of Q_U (D2 of
options_critic.py). The actor-critic is the same with one option. Sarsa and Q-learning have steps of 0.5 too.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import gridworld  # noqa: E402 (this file is run from its folder's parent)
import options_critic  # noqa: E402

GAMMA, STEP_SIZE, LIMIT, EPISODES, MOVE = 0.99, 0.5, 1_000, 1_100, 1_000
FIRST_GOAL = (7, 9)

# Agents. Each keeps a table for each of B seeds and acts for all of them at once: act(cell (B,), start (B,) bool) ->
# action (B,); learn(cell, action, reward, next_cell, terminated), all (B,). C cells, K options, A = 4 actions.


class OptionCritic:
    """Option-critic with the functions of options_critic.py; with one option, an actor-critic."""

    def __init__(self, seeds: int, cells: int, rng: np.random.Generator, temperature: float, options: int = 4) -> None:
        self.q, self.beta_logit = torch.zeros(seeds, cells, options), torch.zeros(seeds, cells, options)
        self.logit, self.rows = torch.zeros(seeds, cells, options, 4), torch.arange(seeds)
        self.rng, self.options, self.actor_step = rng, options, 0.25 / temperature
        self.option = torch.zeros(seeds, dtype=torch.int64)

    def act(self, cell: np.ndarray, start: np.ndarray) -> np.ndarray:
        n, at = len(cell), (self.rows, torch.from_numpy(cell))
        beta = options_critic.pick(self.beta_logit[at], self.option).sigmoid().numpy()
        greedy, random = self.q[at].argmax(dim=1).numpy(), self.rng.integers(self.options, size=n)
        chosen = np.where(self.rng.random(n) < 0.01, random, greedy)
        ends = start | (self.rng.random(n) < beta)
        self.option = torch.from_numpy(np.where(ends, chosen, self.option.numpy()))
        logit = options_critic.pick(self.logit[at], self.option).numpy()
        return (logit + self.rng.gumbel(size=logit.shape)).argmax(axis=1)

    def learn(self, cell, action, reward, next_cell, terminated) -> None:
        n, at, next_at = len(cell), (self.rows, torch.from_numpy(cell)), (self.rows, torch.from_numpy(next_cell))
        reward, terminated = torch.from_numpy(np.float32(reward)), torch.from_numpy(np.float32(terminated))
        logit, beta_logit = self.logit[at].requires_grad_(), self.beta_logit[next_at].requires_grad_()
        q, next_q = options_critic.pick(self.q[at], self.option), self.q[next_at]
        next_beta = beta_logit.sigmoid()
        arrival_value = options_critic.value_upon_arrival(next_q, next_beta, self.option)
        target = options_critic.option_target(reward, terminated, arrival_value, GAMMA)
        log_pi = options_critic.pick(logit, self.option).log_softmax(dim=1)
        log_prob = options_critic.pick(log_pi, torch.from_numpy(action))
        loss = options_critic.policy_loss(log_prob, target, q)
        loss = loss + options_critic.termination_loss(next_beta, next_q, self.option, terminated, 0.0)
        policy_gradient, termination_gradient = torch.autograd.grad(n * loss, (logit, beta_logit))  # n undoes the mean
        self.q[(*at, self.option)] += STEP_SIZE * (target - q)
        self.logit[at] -= self.actor_step * policy_gradient
        self.beta_logit[next_at] -= 0.25 * termination_gradient


class QLearning:
    """Epsilon-greedy Q-learning: the control. Ties are broken at random."""

    def __init__(self, seeds: int, cells: int, rng: np.random.Generator, epsilon: float = 0.1) -> None:
        self.q, self.rows, self.rng, self.epsilon = np.zeros((seeds, cells, 4)), np.arange(seeds), rng, epsilon

    def act(self, cell: np.ndarray, start: np.ndarray) -> np.ndarray:
        n = len(cell)
        greedy = (self.q[self.rows, cell] + 1e-9 * self.rng.random((n, 4))).argmax(axis=1)
        return np.where(self.rng.random(n) < self.epsilon, self.rng.integers(4, size=n), greedy)

    def learn(self, cell, action, reward, next_cell, terminated) -> None:
        target = reward + GAMMA * (1 - terminated) * self.q[self.rows, next_cell].max(axis=1)
        self.q[self.rows, cell, action] += STEP_SIZE * (target - self.q[self.rows, cell, action])


class Sarsa:
    """Sarsa(0) with Boltzmann exploration."""

    def __init__(self, seeds: int, cells: int, rng: np.random.Generator, temperature: float) -> None:
        self.q, self.rows, self.rng, self.temperature = np.zeros((seeds, cells, 4)), np.arange(seeds), rng, temperature
        self.next_action = np.zeros(seeds, np.int64)

    def draw(self, cell: np.ndarray) -> np.ndarray:
        preference = self.q[self.rows, cell] / self.temperature
        return (preference + self.rng.gumbel(size=preference.shape)).argmax(axis=1)

    def act(self, cell: np.ndarray, start: np.ndarray) -> np.ndarray:
        return np.where(start, self.draw(cell), self.next_action)

    def learn(self, cell, action, reward, next_cell, terminated) -> None:
        self.next_action = self.draw(next_cell)
        target = reward + GAMMA * (1 - terminated) * self.q[self.rows, next_cell, self.next_action]
        self.q[self.rows, cell, action] += STEP_SIZE * (target - self.q[self.rows, cell, action])


AGENTS: dict[str, Callable] = {
    "Sarsa, T = 0.01": lambda *a: Sarsa(*a, 0.01),
    "actor-critic, T = 0.1": lambda *a: OptionCritic(*a, 0.1, options=1),
    "actor-critic, T = 0.01": lambda *a: OptionCritic(*a, 0.01, options=1),
    "option-critic, T = 0.1": lambda *a: OptionCritic(*a, 0.1),
    "option-critic, T = 0.01": lambda *a: OptionCritic(*a, 0.01),
    "Q-learning, epsilon = 0.1": QLearning,
}


def four_rooms(**flags) -> gridworld.GridWorldEnv:
    """The map, with a state for each cell and goal: state = goal * cells + cell."""
    return gridworld.GridWorldEnv(
        layout="four_rooms", slip=1 / 3, random_goal=True, random_start=True, step_reward=0.0, goal_reward=1.0, **flags
    )


def south_east(grid: gridworld.GridWorldEnv) -> np.ndarray:
    """Numbers of the cells of the south-east room."""
    return np.flatnonzero((grid.cells[:, 0] > 7) & (grid.cells[:, 1] > 6))


def steps_per_episode(make_agent: Callable, seeds: int, seed: int = 1, episodes: int = EPISODES) -> np.ndarray:
    """Lengths of each seed's episodes: (seeds, episodes). Seeds live side by side, until the slowest has finished."""
    rng, grid = np.random.default_rng(seed), four_rooms()
    n, room = len(grid.cells), south_east(grid)
    goal = np.full(seeds, np.flatnonzero((grid.cells == FIRST_GOAL).all(axis=1))[0])
    agent, lengths = make_agent(seeds, n, rng), np.zeros((seeds, episodes), int)
    episode, length, start, cell = np.zeros(seeds, int), np.zeros(seeds, int), np.ones(seeds, bool), goal.copy()
    while (episode < episodes).any():
        if start.any():
            moves = start & (episode == MOVE)
            goal[moves] = rng.choice(room, size=moves.sum())
            other = rng.integers(n - 1, size=seeds)  # any cell but the goal
            cell = np.where(start, other + (other >= goal), cell)
        action, state = agent.act(cell, start), goal * n + cell
        move = (grid.cumulative[state, action] <= rng.random((seeds, 1))).sum(axis=1)
        next_cell = grid.next_state[state, move] % n
        terminated, length = next_cell == goal, length + 1
        agent.learn(cell, action, terminated.astype(float), next_cell, terminated.astype(float))
        cell, start = next_cell, terminated | (length == LIMIT)
        logged = np.flatnonzero(start & (episode < episodes))
        lengths[logged, episode[logged]] = length[logged]
        episode, length = episode + start, np.where(start, 0, length)
    return lengths


def optimal_steps() -> tuple[float, float]:
    """Expected steps of the best policy before the move and, over the goals of the south-east room, after it."""
    grid = four_rooms()
    n, steps = len(grid.cells), np.zeros(grid.n_states)
    for _ in range(2_000):
        steps = np.where(grid.terminal, 0.0, 1.0 + (grid.chance @ steps[grid.next_state][:, :, None])[:, :, 0].min(1))
    mean = steps.reshape(n, n).sum(axis=1) / (n - 1)  # of each goal, over starts in the other cells
    return mean[(grid.cells == FIRST_GOAL).all(axis=1)].item(), mean[south_east(grid)].mean()


def summary(lengths: np.ndarray) -> tuple[float, float]:
    """Mean steps over the seeds: in the 100 episodes before the move, and in episodes 50 to 100 after it."""
    return lengths[:, MOVE - 100 : MOVE].mean(), lengths[:, MOVE + 50 : MOVE + 100].mean()


def draw(lengths: dict[str, np.ndarray], path: Path) -> None:
    """Steps per episode before and after the move: median over seeds, and as a band all but the two outermost."""
    with matplotlib.rc_context({"svg.hashsalt": ""}):  # the same numbers give the same file
        figure = Figure((9, 4.8), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True, subplot_kw={"yscale": "log", "xlabel": "episode"})
        titles, windows = ("goal in a hallway", "the goal has moved to the south-east room"), (20, 5)
        for axes, title, window, first, last, best in zip(
            panels, titles, windows, (0, MOVE), (MOVE, EPISODES), optimal_steps(), strict=True
        ):
            for name, rows in lengths.items():
                means = np.sort(rows[:, first:last].reshape(len(rows), -1, window).mean(axis=2), axis=0)
                x = first + window * (np.arange(means.shape[1]) + 0.5)
                axes.plot(x, np.median(means, axis=0), label=name)
                axes.fill_between(x, means[1], means[-2], alpha=0.15, linewidth=0)
            axes.axhline(best, color="black", linestyle="dashed", label="optimum")
            axes.set_title(f"{title}\n(means of {window} episodes, {len(rows)} seeds)", fontsize=10)
        panels[0].set_ylabel("steps per episode")
        panels[0].set_yticks(ticks := [10, 20, 50, 100, 200, 500, 1_000], [str(tick) for tick in ticks])
        panels[0].minorticks_off()
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else {})


def main() -> None:
    """Run every agent, print the table, draw the picture."""
    torch.set_num_threads(1)
    lengths = {name: steps_per_episode(make, seeds=10) for name, make in AGENTS.items()}
    print(f"{'mean steps of an episode, 10 seeds':35}  before  50-100 after the move")
    print(f"{'optimum':35}  {optimal_steps()[0]:6.1f}  {optimal_steps()[1]:6.1f}")
    for name, rows in lengths.items():
        print(f"{name:35}  {summary(rows)[0]:6.1f}  {summary(rows)[1]:6.1f}")
    draw(lengths, ROOT / "results" / "options_four_rooms.svg")


if __name__ == "__main__":
    main()
