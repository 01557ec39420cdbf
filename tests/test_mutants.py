"""Known misreadings of the papers: each is put into a copy of its script, and the named test must fail there.

They stand in the table MUTANTS at the end of the script's tests. Tests of all scripts have such a table, too, whose rows
name the file that is broken.
"""

import importlib
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, SCRIPTS

OF_ALL = ("input", "faults", "properties", "oracles")
BROKEN = (*SCRIPTS, "evaluate")
MUTANTS = [(name, name, *row) for name in BROKEN for row in importlib.import_module(f"test_{name}").MUTANTS]
MUTANTS += [(tests, *row) for tests in OF_ALL for row in importlib.import_module(f"test_{tests}").MUTANTS]


@pytest.mark.mutants
@pytest.mark.parametrize(("tests", "script", "old", "new", "test"), MUTANTS)
def test_a_misreading_is_caught(tests, script, old, new, test, tmp_path):
    for path in (*ROOT.glob("*.py"), ROOT / "pyproject.toml"):
        shutil.copy(path, tmp_path)
    shutil.copytree(ROOT / "tests", tmp_path / "tests")
    source = (tmp_path / f"{script}.py").read_text()
    assert source.count(old) == 1, f"{script}.py does not hold once: {old}"
    (tmp_path / f"{script}.py").write_text(source.replace(old, new))
    options = ["-q", "-x", "-p", "no:cacheprovider", f"tests/test_{tests}.py", "-k", test]
    command = [sys.executable, "-m", "pytest", *options]
    result = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1, result.stdout  # 1: a test failed; 0 none did, 2 and above none ran
    assert "failed" in result.stdout
