r"""Exercise 6, a single temperature: how far does one scalar get, without any training?

    python tests/solutions/temperature.py kl --model tests/tiny \
        --prompts runs/data/unseen.jsonl runs/data/ood.jsonl
    python tests/solutions/temperature.py draw 1.5 mcq --model tests/tiny --out runs/tiny
    python tests/solutions/temperature.py picture runs/tiny/*/mcq.jsonl --out frontier.png

`kl` prints the median excess KL of each split, with the model's logits divided by each temperature
of a grid.

`draw` runs sample.py on a model whose logits are divided by a temperature, here 1.5. The rows go to
DIR/T=1.5/mcq.jsonl, and their method is "T=1.5". All other options are those of sample.py, except
--adapter. (The method `base` is temperature 1.)

`picture` compares all methods by two scores that pull in opposite directions: a higher temperature
makes the answers more varied, but fewer of them are valid. There is a panel for open questions, one
for exams and one for choices from closed sets of words (the split "words" of exercise 7), each only
if there are rows for it. In the last two a perfect sampler stands at the top right, up to sampling
noise. This command needs requirements-extras.txt.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "extras")]
import figures

import distributions
import metrics
import sample
import trie
from distributions import InputError


def dividing_hook(temperature: float):
    """A forward hook of the model's last layer that divides the logits by a temperature."""

    def divide(module, inputs, logits):
        return logits / temperature

    return divide


# -------------------------------------------------------------------------------------- excess KL

GRID = (0.7, 1.0, 1.3, 1.6, 2.0, 2.5, 3.0, 4.0, 6.0)
OPTIONS = argparse.Namespace(bins=distributions.MAX_BINS, paths=128, rows=1024)  # sample.py's


def excess_kl(model, tokenizer, end: int, row: dict) -> float:
    """A prompt's logit KL above its floor, in nats per token."""
    ids = trie.chat_ids(tokenizer, row["prompt"])
    with torch.inference_mode():
        context = trie.prefill(model, [ids])
    exact = sample.exact_numbers(model, tokenizer, end, row, context, OPTIONS)
    return exact["logit_kl"] - exact["logit_kl_floor"]


def median_excess(model, tokenizer, end: int, rows: list[dict]) -> dict[str, float]:
    """For each split, the mean within each family, then the median across families."""
    excess = {}  # split -> family -> the excess KL of its prompts
    for row in rows:
        families = excess.setdefault(row["split"], {})
        of_family = families.setdefault(row.get("family", row["id"]), [])
        of_family.append(excess_kl(model, tokenizer, end, row))

    medians = {}
    for split, families in excess.items():
        means = [np.mean(values) for values in families.values()]
        medians[split] = np.median(means)
    return medians


def print_excess(args) -> None:
    rows = distributions.read_prompts(args.prompts)
    model, tokenizer, end = trie.load(args.model)
    last_layer = model.get_output_embeddings()
    for temperature in GRID:
        with last_layer.register_forward_hook(dividing_hook(temperature)):
            medians = median_excess(model, tokenizer, end, rows)
        shown = ", ".join(f"{split} {value:.3f}" for split, value in medians.items())
        print(f"temperature {temperature}: median excess KL {shown}")


# ------------------------------------------------------------------------------------------ draws


def draw(args, more: list[str]) -> None:
    """Run sample.py, with its options `more`, on a model with another temperature."""
    method = f"T={args.temperature:g}"
    out = Path(args.out) / method / f"{args.axis}.jsonl"
    distributions.must_be_new(out)
    load = trie.load

    def load_hot(*names):
        model, tokenizer, end = load(*names)
        model.get_output_embeddings().register_forward_hook(dividing_hook(args.temperature))
        return model, tokenizer, end

    # sample.py loads its model with trie.load, and reads its options from sys.argv. It calls the
    # method base, so its rows go to a file of their own, until they have their true name.
    unnamed = out.with_name(f"{args.axis}-unnamed.jsonl")
    command = ["sample.py", args.axis, *more, "--out", str(unnamed)]
    if not unnamed.exists():
        with mock.patch.object(trie, "load", load_hot), mock.patch.object(sys, "argv", command):
            sample.main()
    rows = distributions.read_rows([unnamed])
    distributions.write_text(out, distributions.to_jsonl(row | {"method": method} for row in rows))
    unnamed.unlink()


# ------------------------------------------------------------------------------------ the picture


