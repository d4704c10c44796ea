r"""Write the tables of a Markdown file between its marker lines, from files of scores.

    python tests/extras/readme.py README.md --results tests/results/*/ \
        --board tests/results/board.jsonl
    python tests/extras/readme.py page.md --results runs/tiny

A file may have any of these pairs of marker lines. Nothing outside them is changed.

<!-- headline --> … <!-- /headline -->      base, soft and a perfect sampler of each model
<!-- costs --> … <!-- /costs -->            what each training run cost, and with which options
<!-- speeds --> … <!-- /speeds -->          how much faster the kit is than plain code (speed.py)
<!-- words --> … <!-- /words -->            the lists and choices of tests/solutions/mixed.py
<!-- retention --> … <!-- /retention -->    the benchmarks and perplexities of retention.py
<!-- board --> … <!-- /board -->            the objectives that board.py ranked, from --board FILE

The script reads the scores.jsonl of each folder, the run.json and log.jsonl of its methods, and, if
they exist, its speed.jsonl and retention.jsonl (a copy of what retention.py wrote to
retention/scores.jsonl). The tables follow the order of the folders. All figures come from
metrics.py, retention.py, speed.py and board.py.
"""

import json
import math
import re
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
import retention

import distributions
import metrics
from distributions import InputError

SPLITS = ("unseen", "ood")
BOTH_SPLITS = "(new parameters, held-out families)"
METHODS = {"base": "base", "soft": "soft", "target": "a perfect sampler"}  # of the headline
HEADLINE = (
    "model",
    "method",
    "excess KL",
    "CDF gap",
    "norm. W1",
    "valid numbers",
    "unique open answers",
    "TV of the correct option",
)

# The board's methods that are not trained.
REFERENCES = {"base": "the untrained model", "target": "a perfect sampler"}

# The defaults of the trainers, which are the paper's recipe. The tests compare them to the code.
DEFAULTS = {"batch": 32, "branches": 1, "lr": 2e-4, "seed": 0}
DEFAULTS_OF_METHOD = {"soft": {"epochs": 3, "draws": 1}, "hard": {"epochs": 2, "draws": 16}}
# Where things are, and how a step is divided to save memory: neither is part of a recipe.
NOT_OPTIONS = ("model", "data", "out", "accumulate")


def two_decimals(value: float) -> str:
    """A score as the tables show it.

    >>> two_decimals(0.256), two_decimals(-0.001), two_decimals(123456), two_decimals(math.inf)
    ('0.26', '0.00', '1e+05', '∞')
    """
    if value == math.inf:
        return "∞"
    if value >= 1000:
        return f"{value:.0e}"
    return f"{round(value, 2) + 0:.2f}"  # + 0 turns -0.0 into 0.0


def short(score: dict | None) -> str:
    """A score without its interval; – if there is none. In a score row, null means infinity."""
    if score is None or score["n"] == 0:
        return "–"
    return two_decimals(math.inf if score["value"] is None else score["value"])


def first_of_each(scores: list[dict], keys: tuple[str, ...]) -> dict[tuple, dict]:
    """The scores by their values of `keys`. Of several seeds, the first is kept."""
    found = {}
    for score in scores:
        found.setdefault(tuple(score[key] for key in keys), score)
    return found


def table(lines: list[list[str]]) -> list[str]:
    """The lines of a Markdown table; the first is the heading."""
    return metrics.markdown(zip(*lines, strict=True))


def headline(scores: list[dict]) -> list[str]:
    """A short table: the base, soft and a perfect sampler for each model, where there are scores.

    A cell of numbers has two values: new parameters, then held-out families.
    """
    cells = first_of_each(scores, ("model", "method", "axis", "split", "metric"))
    scored = {(score["model"], score["method"]) for score in scores}
    models = dict.fromkeys(score["model"] for score in scores)  # a set that keeps the order

    lines = [list(HEADLINE)]
    for model in models:
        for method, name in METHODS.items():
            if (model, method) not in scored:
                continue
            line = [Path(model).name, name]
            for metric in ("excess_kl", "cdf_gap", "normalized_w1", "valid_rate"):
                pair = [cells.get((model, method, "numbers", split, metric)) for split in SPLITS]
                line.append(", ".join(short(score) for score in pair))
            line.append(short(cells.get((model, method, "open", None, "unique_rate"))))

            balance = short(cells.get((model, method, "mcq", None, "tv")))
            valid = cells.get((model, method, "mcq", None, "valid_rate"))
            if valid and method != "target":  # a perfect sampler's places are all valid
                balance += f" ({valid['value']:.0%} valid)"
            lines.append([*line, balance])
    return table(lines)


