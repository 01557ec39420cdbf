"""Small runs that several tests share; torch is imported once for all."""

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy and torch are imported

import dataclasses
import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAMES = "dqn dyna_q model_based world_model per_aux_dqn transfer curriculum options_critic feudal her".split()
SCRIPTS = [name for name in NAMES if (ROOT / f"{name}.py").exists()]
# Flags that make a run of each script short, beyond those that all have.
SHORT = {
    "dqn": {"total_timesteps": 1_200, "eval_every": 400, "learning_starts": 100},
    "dyna_q": {"total_timesteps": 600, "eval_every": 200},
    "model_based": {"total_timesteps": 120, "eval_every": 60, "learning_starts": 60},
    "world_model": {"total_timesteps": 120, "eval_every": 60, "learning_starts": 60},
    "per_aux_dqn": {"total_timesteps": 1_200, "eval_every": 400, "learning_starts": 100},
    "transfer": {"total_timesteps": 1_200, "eval_every": 400, "learning_starts": 100},
    "her": {"total_timesteps": 1_200, "eval_every": 400, "learning_starts": 100},
    "curriculum": {"total_timesteps": 1_200, "eval_every": 400, "learning_starts": 100, "num_levels": 4},
    "options_critic": {"total_timesteps": 1_280, "eval_every": 640, "num_envs": 4, "num_steps": 10},
    "feudal": {"total_timesteps": 1_280, "eval_every": 640, "num_envs": 4, "num_steps": 10},
}


def read_log(folder: Path) -> dict:
    """{tag: [(step, value), ...]} of the one run in `folder`, and its arguments under "about"."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0, "images": 0}).Reload()
    scalars = {tag: [(event.step, event.value) for event in log.Scalars(tag)] for tag in log.Tags()["scalars"]}
    text = log.Tensors("run/about/text_summary")[0].tensor_proto.string_val[0].decode()
    return scalars | {"about": json.loads(text.strip("`").removeprefix("json")), "images": log.Tags()["images"]}


@pytest.fixture
def short_args(tmp_path):
    """short_args(script, **flags): Args of a run of a few seconds, logging to tmp_path."""

    def make(script: str, **flags):
        args = importlib.import_module(script).Args
        known = {field.name for field in dataclasses.fields(args)}
        wanted = {"log_dir": tmp_path, "grid_size": 5, "eval_episodes": 2} | SHORT.get(script, {}) | flags
        return args(**{name: value for name, value in wanted.items() if name in known})

    return make
