r"""The board: what every objective reaches on the model tests/tiny, and at what cost.

    make board
    python tests/extras/board.py runs/board/seed-* --out runs/board/board.jsonl

`make board` trains soft, hard, the forks of tests/solutions and every train_NAME.py of your own,
with two seeds each, and draws from all of them on every axis. Then it hands the folders of results,
one for each seed, to this script, which writes a row for each method and prints the table.

1) Methods are ranked by their normalized W1 on held-out families, which is averaged over the seeds.
2) To be ranked, a method may train on no more tokens than soft. Dearer ones are listed below the
   others, as are the untrained model and a perfect sampler.
3) The time is that of the training alone, relative to soft's in the same run. It is shown because
   some objectives do work that is not counted in tokens, such as drawing from the model.
4) The lines are those in which a trainer differs from train_soft.py, its docstring aside.
"""

import ast
import difflib
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
import distributions
import metrics
from distributions import InputError

UNRANKED = ("base", "target")
SCORES = {  # key of a row -> (axis, split, metric)
    "w1_held_out": ("numbers", "ood", "normalized_w1"),
    "w1_unseen": ("numbers", "unseen", "normalized_w1"),
    "excess_held_out": ("numbers", "ood", "excess_kl"),
    "excess_unseen": ("numbers", "unseen", "excess_kl"),
    "valid_held_out": ("numbers", "ood", "valid_rate"),
    "unique": ("open", None, "unique_rate"),
    "exam_tv": ("mcq", None, "tv"),
    "exam_valid": ("mcq", None, "valid_rate"),
}

# --------------------------------------------------------------------------------- the trainers


def without_docstring(source: str) -> list[str]:
    """The lines of a script after its docstring."""
    docstring = ast.parse(source).body[0]
    return source.splitlines()[docstring.end_lineno :]


def changed_lines(original: str, fork: str) -> int:
    r"""How many lines were changed, added or removed; a changed line counts once.

    >>> changed_lines("'A.'\na = 1\nb = 2", "'B.'\na = 3\nb = 2\nc = 4")
    2
    """
    before, after = without_docstring(original), without_docstring(fork)
    blocks = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    return sum(max(i2 - i1, j2 - j1) for tag, i1, i2, j1, j2 in blocks if tag != "equal")


def idea(source: str) -> str:
    """The first sentence of a script's docstring.

    >>> idea("'Use the square. It is new.'")
    'Use the square.'
    """
    paragraph = ast.get_docstring(ast.parse(source)).partition("\n\n")[0]
    sentence, stop, _ = " ".join(paragraph.split()).partition(". ")
    return sentence + stop.strip()


# ----------------------------------------------------------------------------------- the ranking


def spent(folders: list[Path], method: str) -> dict[str, float]:
    """The tokens and the seconds of a method's training, summed over the seeds."""
    logs = [folder / method / "log.jsonl" for folder in folders]
    steps = distributions.read_rows([log for log in logs if log.exists()], ("tokens", "seconds"))
    return {key: sum(step[key] for step in steps) for key in ("tokens", "seconds")}


def entry(folders: list[Path], method: str, scores: list[dict]) -> dict:
    """The row of a method: its scores, a list with a value for each seed, and what it cost.

    A score that the method does not have is an empty list; an infinite one is null.
    """
    row = {"method": method, "rank": None}
    for key, wanted in SCORES.items():
        row[key] = [
            score["value"]
            for score in scores
            if (score["axis"], score["split"], score["metric"]) == wanted
            and score["method"] == method
            and score["n"]
        ]
    if method in UNRANKED:
        return row

    source = (ROOT / f"train_{method}.py").read_text(encoding="utf-8")
    cost, cost_of_soft = spent(folders, method), spent(folders, "soft")
    row["tokens"] = cost["tokens"] / cost_of_soft["tokens"]
    row["time"] = cost["seconds"] / cost_of_soft["seconds"]
    row["lines"] = changed_lines((ROOT / "train_soft.py").read_text(encoding="utf-8"), source)
    row["idea"] = idea(source)
    return row


def mean(values: list[float | None]) -> float:
    """The mean over the seeds, infinite if one of them is."""
    return float(np.mean([np.inf if value is None else value for value in values]))


def ranked(entries: list[dict]) -> list[dict]:
    """The entries in the order of the table: ranked ones, dearer ones, base and target."""

    def place(row: dict) -> tuple:
        dearer = row.get("tokens", 1.0) > 1.0
        return row["method"] in UNRANKED, dearer, mean(row["w1_held_out"])

    rows = sorted(entries, key=place)
    competing = [row for row in rows if not any(place(row)[:2])]
    for rank, row in enumerate(competing, 1):
        row["rank"] = rank
    return rows


# -------------------------------------------------------------------------------------- the table


def cell(values: list[float | None], digits: int = 2) -> str:
    if not values:
        return "–"
    return metrics.show(None if None in values else mean(values), digits)


def spread_cell(values: list[float | None]) -> str:
    """The mean over the seeds, with their standard deviation if there are several."""
    spread = ""
    if len(values) > 1 and None not in values:
        spread = f" ± {np.std(values, ddof=1):.2f}"
    return cell(values) + spread


def table(rows: list[dict]) -> list[str]:
    """The lines of the Markdown table."""
    heading = ["rank", "method", "norm. W1, held-out", "norm. W1, unseen"]
    heading += ["excess KL (unseen, held-out)", "valid, held-out", "unique open answers"]
    heading += ["TV of the correct option", "tokens", "time", "lines", "idea"]
    lines = [heading]
    for row in rows:
        exam = cell(row["exam_tv"])
        if row["exam_valid"] and row["method"] != "target":
            exam += f" ({mean(row['exam_valid']):.0%} valid)"
        line = ["–" if row["rank"] is None else str(row["rank"]), row["method"]]
        line += [spread_cell(row["w1_held_out"]), spread_cell(row["w1_unseen"])]
        line.append(f"{cell(row['excess_unseen'])}, {cell(row['excess_held_out'])}")
        line += [cell(row["valid_held_out"]), cell(row["unique"]), exam]
        if row["method"] in UNRANKED:
            name = "the untrained model" if row["method"] == "base" else "a perfect sampler"
            line += ["–", "–", "–", name]
        else:
            line += [f"{row['tokens']:.2f}", f"{row['time']:.2f}", str(row["lines"]), row["idea"]]
        lines.append(line)
    return metrics.markdown(zip(*lines, strict=True))


def main() -> None:
    parser = distributions.Parser(description=__doc__)
    add = parser.add_argument
    what = "results of one seed: a folder with scores.jsonl and METHOD/log.jsonl"
    add("folders", nargs="+", type=Path, metavar="DIR", help=what)
    add("--out", required=True, help="JSONL file to write: a row for each method")
    args = parser.parse_args()

    keys = ("method", "axis", "split", "metric", "value", "n")
    scores = distributions.read_rows([folder / "scores.jsonl" for folder in args.folders], keys)
    methods = list(dict.fromkeys(score["method"] for score in scores))
    if "soft" not in methods:
        raise InputError("soft has no scores, and costs are relative to it; train it as well")
    rows = ranked([entry(args.folders, method, scores) for method in methods])
    distributions.write_text(args.out, distributions.to_jsonl(rows))
    print("\n".join(table(rows)))


if __name__ == "__main__":
    distributions.run(main)
