"""Pictures of a model's rows and training logs.

    make figures                                                              # runs/tiny/figures/*.png
    python tests/extras/figures.py runs/tiny/*/*.jsonl --out figures

overview.png  the idea in four panels: draws beside two targets, an open question before and after, the training loss
excess.png    the excess KL, split into form (mass on what is no number) and shape (which number): means over families,
              which add up where the tables' medians do not
families.png  normalized W1 of each family, beside that of a perfect sampler with as many draws

Reads rows of sample.py, all of one model, and the log.jsonl beside them in an adapter's folder. A picture without data
is left out, and so is a panel. It needs requirements-extras.txt.
What this file does not do: compute a score (metrics.py does), or draw protocols such as SSOT.
"""

import sys
import textwrap
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
import metrics
from distributions import (
    FAMILIES,
    InputError,
    Parser,
    canonical_outputs,
    distribution,
    is_discrete,
    read_rows,
    run,
)

# Okabe and Ito's colours, which colour-blind readers can tell apart; dashes and marks do the same in black and white.
INKS = (("#E69F00", "-", "o"), ("#0072B2", "--", "^"), ("#009E73", "-.", "s"), ("#CC79A7", ":", "D"),
        ("#D55E00", "--", "v"), ("#56B4E9", "-.", "P"))  # fmt: skip
ORDER = ("base", "soft", "hard")  # then any other
GREY = {"color": "#BBBBBB", "linewidth": 5, "zorder": 0}  # what is perfect
SPLITS = {"unseen": "parameters never trained on", "ood": "families never trained on"}
MOST = 10.0  # a larger normalized W1 is drawn here


def draw_cdf(panel, rows: list[dict], inks: dict) -> None:
    """The target's distribution function and, for each method, the share of all draws that are valid and at most x."""
    texts, probs, _ = canonical_outputs(rows[0])
    support, cumulative = np.array(texts, float), np.cumsum(probs)
    panel.step(support, cumulative, where="post", **GREY)

    (low, high), discrete = distribution(rows[0]).support(), is_discrete(rows[0])
    for row in rows:
        parsed = [metrics.parse_number(draw, low, high, discrete) for draw in row["draws"]]
        values = sorted(value for value in parsed if value is not None)
        shares = np.arange(len(values) + 1) / len(parsed)
        color, dashes, _ = inks[row["method"]]
        panel.step(
            [-1e30, *values, 1e30],
            [*shares, shares[-1]],
            where="post",
            color=color,
            linestyle=dashes,
        )

    left, right = support[np.searchsorted(cumulative, [0.005, 0.995]).clip(max=len(support) - 1)]
    panel.set_xlim(left - 0.05 * (right - left), right + 0.05 * (right - left))
    params = ", ".join(f"{name}={value:g}" for name, value in rows[0]["params"].items())
    new = "a family" if rows[0]["split"] == "ood" else "parameters"
    panel.set_title(f"{FAMILIES[rows[0]['family']].name}, {params}: {new} never trained on")
    panel.set(xlabel="x", ylabel="share of draws up to x", ylim=(-0.02, 1.02))


