"""Option-critic: options (an intra-option policy and a termination each) and the policy over them, learned end to end.

Paper: Bacon, Harb and Precup (2017), The Option-Critic Architecture, AAAI, arXiv:1609.05140v2; its equations and
       theorems are cited here. The deliberation cost is that of Harb et al. (2018), arXiv:1709.04571.
Run:   python options_critic.py --grid-size 8
Differences from the paper:
    D1. Advantage actor-critic over rollouts of several environments; no replay and no target network.
    D2. Q_Omega(s, w) is learned and serves as critic and baseline; Q_U(s, w, a) is replaced by its sample r + gamma U.
    D3. Actor and critic have a trunk each; the termination gradient reaches the termination layer only.
    D4. Only termination ends the return: a transition cut by the time limit bootstraps (Pardo et al. 2018).
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
    """Train an option-critic agent."""

    exp_name: str = "options_critic"
    """Name of the algorithm in run folders and reports."""
    seed: int = 1
    """Seed of the environments, the network and the exploration; the same seed gives the same run."""
    total_timesteps: int = 200_000
    """Environment steps of the whole run, over all environments."""
    log_dir: Path = Path("runs")
    """Folder in which the run's own folder is made."""
    eval_every: int = 5_000
    """Environment steps between evaluations of the greedy policy; 0 leaves only the last one."""
    eval_episodes: int = 10
    """Episodes in an evaluation, played side by side."""
    device: Literal["cpu", "cuda", "mps"] = "cpu"
    """Where the network is; the CPU is fastest for networks of this size."""
    save_model: bool = False
    """Write the trained weights to model.pt in the run folder."""
    capture_video: bool = False
    """Film a greedy episode of the trained agent, to video.gif in the run folder."""

    num_envs: int = 16
    """Environments stepped side by side."""
    num_steps: int = 20
    """Steps of each environment between updates."""
    num_options: int = 4
    """Options to learn."""
    learning_rate: float = 1e-3
    """Step size of Adam at the start; it falls to 0 linearly."""
    gamma: float = 0.99
    """Discount per step."""
    deliberation_cost: float = 0.05
    """Cost xi of ending an option, which makes options last."""
    start_e: float = 0.1
    """Chance of a random option at the first step, whenever an option is chosen."""
    end_e: float = 0.02
    """The same at the last step; it falls linearly."""
    start_ent_coef: float = 0.1
    """Weight of the entropy of the intra-option policies at the first step."""
    end_ent_coef: float = 0.005
    """The same at the last step; it falls linearly."""
    max_grad_norm: float = 0.5
    """Norm to which the gradient is clipped."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_run()
        self.check(num_envs=(1, 4_096), num_steps=(1, 1e5), num_options=(1, 64), learning_rate=(0, 1), gamma=(0, 1))
        self.check(deliberation_cost=(0, 1e6), start_e=(0, 1), end_e=(0, 1))
        self.check(start_ent_coef=(0, 1e6), end_ent_coef=(0, 1e6), max_grad_norm=(0, 1e6))


# ----------------------------------------------------------------------------- the maths
# Pure functions. B batch, K options, A actions.


def pick(values: Tensor, option: Tensor) -> Tensor:
    """The entry of each row that belongs to its option: (B, K, ...), (B,) int64 -> (B, ...)."""
    return values[torch.arange(len(option), device=option.device), option]


def value_upon_arrival(next_q: Tensor, next_beta: Tensor, option: Tensor) -> Tensor:
    """U(w, s') = (1 - beta_w(s')) Q(s', w) + beta_w(s') max_w' Q(s', w'), eq. (3), for arriving in s' with option w.

    next_q, next_beta (B, K) at s'; option (B,) int64, the option that led there. Returns (B,).
    """
    beta = pick(next_beta, option)
    return (1.0 - beta) * pick(next_q, option) + beta * next_q.max(dim=1).values


def option_target(reward: Tensor, terminated: Tensor, arrival_value: Tensor, gamma: float) -> Tensor:
    """g = r + gamma (1 - terminated) U(w, s'), the sample of Q_U(s, w, a) of eq. (2) and of algorithm 1.

    reward, terminated, arrival_value (B,) float. Returns (B,), detached.
    """
    return (reward + gamma * (1.0 - terminated) * arrival_value).detach()


def policy_loss(log_prob: Tensor, target: Tensor, q: Tensor) -> Tensor:
    """-mean log pi_w(a | s) (g - Q(s, w)): its gradient is the intra-option policy gradient, theorem 1, with baseline.

    log_prob, target, q (B,), of the options and actions taken; the advantage is detached.
    """
    return -(log_prob * (target - q).detach()).mean()


def termination_loss(next_beta: Tensor, next_q: Tensor, option: Tensor, terminated: Tensor, cost: float) -> Tensor:
    """mean beta_w(s') (Q(s', w) - max_w' Q(s', w') + xi): its gradient is that of theorem 2, with deliberation cost xi.

    Taken where option w arrives, before the next option is chosen; nothing where the episode terminated.
    next_beta, next_q (B, K) at s'; option (B,) int64; terminated (B,). Only beta receives gradient.
    """
    advantage = pick(next_q, option) - next_q.max(dim=1).values + cost
    return (pick(next_beta, option) * advantage.detach() * (1.0 - terminated)).mean()


def option_use(option: np.ndarray, begins: np.ndarray, start: np.ndarray, n: int) -> tuple[float, np.ndarray, float]:
    """Mean length of options, share (n,) of each of the n in the steps, and the entropy of these shares in nats.

    option (T, B) int acts at each step; begins (T, B) bool, where it was chosen; start (T, B) bool, where an episode
    begins: only the first episode of each of the B environments counts.
    """
    first = start.cumsum(axis=0) == 1
    share = np.bincount(option[first], minlength=n) / first.sum()
    used = share[share > 0]
    return first.sum() / (begins & first).sum(), share, -(used * np.log(used)).sum()


def linear_schedule(start: float, end: float, duration: float, step: int) -> float:
    """Value at `step` of the line from `start` at step 0 to `end` at step `duration`, then `end`."""
    return end if step >= duration else start + (end - start) * step / duration


# ----------------------------------------------------------------------------- network


class OptionCritic(nn.Module):
    """Q_Omega(s, w), log pi_w(a | s) and beta_w(s) of K options."""

    def __init__(self, obs_dim: int, n_actions: int, n_options: int) -> None:
        super().__init__()
        self.critic, self.actor = (
            nn.Sequential(nn.Linear(obs_dim, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh()) for _ in range(2)
        )
        self.q_head, self.policy_head = nn.Linear(64, n_options), nn.Linear(64, n_options * n_actions)
        self.termination_head, self.shape = nn.Linear(64, n_options), (n_options, n_actions)
        for linear in (module for module in self.modules() if isinstance(module, nn.Linear)):
            small = linear in (self.policy_head, self.termination_head)  # start near uniform, and near beta = 0.5
            nn.init.orthogonal_(linear.weight, 0.01 if small else 2**0.5)
            nn.init.zeros_(linear.bias)

    def q(self, obs: Tensor) -> Tensor:
        """(B, D) -> (B, K)."""
        return self.q_head(self.critic(obs))

    def act(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D) -> log pi (B, K, A) and beta (B, K), D3."""
        features = self.actor(obs)
        logits = self.policy_head(features).unflatten(1, self.shape)
        return logits.log_softmax(dim=2), self.termination_head(features.detach()).sigmoid()


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


def train(args: Args) -> OptionCritic:
    """Train one agent, log to TensorBoard, return its network."""
    rng = seed_everything(args.seed)
    envs = args.make_vec(args.num_envs)
    n, n_options, n_actions = args.num_envs, args.num_options, int(envs.single_action_space.n)
    network = OptionCritic(envs.single_observation_space.shape[0], n_actions, n_options).to(args.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=args.learning_rate, eps=1e-5, fused=True)

    @torch.no_grad()
    def view(obs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Q (B, K), log pi (B, K, A) and beta (B, K) as arrays."""
        obs = torch.as_tensor(obs, device=args.device)
        return tuple(tensor.cpu().numpy() for tensor in (network.q(obs), *network.act(obs)))

    def greedy_policy(alone: int | None = None, seen: list | None = None):
        """The best option where an episode starts or the last one ends (beta > 0.5), or always `alone`; best action.

        `seen` is given each step's (option, where one was chosen, where an episode starts), all (B,).
        """
        option = 0

        def policy(obs: np.ndarray, start: np.ndarray) -> np.ndarray:
            nonlocal option
            (q, log_pi, beta), rows = view(obs), np.arange(len(obs))
            ends = start | (beta[rows, option] > 0.5)
            option = np.where(ends, q.argmax(axis=1) if alone is None else alone, option)
            if seen is not None:
                seen.append((option, ends, start))
            return log_pi[rows, option].argmax(axis=1)

        return policy

    with Run(args) as run:
        obs, _ = envs.reset(seed=args.seed)  # seeded once: a seed on every reset would replay one episode
        start, option, age, rows = np.ones(n, bool), np.zeros(n, np.int64), np.zeros(n, np.int64), np.arange(n)
        lengths, per_update = [], n * args.num_steps
        for step in range(0, args.total_timesteps, per_update):
            epsilon = linear_schedule(args.start_e, args.end_e, args.total_timesteps, step)
            rollout = []
            for t in range(1, args.num_steps + 1):
                # Call and return: an option goes on until its termination, or the episode's end, stops it.
                q, log_pi, beta = view(obs)
                ends = start | (rng.random(n) < beta[rows, option])
                lengths += age[ends & (age > 0)].tolist()
                chosen = np.where(rng.random(n) < epsilon, rng.integers(n_options, size=n), q.argmax(axis=1))
                option, age = np.where(ends, chosen, option), np.where(ends, 1, age + 1)
                action = (log_pi[rows, option] + rng.gumbel(size=(n, n_actions))).argmax(axis=1)  # a sample of pi
                next_obs, reward, terminated, truncated, info = envs.step(action)
                start, last_obs = terminated | truncated, next_obs
                if start.any():  # next_obs already is the first of the next episode there
                    last_obs = next_obs.copy()
                    last_obs[start] = np.stack(info["final_obs"][start])
                rollout.append((obs, option, action, np.float32(reward), last_obs, np.float32(terminated)))
                obs = next_obs
                run.record(step + t * n, reward, start)

            # One update from the transitions of the rollout.
            columns = (np.concatenate(column) for column in zip(*rollout, strict=True))
            batch = [torch.as_tensor(column, device=args.device) for column in columns]
            b_obs, b_option, b_action, b_reward, b_next_obs, b_terminated = batch
            q, log_pi = pick(network.q(b_obs), b_option), pick(network.act(b_obs)[0], b_option)
            next_beta = network.act(b_next_obs)[1]
            with torch.no_grad():
                next_q = network.q(b_next_obs)
                arrival_value = value_upon_arrival(next_q, next_beta, b_option)
                target = option_target(b_reward, b_terminated, arrival_value, args.gamma)
            losses = {"q": F.mse_loss(q, target), "policy": policy_loss(pick(log_pi, b_action), target, q)}
            cost = args.deliberation_cost
            losses["termination"] = termination_loss(next_beta, next_q, b_option, b_terminated, cost)
            entropy = -(log_pi.exp() * log_pi).sum(dim=1).mean()
            ent_coef = linear_schedule(args.start_ent_coef, args.end_ent_coef, args.total_timesteps, step)
            optimizer.param_groups[0]["lr"] = linear_schedule(args.learning_rate, 0.0, args.total_timesteps, step)
            optimizer.zero_grad()
            (sum(losses.values()) - ent_coef * entropy).backward()
            nn.utils.clip_grad_norm_(network.parameters(), args.max_grad_norm)
            optimizer.step()
            if step % (10 * per_update) == 0:
                usage = np.bincount(b_option.cpu(), minlength=n_options) / per_update
                run.log({f"options/usage_{k}": share for k, share in enumerate(usage)})
                run.log({"options/length": np.mean(lengths or [0]), "options/beta": next_beta.mean().item()})
                run.log({f"losses/{name}": loss.item() for name, loss in (losses | {"entropy": entropy}).items()})
                lengths.clear()
            run.evaluate(greedy_policy())

        seen = []
        run.play(greedy_policy(seen=seen))
        length, share, use_entropy = option_use(*(np.array(column) for column in zip(*seen, strict=True)), n_options)
        run.log({"options/greedy_length": length, "options/greedy_entropy": use_entropy})
        run.log({f"options/greedy_usage_{k}": value for k, value in enumerate(share)})
        alone = [run.play(greedy_policy(k)) for k in range(n_options)]
        run.log({f"options/alone_{name}_{k}": mean for k, means in enumerate(alone) for name, mean in means.items()})
        if isinstance(run.env.unwrapped, gridworld.GridWorldEnv):
            q, log_pi, beta = view(gridworld.observe_all(run.env))
            best, action, names = q.argmax(axis=1), log_pi.argmax(axis=2), [f"option {k}" for k in range(n_options)]
            panels = {"best option and its action": (best, action[np.arange(len(q)), best], names)}
            for k, name in enumerate(names):
                panels[f"{name}: action, chance of ending"] = (beta[:, k], action[:, k], (0, 1))
            run.picture("options", gridworld.draw(run.env, panels))
        note = f"; options used {share.round(2)} for {length:.1f} steps at a time, "
        note += f"each alone returns {np.round([row['return'] for row in alone], 1)}"
        run.finish(greedy_policy(), network.state_dict(), note)
    return network


if __name__ == "__main__":
    train(tyro.cli(Args))
