"""The README keeps to the code: what it quotes is in the files, its sessions run, its tables are those of the committed
scores, its pictures and commands exist."""

import doctest
import json
import re
import shutil
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tests" / "extras"))

import readme

import metrics
from distributions import read_rows

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
FILES = ("distributions.py", "trie.py", "train_soft.py", "train_hard.py", "sample.py", "metrics.py")
RESULTS = [ROOT / "tests" / "results" / name for name in ("tiny", "smollm2")]


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if not block.startswith((">>>", "from peft"))]
)
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
    assert len(links) >= 3 and all((ROOT / link).exists() for link in links)
    targets = set(re.findall(r"^([a-z0-9]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = set(re.findall(r"^make ([a-z0-9]+)", README, re.MULTILINE)) | set(
        re.findall(r"`make ([a-z0-9]+)", README)
    )
    assert len(asked) > 5 and asked <= targets
    scripts = re.findall(r"python ((?:tests/)?(?:[a-z]+/)?[a-z_]+\.py)", README)
    assert len(scripts) >= 2 and all((ROOT / name).exists() for name in scripts)


def between(marker: str) -> str:
    return README.split(f"<!-- {marker} -->")[1].split(f"<!-- /{marker} -->")[0].strip()


def test_the_tables_are_those_of_the_committed_scores():
    scores = read_rows([folder / "scores.jsonl" for folder in RESULTS])
    assert between("headline") == "\n".join(readme.headline(scores))
    for folder in RESULTS:
        own = read_rows([folder / "scores.jsonl"])
        assert (folder / "report.md").read_text() == "\n".join(metrics.tables(own))
    assert between("costs") == "\n".join(readme.costs(RESULTS))
    assert between("perplexity") == "\n".join(readme.perplexity(RESULTS))


def test_the_costs_of_a_fork_show_its_own_options(tmp_path):
    shutil.copytree(RESULTS[0] / "soft", mine := tmp_path / "mine")
    record = json.loads((mine / "run.json").read_text())
    record["args"] |= {"loss": "reverse", "limit": None}
    (mine / "run.json").write_text(json.dumps(record))
    (line,) = readme.costs([tmp_path])
    assert (
        line.startswith("- tiny, mine: 189 steps in ")
        and "seed 0, loss reverse) on 1 of 2 cores" in line
    )


def test_the_exercises_table_is_what_was_measured():
    rows = read_rows([ROOT / "tests/solutions/scores.jsonl"])
    assert between("exercises") == "\n".join(readme.exercises(rows))
    assert {"base", "soft", "hard", "onpolicy", "target"} <= {row["method"] for row in rows}


def test_the_sizes_that_were_promised():
    """Six files of at most 350 lines and 1700 in all, a page of at most 300, a Makefile of at most 110."""
    lines = {
        name: len((ROOT / name).read_text().splitlines())
        for name in (*FILES, "README.md", "Makefile")
    }
    assert max(lines[name] for name in FILES) <= 350 and sum(lines[name] for name in FILES) <= 1700
    assert lines["README.md"] <= 300 and lines["Makefile"] <= 110
