"""Transfer: a DQN that learns other tasks first, the sources, and starts the target with what it has learned there.

Papers: Rusu et al. (2016), Progressive Neural Networks, arXiv:1606.04671: columns, eq. (1), and the baselines fine-tune
        and frozen. Schaul et al. (2015), Universal Value Function Approximators, ICML, PMLR 37: uvfa. Nichol, Achiam
        and Schulman (2018), On First-Order Meta-Learning Algorithms, arXiv:1803.02999: reptile, algorithm 1.
        DQN and its equations (1)-(3) are those of dqn.py; --method scratch is dqn.py.
Run:    python transfer.py --layout four_rooms
Differences from the papers:
    D1-D3 are those of dqn.py: Adam and the Huber loss, truncation bootstraps, several environments side by side.
    D4. Progressive: linear laterals of eq. (1) without the adapters of eq. (2); the sources share one column.
    D5. UVFA: the agent pursues the goals of the sources, and learns from each transition for all training goals.
    D6. Reptile: values need targets, which come from a copy of the weights adapted to the same source; the inner steps
        are Adam's, whose moments last, and go on while the sources are played.
"""

import copy
import dataclasses
import json
import random
import re
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
import tyro
from gymnasium.vector import AutoresetMode
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

import gridworld


@dataclasses.dataclass(frozen=True)
class Args(gridworld.EnvArgs):
    """Train a deep Q-network on source tasks, then on the target, which is the task that the environment flags name."""

    exp_name: str = "transfer"
    """Name of the algorithm in run folders and reports."""
    seed: int = 1
    """Seed of the environments, the network and the exploration; the same seed gives the same run."""
    total_timesteps: int = 30_000
    """Environment steps of the whole run, over all environments."""
    log_dir: Path = Path("runs")
    """Folder in which the run's own folder is made."""
    eval_every: int = 500
    """Environment steps between evaluations of the greedy policy; 0 leaves only the last one."""
    eval_episodes: int = 10
    """Episodes in an evaluation, played side by side."""
    device: Literal["cpu", "cuda", "mps"] = "cpu"
    """Where the network is; the CPU is fastest for networks of this size."""
    save_model: bool = False
    """Write the trained weights to model.pt in the run folder."""
    capture_video: bool = False
    """Film a greedy episode of the trained agent, to video.gif in the run folder."""

    method: Literal["scratch", "fine-tune", "frozen", "progressive", "uvfa", "reptile"] = "fine-tune"
    """What the target starts with: nothing; the sources' network; the same, of which only the head is trained on; a new
    column beside it; a network with the goal as input; weights from which a few updates lead to each source."""
    source: Literal["near", "far", "maps", "unrelated"] = "near"
    """Sources: G moved nearby; G moved far away; other maps (of maze, random); near with scrambled observations."""
    num_sources: int = 4
    """Source tasks, at most num_envs: each environment plays one."""
    source_timesteps: int | None = None
    """Environment steps on the sources, a part of the total; without it half of the run. Method scratch makes none."""
    target_start_e: float | None = None
    """Chance of a random action at the first step on the target; without it start_e."""
    target_learning_rate: float | None = None
    """Step size of Adam on the target; without it learning_rate."""
    inner_updates: int = 32
    """Reptile: updates on one source before the common weights move."""
    meta_step_size: float = 0.3
    """Reptile: the share of the way to the adapted weights that they move."""

    num_envs: int = 4
    """Environments stepped side by side."""
    learning_rate: float = 1e-3
    """Step size of Adam."""
    gamma: float = 0.95
    """Discount per step."""
    buffer_size: int = 50_000
    """Transitions kept for replay, of each task; the oldest are overwritten."""
    batch_size: int = 64
    """Transitions in an update."""
    learning_starts: int = 500
    """Environment steps before the first update, on the sources and on the target."""
    train_frequency: int = 4
    """Environment steps per update."""
    target_network_frequency: int = 25
    """Environment steps between copies of the network into the target network."""
    start_e: float = 1.0
    """Chance of a random action at the first step, on the sources and on the target."""
    end_e: float = 0.05
    """Chance of a random action once exploration has come down."""
    exploration_fraction: float = 0.5
    """Share of the steps on the sources, and of those on the target, over which it falls to end_e, linearly."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_run()
        self.check(num_envs=(1, 4_096), learning_rate=(0, 1), gamma=(0, 1), buffer_size=(1, 1e8), batch_size=(1, 1e6))
        self.check(learning_starts=(0, 1e12), train_frequency=(1, 1e9), target_network_frequency=(1, 1e12))
        self.check(start_e=(0, 1), end_e=(0, 1), exploration_fraction=(0, 1), num_sources=(1, self.num_envs))
        self.check(inner_updates=(1, 1e9), meta_step_size=(0, 1))
        optional = {"source_timesteps": self.total_timesteps, "target_start_e": 1, "target_learning_rate": 1}
        self.check(**{name: (0, most) for name, most in optional.items() if getattr(self, name) is not None})
        if self.env_id not in gridworld.GRID_IDS or self.random_goal:
            given = "--random-goal" if self.random_goal else f"--env-id {self.env_id}"
            raise ValueError(f"--env-id must be a grid world, with one goal: sources have others; got {given}")
        one_hot = self.env_id == "GridWorld-v0" and self.observation in (None, "onehot")
        if self.method == "uvfa" and (not one_hot or self.source == "maps" or "K" in self.make_env().unwrapped.map):
            raise ValueError("--method uvfa needs GridWorld-v0, observation onehot, no keys and not --source maps")
        if self.method != "scratch":
            Sources(self)

    def source_steps(self) -> int:
        """Environment steps on the sources, which every method but scratch has."""
        return self.total_timesteps // 2 if self.source_timesteps is None else self.source_timesteps


# ----------------------------------------------------------------------------- the maths
# Pure functions. B batch, A actions, K sources, G goals, S states of a grid world.


def td_target(reward: Tensor, terminated: Tensor, next_q: Tensor, gamma: float) -> Tensor:
    """y = r + gamma (1 - terminated) max_a' Q'(s', a'), the target below eq. (2), with D2.

    reward (B,) float; terminated (B,) float, 0 where the time limit cut the episode; next_q (B, A) float, the target
    network at s'. Returns (B,) float, detached: no gradient reaches the target network.
    """
    return (reward + gamma * (1.0 - terminated) * next_q.max(dim=1).values).detach()


def td_loss(q: Tensor, action: Tensor, target: Tensor) -> Tensor:
    """Mean over the batch of Huber(y - Q(s, a)), eq. (2) with D1: a scalar.

    q (B, A) float; action (B,) int64; target (B,) float.
    """
    return F.smooth_l1_loss(q.gather(1, action[:, None]).squeeze(1), target)


def linear_schedule(start: float, end: float, duration: float, step: int) -> float:
    """Value at `step` of the line from `start` at step 0 to `end` at step `duration`, then `end`."""
    return end if step >= duration else start + (end - start) * step / duration


def times_due(step: int, every: int, stride: int) -> int:
    """How many multiples of `every` lie in (step - stride, step]: what is due after `stride` more steps."""
    return step // every - (step - stride) // every


def for_all_goals(
    reward: Tensor, terminated: Tensor, arrived: Tensor, own: int, rewards: tuple
) -> tuple[Tensor, Tensor]:
    """Transitions as they would have been for each of G goals: r_g and terminated_g (UVFA, D5), (B, G) float each.

    Arriving at g gives the reward of a goal and ends. Arriving at `own`, the goal pursued, is a step like others for
    the rest; traps end for all. reward, terminated (B,) float; arrived (B, G) bool; rewards: of a goal, of a step.
    """
    goal_reward, step_reward = rewards
    at_own = arrived[:, own]
    reward = torch.where(at_own, step_reward, reward)[:, None]
    terminated = torch.where(at_own, 0.0, terminated)[:, None]
    return torch.where(arrived, goal_reward, reward), torch.where(arrived, 1.0, terminated)


def reptile_step(meta: list[Tensor], adapted: list[Tensor], step_size: float) -> list[Tensor]:
    """theta + epsilon (phi - theta), Reptile's update (algorithm 1): from weights towards those adapted to a task."""
    return [theta + step_size * (phi - theta) for theta, phi in zip(meta, adapted, strict=True)]


