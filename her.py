"""Hindsight experience replay (HER): a goal-conditioned DQN that also learns from the goals it reached by accident.

Paper: Andrychowicz et al. (2017), Hindsight Experience Replay, NIPS, arXiv:1707.01495; its algorithm 1, sections and
       appendix A are cited here. DQN and its equations (1)-(3) are those of dqn.py.
Run:   python her.py --grid-size 8
Differences from the paper:
    D1. Adam with the Huber loss; targets are not clipped to the range of possible values.
    D2. Only termination ends the return: a transition cut by the time limit bootstraps (Pardo et al. 2018). An episode
        that reaches its goal ends, so hindsight recomputes the end too; in the paper all episodes are equally long.
    D3. Several environments are stepped side by side; there is still one update per `train_frequency` steps of all.
    D4. Updates go on during episodes; in the paper 16 episodes and 40 updates alternate, then the target moves by 5 %.
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
from typing import Any, Literal

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
    """Train a deep Q-network for all goals of an environment; eval/return and eval/score are still those of G alone."""

    env_id: str = "GoalGridWorld-v0"
    """Any Gymnasium id with discrete actions and goals in the form of gymnasium-robotics; module:Name-v0 works, too."""
    exp_name: str = "her"
    """Name of the algorithm in run folders and reports."""
    seed: int = 1
    """Seed of the environments, the network and the exploration; the same seed gives the same run."""
    total_timesteps: int = 90_000
    """Environment steps of the whole run, over all environments."""
    log_dir: Path = Path("runs")
    """Folder in which the run's own folder is made."""
    eval_every: int = 1_000
    """Environment steps between evaluations of the greedy policy; 0 leaves only the last one."""
    eval_episodes: int = 10
    """Episodes in an evaluation, played side by side."""
    device: Literal["cpu", "cuda", "mps"] = "cpu"
    """Where the network is; the CPU is fastest for networks of this size."""
    save_model: bool = False
    """Write the trained weights to model.pt in the run folder."""
    capture_video: bool = False
    """Film a greedy episode of the trained agent, to video.gif in the run folder."""

    strategy: Literal["future", "final", "episode", "random", "none"] = "future"
    """Goals for hindsight: achieved later in the episode, at its end, anywhere in it, anywhere in training, or none."""
    k: int = 4
    """Goals for each transition, beside its own; `final` has one."""
    goal_steps: int = 50
    """Steps after which training gives a goal up and cuts the episode; evaluation keeps to --max-episode-steps."""
    num_envs: int = 4
    """Environments stepped side by side."""
    learning_rate: float = 1e-3
    """Step size of Adam."""
    anneal_lr: bool = True
    """Let the step size fall to 0 over the run, linearly."""
    gamma: float = 0.95
    """Discount per step."""
    buffer_size: int = 200_000
    """Transitions kept for replay; the oldest are overwritten."""
    batch_size: int = 256
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

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_run()
        self.check(num_envs=(1, 4_096), learning_rate=(0, 1), gamma=(0, 1), buffer_size=(1, 1e8), batch_size=(1, 1e6))
        self.check(learning_starts=(0, 1e12), train_frequency=(1, 1e9), target_network_frequency=(1, 1e12))
        self.check(start_e=(0, 1), end_e=(0, 1), exploration_fraction=(0, 1), k=(1, 1_000), goal_steps=(1, 1e9))
        env, needed = self.make_env(flatten=False, **self.training()), {"observation", "achieved_goal", "desired_goal"}
        if needed - {*getattr(env.observation_space, "keys", tuple)()} or not hasattr(env.unwrapped, "compute_reward"):
            raise ValueError(f"--env-id must have goals, as GoalGridWorld-v0 does (see --help); {self.env_id} has none")

    def training(self) -> dict[str, Any]:
        """What training changes of the task: episodes are short, and a grid world draws a goal for each."""
        limit = min(self.make_env().spec.max_episode_steps, self.goal_steps)
        return {"max_episode_steps": limit} | ({"random_goal": True} if self.env_id in gridworld.GRID_IDS else {})

    def make_env(self, flatten: bool = True, **changes) -> gym.Env:
        """As EnvArgs.make_env, but the flat observation is s || g."""
        env = super().make_env(False, **changes)
        if flatten and "desired_goal" in getattr(space := env.observation_space, "spaces", {}):
            shown = gym.spaces.Box(-np.inf, np.inf, join(space, space.sample()).shape, np.float32)
            env = gym.wrappers.TransformObservation(env, lambda obs: join(space, obs), shown)
        return env


