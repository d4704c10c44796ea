"""The board ranks methods by hand-made scores and logs, and counts what a fork changes."""

import json
import sys

import pytest
from conftest import ROOT, call, complaint
from test_extras import cells_of

import distributions

sys.path.insert(0, str(ROOT / "tests" / "extras"))

import board


def score(method: str, axis: str, split: str | None, metric: str, value: float | None) -> dict:
    row = {"model": "tests/tiny", "method": method, "axis": axis, "split": split, "seed": 0}
    return row | {"metric": metric, "value": value, "n": 24}


@pytest.fixture
def folders(tmp_path, monkeypatch) -> list:
    """Two seeds of seven methods. `cheap` has the lowest W1 of those that may be ranked.

    Of the lower ones, `dear` takes too many tokens, `other` has prompts of its own, and half of
    what `broken` says is invalid. W1 of `wild` is infinite with one of the seeds.
    """
    docstrings = {"soft": "Soft. It is the paper's.", "cheap": "Cheap.", "wild": "Wild."}
    docstrings |= {"dear": "Dear, but\ngood | nice. So it is.\n\nThis is how. It works so."}
    docstrings |= {"other": "Other.", "broken": "Broken."}
    codes = {"soft": "a = 1\n", "cheap": "a = 2\n", "dear": "a = 1\nb = 2\n"}
    for method, text in docstrings.items():
        source = f'"""{text}"""\n{codes.get(method, "")}'
        (tmp_path / f"train_{method}.py").write_text(source)
    monkeypatch.setattr(board, "ROOT", tmp_path)

    values = {"base": 0.9, "soft": 0.2, "cheap": 0.1, "wild": None, "target": 0.02}
    values |= {"dear": 0.05, "other": 0.06, "broken": 0.07}
    tokens = {"soft": 1000, "cheap": 500, "dear": 1101, "wild": 1100, "other": 1000, "broken": 1000}
    made = []
    for seed in (0, 1):
        folder = tmp_path / f"seed-{seed}"
        rows = []
        for method, value in values.items():
            if value is None:
                held_out = 0.1 if seed else None
            else:
                held_out = value + 0.02 * seed
            valid = 0.5 if method == "broken" else 0.99
            rows.append(score(method, "numbers", "ood", "normalized_w1", held_out))
            rows.append(score(method, "numbers", "unseen", "normalized_w1", 0.5))
            rows.append(score(method, "numbers", "ood", "excess_kl", 0.25))
            rows.append(score(method, "numbers", "ood", "valid_rate", valid))
            rows.append(score(method, "mcq", None, "tv", 0.125))
            rows.append(score(method, "mcq", None, "valid_rate", 0.5))
            if method in tokens:
                steps = [{"tokens": tokens[method] / 2, "seconds": 3.0 if method == "soft" else 1}]
                log = distributions.to_jsonl(steps * 2)
                distributions.write_text(folder / method / "log.jsonl", log)
                # The other prompts are those of the second seed only.
                own = method == "other" and seed == 1
                record = {"data": "its own" if own else "everyone's"}
                distributions.write_text(folder / method / "run.json", json.dumps(record))
        distributions.write_text(folder / "scores.jsonl", distributions.to_jsonl(rows))
        made.append(folder)
    return made


