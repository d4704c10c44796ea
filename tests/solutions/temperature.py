r"""Exercise 6, a single temperature: how far does one scalar get?

    python tests/solutions/temperature.py --model tests/tiny \
        --prompts runs/data/unseen.jsonl runs/data/ood.jsonl

Nothing is trained. For each temperature of a grid, this prints the median excess KL of each split,
with the model's logits divided by that temperature.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
import distributions
import sample
import trie

TEMPERATURES = (0.7, 1.0, 1.3, 1.6, 2.0, 2.5, 3.0, 4.0, 6.0)
OPTIONS = argparse.Namespace(bins=distributions.MAX_BINS, paths=128, rows=1024)  # sample.py's


def dividing_hook(temperature: float):
    """A forward hook of the model's last layer that divides the logits by a temperature."""

    def divide(module, inputs, logits):
        return logits / temperature

    return divide


def excess_kl(model, tokenizer, end: int, row: dict) -> float:
    """A prompt's logit KL above its floor, in nats per token."""
    ids = trie.chat_ids(tokenizer, row["prompt"])
    with torch.inference_mode():
        prompt = trie.prefill(model, [ids])
    exact = sample.exact_numbers(model, tokenizer, end, row, prompt, OPTIONS)
    return exact["logit_kl"] - exact["logit_kl_floor"]


def median_excess(model, tokenizer, end: int, rows: list[dict]) -> dict[str, float]:
    """For each split, the mean within each family, then the median across families."""
    excess = {}  # split -> family -> the excess KL of its prompts
    for row in rows:
        families = excess.setdefault(row["split"], {})
        of_family = families.setdefault(row["family"], [])
        of_family.append(excess_kl(model, tokenizer, end, row))

    medians = {}
    for split, families in excess.items():
        means = [np.mean(values) for values in families.values()]
        medians[split] = np.median(means)
    return medians


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="hub id or folder of a chat model")
    parser.add_argument("--prompts", required=True, nargs="+", metavar="FILE")
    args = parser.parse_args()

    rows = distributions.read_prompts(args.prompts)
    model, tokenizer, end = trie.load(args.model)
    last_layer = model.get_output_embeddings()
    for temperature in TEMPERATURES:
        hook = last_layer.register_forward_hook(dividing_hook(temperature))
        medians = median_excess(model, tokenizer, end, rows)
        hook.remove()
        shown = ", ".join(f"{split} {value:.3f}" for split, value in medians.items())
        print(f"temperature {temperature}: median excess KL {shown}")


if __name__ == "__main__":
    main()
