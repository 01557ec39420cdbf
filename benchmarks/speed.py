"""How fast the loops are, beside the way they are often written: CPU seconds of one thread, in turns, medians.

Run:   python benchmarks/speed.py               all parts, about 15 minutes of one core
       python benchmarks/speed.py dqn gridworld  these parts; the rows of the others stay as they are
Writes results/speed.csv. Quote the ratios: the figures themselves depend on the machine and on who else uses it.
Beside: Stable-Baselines3 2.9.2 (part dqn) and MiniGrid 3.2.0 (part gridworld) are no requirements of this project. If
       one is missing, its rows are left out and a line says so. In a folder of their own they change nothing here:
       pip install --no-deps --target peers stable-baselines3 minigrid pygame-ce
       PYTHONPATH=peers python benchmarks/speed.py
"""

import contextlib
import csv
import functools
import importlib
import io
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import unittest.mock
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy and torch are imported

import gymnasium as gym
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils.tensorboard import SummaryWriter  # noqa: E402

import curriculum  # noqa: E402
import dqn  # noqa: E402
import dyna_q  # noqa: E402
import evaluate  # noqa: E402
import feudal  # noqa: E402
import gridworld  # noqa: E402
import her  # noqa: E402
import model_based  # noqa: E402
import options_critic  # noqa: E402
import per_aux_dqn  # noqa: E402
import transfer  # noqa: E402
import world_model  # noqa: E402

torch.set_num_threads(1)
Row = tuple[str, float, str, float]
"""(what, figure here, beside what, figure there); their ratio is here / there."""


def in_turns(work: dict[str, Callable[[], float | None]], rounds: int = 5) -> dict[str, float]:
    """Median CPU seconds of each piece of work, done in turns, so that a slow minute of the machine is shared.

    A piece of work that returns a number has measured its seconds itself.
    """
    seconds = {name: [] for name in work}
    for _ in range(rounds):
        for name, do in work.items():
            start = time.process_time()
            own = do()
            seconds[name].append(time.process_time() - start if own is None else own)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peer(name: str) -> ModuleType | None:
    """A package to compare with, or None and a line that says so."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        print(f"left out, since {name} is not installed (see the top of this file): {error}")
        return None


# ----------------------------------------------------------------------------- training


def loop_seconds(script: ModuleType, **flags) -> float:
    """CPU seconds of a script's training from its first step to its last, on 8 x 8, logging on, no evaluations."""
    moments, record = [], script.Run.record

    def timed(run, step: int, *rest) -> None:
        moments.append(time.process_time())
        if step >= run.args.total_timesteps:
            raise StopIteration  # what comes after the last step, pictures and an evaluation, is not wanted
        record(run, step, *rest)

    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(unittest.mock.patch.object(script.Run, "record", timed))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        stack.enter_context(contextlib.suppress(StopIteration))
        script.train(script.Args(**{"grid_size": 8} | flags, eval_every=0, log_dir=folder))
    return moments[-1] - moments[0]


