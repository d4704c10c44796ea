"""The solutions of the exercises: right by themselves, and trained as forks of train_soft.py and train_hard.py."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ENV, TINY, call

sys.path.insert(0, str(Path(__file__).parent / "solutions"))

import exact
import lists
import make_forks
import onpolicy
import reverse
import temperature

import metrics
import sample
import train_hard
import train_soft
import trie
from distributions import (
    canonical_outputs,
    make_rows,
    read_prompts,
    read_rows,
    to_jsonl,
    write_text,
)


@pytest.mark.parametrize(
    "family, params",
    [
        ("triangular", {"a": -1, "c": 0.2, "b": 1}),
        ("laplace", {"mu": 9.9, "b": 0.05}),
        ("binomial", {"n": 25, "p": 0.5}),
        ("skellam", {"mu1": 3, "mu2": 8}),
    ],
)
def test_exact_targets_are_those_of_a_trie_of_all_values(tokenizer, end, family, params):
    row = {"family": family, "params": params, "prompt": "p"}
    texts, probs, _ = canonical_outputs(row, max_bins=10**7)
    tree = trie.Trie(trie.encode(tokenizer, texts, end), probs)
    item = exact.prepare(tokenizer, end, row, 20, np.random.default_rng(0))
    leaves = {tuple(tree.path(leaf)): leaf for leaf in range(len(texts))}
    assert len(item["answers"]) == 20
    for answer in item["answers"]:
        wanted = tree.path_targets(leaves[tuple(answer["path"])])
        for (ours, q), (theirs, right) in zip(answer["targets"], wanted, strict=True):
            ours, theirs = (
                dict(zip(ours.tolist(), q, strict=True)),
                dict(zip(theirs.tolist(), right, strict=True)),
            )
            assert all(
                ours.get(key, 0) == pytest.approx(theirs.get(key, 0), abs=1e-7)
                for key in ours | theirs
            )


def test_a_temperature_of_one_is_the_model_itself_and_others_are_not(loaded, tmp_path, capsys):
    row = next(row for row in make_rows("ood") if row["family"] == "poisson")
    write_text(tmp_path / "p.jsonl", to_jsonl([row]))
    call(temperature, "--model", TINY, "--prompts", tmp_path / "p.jsonl")
    found = [
        line.split() for line in capsys.readouterr().out.splitlines()
    ]  # temperature 1.0: ... ood 0.123
    found = {float(words[1].rstrip(":")): float(words[-1]) for words in found}
    args = (
        "numbers",
        "--model",
        TINY,
        "--prompts",
        tmp_path / "p.jsonl",
        "--n",
        1,
        "--out",
        tmp_path / "o.jsonl",
    )
    call(sample, *args)
    (own,) = read_rows([tmp_path / "o.jsonl"])
    assert (
        found[1.0] == pytest.approx(own["logit_kl"] - own["logit_kl_floor"], abs=1e-3)
        and found[2.0] < found[1.0]
    )


def test_reverse_kl_by_hand():
    """One prefix with two children among five tokens, against a plain sum; a row beside it ends after one token."""
    batch = {
        "completions": torch.tensor([[3, 1], [1, trie.PAD]]),
        "tokens": torch.tensor([[[3, 1]] * 2] * 2),
    }
    batch["q"] = torch.tensor([[[0.25, 0.75]] * 2, [[0.25, 0.75], [0, 0]]])
    target = np.full(5, 1e-4 / 5)
    target[[3, 1]] += (1 - 1e-4) * np.array([0.25, 0.75])
    for p in (np.array([0.1, 0.2, 0.3, 0.15, 0.25]), target):
        logits = torch.tensor(p).log().expand(2, 2, 5)
        losses = reverse.loss(logits, batch)
        assert losses.tolist() == pytest.approx([(p * np.log(p / target)).sum()] * 2, abs=1e-6)
    assert (
        train_soft.loss(logits, batch) > 5e-5
    ).all()  # another function, with its zero elsewhere


def test_an_on_policy_path_is_the_models_draw_up_to_the_end_of_the_trie(model, tokenizer, end):
    """It begins with what the model drew, for as long as any leaf does, and has that leaf's targets; among several such
    leaves the target chooses. The model comes back as it was: training, with nothing in its gradients."""
    row = next(row for row in make_rows("unseen") if row["family"] == "gaussian")
    item = onpolicy.prepare(tokenizer, end, row, 64, np.random.default_rng(0))
    try:
        onpolicy.draw(model.train(), end, [item["prompt"]], item["answers"])
        assert model.training and all(p.grad is None for p in model.parameters())
    finally:
        model.eval()

    uniform = np.random.default_rng(0).random((64, 32))
    drawn = trie.walk(model, [item["prompt"]], [end], uniform)
    texts, probs, _ = canonical_outputs(row)
    tree = trie.Trie(trie.encode(tokenizer, texts, end), probs)
    leaves, left = [tuple(tree.path(leaf).tolist()) for leaf in range(len(texts))], 0
    for answer, own, numbers in zip(item["answers"], drawn, uniform, strict=True):
        agreed = [len(os.path.commonprefix([leaf, tuple(own)])) for leaf in leaves]
        longest = max(agreed)
        closest = [i for i, agrees in enumerate(agreed) if agrees == longest]
        cumulative = np.cumsum(tree.probs[closest])
        wanted = closest[int((cumulative <= numbers[-1] * cumulative[-1]).sum())]
        assert tuple(answer["path"].tolist()) == leaves[wanted]
        for (ours, q), (theirs, right) in zip(
            answer["targets"], tree.path_targets(wanted), strict=True
        ):
            assert np.array_equal(ours, theirs) and np.array_equal(q, right)
        left += longest < len(own)
    assert len({tuple(answer["path"].tolist()) for answer in item["answers"]}) > 10 and 0 < left


def test_lists_of_one_s_own_are_sixty_ten_of_them_held_out(tokenizer, end, tmp_path):
    """The weights in the prompt are the target, no held-out list is trained on, and every list trains both ways."""
    call(lists, "--out", tmp_path)
    rows = {name: read_prompts([tmp_path / f"{name}.jsonl"]) for name in ("train", "unseen", "ood")}
    trained, held = (
        [row for row in rows[name] if "outputs" in row] for name in ("train", "unseen")
    )
    assert (len(trained), len(held)) == (50, 10) and len(rows["train"]) == 1988 + 50
    assert rows["ood"] == make_rows("ood") and not {r["prompt"] for r in trained} & {
        r["prompt"] for r in held
    }
    for row in trained + held:
        shown = ", ".join(
            f"{text} ({p * 100:.0f} %)"
            for text, p in zip(row["outputs"], row["probs"], strict=True)
        )
        assert (
            shown in row["prompt"]
            and sum(row["probs"]) == pytest.approx(1)
            and min(row["probs"]) > 0
        )
    for module in (train_soft, train_hard):
        example = module.prepare(tokenizer, end, trained[0], 200, np.random.default_rng(0))
        drawn = [tokenizer.decode(answer["path"][:-1]) for answer in example["answers"]]
        assert set(drawn) <= set(trained[0]["outputs"])
        share = drawn.count(trained[0]["outputs"][0]) / 200
        assert share == pytest.approx(trained[0]["probs"][0], abs=0.12)
    assert all(
        answer["floor"] == 0
        for answer in train_soft.prepare(tokenizer, end, held[0], 1, np.random.default_rng(0))[
            "answers"
        ]
    )


@pytest.fixture(scope="module")
def forks(tmp_path_factory) -> dict:
    """Each fork as a module, imported from the file that make_forks.py writes."""
    folder = tmp_path_factory.mktemp("forks")
    written = subprocess.run(
        [sys.executable, make_forks.__file__, str(folder)],
        env=ENV,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f'METHODS="soft hard {" ".join(make_forks.FORKS)}"' in written.stdout
    sys.path.insert(0, str(folder))
    yield {name: __import__(f"train_{name}") for name in make_forks.FORKS}
    sys.path.remove(str(folder))


def test_all_is_every_leaf_by_its_probability(forks, tokenizer, end):
    row = next(row for row in make_rows("ood") if row["family"] == "poisson")
    rng = np.random.default_rng(0)
    answers = forks["all"].prepare(tokenizer, end, row, 1001, rng)["answers"]
    texts, probs, _ = canonical_outputs(row)
    weights = {tokenizer.decode(answer["path"][:-1]): answer["weight"] for answer in answers}
    assert weights == pytest.approx(dict(zip(texts, probs, strict=True)))
    few = forks["few"].prepare(tokenizer, end, row, 1, rng)["answers"]
    assert len(few) == 1 and few[0]["weight"] == 1


def test_smooth_is_hard_with_a_tenth_of_the_target_everywhere(forks):
    logits, batch = (
        torch.randn(2, 3, 7),
        {"completions": torch.tensor([[1, 2, 3], [4, 5, trie.PAD]])},
    )
    everywhere = -logits.log_softmax(-1).mean(-1)  # (R, L)
    uniform = torch.stack([everywhere[0].mean(), everywhere[1, :2].mean()])
    assert torch.allclose(
        forks["smooth"].loss(logits, batch), 0.9 * train_hard.loss(logits, batch) + 0.1 * uniform
    )


def trained(forks, name: str, folder: Path, data: Path, *flags) -> list[dict]:
    """The log of a fork, trained on the embedded model with the flags that make_forks.py prints, and a few more."""
    flags = [*make_forks.FORKS[name][2].split(), "--epochs", 1, "--lr", "5e-3", *flags]
    call(forks[name], "--model", TINY, "--data", data, "--out", folder / name, *flags)
    log = read_rows([folder / name / "log.jsonl"])
    first, last = (np.mean([entry["loss"] for entry in part]) for part in np.array_split(log, 2))
    assert last < first, name
    return log


@pytest.mark.parametrize("name", ["reverse", "all", "few", "exact", "smooth"])
def test_every_fork_trains(forks, data, tmp_path, name):
    """`all` on integers: a continuous prompt has a thousand leaves."""
    rows = read_rows([data / "train.jsonl"])
    rows = (
        [row for row in rows if row["family"] in ("binomial", "skellam")] if name == "all" else rows
    )
    write_text(tmp_path / "train.jsonl", to_jsonl(rows))
    log = trained(
        forks,
        name,
        tmp_path,
        tmp_path / "train.jsonl",
        "--limit",
        48,
        "--batch",
        4 if name == "all" else 6,
    )
    assert len(log) == (12 if name == "all" else 8)
    assert all(entry["floor"] == 0 for entry in log) or name != "exact"


def test_on_policy_training_calibrates(forks, data, prompts, tmp_path):
    """Its loss falls, and so does the excess KL on prompts that it has not seen."""
    log = trained(forks, "onpolicy", tmp_path, data / "train.jsonl", "--limit", 256, "--batch", 8)
    assert all("floor" not in entry and entry["tokens"] > 8 * 8 * 2 for entry in log)
    for name, adapter in (("base", ()), ("onpolicy", ("--adapter", tmp_path / "onpolicy"))):
        out = tmp_path / f"{name}.jsonl"
        call(
            sample,
            "numbers",
            "--model",
            TINY,
            "--prompts",
            *prompts,
            "--n",
            20,
            "--out",
            out,
            *adapter,
        )
    scores = metrics.aggregate(read_rows([tmp_path / "base.jsonl", tmp_path / "onpolicy.jsonl"]))
    for split in ("unseen", "ood"):
        excess = {
            s["method"]: s["value"]
            for s in scores
            if (s["metric"], s["split"]) == ("excess_kl", split)
        }
        assert 0 < excess["onpolicy"] < excess["base"] / 2
