"""README and code agree, and the code is as easy to read as README promises.

The code that README quotes is in the files, its sessions run, its tables are those of the
committed scores, and its links and commands exist. So do those of the pages beside the results and
the exercises.
"""

import ast
import doctest
import json
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
from conftest import ENV, FILES, ROOT

sys.path[:0] = [str(ROOT / "tests" / "extras"), str(ROOT / "tests" / "solutions")]

import make_forks
import readme

import distributions
import metrics
import train_hard
import train_soft
from distributions import read_rows

README = (ROOT / "README.md").read_text()
RESULTS_PAGE = ROOT / "tests" / "results" / "README.md"
PAGES = [ROOT / "README.md", RESULTS_PAGE, ROOT / "tests" / "solutions" / "README.md"]
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
QUOTES = [block for block in BLOCKS if not block.startswith((">>>", "from peft"))]
# In the order in which the shell expands tests/results/*/, so that the command in readme.py's
# docstring writes these tables. Capitals come first: the public models, then the bundled one.
RESULTS = sorted(path.parent for path in (ROOT / "tests" / "results").glob("*/scores.jsonl"))
TINY_RESULTS = ROOT / "tests" / "results" / "tiny"


@pytest.mark.parametrize("block", QUOTES)
def test_quoted_code_is_in_the_files(block):
    assert any(block in (ROOT / name).read_text() for name in FILES)


def test_sessions_run(monkeypatch):
    monkeypatch.chdir(ROOT)
    session = "\n".join(block for block in BLOCKS if block.startswith(">>>"))
    test = doctest.DocTestParser().get_doctest(session, {}, "README.md", "README.md", 0)
    runner = doctest.DocTestRunner()
    runner.run(test)
    assert runner.summarize(verbose=False).attempted >= 10 and runner.failures == 0


