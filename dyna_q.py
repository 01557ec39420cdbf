"""Dyna-Q: tabular Q-learning from every real step, and from steps that a learned model remembers.

Book:  Sutton and Barto (2018), Reinforcement Learning, 2nd edition: section 8.2, the box "Tabular Dyna-Q" with its
       lines (a)-(f), and section 8.3, Dyna-Q+; after Sutton (1990), Integrated Architectures for Learning, Planning,
       and Reacting Based on Approximating Dynamic Programming, ICML.
Run:   python dyna_q.py --grid-size 8
Differences from the book:
    D1. The model keeps the last `model_outcomes` outcomes of each state and action, and planning draws one of them:
        their empirical distribution, an estimate of p(s', r | s, a). The book's model keeps the last one.
    D2. Planning draws from the seen pairs (s, a) uniformly; the book draws s, then a among those taken in s.
    D3. Only termination ends the return: a transition cut by the time limit bootstraps (Pardo et al. 2018).
"""

import dataclasses
import json
import math
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
import tyro
from gymnasium import spaces
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

import gridworld


@dataclasses.dataclass(frozen=True)
class Args(gridworld.EnvArgs):
    """Train tabular Dyna-Q on an environment with discrete observations."""

    exp_name: str = "dyna_q"
    """Name of the algorithm in run folders and reports."""
    seed: int = 1
    """Seed of the environments, the network and the exploration; the same seed gives the same run."""
    total_timesteps: int = 20_000
    """Environment steps of the whole run, over all environments."""
    log_dir: Path = Path("runs")
    """Folder in which the run's own folder is made."""
    eval_every: int = 100
    """Environment steps between evaluations of the greedy policy; 0 leaves only the last one."""
    eval_episodes: int = 10
    """Episodes in an evaluation, played side by side."""
    device: Literal["cpu", "cuda", "mps"] = "cpu"
    """Where the network is; the CPU is fastest for networks of this size."""
    save_model: bool = False
    """Write the trained weights to model.pt in the run folder."""
    capture_video: bool = False
    """Film a greedy episode of the trained agent, to video.gif in the run folder."""

    planning_steps: int = 50
    """Updates from the model per environment step; 0 is plain Q-learning."""
    model_outcomes: int = 1_000
    """Latest outcomes that the model keeps of each state and action; 1 if the world is deterministic and may change."""
    kappa: float = 0.0
    """Weight of the bonus for what has not been tried for long; above 0 this is Dyna-Q+."""
    learning_rate: float = 0.1
    """Step size alpha of an update."""
    anneal_lr: bool = True
    """Let the step size fall to 0 over the run, linearly: in a world of chance a constant one never settles."""
    gamma: float = 0.99
    """Discount per step."""
    epsilon: float = 0.1
    """Chance of a random action."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_run()
        self.check(planning_steps=(0, 1e6), model_outcomes=(1, 1e6), kappa=(0, 1e6))
        self.check(learning_rate=(0, 1), gamma=(0, 1), epsilon=(0, 1))
        space = self.make_env().observation_space
        if not isinstance(space, spaces.Discrete) or space.start != 0:
            kind = f"{type(space).__name__} (try --observation index)" if self.observation else space
            raise ValueError(
                f"--env-id must have discrete observations from 0 on, for a table; {self.env_id} has {kind}"
            )

    def make_env(self, flatten: bool = False, **changes) -> gym.Env:
        """As EnvArgs.make_env, but the observation is the number of the state."""
        return super().make_env(flatten, **(self._index() | changes))

    def make_vec(self, num_envs: int, flatten: bool = False, **changes) -> gym.vector.VectorEnv:
        return super().make_vec(num_envs, flatten, **(self._index() | changes))

    def _index(self) -> dict[str, str]:
        is_default = self.env_id in gridworld.GRID_IDS and self.observation is None
        return {"observation": "index"} if is_default else {}


# ----------------------------------------------------------------------------- the maths
# Tables are lists of lists: for single entries they are ten times faster than arrays. q[s][a] is Q(s, a).

Outcome = tuple[list[float], int, float, float, list[float], list[int]]
"""(q[s], a, r, gamma (1 - terminated), q[s'], tried[s]): what an update of Q(s, a) needs, the rows by reference."""


def epsilon_greedy(row: list[float], epsilon: float, draw) -> int:
    """(b) A random action with chance `epsilon`, else one of the best, ties broken at random; draw() is in [0, 1)."""
    if draw() < epsilon:
        return int(draw() * len(row))
    best = max(row)
    actions = [action for action, value in enumerate(row) if value == best]
    return actions[int(draw() * len(actions))]


def update(outcome: Outcome, alpha: float) -> float:
    """(d) Q(s, a) += alpha (r + gamma (1 - terminated) max_a' Q(s', a') - Q(s, a)); returns the error in brackets."""
    row, action, reward, discount, next_row, _ = outcome
    error = reward + discount * max(next_row) - row[action]
    row[action] += alpha * error
    return error


def remember(outcomes: list[Outcome], outcome: Outcome, visits: int, capacity: int) -> None:
    """(e) Add the outcome of visit number `visits` (from 0) to those of its pair; beyond `capacity` the oldest goes."""
    if visits == 0:
        outcomes.clear()  # what Dyna-Q+ imagined of an action never tried
    if len(outcomes) < capacity:
        outcomes.append(outcome)
    else:
        outcomes[visits % capacity] = outcome


def plan(pairs: list[list[Outcome]], steps: int, alpha: float, kappa: float, now: int, rng: random.Random) -> None:
    """(f) `steps` updates, each of a seen pair drawn uniformly and of one of its remembered outcomes.

    Dyna-Q+ adds the bonus kappa sqrt(tau) to the reward, tau = now - tried[s][a] being the steps since a real trial.
    """
    draw = rng.random
    for outcomes in rng.choices(pairs, k=steps):
        row, action, reward, discount, next_row, tried = outcomes[int(draw() * len(outcomes))]
        if kappa:
            reward += kappa * math.sqrt(now - tried[action])
        row[action] += alpha * (reward + discount * max(next_row) - row[action])


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


def train(args: Args) -> list[list[float]]:
    """Train one agent, log to TensorBoard, return its table q[s][a]."""
    seed_everything(args.seed)
    rng = random.Random(args.seed)  # faster for single numbers than numpy's generator
    env = args.make_env()
    n_states, n_actions = int(env.observation_space.n), int(env.action_space.n)
    q, tried = ([[zero] * n_actions for _ in range(n_states)] for zero in (0.0, 0))
    visits = [[0] * n_actions for _ in range(n_states)]
    model: list[list[list[Outcome]]] = [[[] for _ in range(n_actions)] for _ in range(n_states)]
    pairs: list[list[Outcome]] = []  # the entries of `model` that planning draws from

    def greedy(obs: np.ndarray, start: np.ndarray) -> np.ndarray:
        return np.array([max(range(n_actions), key=q[s].__getitem__) for s in obs])

    with Run(args) as run:
        s, _ = env.reset(seed=args.seed)  # seeded once: a seed on every reset would replay one episode
        for step in range(1, args.total_timesteps + 1):
            # Act and learn from the real outcome, (a)-(d).
            alpha = args.learning_rate * (1 - step / args.total_timesteps if args.anneal_lr else 1)
            a = epsilon_greedy(q[s], args.epsilon, rng.random)
            next_s, reward, terminated, truncated, _ = env.step(a)
            outcome = (q[s], a, float(reward), 0.0 if terminated else args.gamma, q[next_s], tried[s])
            error = update(outcome, alpha)

            # Learn the model, (e). Dyna-Q+ plans untried actions too: at first they lead back to s, unrewarded.
            if args.kappa > 0 and not any(visits[s]):
                for other in range(n_actions):
                    model[s][other].append((q[s], other, 0.0, args.gamma, q[s], tried[s]))
                pairs += model[s]
            if args.kappa == 0 and visits[s][a] == 0:
                pairs.append(model[s][a])
            remember(model[s][a], outcome, visits[s][a], args.model_outcomes)
            visits[s][a], tried[s][a] = visits[s][a] + 1, step

            # Learn from the model, (f).
            plan(pairs, args.planning_steps, alpha, args.kappa, step, rng)

            ended = terminated or truncated
            s = env.reset()[0] if ended else next_s
            run.record(step, np.array([float(reward)]), np.array([ended]))
            if step % 100 == 0:
                run.log({"losses/td_error": abs(error), "model/pairs": len(pairs)})
            run.evaluate(greedy)

        table = np.array(q)
        if isinstance(run.env.unwrapped, gridworld.GridWorldEnv):
            panel = (table.max(axis=1), table.argmax(axis=1), None)
            run.picture("policy", gridworld.draw(run.env, {"max Q(s, a) and the greedy action": panel}))
        run.finish(greedy, {"q": torch.tensor(table)})
    return q


if __name__ == "__main__":
    train(tyro.cli(Args))