def duration(seconds: float) -> str:
    """A time to the nearest minute, or to the nearest second if it is below a minute.

    >>> duration(12.3), duration(6510)
    ('12 s', '108 min')
    """
    return f"{seconds:.0f} s" if seconds < 59.5 else f"{seconds / 60:.0f} min"


def options(method: str, arguments: dict) -> str:
    """The options of a training run that are not the trainer's defaults; "the paper's" if all are.

    A fork may have defaults of its own, so its epochs and draws are always listed.

    >>> options("soft", {"batch": 32, "epochs": 3, "draws": 1, "lr": 0.002, "limit": None})
    'lr 0.002'
    """
    trainer = method.split("-")[0]  # soft-s1 and soft-slow are trained by train_soft.py
    defaults = DEFAULTS | DEFAULTS_OF_METHOD.get(trainer, {})
    listed = [
        f"{name} {value}"
        for name, value in arguments.items()
        if name not in NOT_OPTIONS and value is not None and value != defaults.get(name)
    ]
    return ", ".join(listed) or "the paper's"


def training_logs(folder: Path) -> list[Path]:
    """The logs of a model's training runs: soft, hard, then the others by name."""
    order = ["soft", "hard"]

    def place(log: Path) -> tuple[int, str]:
        method = log.parent.name
        return order.index(method) if method in order else len(order), method

    return sorted(folder.glob("*/log.jsonl"), key=place)


def costs(folders: list[Path]) -> list[str]:
    """A table with a line for each training run in the folders: its steps, time and options."""
    lines = [["model", "method", "steps", "time", "options", "hardware"]]
    for folder in folders:
        for log in training_logs(folder):
            method = log.parent.name
            steps = distributions.read_rows([log], ("seconds",))
            record = json.loads(log.with_name("run.json").read_text(encoding="utf-8"))
            model = Path(record["args"]["model"]).name
            time = duration(sum(step["seconds"] for step in steps))
            hardware = f"{record['threads']} of {record['cores']} cores, {record['device']}"
            recipe = options(method, record["args"])
            lines.append([model, method, str(len(steps)), time, recipe, hardware])
    return table(lines)


def files_named(name: str, folders: list[Path]) -> list[Path]:
    """The files of that name in the folders that have one."""
    files = [folder / name for folder in folders]
    return [file for file in files if file.exists()]


def speeds(folders: list[Path]) -> list[str]:
    """A table with a line for each stage that speed.py measured on a model."""
    lines = [["model", "stage", "plain code", "the kit", "ratio", "hardware"]]
    for file in files_named("speed.jsonl", folders):
        for row in distributions.read_rows([file]):
            model = Path(row["model"]).name
            seconds = [f"{row[key]:.2g} s" for key in ("plain_seconds", "seconds")]
            hardware = f"{row['threads']} thread, {row['device']}"
            lines.append([model, row["name"], *seconds, f"{row['ratio']:.1f}", hardware])
    return table(lines)


def benchmarks(folders: list[Path]) -> list[str]:
    """A table of retention.py for each model that has one, below the model's name."""
    lines = []
    for file in files_named("retention.jsonl", folders):
        rows = distributions.read_rows([file])
        name = Path(rows[0]["model"]).name
        lines += [f"`{name}`:", "", *retention.table(rows), ""]
    return lines[:-1]


def score_pairs(cells: dict, method: str, columns: tuple) -> list[str]:
    """Cells of two values each, such as "0.19, 0.21", for columns of (metric, splits)."""
    pairs = [[cells.get((method, split, metric)) for split in splits] for metric, splits in columns]
    return [", ".join(short(score) for score in pair) for pair in pairs]


def words(scores: list[dict]) -> list[str]:
    """A table of the held-out lists and choices of words, and of what they cost in numbers.

    It has a line for each method of the models that were asked them.
    """
    heading = ["model", "method", "TV (lists, choices)", "valid (lists, choices)"]
    heading.append(f"excess KL of numbers {BOTH_SPLITS}")
    of_words = ("lists", "words")
    columns = (("tv", of_words), ("valid_rate", of_words), ("excess_kl", SPLITS))

    lines = [heading]
    asked = [(score["model"], score["method"]) for score in scores if score["split"] in of_words]
    for model, method in dict.fromkeys(asked):
        of_model = [score for score in scores if score["model"] == model]
        cells = first_of_each(of_model, ("method", "split", "metric"))
        name = METHODS.get(method, method)
        lines.append([Path(model).name, name, *score_pairs(cells, method, columns)])
    return table(lines)


