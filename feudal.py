"""FeUdal networks: a manager sets directions in a latent space it learns, a worker is rewarded for moving along them.

Paper: Vezhnevets et al. (2017), FeUdal Networks for Hierarchical Reinforcement Learning, ICML, arXiv:1703.01161v2; its
       equations (7) and (8) and its sections are cited here.
Run:   python feudal.py --grid-size 8
Differences from the paper:
    D1. Advantage actor-critic over rollouts of several environments; random goals and entropy bonus fall linearly.
    D2. Manager and worker have a percept each, and the worker no memory: its U is a network of the observation.
    D3. Where an episode ends within c steps, its last state stands for s_{t+c}.
    D4. Only termination ends the return: a transition cut by the time limit bootstraps (Pardo et al. 2018).
"""

import dataclasses
import functools
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
    """Train a feudal network."""

    exp_name: str = "feudal"
    """Name of the algorithm in run folders and reports."""
    seed: int = 1
    """Seed of the environments, the network and the exploration; the same seed gives the same run."""
    total_timesteps: int = 250_000
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

    num_envs: int = 32
    """Environments stepped side by side."""
    num_steps: int = 20
    """Steps of each environment between updates."""
    manager: bool = True
    """Manager and worker; without, the same layers are an LSTM actor-critic: no goals, no intrinsic reward."""
    goal_horizon: int = 5
    """Steps c that a goal looks ahead, at most --num-steps; so many goals are pooled, and it is the LSTM's radius r."""
    learning_rate: float = 2e-3
    """Step size of Adam at the start; it falls to 0 linearly."""
    gamma: float = 0.99
    """Discount per step of the worker's return."""
    manager_gamma: float = 0.99
    """Discount per step of the manager's return."""
    intrinsic_coef: float = 0.1
    """Weight alpha of the intrinsic reward in the worker's return."""
    extrinsic_coef: float = 1.0
    """Weight of the environment's reward in the worker's return; 0 hides it (Dayan and Hinton 1993)."""
    random_goals: float = 0.02
    """Chance of a random goal at the first step; it falls to 0 linearly."""
    start_ent_coef: float = 0.1
    """Weight of the entropy of the worker's policy at the first step."""
    end_ent_coef: float = 0.005
    """The same at the last step; it falls linearly."""
    max_grad_norm: float = 0.5
    """Norm to which the gradient is clipped."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_run()
        self.check(num_envs=(1, 4_096), num_steps=(1, 1e5), goal_horizon=(1, self.num_steps), learning_rate=(0, 1))
        self.check(gamma=(0, 1), manager_gamma=(0, 1), intrinsic_coef=(0, 1e6), extrinsic_coef=(0, 1e6))
        self.check(random_goals=(0, 1), start_ent_coef=(0, 1e6), end_ent_coef=(0, 1e6), max_grad_norm=(0, 1e6))


# ----------------------------------------------------------------------------- the maths
# Pure functions. T steps of a rollout, N environments, Z latent, A actions, c goal horizon.


def d_cos(movement: Tensor, goal: Tensor) -> Tensor:
    """Cosine of the angle between movement and goal, (..., Z) -> (...); 0 where one of them is 0."""
    return F.cosine_similarity(movement, goal, dim=-1)


def intrinsic_reward(next_s: Tensor, past_s: Tensor, past_goal: Tensor) -> Tensor:
    """r_I = 1/c sum_{i=1..c} d_cos(s_t - s_{t-i}, g_{t-i}), eq. (8), on arriving in s_t.

    next_s (..., Z), s_t; past_s, past_goal (c, ..., Z), of the c steps before, 0 where the episode had not begun: such
    terms are 0. Returns (...) in [-1, 1], detached.
    """
    return d_cos(next_s - past_s, past_goal).mean(dim=0).detach()


def n_step_return(reward: Tensor, terminated: Tensor, ended: Tensor, next_value: Tensor, gamma: float) -> Tensor:
    """R_t = r_t + gamma (1 - terminated) (V(x_{t+1}) where the episode or the rollout ends, else R_{t+1}).

    reward, next_value (T, N) float, next_value of the observation arrived in; terminated, ended (T, N) bool, ended also
    where the time limit cut the episode (D4). Returns (T, N), detached.
    """
    returns, following = [], next_value[-1]
    for t in reversed(range(len(reward))):
        following = reward[t] + gamma * ~terminated[t] * torch.where(ended[t], next_value[t], following)
        returns.append(following)
    return torch.stack(returns[::-1]).detach()


def movements(s: Tensor, next_s: Tensor, ended: Tensor, c: int) -> tuple[Tensor, Tensor]:
    """s_{t+c} - s_t, with the last state of an episode that ends before (D3), (T, N, Z); is it known?, (T, N) bool.

    s, next_s (T, N, Z): s_t, and s_{t+1} before any reset; ended (T, N) bool. Unknown: it lies beyond the rollout.
    """
    arrival, known, goes_on = next_s.clone(), ended.clone(), ~ended[:-1]
    for k in range(1, min(c, len(ended))):
        arrival[:-k] = torch.where(goes_on[..., None], next_s[k:], arrival[:-k])
        known[:-k] |= goes_on & ended[k:]
        goes_on = (goes_on & ~ended[k:])[:-1]  # (T - k - 1, N): step t's episode still runs after step t + k
    known[: max(len(ended) - c + 1, 0)] = True
    return arrival - s, known


def manager_loss(goal: Tensor, movement: Tensor, advantage: Tensor, known: Tensor) -> Tensor:
    """-mean A_M d_cos(s_{t+c} - s_t, g_t): its gradient is the transition policy gradient, eq. (7).

    goal, movement (T, N, Z); advantage (T, N); known (T, N) bool, the steps over which the mean is taken. Movement and
    advantage are detached: the latent space is not bent to make the worker look obedient.
    """
    gain = advantage.detach() * d_cos(movement.detach(), goal)
    return -gain[known].sum() / known.sum().clamp(min=1)


def worker_loss(log_prob: Tensor, advantage: Tensor) -> Tensor:
    """-mean A_D log pi(a | x), section 3.1: its gradient is the policy gradient. (T, N), (T, N); advantage detached."""
    return -(log_prob * advantage.detach()).mean()


# ----------------------------------------------------------------------------- network


class Feudal(nn.Module):
    """A manager that sets goals, a worker that acts on them, and a critic of the observation for each."""

    latent, embedding = 32, 8  # Z of states and goals; k, in which actions meet the pooled goals

    def __init__(self, obs_dim: int, n_actions: int, goal_horizon: int, has_manager: bool = True) -> None:
        super().__init__()
        self.c, self.has_manager, z, k = goal_horizon, has_manager, self.latent, self.embedding
        self.space, self.worker, self.manager_critic, self.worker_critic = (
            nn.Sequential(nn.Linear(obs_dim, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, size))
            for size in (z, n_actions * k, 1, 1)
        )
        self.lstm, self.phi = nn.LSTMCell(z, z), nn.Linear(z, k, bias=False)  # no bias: without goals, no preference
        for name, parameter in self.named_parameters():  # biases 0: the LSTM's would make all goals alike
            gain = 0.01 if name == "worker.4.weight" else 2**0.5  # start near a uniform policy
            nn.init.orthogonal_(parameter, gain) if "weight" in name else nn.init.zeros_(parameter)
        nn.init.ones_(self.lstm.bias_ih[z : 2 * z])  # the forget gate: memories last

    def memory(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Before the first step, 0: LSTM states (r, 2, N, Z); the last c latent states and goals (c, N, Z) each."""
        r = self.c if self.has_manager else 1
        return tuple(self.phi.weight.new_zeros(*size, n, self.latent) for size in ((r, 2), (self.c,), (self.c,)))

    def manage(self, obs: Tensor, start: Tensor, memory: tuple, random_goal: Tensor | None = None) -> tuple:
        """One step of the manager: the goal (N, Z), the goals pooled for the worker (N, Z), the memory afterwards.

        obs (N, D); start (N,) bool, where an episode begins, with no memory of the last; random_goal (N, Z) replaces
        the goal in rows that are not 0. Only the goal and the LSTM's states carry gradient.
        """
        lstm, past_s, past_goal = (part * ~start[:, None] for part in memory)
        s = self.space(obs)
        # Dilated LSTM: r states, each a memory of every r-th step; the oldest moves, the outputs of all are pooled.
        lstm = torch.cat([lstm[1:], torch.stack(self.lstm(s, (lstm[0, 0], lstm[0, 1])))[None]])
        goal = lstm[:, 0].sum(dim=0)
        if not self.has_manager:  # r = 1: the output of an LSTM, through which the worker's gradient flows
            return goal, goal, (lstm, past_s, past_goal)
        if random_goal is not None:
            goal = torch.where(random_goal.any(dim=1, keepdim=True), random_goal, goal)
        goal = F.normalize(goal, dim=1)
        pooled = past_goal.sum(dim=0) + goal.detach()  # g_{t-c} to g_t; the worker's gradient stays with the worker
        past_s, past_goal = torch.cat([past_s[1:], s.detach()[None]]), torch.cat([past_goal[1:], goal.detach()[None]])
        return goal, pooled, (lstm, past_s, past_goal)

    def log_pi(self, obs: Tensor, pooled: Tensor) -> Tensor:
        """log softmax(U w), w = phi(pooled goals): (..., D), (..., Z) -> (..., A)."""
        u = self.worker(obs).unflatten(-1, (-1, self.embedding))  # (..., A, k)
        return (u @ self.phi(pooled)[..., None])[..., 0].log_softmax(dim=-1)


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


