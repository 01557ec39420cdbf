"""Known misreadings of the papers: each is put into a copy of its script, and the named test must fail there."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

# (script, what stands there, the misreading, the test that must notice)
MUTANTS = [
    ("dqn", "(1.0 - terminated) * next_q", "next_q", "through_termination"),
    ("dqn", "buffer.add(obs, action, reward, last_obs, terminated)", "buffer.add(obs, action, reward, last_obs, ended)", "are_those_of_the_environment"),
    ("dqn", "buffer.add(obs, action, reward, last_obs, terminated)", "buffer.add(obs, action, reward, next_obs, terminated)", "are_those_of_the_environment"),
    ("dqn", "next_q.max(dim=1).values).detach()", "next_q.mean(dim=1)).detach()", "largest_value_of_each_row"),
    ("dqn", "values).detach()", "values)", "no_gradient_reaches"),
    ("dqn", "action[:, None]).squeeze(1), target", "action[:, None]), target", "mean_huber_loss"),
    ("dqn", "F.smooth_l1_loss", "F.mse_loss", "mean_huber_loss"),
    ("dqn", "if times_due(step, args.target_network_frequency, args.num_envs):", "if True:", "only_when_copied"),
    ("dqn", "end if step >= duration else", "", "visits_both_ends"),
    ("dqn", "% self.capacity", "% max(len(self), 3)", "overwrites_the_oldest"),
    ("dqn", "rng.integers(len(self), size=batch_size)", "rng.integers(len(self) // 2, size=batch_size)", "sampling_is_uniform"),
    ("dqn", "step // every - (step - stride) // every", "int(step % every == 0)", "counts_every_multiple_once"),
    ("options_critic", "(1.0 - beta) * pick(next_q, option) + beta * next_q.max(dim=1).values", "next_q.max(dim=1).values", "mixes_going_on"),
    ("options_critic", "(1.0 - beta) * pick(next_q, option) + beta *", "beta * pick(next_q, option) + (1.0 - beta) *", "mixes_going_on"),
    ("options_critic", "(1.0 - terminated) * arrival_value", "arrival_value", "through_termination"),
    ("options_critic", "arrival_value).detach()", "arrival_value)", "no_gradient_reaches"),
    ("options_critic", "- next_q.max(dim=1).values + cost", "+ next_q.max(dim=1).values + cost", "termination_loss_by_hand"),
    ("options_critic", "next_q.max(dim=1).values + cost", "next_q.max(dim=1).values - cost", "gradient_of_the_termination"),
    ("options_critic", "pick(next_beta, option) * advantage.detach()", "pick(next_beta, option) * advantage", "termination_loss_by_hand"),
    ("options_critic", "advantage.detach() * (1.0 - terminated)", "advantage.detach()", "termination_loss_by_hand"),
    ("options_critic", "-(log_prob * (target - q).detach())", "(log_prob * (target - q).detach())", "intra_option_policy_gradient"),
    ("options_critic", "(target - q).detach()).mean()", "(target - q)).mean()", "minus_log_probability"),
    ("options_critic", "self.termination_head(features.detach())", "self.termination_head(features)", "own_part_of_the_network"),
    ("options_critic", "ends = start | (rng.random(n) < beta[rows, option])", "ends = np.ones(n, bool)", "go_on_until_they_end"),
    ("dyna_q", "reward + discount * max(next_row) - row[action]\n    row", "reward + discount * next_row[0] - row[action]\n    row", "update_by_hand"),
    ("dyna_q", "0.0 if terminated else args.gamma", "args.gamma", "uses_only_what_was_seen"),
    ("dyna_q", "0.0 if terminated else args.gamma", "0.0 if terminated or truncated else args.gamma", "converge_to_the_exact"),
    ("dyna_q", "actions[int(draw() * len(actions))]", "actions[0]", "ties_are_broken"),
    ("dyna_q", "pairs[int(draw() * count)]", "pairs[-1]", "uniformly"),
    ("dyna_q", "outcomes[int(draw() * len(outcomes))]", "outcomes[-1]", "uniformly"),
    ("dyna_q", "math.sqrt(now - tried[action])", "math.sqrt(now)", "root_of_the_time"),
    ("dyna_q", "outcomes[visits % capacity] = outcome", "pass", "latest_outcomes"),
    ("dyna_q", "outcomes.clear()", "pass", "replaces_the_imagined"),
    ("dyna_q", "outcome = (q[s], a, float(reward),", "outcome = (q[s], a, 0.0,", "uses_only_what_was_seen"),
]  # fmt: skip


@pytest.mark.mutants
@pytest.mark.parametrize(("script", "old", "new", "test"), MUTANTS)
def test_a_misreading_is_caught(script, old, new, test, tmp_path):
    for path in (*ROOT.glob("*.py"), ROOT / "pyproject.toml"):
        shutil.copy(path, tmp_path)
    shutil.copytree(ROOT / "tests", tmp_path / "tests")
    source = (tmp_path / f"{script}.py").read_text()
    assert source.count(old) == 1, f"{script}.py does not hold once: {old}"
    (tmp_path / f"{script}.py").write_text(source.replace(old, new))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        f"tests/test_{script}.py",
        "-k",
        test,
    ]
    result = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1, result.stdout  # 1: a test failed; 0 none did, 2 and above none ran
    assert "failed" in result.stdout