# ---------------------------------------------------------------------------------------- the board


def mean(values: list[float | None]) -> float:
    """The mean over the seeds: infinite if any value is null, or if there are none."""
    if not values or None in values:
        return math.inf
    return float(np.mean(values))


def cell(values: list[float | None], spread: bool = False) -> str:
    """The mean over the seeds, optionally with their standard deviation; – if there are none.

    >>> cell([0.1, 0.12], spread=True), cell([0.1, None], spread=True), cell([])
    ('0.11 ± 0.01', '∞', '–')
    """
    if not values:
        return "–"
    shown = two_decimals(mean(values))
    if spread and len(values) > 1 and None not in values:
        shown += f" ± {np.std(values, ddof=1):.2f}"
    return shown


def board(rows: list[dict]) -> list[str]:
    """The lines of the Markdown table."""
    lines = [
        [
            "rank",
            "method",
            "norm. W1, new parameters",
            "norm. W1, held-out families",
            f"excess KL {BOTH_SPLITS}",
            "valid, held-out families",
            "unique open answers",
            "TV of the correct option",
            "tokens",
            "time",
            "lines",
            "idea",
        ]
    ]
    for row in rows:
        exam = cell(row["exam_tv"])
        if row["exam_valid"] and row["method"] != "target":
            exam += f" ({mean(row['exam_valid']):.0%} valid)"
        trained = row["method"] not in REFERENCES
        idea_cell = row["idea"].replace("|", r"\|")  # a bare | would end the cell
        if trained and row["not_ranked"]:
            idea_cell += f" (Not ranked: {row['not_ranked']}.)"
        lines.append(
            [
                str(row["rank"] or "–"),
                row["method"],
                cell(row["w1_unseen"], spread=True),
                cell(row["w1_held_out"], spread=True),
                f"{cell(row['excess_unseen'])}, {cell(row['excess_held_out'])}",
                cell(row["valid_held_out"]),
                cell(row["unique"]),
                exam,
                two_decimals(row["tokens"]) if trained else "–",
                two_decimals(row["time"]) if trained else "–",
                str(row["lines"]) if trained else "–",
                idea_cell,
            ]
        )
    return table(lines)


# -------------------------------------------------------------------------------------- the command


def rewrite(path: Path, blocks: dict[str, list[str]]) -> None:
    """Replace the text between a file's marker lines with the lines of `blocks`.

    Raises InputError, and leaves the file as it is, if its marker lines are not in pairs, if there
    are none, or if `blocks` lacks one of the names.
    """
    text = path.read_text(encoding="utf-8")
    names = re.findall(r"^<!-- /?(\w+) -->$", text, flags=re.M)
    wrong = InputError(
        f"{path} lacks marker lines, such as <!-- costs --> and, below it, <!-- /costs -->"
    )
    if not names:
        raise wrong
    for name in dict.fromkeys(names):
        if name not in blocks:
            raise InputError(f"{path} has marker lines for {name}, but its file was not given")
        block = "\n".join([f"<!-- {name} -->", *blocks[name], f"<!-- /{name} -->"])
        between = rf"^<!-- {name} -->$.*?^<!-- /{name} -->$"
        text, count = re.subn(between, lambda _, block=block: block, text, flags=re.M | re.S)
        if count != 1 or names.count(name) != 2:
            raise wrong
    distributions.write_text(path, text)


def main() -> None:
    parser = distributions.Parser(description=__doc__)
    add = parser.add_argument
    add("file", metavar="FILE", help="Markdown file with marker lines")
    what = "folders that have a scores.jsonl and METHOD/log.jsonl"
    add("--results", nargs="+", action="extend", required=True, metavar="DIR", help=what)
    add("--board", metavar="FILE", help="the rows that board.py wrote")
    args = parser.parse_args()

    folders = [Path(folder) for folder in args.results]
    keys = ("model", "method", "axis", "split", "metric", "value", "n")
    scores = distributions.read_rows([folder / "scores.jsonl" for folder in folders], keys)
    blocks = {"headline": headline(scores), "costs": costs(folders), "words": words(scores)}
    if files_named("speed.jsonl", folders):
        blocks["speeds"] = speeds(folders)
    if files_named("retention.jsonl", folders):
        blocks["retention"] = benchmarks(folders)
    if args.board:
        blocks["board"] = board(distributions.read_rows([args.board], ("rank", "method")))
    rewrite(Path(args.file), blocks)


if __name__ == "__main__":
    distributions.run(main)
