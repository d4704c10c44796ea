"""Your draws beside published ones: how far eleven large models were from 15 distributions.

    python tests/extras/published.py prompts --out asked.jsonl
    python sample.py numbers --model tests/tiny --prompts asked.jsonl --out published/base.jsonl
    python tests/extras/published.py compare published/*.jsonl --out published      # published.md and published.png

published.jsonl, beside this file, has each model's W1 and draws, from the paper "Large Language Models Are Bad Dice
Players" (ACL 2026). `prompts` asks for the same in this kit's words. `compare` sorts these models and those of rows of
sample.py (bold), worst first, by the median of W1 / E|X - median|, on both sides with the target's canonical outputs;
above 1 is worse than always answering the median. "of N new" is the median over those that the kit does not train on.
CDF gap (median) and valid (mean) are not published. The picture has a dot for each distribution and a mark at the
median. It needs requirements-extras.txt.
What this file does not do: ask the published models anything, or in the words in which they were asked.
"""

import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
from figures import INKS, MOST, ORDER
from readme import short

sys.path.insert(0, str(Path(__file__).parents[2]))
import distributions as dist
import metrics

FACTS = Path(__file__).with_suffix(".jsonl")
CAUTION = """W1 punishes one wild draw, the CDF gap does not. How the other paper took its reference for W1 (a sample or
the exact distribution, its tails) is not known here beyond the published figures, so small differences say nothing."""
Sampler = namedtuple(
    "Sampler", "name ink w1 draws gap valid", defaults=(None, None)
)  # w1, draws: of each distribution


def prompt_rows() -> list[dict]:
    """A data row for each published distribution, in the order of the file."""
    rows = {}
    for fact in dist.read_rows([FACTS]):
        family, params, spec = fact["family"], fact["params"], dist.FAMILIES[fact["family"]]
        row = {
            "id": f"published-{family}-000",
            "split": "published",
            "family": family,
            "params": params,
        }
        rows[family] = row | {"prompt": spec.prompt(params)}
    return list(rows.values())


def published() -> list[Sampler]:
    samplers = {}
    for fact in dist.read_rows([FACTS]):
        texts, probs, _ = dist.canonical_outputs(fact)
        support = np.array(texts, float)
        spread = probs @ np.abs(support - support[np.searchsorted(np.cumsum(probs), 0.5)])
        one = samplers.setdefault(fact["model"], Sampler(fact["model"], "#777777", [], []))
        one.w1.append(fact["w1"] / spread)
        one.draws.append(fact["n"])
    return list(samplers.values())


def measured(name: str, ink: str, rows: list[dict]) -> Sampler:
    scores = [metrics.score(row) for row in rows]
    w1, gaps, rates = (
        [one[metric] for one in scores] for metric in ("normalized_w1", "cdf_gap", "valid_rate")
    )
    return Sampler(
        name,
        ink,
        w1,
        [len(metrics.answers_of(row)) for row in rows],
        np.median(gaps),
        np.mean(rates),
    )


def table(samplers: list[Sampler], new: list[bool]) -> list[str]:
    """new: which of the distributions the kit does not train on."""
    lines = [
        [
            "model",
            "norm. W1",
            f"of {sum(new)} new",
            f"above 1, of {len(new)}",
            "draws",
            "CDF gap",
            "valid",
        ]
    ]
    for one in samplers:
        draws = "–".join(map(str, sorted({min(one.draws), max(one.draws)})))
        scores = (np.median(one.w1), np.median(np.array(one.w1)[new]), one.gap, one.valid)
        shown = [
            short(x if x is None else {"n": 1, "value": None if x == np.inf else x}) for x in scores
        ]
        above = str(np.sum(np.round(one.w1, 2) > 1))  # rounded to what is published
        lines.append([one.name, *shown[:2], above, draws, *shown[2:]])
    return metrics.markdown(zip(*lines, strict=True))