class Panel(NamedTuple):
    """The score on a panel's y axis; on its x axis is the share of valid answers."""

    axis: str
    split: str | None
    title: str
    metric: str
    label: str


EVENNESS = "evenness of the valid answers, 1 − TV"
PANELS = (
    Panel("open", None, "open questions", "unique_rate", "share of distinct answers"),
    Panel("numbers", "words", "choices from closed sets of words", "tv", EVENNESS),
    Panel("mcq", None, "places of the correct option in exams", "tv", EVENNESS),
)


def points(scores: list[dict], panel: Panel) -> dict[str, tuple[float, float]]:
    """method -> its place (x, y) in the panel, for the methods that have both scores."""
    found = {}
    for score in scores:
        if (score["axis"], score["split"]) == (panel.axis, panel.split) and score["n"]:
            found.setdefault(score["method"], {})[score["metric"]] = score["value"]

    places = {}
    for method, values in found.items():
        if panel.metric in values:
            value = values[panel.metric]
            height = 1 - value if panel.metric == "tv" else value
            places[method] = (values["valid_rate"], height)
    return places


def draw_panel(axes, panel: Panel, places: dict[str, tuple[float, float]]) -> None:
    """Draw a mark for each method. A line joins the temperatures, beginning with `base`."""
    hot = [method for method in places if method.startswith("T=")]
    hot.sort(key=lambda method: float(method.removeprefix("T=")))
    line = [method for method in ("base", *hot) if method in places]
    axes.plot(*np.transpose([places[method] for method in line]), color="#BBBBBB")

    for method, place in places.items():
        is_target = method.startswith("target")
        style = figures.STYLES[0 if method in line else 1]
        axes.plot(*place, "*" if is_target else "o", color=style.color, markersize=9)
        label = "a perfect sampler" if is_target else method
        on_the_left = method in line or is_target
        side, offset = ("right", (-9, -4)) if on_the_left else ("left", (9, -4))
        axes.annotate(label, place, xytext=offset, textcoords="offset points", ha=side)
    axes.set(title=panel.title, xlabel="share of valid answers", ylabel=panel.label)
    axes.margins(0.2)
    axes.set_xlim(min(0.8, axes.get_xlim()[0]), 1.06)
    axes.grid(alpha=0.3)


def save_picture(args) -> None:
    rows = distributions.read_rows(args.files, ("id", "model", "seed", "method", "axis", "draws"))
    if len({(row["model"], row["seed"]) for row in rows}) > 1:
        raise InputError("the rows are of several models or seeds; give those of one")
    metrics.check_same_prompts(rows)
    metrics.check_same_weights(rows)
    scores = metrics.aggregate(rows)
    shown = [(panel, points(scores, panel)) for panel in PANELS]
    shown = [(panel, places) for panel, places in shown if "base" in places]
    if not shown:
        raise InputError(
            "base has no scores for open questions, exams or the split words (exams need 30 valid)"
        )

    plt = figures.import_pyplot()
    size = (1 + 4.5 * len(shown), 4.2)
    figure, grid = plt.subplots(1, len(shown), figsize=size, squeeze=False, layout="constrained")
    for axes, (panel, places) in zip(grid[0], shown, strict=True):
        draw_panel(axes, panel, places)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=130, facecolor="white")


def main() -> None:
    parser = distributions.Parser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    kl = commands.add_parser("kl", help="the excess KL at each temperature of a grid")
    kl.add_argument("--model", required=True, help="hub id or folder of a chat model")
    kl.add_argument("--prompts", required=True, nargs="+", metavar="FILE")

    drawing = commands.add_parser("draw", help="draw at a temperature; all options of sample.py")
    drawing.add_argument("temperature", type=float)
    drawing.add_argument("axis", choices=list(sample.AXES))
    drawing.add_argument("--out", required=True, metavar="DIR", help="the model's results")

    picture = commands.add_parser("picture", help="a picture of all methods")
    picture.add_argument("files", nargs="+", metavar="FILE", help="rows of one model")
    picture.add_argument("--out", required=True, type=Path, help="PNG file to write")

    args, more = parser.parse_known_args()
    if args.command == "draw" and any(word.startswith("--adapter") for word in more):
        parser.error("temperatures are for the untrained model; draw without --adapter")
    elif args.command == "draw":
        draw(args, more)
    elif more:
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    elif args.command == "kl":
        print_excess(args)
    else:
        save_picture(args)


if __name__ == "__main__":
    distributions.run(main)