def sb3_seconds(sb3: ModuleType, steps: int, num_envs: int, train_frequency: int) -> float:
    """The same of Stable-Baselines3's DQN with dqn.py's settings."""
    moments, task = [], {"size": 8, "observation": "coords"}
    make_vec_env = importlib.import_module("stable_baselines3.common.env_util").make_vec_env
    with tempfile.TemporaryDirectory() as folder:
        model = sb3.DQN(
            "MlpPolicy", make_vec_env("GridWorld-v0", num_envs, env_kwargs=task), learning_rate=1e-3, gamma=0.95,
            buffer_size=50_000, learning_starts=500, batch_size=128, train_freq=max(1, train_frequency // num_envs),
            gradient_steps=max(1, num_envs // train_frequency), target_update_interval=25, exploration_fraction=0.5,
            policy_kwargs={"net_arch": [120, 84]}, tensorboard_log=folder, seed=1, device="cpu",
        )  # fmt: skip
        model.learn(steps, callback=lambda *_: moments.append(time.process_time()) or True)
    return moments[-1] - moments[0]


# Many environments for each update, since that is how dqn.py is fastest: so many steps are acted on in one batch.
BUSY = {
    "an update per 10 steps": {"train_frequency": 10, "num_envs": 40, "total_timesteps": 12_000},
    "an update per step": {"train_frequency": 1, "num_envs": 16, "total_timesteps": 2_500},
}
COORDS = {"observation": "coords", "batch_size": 128}  # the network is 2-120-84-4


def against_sb3() -> Iterator[Row]:
    """Environment steps per second of DQN: network 2-120-84-4, batch 128, as many updates as there."""
    if not (sb3 := peer("stable_baselines3")):
        return
    for name, flags in BUSY.items():
        steps, frequency, envs = flags["total_timesteps"], flags["train_frequency"], flags["num_envs"]
        work = {"here": functools.partial(loop_seconds, dqn, **COORDS, **flags)}
        work |= {f"{n} environments": functools.partial(sb3_seconds, sb3, steps, n, frequency) for n in (1, envs)}
        seconds = in_turns(work)
        here = steps / seconds.pop("here")
        for other, taken in seconds.items():
            what = f"dqn.py, {name}, {envs} environments: steps/s"
            yield what, here, f"Stable-Baselines3, {other.replace('1 environments', '1 environment')}", steps / taken


# Bare gradient steps: each function returns one that a script makes, on a batch that is there already.


def transitions(*shape: int, dim: int = 64) -> tuple[Tensor, ...]:
    """Columns o, a, r, o', terminated of random transitions; observations are one-hot."""
    obs, next_obs = F.one_hot(torch.randint(dim, (2, *shape)), dim).float()
    return obs, torch.randint(4, shape), torch.rand(shape), next_obs, (torch.rand(shape) < 0.05).float()


def adam(*modules: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam([p for module in modules for p in module.parameters()], lr=1e-3, fused=True)


def descend(optimizer: torch.optim.Adam, loss: Tensor, clip: float | None = None) -> None:
    optimizer.zero_grad()
    loss.backward()
    if clip:
        nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], clip)
    optimizer.step()


def dqn_step(script: ModuleType, batch_size: int, dim: int = 64) -> Callable[[], None]:
    """Also of her.py, curriculum.py and transfer.py without sources, whose updates are dqn.py's."""
    network, target = script.QNetwork(dim, 4), script.QNetwork(dim, 4).requires_grad_(False)
    (obs, action, reward, next_obs, terminated), optimizer = transitions(batch_size, dim=dim), adam(network)

    def step() -> None:
        q, next_q = network(obs), target(next_obs)
        if q.ndim == 3:  # of transfer.py: a head for each task
            q, next_q = q[:, 0], next_q[:, 0]
        y = script.td_target(reward, terminated, next_q, 0.95)
        descend(optimizer, script.td_loss(q, action, y))

    return step


def per_aux_step(batch_size: int) -> Callable[[], None]:
    script = per_aux_dqn
    network, target = script.QNetwork(64, 4), script.QNetwork(64, 4).requires_grad_(False)
    (obs, action, reward, next_obs, terminated), optimizer = transitions(batch_size), adam(network)

    def step() -> None:
        y, features = script.td_target(reward, terminated, target(next_obs), 0.95), network.trunk(obs)
        loss = script.td_loss(script.td_error(network.q_head(features), action, y), torch.ones(batch_size))
        loss = loss + 0.002 * script.reward_loss(network.reward_head(features), action, reward)
        predicted = network.next_obs_head(features)
        descend(optimizer, loss + 0.002 * script.next_obs_loss(predicted, action, next_obs, terminated))

    return step


def model_based_step(batch_size: int) -> Callable[[], None]:
    """Of the ensemble and of Q; planning and branches make batches and actions, they have no gradient."""
    ensemble, q, known = model_based.Ensemble(5, 64, 4), dqn.QNetwork(64, 4), torch.eye(64)
    optimizers, weight, y = (adam(ensemble), adam(q)), torch.ones(5, batch_size // 2), torch.rand(batch_size)
    (obs, action, *rest), (q_obs, q_action, *_) = transitions(5, batch_size // 2), transitions(batch_size)

    def step() -> None:
        descend(optimizers[0], model_based.ensemble_loss(ensemble(obs, action), known, obs, *rest, weight))
        descend(optimizers[1], F.smooth_l1_loss(q(q_obs).gather(1, q_action[:, None]).squeeze(1), y))

    return step


def world_model_step(batch_size: int) -> Callable[[], None]:
    """Of the model, and of actor and critic; the ten imagined steps between are a part of it."""
    script, n_z, generator = world_model, 64, torch.Generator().manual_seed(1)
    nets = {"model": script.WorldModel(64, 4), "actor": script.mlp(n_z, 4)}
    nets |= {"critic": script.mlp(n_z, 1), "slow_critic": script.mlp(n_z, 1).requires_grad_(False)}
    optimizer, agent_optimizer = adam(nets["model"]), adam(nets["actor"], nets["critic"])
    batch, args = transitions(batch_size), script.Args(grid_size=8)

    def step() -> None:
        _, z = script.update_model(nets["model"], optimizer, batch, generator)
        script.update_agent(nets, agent_optimizer, z[: batch_size // 2], args.ent_coef, args, generator)

    return step


def option_critic_step(batch_size: int) -> Callable[[], None]:
    script, network = options_critic, options_critic.OptionCritic(64, 4, 4)
    (obs, action, reward, next_obs, terminated), optimizer = transitions(batch_size), adam(network)
    option = torch.randint(4, (batch_size,))

    def step() -> None:
        q, log_pi = script.pick(network.q(obs), option), script.pick(network.act(obs)[0], option)
        next_beta = network.act(next_obs)[1]
        with torch.no_grad():
            next_q = network.q(next_obs)
            y = script.option_target(reward, terminated, script.value_upon_arrival(next_q, next_beta, option), 0.99)
        loss = F.mse_loss(q, y) + script.policy_loss(script.pick(log_pi, action), y, q)
        loss = loss + script.termination_loss(next_beta, next_q, option, terminated, 0.05)
        descend(optimizer, loss + 0.01 * (log_pi.exp() * log_pi).sum(dim=1).mean(), clip=0.5)

    return step


def feudal_step(num_envs: int, num_steps: int) -> Callable[[], None]:
    """With the manager's forward pass, whose graph a run builds while it acts."""
    script, network = feudal, feudal.Feudal(64, 4, 5)
    (obs, action, reward, next_obs, _), optimizer = transitions(num_steps, num_envs), adam(network)
    never = torch.zeros(num_steps, num_envs, dtype=torch.bool)

    def step() -> None:
        memory, rollout, losses, advantage = network.memory(num_envs), [], [], {}
        for t in range(num_steps):
            goal, pooled, memory = network.manage(obs[t], never[t], memory)
            rollout.append((goal, pooled, *memory[1:]))
        goal, pooled, past_s, past_goal = (torch.stack(column) for column in zip(*rollout, strict=True))
        next_s = network.space(next_obs).detach()
        r_i = script.intrinsic_reward(next_s, past_s.transpose(0, 1), past_goal.transpose(0, 1))
        for critic, r in (network.worker_critic, reward + 0.1 * r_i), (network.manager_critic, reward):
            value, next_value = critic(obs)[..., 0], critic(next_obs)[..., 0].detach()
            target = script.n_step_return(r, never, never, next_value, 0.99)
            losses.append(F.mse_loss(value, target))
            advantage[critic] = target - value
        log_pi = network.log_pi(obs, pooled)
        log_prob = log_pi.gather(2, action[..., None])[..., 0]
        losses.append(script.worker_loss(log_prob, advantage[network.worker_critic]))
        movement, known = script.movements(past_s[:, -1], next_s, never, 5)
        losses.append(script.manager_loss(goal, movement, advantage[network.manager_critic], known))
        descend(optimizer, sum(losses) + 0.01 * (log_pi.exp() * log_pi).sum(dim=-1).mean(), clip=0.5)

    return step


def gradient_shares() -> Iterator[Row]:
    """Updates per second of training against bare gradient steps: their ratio is the gradient's share of the loop."""
    long = {"total_timesteps": 8_000}
    cases = [  # name, script, flags, updates per environment step, a bare update
        ("dqn.py", dqn, long, 1 / 4, dqn_step(dqn, 64)),
        ("her.py", her, long, 1 / 4, dqn_step(her, 256, 128)),
        ("curriculum.py", curriculum, long, 1 / 2, dqn_step(curriculum, 64)),
        ("transfer.py --method scratch", transfer, long | {"method": "scratch"}, 1 / 4, dqn_step(transfer, 64)),
        ("per_aux_dqn.py", per_aux_dqn, long, 1 / 4, per_aux_step(64)),
        ("model_based.py", model_based, {"total_timesteps": 600}, 2, model_based_step(128)),
        ("world_model.py", world_model, {"total_timesteps": 400}, 1, world_model_step(128)),
        ("options_critic.py", options_critic, {"total_timesteps": 48_000}, 1 / 320, option_critic_step(320)),
        ("feudal.py", feudal, {"total_timesteps": 38_400}, 1 / 640, feudal_step(32, 20)),
    ]
    for name, flags in BUSY.items():
        name = f"dqn.py, {name}, {flags['num_envs']} environments"
        cases.append((name, dqn, flags | COORDS, 1 / flags["train_frequency"], dqn_step(dqn, 128, 2)))
    for name, script, flags, per_step, step in cases:
        steps = flags["total_timesteps"] - getattr(script.Args, "learning_starts", 0)
        updates, few = int(steps * per_step), int(steps * per_step / 4)
        loop = functools.partial(loop_seconds, script, **flags)
        seconds = in_turns({"loop": loop, "bare": lambda step=step, n=few: [step() for _ in range(n)] and None})
        yield f"{name}: updates/s", updates / seconds["loop"], "bare gradient steps", few / seconds["bare"]


# ----------------------------------------------------------------------------- environments, tables, logs


def play(env: gym.Env, steps: int) -> float:
    """CPU seconds of random steps of one environment, resets among them."""
    actions = np.random.default_rng(1).integers(4, size=steps).tolist()
    env.reset(seed=1)
    start = time.process_time()
    for action in actions:
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()
    return time.process_time() - start


def play_many(envs: gym.vector.VectorEnv, steps: int) -> float:
    actions = np.random.default_rng(1).integers(4, size=(steps // envs.num_envs, envs.num_envs))
    envs.reset(seed=1)
    start = time.process_time()
    for action in actions:
        envs.step(action)
    return time.process_time() - start


def environments() -> Iterator[Row]:
    """Steps per second as gymnasium.make gives them, on 8 x 8, of one environment and of several in one."""
    make, steps = functools.partial(gym.make, "GridWorld-v0", size=8), 20_000
    single = {"number": make(observation="index"), "one-hot vector": make()}
    others = {"FrozenLake-v1 8 x 8": gym.make("FrozenLake-v1", map_name="8x8")}
    if peer("minigrid"):
        others["MiniGrid-Empty-8x8-v0"] = gym.make("MiniGrid-Empty-8x8-v0")
    seconds = in_turns({name: functools.partial(play, env, steps) for name, env in (single | others).items()})
    for shown in single:
        for other in others:
            yield f"gridworld.py, the cell as a {shown}: steps/s", steps / seconds[shown], other, steps / seconds[other]
    for n in 1, 16, 128, 1_024, 8_192:
        fewer, steps = min(n, 1_024), max(20_000, 40 * n)  # 8 192 single environments would take a minute to make
        sync = gym.vector.SyncVectorEnv([make] * fewer, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)
        envs = gym.make_vec("GridWorld-v0", n, "vector_entry_point", size=8)
        few = max(4_096, 4 * fewer)
        work = {"here": lambda e=envs, s=steps: play_many(e, s), "sync": lambda e=sync, s=few: play_many(e, s)}
        seconds = in_turns(work)
        beside = f"SyncVectorEnv of {fewer:,}"
        yield f"gridworld.py, {n:,} at once: steps/s", steps / seconds["here"], beside, few / seconds["sync"]


def dyna_q_planning() -> Iterator[Row]:
    """Planning updates per second from a full model of the four rooms: `dyna_q.plan` against a dict of arrays."""
    grid = gridworld.GridWorldEnv(13, "four_rooms", observation="index")
    outcomes = [
        (s, a, grid.reward.item(s, a), grid.next_state.item(s, a), grid.terminal.item(grid.next_state[s, a]))
        for s, a in np.ndindex(grid.n_states, 4)
    ]
    q, tried = ([[0.0] * 4 for _ in range(grid.n_states)] for _ in range(2))
    pairs = [[(q[s], a, r, 0.0 if end else 0.99, q[t], tried[s])] * 10 for s, a, r, t, end in outcomes]
    arrays = {s: np.zeros(4) for s in range(grid.n_states)}
    model = {(s, a): (r, t, end) for s, a, r, t, end in outcomes}
    updates, rng, generator = 50_000, random.Random(1), np.random.default_rng(1)

    def lists() -> None:
        for now in range(updates // 50):  # 50 planning steps at a time, as in a run
            dyna_q.plan(pairs, 50, 0.1, 0.0, now, rng)

    def dict_of_arrays() -> None:
        for _ in range(updates // 50):
            keys = list(model)
            for i in generator.integers(len(keys), size=50):
                s, a = keys[i]
                reward, next_s, end = model[s, a]
                arrays[s][a] += 0.1 * (reward + 0.99 * (not end) * np.max(arrays[next_s]) - arrays[s][a])

    seconds = in_turns({"lists": lists, "arrays": dict_of_arrays}, rounds=7)
    rates = (updates / seconds[name] for name in ("lists", "arrays"))
    yield "dyna_q.py: planning updates/s", next(rates), "a dict of arrays", next(rates)


def prioritized_replay() -> Iterator[Row]:
    """Times per second: 128 of all transitions drawn and their priorities set anew, against a gradient step."""
    step = dqn_step(dqn, 128)
    for stored in 10_000, 1_000_000:
        rng, buffer = np.random.default_rng(1), per_aux_dqn.ReplayBuffer(stored, 64, prioritized=True)
        buffer.added = stored
        buffer.update(np.arange(stored), rng.random(stored))

        def replay(buffer=buffer, rng=rng) -> None:
            for _ in range(500):
                rows = buffer.sample(128, 0.4, rng)[0]
                buffer.update(rows, per_aux_dqn.priority(rng.random(128), 0.6, 0.05))

        seconds = in_turns({"replay": replay, "step": lambda: [step() for _ in range(500)] and None})
        what = f"per_aux_dqn.py, batches of 128 from {stored:,} by priority/s"
        yield what, 500 / seconds["replay"], "gradient steps", 500 / seconds["step"]


def reading() -> Iterator[Row]:
    """Scalars per second read from a log of 120 000, with checksums: `evaluate.read_run` against EventAccumulator."""
    tags = "charts/episodic_return charts/episodic_length charts/SPS eval/return eval/length eval/success eval/score"
    tags = (tags + " losses/td_loss losses/mean_target system/wall_time_s system/peak_memory_mb model/pairs").split()
    with tempfile.TemporaryDirectory() as folder:
        writer = SummaryWriter(folder)
        for step in range(0, 1_000_000, 100):
            for number, tag in enumerate(tags):
                writer.add_scalar(tag, step / (number + 1), step)
        writer.close()

        def records() -> None:
            assert sum(len(x) for x in evaluate.read_run(Path(folder), "").scalars.values()) == 120_000

        def accumulator() -> None:
            log = EventAccumulator(folder, size_guidance={"scalars": 0}).Reload()
            assert sum(len(log.Scalars(tag)) for tag in tags) == 120_000

        seconds = in_turns({"records": records, "accumulator": accumulator})
    rates = (120_000 / seconds[name] for name in ("records", "accumulator"))
    yield "evaluate.py: scalars read/s", next(rates), "EventAccumulator", next(rates)


# ----------------------------------------------------------------------------- whole processes


# From a process that is small itself, since a child's peak memory starts at that of the process which makes it.
MEASURE = """
import os, subprocess, sys
quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
_, status, usage = os.wait4(subprocess.Popen([sys.executable, *sys.argv[1:]], **quiet).pid, 0)
print(status, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10))
"""


def process(*command: str) -> tuple[float, float]:
    """CPU seconds and peak memory in MB of a Python process."""
    with tempfile.TemporaryDirectory() as folder:
        runs = ["--log-dir", folder] if "--total-timesteps" in command else []
        measured = [sys.executable, "-c", MEASURE, *command, *runs]
        said = subprocess.run(measured, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    status, seconds, memory = map(float, said.split())
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return seconds, memory


def start_up() -> Iterator[Row]:
    """CPU seconds of a process until its help is printed, and until the first step; beside what it must import."""
    first_step = "import dqn, os; dqn.Run.record = lambda *_: os._exit(0); dqn.train(dqn.Args(log_dir=dqn.Path('{}')))"
    adam_made = "import os, torch; torch.optim.Adam([torch.zeros(1)]); os._exit(0)"
    with tempfile.TemporaryDirectory() as folder:
        commands = {
            "gridworld.py --help": ["gridworld.py", "--help"],
            "dyna_q.py --help": ["dyna_q.py", "--help"],
            "dqn.py --help": ["dqn.py", "--help"],
            "dqn.py, until its first step": ["-c", first_step.format(folder)],
            "import gymnasium, tyro": ["-c", "import gymnasium, tyro"],
            "import torch": ["-c", "import torch"],
            "import torch, make an Adam": ["-c", adam_made],
        }
        seconds = in_turns({name: lambda c=command: process(*c)[0] for name, command in commands.items()})
    beside = ["import gymnasium, tyro", "import torch", "import torch", "import torch, make an Adam"]
    for what, other in zip(commands, beside, strict=False):
        yield f"{what}: CPU seconds", seconds[what], other, seconds[other]


def growth() -> Iterator[Row]:
    """CPU seconds of 4 000 steps of dqn.py, and the peak memory of its process, as things grow; beside the least."""
    grows = {
        "grid size": ("grid_size", (8, 16, 32, 64)),
        "environments": ("num_envs", (1, 4, 16, 64)),
        "buffer size": ("buffer_size", (1_000, 10_000, 100_000, 1_000_000)),
    }
    for kind, (flag, sizes) in grows.items():
        run = functools.partial(loop_seconds, dqn, total_timesteps=4_000)
        seconds = in_turns({n: functools.partial(run, **{flag: n}) for n in sizes}, rounds=3)
        command = ["dqn.py", "--total-timesteps", "4000", "--eval-every", "0", f"--{flag.replace('_', '-')}"]
        memory = {n: process(*command, str(n))[1] for n in sizes}
        for n in sizes:
            yield f"dqn.py, {kind} {n:,}: CPU seconds", seconds[n], f"{sizes[0]:,}", seconds[sizes[0]]
            yield f"dqn.py, {kind} {n:,}: peak MB", memory[n], f"{sizes[0]:,}", memory[sizes[0]]

    several = (
        "import dqn, sys, tempfile, pathlib\nwith tempfile.TemporaryDirectory() as folder:\n    for seed in range({}): "
    )
    several += "dqn.train(dqn.Args(log_dir=pathlib.Path(folder), seed=seed, total_timesteps=4_000, eval_every=0))"
    seeds = {n: process("-c", several.format(n)) for n in (1, 2, 4)}
    for n, (taken, memory) in seeds.items():
        yield f"dqn.py, seeds in one process {n}: CPU seconds with its start", taken, "1", seeds[1][0]
        yield f"dqn.py, seeds in one process {n}: peak MB", memory, "1", seeds[1][1]

    envs = {f"{n} x {n}": gridworld.EnvArgs(grid_size=n) for n in (8, 16, 32, 64)}
    envs["a maze of 65 x 65"] = gridworld.EnvArgs(layout="maze", grid_size=65)
    work = {name: lambda a=args: gridworld.optimal_return(a.make_env()) and None for name, args in envs.items()}
    seconds = in_turns(work)
    for name, taken in seconds.items():
        yield f"optimal_return of {name}: CPU seconds", taken, "8 x 8", seconds["8 x 8"]


PARTS = {
    "dqn": against_sb3, "shares": gradient_shares, "gridworld": environments, "dyna_q": dyna_q_planning,
    "replay": prioritized_replay, "reading": reading, "start": start_up, "growth": growth,
}  # fmt: skip

if __name__ == "__main__":
    chosen = sys.argv[1:] or list(PARTS)
    if unknown := [name for name in chosen if name not in PARTS]:
        sys.exit(f"unknown parts {unknown}; there are {', '.join(PARTS)}")
    path, rows = ROOT / "results" / "speed.csv", {}
    if sys.argv[1:] and path.exists():
        with open(path, encoding="utf-8") as file:
            rows = {(row["what"], row["beside"]): row for row in csv.DictReader(file)}
    for name in chosen:
        for what, here, beside, there in PARTS[name]():
            row = {"what": what, "here": f"{here:.5g}", "beside": beside, "there": f"{there:.5g}"}
            rows[what, beside] = row | {"ratio": f"{here / there:.2f}"}
            print(*rows[what, beside].values(), sep=" | ", flush=True)
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["what", "here", "beside", "there", "ratio"])
            writer.writeheader()
            writer.writerows(rows.values())