def picture(plt, samplers: list[Sampler]):
    figure, panel = plt.subplots(figsize=(8, 1.2 + 0.28 * len(samplers)), layout="constrained")
    panel.axvline(1, color="black", linewidth=0.8, zorder=0)
    for place, one in enumerate(samplers):
        values = np.clip(one.w1, 0.01, MOST)  # a logarithmic axis has no 0
        panel.plot(
            values,
            [place] * len(values),
            "o",
            color=one.ink,
            markersize=4,
            alpha=0.5,
            markeredgewidth=0,
        )
        panel.plot(np.median(values), place, "|", color=one.ink, markersize=14, markeredgewidth=3)
    panel.set_yticks(range(len(samplers)), [one.name.strip("*") for one in samplers])
    panel.set(
        xscale="log",
        ylim=(len(samplers) - 0.4, -0.6),
        xlabel="normalized W1 (1: as bad as always the median)",
    )
    panel.set_xticks(
        [0.03, 0.1, 0.3, 1, 3, MOST], ["0.03", "0.1", "0.3", "1", "3", f"{MOST:g} or more"]
    )
    return figure


def compare(files: list[str], out: Path) -> None:
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise dist.InputError(
            "matplotlib is missing: pip install -r requirements-extras.txt"
        ) from None
    plt.switch_backend("agg")
    called = lambda row: f"{row['method']} on {row['id']} ({row['model']})"
    rows = [
        row | {"axis": "numbers"}
        for row in dist.read_rows(files, ("id", "model", "method", "draws"), called)
    ]
    asked, samplers = prompt_rows(), published()
    methods = list(
        dict.fromkeys([*ORDER, *(row["method"] for row in rows)])
    )  # the colours are those of figures.py
    for model, method in dict.fromkeys((row["model"], row["method"]) for row in rows):
        own = [row for row in rows if (row["model"], row["method"]) == (model, method)]
        wanted = {
            "model": model,
            "method": "the published prompts",
            "axis": "numbers",
            "bins": own[0].get("bins"),
        }
        metrics.check_same_prompts([row | wanted for row in asked] + own)
        samplers.append(
            measured(
                f"**{Path(model).name}, {method}**", INKS[methods.index(method) % len(INKS)][0], own
            )
        )
    samplers.sort(key=lambda one: -np.median(one.w1))
    count = lambda row: len(metrics.answers_of(row))
    most = {row["id"]: row for row in sorted(rows, key=count)}  # as many draws as the most
    samplers.append(
        measured("a perfect sampler", "black", [metrics.target_row(row) for row in most.values()])
    )

    grid, families = {row["prompt"] for row in dist.make_rows("train")}, dist.FAMILIES
    new = ", ".join(
        families[row["family"]].name for row in asked if not families[row["family"]].train
    )
    same = (
        ", ".join(families[row["family"]].name for row in asked if row["prompt"] in grid) or "none"
    )
    training = f"Of a family never trained on: {new}. In the training grid with exactly these parameters: {same}."
    shown = table(samplers, [row["prompt"] not in grid for row in asked])
    lines, figure = [*shown, "", training, "", CAUTION], picture(plt, samplers)
    dist.write_text(out / "published.md", "\n".join(lines) + "\n")
    figure.savefig(out / "published.png", dpi=130, facecolor="white")  # white: dark pages too
    plt.close(figure)
    print("\n".join(lines))


def main() -> None:
    parser = dist.Parser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="prompts|compare")
    sub = commands.add_parser("prompts", help="the published distributions, as rows for sample.py")
    sub.add_argument("--out", required=True, type=Path, help="JSONL file to write")
    sub = commands.add_parser("compare", help="your draws beside the published figures")
    sub.add_argument(
        "files", nargs="+", metavar="FILE", help="rows of sample.py numbers on these prompts"
    )
    sub.add_argument(
        "--out", required=True, type=Path, help="folder for published.md and published.png"
    )
    args = parser.parse_args()
    if args.command == "prompts":
        return dist.write_text(args.out, dist.to_jsonl(prompt_rows()))
    compare(args.files, args.out)


if __name__ == "__main__":
    dist.run(main)
