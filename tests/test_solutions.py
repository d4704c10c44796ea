"""The solutions of two exercises: right by themselves, and run as forks of train_soft.py through METHODS."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ENV, ROOT

sys.path.insert(0, str(Path(__file__).parent / "solutions"))

import exact
import reverse

import train_soft
import trie
from distributions import canonical_outputs


@pytest.mark.parametrize(
    "family, params",
    [
        ("triangular", {"a": -1, "c": 0.2, "b": 1}),
        ("laplace", {"mu": 9.9, "b": 0.05}),
        ("binomial", {"n": 25, "p": 0.5}),
        ("skellam", {"mu1": 3, "mu2": 8}),
    ],
)
def test_exact_targets_are_those_of_a_trie_of_all_values(tokenizer, family, params):
    end = trie.end_token(tokenizer)
    texts, probs = canonical_outputs(family, params, max_bins=10**7)
    tree = trie.Trie(trie.encode(tokenizer, texts, end), probs)
    row = {"family": family, "params": params, "prompt": "p"}
    item = exact.prepare(tokenizer, end, row, 20, np.random.default_rng(0))
    leaves = {tuple(tree.path(leaf)): leaf for leaf in range(len(texts))}
    for path, targets in zip(item["paths"], item["targets"], strict=True):
        for (ours, q), (theirs, wanted) in zip(targets, tree.path_targets(leaves[tuple(path)]), strict=True):
            ours, theirs = dict(zip(ours.tolist(), q, strict=True)), dict(zip(theirs.tolist(), wanted, strict=True))
            assert all(ours.get(key, 0) == pytest.approx(theirs.get(key, 0), abs=1e-7) for key in ours | theirs)


def test_reverse_kl_by_hand():
    """One prefix with two children among five tokens, against a plain sum."""
    tokens, q = torch.tensor([[[3, 1]]]), torch.tensor([[[0.25, 0.75]]])
    target = np.full(5, 1e-4 / 5)
    target[[3, 1]] += (1 - 1e-4) * np.array([0.25, 0.75])
    for p in (np.array([0.1, 0.2, 0.3, 0.15, 0.25]), target):
        loss = reverse.soft_loss(torch.tensor(p).log()[None, None], tokens, q, torch.ones(1, 1, dtype=torch.bool))
        assert loss.item() == pytest.approx((p * np.log(p / target)).sum(), abs=1e-6)
    forward = train_soft.soft_loss(torch.tensor(p).log()[None, None], tokens, q, torch.ones(1, 1, dtype=torch.bool))
    assert forward.item() > 5e-5  # another function, with its zero elsewhere


def fork(solution, name: str) -> str:
    """train_soft.py with the function `name` replaced by all that a solution has."""
    source = (ROOT / "train_soft.py").read_text()
    body = inspect.getsource(solution)
    docstring = ast.get_docstring(ast.parse(body), clean=False)
    old = inspect.getsource(getattr(train_soft, name))
    assert source.count(old) == 1
    return source.replace(old, body.replace(f'"""{docstring}"""', ""))


def test_forks_run_through_make(kit):
    (kit / "train_reverse.py").write_text(fork(reverse, "soft_loss"))
    (kit / "train_exact.py").write_text(fork(exact, "prepare"))
    arguments = ["make", "reproduce", f"PYTHON={sys.executable}", "METHODS=reverse exact", "AXES=numbers", "N=50"]
    arguments.append("FLAGS=--lr 5e-3 --limit 48 --epochs 1 --batch 16")
    result = subprocess.run(arguments, cwd=kit, env=ENV, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "| reverse " in result.stdout and "| exact " in result.stdout
