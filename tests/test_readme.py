"""The README says what is so: its commands, its files, its numbers."""

import re
import runpy

from conftest import ROOT, SCRIPTS

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_two_commands_stand_alone_on_their_lines():
    lines = README.splitlines()
    assert "pip install -r requirements.txt && python options_critic.py --grid-size 8" in lines
    assert "pip install -r requirements.txt && python -m pytest" in lines


def test_every_script_is_named():
    assert [name for name in (*SCRIPTS, "gridworld", "evaluate") if f"{name}.py" not in README] == []


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_numbers_are_those_of_the_results():
    readme = runpy.run_path(str(ROOT / "benchmarks" / "readme.py"))
    assert readme["rewritten"](README, ROOT / "results") == README


def test_requirements_pin_torch_first():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert lines[0] == "torch==2.13.0"
    assert not [line for line in lines if line.startswith("-")]  # no extra index
