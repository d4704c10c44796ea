"""The board ranks methods by hand-made scores and logs, and counts what a fork changes."""

import doctest
import json
import sys

import pytest
from conftest import ROOT, call, complaint
from test_extras import cells_of

import distributions

sys.path.insert(0, str(ROOT / "tests" / "extras"))

import board


def test_docstring_examples():
    result = doctest.testmod(board)
    assert result.failed == 0 and result.attempted > 0


def score(method: str, axis: str, split: str | None, metric: str, value: float | None) -> dict:
    row = {"model": "tests/tiny", "method": method, "axis": axis, "split": split, "seed": 0}
    return row | {"metric": metric, "value": value, "n": 24}


@pytest.fixture
def folders(tmp_path, monkeypatch) -> list:
    """Two seeds of five methods: `cheap` is the best, but for `dear`, which costs more than soft.

    W1 of `wild` is infinite with one of the seeds.
    """
    docstrings = {"soft": "Soft. It is the paper's.", "cheap": "Cheap.", "wild": "Wild."}
    docstrings["dear"] = "Dear, but\ngood. So it is.\n\nThis is how. It works so."
    codes = {"soft": "a = 1\n", "cheap": "a = 2\n", "dear": "a = 1\nb = 2\n", "wild": ""}
    sources = {name: f'"""{text}"""\n{codes[name]}' for name, text in docstrings.items()}
    for method, source in sources.items():
        (tmp_path / f"train_{method}.py").write_text(source)
    monkeypatch.setattr(board, "ROOT", tmp_path)

    values = {"base": 0.9, "soft": 0.2, "cheap": 0.1, "dear": 0.05, "wild": None, "target": 0.02}
    tokens = {"soft": 1000, "cheap": 500, "dear": 1001, "wild": 1000}
    made = []
    for seed in (0, 1):
        folder = tmp_path / f"seed-{seed}"
        rows = []
        for method, value in values.items():
            if value is None:
                held_out = 0.1 if seed else None
            else:
                held_out = value + 0.02 * seed
            rows.append(score(method, "numbers", "ood", "normalized_w1", held_out))
            rows.append(score(method, "numbers", "unseen", "normalized_w1", 0.5))
            rows.append(score(method, "numbers", "ood", "excess_kl", 0.25))
            rows.append(score(method, "mcq", None, "tv", 0.125))
            rows.append(score(method, "mcq", None, "valid_rate", 0.5))
            if method in tokens:
                steps = [{"tokens": tokens[method] / 2, "seconds": 3.0 if method == "soft" else 1}]
                log = distributions.to_jsonl(steps * 2)
                distributions.write_text(folder / method / "log.jsonl", log)
        distributions.write_text(folder / "scores.jsonl", distributions.to_jsonl(rows))
        made.append(folder)
    return made


def test_the_lowest_w1_at_the_cost_of_soft_comes_first(folders, tmp_path, capsys):
    out = tmp_path / "board.jsonl"
    call(board, *folders, "--out", out)
    heading, _, *lines = [cells_of(line) for line in capsys.readouterr().out.splitlines()]
    assert [line[:2] for line in lines] == [
        ["1", "cheap"],
        ["2", "soft"],
        ["3", "wild"],
        ["–", "dear"],
        ["–", "target"],
        ["–", "base"],
    ]
    columns = dict(zip(heading, zip(*lines, strict=True), strict=True))
    assert columns["norm. W1, held-out"][:3] == ("0.11 ± 0.01", "0.21 ± 0.01", "∞")
    assert columns["excess KL (unseen, held-out)"][0] == "–, 0.25"
    assert columns["TV of the correct option"][0] == "0.12 (50% valid)"
    assert columns["unique open answers"][0] == "–"
    assert columns["tokens"] == ("0.50", "1.00", "1.00", "1.00", "–", "–")
    assert columns["time"][:2] == ("0.33", "1.00")
    assert columns["lines"][:4] == ("1", "0", "1", "1")
    assert columns["idea"][:4] == ("Cheap.", "Soft.", "Wild.", "Dear, but good.")

    rows = distributions.read_rows([out])
    assert board.table(rows) == board.table(json.loads(json.dumps(rows)))
    assert [row["rank"] for row in rows] == [1, 2, 3, None, None, None]
    assert rows[2]["w1_held_out"] == [None, 0.1]


def test_costs_need_soft(folders, tmp_path):
    rows = distributions.read_rows([folders[0] / "scores.jsonl"])
    without_soft = [row for row in rows if row["method"] != "soft"]
    distributions.write_text(folders[0] / "scores.jsonl", distributions.to_jsonl(without_soft))
    out = tmp_path / "board.jsonl"
    assert "soft has no scores" in complaint(board, folders[0], "--out", out)
    assert not out.exists()


def test_a_trainer_does_not_differ_from_itself():
    source = (ROOT / "train_soft.py").read_text()
    assert board.changed_lines(source, source) == 0
    assert board.idea(source).startswith("Soft calibration: ")
