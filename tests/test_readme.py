"""The README says what is so: its commands, its files, its numbers."""

import re
import runpy

from conftest import ROOT, SCRIPTS

import evaluate

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


def test_the_table_of_any_seeds_and_tasks(tmp_path):
    """An algorithm that some tasks lack, one seed, and a median that was never reached; runs left out do not count."""
    head = "folder,algorithm,task,state,reason,kept_score,steps_to_kept,target_steps_to_kept,eval/score,system/wall_time_s,system/peak_memory_mb"
    runs = [
        "a,her,empty 8,complete,,0.95,3000,nan,1.0,7.25,500.5",
        "b,her,empty 8,complete,,0.2,5000,nan,1.0,9,400",
        "c,dqn,maze 15,complete,,0.1,inf,nan,0.1,20,300",
        "d,dqn,maze 15,complete,,0.1,inf,nan,0.1,20,300",
        "e,dqn,maze 15,complete,,1.0,500,nan,0.985,40,300",
        "f,dqn,empty 8,complete,,1.0,1200,nan,1.0,10,300",
        "g,dqn,empty 8,partial,cut,0.0,inf,nan,0.0,10,900",
        "h,odd,empty 8,complete,,1.0,100,nan,0.99,1,100",
    ]
    (tmp_path / "runs.csv").write_text("\n".join([head, *runs]) + "\n")
    readme = runpy.run_path(str(ROOT / "benchmarks" / "readme.py"))
    said, steps, over, costs = readme["table"](tmp_path / "runs.csv").split("\n\n")
    assert (said, over) == (evaluate.GLANCE, evaluate.COST)
    assert steps.splitlines() == [
        "| algorithm | empty 8 | maze 15 |",
        "| --- | --- | --- |",
        "| dqn | 1,200 (1/1) | never (1/3) |",
        "| her | 4,000 (1/2) |  |",
        "| odd | 100 (1/1) |  |",
    ]
    assert costs.splitlines()[2:] == [
        "| dqn | 2 | 1 of 4 | 10 to 20 | 300 |",
        "| her | 1 | 2 of 2 | 8.1 | 500 |",
        "| odd | 1 | 1 of 1 | 1.0 | 100 |",
    ]


def test_requirements_pin_torch_first():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert lines[0] == "torch==2.13.0"
    assert not [line for line in lines if line.startswith("-")]  # no extra index
