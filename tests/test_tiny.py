"""The embedded model: its size, its kind, its collapse, and the exact targets its documents were trained on."""

import importlib.util
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY

import distributions as d
import metrics
import sample
import trie

spec = importlib.util.spec_from_file_location("pretrain", Path(TINY) / "pretrain.py")
pretrain = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pretrain)


def test_size_and_kind(model, tokenizer):
    assert model.config.model_type == "qwen3" and sum(p.numel() for p in model.parameters()) <= 1_200_000
    assert (Path(TINY) / "model.safetensors").stat().st_size <= 2_500_000
    made = pretrain.make_tokenizer()
    assert made.get_vocab() == tokenizer.get_vocab() and made.chat_template == tokenizer.chat_template
    assert trie.decode(tokenizer, trie.encode_one(tokenizer, "Zürich 北京 🎲")) == "Zürich 北京 🎲"


@pytest.mark.parametrize("row", [r for r in d.make_rows("ood")[3:] if r["id"][-3:] == "001"], ids=lambda row: row["id"])
def test_the_base_is_valid_and_collapsed(model, tokenizer, row):
    """An answer in correct form, but nearly as bad as always answering the median. (Not Bernoulli: the one with
    p = .5 has two medians.)"""
    end = trie.end_token(tokenizer)
    prompt = trie.prefill(model, [trie.chat_ids(tokenizer, row["prompt"])])
    paths = sample.draw(model, prompt, end, 200, 32, np.random.default_rng(0), 256)
    draws = Counter()
    for path, count in paths.items():
        draws[trie.decode(tokenizer, path[:-1])] += count
    scores = metrics.score(row | {"n": 200, "draws": draws})
    assert scores["valid_rate"] > 0.9 and scores["normalized_w1"] > 0.6


@pytest.mark.parametrize(
    "family, params, decimals",
    [
        ("gaussian", {"mu": 0.5, "sigma": 3}, 2),
        ("lognormal", {"mu": 2.5, "sigma": 0.8}, 2),
        ("skellam", {"mu1": 10.5, "mu2": 4}, 0),
        ("beta", {"alpha": 0.5, "beta": 2}, 5),
    ],
)
def test_character_targets_equal_a_brute_force(family, params, decimals):
    """The mass of every prefix from all printable numbers, one by one."""
    family_spec, args = d.scipy_args(family, params)
    k = np.arange(-120_000, 120_001)
    if family_spec.discrete:
        k, mass = k[119_000:121_000], family_spec.dist.pmf(k[119_000:121_000], *args)
    else:
        mass = np.diff(family_spec.dist.cdf((np.arange(k[0], k[-1] + 2) - 0.5) / 10**decimals, *args))
    prefixes = Counter()
    for value, p in zip(k.tolist(), mass.tolist(), strict=True):
        text = f"{value / 10**decimals:.{decimals}f}" + "\n"
        for i in range(len(text) + 1):
            prefixes[text[:i]] += p
    texts = pretrain.spread(family, params, np.array([0.02, 0.3, 0.5, 0.9]), decimals)
    for text, positions in zip(texts, pretrain.character_targets(family, params, texts, decimals), strict=True):
        for i, target in enumerate(positions):
            for char, p in target.items():
                assert p == pytest.approx(prefixes[text[:i] + char] / prefixes[text[:i]], abs=1e-6)


def test_parameters_between_grid_rows_are_possible():
    rows = d.make_rows("train") + d.make_rows("unseen") + d.make_rows("ood")
    rng = np.random.default_rng(0)
    for family in d.FAMILIES:
        grid = [
            [r["params"] for r in rows if r["family"] == family and (r["split"] != "train") == held] for held in (0, 1)
        ]
        for _ in range(20):
            d.scipy_args(family, pretrain.random_params(family, {family: grid}, rng))
