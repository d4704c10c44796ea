"""Exercise 6, one learned temperature: how far does a single scalar get? No training: the best of a grid.

python tests/solutions/temperature.py --model tests/tiny --prompts runs/data/unseen.jsonl runs/data/ood.jsonl
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

import sample
import trie
from distributions import MAX_BINS, read_prompts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", required=True, nargs="+", metavar="FILE")
    args = parser.parse_args()
    (model, tokenizer, end), temperature = trie.load(args.model), [1.0]
    model.get_output_embeddings().register_forward_hook(
        lambda module, inputs, logits: logits / temperature[0]
    )
    prompts, options = (
        read_prompts(args.prompts),
        argparse.Namespace(bins=MAX_BINS, paths=128, rows=1024),
    )
    for temperature[0] in (0.7, 1.0, 1.3, 1.6, 2.0, 2.5, 3.0, 4.0, 6.0):
        excess = {}
        for row in prompts:
            with torch.inference_mode():
                prompt = trie.prefill(model, [trie.chat_ids(tokenizer, row["prompt"])])
            exact = sample.exact_numbers(model, tokenizer, end, row, prompt, options)
            above = exact["logit_kl"] - exact["logit_kl_floor"]
            excess.setdefault(row["split"], {}).setdefault(row["family"], []).append(above)
        medians = {
            split: np.median([np.mean(v) for v in families.values()])
            for split, families in excess.items()
        }
        shown = ", ".join(f"{split} {value:.3f}" for split, value in medians.items())
        print(f"temperature {temperature[0]}: median excess KL {shown}")


if __name__ == "__main__":
    main()