def test_the_lowest_w1_within_the_rules_comes_first(folders, tmp_path, capsys):
    out = tmp_path / "board.jsonl"
    call(board, *folders, "--out", out)
    printed = capsys.readouterr().out.replace(r"\|", "/").splitlines()
    heading, _, *lines = [cells_of(line) for line in printed]
    assert [line[:2] for line in lines] == [
        ["1", "cheap"],
        ["2", "soft"],
        ["3", "wild"],
        ["–", "dear"],
        ["–", "other"],
        ["–", "broken"],
        ["–", "target"],
        ["–", "base"],
    ]
    columns = dict(zip(heading, zip(*lines, strict=True), strict=True))
    assert columns["norm. W1, held-out families"][:3] == ("0.11 ± 0.01", "0.21 ± 0.01", "∞")
    assert columns["excess KL (new parameters, held-out families)"][0] == "–, 0.25"
    assert columns["TV of the correct option"][0] == "0.12 (50% valid)"
    assert columns["unique open answers"][0] == "–"
    assert columns["tokens"][:4] == ("0.50", "1.00", "1.10", "1.10")
    assert columns["time"][:2] == ("0.33", "1.00")
    assert columns["lines"][:4] == ("1", "0", "1", "1")
    assert columns["idea"][:3] == ("Cheap.", "Soft.", "Wild.")
    assert columns["idea"][3:6] == (
        "Dear, but good / nice. (Not ranked: trained on too many tokens.)",
        "Other. (Not ranked: trained on other prompts.)",
        "Broken. (Not ranked: too many invalid answers.)",
    )
    assert columns["tokens"][-1] == columns["lines"][-1] == "–"

    rows = distributions.read_rows([out])
    assert [row["rank"] for row in rows] == [1, 2, 3, *[None] * 5]
    assert rows[2]["w1_held_out"] == [None, 0.1]


def test_methods_without_numbers_are_listed_and_not_ranked(folders, tmp_path, capsys):
    for folder in folders:
        rows = distributions.read_rows([folder / "scores.jsonl"])
        exams = [row for row in rows if row["axis"] == "mcq"]
        distributions.write_text(folder / "scores.jsonl", distributions.to_jsonl(exams))
    call(board, *folders, "--out", tmp_path / "board.jsonl")
    _, _, *lines = [cells_of(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 8 and {line[0] for line in lines} == {"–"}
    ideas = [line[-1] for line in lines if line[1] == "soft"]
    assert ideas == ["Soft. (Not ranked: numbers not drawn with every seed.)"]


def test_costs_need_soft_and_every_log(folders, tmp_path):
    out = tmp_path / "board.jsonl"
    (folders[1] / "cheap" / "log.jsonl").unlink()
    assert "seed-1/cheap/log.jsonl" in complaint(board, *folders, "--out", out)

    rows = distributions.read_rows([folders[0] / "scores.jsonl"])
    without_soft = [row for row in rows if row["method"] != "soft"]
    distributions.write_text(folders[0] / "scores.jsonl", distributions.to_jsonl(without_soft))
    assert "soft has no scores" in complaint(board, folders[0], "--out", out)
    assert not out.exists()


def test_methods_that_were_not_run_come_from_an_earlier_board(folders, tmp_path):
    earlier, out = tmp_path / "earlier.jsonl", tmp_path / "board.jsonl"
    call(board, *folders, "--out", earlier)
    assert [row["method"] for row in distributions.read_rows([earlier])][:2] == ["cheap", "soft"]

    few = []  # as if `make board METHODS="soft dear"` had been run, and dear were cheap and good
    for folder in folders:
        rows = distributions.read_rows([folder / "scores.jsonl"])
        rows = [row for row in rows if row["method"] in ("soft", "dear")]
        log = distributions.to_jsonl([{"tokens": 500, "seconds": 1}])
        few.append(tmp_path / "few" / folder.name)
        distributions.write_text(few[-1] / "scores.jsonl", distributions.to_jsonl(rows))
        for method in ("soft", "dear"):
            record = (folder / method / "run.json").read_text()
            distributions.write_text(few[-1] / method / "run.json", record)
            distributions.write_text(few[-1] / method / "log.jsonl", log)
    call(board, *few, "--others", earlier, "--out", out)

    rows = {row["method"]: row for row in distributions.read_rows([out])}
    assert len(rows) == 8
    ranks = {method: row["rank"] for method, row in rows.items() if row["rank"]}
    assert ranks == {"dear": 1, "cheap": 2, "soft": 3, "wild": 4}
    assert rows["dear"]["tokens"] == 1.0  # its own, not the earlier 1.1
    assert rows["cheap"]["tokens"] == 0.5


def test_a_trainer_does_not_differ_from_itself():
    source = (ROOT / "train_soft.py").read_text()
    assert board.changed_lines(source, source) == 0
    assert board.idea(source).startswith("Soft calibration: ")


def test_a_trainer_may_lack_a_docstring():
    assert board.idea("a = 1\n") == "–"
    assert board.changed_lines('"""A."""\na = 1\n', "a = 1\n") == 0
