"""Known misreadings of the papers: each is put into a copy of its script, and the named test must fail there.

They stand in the table MUTANTS at the end of the script's tests. Tests of all scripts have such a table, too, whose rows
name the file that is broken. Each copy is tested in a fork of this process, which saves the seconds that importing torch
takes; the same tests must pass in a fork on a copy that is not broken.
"""

import importlib
import os
import shutil
import signal
import sys
from pathlib import Path

import gymnasium as gym
import pytest
from conftest import ROOT, SCRIPTS

OF_ALL = ("input", "faults", "properties", "oracles", "shared")
BROKEN = (*SCRIPTS, "gridworld", "evaluate")
MUTANTS = [(name, name, *row) for name in BROKEN for row in importlib.import_module(f"test_{name}").MUTANTS]
MUTANTS += [(tests, *row) for tests in OF_ALL for row in importlib.import_module(f"test_{tests}").MUTANTS]


# Sixteen mistakes that implementations of these algorithms make, and the mutants that make them:
#  1 a cut by the time limit is an end         `ended`, `start` or `truncated` is stored for `terminated`: all ten scripts
#  2 no model of ends, greedy on rewards       model_based: alive left out, one step of reward, no terminal value
#  3 planning from replay, not the model       dyna_q: pairs by visits, the last pair, outcomes forgotten or doubled
#  4 dynamics compared with its own sample     world_model: KL with q(z | o), of the prior with itself, of another action
#  5 imagination at random, immediate reward   world_model: actor ignored, no lambda-return, no baseline, no continue
#  6 alpha twice, no mask at ends              per_aux_dqn: alpha twice or not at all, no priorities, mask gone
#  7 auxiliary heads beside the trunk          per_aux_dqn: features.detach() for each head
#  8 s and s' augmented apart                  per_aux_dqn: only s is
#  9 transfer of frozen features, no controls  transfer: frozen ones learn; unrelated sources, random features are not so
# 10 levels mixed, level checked by the clock  curriculum: windows shared, kept on a change, decided before they are full
# 11 no termination gradient, none for pi_w    options_critic: a loss left out, signs, s for s', beta ignored in U
# 12 goals of another size, manager untaught   feudal: dot for cosine, a loss left out, memories dropped or mixed
# 13 HER on s, strategies missing              her: m(s_t), reward and end not recomputed, each strategy by another
# 14 attributes that do not exist              per_aux_dqn: `max_priority` for `highest`, with everything on
# 15 evaluation carries over, passes the bad   evaluate: first hit counts, NaN passes; shared block: later episodes count
# 16 training reward reported                  evaluation with exploration, with the training's draws, from its starts

# Edits that no test notices, and why. They are checked to be in the file as it is.
SURVIVORS = [
    ("dqn", "    random.seed(seed)", "    pass", "nothing here draws from Python's own generator; it is seeded for libraries"),
    ("dqn", "flush_secs=1)", "flush_secs=120)", "TensorBoard writes each record at once, unless TensorFlow is there, too"),
    ("dqn", "/ span if (span := self.optimal - self.random) > 0 else np.nan", "/ (self.optimal - self.random)", "a score that is not finite is left out in any case; this spares a warning"),
    ("feudal", "nn.init.ones_(self.lstm.bias_ih[z : 2 * z])", "pass", "right either way; how fast it learns differs"),
    ("options_critic", "0.01 if small else 2**0.5", "2**0.5", "right either way; how fast it learns differs"),
    ("world_model", "z = z[: args.batch_size // 2]", "z = z[: args.batch_size // 4]", "right either way; how fast it learns differs"),
    ("model_based", "zip((3.0, 64**-0.5", "zip((1.0, 64**-0.5", "right either way; how fast it learns differs"),
]  # fmt: skip


def outcome(folder: Path, tests: str, named: str, seconds: int) -> tuple[int, str]:
    """pytest's exit code on a copy, minus the signal if it was killed, and what it said."""
    output = folder / "output"
    if not (pid := os.fork()):
        code = 99
        try:  # whatever happens, the child must not come back into the tests of this process
            for stream in 1, 2:
                os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
            sys.stdout, sys.stderr = (os.fdopen(stream, "w", closefd=False) for stream in (1, 2))
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.alarm(seconds)
            for path in (*ROOT.glob("*.py"), *ROOT.glob("tests/*.py")):  # nothing of this repository is known here
                sys.modules.pop(path.stem, None)
            for env_id in [env_id for env_id in gym.registry if "GridWorld" in env_id]:
                del gym.registry[env_id]
            sys.path[:] = [path for path in sys.path if path not in ("", str(ROOT), str(ROOT / "tests"))]
            os.chdir(folder)
            options = ["-q", "-x", "-p", "no:cacheprovider", f"tests/test_{tests}.py", "-k", named]
            code = int(pytest.main(options))
        finally:
            sys.stdout.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), output.read_text(errors="replace")


def copy_to(folder: Path) -> None:
    for path in (*ROOT.glob("*.py"), ROOT / "pyproject.toml"):
        shutil.copy(path, folder)
    shutil.copytree(ROOT / "tests", folder / "tests")


@pytest.mark.mutants
@pytest.mark.parametrize(("tests", "script", "old", "new", "test"), MUTANTS)
def test_a_misreading_is_caught(tests, script, old, new, test, tmp_path):
    copy_to(tmp_path)
    source = (tmp_path / f"{script}.py").read_text()
    assert source.count(old) == 1, f"{script}.py does not hold once: {old}"
    (tmp_path / f"{script}.py").write_text(source.replace(old, new))
    code, said = outcome(tmp_path, tests, test, seconds=120)
    assert code == 1, said  # 1: a test failed; 0 none did, 2 and above none ran
    assert "failed" in said


@pytest.mark.mutants
@pytest.mark.parametrize("tests", dict.fromkeys(row[0] for row in MUTANTS))
def test_what_catches_them_passes_where_nothing_is_broken(tests, tmp_path):
    copy_to(tmp_path)
    named = {row[4] for row in MUTANTS if row[0] == tests}
    code, said = outcome(tmp_path, tests, " or ".join(f"({test})" for test in sorted(named)), seconds=600)
    assert code == 0, said


@pytest.mark.mutants
@pytest.mark.parametrize(("script", "old", "new", "reason"), SURVIVORS)
def test_survivors_are_still_there(script, old, new, reason):
    assert (ROOT / f"{script}.py").read_text().count(old) == 1
