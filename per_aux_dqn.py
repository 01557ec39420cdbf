"""DQN that learns more from a transition: prioritized replay, auxiliary predictions on Q's trunk, augmentation.

Papers: Schaul et al. (2016), Prioritized Experience Replay, arXiv:1511.05952v4, proportional variant: sections and
        equations cited here. Jaderberg et al. (2017), UNREAL, arXiv:1611.05397: auxiliary tasks that share the agent's
        features. Laskin et al. (2020), RAD, arXiv:2004.14990: augmentation of what the agent sees. The rest is dqn.py.
Run:    python per_aux_dqn.py --grid-size 8
Differences from the papers:
    D1-D3 are those of dqn.py: Adam and the Huber loss, truncation bootstraps, several environments side by side.
    D4. The auxiliary tasks are the reward and the next observation of the taken action, learned from the same batch.
    D5. Augmentation is drawn once for a transition, alike for s and s'. On a one-hot grid `scaling` is an invariance:
        the cell is still the entry that is not 0; `noise` and `dropout` are regularisers, as all three on coordinates.
    D6. Half the step size of dqn.py, since large errors are replayed more often; the paper takes a quarter (section 4).
"""

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
from typing import Literal

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
import tyro
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

import gridworld


@dataclasses.dataclass(frozen=True)
class Args(gridworld.EnvArgs):
    """Train a deep Q-network with prioritized replay, auxiliary predictions and augmentation."""

    exp_name: str = "per_aux_dqn"
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

    num_envs: int = 4
    """Environments stepped side by side."""
    learning_rate: float = 5e-4
    """Step size of Adam."""
    anneal_lr: bool = True
    """Let the step size fall to 0 over the run, linearly."""
    gamma: float = 0.95
    """Discount per step."""
    buffer_size: int = 50_000
    """Transitions kept for replay; the oldest are overwritten."""
    batch_size: int = 64
    """Transitions in an update."""
    learning_starts: int = 500
    """Environment steps before the first update."""
    train_frequency: int = 4
    """Environment steps per update."""
    target_network_frequency: int = 25
    """Environment steps between copies of the network into the target network."""
    start_e: float = 1.0
    """Chance of a random action at the first step."""
    end_e: float = 0.05
    """Chance of a random action once exploration has come down."""
    exploration_fraction: float = 0.5
    """Share of the run over which that chance falls from start_e to end_e, linearly."""

    prioritized: bool = True
    """Replay transitions in proportion to their last TD error; without, uniformly."""
    alpha: float = 0.6
    """Exponent of the priorities: 0 is uniform, 1 fully proportional."""
    priority_epsilon: float = 0.05
    """Added to the size of each TD error, so that no transition is left behind."""
    beta: float = 0.4
    """Exponent of the importance weights at the first step; it rises to 1 at the last, linearly."""
    auxiliary: bool = True
    """Also learn to predict the reward and the next observation, with heads on the trunk of Q."""
    reward_weight: float = 0.002
    """Weight of the loss of the reward's prediction."""
    next_obs_weight: float = 0.002
    """Weight of the loss of the next observation's prediction."""
    augmentation: Literal["none", "noise", "dropout", "scaling"] = "scaling"
    """What is done to replayed observations: Gaussian noise is added, features are set to 0, the scale is changed."""
    strength: float = 0.1
    """Of it: standard deviation of the noise, chance that a feature is dropped, scales from 1 - this to 1 + this."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_run()
        self.check(num_envs=(1, 4_096), learning_rate=(0, 1), gamma=(0, 1), buffer_size=(1, 1e8), batch_size=(1, 1e6))
        self.check(learning_starts=(0, 1e12), train_frequency=(1, 1e9), target_network_frequency=(1, 1e12))
        self.check(start_e=(0, 1), end_e=(0, 1), exploration_fraction=(0, 1), alpha=(0, 10), priority_epsilon=(0, 1e6))
        self.check(beta=(0, 1), reward_weight=(0, 1e6), next_obs_weight=(0, 1e6), strength=(0, 1))


# ----------------------------------------------------------------------------- the maths
# Pure functions. B batch, A actions.


def td_target(reward: Tensor, terminated: Tensor, next_q: Tensor, gamma: float) -> Tensor:
    """y = r + gamma (1 - terminated) max_a' Q'(s', a'), the target below eq. (2), with D2.

    reward (B,) float; terminated (B,) float, 0 where the time limit cut the episode; next_q (B, A) float, the target
    network at s'. Returns (B,) float, detached: no gradient reaches the target network.
    """
    return (reward + gamma * (1.0 - terminated) * next_q.max(dim=1).values).detach()


def td_error(q: Tensor, action: Tensor, target: Tensor) -> Tensor:
    """delta = Q(s, a) - y: (B,). q (B, A) float; action (B,) int64; target (B,) float."""
    return q.gather(1, action[:, None]).squeeze(1) - target


def td_loss(error: Tensor, weight: Tensor) -> Tensor:
    """Mean over the batch of w Huber(delta), eq. (2) of dqn.py with D1 and importance weights: a scalar. (B,), (B,)."""
    return (weight * F.smooth_l1_loss(error, torch.zeros_like(error), reduction="none")).mean()


def priority(error: np.ndarray, alpha: float, epsilon: float) -> np.ndarray:
    """p^alpha with p = |delta| + epsilon, section 3.3: so that P(i) = p_i^alpha / sum_k p_k^alpha, eq. (1). (B,)."""
    return (np.abs(error) + epsilon) ** alpha


def importance_weight(probability: np.ndarray, size: int, beta: float) -> np.ndarray:
    """w_i = (N P(i))^-beta / max_j w_j, section 3.4, the maximum over the batch; N transitions are stored. (B,)."""
    weight = (size * probability) ** -beta
    return weight / weight.max()


def reward_loss(predicted: Tensor, action: Tensor, reward: Tensor) -> Tensor:
    """Mean over the batch of (r_hat(s, a) - r)^2 / 2: a scalar. predicted (B, A), action (B,) int64, reward (B,)."""
    return 0.5 * F.mse_loss(predicted.gather(1, action[:, None]).squeeze(1), reward)


def next_obs_loss(predicted: Tensor, action: Tensor, next_obs: Tensor, terminated: Tensor) -> Tensor:
    """Mean over the batch of (1 - terminated) |s'_hat(s, a) - s'|^2 / 2: a scalar; what follows an end is not learned.

    predicted (B, A, D), action (B,) int64, next_obs (B, D), terminated (B,).
    """
    error = predicted[torch.arange(len(action), device=action.device), action] - next_obs
    return (0.5 * error.square().sum(dim=1) * (1.0 - terminated)).mean()


def linear_schedule(start: float, end: float, duration: float, step: int) -> float:
    """Value at `step` of the line from `start` at step 0 to `end` at step `duration`, then `end`."""
    return end if step >= duration else start + (end - start) * step / duration


def times_due(step: int, every: int, stride: int) -> int:
    """How many multiples of `every` lie in (step - stride, step]: what is due after `stride` more steps."""
    return step // every - (step - stride) // every


# ----------------------------------------------------------------------------- network and buffer


class QNetwork(nn.Module):
    """Action values (B, A), rewards (B, A) and next observations (B, A, D) of each action, from one trunk."""

    def __init__(self, obs_dim: int, n_actions: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(obs_dim, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU())
        self.q_head, self.reward_head = nn.Linear(84, n_actions), nn.Linear(84, n_actions)
        self.next_obs_head = nn.Sequential(nn.Linear(84, n_actions * obs_dim), nn.Unflatten(1, (n_actions, obs_dim)))

    def forward(self, obs: Tensor) -> Tensor:
        """(B, D) -> Q (B, A)."""
        return self.q_head(self.trunk(obs))


class SumTree:
    """Priorities (N,) as leaves of a binary tree of sums, so that setting or drawing B of them takes log N steps."""

    def __init__(self, capacity: int) -> None:
        self.leaves = 1 << (capacity - 1).bit_length()  # node 1 is the root, n has children 2 n and 2 n + 1
        self.sums = np.zeros(2 * self.leaves)

    def set(self, rows: np.ndarray, priorities: np.ndarray | float) -> None:
        node = rows + self.leaves
        self.sums[node] = priorities
        while node[0] > 1:
            node = node // 2
            self.sums[node] = self.sums[2 * node] + self.sums[2 * node + 1]

    def find(self, mass: np.ndarray) -> np.ndarray:
        """The rows i with p_0 + ... + p_(i-1) <= mass < p_0 + ... + p_i: (B,) -> (B,) int64."""
        node = np.ones(len(mass), np.int64)
        while node[0] < self.leaves:
            left = self.sums[2 * node]
            to_right = mass >= left
            mass, node = mass - left * to_right, 2 * node + to_right
        return node - self.leaves


class ReplayBuffer:
    """The last `capacity` transitions (s, a, r, s', terminated), drawn uniformly or by priority, with replacement."""

    def __init__(self, capacity: int, obs_dim: int, prioritized: bool) -> None:
        self.obs, self.next_obs = torch.zeros(capacity, obs_dim), torch.zeros(capacity, obs_dim)
        self.action = torch.zeros(capacity, dtype=torch.int64)
        self.reward, self.terminated = torch.zeros(capacity), torch.zeros(capacity)
        self.columns = (self.obs, self.action, self.reward, self.next_obs, self.terminated)
        self.views = [column.numpy() for column in self.columns]  # writing through numpy is faster
        self.capacity, self.added = capacity, 0
        self.tree, self.highest = SumTree(capacity) if prioritized else None, 1.0

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(self, *transitions: np.ndarray) -> None:
        """Add N transitions, given as columns (N, D), (N,), (N,), (N, D), (N,)."""
        rows = np.arange(self.added, self.added + len(transitions[0])) % self.capacity
        for view, values in zip(self.views, transitions, strict=True):
            view[rows] = values
        self.added += len(rows)
        if self.tree:
            self.tree.set(rows, self.highest)  # so that each is replayed at least once, algorithm 1

    def sample(self, batch_size: int, beta: float, rng: np.random.Generator) -> list:
        """Rows (B,) as an array, the columns of these transitions, and their importance weights (B,)."""
        if self.tree:  # one from each of B equal parts of the mass, appendix B.2.1
            total = self.tree.sums[1]
            rows = self.tree.find((np.arange(batch_size) + rng.random(batch_size)) / batch_size * total)
            rows = np.minimum(rows, len(self) - 1)  # rounding may lead past the last
            weight = importance_weight(self.tree.sums[rows + self.tree.leaves] / total, len(self), beta)
        else:
            rows, weight = rng.integers(len(self), size=batch_size), np.ones(batch_size)
        index = torch.from_numpy(rows)
        columns = [column.index_select(0, index) for column in self.columns]
        return [rows, *columns, torch.from_numpy(np.float32(weight))]

    def update(self, rows: np.ndarray, priorities: np.ndarray) -> None:
        self.tree.set(rows, priorities)
        self.highest = max(self.highest, priorities.max())

    def priorities(self) -> np.ndarray:
        """p^alpha of what is stored: (N,)."""
        return self.tree.sums[self.tree.leaves :][: len(self)]


def draw_augmentation(kind: str, strength: float, shape: tuple[int, int], rng: np.random.Generator) -> tuple:
    """Scale and shift, D5, of an augmentation obs * scale + shift of B observations: (B, D), (B, 1) or () each."""
    scale, shift = 1.0, 0.0
    if kind == "noise":
        shift = strength * rng.standard_normal(shape)
    elif kind == "dropout":
        scale = rng.random(shape) >= strength
    elif kind == "scaling":
        scale = rng.uniform(1 - strength, 1 + strength, size=(shape[0], 1))
    return torch.tensor(scale, dtype=torch.float32), torch.tensor(shift, dtype=torch.float32)


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


def train(args: Args) -> QNetwork:
    """Train one agent, log to TensorBoard, return its network."""
    rng = seed_everything(args.seed)
    envs = args.make_vec(args.num_envs)
    obs_dim, n_actions = envs.single_observation_space.shape[0], int(envs.single_action_space.n)
    network, target = (QNetwork(obs_dim, n_actions).to(args.device) for _ in range(2))
    target.requires_grad_(False).load_state_dict(network.state_dict())
    optimizer = torch.optim.Adam(network.parameters(), lr=args.learning_rate, fused=True)
    buffer = ReplayBuffer(args.buffer_size, obs_dim, args.prioritized)

    @torch.no_grad()
    def greedy(obs: np.ndarray, start: np.ndarray | None = None) -> np.ndarray:
        return network(torch.as_tensor(obs, device=args.device)).argmax(dim=1).cpu().numpy()

    with Run(args) as run:
        obs, _ = envs.reset(seed=args.seed)  # seeded once: a seed on every reset would replay one episode
        for step in range(args.num_envs, args.total_timesteps + args.num_envs, args.num_envs):
            # Act epsilon-greedily, one step in each environment.
            epsilon = linear_schedule(args.start_e, args.end_e, args.exploration_fraction * args.total_timesteps, step)
            random_action = rng.integers(n_actions, size=args.num_envs)
            action = np.where(rng.random(args.num_envs) < epsilon, random_action, greedy(obs))
            next_obs, reward, terminated, truncated, info = envs.step(action)
            ended, last_obs = terminated | truncated, next_obs
            if ended.any():  # next_obs already is the first of the next episode there
                last_obs = next_obs.copy()
                last_obs[ended] = np.stack(info["final_obs"][ended])
            buffer.add(obs, action, reward, last_obs, terminated)
            obs = next_obs
            run.record(step, reward, ended)

            # Learn from replayed transitions, algorithm 1.
            if args.anneal_lr:
                optimizer.param_groups[0]["lr"] = linear_schedule(args.learning_rate, 0, args.total_timesteps, step)
            for _ in range(times_due(step, args.train_frequency, args.num_envs) if step > args.learning_starts else 0):
                beta = linear_schedule(args.beta, 1.0, args.total_timesteps, step)
                rows, *batch = buffer.sample(args.batch_size, beta, rng)
                b_obs, b_action, b_reward, b_next_obs, b_terminated, b_weight = (x.to(args.device) for x in batch)
                if args.augmentation != "none":
                    drawn = draw_augmentation(args.augmentation, args.strength, b_obs.shape, rng)
                    scale, shift = (x.to(args.device) for x in drawn)
                    b_obs, b_next_obs = b_obs * scale + shift, b_next_obs * scale + shift
                y = td_target(b_reward, b_terminated, target(b_next_obs), args.gamma)  # (B,)
                features = network.trunk(b_obs)
                error = td_error(network.q_head(features), b_action, y)
                losses = {"td_loss": td_loss(error, b_weight)}
                if args.auxiliary:
                    r_loss = reward_loss(network.reward_head(features), b_action, b_reward)
                    s_loss = next_obs_loss(network.next_obs_head(features), b_action, b_next_obs, b_terminated)
                    losses["reward_loss"] = args.reward_weight * r_loss
                    losses["next_obs_loss"] = args.next_obs_weight * s_loss
                optimizer.zero_grad()
                sum(losses.values()).backward()
                optimizer.step()
                if args.prioritized:
                    buffer.update(rows, priority(error.detach().cpu().numpy(), args.alpha, args.priority_epsilon))
            if step > args.learning_starts and times_due(step, 500, args.num_envs):
                losses["mean_target"] = y.mean()
                run.log({f"losses/{name}": value.item() for name, value in losses.items()})
                if args.prioritized:
                    quantiles = {f"replay/priority_p{p}": np.percentile(buffer.priorities(), p) for p in (5, 50, 95)}
                    run.log(quantiles | {"replay/beta": beta, "replay/smallest_weight": b_weight.min().item()})
            if times_due(step, args.target_network_frequency, args.num_envs):
                torch._foreach_copy_(list(target.parameters()), list(network.parameters()))
            run.evaluate(greedy)

        if isinstance(run.env.unwrapped, gridworld.GridWorldEnv):
            q = network(torch.as_tensor(gridworld.observe_all(run.env), device=args.device)).detach().cpu().numpy()
            panel = (q.max(axis=1), q.argmax(axis=1), None)
            run.picture("policy", gridworld.draw(run.env, {"max Q(s, a) and the greedy action": panel}))
            if args.prioritized:
                number = {obs.tobytes(): state for state, obs in enumerate(gridworld.observe_all(run.env))}
                state = [number[obs.tobytes()] for obs in buffer.views[0][: len(buffer)]]
                share = np.bincount(state, buffer.priorities(), len(number)) / buffer.priorities().sum()
                run.picture("replay", gridworld.draw(run.env, {"where what is replayed starts": (share, None, None)}))
        run.finish(greedy, network.state_dict())
    return network


if __name__ == "__main__":
    train(tyro.cli(Args))
