"""The README keeps to the code: what it quotes is in the files, its sessions run, its pictures and commands exist."""

import doctest
import re
from pathlib import Path

import pytest
from conftest import ROOT

import metrics
from distributions import read_jsonl

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
FILES = ("distributions.py", "trie.py", "train_soft.py", "train_hard.py", "sample.py", "metrics.py")


@pytest.mark.parametrize("block", [block for block in BLOCKS if not block.startswith(">>>")])
def test_quoted_code_is_the_code(block):
    assert any(block in (ROOT / name).read_text() for name in FILES)


def test_sessions_run(monkeypatch):
    monkeypatch.chdir(ROOT)
    session = "\n".join(block for block in BLOCKS if block.startswith(">>>"))
    test = doctest.DocTestParser().get_doctest(session, {}, "README.md", "README.md", 0)
    runner = doctest.DocTestRunner()
    runner.run(test)
    assert runner.summarize(verbose=False).attempted >= 10 and runner.failures == 0


def test_links_and_targets_exist():
    links = re.findall(r"\]\(([^)h][^)]*)\)", README)
    assert len(links) >= 4 and all((ROOT / link).exists() for link in links)
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = set(re.findall(r"^make ([a-z]+)", README, re.MULTILINE)) | set(re.findall(r"`make ([a-z]+)", README))
    assert len(asked) > 5 and asked <= targets
    scripts = re.findall(r"python ((?:tests/)?[a-z_]+\.py)", README)
    assert scripts and all(Path(ROOT / name).exists() for name in scripts)


def between(marker: str) -> str:
    return README.split(f"<!-- {marker} -->")[1].split(f"<!-- /{marker} -->")[0].strip()


def test_the_exercises_targets_are_what_was_measured():
    table = metrics.table(read_jsonl(ROOT / "tests/solutions/scores.jsonl"), "numbers")
    grid = (ROOT / "tests/solutions/temperature.txt").read_text().strip()
    assert between("exercises") == "\n".join([*table, "", "```", grid, "```"])


def test_the_results_are_those_of_the_scores_file():
    scores = read_jsonl(ROOT / "tests/tiny/scores.jsonl")
    assert between("results").startswith("\n".join(metrics.tables(scores)).strip())