# ----------------------------------------------------------------------------- the maths
# Pure functions. B batch, A actions, T steps of an episode, N hindsight transitions, G parts of a goal.


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


def hindsight_goals(strategy: str, k: int, achieved: np.ndarray, seen: np.ndarray, rng) -> tuple[np.ndarray, ...]:
    """S of algorithm 1 (section 4.5): the transitions of an episode to replay, t (N,) int64, each with a goal (N, G).

    achieved (T + 1, G) is m(s_0) ... m(s_T); seen (M, G) is what was achieved in training so far. Each t gets k goals:
    `future` draws from m(s_{t+1}) ... m(s_T), `episode` from m(s_0) ... m(s_T), `random` from seen; `final` is m(s_T).
    """
    t = np.tile(np.arange(len(achieved) - 1), 1 if strategy == "final" else k)
    pool = seen if strategy == "random" else achieved
    first = {"future": t + 1, "final": len(pool) - 1}.get(strategy, 0)
    return t, pool[rng.integers(first, len(pool), size=len(t))]


def relabel(env: gym.Env, obs, achieved, action, t, goal) -> tuple[np.ndarray, ...]:
    """The transitions t of an episode as if g' had been its goal: s_t || g', a_t, r', s_{t+1} || g', terminated'.

    r' = r(m(s_{t+1}), g') and terminated' are the environment's (section 4.1); without compute_terminated nothing ends.
    obs (T + 1, ...), achieved (T + 1, G), action (T,), t (N,) int64, goal (N, G). Returns columns for ReplayBuffer.add.
    """
    task, arrived = env.unwrapped, achieved[t + 1]
    reward = task.compute_reward(arrived, goal, {})
    terminated = task.compute_terminated(arrived, goal, {}) if hasattr(task, "compute_terminated") else False
    s, next_s = (join(env.observation_space, {"observation": obs[i], "desired_goal": goal}) for i in (t, t + 1))
    return s, action[t], reward, next_s, np.broadcast_to(terminated, len(t))


def join(space: gym.spaces.Dict, obs: dict[str, np.ndarray]) -> np.ndarray:
    """The network's input s || g, of an observation or a batch of them: (..., D) float32; Discrete parts as one-hot."""
    columns = []
    for name in "observation", "desired_goal":
        part, values = space[name], np.asarray(obs[name])
        batch = values.shape[: values.ndim - len(part.shape)]
        values = np.eye(part.n)[values - part.start] if isinstance(part, gym.spaces.Discrete) else values
        columns.append(values.reshape(*batch, -1))
    return np.concatenate(columns, axis=-1, dtype=np.float32)


def goals_reached(env: gym.Env, policy) -> np.ndarray:
    """How often `policy` reaches each cell in time when that is the goal: (cells,), NaN for a cell that is never one.

    env is a grid world that draws goals, each start and goal is tried once; policy maps observations (N, ...) to (N,).
    """
    grid, rng = env.unwrapped, np.random.default_rng(10_000)
    state, left = grid.start_states, env.spec.max_episode_steps
    while left and not grid.terminal[state].all():  # as GridWorldEnv.step, for all goals at once
        slip = grid.cumulative[state, policy(grid.observe(state))]
        state, left = grid.next_state[state, (rng.random((len(state), 1)) >= slip).sum(axis=1)], left - 1
    hits, tries = (np.bincount(grid.goal_of[state], w, len(grid.cells)) for w in (grid.at_goal[state], None))
    return hits / np.where(tries > 0, tries, np.nan)


# ----------------------------------------------------------------------------- network and buffer


