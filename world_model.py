"""World model: learn a latent simulator of the environment, and train the agent in what it imagines (Dreamer).

Paper: Hafner et al. (2021), Mastering Atari with Discrete World Models (DreamerV2), arXiv:2010.02193; cited by section.
       Free bits and scaled returns: DreamerV3, Hafner et al. (2023), arXiv:2301.04104. The planner with the
       cross-entropy method: PlaNet, Hafner et al. (2019), arXiv:1811.04551, section 2.
Run:   python world_model.py --grid-size 8
Differences from the papers:
    D1. Observations are whole states, so the latent needs no memory: q(z | o), and no recurrent network. A reward then
        is known by the state it leads to: what only the action costs (Taxi's wrong drop) the model cannot tell.
    D2. Only termination ends an imagined return: a transition cut by the time limit goes on (Pardo et al. 2018).
    D3. Real actions are epsilon-greedy upon the controller's; a random one often repeats the last, to get further.
    D4. The planner (`--controller mpc`) adds the critic's value to the end of its sequences; PlaNet adds none.
    D5. Advantages are divided by the range of the batch's own returns; V3 takes a running mean of that range.
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

N_LATENTS, N_CLASSES = 8, 8  # z: 8 one-hot codes of 8 classes in a row, Z = 64 numbers
OBS_STD = 0.1  # standard deviation of the decoder's Gaussian; the reward's is 1
KL_DYNAMICS, KL_REPRESENTATION, FREE_NATS = 1.0, 0.3, 0.1  # see balanced_kl
LAMBDA, TAU = 0.95, 0.02  # weight of longer returns; share by which the slow critic follows at each update
CANDIDATES, ELITES, ITERATIONS = 64, 8, 2  # of the cross-entropy method
OPEN_LOOP, STUDIED = (1, 5, 15), (1, 3, 5, 8, 10)  # steps ahead that are tested; planning horizons that are compared


@dataclasses.dataclass(frozen=True)
class Args(gridworld.EnvArgs):
    """Train a world model, and an agent in its imagination."""

    exp_name: str = "world_model"
    """Name of the algorithm in run folders and reports."""
    seed: int = 1
    """Seed of the environments, the network and the exploration; the same seed gives the same run."""
    total_timesteps: int = 2_000
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

    controller: Literal["actor-critic", "mpc"] = "actor-critic"
    """Who acts: an actor trained in imagination alone, or a planner whose sequences end with the critic's value."""
    horizon: int = 10
    """Steps imagined from a state, in the actor's training and by the planner."""
    learning_rate: float = 1e-2
    """Step size of Adam for the world model, a tenth of it for actor and critic; it falls to a twentieth linearly."""
    gamma: float = 0.95
    """Discount per step."""
    ent_coef: float = 0.02
    """Weight of the actor's entropy at the start; it falls to a twentieth linearly."""
    buffer_size: int = 50_000
    """Transitions kept for replay; the oldest are overwritten."""
    batch_size: int = 128
    """Transitions in an update of the model; imagination starts from half of their observations."""
    learning_starts: int = 100
    """Environment steps before the first update."""
    train_frequency: int = 1
    """Environment steps per update of model, actor and critic."""
    start_e: float = 1.0
    """Chance of a random action at the first step."""
    end_e: float = 0.05
    """Chance of a random action once exploration has come down."""
    exploration_fraction: float = 0.8
    """Share of the run over which that chance falls from start_e to end_e, linearly."""
    repeat: float = 0.5
    """Chance that a random action is the last action once more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_run()
        self.check(horizon=(1, 1_000), learning_rate=(0, 1), gamma=(0, 1), ent_coef=(0, 1e6), buffer_size=(1, 1e8))
        self.check(batch_size=(2, 1e6), learning_starts=(0, 1e12), train_frequency=(1, 1e9))
        self.check(start_e=(0, 1), end_e=(0, 1), exploration_fraction=(0, 1), repeat=(0, 1))


# ----------------------------------------------------------------------------- the maths
# Pure functions. B batch, T time, A actions, N latents of C classes, Z = N C. Logits of a latent are (B, N, C).


def straight_through(logits: Tensor, index: Tensor) -> Tensor:
    """The code of classes `index` (B, N): one-hot, (B, Z), with the gradient of the probabilities (section 2.1)."""
    probs = logits.softmax(dim=-1)
    return (torch.eye(logits.shape[-1], device=logits.device)[index] + probs - probs.detach()).flatten(1)


def kl_divergence(post: Tensor, prior: Tensor) -> Tensor:
    """KL(q || p), the sum over latents and classes of q (log q - log p), from the logits of q and p: (B,) nats."""
    log_q, log_p = post.log_softmax(dim=-1), prior.log_softmax(dim=-1)
    return (log_q.exp() * (log_q - log_p)).sum(dim=(1, 2))


def balanced_kl(post: Tensor, prior: Tensor, dynamics: float, representation: float, free: float) -> Tensor:
    """Mean of w_dynamics max(free, KL(sg q || p)) + w_representation max(free, KL(q || sg p)); sg stops the gradient.

    post: q(z' | o'), the encoding of the NEXT observation; prior: p(z' | z, a). The first term teaches the dynamics
    alone, the second the encoder alone, neither anything below `free` nats (KL balancing, 2.1; free bits, V3).
    """
    to_dynamics = kl_divergence(post.detach(), prior).clamp(min=free)
    to_encoder = kl_divergence(post, prior.detach()).clamp(min=free)
    return (dynamics * to_dynamics + representation * to_encoder).mean()


def elbo_losses(decoded: Tensor, outcome: Tensor, next_obs: Tensor, reward: Tensor, terminated: Tensor):
    """-log p(o' | z'), -log p(r | z'), -log p(goes on | z') up to constants, means over the batch (section 2.1).

    decoded (B, D) and outcome (B, 2): the heads at z' ~ q(z' | o'). With balanced_kl the sum is the negative ELBO.
    """
    return {
        "reconstruction": (decoded - next_obs).square().sum(dim=1).mean() / (2 * OBS_STD**2),
        "reward": (outcome[:, 0] - reward).square().mean() / 2,
        "continue": F.binary_cross_entropy_with_logits(outcome[:, 1], 1.0 - terminated),  # D2
    }


def lambda_returns(reward: Tensor, discount: Tensor, next_value: Tensor, lam: float) -> Tensor:
    """R_t = r_t + g_t ((1 - lambda) v_{t+1} + lambda R_{t+1}), where R_T = v_T: (T, B) (section 2.2).

    All (T, B), of the step from z_t to z_{t+1}: reward r_t, discount g_t = gamma * chance of going on, value v_{t+1}.
    """
    returns, following = torch.zeros_like(reward), next_value[-1]
    for t in reversed(range(len(reward))):
        following = returns[t] = reward[t] + discount[t] * ((1 - lam) * next_value[t] + lam * following)
    return returns


def reach_weights(discount: Tensor) -> Tensor:
    """w_t = g_0 ... g_{t-1}, what z_t counts, given that the episode may have ended on the way there: (T, B)."""
    return torch.cat([torch.ones_like(discount[:1]), discount[:-1].cumprod(dim=0)])


def actor_loss(log_pi: Tensor, action: Tensor, advantage: Tensor, weight: Tensor, ent_coef: float) -> Tensor:
    """-mean w (log pi(a | z) sg(advantage) + eta H(pi(. | z))) (section 2.2). log_pi (T, B, A), the others (T, B)."""
    log_prob = log_pi.gather(-1, action[..., None]).squeeze(-1)
    entropy = -(log_pi.exp() * log_pi).sum(dim=-1)
    return -(weight * (log_prob * advantage.detach() + ent_coef * entropy)).mean()


def critic_loss(value: Tensor, returns: Tensor, weight: Tensor) -> Tensor:
    """mean w (v(z) - sg(R))^2 / 2 (section 2.2); all (T, B)."""
    return (weight * (value - returns.detach()).square()).mean() / 2


def linear_schedule(start: float, end: float, duration: float, step: int) -> float:
    """Value at `step` of the line from `start` at step 0 to `end` at step `duration`, then `end`."""
    return end if step >= duration else start + (end - start) * step / duration


# ----------------------------------------------------------------------------- networks and imagination


def mlp(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_in, 128), nn.SiLU(), nn.Linear(128, n_out))


class WorldModel(nn.Module):
    """Encoder q(z | o), dynamics p(z' | z, a), and two heads: `decoder` (B, Z) -> (B, D), the mean observation, and
    `outcome` (B, Z) -> (B, 2), the mean reward for arriving in z and the logit of the episode going on from there."""

    def __init__(self, obs_dim: int, n_actions: int) -> None:
        super().__init__()
        n_z, self.n_actions = N_LATENTS * N_CLASSES, n_actions
        self.encoder, self.dynamics = mlp(obs_dim, n_z), mlp(n_z + n_actions, n_z)
        self.encoder.insert(1, nn.LayerNorm(128))  # a one-hot input is small: without this it is learned slowly
        self.decoder, self.outcome = mlp(n_z, obs_dim), mlp(n_z, 2)

    def encode(self, obs: Tensor) -> Tensor:
        """Logits of q(z | o): (B, D) -> (B, N, C)."""
        return self.encoder(obs).unflatten(1, (N_LATENTS, N_CLASSES))

    def predict(self, z: Tensor, action: Tensor) -> Tensor:
        """Logits of p(z' | z, a): (B, Z), (B,) -> (B, N, C)."""
        inputs = torch.cat([z, torch.eye(self.n_actions, device=z.device)[action]], dim=1)
        return self.dynamics(inputs).unflatten(1, (N_LATENTS, N_CLASSES))


def draw(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """A sample of the categorical distribution, or without a generator its mode: (..., C) -> (...) int64."""
    if generator is not None:  # argmax p / E, with E exponential, is a sample of p
        logits = logits - torch.empty_like(logits).exponential_(generator=generator).log()
    return logits.argmax(dim=-1)


def code(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The latent z (B, Z) of a sample, or of the mode."""
    return straight_through(logits, draw(logits, generator))


@torch.no_grad()
def imagine(model: WorldModel, z: Tensor, act, horizon: int, generator: torch.Generator | None = None):
    """`horizon` steps of the dynamics from z (B, Z): latents (T + 1, B, Z), the first is z, and actions (T, B).

    act(z, t) gives the actions (B,). Latents are samples of the prior, or without a generator its modes.
    """
    zs, actions = [z], []
    for t in range(horizon):
        actions.append(act(zs[-1], t))
        index = draw(model.predict(zs[-1], actions[-1]), generator)
        zs.append(torch.eye(N_CLASSES, device=z.device)[index].flatten(1))
    return torch.stack(zs), torch.stack(actions)


@torch.no_grad()
def plan(nets: nn.ModuleDict, z: Tensor, horizon: int, gamma: float, generator: torch.Generator) -> Tensor:
    """First actions (B,) of the best sequences that the cross-entropy method finds from z (B, Z).

    Each step's action has a categorical distribution, which becomes the frequencies among the best candidates.
    """
    model, logits = nets["model"], torch.zeros(horizon, len(z), 1, nets["model"].n_actions, device=z.device)
    starts = z.repeat_interleave(CANDIDATES, dim=0)
    for _ in range(ITERATIONS):
        actions = draw(logits.expand(-1, -1, CANDIDATES, -1), generator)  # (T, B, candidates)
        zs, _ = imagine(model, starts, lambda _, t, a=actions: a[t].flatten(), horizon)
        reward, going_on = model.outcome(zs[1:]).unbind(-1)
        value = nets["critic"](zs[1:]).squeeze(-1)  # with lambda = 1 only the last one counts, D4
        returns = lambda_returns(reward, gamma * going_on.sigmoid(), value, 1.0)[0].view(len(z), CANDIDATES)
        best = returns.topk(ELITES, dim=1).indices
        elites = actions.gather(2, best.expand(horizon, -1, -1))  # the best one first
        logits = F.one_hot(elites, model.n_actions).float().mean(dim=2, keepdim=True).add(1e-3).log()
    return elites[0, :, 0]


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


def update_model(model: WorldModel, optimizer, batch, generator: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
    """One step down the negative ELBO of transitions (o, a, r, o', terminated): losses by name, latents of o (B, Z)."""
    obs, action, reward, next_obs, terminated = batch
    logits, post = model.encode(torch.cat([obs, next_obs])).chunk(2)
    z, next_z = code(logits, generator), code(post, generator)
    losses = elbo_losses(model.decoder(next_z), model.outcome(next_z), next_obs, reward, terminated)
    losses["kl"] = balanced_kl(post, model.predict(z, action), KL_DYNAMICS, KL_REPRESENTATION, FREE_NATS)
    optimizer.zero_grad()
    sum(losses.values()).backward()
    optimizer.step()
    return losses, z.detach()


def update_agent(nets: nn.ModuleDict, optimizer, z: Tensor, ent_coef: float, args: Args, generator: torch.Generator):
    """One step of actor and critic in `horizon` imagined steps from encodings z (B, Z) of real states: their losses."""
    model, actor, critic = nets["model"], nets["actor"], nets["critic"]
    zs, action = imagine(model, z, lambda z, _: draw(actor(z), generator), args.horizon, generator)
    with torch.no_grad():
        reward, going_on = model.outcome(zs[1:]).unbind(-1)
        discount = args.gamma * going_on.sigmoid()
        returns = lambda_returns(reward, discount, nets["slow_critic"](zs[1:]).squeeze(-1), LAMBDA)
        low, high = returns.quantile(torch.tensor([0.05, 0.95], device=z.device))
        weight = reach_weights(discount)
    value, log_pi = critic(zs[:-1]).squeeze(-1), actor(zs[:-1]).log_softmax(dim=-1)
    advantage = (returns - value) / (high - low).clamp(min=1.0)  # D5: one ent_coef for all scales of reward
    losses = {"actor": actor_loss(log_pi, action, advantage, weight, ent_coef)}
    losses["critic"] = critic_loss(value, returns, weight)
    optimizer.zero_grad()
    sum(losses.values()).backward()
    optimizer.step()
    torch._foreach_lerp_(list(nets["slow_critic"].parameters()), list(critic.parameters()), TAU)
    return losses


def collect(env: gym.Env, choose, steps: int, seed: int) -> list[Tensor]:
    """Columns (o, a, r, o', terminated, ended) of `steps` steps with actions choose(o); `ended` by the limit, too."""
    rows, (obs, _) = [], env.reset(seed=seed)
    for _ in range(steps):
        action = int(choose(obs))
        next_obs, reward, terminated, truncated, _ = env.step(action)
        rows.append((obs, action, np.float32(reward), next_obs, np.float32(terminated), terminated or truncated))
        obs = env.reset()[0] if terminated or truncated else next_obs
    return [torch.as_tensor(np.array(column)) for column in zip(*rows, strict=True)]


@torch.no_grad()
def open_loop(model: WorldModel, walk: list[Tensor]) -> dict[str, float]:
    """Of a walk that trained nothing: the squared error of the prior's decoded modes, and how often the observation of
    the walk that is nearest to them is the right one, by steps ahead."""
    obs, action, _, next_obs, _, ended = walk
    n, seen, tags = len(obs) - max(OPEN_LOOP), next_obs.unique(dim=0), {}
    zs, _ = imagine(model, code(model.encode(obs[:n])), lambda _, t: action[t : t + n], max(OPEN_LOOP))
    episode = ended.cumsum(dim=0) - ended.long()
    for k in OPEN_LOOP:
        start = torch.arange(n, device=obs.device)[episode[:n] == episode[k - 1 : k - 1 + n]]
        if len(start):
            decoded, true = model.decoder(zs[k][start]), next_obs[start + k - 1]
            right = torch.cdist(decoded, seen).argmin(dim=1) == torch.cdist(true, seen).argmin(dim=1)
            tags[f"model/open_loop_error_{k}"] = (decoded - true).square().sum(dim=1).mean().item()
            tags[f"model/open_loop_right_{k}"] = right.float().mean().item()
    return tags


@torch.no_grad()
def study_and_draw(run, nets: nn.ModuleDict, policy, walk: list[Tensor]) -> None:
    """The horizon study; of a grid world also pictures of it, of the latent space, and of imagined and real paths."""
    grid, model, played = run.env.unwrapped, nets["model"], [run.play(policy("mpc", horizon)) for horizon in STUDIED]
    for horizon, means in zip(STUDIED, played, strict=True):
        run.log({f"horizon/{name}_{horizon}": mean for name, mean in means.items()})
    if not isinstance(grid, gridworld.GridWorldEnv):
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # here: it takes half a second to import
    from matplotlib.figure import Figure

    everywhere = torch.as_tensor(gridworld.observe_all(run.env), device=run.args.device)
    logits = model.encode(everywhere)
    z, probs = code(logits), logits.softmax(dim=-1).flatten(1)
    panel = (nets["critic"](z).squeeze(-1).cpu().numpy(), nets["actor"](z).argmax(dim=1).cpu().numpy(), None)
    run.picture("policy", gridworld.draw(run.env, {"the critic's value and the actor's action": panel}))

    # The latent's probabilities on their two directions of largest variance; the return by planning horizon.
    canvas = FigureCanvasAgg(figure := Figure((13.5, 4), layout="constrained"))
    u, s, _ = torch.linalg.svd(probs - probs.mean(dim=0), full_matrices=False)
    for i, name in enumerate(("row", "column")):
        axes = figure.add_subplot(1, 3, 1 + i, title=f"latent space, coloured by {name}")
        dots = axes.scatter(*(u * s)[:, :2].T.cpu(), c=grid.cells[grid.cell_of, i], cmap="viridis")
        figure.colorbar(dots, ax=axes, label=name)
    axes = figure.add_subplot(1, 3, 3, xlabel="planning horizon", ylabel="return of the planner (grey: optimal)")
    axes.axhline(run.optimal, color="grey")
    axes.plot(STUDIED, [means["return"] for means in played], marker="o")
    canvas.draw()
    run.picture("latent_space_and_horizons", np.array(canvas.buffer_rgba())[:, :, :3])

    # When a greedy episode and two random walks arrive in each cell, and below, when the model thinks so.
    greedy = collect(run.env, lambda obs: policy()(obs[None])[0], 20, 10_000)
    real, imagined = {}, {}
    for name, columns, first in ("greedy", greedy, 0), ("random 1", walk, 150), ("random 2", walk, 300):
        obs, action, _, next_obs, _, ended = (column[first : first + 20].to(run.args.device) for column in columns)
        n = int(ended.float().argmax()) + 1 if ended.any() else len(ended)
        zs, _ = imagine(model, code(model.encode(obs[:1])), lambda _, t, a=action: a[t : t + 1], n)
        for panels, path in (real, torch.cat([obs[:1], next_obs[:n]])), (imagined, model.decoder(zs[:, 0])):
            when, states = np.full(len(everywhere), np.nan), torch.cdist(path, everywhere).argmin(dim=1).cpu()
            when[states.flip(0)] = np.arange(n, -1, -1)  # the first arrival is written last
            panels[f"{'real' if panels is real else 'imagined'}, {name}: step of arrival"] = (when, None, (0, 20))
    run.picture("imagined_and_real", gridworld.draw(run.env, real | imagined))


def train(args: Args) -> nn.ModuleDict:
    """Train one agent, log to TensorBoard, return its world model, actor and critics."""
    rng, env = seed_everything(args.seed), args.make_env()
    obs_dim, n_actions, n_z = env.observation_space.shape[0], int(env.action_space.n), N_LATENTS * N_CLASSES
    nets = {"model": WorldModel(obs_dim, n_actions), "actor": mlp(n_z, n_actions)}
    nets = nn.ModuleDict(nets | {"critic": mlp(n_z, 1), "slow_critic": mlp(n_z, 1)}).to(args.device)
    nets["slow_critic"].requires_grad_(False).load_state_dict(nets["critic"].state_dict())
    model_optimizer = torch.optim.Adam(nets["model"].parameters(), lr=args.learning_rate, fused=True)
    agent = [*nets["actor"].parameters(), *nets["critic"].parameters()]
    agent_optimizer = torch.optim.Adam(agent, lr=args.learning_rate / 10, fused=True)
    replay = [torch.zeros(args.buffer_size, *size) for size in ([obs_dim], [], [], [obs_dim], [])]
    replay[1] = replay[1].long()  # columns o, a, r, o', terminated
    # Measuring has its own random numbers: it must not change what is learned.
    generator, eval_generator = (torch.Generator(args.device).manual_seed(args.seed) for _ in range(2))
    walk_rng = np.random.default_rng(args.seed)
    walk = collect(args.make_env(), lambda _: walk_rng.integers(n_actions), 500, 10_000 + args.seed)
    walk = [column.to(args.device) for column in walk]

    def policy(controller=args.controller, horizon=args.horizon, sample=None):
        """What a controller does: with the generator `sample` as in training, else greedily."""

        @torch.no_grad()
        def act(obs: np.ndarray, start: np.ndarray | None = None) -> np.ndarray:
            z = code(nets["model"].encode(torch.as_tensor(obs, device=args.device)))
            if controller == "mpc":
                return plan(nets, z, horizon, args.gamma, sample or eval_generator).cpu().numpy()
            return draw(nets["actor"](z), sample).cpu().numpy()

        return act

    with Run(args) as run:
        obs, _ = env.reset(seed=args.seed)  # seeded once: a seed on every reset would replay one episode
        action, duration = int(rng.integers(n_actions)), args.exploration_fraction * args.total_timesteps
        for step in range(1, args.total_timesteps + 1):
            # Act, D3.
            if rng.random() >= linear_schedule(args.start_e, args.end_e, duration, step):
                action = int(policy(sample=generator)(obs[None])[0])
            elif rng.random() >= args.repeat:
                action = int(rng.integers(n_actions))
            next_obs, reward, terminated, truncated, _ = env.step(action)
            for column, value in zip(replay, (obs, action, reward, next_obs, terminated), strict=True):
                column[(step - 1) % args.buffer_size] = torch.as_tensor(value)
            ended = terminated or truncated
            obs = env.reset()[0] if ended else next_obs
            run.record(step, np.array([float(reward)]), np.array([ended]))

            # Learn the model from replayed transitions, then actor and critic from what it imagines from there on.
            if step > args.learning_starts and step % args.train_frequency == 0:
                fall = linear_schedule(1.0, 0.05, args.total_timesteps, step)
                model_optimizer.param_groups[0]["lr"] = args.learning_rate * fall
                agent_optimizer.param_groups[0]["lr"] = args.learning_rate / 10 * fall
                rows = torch.from_numpy(rng.integers(min(step, args.buffer_size), size=args.batch_size))
                batch = [column[rows].to(args.device) for column in replay]
                losses, z = update_model(nets["model"], model_optimizer, batch, generator)
                z = z[: args.batch_size // 2]  # half are enough, and imagining takes most of the time
                losses |= update_agent(nets, agent_optimizer, z, args.ent_coef * fall, args, generator)
                if step % 100 == 0:
                    run.log({f"losses/{name}": loss.item() for name, loss in losses.items()})
            if step % 500 == 0 or step == args.total_timesteps:
                run.log(open_loop(nets["model"], walk))
            run.evaluate(policy())

        study_and_draw(run, nets, policy, walk)
        run.finish(policy(), nets.state_dict())
    return nets


if __name__ == "__main__":
    train(tyro.cli(Args))
