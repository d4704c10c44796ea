"""Exercise 7, targets of one's own: 24 families *and* fifty weighted lists to train on, and ten lists held out.

    python tests/solutions/lists.py --out runs/lists-data
    make reproduce METHODS=soft AXES=numbers RUN=runs/lists DATA=runs/lists-data

The prompt names the items and the weight of each, so that what is right can be read from it, as it can for a Gaussian:

    Choose ONE of these at random: oak (46 %), maple (31 %), birch (23 %). Output ONLY the answer.

train.jsonl has the 1988 number prompts and the fifty lists, unseen.jsonl the 24 and the ten others (split "lists"),
ood.jsonl is as it was. Does a model that learned weights on fifty lists follow those of a list it has never seen, and
do the numbers suffer? Read `excess TV`, the total variation above that of a perfect sampler with as many draws.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from distributions import Parser, make_rows, prompt_rng, read_prompts, run, to_jsonl, write_text

LISTS = Path(__file__).parents[1] / "tiny" / "lists.txt"
TRAINED, HELD_OUT = 50, 10


def list_rows() -> list[dict]:
    """A row for each of the first sixty lists: two to six of its items, with weights of whole per cent."""
    rows = []
    for i, line in enumerate(LISTS.read_text("utf-8").splitlines()[: TRAINED + HELD_OUT]):
        name, items = line.split(": ")
        rng = prompt_rng(0, name)
        outputs = rng.permutation(items.split(", "))[: rng.integers(2, 7)].tolist()
        weights = 1 + rng.multinomial(
            100 - len(outputs), rng.dirichlet(np.ones(len(outputs)))
        )  # none is 0
        shown = ", ".join(
            f"{text} ({weight} %)" for text, weight in zip(outputs, weights, strict=True)
        )
        row = {
            "id": f"list-{i:03d}",
            "split": "train" if i % 6 else "lists",
        }  # every sixth is held out
        row |= {"prompt": f"Choose ONE of these at random: {shown}. Output ONLY the answer."}
        rows.append(row | {"outputs": outputs, "probs": (weights / 100).tolist()})
    return rows


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--out", required=True, type=Path, help="folder for train.jsonl, unseen.jsonl and ood.jsonl"
    )
    args = parser.parse_args()
    lists = list_rows()
    files = {
        "unseen": make_rows("unseen") + [row for row in lists if row["split"] == "lists"],
        "ood": make_rows("ood"),
        "train": make_rows("train") + [row for row in lists if row["split"] == "train"],
    }
    for name, rows in files.items():
        write_text(args.out / f"{name}.jsonl", to_jsonl(rows))
        print(f"{args.out / name}.jsonl: {len(read_prompts([args.out / f'{name}.jsonl']))} prompts")


if __name__ == "__main__":
    run(main)
