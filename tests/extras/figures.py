"""Draw pictures of one model's result rows and training logs.

    make figures                                     # writes runs/tiny/figures/*.png
    python tests/extras/figures.py runs/tiny/*/*.jsonl --out figures

overview.png  the idea in four panels: draws beside two target distributions, an open question
              before and after training, and the training loss
excess.png    the excess KL, split into form (probability on tokens that are in no answer) and
              shape (which answer); means over families, because means of the two parts add up
              to the whole, and the medians in the tables do not
families.png  the normalized W1 of each family, beside that of a perfect sampler with as many
              draws

The script reads rows of sample.py, all of one model, and the log.jsonl that lies beside them in
an adapter's folder. A picture or a panel without data is left out, and so are prompted methods
such as SSOT. All scores come from metrics.py. It needs requirements-extras.txt.
"""

import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
import distributions
import metrics
from distributions import FAMILIES, InputError


class Style(NamedTuple):
    """How a method is drawn. Dashes and markers keep methods apart in black and white, too."""

    color: str
    dashes: str
    marker: str


# The colors of Okabe and Ito, which color-blind readers can tell apart.
STYLES = (
    Style("#E69F00", "-", "o"),
    Style("#0072B2", "--", "^"),
    Style("#009E73", "-.", "s"),
    Style("#CC79A7", ":", "D"),
    Style("#D55E00", "--", "v"),
    Style("#56B4E9", "-.", "P"),
)
ORDER = ("base", "soft", "hard")  # all other methods follow these
PERFECT = {"color": "#BBBBBB", "linewidth": 5, "zorder": 0}  # the wide gray line of a perfect model
SPLITS = {"unseen": "new parameters", "ood": "held-out families"}
EXAMPLES = {"unseen": "unseen-gaussian-000", "ood": "ood-weibull-001"}  # prompts in overview.png
W1_LIMIT = 10.0  # a larger normalized W1 is drawn here, at the edge
W1_TICKS = (0.03, 0.1, 0.3, 1, 3)

# ------------------------------------------------------------- shared with published.py


def import_pyplot():
    """matplotlib.pyplot, set to draw into files. Raises InputError if it is not installed."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise InputError("matplotlib is missing: pip install -r requirements-extras.txt") from None
    plt.switch_backend("agg")
    return plt


def method_styles(methods: list[str]) -> dict[str, Style]:
    """A style for each method, in drawing order: base, soft, hard, then the others.

    These three have the same style whether or not the others are present. Where there are more
    methods than styles, the styles start again from the first.
    """
    order = list(dict.fromkeys([*ORDER, *methods]))
    styles = {method: STYLES[i % len(STYLES)] for i, method in enumerate(order)}
    return {method: style for method, style in styles.items() if method in methods}


def set_w1_axis(panel) -> None:
    """Make a panel's x axis a logarithmic one of normalized W1, up to W1_LIMIT."""
    panel.set_xscale("log")
    panel.set_xlabel("normalized W1 (1: no better than always answering the median)")
    labels = [f"{tick:g}" for tick in W1_TICKS]
    panel.set_xticks([*W1_TICKS, W1_LIMIT], [*labels, f"{W1_LIMIT:g} or more"])


# ------------------------------------------------------------------------ overview.png


