r"""Compare your models with published ones: eleven large models on fifteen distributions.

    make compare                       # writes runs/tiny/published.md and published.png
    python tests/extras/published.py prompts --out asked.jsonl
    python sample.py numbers --model tests/tiny --prompts asked.jsonl --out drawn/base.jsonl
    python tests/extras/published.py compare drawn/*.jsonl --out drawn

The published figures are those of "Large Language Models Are Bad Dice Players" (ACL 2026): each
model's W1 on each distribution, and the number of its draws. They lie in published.jsonl, beside
this file. `prompts` asks for the same distributions in this kit's words; the published models
were asked in other words.

`compare` sorts the published models and yours (in bold), worst first, by their median normalized
W1. This is W1 / E|X - median|; above 1, a model is worse than always answering the median. Both
sides use the target's canonical outputs. "of N new" is the median over the distributions that are
not in the training grid. CDF gap (median) and valid (mean) were not published. The picture has a
dot for each distribution and a bar at the median. It needs requirements-extras.txt.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import figures
import numpy as np
from readme import table, two_decimals

sys.path.insert(0, str(Path(__file__).parents[2]))
import distributions
import metrics
from distributions import FAMILIES, InputError

FACTS = Path(__file__).with_suffix(".jsonl")
CAUTION = """\
A single wild draw can make W1 huge; the CDF gap is at most 1. We do not know exactly how the
published W1 was computed (against a sample or the exact distribution, with which tails), so small
differences mean nothing."""


class Sampler(NamedTuple):
    """A line of the table: a published model, a method of yours, or a perfect sampler."""

    name: str
    color: str
    w1: list[float]  # normalized, one for each distribution
    draws: list[int]  # how many were drawn from each distribution
    gap: float | None = None  # the median CDF gap; None if it was not published
    valid: float | None = None  # the mean valid rate; None if it was not published


def prompt_rows() -> list[dict]:
    """A number prompt for each published distribution, in the order of the file."""
    rows = {}
    for fact in distributions.read_rows([FACTS]):
        family, params = fact["family"], fact["params"]
        rows[family] = {
            "id": f"published-{family}-000",
            "split": "published",
            "family": family,
            "params": params,
            "prompt": FAMILIES[family].prompt(params),
        }
    return list(rows.values())


def published_samplers() -> list[Sampler]:
    """The published models, their W1 divided by the target's E|X - median|."""
    samplers = {}
    for fact in distributions.read_rows([FACTS]):
        texts, probs, _ = distributions.canonical_outputs(fact)
        model = fact["model"]
        sampler = samplers.setdefault(model, Sampler(model, "#777777", w1=[], draws=[]))
        sampler.w1.append(fact["w1"] / metrics.spread(np.array(texts, float), probs))
        sampler.draws.append(fact["n"])
    return list(samplers.values())


def measured_sampler(name: str, color: str, rows: list[dict]) -> Sampler:
    """The scores of one method's rows, one row for each distribution."""
    scores = [metrics.score(row) for row in rows]
    return Sampler(
        name,
        color,
        w1=[score["normalized_w1"] for score in scores],
        draws=[len(row["draws"]) for row in rows],
        gap=np.median([score["cdf_gap"] for score in scores]),
        valid=np.mean([score["valid_rate"] for score in scores]),
    )


def your_samplers(rows: list[dict], asked: list[dict]) -> list[Sampler]:
    """A sampler for each model and method, in the colors of figures.py.

    Raises InputError if one of them was not asked exactly the prompts `asked`.
    """
    styles = figures.method_styles([row["method"] for row in rows])
    questions = {row["id"]: (row["prompt"], row["params"]) for row in asked}
    samplers = []
    for model, method in dict.fromkeys((row["model"], row["method"]) for row in rows):
        drawn = [row for row in rows if (row["model"], row["method"]) == (model, method)]
        if {row["id"]: (row.get("prompt"), row.get("params")) for row in drawn} != questions:
            raise InputError(
                f"{model}, {method}: these are not answers to the published prompts; draw them "
                "again, from the file that `published.py prompts` writes"
            )
        name = f"**{Path(model).name}, {method}**"
        samplers.append(measured_sampler(name, styles[method].color, drawn))
    return samplers


def perfect_sampler(rows: list[dict], asked: list[dict]) -> Sampler:
    """True draws from each distribution, as many as the method with the most of them has."""
    largest = {row["id"]: row for row in sorted(rows, key=lambda row: len(row["draws"]))}
    targets = [metrics.target_row(largest[row["id"]]) for row in asked]
    return measured_sampler("a perfect sampler", "black", targets)


