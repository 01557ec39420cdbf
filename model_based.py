"""Model-based agent: an ensemble of learned models, a value learned in their short rollouts, and planning with both.

Paper: Janner et al. (2019), When to Trust Your Model (MBPO), arXiv:1906.08253, algorithm 2. Ensemble and planning:
       Chua et al. (2018), PETS, arXiv:1805.12114, sections 4 and 5; Nagabandi et al. (2018), arXiv:1708.02596, IV.
Run:   python model_based.py --grid-size 8
Differences from the papers:
    D1. Q-learning takes the place of the soft actor-critic, since actions are discrete; a plan ends with max Q.
    D2. Observations of zeros and ones (one-hot cells, keys, goals): the next is categorical over those seen so far, so
        that a prediction exists. Other observations: the last one plus a change fitted by least squares.
    D3. Bayesian bootstrap (Rubin 1981): members weigh each transition by exponential random numbers. Drawing with
        replacement hides a third of the transitions from each member, too many while data is scarce.
    D4. Branches are drawn afresh, their targets ask all members and average over next observations; plans follow the
        likeliest. D5. Plans that collect data get a bonus for disagreement (members disagree where they have seen
        nothing, since the first layer starts large); targets, and plans that are judged, are pessimistic.
    D6. Only termination ends the return: a transition cut by the time limit bootstraps (Pardo et al. 2018).
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
    """Train an ensemble of models, and an agent that plans with them."""

    exp_name: str = "model_based"
    """Name of the algorithm in run folders and reports."""
    seed: int = 1
    """Seed of the environments, the network and the exploration; the same seed gives the same run."""
    total_timesteps: int = 4_000
    """Environment steps of the whole run, over all environments."""
    log_dir: Path = Path("runs")
    """Folder in which the run's own folder is made."""
    eval_every: int = 50
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
    ensemble_size: int = 5
    """Members of the ensemble."""
    horizon: int = 4
    """Steps of the model in a plan; 0 acts by Q, and explores as DQN does: random actions, from all to 5 % at half."""
    rollout_length: int = 3
    """Steps of the model in a branch; 0 learns Q from real transitions alone (with --horizon 0: without a model)."""
    pessimism: float = 1.0
    """Standard deviations over the members that are taken off the mean of targets, and of the plans that are judged."""
    exploration_bonus: float = 1.5
    """Reward for a unit of disagreement between the members, in the plans that collect data."""
    learning_rate: float = 1e-3
    """Step size of Adam for Q at the start; it falls to 0 linearly. That of the ensemble is 5 times as large."""
    gamma: float = 0.95
    """Discount per step."""
    buffer_size: int = 50_000
    """Transitions kept for replay; the oldest are overwritten."""
    batch_size: int = 128
    """Transitions in an update of Q, a quarter of them real; each member learns from half as many."""
    learning_starts: int = 100
    """Environment steps, with random actions, before the first update."""
    updates_per_step: int = 2
    """Updates of Q, and of the ensemble, per environment step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_run()
        self.check(num_envs=(1, 4_096), ensemble_size=(1, 1_000), horizon=(0, 1_000), rollout_length=(0, 1e4))
        self.check(pessimism=(0, 1e6), exploration_bonus=(0, 1e6), learning_rate=(0, 1), gamma=(0, 1))
        self.check(buffer_size=(1, 1e8), batch_size=(4, 1e6), learning_starts=(0, 1e12), updates_per_step=(1, 1_000))


# ----------------------------------------------------------------------------- the maths
# E ensemble, B batch, D observation, A actions. `known` (K, D): the observations seen, None if not of zeros and ones;
# `output` (E, B, D) of the ensemble is then the change, else output . x is the logit of each x (D2).


def predicted_obs(output: Tensor, obs: Tensor, known: Tensor | None, sample: bool = False) -> Tensor:
    """The likeliest next observation, or with `sample` (where categorical) one drawn from p: (..., D)."""
    if known is None:
        return obs + output
    logits = output @ known.T
    noise = -torch.empty_like(logits).exponential_().log() if sample else 0.0  # Gumbel: the argmax is a draw of softmax
    return known[(logits + noise).argmax(dim=-1)]


def disagreement(output: Tensor, obs: Tensor, known: Tensor | None) -> Tensor:
    """Variance over the members of what they expect, summed over its entries: (E, B, D) -> (B,)."""
    expected = obs + output if known is None else (output @ known.T).softmax(dim=-1)
    return (expected - expected.mean(dim=0)).square().mean(dim=0).sum(dim=-1)


def ensemble_loss(said, known, obs, reward, next_obs, terminated, weight) -> Tensor:
    """sum_e mean_b weight (-log p(s' | s, a) + Huber(r) + cross-entropy of the end), a scalar; D3.

    `said` is Ensemble.forward(obs, action). Each member has its own batch and its own weights: all are (E, B, ...).
    """
    output, predicted_reward, end = said
    squares, scores = (obs + output - next_obs).square().sum(dim=-1), (output * next_obs).sum(dim=-1)
    loss = squares if known is None else (output @ known.T).logsumexp(dim=-1) - scores
    loss = loss + F.smooth_l1_loss(predicted_reward, reward, reduction="none")
    loss = loss + F.binary_cross_entropy(end, terminated, reduction="none")
    return (weight * loss).mean(dim=1).sum()


def td_target(reward: Tensor, terminated: Tensor, next_value: Tensor, gamma: float) -> Tensor:
    """y = r + gamma (1 - terminated) V(s'), detached; all of one shape. `terminated` may be a predicted chance."""
    return (reward + gamma * (1.0 - terminated) * next_value).detach()


# ----------------------------------------------------------------------------- networks and their rollouts


class Ensemble(nn.Module):
    """E models in one: every layer is one batched product with weights (E, in, out)."""

    def __init__(self, members: int, obs_dim: int, n_actions: int) -> None:
        super().__init__()
        sizes, self.n_actions = (obs_dim + n_actions, 64, 64, obs_dim + 2), n_actions
        shapes = zip((3.0, 64**-0.5, 64**-0.5), sizes[:-1], sizes[1:], strict=True)  # the first is large, D5
        self.weights = nn.ParameterList(scale * torch.randn(members, n_in, n_out) for scale, n_in, n_out in shapes)
        self.biases = nn.ParameterList(torch.zeros(members, 1, n_out) for n_out in sizes[1:])

    def forward(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """obs (E, B, D), action (E, B), or (B, D), (B,) for all -> output (E, B, D), reward, chance of end (E, B)."""
        x = torch.cat([obs, F.one_hot(action, self.n_actions).float()], dim=-1).expand(len(self.biases[0]), -1, -1)
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, F.silu(x) if i else x, weight)
        return x[..., :-2], x[..., -2], x[..., -1].sigmoid()


def branch(ensemble, q, obs, known, length: int, gamma: float, pessimism: float) -> list[tuple[Tensor, ...]]:
    """Short rollouts of the ensemble from replayed observations (B, D): MBPO, algorithm 2, with D4.

    Actions are random in half the rows, else greedy in q. Each step asks all members, and goes on with the sampled
    prediction of one, drawn anew for each row and step; a row that this member ends stops. Returns for each step the
    obs, the actions and the targets y: mean_e y_e - pessimism std_e y_e,  y_e = r_e + gamma (1 - end_e) E_e max Q(s').
    """
    steps = []
    for _ in range(length):
        values, chance, row = q(obs), torch.rand(2, len(obs), device=obs.device), torch.arange(len(obs))
        random_action = torch.randint(values.shape[1], (len(obs),), device=obs.device)
        action = torch.where(chance[0] < 0.5, random_action, values.argmax(dim=1))
        output, reward, end = ensemble(obs, action)
        next_value = q(obs + output if known is None else known).amax(dim=-1)
        next_value = next_value if known is None else (output @ known.T).softmax(dim=-1) @ next_value
        y = td_target(reward, end, next_value, gamma)
        steps.append((obs, action, y.mean(dim=0) - pessimism * y.std(dim=0, correction=0)))
        member = torch.randint(len(output), (len(obs),))
        obs = predicted_obs(output[member, row], obs, known, sample=True)[chance[1] >= end[member, row]]
    return steps


def plan(ensemble, q, obs, known, horizon, gamma, pessimism, bonus, rng, num_candidates=256) -> tuple[Tensor, Tensor]:
    """The first action of the best action sequence, and the mean return that it promises: (N,) int64 and (N,) float.

    R_e = sum_{t < H} gamma^t alive_t r_t + gamma^H alive_H Q(s_H, a_H),  alive_t = prod_{i < t} (1 - end_i), in the
    rollout of each member alone (PETS, TS-infinity); obs (E, N, D) is alike in all. The best sequence has the largest
    mean_e - pessimism std_e of R_e + sum_t gamma^t alive_t bonus disagreement_t. All rollouts are one batch. They try
    every action as long as that makes at most `num_candidates` sequences, and first and last in any case: a small
    search is exhaustive, a large one goes on with actions drawn from `rng`.
    """
    (members, n, _), n_actions, c = obs.shape, q(obs).shape[-1], 1
    total, alive, extra = obs.new_zeros(members, n), obs.new_ones(members, n), obs.new_zeros(members, n)
    for t in range(horizon):
        if c * n_actions <= max(num_candidates, n_actions):
            obs, total, alive, extra = (x.repeat_interleave(n_actions, dim=1) for x in (obs, total, alive, extra))
            action, c = torch.arange(n_actions).repeat(n * c), c * n_actions
        else:
            action = torch.from_numpy(rng.integers(n_actions, size=n * c))
        output, reward, end = ensemble(obs, action.to(obs.device).expand(members, -1))
        extra = extra + gamma**t * alive * bonus * disagreement(output, obs, known)
        total = total + gamma**t * alive * reward
        alive = alive * (1.0 - end)
        obs = predicted_obs(output, obs, known)
    total = (total[..., None] + gamma**horizon * alive[..., None] * q(obs)).view(members, n, c, -1)
    counted = total + extra.view(members, n, c, 1)
    best = (counted.mean(dim=0) - pessimism * counted.std(dim=0, correction=0)).flatten(1).argmax(dim=1)
    return best // c, total.mean(dim=0).flatten(1)[torch.arange(n), best]  # a number's leading digit: the first action


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


def train(args: Args) -> nn.ModuleDict:
    """Train one agent, log to TensorBoard, return its networks `q` and `ensemble`."""
    rng, envs, n, members = seed_everything(args.seed), args.make_vec(args.num_envs), args.num_envs, args.ensemble_size
    obs_dim, n_actions = envs.single_observation_space.shape[0], int(envs.single_action_space.n)
    q = nn.Sequential(nn.Linear(obs_dim, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, n_actions))
    agent = nn.ModuleDict({"q": q, "ensemble": Ensemble(members, obs_dim, n_actions)}).to(args.device)
    ensemble, optimizer = agent["ensemble"], torch.optim.Adam(q.parameters(), lr=args.learning_rate, fused=True)
    model_optimizer = torch.optim.Adam(ensemble.parameters(), lr=5 * args.learning_rate, fused=True)
    replay = [torch.zeros(args.buffer_size, *size) for size in ([obs_dim], [], [], [obs_dim], [], [members])]
    replay[1] = replay[1].long()  # columns o, a, r, o', terminated, the members' weights
    seen, binary, known = {}, True, None  # observations seen, if of zeros and ones (D2)
    updates, n_real = n * args.updates_per_step, args.batch_size // (4 if args.rollout_length else 1)

    def sample(*shape: int) -> list[Tensor]:
        rows = torch.from_numpy((step + rng.integers(-min(step, args.buffer_size), 0, size=shape)) % args.buffer_size)
        return [column[rows].to(args.device) for column in replay]

    def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> float:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    @torch.no_grad()
    def act(obs: np.ndarray, pessimism: float, bonus: float, rng: np.random.Generator) -> list[np.ndarray]:
        """Planned actions (N,), with --horizon 0 greedy in Q, and the discounted returns (N,) that they promise."""
        obs = torch.as_tensor(obs, device=args.device).expand(members, -1, -1)
        return [x.cpu().numpy() for x in plan(ensemble, q, obs, known, args.horizon, args.gamma, pessimism, bonus, rng)]

    def greedy_policy():
        """Plans once for each observation: the networks stand still while this is used."""
        decided = {}

        def policy(obs: np.ndarray, start: np.ndarray | None = None) -> np.ndarray:
            if new := {row.tobytes(): row for row in obs if row.tobytes() not in decided}:
                action, _ = act(np.stack(list(new.values())), args.pessimism, 0.0, np.random.default_rng(0))
                decided.update(zip(new, action, strict=True))
            return np.array([decided[row.tobytes()] for row in obs])

        return policy

    with Run(args) as run:
        obs, _ = envs.reset(seed=args.seed)  # seeded once: a seed on every reset would replay one episode
        promised, executed, discount, learned_at, scalars = np.full(n, np.nan), np.zeros(n), np.ones(n), 0, {}
        for step in range(n, args.total_timesteps + n, n):
            # Act: at random at first, then by a plan with the bonus, or epsilon-greedily where nothing is planned.
            action = rng.integers(n_actions, size=n)
            if learned_at:
                best, promise = act(obs, 0.0, args.exploration_bonus, rng)
                epsilon = 0.0 if args.horizon else max(0.05, 1.0 - 2.0 * step / args.total_timesteps)
                action = np.where(rng.random(n) < epsilon, action, best)
                promised = np.where(run.lengths == 0, promise, promised)  # where episodes begin
            next_obs, reward, terminated, truncated, info = envs.step(action)
            ended, last_obs = terminated | truncated, next_obs.copy()
            if ended.any():  # next_obs already is the first of the next episode there
                last_obs[ended] = np.stack(info["final_obs"][ended])
            rows, weight = torch.arange(step - n, step) % args.buffer_size, rng.exponential(size=(n, members))
            for column, values in zip(replay, (obs, action, reward, last_obs, terminated, weight), strict=True):
                column[rows] = torch.as_tensor(values).to(column)
            b_obs, b_action, _, b_next_obs, *_ = (column[rows].to(args.device) for column in replay)
            output, *_ = ensemble(b_obs, b_action)  # what it says about this step, before it learns from it
            error = (predicted_obs(output, b_obs, known) - b_next_obs).abs().amax(dim=-1)  # 0 or 1 where one-hot
            scalars["model/one_step_error"] = error.mean().item()
            scalars["model/disagreement"] = disagreement(output, b_obs, known).mean().item()
            binary = binary and np.isin([obs, last_obs], (0, 1)).all()
            seen |= {row.tobytes(): row for row in np.concatenate([obs, last_obs])} if binary else {}
            obs = next_obs
            run.record(step, reward, ended)
            executed, discount = executed + discount * reward, discount * args.gamma
            if (whole := ended & np.isfinite(promised)).any():  # the plan at an episode's start, and what came of it
                run.log({"plan/promised": promised[whole].mean(), "plan/executed": executed[whole].mean()})
            executed[ended], discount[ended] = 0.0, 1.0

            # Learn: the ensemble from replay, then Q from replay and from branches of today's ensemble.
            if step >= args.learning_starts:
                known = torch.as_tensor(np.stack(list(seen.values())), device=args.device) if binary else None
                for _ in range((step - learned_at) * args.updates_per_step * (args.horizon + args.rollout_length > 0)):
                    b_obs, b_action, *rest, weight = sample(members, args.batch_size // 2)
                    weight = weight.diagonal(dim1=0, dim2=2).T  # each member's own: (E, B)
                    loss = ensemble_loss(ensemble(b_obs, b_action), known, b_obs, *rest, weight)
                    scalars["losses/ensemble"] = descend(model_optimizer, loss) / members
                learned_at, n_starts = step, updates * (args.batch_size - n_real) // max(1, args.rollout_length)
                with torch.no_grad():
                    b_obs, b_action, b_reward, b_next_obs, b_terminated, _ = sample(updates * n_real)
                    y = td_target(b_reward, b_terminated, q(b_next_obs).amax(dim=1), args.gamma)
                    starts, *_ = sample(n_starts)
                    imagined = branch(ensemble, q, starts, known, args.rollout_length, args.gamma, args.pessimism)
                    b_obs, b_action, y = map(torch.cat, zip((b_obs, b_action, y), *imagined, strict=True))
                for rows in torch.randperm(len(y)).chunk(updates):
                    q_taken = q(b_obs[rows]).gather(1, b_action[rows, None]).squeeze(1)
                    scalars["losses/td_loss"] = descend(optimizer, F.smooth_l1_loss(q_taken, y[rows]))
                rate = args.learning_rate * max(0.0, 1.0 - step / args.total_timesteps)
                optimizer.param_groups[0]["lr"], model_optimizer.param_groups[0]["lr"] = rate, 5 * rate
                run.log(scalars if step % 100 < n else {})
            run.evaluate(greedy_policy())
        if isinstance(run.env.unwrapped, gridworld.GridWorldEnv):
            states = gridworld.observe_all(run.env)
            value = q(torch.as_tensor(states, device=args.device)).amax(dim=1).detach().cpu().numpy()
            panels = {"max Q(s, a) and the planned action": (value, greedy_policy()(states), None)}
            run.picture("policy", gridworld.draw(run.env, panels))
        run.finish(greedy_policy(), agent.state_dict())
    return agent


if __name__ == "__main__":
    train(tyro.cli(Args))