def draw_cdf(panel, rows: list[dict], styles: dict[str, Style]) -> None:
    """Draw the target's distribution function and that of each method's draws.

    `rows` are all methods' rows of one prompt. A method's curve at x is the share of all of its
    draws that are valid and at most x, so the curve ends at the method's valid rate.
    """
    prompt = rows[0]
    texts, probs, _ = distributions.canonical_outputs(prompt)
    support, cumulative = np.array(texts, float), np.cumsum(probs)
    panel.step(support, cumulative, where="post", **PERFECT)

    low, high = distributions.distribution(prompt).support()
    discrete = distributions.is_discrete(prompt)
    for row in rows:
        parsed = [metrics.parse_number(draw, low, high, discrete) for draw in row["draws"]]
        values = sorted(value for value in parsed if value is not None)
        shares = np.arange(len(values) + 1) / len(parsed)  # 0 before the first value
        style = styles[row["method"]]
        panel.step(
            [-1e30, *values, 1e30],  # the curve runs on beyond both edges of the panel
            [*shares, shares[-1]],
            where="post",
            color=style.color,
            linestyle=style.dashes,
        )

    # The panel shows the middle 99% of the target, with a margin.
    left, right = support[np.searchsorted(cumulative, [0.005, 0.995])]
    margin = 0.05 * (right - left)
    panel.set_xlim(left - margin, right + margin)

    params = ", ".join(f"{name}={value:g}" for name, value in prompt["params"].items())
    new = "held-out family" if prompt["split"] == "ood" else "new parameters"
    panel.set_title(f"{FAMILIES[prompt['family']].name}, {params}: {new}")
    panel.set(xlabel="x", ylabel="share of draws up to x", ylim=(-0.02, 1.02))


