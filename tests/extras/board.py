r"""The board: what every objective reaches on the model tests/tiny, and at what cost.

    make board

This command trains soft, hard, the forks of tests/solutions and every train_NAME.py of your own,
with two seeds each, and draws from all of them on every axis. Then it hands the folders of results,
one for each seed, to this script, which writes a row for each method and prints the table. With
METHODS="soft mine", it trains only these two, and takes the rows of all other methods from the
board that ships with the kit (--others).

Methods are ranked by their normalized W1 on held-out families, averaged over the seeds. The others
are listed below them, without a rank: the untrained model, a perfect sampler, and methods that

1) trained on prompts other than soft's,
2) trained on more than 1.1 times the tokens of soft (hard needs 1.06 times as many), or
3) give more than 5% invalid answers on held-out families, which W1 would ignore.

"time" is training time only, relative to soft's in the same run. It is shown because some
objectives do work that is not counted in tokens, such as drawing from the model. "lines" counts the
lines in which a trainer differs from train_soft.py, apart from its docstring.
"""

import ast
import difflib
import json
import sys
from pathlib import Path

from readme import REFERENCES, board, mean

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
import distributions
from distributions import InputError

MOST_TOKENS = 1.1  # relative to soft's
LEAST_VALID = 0.95
SCORES = {  # key of a row -> (axis, split, metric)
    "w1_unseen": ("numbers", "unseen", "normalized_w1"),
    "w1_held_out": ("numbers", "ood", "normalized_w1"),
    "excess_unseen": ("numbers", "unseen", "excess_kl"),
    "excess_held_out": ("numbers", "ood", "excess_kl"),
    "valid_held_out": ("numbers", "ood", "valid_rate"),
    "unique": ("open", None, "unique_rate"),
    "exam_tv": ("mcq", None, "tv"),
    "exam_valid": ("mcq", None, "valid_rate"),
}

# --------------------------------------------------------------------------------- the trainers


def without_docstring(source: str) -> list[str]:
    """The lines of a script after its docstring, if it has one."""
    tree = ast.parse(source)
    first = tree.body[0].end_lineno if ast.get_docstring(tree) else 0
    return source.splitlines()[first:]


def changed_lines(original: str, fork: str) -> int:
    r"""How many lines were changed, added or removed; a changed line counts once.

    >>> changed_lines("'A.'\na = 1\nb = 2", "'B.'\na = 3\nb = 2\nc = 4")
    2
    """
    before, after = without_docstring(original), without_docstring(fork)
    blocks = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    return sum(max(i2 - i1, j2 - j1) for tag, i1, i2, j1, j2 in blocks if tag != "equal")


def idea(source: str) -> str:
    """The first sentence of a script's docstring, or – if it has none.

    >>> idea("'Use the square. It is new.'")
    'Use the square.'
    """
    docstring = ast.get_docstring(ast.parse(source)) or "–"
    paragraph = " ".join(docstring.partition("\n\n")[0].split())
    sentence, stop, _ = paragraph.partition(". ")
    return sentence + stop.strip()


# ----------------------------------------------------------------------------------- the ranking


def training(folders: list[Path], method: str) -> dict:
    """A method's training, seed by seed: the digest of its prompts, its tokens, its seconds."""
    used = {"data": [], "tokens": [], "seconds": []}
    for folder in folders:
        record = json.loads((folder / method / "run.json").read_text(encoding="utf-8"))
        used["data"].append(record["data"])
        steps = distributions.read_rows([folder / method / "log.jsonl"], ("tokens", "seconds"))
        for key in ("tokens", "seconds"):
            used[key].append(sum(step[key] for step in steps))
    return used


def entry(folders: list[Path], method: str, scores: list[dict]) -> dict:
    """The row of a method: its scores, each a list over the seeds, and what its training took.

    A list lacks the seeds for which there is no such score. An infinite one is null.
    """
    row = {"method": method, "seeds": len(folders)}
    for key, wanted in SCORES.items():
        row[key] = [
            score["value"]
            for score in scores
            if (score["axis"], score["split"], score["metric"]) == wanted
            and score["method"] == method
            and score["n"]
        ]
    if method in REFERENCES:
        return row | {"idea": REFERENCES[method]}

    used, used_by_soft = training(folders, method), training(folders, "soft")
    row["same_data"] = used["data"] == used_by_soft["data"]
    row["tokens"] = sum(used["tokens"]) / sum(used_by_soft["tokens"])
    row["time"] = sum(used["seconds"]) / sum(used_by_soft["seconds"])
    source = (ROOT / f"train_{method}.py").read_text(encoding="utf-8")
    row["lines"] = changed_lines((ROOT / "train_soft.py").read_text(encoding="utf-8"), source)
    return row | {"idea": idea(source)}


def reason_not_ranked(row: dict) -> str:
    """Why a method has no rank, in a few words; empty if it has one."""
    if row["method"] in REFERENCES:
        return "for comparison"
    if not row["same_data"]:
        return "trained on other prompts"
    if row["tokens"] > MOST_TOKENS:
        return "trained on too many tokens"
    if len(row["w1_held_out"]) < row["seeds"]:
        return "numbers not drawn with every seed"
    if mean(row["valid_held_out"]) < LEAST_VALID:
        return "too many invalid answers"
    return ""


def ranked(entries: list[dict]) -> list[dict]:
    """The entries in the order of the table, each with its rank, or null and the reason."""

    def place(row: dict) -> tuple:
        return bool(row["not_ranked"]), row["method"] in REFERENCES, mean(row["w1_held_out"])

    rows = [row | {"not_ranked": reason_not_ranked(row)} for row in entries]
    rows.sort(key=place)
    return [row | {"rank": None if row["not_ranked"] else i} for i, row in enumerate(rows, 1)]


def main() -> None:
    parser = distributions.Parser(description=__doc__)
    add = parser.add_argument
    what = "results of one seed: a folder with scores.jsonl and METHOD/log.jsonl"
    add("folders", nargs="+", type=Path, metavar="DIR", help=what)
    add("--others", metavar="FILE", help="an earlier board, for the methods that are not in DIR")
    add("--out", required=True, help="JSONL file to write: a row for each method")
    args = parser.parse_args()

    keys = ("method", "axis", "split", "metric", "value", "n")
    scores = distributions.read_rows([folder / "scores.jsonl" for folder in args.folders], keys)
    methods = list(dict.fromkeys(score["method"] for score in scores))
    if "soft" not in methods:
        raise InputError("soft has no scores, and costs are relative to it; train it as well")
    entries = [entry(args.folders, method, scores) for method in methods]
    if args.others:
        earlier = distributions.read_rows([args.others], ("method", "w1_held_out"))
        entries += [row for row in earlier if row["method"] not in methods]
    rows = ranked(entries)
    distributions.write_text(args.out, distributions.to_jsonl(rows))
    print("\n".join(board(rows)))


if __name__ == "__main__":
    distributions.run(main)