def draw_first_tokens(panel, pairs: list[tuple], inks: dict) -> None:
    """An open question's most probable first tokens, before and after: where the base's first one lost a median share."""
    lost = lambda pair: pair[0]["top"][0][1] - dict(pair[1]["top"]).get(pair[0]["top"][0][0], 0.0)
    pair = sorted(pairs, key=lost)[len(pairs) // 2]
    before, after = (dict(row["top"]) for row in pair)
    tokens = list(dict.fromkeys([*list(before)[:4], *list(after)[:8]]))[:9]
    for row, top, shift in zip(pair, (before, after), (-0.2, 0.2), strict=True):
        heights = [top.get(token, 0.0) for token in tokens]
        panel.bar(np.arange(len(tokens)) + shift, heights, 0.4, color=inks[row["method"]][0])

    labels = [repr(token)[1:-1].replace("$", r"\$") for token in tokens]
    panel.set_xticks(range(len(tokens)), labels, rotation=30 if max(map(len, labels)) > 4 else 0)
    panel.set_title(f"“{textwrap.shorten(pair[0]['prompt'], 60, placeholder=' …')}”")
    panel.set(xlabel="first token of the answer", ylabel="its probability")


def draw_losses(panel, logs: dict[str, list[dict]], inks: dict) -> None:
    """What the training loss has above a perfect sampler's on the same answers: a mean over 1/20 of the steps."""
    for method, log in logs.items():
        above, width = [entry["loss"] - entry["floor"] for entry in log], max(1, len(log) // 20)
        mean = np.convolve(above, np.full(width, 1 / width), "valid")
        panel.plot(
            np.arange(width, len(log) + 1), mean, color=inks[method][0], linestyle=inks[method][1]
        )
    panel.axhline(0, **GREY)
    panel.set_title("Training: loss above that of a perfect sampler")
    panel.set(xlabel="step", ylabel="nats per token")


def overview(plt, numbers: list[dict], answers: list[dict], logs: dict, inks: dict):
    panels = []
    for split, wanted in (("unseen", "unseen-gaussian-000"), ("ood", "ood-weibull-001")):
        own = sorted(
            (row for row in numbers if row["split"] == split), key=lambda row: row["id"] != wanted
        )
        panels.append((draw_cdf, [row for row in own if row["id"] == own[0]["id"]]))
    of = {method: {row["id"]: row for row in answers if row["method"] == method} for method in inks}
    trained = next((method for method in inks if method != "base" and of[method]), None)
    pairs = [
        (row, of[trained][key])
        for key, row in of.get("base", {}).items()
        if key in of.get(trained, ())
    ]
    panels += [(draw_first_tokens, pairs), (draw_losses, logs)]
    panels = [(picture, data) for picture, data in panels if data]
    if not panels:
        return None

    lines = -(-len(panels) // 2)
    figure, axes = plt.subplots(lines, 2, figsize=(11, 3.7 * lines), squeeze=False)
    for panel, (picture, data) in zip(axes.flat, panels, strict=False):
        picture(panel, data, inks)
    for panel in axes.flat[len(panels) :]:
        panel.set_visible(False)
    handles = [plt.Line2D([], [], label="target (a perfect sampler)", **GREY)]
    handles += [
        plt.Line2D([], [], color=ink[0], linestyle=ink[1], label=method)
        for method, ink in inks.items()
    ]
    figure.legend(
        handles=handles, loc="outside upper center", ncols=min(5, len(handles)), fontsize=12
    )
    return figure


def by_family(numbers: list[dict], method: str, metric: str) -> dict[str, float]:
    """A metric's mean over each family's prompts; families without it are left out."""
    values = {}
    for row in numbers:
        if row["method"] == method and metric in (scores := metrics.score(row)):
            values.setdefault(row["family"], []).append(scores[metric])
    return {family: float(np.mean(own)) for family, own in values.items()}


def excess(plt, numbers: list[dict], inks: dict):
    splits = [split for split in SPLITS if any(row["split"] == split for row in numbers)]
    figure, axes = plt.subplots(
        1, len(splits), figsize=(1 + 4.5 * len(splits), 3.8), squeeze=False, sharey=True
    )
    for panel, split in zip(axes.flat, splits, strict=True):
        own = [row for row in numbers if row["split"] == split]
        for method in dict.fromkeys(row["method"] for row in own):
            form, shape = (
                np.mean(list(by_family(own, method, part).values()))
                for part in ("form_kl", "shape_kl")
            )
            color = inks[method][0]
            panel.bar(method, shape, 0.6, color=color, edgecolor=color)
            panel.bar(method, form, 0.6, bottom=shape, color="white", edgecolor=color, hatch="///")
            panel.text(method, form + shape, f"{form + shape:.2f}", ha="center", va="bottom")
        panel.set_title(SPLITS[split])
        panel.margins(y=0.12)
    axes[0, 0].set_ylabel("excess KL, nats per token")
    form = plt.Rectangle((0, 0), 1, 1, facecolor="white", edgecolor="black", hatch="///")
    shape = plt.Rectangle((0, 0), 1, 1, facecolor="#BBBBBB")
    labels = ["form: on what is no number", "shape: on which number"]
    figure.legend([form, shape], labels, loc="outside upper center", ncols=2)
    return figure


def families(plt, numbers: list[dict], inks: dict):
    most = {
        row["id"]: row for row in sorted(numbers, key=lambda row: len(row["draws"]))
    }  # as many draws as the most
    numbers = numbers + [metrics.target_row(row) for row in most.values()]
    order = [family for family in FAMILIES if any(row["family"] == family for row in numbers)][::-1]
    figure, panel = plt.subplots(figsize=(8, 1.2 + 0.26 * len(order)))
    for i, (method, (color, _, mark)) in enumerate({"target": ("black", "", "|"), **inks}.items()):
        means = by_family(numbers, method, "normalized_w1")
        places = [order.index(family) + 0.15 - 0.3 * i / len(inks) for family in means]
        panel.plot(
            np.minimum(list(means.values()), MOST),
            places,
            mark,
            color=color,
            label=method,
            markersize=7,
        )
    panel.axvline(1, **GREY)
    panel.set_yticks(
        range(len(order)),
        [FAMILIES[f].name + (" (unseen)" if FAMILIES[f].ood else "") for f in order],
    )
    panel.set(
        xscale="log",
        ylim=(-0.6, len(order) - 0.4),
        xlabel="normalized W1 (1: as bad as always the median)",
    )
    panel.set_xticks(
        [0.03, 0.1, 0.3, 1, 3, MOST], ["0.03", "0.1", "0.3", "1", "3", f"{MOST:g} or more"]
    )
    panel.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=min(5, 1 + len(inks)))
    return figure


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="rows of sample.py, of one model"
    )
    parser.add_argument("--out", required=True, help="folder for the pictures")
    args = parser.parse_args()
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise InputError("matplotlib is missing: pip install -r requirements-extras.txt") from None
    plt.switch_backend("agg")
    plt.rcParams.update({"figure.constrained_layout.use": True, "legend.frameon": False, "lines.linewidth": 2,
                         "axes.titlesize": 11, "axes.spines.top": False, "axes.spines.right": False})  # fmt: skip

    files = [file for file in args.files if file.stem not in metrics.OTHERS] or args.files
    rows = read_rows(files, ("id", "model", "method", "axis", "draws"), metrics.row_name)
    metrics.check_same_prompts(rows)
    if len(models := sorted({row["model"] for row in rows})) > 1:
        raise InputError(
            f"these rows are of several models ({', '.join(models)}); draw one at a time"
        )
    logs = {file.resolve().parent.name: file.with_name("log.jsonl") for file in files}
    logs = {method: read_rows([log]) for method, log in logs.items() if log.exists()}
    logs = {method: log for method, log in logs.items() if all("floor" in entry for entry in log)}

    rows = [row for row in rows if not row.get("protocol")]
    present = [row["method"] for row in rows] + list(logs)
    order = list(dict.fromkeys([*ORDER, *present]))
    inks = {method: INKS[i % len(INKS)] for i, method in enumerate(order) if method in present}
    rows.sort(key=lambda row: order.index(row["method"]))
    answers = [row for row in rows if row["axis"] == "open"]
    numbers = [row for row in rows if row["axis"] == "numbers" and "outputs" not in row]
    exact = [row for row in numbers if "logit_kl_form" in row and row["split"] in SPLITS]

    pictures = {"overview": overview(plt, numbers, answers, logs, inks)}
    pictures |= {"excess": excess(plt, exact, inks)} if exact else {}
    pictures |= {"families": families(plt, numbers, inks)} if numbers else {}
    Path(args.out).mkdir(parents=True, exist_ok=True)
    for name, figure in pictures.items():
        if figure:
            figure.savefig(
                Path(args.out) / f"{name}.png", dpi=130, facecolor="white"
            )  # white: dark pages too
            plt.close(figure)


if __name__ == "__main__":
    run(main)