def draw_first_tokens(panel, pairs: list[tuple], styles: dict[str, Style]) -> None:
    """Draw the most probable first tokens of one open question, before and after training.

    `pairs` has two rows of each question: the base model's and a trained one's. We show a typical
    question: the one where the base model's favorite loses the median amount of probability.
    """

    def share_lost(pair: tuple) -> float:
        before, after = pair
        favorite, share = before["top"][0]
        return share - dict(after["top"]).get(favorite, 0.0)

    pair = sorted(pairs, key=share_lost)[len(pairs) // 2]
    before, after = (dict(row["top"]) for row in pair)
    tokens = list(dict.fromkeys([*list(before)[:4], *list(after)[:8]]))[:9]
    for row, top, shift in zip(pair, (before, after), (-0.2, 0.2), strict=True):
        places = np.arange(len(tokens)) + shift
        heights = [top.get(token, 0.0) for token in tokens]
        panel.bar(places, heights, 0.4, color=styles[row["method"]].color)

    # repr makes line breaks and spaces visible; a bare $ would start a formula in matplotlib.
    labels = [repr(token)[1:-1].replace("$", r"\$") for token in tokens]
    longest = max(len(label) for label in labels)
    panel.set_xticks(range(len(tokens)), labels, rotation=30 if longest > 4 else 0)
    panel.set_title(f"“{textwrap.shorten(pair[0]['prompt'], 60, placeholder=' …')}”")
    panel.set(xlabel="first token of the answer", ylabel="its probability")


def draw_losses(panel, logs: dict[str, list[dict]], styles: dict[str, Style]) -> None:
    """Draw by how much each training run's loss exceeds that of a perfect sampler on its answers.

    The curves are moving averages over a twentieth of the steps.
    """
    for method, log in logs.items():
        excess = [entry["loss"] - entry["floor"] for entry in log]
        width = max(1, len(log) // 20)
        average = np.convolve(excess, np.full(width, 1 / width), "valid")
        steps = np.arange(width, len(log) + 1)
        panel.plot(steps, average, color=styles[method].color, linestyle=styles[method].dashes)
    panel.axhline(0, **PERFECT)
    panel.set_title("Training: loss above that of a perfect sampler")
    panel.set(xlabel="step", ylabel="nats per token")


def example_rows(numbers: list[dict], split: str) -> list[dict]:
    """All methods' rows of a split's example prompt, or of its first prompt if that is absent."""
    in_split = [row for row in numbers if row["split"] == split]
    ids = [row["id"] for row in in_split]
    if not ids:
        return []
    chosen = EXAMPLES[split] if EXAMPLES[split] in ids else ids[0]
    return [row for row in in_split if row["id"] == chosen]


def before_and_after(answers: list[dict], methods: list[str]) -> list[tuple]:
    """Pairs of rows of each open question: the base model's and the first trained method's."""
    by_method = {}
    for row in answers:
        by_method.setdefault(row["method"], {})[row["id"]] = row
    trained = [method for method in methods if method != "base" and method in by_method]
    if not trained or "base" not in by_method:
        return []
    before, after = by_method["base"], by_method[trained[0]]
    return [(before[name], after[name]) for name in before if name in after]


def overview(plt, numbers: list[dict], answers: list[dict], logs: dict, styles: dict):
    """Draw overview.png: two panels a row, without those that have no data. None if none has."""
    panels = [(draw_cdf, example_rows(numbers, split)) for split in EXAMPLES]
    panels.append((draw_first_tokens, before_and_after(answers, list(styles))))
    panels.append((draw_losses, logs))
    panels = [(draw, data) for draw, data in panels if data]
    if not panels:
        return None

    lines = (len(panels) + 1) // 2
    figure, axes = plt.subplots(lines, 2, figsize=(11, 3.7 * lines), squeeze=False)
    for panel, (draw, data) in zip(axes.flat, panels, strict=False):
        draw(panel, data, styles)
    for panel in axes.flat[len(panels) :]:
        panel.set_visible(False)

    handles = [plt.Line2D([], [], label="target (a perfect sampler)", **PERFECT)]
    for method, style in styles.items():
        look = {"color": style.color, "linestyle": style.dashes}
        handles.append(plt.Line2D([], [], label=method, **look))
    columns = min(5, len(handles))
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, fontsize=12)
    return figure


# ---------------------------------------------------------- excess.png and families.png


def by_family(numbers: list[dict], method: str, metric: str) -> dict[str, float]:
    """A metric's mean over each family's prompts. A family without the metric is left out."""
    values = {}
    for row in numbers:
        if row["method"] != method:
            continue
        scores = metrics.score(row)
        if metric in scores:
            values.setdefault(row["family"], []).append(scores[metric])
    return {family: float(np.mean(scores)) for family, scores in values.items()}


def mean_over_families(numbers: list[dict], method: str, metric: str) -> float:
    return float(np.mean(list(by_family(numbers, method, metric).values())))


def excess(plt, numbers: list[dict], styles: dict[str, Style]):
    """Draw excess.png: stacked bars of shape and form, a panel for each split."""
    splits = [split for split in SPLITS if any(row["split"] == split for row in numbers)]
    size = (1 + 4.5 * len(splits), 3.8)
    figure, axes = plt.subplots(1, len(splits), figsize=size, squeeze=False, sharey=True)
    hatched = {"facecolor": "white", "hatch": "///"}

    for panel, split in zip(axes.flat, splits, strict=True):
        in_split = [row for row in numbers if row["split"] == split]
        for method in dict.fromkeys(row["method"] for row in in_split):
            form = mean_over_families(in_split, method, "form_kl")
            shape = mean_over_families(in_split, method, "shape_kl")
            color = styles[method].color
            panel.bar(method, shape, 0.6, color=color, edgecolor=color)
            panel.bar(method, form, 0.6, bottom=shape, edgecolor=color, **hatched)
            panel.text(method, form + shape, f"{form + shape:.2f}", ha="center", va="bottom")
        panel.set_title(SPLITS[split])
        panel.margins(y=0.12)  # room for the numbers on top

    axes[0, 0].set_ylabel("excess KL, nats per token")
    boxes = {
        "form: on tokens that are in no answer": {"edgecolor": "black", **hatched},
        "shape: on which answer": {"facecolor": "#BBBBBB"},
    }
    handles = [plt.Rectangle((0, 0), 1, 1, **look) for look in boxes.values()]
    figure.legend(handles, list(boxes), loc="outside upper center", ncols=2)
    return figure


def families(plt, numbers: list[dict], styles: dict[str, Style]):
    """Draw families.png: a line for each family, on it a mark for each method and the target."""
    # If the methods made different numbers of draws, the target has as many as the largest.
    largest = {row["id"]: row for row in sorted(numbers, key=lambda row: len(row["draws"]))}
    numbers = numbers + [metrics.target_row(row) for row in largest.values()]
    present = {row["family"] for row in numbers}
    order = [family for family in reversed(FAMILIES) if family in present]  # the first on top

    figure, panel = plt.subplots(figsize=(8, 1.2 + 0.26 * len(order)))
    marks = {"target": Style("black", "", "|"), **styles}
    for i, (method, style) in enumerate(marks.items()):
        means = by_family(numbers, method, "normalized_w1")
        values = np.minimum(list(means.values()), W1_LIMIT)
        shift = 0.15 - 0.3 * i / len(styles)  # so that equal values do not hide one another
        places = [order.index(family) + shift for family in means]
        look = {"color": style.color, "markersize": 7}
        panel.plot(values, places, style.marker, label=method, **look)

    panel.axvline(1, **PERFECT)
    names = [FAMILIES[f].name + (" (held out)" if FAMILIES[f].ood else "") for f in order]
    panel.set_yticks(range(len(order)), names)
    panel.set_ylim(-0.6, len(order) - 0.4)
    set_w1_axis(panel)
    panel.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=min(5, 1 + len(styles)))
    return figure