def table_of(samplers: list[Sampler], new: list[bool]) -> list[str]:
    """The lines of the Markdown table. `new` says which distributions were not trained on."""
    counts = (f"of {sum(new)} new", f"above 1, of {len(new)}")
    lines = [["model", "norm. W1", *counts, "draws", "CDF gap", "valid"]]
    for sampler in samplers:
        w1 = np.array(sampler.w1)
        # Published figures are rounded, so one that rounds to 1.00 does not count as above 1.
        above = np.sum(np.round(w1, 2) > 1)
        least, most = min(sampler.draws), max(sampler.draws)
        line = [sampler.name, two_decimals(np.median(w1)), two_decimals(np.median(w1[new]))]
        line += [str(above), str(most) if least == most else f"{least}–{most}"]
        for score in (sampler.gap, sampler.valid):
            line.append("–" if score is None else two_decimals(score))
        lines.append(line)
    return table(lines)


def training_note(asked: list[dict], in_grid: list[bool]) -> str:
    """A sentence on what the kit's training has in common with the published distributions."""
    families = [FAMILIES[row["family"]] for row in asked]
    held_out = [family.name for family in families if not family.train]
    same = [family.name for family, found in zip(families, in_grid, strict=True) if found]
    return (
        f"Held-out families: {', '.join(held_out)}. "
        f"In the training grid with exactly these parameters: {', '.join(same) or 'none'}."
    )


def picture(plt, samplers: list[Sampler]):
    """Draw published.png: a line for each sampler, a dot for each distribution."""
    size = (8, 1.2 + 0.28 * len(samplers))
    figure, panel = plt.subplots(figsize=size, layout="constrained")
    panel.axvline(1, color="black", linewidth=0.8, zorder=0)
    for place, sampler in enumerate(samplers):
        w1 = np.clip(sampler.w1, 0.01, figures.W1_LIMIT)  # a logarithmic axis has no 0
        dots = {"markersize": 4, "alpha": 0.5, "markeredgewidth": 0}
        bar = {"markersize": 14, "markeredgewidth": 3}
        panel.plot(w1, [place] * len(w1), "o", color=sampler.color, **dots)
        panel.plot(np.median(w1), place, "|", color=sampler.color, **bar)
    panel.set_yticks(range(len(samplers)), [sampler.name.strip("*") for sampler in samplers])
    panel.set_ylim(len(samplers) - 0.4, -0.6)  # the first on top
    figures.set_w1_axis(panel)
    return figure


def compare(files: list[str], out: Path) -> None:
    """Write published.md and published.png, and print the former. Raises InputError."""
    plt = figures.import_pyplot()

    asked = prompt_rows()
    place = {row["id"]: i for i, row in enumerate(asked)}
    keys = ("id", "model", "method", "axis", "draws")
    rows = distributions.read_rows(files, keys, metrics.name_of_row)
    rows.sort(key=lambda row: place.get(row["id"], -1))  # all samplers in the same order

    samplers = published_samplers() + your_samplers(rows, asked)
    samplers.sort(key=lambda sampler: np.median(sampler.w1), reverse=True)
    samplers.append(perfect_sampler(rows, asked))

    grid = {row["prompt"] for row in distributions.make_rows("train")}
    in_grid = [row["prompt"] in grid for row in asked]
    new = [not found for found in in_grid]
    lines = [*table_of(samplers, new), "", training_note(asked, in_grid), "", CAUTION]
    figure = picture(plt, samplers)
    distributions.write_text(out / "published.md", "\n".join(lines) + "\n")
    figure.savefig(out / "published.png", dpi=130, facecolor="white")  # on dark pages, too
    plt.close(figure)
    print("\n".join(lines))


def main() -> None:
    parser = distributions.Parser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="prompts|compare")

    prompts = commands.add_parser("prompts", help="write the published distributions as prompts")
    prompts.add_argument("--out", required=True, type=Path, help="JSONL file for sample.py")

    comparing = commands.add_parser("compare", help="compare your draws with published figures")
    what = "rows of `sample.py numbers` on these prompts"
    comparing.add_argument("files", nargs="+", metavar="FILE", help=what)
    what = "folder for published.md and published.png"
    comparing.add_argument("--out", required=True, type=Path, help=what)

    args = parser.parse_args()
    if args.command == "prompts":
        distributions.write_text(args.out, distributions.to_jsonl(prompt_rows()))
    else:
        compare(args.files, args.out)


if __name__ == "__main__":
    distributions.run(main)