def train(args: Args) -> Feudal:
    """Train one agent, log to TensorBoard, return its network."""
    rng = seed_everything(args.seed)
    envs = args.make_vec(args.num_envs)
    n, c, n_actions = args.num_envs, args.goal_horizon, int(envs.single_action_space.n)
    network = Feudal(envs.single_observation_space.shape[0], n_actions, c, args.manager).to(args.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=args.learning_rate, eps=1e-5, fused=True)
    tensor = functools.partial(torch.as_tensor, device=args.device)

    def greedy_policy():
        """The likeliest action, with a memory of its own."""
        memory = None

        @torch.no_grad()
        def policy(obs: np.ndarray, start: np.ndarray) -> np.ndarray:
            nonlocal memory
            memory = memory or network.memory(len(obs))
            _, pooled, memory = network.manage(tensor(obs), tensor(start), memory)
            return network.log_pi(tensor(obs), pooled).argmax(dim=1).cpu().numpy()

        return policy

    with Run(args) as run:
        obs, _ = envs.reset(seed=args.seed)  # seeded once: a seed on every reset would replay one episode
        start, memory, per_update = np.ones(n, bool), network.memory(n), n * args.num_steps
        for step in range(0, args.total_timesteps, per_update):
            left = 1.0 - step / args.total_timesteps  # of the run
            memory, rollout = tuple(part.detach() for part in memory), []  # the values are carried on, the graph is not
            for t in range(1, args.num_steps + 1):
                # The manager sets a goal, keeping the graph for the update; the worker acts on the last goals.
                is_random = rng.random((n, 1)) < args.random_goals * left
                random_goal = np.float32(rng.normal(size=(n, network.latent)) * is_random)
                goal, pooled, memory = network.manage(tensor(obs), tensor(start), memory, tensor(random_goal))
                with torch.no_grad():
                    log_pi = network.log_pi(tensor(obs), pooled).cpu().numpy()
                action = (log_pi + rng.gumbel(size=(n, n_actions))).argmax(axis=1)  # a sample of pi
                next_obs, reward, terminated, truncated, info = envs.step(action)
                start, last_obs = terminated | truncated, next_obs
                if start.any():  # next_obs already is the first of the next episode there
                    last_obs = next_obs.copy()
                    last_obs[start] = np.stack(info["final_obs"][start])
                columns = (tensor(column) for column in (obs, action, np.float32(reward), last_obs, terminated, start))
                rollout.append((*columns, goal, pooled, *memory[1:]))
                obs = next_obs
                run.record(step + t * n, reward, start)

            # One update from the rollout, (T, N, ...).
            columns = (torch.stack(column) for column in zip(*rollout, strict=True))
            b_obs, b_action, b_reward, b_last_obs, b_terminated, b_ended, goal, pooled, past_s, past_goal = columns
            reward, losses, advantage = args.extrinsic_coef * b_reward, {}, {}
            if args.manager:
                next_s = network.space(b_last_obs).detach()
                r_i = intrinsic_reward(next_s, past_s.transpose(0, 1), past_goal.transpose(0, 1))
                reward = reward + args.intrinsic_coef * r_i
            critics = [("worker", network.worker_critic, reward, args.gamma)]
            critics += [("manager", network.manager_critic, b_reward, args.manager_gamma)] if args.manager else []
            for name, critic, reward, gamma in critics:
                value, next_value = critic(b_obs)[..., 0], critic(b_last_obs)[..., 0].detach()
                target = n_step_return(reward, b_terminated, b_ended, next_value, gamma)
                losses[f"{name}_value"], advantage[name] = F.mse_loss(value, target), target - value
            log_pi = network.log_pi(b_obs, pooled)
            losses["worker"] = worker_loss(log_pi.gather(2, b_action[..., None])[..., 0], advantage["worker"])
            if args.manager:
                movement, known = movements(past_s[:, -1], next_s, b_ended, c)
                losses["manager"] = manager_loss(goal, movement, advantage["manager"], known)
            entropy = -(log_pi.exp() * log_pi).sum(dim=-1).mean()
            ent_coef = args.end_ent_coef + (args.start_ent_coef - args.end_ent_coef) * left
            optimizer.param_groups[0]["lr"] = args.learning_rate * left
            optimizer.zero_grad()
            (sum(losses.values()) - ent_coef * entropy).backward()
            nn.utils.clip_grad_norm_(network.parameters(), args.max_grad_norm)
            optimizer.step()
            if step % (10 * per_update) == 0:
                run.log({f"losses/{name}": loss.item() for name, loss in (losses | {"entropy": entropy}).items()})
                if args.manager:
                    shuffled = pooled.flatten(0, 1)[tensor(rng.permutation(per_update))].view_as(pooled)
                    changed = network.log_pi(b_obs, shuffled).argmax(dim=2) != log_pi.argmax(dim=2)
                    goals = {"cosine": d_cos(movement, goal)[known].mean(), "intrinsic_reward": r_i.mean()}
                    goals |= {"norm_of_mean": goal.mean(dim=(0, 1)).norm(), "changed": changed.float().mean()}
                    run.log({f"goals/{name}": value.item() for name, value in goals.items()})
            run.evaluate(greedy_policy())

        if args.manager and isinstance(grid := run.env.unwrapped, gridworld.GridWorldEnv) and grid.n_states <= 2_000:
            obs, policy, actions = gridworld.observe_all(run.env), greedy_policy(), []
            state, distance = np.arange(len(obs)), np.where(np.eye(len(obs)) == 1, 0, c + 1)  # from state to state
            for t in range(c):  # what the worker does in each state when an episode begins there
                actions.append(policy(obs[state], np.full(len(obs), t == 0)))
                state = grid.next_state[state, actions[-1]]
                distance = np.minimum(distance, 1 + distance[grid.next_state].min(axis=1))
            with torch.no_grad():  # cosine of the goal in one state (row) with the way to another (column)
                s, value = network.space(tensor(obs)), network.worker_critic(tensor(obs))[:, 0].cpu().numpy()
                goal, *_ = network.manage(tensor(obs), tensor(np.ones(len(obs), bool)), network.memory(len(obs)))
                cosine = ((goal @ s.T - (goal * s).sum(1, True)) / torch.cdist(s, s).clamp(min=1e-3)).cpu().numpy()
            place = np.where((distance > 0) & (distance <= c), cosine, -2.0).argmax(axis=1)  # what the goal points at
            way, moved = distance[grid.next_state, place[:, None]].argmin(axis=1), cosine[np.arange(len(obs)), state]
            panels = {"greedy move, the worker's value": (value, actions[0], None)}
            panels[f"way to the goal, its cosine with {c} greedy moves"] = (moved, way, (-1, 1))
            run.picture("goals", gridworld.draw(run.env, panels))
        note = "; cosine of movement and goal {cosine:.2f}, shuffled goals change {changed:.0%} of the actions"
        run.finish(greedy_policy(), network.state_dict(), note.format(**goals) if args.manager else "")
    return network


if __name__ == "__main__":
    train(tyro.cli(Args))