# --------------------------------------------------------------------------- the script


def read_results(files: list[Path]) -> list[dict]:
    """The rows of one model and seed. Raises InputError for several, or for different prompts."""
    # The shell's *.jsonl also finds logs and scores. If it finds nothing else, say what they lack.
    files = [file for file in files if file.stem not in metrics.NOT_DRAWS] or files
    keys = ("id", "model", "method", "axis", "draws")
    rows = distributions.read_rows(files, keys, metrics.name_of_row)
    metrics.check_same_prompts(rows)
    runs = sorted({f"{row['model']}, seed {metrics.seed_of(row)}" for row in rows})
    if len(runs) > 1:
        names = "; ".join(runs)
        raise InputError(f"these rows are of several models or seeds ({names}); draw one at a time")
    return rows


def read_logs(files: list[Path]) -> dict[str, list[dict]]:
    """The training logs beside the files, by method; those without a floor are left out."""
    paths = {file.resolve().parent.name: file.with_name("log.jsonl") for file in files}
    logs = {
        method: distributions.read_rows([path]) for method, path in paths.items() if path.exists()
    }
    return {method: log for method, log in logs.items() if all("floor" in step for step in log)}


def main() -> None:
    parser = distributions.Parser(description=__doc__)
    add = parser.add_argument
    add("files", nargs="+", type=Path, metavar="FILE", help="rows of sample.py, of one model")
    add("--out", required=True, help="folder for the pictures")
    args = parser.parse_args()
    plt = import_pyplot()
    plt.rcParams["figure.constrained_layout.use"] = True
    plt.rcParams["legend.frameon"] = False
    plt.rcParams["lines.linewidth"] = 2
    plt.rcParams["axes.titlesize"] = 11
    plt.rcParams["axes.spines.top"] = False
    plt.rcParams["axes.spines.right"] = False

    rows = [row for row in read_results(args.files) if not row.get("protocol")]
    logs = read_logs(args.files)
    styles = method_styles([row["method"] for row in rows] + list(logs))
    order = list(styles)
    rows.sort(key=lambda row: order.index(row["method"]))
    answers = [row for row in rows if row["axis"] == "open"]
    numbers = [row for row in rows if row["axis"] == "numbers" and "outputs" not in row]
    exact = [row for row in numbers if "logit_kl_form" in row and row["split"] in SPLITS]

    pictures = {"overview": overview(plt, numbers, answers, logs, styles)}
    if exact:
        pictures["excess"] = excess(plt, exact, styles)
    if numbers:
        pictures["families"] = families(plt, numbers, styles)

    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    for name, figure in pictures.items():
        if figure:
            figure.savefig(out / f"{name}.png", dpi=130, facecolor="white")  # on dark pages, too
            plt.close(figure)


if __name__ == "__main__":
    distributions.run(main)