class QNetwork(nn.Sequential):
    """Action values: (B, D) float -> (B, A) float."""

    def __init__(self, obs_dim: int, n_actions: int) -> None:
        super().__init__(nn.Linear(obs_dim, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, n_actions))


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
    envs = args.make_vec(args.num_envs, flatten=False, **args.training())
    space, n_actions = envs.single_observation_space, int(envs.single_action_space.n)
    env, obs_dim = args.make_env(flatten=False), args.make_env().observation_space.shape[0]
    network, target = (QNetwork(obs_dim, n_actions).to(args.device) for _ in range(2))
    target.requires_grad_(False).load_state_dict(network.state_dict())
    optimizer = torch.optim.Adam(network.parameters(), lr=args.learning_rate, fused=True)
    buffer = ReplayBuffer(args.buffer_size, obs_dim)
    episodes = [[] for _ in range(args.num_envs if args.strategy != "none" else 0)]  # of each env: s_t, m(s_t), a_t
    seen = np.zeros((args.buffer_size, *space["achieved_goal"].shape), space["achieved_goal"].dtype)
    is_grid = args.env_id in gridworld.GRID_IDS
    goals = args.make_env(flatten=False, random_goal=True, random_start=False) if is_grid else None

    @torch.no_grad()
    def greedy(obs: np.ndarray, start: np.ndarray | None = None) -> np.ndarray:
        return network(torch.as_tensor(obs, device=args.device)).argmax(dim=1).cpu().numpy()

    with Run(args) as run:
        obs, _ = envs.reset(seed=args.seed)  # seeded once: a seed on every reset would replay one episode
        for step in range(args.num_envs, args.total_timesteps + args.num_envs, args.num_envs):
            # Act epsilon-greedily, one step in each environment.
            epsilon = linear_schedule(args.start_e, args.end_e, args.exploration_fraction * args.total_timesteps, step)
            random_action, joined = rng.integers(n_actions, size=args.num_envs), join(space, obs)
            action = np.where(rng.random(args.num_envs) < epsilon, random_action, greedy(joined))
            next_obs, reward, terminated, truncated, info = envs.step(action)
            ended, last_obs = terminated | truncated, next_obs
            if ended.any():  # next_obs already is the first of the next episode there
                last_obs = {name: values.copy() for name, values in next_obs.items()}
                for name, values in last_obs.items():
                    values[ended] = [final[name] for final in info["final_obs"][ended]]
            buffer.add(joined, action, reward, join(space, last_obs), terminated)
            seen[np.arange(step - args.num_envs, step) % len(seen)] = last_obs["achieved_goal"]  # for `random`

            # Store episodes that ended with other goals, too, algorithm 1 with D4; after the last update it has no use.
            for i, episode in enumerate(episodes):
                episode.append((obs["observation"][i], obs["achieved_goal"][i], action[i]))
                if ended[i]:
                    episode.append((last_obs["observation"][i], last_obs["achieved_goal"][i], -1))  # s_T, no action
                    past_obs, achieved, past_action = (np.array(column) for column in zip(*episode, strict=True))
                    t, goal = hindsight_goals(args.strategy, args.k, achieved, seen[:step], rng)
                    buffer.add(*relabel(env, past_obs, achieved, past_action, t, goal))
                    episode.clear()
            obs = next_obs
            run.record(step, reward, ended)

            # Learn from replayed transitions, eq. (2).
            if args.anneal_lr:
                optimizer.param_groups[0]["lr"] = linear_schedule(args.learning_rate, 0, args.total_timesteps, step)
            for _ in range(times_due(step, args.train_frequency, args.num_envs) if step > args.learning_starts else 0):
                b_obs, b_action, b_reward, b_next_obs, b_terminated = (
                    column.to(args.device) for column in buffer.sample(args.batch_size, rng)
                )
                y = td_target(b_reward, b_terminated, target(b_next_obs), args.gamma)  # (B,)
                loss = td_loss(network(b_obs), b_action, y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            if step > args.learning_starts and times_due(step, 500, args.num_envs):
                run.log({"losses/td_loss": loss.item(), "losses/mean_target": y.mean().item()})
            if times_due(step, args.target_network_frequency, args.num_envs):
                torch._foreach_copy_(list(target.parameters()), list(network.parameters()))
            run.evaluate(greedy, force=step >= args.total_timesteps)
            if is_grid and step in run.evaluations:
                reached = goals_reached(goals, lambda observed: greedy(join(space, observed)))  # (cells,)
                run.log({"eval/goal_success": np.nanmean(reached)})

        if is_grid:
            grid = run.env.unwrapped
            states = torch.as_tensor(join(space, grid.observe(np.arange(grid.n_states))), device=args.device)
            q = network(states).detach().cpu().numpy()
            panels = {"max Q(s, a, G) and the greedy action": (q.max(axis=1), q.argmax(axis=1), None)}
            panels["cells reached when they are the goal"] = (reached[grid.cell_of], None, (0, 1))
            run.picture("policy", gridworld.draw(run.env, panels))
        run.finish(greedy, network.state_dict(), f"; reaches {np.nanmean(reached):.1%} of all goals" if is_grid else "")
    return network


if __name__ == "__main__":
    train(tyro.cli(Args))