def anchor(heading: str) -> str:
    """The name by which a link finds a heading, as GitHub forms it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_exist(page):
    links = re.findall(r"\]\(([^)]*)\)", page.read_text())
    links = [link for link in links if not link.startswith("http")]
    assert len(links) >= (3 if page == PAGES[0] else 1)
    for link in links:
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if heading:
            headings = re.findall(r"^#+ (.*)", target.read_text(), re.MULTILINE)
            assert heading in map(anchor, headings), link


def make_targets() -> set[str]:
    """All targets that make knows, those of included files among them. Nothing is made."""
    command = ["make", "--print-data-base", "--dry-run", "help"]
    done = subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0
    known = re.sub(r"# Not a target:\n.*", "", done.stdout)
    return set(re.findall(r"^([a-z0-9]+):", known, re.MULTILINE))


def asked_of_make(text: str) -> set[str]:
    # A target such as models/NAME belongs to a pattern rule, which the database does not name.
    asked = set(re.findall(r"^make ([a-z0-9]+)\b(?!/)", text, re.MULTILINE))
    return asked | set(re.findall(r"`make ([a-z0-9]+)\b(?!/)", text))


def test_commands_exist():
    text = "\n".join(page.read_text() for page in PAGES)
    assert len(asked_of_make(README)) > 5
    assert asked_of_make(text) - make_targets() == set()
    scripts = set(re.findall(r"python ((?:tests/)?(?:[a-z]+/)?[a-z_]+\.py)", text))
    scripts.remove("train_mine.py")  # the reader's own
    assert len(scripts) >= 2
    assert [name for name in scripts if not (ROOT / name).exists()] == []


# ---------------------------------------------------------------------------- the tables


def between(marker: str, page: str = README) -> str:
    return page.split(f"<!-- {marker} -->")[1].split(f"<!-- /{marker} -->")[0].strip()


def test_the_tables_are_those_of_the_committed_results():
    assert TINY_RESULTS in RESULTS
    scores = read_rows([folder / "scores.jsonl" for folder in RESULTS])
    assert between("headline") == "\n".join(readme.headline(scores))
    details = RESULTS_PAGE.read_text()
    assert between("costs", details) == "\n".join(readme.costs(RESULTS))
    assert between("speeds", details) == "\n".join(readme.speeds(RESULTS))
    assert between("words") == "\n".join(readme.words(scores))
    assert between("retention") == "\n".join(readme.benchmarks(RESULTS))


@pytest.mark.parametrize("folder", RESULTS, ids=[folder.name for folder in RESULTS])
def test_a_report_is_that_of_its_scores(folder):
    scores = read_rows([folder / "scores.jsonl"])
    assert (folder / "report.md").read_text() == "\n".join(metrics.tables(scores))


# Rows of sample.py are kept where drawing them again would take hours.
AXES = ("held_out", "mcq", "numbers", "open")
WITH_ROWS = [folder for folder in RESULTS if (folder / "base/numbers.jsonl").exists()]


@pytest.mark.parametrize("folder", WITH_ROWS, ids=[folder.name for folder in WITH_ROWS])
def test_scores_are_those_of_the_committed_rows(folder):
    files = sorted(path for path in folder.glob("*/*.jsonl") if path.stem in AXES)
    rows = read_rows(files)
    metrics.check_same_prompts(rows)
    metrics.check_same_weights(rows)
    assert metrics.aggregate(rows) == read_rows([folder / "scores.jsonl"])


def test_the_board_is_that_of_its_rows():
    """It lists soft, hard and every fork of the solutions, and ranks at least the first two."""
    rows = read_rows([ROOT / "tests/results/board.jsonl"])
    assert between("board") == "\n".join(readme.board(rows))
    assert {"base", "soft", "hard", "target", *make_forks.FORKS} == {row["method"] for row in rows}
    assert {"soft", "hard"} <= {row["method"] for row in rows if row["rank"]}


def cells_of(line: str) -> list[str]:
    """The cells of a line of a Markdown table."""
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_costs_of_a_fork_show_its_own_options(tmp_path):
    mine = tmp_path / "mine"
    shutil.copytree(TINY_RESULTS / "soft", mine)
    record = json.loads((mine / "run.json").read_text())
    record["args"] |= {"loss": "reverse", "limit": None, "accumulate": 4}
    record |= {"threads": 1, "cores": 2, "device": "a processor"}
    (mine / "run.json").write_text(json.dumps(record))
    steps = [{"seconds": 40.0}] * 3
    (mine / "log.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))

    heading, _, line = readme.costs([tmp_path])
    assert cells_of(heading) == ["model", "method", "steps", "time", "options", "hardware"]
    # A fork's epochs and draws are always listed, since its defaults are its own.
    options = "epochs 3, draws 8, branches 8, lr 0.002, loss reverse"
    hardware = "1 of 2 cores, a processor"
    assert cells_of(line) == ["tiny", "mine", "3", "2 min", options, hardware]


@pytest.mark.parametrize("method, trainer", [("soft", train_soft), ("hard", train_hard)])
def test_the_paper_s_options_are_the_trainers_defaults(method, trainer, monkeypatch):
    parsers = []

    def stop(parser):
        parsers.append(parser)
        raise KeyboardInterrupt

    monkeypatch.setattr(distributions.Parser, "parse_args", stop)
    with pytest.raises(KeyboardInterrupt):
        trainer.main()
    expected = readme.DEFAULTS | readme.DEFAULTS_OF_METHOD[method]
    names = ("batch", "epochs", "draws", "branches", "lr", "seed")
    defaults = {name: parsers[0].get_default(name) for name in names}
    assert defaults == expected

    paths = {"model": "m", "data": "d", "out": "o", "accumulate": 4, "limit": None}
    assert readme.options(method, defaults | paths) == "the paper's"
    changed = defaults | paths | {"seed": 1, "limit": 64}
    listed = readme.options(f"{method}-s1", changed).split(", ")
    assert sorted(listed) == ["limit 64", "seed 1"]


# ------------------------------------------------------------------------------ the code


def lambdas_outside_functions(source: str) -> list[int]:
    """The line numbers of lambdas outside the body of any function."""
    tree = ast.parse(source)
    inside = set()
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            for statement in function.body:
                inside |= set(ast.walk(statement))
    lambdas = [node for node in ast.walk(tree) if isinstance(node, ast.Lambda)]
    return [node.lineno for node in lambdas if node not in inside]


def test_only_lambdas_outside_functions_are_found():
    source = """
double = lambda x: 2 * x
def order(rows, key=lambda row: row["id"]):
    return sorted(rows, key=lambda row: key(row))
class Family:
    identity = lambda x: x
"""
    assert sorted(lambdas_outside_functions(source)) == [2, 3, 6]


def mean_length(lines: list[str]) -> float:
    """The mean length of the lines that are not blank."""
    lengths = [len(line) for line in lines if line.strip()]
    return sum(lengths) / len(lengths)


def test_the_six_files_have_short_lines_and_no_lambda_outside_a_function():
    sources = {name: (ROOT / name).read_text() for name in FILES}
    lines = [line for source in sources.values() for line in source.splitlines()]
    assert [line for line in lines if len(line) > 100] == []
    assert mean_length(lines) <= 58
    lambdas = {name: lambdas_outside_functions(source) for name, source in sources.items()}
    assert lambdas == {name: [] for name in FILES}


def test_the_makefiles_have_short_lines():
    for name in ("Makefile", "tests/extras/rules.mk"):
        lines = (ROOT / name).read_text().splitlines()
        assert [line for line in lines if len(line) > 100] == []
        assert mean_length(lines) <= 60


def test_ruff_checks_the_length_of_every_line():
    ruff = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]
    assert ruff["line-length"] == 100 and "E" in ruff["lint"]["select"]
    exempt = [*ruff["lint"].get("ignore", []), *ruff.get("exclude", [])]
    for rules in ruff["lint"].get("per-file-ignores", {}).values():
        exempt += rules
    assert set(exempt) <= {"E402"}  # imports below the line that finds the kit