def curve_measures(steps: list[int], scores: list[float]) -> dict[str, float]:
    """The mean of a curve over its steps (trapezoids), and the step from which 0.95 is kept, if there is one."""
    span = steps[-1] - steps[0]
    area = np.trapezoid(scores, steps) / span if span else scores[0]
    below = [i for i, score in enumerate(scores) if score < 0.95]
    kept = steps[below[-1] + 1 :] if below else steps
    return {"area": float(area)} | ({"steps_to_kept_95": kept[0]} if kept else {})


# ----------------------------------------------------------------------------- networks and buffer


class QNetwork(nn.Module):
    """Action values for K tasks, from one trunk and a head for each, then their mean for the target.

    (B, D) float -> (B, K + 1, A) float, or (B, 1, A) if K = 1.
    """

    def __init__(self, obs_dim: int, n_actions: int, n_tasks: int = 1) -> None:
        super().__init__()
        self.layer1, self.layer2 = nn.Linear(obs_dim, 120), nn.Linear(120, 84)
        self.heads, self.n_tasks = nn.Linear(84, n_tasks * n_actions), n_tasks

    def hidden(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        h1 = F.relu(self.layer1(obs))
        return h1, F.relu(self.layer2(h1))

    def forward(self, obs: Tensor) -> Tensor:
        q = self.heads(self.hidden(obs)[1]).unflatten(1, (self.n_tasks, -1))
        return q if self.n_tasks == 1 else torch.cat([q, q.mean(dim=1, keepdim=True)], dim=1)

    def for_target(self) -> "QNetwork":
        """A copy with one head, the mean of all."""
        network = copy.deepcopy(self)
        for parameter in network.heads.parameters():
            parameter.data = parameter.data.unflatten(0, (self.n_tasks, -1)).mean(dim=0)
        network.n_tasks = 1
        return network


class ProgressiveQNetwork(QNetwork):
    """A new column beside that of the sources, which stays as it is: (B, D) float -> (B, 1, A) float.

    h_i = f(W_i h_(i-1) + U_i h'_(i-1)), eq. (1) of Rusu et al., D4; h' are the hidden layers of the sources' column.
    """

    def __init__(self, column: QNetwork, obs_dim: int, n_actions: int) -> None:
        super().__init__(obs_dim, n_actions)
        self.lateral2, self.lateral3 = nn.Linear(120, 84, bias=False), nn.Linear(84, n_actions, bias=False)
        self.column = copy.deepcopy(column).requires_grad_(False)

    def forward(self, obs: Tensor) -> Tensor:
        column1, column2 = self.column.hidden(obs)
        h2 = F.relu(self.layer2(F.relu(self.layer1(obs))) + self.lateral2(column1))
        return (self.heads(h2) + self.lateral3(column2))[:, None]


class UniversalQNetwork(QNetwork):
    """Q(s, a, g) = phi(s) . psi_a(g), the two streams of Schaul et al.: the head of a task is a function of its goal.

    goals (G + 1, F) float are the features of the goals, the target's last. (B, D) float -> (B, G + 1, A) float.
    """

    def __init__(self, obs_dim: int, n_actions: int, goals: Tensor) -> None:
        super().__init__(obs_dim, n_actions)
        self.register_buffer("goals", goals)
        self.heads = nn.Linear(goals.shape[1], n_actions * 85)  # for each action 84 weights and a bias

    def forward(self, obs: Tensor) -> Tensor:
        heads = self.heads(self.goals).unflatten(1, (-1, 85))
        return torch.einsum("bn,gan->bga", self.hidden(obs)[1], heads[..., :84]) + heads[..., 84]

    def for_target(self) -> "UniversalQNetwork":
        network = copy.deepcopy(self)
        network.goals = network.goals[-1:]
        return network


class ReptileQNetwork(nn.ModuleList):
    """Networks phi of K sources, and last theta, from which each starts again: (B, D) float -> (B, K + 1, A) float."""

    def forward(self, obs: Tensor) -> Tensor:
        return torch.cat([network(obs) for network in self], dim=1)

    def start(self, task: int) -> None:
        """phi = theta."""
        self[task].load_state_dict(self[-1].state_dict())

    def finish(self, task: int, step_size: float) -> None:
        """theta moves towards phi."""
        theta, phi = ([p.data for p in self[i].parameters()] for i in (-1, task))
        torch._foreach_copy_(theta, reptile_step(theta, phi, step_size))

    def for_target(self) -> QNetwork:
        return copy.deepcopy(self[-1])


class ReplayBuffer:
    """The last `capacity` transitions (s, a, r, s', terminated), drawn uniformly with replacement."""

    def __init__(self, capacity: int, obs_dim: int) -> None:
        self.obs, self.next_obs = torch.zeros(capacity, obs_dim), torch.zeros(capacity, obs_dim)
        self.action = torch.zeros(capacity, dtype=torch.int64)
        self.reward, self.terminated = torch.zeros(capacity), torch.zeros(capacity)
        self.columns = (self.obs, self.action, self.reward, self.next_obs, self.terminated)
        self.views = [column.numpy() for column in self.columns]  # writing through numpy is faster
        self.capacity, self.added = capacity, 0

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(self, *transitions: np.ndarray) -> None:
        """Add N transitions, given as columns (N, D), (N,), (N,), (N, D), (N,)."""
        rows = np.arange(self.added, self.added + len(transitions[0])) % self.capacity
        for view, values in zip(self.views, transitions, strict=True):
            view[rows] = values
        self.added += len(rows)

    def sample(self, batch_size: int, rng: np.random.Generator) -> list[Tensor]:
        rows = torch.from_numpy(rng.integers(len(self), size=batch_size))
        return [column.index_select(0, rows) for column in self.columns]


# ----------------------------------------------------------------------------- source tasks


class Sources:
    """The source tasks, drawn from the seed, none of them the target.

    near draws goals from the seventh of the cells that is nearest to the target's goal, far from the farther half, maps
    other maps with as many cells and never one for testing. unrelated is near with the entries of observations in
    another order: the same tasks, but what is learned of them says nothing about the target; a control.
    """

    def __init__(self, args: Args) -> None:
        rng, self.args, self.grid = np.random.default_rng(args.seed), args, args.make_env().unwrapped
        self.order = np.arange(args.make_env().observation_space.shape[0])
        if args.source == "unrelated":
            self.order = rng.permutation(self.order)
        self.pursued, self.goals = self.draw_goals(rng)
        self.tasks = self.draw_maps(rng) if args.source == "maps" else [self.with_goal(cell) for cell in self.pursued]
        self.envs = [self.make_env(task) for task in self.tasks]
        self.bounds = [(gridworld.random_return(env), gridworld.optimal_return(env)) for env in self.envs]

    def draw_goals(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The cells of the sources' goals (K,), and 75 % of all possible ones (G,), those first, which uvfa learns."""
        anywhere = self.args.make_env(flatten=False, random_goal=True).unwrapped
        cells = np.unique(anywhere.goal_of[anywhere.start_states])  # those that a start leads to
        cells = cells[np.isin(self.grid.symbol[cells], [".", " "])]
        costs = {"slip": 0.0, "step_reward": -1.0, "goal_reward": -1.0, "trap_reward": -1e6}  # the return counts steps
        steps = -gridworld.solve(self.args.make_env(flatten=False, **costs)).max(axis=1)
        cells = cells[np.argsort(steps[cells], kind="stable")]  # the nearest to G first
        near = cells[: max(self.args.num_sources, len(cells) // 7)]
        pool = cells[len(cells) // 2 :] if self.args.source == "far" else near
        if self.args.num_sources > len(pool):
            raise ValueError(f"--num-sources must be at most {len(pool)} on this map, got {self.args.num_sources}")
        pursued = rng.choice(pool, self.args.num_sources, replace=False)
        others = rng.permutation(np.setdiff1d(cells, pursued))[: max(0, len(cells) * 3 // 4 - len(pursued))]
        return pursued, np.append(pursued, others)

    def with_goal(self, cell: int) -> dict[str, Any]:
        """The flags that make the same map with its goal in another cell."""
        rows = np.where(self.grid.map == "G", ".", self.grid.map)
        rows[tuple(self.grid.cells[cell])] = "G"
        return {"layout": "\n".join(map("".join, rows)) + "\n", "size": None}

    def draw_maps(self, rng: np.random.Generator) -> list[dict[str, Any]]:
        args, tasks = self.args, {}
        if args.layout not in ("maze", "random"):
            raise ValueError(f"--source maps needs --layout maze or random, got {args.layout}")
        for seed in rng.integers(gridworld.TEST_SEEDS, size=20_000).tolist():
            text = "".join(gridworld.layout_rows(args.layout, args.grid_size, seed))
            if len(text.replace("#", "")) == len(self.grid.cells) and text != "".join(self.grid.map.ravel()):
                tasks[text] = {"layout_seed": seed}
            if len(tasks) == args.num_sources:
                return list(tasks.values())
        raise ValueError(f"--num-sources must be at most {len(tasks)} for these maps, got {args.num_sources}")

    def make_env(self, task: dict[str, Any]) -> gym.Env:
        env = self.args.make_env(**task)
        return gym.wrappers.TransformObservation(env, lambda obs: obs[self.order], env.observation_space)

    def make_vec(self, num_envs: int) -> gym.vector.VectorEnv:
        """Environment i plays source i, and so on round."""
        makers = [lambda i=i: self.make_env(self.tasks[i % len(self.tasks)]) for i in range(num_envs)]
        return gym.vector.SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)

    def observe_all(self, env: gym.Env) -> np.ndarray:
        return gridworld.observe_all(env)[:, self.order]

    def score(self, network: nn.Module) -> float:
        """Mean over the sources of the score of their greedy policies, exact."""
        scores = []
        for i, (env, (worst, best)) in enumerate(zip(self.envs, self.bounds, strict=True)):
            policy = np.eye(4)[q_values(network, self.observe_all(env))[:, i].argmax(axis=1)]
            value = (policy * gridworld.solve(env, policy=policy)).sum(axis=1) @ env.unwrapped.initial_state_distrib
            scores.append((value - worst) / max(best - worst, 1e-9))  # equal where no time is left to arrive
        return float(np.mean(scores))

    def goal_features(self, cells: np.ndarray) -> Tensor:
        """exp(-d^2) and exp(-d^2 / 4), d in cells from G goals to each cell: neighbours are alike; (G, 2 cells)."""
        square = np.square(self.grid.cells[cells][:, None] - self.grid.cells).sum(axis=2)
        return torch.tensor(np.concatenate([np.exp(-square), np.exp(-square / 4)], axis=1), dtype=torch.float32)

    def goals_reached(self, network: UniversalQNetwork) -> tuple[float, float]:
        """The shares of the goals learned and of all others that the greedy policy reaches from the start, exact."""
        rewards = {"step_reward": 0.0, "goal_reward": 1.0, "trap_reward": 0.0}  # the return is the chance to arrive
        env = self.args.make_env(flatten=False, random_goal=True, random_start=False, **rewards)
        network, states, start = copy.deepcopy(network), env.unwrapped.goal_of, env.unwrapped.start_states
        network.goals = self.goal_features(np.unique(states)).to(network.goals.device)
        q = q_values(network, self.observe_all(self.args.make_env()))  # (states, goals, A)
        policy = np.eye(4)[q.argmax(axis=2).T.ravel()]
        reached = (policy * gridworld.solve(env, policy=policy)).sum(axis=1)[start]
        learned = np.isin(states[start], self.goals)
        return float(reached[learned].mean()), float(reached[~learned].mean())


# ----------------------------------------------------------------------------- shared by every script
# Copied, not imported, so that each file stands alone; tests/test_shared.py keeps the copies identical.


def seed_everything(seed: int) -> np.random.Generator:
    """Seed every generator, use one thread, and return the generator to draw from."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (for libraries that draw from the global generator)
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # networks this small lose more to hand-offs between threads than they gain
    return np.random.default_rng(seed)


class Run:
    """The log of one training run, and its yardstick: the greedy policy on the task that the flags name.

    The folder is LOG_DIR/ENV__EXP_NAME__SEED__UNIXTIME. Steps are environment steps over all environments. Ctrl-C and
    SIGTERM end the run with its log closed; a log without `run/completed` is partial.
    """

    def __init__(self, args) -> None:
        self.args, self.step, self.evaluations, self.next_eval = args, 0, {}, args.eval_every or args.total_timesteps
        self.env, self.eval_envs = args.make_env(), args.make_vec(args.eval_episodes)
        exact = gridworld.optimal_return, gridworld.random_return
        self.optimal, self.random = (f(self.env) if hasattr(self.env.unwrapped, "P") else np.nan for f in exact)
        stamp, name = int(time.time()), re.sub(r"[^\w.-]", "-", args.env_id)
        while True:
            try:
                self.folder = args.log_dir / f"{name}__{args.exp_name}__{args.seed}__{stamp}"
                self.folder.mkdir(parents=True)
                break
            except FileExistsError:  # a run of the same second
                stamp += 1
        self.on_error, threading.excepthook = threading.excepthook, lambda _: None  # the writer raises it once more
        self.writer = SummaryWriter(str(self.folder), flush_secs=1)  # a kill loses a second at most
        about = {"args": dataclasses.asdict(args), "optimal_return": self.optimal, "random_return": self.random}
        about["versions"] = {m.__name__: m.__version__ for m in (gym, np, torch)} | {"python": sys.version.split()[0]}
        self.writer.add_text("run/about", f"```json\n{json.dumps(about, default=str, indent=1)}\n```")

    def __enter__(self) -> "Run":
        self.start, self.returns, self.lengths = time.perf_counter(), 0.0, 0.0
        self.bar = tqdm(total=self.args.total_timesteps, desc=self.args.exp_name, unit="step", unit_scale=True)
        self.bar.mininterval = 0.1 if sys.stderr.isatty() else 10.0  # a file of progress lines stays short
        if threading.current_thread() is threading.main_thread():
            self.on_sigterm = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
        return self

    def __exit__(self, kind, value, traceback) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.on_sigterm)
        self.bar.close()
        threading.excepthook = self.on_error
        try:
            self.writer.close()
        except OSError as error:  # a full disk, a folder that is gone
            raise SystemExit(f"cannot write the log in {self.folder}: {error}") from None
        if kind is KeyboardInterrupt:
            print(f"interrupted after {self.step} steps; partial log in {self.folder}", file=sys.stderr)
            raise SystemExit(130) from None

    def record(self, step: int, reward: np.ndarray, ended: np.ndarray) -> None:
        """Count the step of the training environments: reward (N,), ended (N,) bool; log the episodes that ended."""
        self.bar.update(step - self.step)
        self.step, self.returns, self.lengths = step, self.returns + reward, self.lengths + np.ones(len(reward))
        if not np.isfinite(reward).all():
            raise SystemExit(f"the environment's rewards are not finite at step {step}: {reward}; log in {self.folder}")
        if ended.any():
            returns, lengths = self.returns[ended].mean(), self.lengths[ended].mean()
            self.log({"charts/episodic_return": returns, "charts/episodic_length": lengths})
            self.returns[ended] = self.lengths[ended] = 0

    def play(self, policy) -> dict[str, float]:
        """Means over `eval_episodes` episodes, played side by side: return, length, success, score.

        `policy(obs, start)` maps obs (B, D) float32 to actions (B,); start (B,) bool marks episodes that begin. Episode
        i is seeded 10 000 + i each time, in every script. score = (return - random) / (optimal - random), where known.
        """
        n = self.args.eval_episodes
        total, length, success = np.zeros(n), np.zeros(n), np.full(n, np.nan)
        start, running = np.ones(n, bool), np.ones(n, bool)
        obs, _ = self.eval_envs.reset(seed=10_000)
        while running.any():
            obs, reward, terminated, truncated, info = self.eval_envs.step(policy(obs, start))
            start, total, length = terminated | truncated, total + reward * running, length + running
            if "is_success" in info.get("final_info", {}):
                success[start & running] = info["final_info"]["is_success"][start & running]
            running &= ~start
        score = (total.mean() - self.random) / span if (span := self.optimal - self.random) > 0 else np.nan
        means = {"return": total.mean(), "length": length.mean(), "success": success.mean(), "score": score}
        return {name: float(mean) for name, mean in means.items() if np.isfinite(mean)}

    def evaluate(self, policy, force: bool = False) -> None:
        """When an evaluation is due, play `policy` and log eval/* and what the run has cost so far."""
        if self.step in self.evaluations or (self.step < self.next_eval and not force):
            return
        result, seconds = self.play(policy), time.perf_counter() - self.start
        every = self.args.eval_every or self.args.total_timesteps
        self.evaluations[self.step], self.next_eval = result, (self.step // every + 1) * every
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
        scalars = {f"eval/{name}": mean for name, mean in result.items()} | {"charts/SPS": self.step / seconds}
        self.log(scalars | {"system/wall_time_s": seconds, "system/peak_memory_mb": memory})
        self.bar.set_postfix_str(", ".join(f"{name} {mean:.3f}" for name, mean in result.items()), refresh=False)

    def log(self, scalars: dict[str, float]) -> None:
        for tag, value in scalars.items():
            self.writer.add_scalar(tag, value, self.step)
            if tag.startswith("losses/") and not np.isfinite(value):
                raise SystemExit(f"{tag} is {value} at step {self.step}: lower --learning-rate; log in {self.folder}")

    def picture(self, tag: str, image: np.ndarray) -> None:
        """Put image (H, W, 3) uint8 into the log and, as TAG.png, into the run folder."""
        self.writer.add_image(f"pictures/{tag}", image, self.step, dataformats="HWC")
        Image.fromarray(image).save(self.folder / f"{tag}.png")

    def finish(self, policy, weights: dict[str, Tensor], note: str = "") -> None:
        """Evaluate for the last time, save what was asked for, mark the log as complete and say how it went."""
        self.evaluate(policy, force=True)
        if self.args.capture_video:
            gif = gridworld.film(self.args.make_env(render_mode="rgb_array"), policy)
            (self.folder / "video.gif").write_bytes(gif)
            video = Summary.Value(tag="video", image=Summary.Image(encoded_image_string=gif))
            self.writer.file_writer.add_summary(Summary(value=[video]), self.step)
        if self.args.save_model:
            torch.save(weights, self.folder / "model.tmp")
            (self.folder / "model.tmp").replace(self.folder / "model.pt")  # whole or absent
        self.log({"run/completed": self.step})
        self.bar.close()
        result, seconds = self.evaluations[self.step], time.perf_counter() - self.start
        best = f" (optimal {self.optimal:.2f}), score {result['score']:.3f}" if "score" in result else ""
        ran = f"{self.args.exp_name} on {self.args.env_id}: {self.step} steps in {seconds:.1f} s"
        print(f"{ran}, greedy return {result['return']:.2f}{best}{note}; log in {self.folder}")


# ----------------------------------------------------------------------------- training


@torch.no_grad()
def q_values(network: nn.Module, obs: np.ndarray) -> np.ndarray:
    """(B, D) -> (B, tasks, A), the target being the last task."""
    return network(torch.as_tensor(obs, device=next(network.parameters()).device)).cpu().numpy()


def greedy(network: nn.Module):
    """The greedy policy on the target."""
    return lambda obs, start=None: q_values(network, obs)[:, -1].argmax(axis=1)


def learn(run: Run, network: nn.Module, sources: Sources | None, rng: np.random.Generator) -> None:
    """Train `network` on the sources or, without any, on the target: dqn.py, but a head and a buffer for each task."""
    args, first, updates = run.args, run.step, 0
    last, start_e, learning_rate = args.source_steps(), args.start_e, args.learning_rate
    if not sources:
        last = args.total_timesteps
        start_e = start_e if args.target_start_e is None else args.target_start_e
        learning_rate = learning_rate if args.target_learning_rate is None else args.target_learning_rate
    envs = (sources or args).make_vec(args.num_envs)
    obs_dim, n_actions = envs.single_observation_space.shape[0], int(envs.single_action_space.n)
    buffers = [ReplayBuffer(args.buffer_size, obs_dim) for _ in range(args.num_sources if sources else 1)]
    plays = np.arange(args.num_envs) % len(buffers)  # the task of each environment
    target = copy.deepcopy(network).requires_grad_(False)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=learning_rate, fused=True)  # nothing is kept of the sources' optimizer
    universal, reptile = (sources is not None and args.method == name for name in ("uvfa", "reptile"))
    if universal:
        goal_obs = torch.tensor(sources.observe_all(args.make_env())[sources.goals], device=args.device)  # (G, D)
        rewards = sources.grid.goal_reward, sources.grid.step_reward

    obs, _ = envs.reset(seed=args.seed)  # seeded once: a seed on every reset would replay one episode
    if run.step:
        run.returns[:], run.lengths[:] = 0.0, 0.0  # the last episodes on the sources were not finished
    for step in range(first + args.num_envs, last + args.num_envs, args.num_envs):
        # Act epsilon-greedily, one step in each environment.
        epsilon = linear_schedule(start_e, args.end_e, args.exploration_fraction * (last - first), step - first)
        random_action = rng.integers(n_actions, size=args.num_envs)
        best_action = q_values(network, obs)[np.arange(args.num_envs), plays].argmax(axis=1)
        action = np.where(rng.random(args.num_envs) < epsilon, random_action, best_action)
        next_obs, reward, terminated, truncated, info = envs.step(action)
        ended, last_obs = terminated | truncated, next_obs
        if ended.any():  # next_obs already is the first of the next episode there
            last_obs = next_obs.copy()
            last_obs[ended] = np.stack(info["final_obs"][ended])
        for task, buffer in enumerate(buffers):
            buffer.add(*(column[plays == task] for column in (obs, action, reward, last_obs, terminated)))
        obs = next_obs
        run.record(step, reward, ended)

        # Learn from replayed transitions, eq. (2), of one task after the other.
        due = times_due(step, args.train_frequency, args.num_envs)
        for _ in range(due if step - first > args.learning_starts else 0):
            task = updates // (args.inner_updates if reptile else 1) % len(buffers)
            if reptile and updates % args.inner_updates == 0:
                network.start(task)  # D6: `target` still holds what it was adapted to
            b_obs, b_action, b_reward, b_next_obs, b_terminated = (
                column.to(args.device) for column in buffers[task].sample(args.batch_size, rng)
            )
            q, next_q = network(b_obs), target(b_next_obs)  # (B, K + 1, A)
            if universal:  # D5: B x G transitions
                arrived = b_next_obs @ goal_obs.T == 1  # observations are one-hot
                outcome = for_all_goals(b_reward, b_terminated, arrived, task, rewards)
                b_reward, b_terminated = (column.flatten() for column in outcome)
                b_action = b_action.repeat_interleave(len(goal_obs))
                q, next_q = q[:, :-1].flatten(0, 1), next_q[:, :-1].flatten(0, 1)
            else:
                q, next_q = q[:, task], next_q[:, task]
            y = td_target(b_reward, b_terminated, next_q, args.gamma)
            loss = td_loss(q, b_action, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            updates += 1
            if reptile and updates % args.inner_updates == 0:
                network.finish(task, args.meta_step_size)
        if updates and times_due(step, 500, args.num_envs):
            run.log({"losses/td_loss": loss.item(), "losses/mean_target": y.mean().item()})
        if times_due(step, args.target_network_frequency, args.num_envs):
            torch._foreach_copy_(list(target.parameters()), list(network.parameters()))
        run.evaluate(greedy(network))
        if sources and step in run.evaluations:
            run.log({"eval/source_score": sources.score(network)})


def train(args: Args) -> nn.Module:
    """Train one agent on the sources, then on the target, log to TensorBoard, return its network for the target."""
    rng, env = seed_everything(args.seed), args.make_env()
    obs_dim, n_actions = env.observation_space.shape[0], int(env.action_space.n)
    sources = None if args.method == "scratch" else Sources(args)
    if args.method == "uvfa":
        goals = sources.goal_features(np.append(sources.goals, sources.grid.goal_cell))
        network = UniversalQNetwork(obs_dim, n_actions, goals)
    elif args.method == "reptile":
        theta = QNetwork(obs_dim, n_actions)
        network = ReptileQNetwork(copy.deepcopy(theta) for _ in range(args.num_sources + 1))
    else:
        network = QNetwork(obs_dim, n_actions, args.num_sources if sources else 1)
    network.to(args.device)

    with Run(args) as run:
        untrained = run.play(greedy(network))["score"]
        if sources:
            learn(run, network, sources, rng)
            run.log({"eval/source_score": sources.score(network)})
            if args.method == "uvfa":
                learned, held_out = sources.goals_reached(network)
                run.log({"eval/goal_success": learned, "eval/heldout_success": held_out})
            if args.method == "progressive":
                network = ProgressiveQNetwork(network, obs_dim, n_actions).to(args.device)
            else:
                network = network.for_target()
            if args.method == "frozen":
                network.requires_grad_(False).heads.requires_grad_(True)

        # The target, from its first step.
        first, zero_shot = run.step, run.play(greedy(network))["score"]
        run.log({"eval/zero_shot": zero_shot, "transfer/jump_start": zero_shot - untrained})
        before = q_values(network, gridworld.observe_all(env))[:, -1]
        learn(run, network, None, rng)
        run.evaluate(greedy(network), force=True)
        later = {step - first: means["score"] for step, means in run.evaluations.items() if step > first}
        measures = curve_measures([0, *later], [zero_shot, *later.values()])
        measures |= {"source_steps": first, "target_steps": run.step - first}
        run.log({f"transfer/{name}": value for name, value in measures.items()})
        after = q_values(network, gridworld.observe_all(env))[:, -1]
        maps = {"zero-shot: max Q(s, a) and the greedy action": before, "after training on the target": after}
        panels = {title: (q.max(axis=1), q.argmax(axis=1), None) for title, q in maps.items()}
        run.picture("policy", gridworld.draw(env, panels))
        kept = measures.get("steps_to_kept_95", "no")
        note = f"; zero-shot {zero_shot:.3f}, 0.95 kept after {kept} of {run.step - first} steps on the target"
        run.finish(greedy(network), network.state_dict(), note)
    return network


if __name__ == "__main__":
    train(tyro.cli(Args))
