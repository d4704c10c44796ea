"""The tables of a Markdown file, written between its marker lines from files of scores.

    python tests/extras/readme.py README.md --results tests/results/tiny tests/results/smollm2
    python tests/extras/readme.py page.md --results runs/tiny

<!-- headline --> … <!-- /headline -->   one short table: base, soft, hard and a perfect sampler of each model
<!-- results --> … <!-- /results -->     all tables of metrics.py, with intervals
<!-- costs --> … <!-- /costs -->         what each training cost, with which options and on which hardware
<!-- perplexity --> … <!-- /perplexity --> of the texts of retention.py --texts
<!-- exercises --> … <!-- /exercises -->  the forks of tests/solutions, from --exercises FILE
<!-- decimals --> … <!-- /decimals -->    the same of decimals.jsonl, scores of other decimals and bins

Reads the scores.jsonl of each folder, the run.json and log.jsonl of its methods, and its perplexity.jsonl where there is
one. Of the markers, a file may have some.
What this file does not do: compute a score, or change anything outside the markers.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
import metrics
from distributions import InputError, Parser, read_rows, run, write_text

METHODS = {"base": "base", "soft": "soft", "hard": "hard", "target": "a perfect sampler"}
HEADINGS = ["model", "method", "norm. W1 (unseen, held-out)", "excess KL (unseen, held-out)", "unique open answers",
            "TV of the right answer's place"]  # fmt: skip


def short(row: dict | None) -> str:
    """A score without its interval; – where there is none, ∞ where it is infinite."""
    if row is None or not row["n"]:
        return "–"
    if row["value"] is None or row["value"] >= 1000:
        return "∞" if row["value"] is None else f"{row['value']:.0e}"
    return f"{round(row['value'], 2) + 0:.2f}"  # + 0: there is no -0.00


def headline(scores: list[dict]) -> list[str]:
    """A Markdown table of four rows for each model and six columns. unseen: parameters; held-out: families."""
    cells = {
        (row["model"], row["method"], row["axis"], row["split"], row["metric"]): row
        for row in scores
    }
    names = {(row["model"], row["method"]) for row in scores}
    lines = [HEADINGS]
    for model in dict.fromkeys(row["model"] for row in scores):
        for method in (method for method in METHODS if (model, method) in names):
            both = [
                ", ".join(
                    short(cells.get((model, method, "numbers", split, metric)))
                    for split in ("unseen", "ood")
                )
                for metric in ("normalized_w1", "excess_kl")
            ]
            unique = short(cells.get((model, method, "open", None, "unique_rate")))
            if (
                method == "target"
            ):  # what a uniform sampler scores with as many valid questions as the base has
                tv = short(cells.get((model, "base", "mcq", None, "tv_uniform")))
            else:
                tv = short(cells.get((model, method, "mcq", None, "tv")))
                valid = cells.get((model, method, "mcq", None, "valid_rate"))
                tv += f" ({valid['value']:.0%} valid)" if valid else ""
            lines.append([model.split("/")[-1], METHODS[method], *both, unique, tv])
    return metrics.markdown(zip(*lines, strict=True))


def costs(folders: list[Path]) -> list[str]:
    """A line for each training under the folders."""
    lines = []
    for log in (log for folder in folders for log in sorted(folder.glob("*/log.jsonl"))[::-1]):
        steps, record = (
            read_rows([log], ("seconds",)),
            json.loads(log.with_name("run.json").read_text()),
        )
        hidden = ("model", "data", "out", "accumulate")
        options = ", ".join(
            f"{key} {value}"
            for key, value in record["args"].items()
            if key not in hidden and value is not None
        )
        minutes = sum(step["seconds"] for step in steps) / 60
        lines.append(f"- {Path(record['args']['model']).name}, {log.parent.name}: {len(steps)} steps in {minutes:.0f} minutes "
                     f"({options}) on {record['threads']} of {record['cores']} cores, {record['device']}")  # fmt: skip
    return lines


def perplexity(folders: list[Path]) -> list[str]:
    """A table of texts x methods: token perplexity."""
    files = [
        folder / "perplexity.jsonl" for folder in folders if (folder / "perplexity.jsonl").exists()
    ]
    rows = [row for row in read_rows(files) if "perplexity" in row["metric"]]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = [["text", "tokens", *methods]]
    for task in dict.fromkeys(row["task"] for row in rows):
        own = {row["method"]: row for row in rows if row["task"] == task}
        lines.append(
            [task, str(own["base"]["n"]), *(f"{own[method]['value']:.2f}" for method in methods)]
        )
    return metrics.markdown(zip(*lines, strict=True))


def exercises(scores: list[dict]) -> list[str]:
    """A table of methods: excess KL, norm. W1 and valid, each for unseen parameters and held-out families."""
    cells = {(row["method"], row["split"], row["metric"]): row for row in scores}
    names = {"excess_kl": "excess KL", "normalized_w1": "norm. W1", "valid_rate": "valid"}
    lines = [["method", *(f"{name} (unseen, held-out)" for name in names.values())]]
    for method in dict.fromkeys(row["method"] for row in scores):
        pairs = [
            [short(cells.get((method, split, name))) for split in ("unseen", "ood")]
            for name in names
        ]
        lines.append([method, *map(", ".join, pairs)])
    return metrics.markdown(zip(*lines, strict=True))


def rewrite(path: Path, blocks: dict[str, list[str]]) -> None:
    """Put lines between a file's marker lines. Raises InputError if it has none of these, or half of a pair."""
    text = path.read_text(encoding="utf-8")
    found = [name for name in blocks if f"<!-- {name} -->\n" in text]
    if not found or not all(
        f"<!-- /{name} -->" in text.split(f"<!-- {name} -->\n")[1] for name in found
    ):
        raise InputError(
            f"{path} lacks marker lines, such as <!-- results --> and, below it, <!-- /results -->"
        )
    for name in found:
        before, rest = text.split(f"<!-- {name} -->\n", 1)
        after = rest.split(f"<!-- /{name} -->", 1)[1]
        body = "\n".join(blocks[name]).strip()
        text = f"{before}<!-- {name} -->\n{body}\n<!-- /{name} -->{after}"
    write_text(path, text)


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("file", metavar="FILE", help="Markdown file with marker lines")
    parser.add_argument(
        "--results",
        nargs="+",
        action="extend",
        required=True,
        metavar="DIR",
        help="has scores.jsonl and METHOD/log.jsonl",
    )
    parser.add_argument("--exercises", metavar="FILE", help="scores of the exercises' forks")
    args = parser.parse_args()
    folders = [Path(folder) for folder in args.results]
    keys = ("model", "method", "axis", "split", "metric", "value", "n")
    scores = read_rows([folder / "scores.jsonl" for folder in folders], keys)
    blocks = {
        "headline": headline(scores),
        "costs": costs(folders),
        "results": metrics.tables(scores),
    }
    if any((folder / "perplexity.jsonl").exists() for folder in folders):
        blocks["perplexity"] = perplexity(folders)
    if args.exercises:
        blocks["exercises"] = exercises(read_rows([args.exercises], keys))
    for ablation in (
        folder / "decimals.jsonl" for folder in folders if (folder / "decimals.jsonl").exists()
    ):
        blocks["decimals"] = exercises(read_rows([ablation], keys))
    rewrite(Path(args.file), blocks)


if __name__ == "__main__":
    run(main)
