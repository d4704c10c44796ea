"""The solutions of the exercises: each is right by itself, and trains as a fork of a trainer."""

import doctest
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ENV, TINY, call, complaint

sys.path.insert(0, str(Path(__file__).parent / "solutions"))

import exact
import make_forks
import mixed
import onpolicy
import reverse
import temperature

import distributions
import metrics
import sample
import train_hard
import train_soft
import trie


def first_row(split: str, family: str) -> dict:
    """A family's first prompt in a split."""
    return next(row for row in distributions.make_rows(split) if row["family"] == family)


def as_dict(tokens: np.ndarray, q: np.ndarray) -> dict[int, float]:
    """The target at a prefix: token -> probability."""
    return dict(zip(tokens.tolist(), q.tolist(), strict=True))


@pytest.mark.parametrize("module", [exact, make_forks])
def test_docstring_examples(module):
    result = doctest.testmod(module)
    assert result.failed == 0 and result.attempted > 0


# ------------------------------------------------------------------------- each solution by itself


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
    texts, probs, _ = distributions.canonical_outputs(row, max_bins=10**7)
    tree = trie.Trie(trie.encode(tokenizer, texts, end), probs)
    leaves = {tuple(tree.path(leaf)): leaf for leaf in range(len(texts))}

    answers = exact.prepare(tokenizer, end, row, 20, np.random.default_rng(0))["answers"]
    assert len(answers) == 20
    for answer in answers:
        expected_targets = tree.path_targets(leaves[tuple(answer["path"])])
        for target, expected_target in zip(answer["targets"], expected_targets, strict=True):
            q, expected = as_dict(*target), as_dict(*expected_target)
            for token in q | expected:
                assert q.get(token, 0) == pytest.approx(expected.get(token, 0), abs=1e-7)


def test_a_temperature_of_one_is_the_model_itself_and_others_are_not(tmp_path, capsys):
    prompts = tmp_path / "prompts.jsonl"
    distributions.write_text(prompts, distributions.to_jsonl([first_row("ood", "poisson")]))
    call(temperature, "kl", "--model", TINY, "--prompts", prompts)
    excess = {}
    for line in capsys.readouterr().out.splitlines():  # temperature 1.0: ... ood 0.123
        words = line.split()
        excess[float(words[1].rstrip(":"))] = float(words[-1])

    out = tmp_path / "numbers.jsonl"
    call(sample, "numbers", "--model", TINY, "--prompts", prompts, "--n", 1, "--out", out)
    [result] = distributions.read_rows([out])
    expected = result["logit_kl"] - result["logit_kl_floor"]
    assert excess[1.0] == pytest.approx(expected, abs=1e-3)
    assert excess[2.0] < excess[1.0]


def test_hotter_draws_are_written_as_methods_of_their_own(tmp_path):
    """More heat, more evenness: of the places of the correct option, nearly all are A before."""
    out = tmp_path / "tiny"
    flags = ("--model", TINY, "--n", 60, "--rows", 256, "--out")
    call(sample, "mcq", *flags, out / "base/mcq.jsonl")
    for heat in (1.25, 1.5, 2):
        call(temperature, "draw", heat, "mcq", *flags, out)
    files = sorted(out.glob("*/mcq.jsonl"))
    rows = distributions.read_rows(files)
    assert [row["method"] for row in rows] == ["T=1.25", "T=1.5", "T=2", "base"]
    assert len({str(row["draws"]) for row in rows}) == 4
    metrics.check_same_prompts(rows)
    metrics.check_same_weights(rows)

    # The hooks are gone, and what is there is not drawn again.
    call(temperature, "draw", 1, "mcq", *flags, out)
    (row,) = distributions.read_rows([out / "T=1/mcq.jsonl"])
    assert row["draws"] == rows[-1]["draws"]
    assert "T=1/mcq.jsonl" in complaint(temperature, "draw", 1, "mcq", *flags, out)

    for wrong in (0, "nan", "inf"):
        line = complaint(temperature, "draw", wrong, "mcq", *flags, out)
        assert "temperature must be a positive number" in line
    assert "--nonsense" in complaint(
        temperature, "kl", "--model", TINY, "--prompts", "a", "--nonsense"
    )
    hot_adapter = ("draw", 3, "mcq", "--adapter", "soft", *flags, out)
    assert "without --adapter" in complaint(temperature, *hot_adapter)

    # A run that was killed after its last draw has only to name its rows.
    unnamed = out / "T=3" / "mcq-unnamed.jsonl"
    unnamed.parent.mkdir()
    unnamed.write_text((out / "base/mcq.jsonl").read_text())
    call(temperature, "draw", 3, "mcq", *flags, out)
    (row,) = distributions.read_rows([out / "T=3" / "mcq.jsonl"])
    assert row == rows[-1] | {"method": "T=3"} and not unnamed.exists()

    (exams,) = [panel for panel in temperature.PANELS if panel.axis == "mcq"]
    places = temperature.points(metrics.aggregate(rows), exams)
    evenness = {method: height for method, (_, height) in places.items()}
    assert evenness["base"] < evenness["T=1.5"] < evenness["target"]

    mixed = tmp_path / "mixed.jsonl"
    distributions.write_text(mixed, distributions.to_jsonl([rows[0], rows[1] | {"seed": 1}]))
    line = complaint(temperature, "picture", mixed, "--out", tmp_path / "no.png")
    assert "several models or seeds" in line

    pytest.importorskip("matplotlib", reason="needs requirements-extras.txt")
    call(temperature, "picture", *files, "--out", tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").stat().st_size > 10_000


def test_the_picture_of_open_questions_shows_valid_and_distinct_answers():
    """Of four replies, three are valid, and two of these differ."""
    row = {"axis": "open", "id": "bird", "prompt": "Name a random bird.", "method": "base"}
    row |= {"model": "tests/tiny", "seed": 0, "draws": ["crow", "crow", "owl", ""]}
    (questions,) = [panel for panel in temperature.PANELS if panel.axis == "open"]
    places = temperature.points(metrics.aggregate([row]), questions)
    assert places == {"base": (0.75, 0.5)}


def test_hotter_draws_of_words_can_be_compared_with_those_of_sample(tmp_path, mixed_prompts):
    prompts = tmp_path / "held_out.jsonl"
    choices = of_kind(mixed_prompts["held_out"], "choice")[:2]
    distributions.write_text(prompts, distributions.to_jsonl(choices))
    flags = ("--model", TINY, "--prompts", prompts, "--n", 5, "--out")
    call(temperature, "draw", 1.5, "numbers", *flags, tmp_path)
    base = tmp_path / "base/numbers.jsonl"
    call(sample, "numbers", *flags, base)

    rows = distributions.read_rows([tmp_path / "T=1.5/numbers.jsonl", base])
    assert [row["id"] for row in rows] == 2 * [row["id"] for row in choices]
    assert [row["method"] for row in rows] == ["T=1.5", "T=1.5", "base", "base"]
    assert rows[0]["logit_kl"] < rows[2]["logit_kl"]  # closer to even
    metrics.check_same_prompts(rows)


def test_reverse_kl_by_hand():
    """Two children among five tokens, against a plain sum. One row ends after one token.

    The second distribution is the smoothed target itself, where the loss must be 0. The loss of
    train_soft.py is another function, which is not 0 there.
    """
    batch = {
        "completions": torch.tensor([[3, 1], [1, trie.PAD]]),
        "tokens": torch.tensor([[[3, 1], [3, 1]], [[3, 1], [3, 1]]]),
        "q": torch.tensor([[[0.25, 0.75], [0.25, 0.75]], [[0.25, 0.75], [0, 0]]]),
    }
    target = np.full(5, 1e-4 / 5)
    target[[3, 1]] += (1 - 1e-4) * np.array([0.25, 0.75])
    for p in (np.array([0.1, 0.2, 0.3, 0.15, 0.25]), target):
        logits = torch.tensor(p).log().expand(2, 2, 5)
        expected = (p * np.log(p / target)).sum()
        assert reverse.loss(logits, batch).tolist() == pytest.approx([expected] * 2, abs=1e-6)
    assert (train_soft.loss(logits, batch) > 5e-5).all()


def test_an_on_policy_path_is_the_models_own_until_it_leaves_the_trie(model, tokenizer, end):
    """A path agrees with what the model drew for as long as any leaf does.

    Among the leaves that agree the longest, the target chooses, and the path has that leaf's
    targets. The model is in training mode again afterwards, with no gradients.
    """
    row = first_row("unseen", "gaussian")
    example = onpolicy.prepare(tokenizer, end, row, 64, np.random.default_rng(0))
    answers = example["answers"]
    try:
        onpolicy.draw(model.train(), end, [example["prompt"]], answers)
        assert model.training
        assert all(p.grad is None for p in model.parameters())
    finally:
        model.eval()

    uniform = np.random.default_rng(0).random((64, 32))
    drawn = trie.walk(model, [example["prompt"]], [end], uniform)
    texts, probs, _ = distributions.canonical_outputs(row)
    tree = trie.Trie(trie.encode(tokenizer, texts, end), probs)
    leaves = [tuple(tree.path(leaf).tolist()) for leaf in range(len(texts))]

    left_the_trie = 0
    for answer, drawn_path, numbers in zip(answers, drawn, uniform, strict=True):
        agreed = [len(os.path.commonprefix([leaf, tuple(drawn_path)])) for leaf in leaves]
        longest = max(agreed)
        closest = [leaf for leaf, length in enumerate(agreed) if length == longest]
        cumulative = np.cumsum(tree.probs[closest])
        chosen = closest[int((cumulative <= numbers[-1] * cumulative[-1]).sum())]
        assert tuple(answer["path"].tolist()) == leaves[chosen]
        for target, expected in zip(answer["targets"], tree.path_targets(chosen), strict=True):
            assert np.array_equal(target[0], expected[0])
            assert np.array_equal(target[1], expected[1])
        left_the_trie += longest < len(drawn_path)
    assert left_the_trie > 0
    assert len({tuple(answer["path"].tolist()) for answer in answers}) > 10


@pytest.fixture(scope="module")
def mixed_prompts(tmp_path_factory) -> dict[str, list[dict]]:
    """The prompts that mixed.py writes, by the name of their file."""
    folder = tmp_path_factory.mktemp("mixed")
    call(mixed, "--out", folder)
    names = ("train", "held_out")
    return {name: distributions.read_prompts([folder / f"{name}.jsonl"]) for name in names}


def of_kind(rows: list[dict], kind: str) -> list[dict]:
    """Rows of weighted lists (kind "list") or of uniform choices ("choice")."""
    return [row for row in rows if row["id"].startswith(kind)]


def test_mixed_adds_words_to_the_usual_training_prompts(mixed_prompts):
    usual = distributions.make_rows("train")
    assert mixed_prompts["train"][: len(usual)] == usual
    assert all("outputs" in row for row in mixed_prompts["train"][len(usual) :])


def test_ten_of_sixty_lists_are_held_out(mixed_prompts):
    trained = of_kind(mixed_prompts["train"], "list")
    held_out = of_kind(mixed_prompts["held_out"], "list")
    assert (len(trained), len(held_out)) == (50, 10)
    assert not {row["prompt"] for row in trained} & {row["prompt"] for row in held_out}
    assert {row["split"] for row in held_out} == {"lists"}


def test_the_weights_in_a_lists_prompt_are_its_target(mixed_prompts):
    for row in of_kind(mixed_prompts["train"] + mixed_prompts["held_out"], "list"):
        weighted = zip(row["outputs"], row["probs"], strict=True)
        shown = ", ".join(f"{text} ({prob * 100:.0f} %)" for text, prob in weighted)
        assert shown in row["prompt"]
        assert sum(row["probs"]) == pytest.approx(1)
        assert min(row["probs"]) > 0


def test_choices_are_uniform_and_their_topics_are_held_out_as_a_whole(mixed_prompts):
    trained = of_kind(mixed_prompts["train"], "choice")
    held_out = of_kind(mixed_prompts["held_out"], "choice")
    for row in trained + held_out:
        assert len(set(row["outputs"])) == len(row["outputs"]) > 1
        assert set(row["probs"]) == {1 / len(row["outputs"])}
        assert row["prompt"].endswith(". Output ONLY the answer.")
    sets = [{tuple(row["outputs"]) for row in rows} for rows in (trained, held_out)]
    assert (len(sets[0]), len(sets[1])) == (80, 22)
    assert not sets[0] & sets[1]
    assert {row["split"] for row in held_out} == {"words"}


def test_held_out_choices_are_asked_in_a_trained_and_in_a_new_wording(mixed_prompts):
    def has(row, text):
        return text in row["prompt"]

    trained = of_kind(mixed_prompts["train"], "choice")
    assert not any(has(row, "with equal probability") for row in trained)
    held_out = of_kind(mixed_prompts["held_out"], "choice")
    old = [row for row in held_out if has(row, "Name a random")]
    new = [row for row in held_out if has(row, "with equal probability")]
    whole = [row for row in held_out if has(row, "Toss a coin") or has(row, "Roll a six-sided die")]
    assert (len(old), len(new), len(whole)) == (20, 20, 2)
    assert len(held_out) == 42


def test_no_trained_choice_is_an_open_question(mixed_prompts):
    lines = mixed.CHOICES.read_text("utf-8").split("# held out")[0].splitlines()
    trained = {line.split(": ")[0] for line in lines if line and not line.startswith("#")}
    assert len(trained) == 80
    assert not trained & set(sample.CATEGORIES)


@pytest.mark.parametrize("module", [train_soft, train_hard])
def test_both_trainers_draw_from_a_lists_target(mixed_prompts, tokenizer, end, module):
    row = of_kind(mixed_prompts["train"], "list")[0]
    example = module.prepare(tokenizer, end, row, 200, np.random.default_rng(0))
    drawn = [tokenizer.decode(answer["path"][:-1]) for answer in example["answers"]]
    assert set(drawn) <= set(row["outputs"])
    share = drawn.count(row["outputs"][0]) / 200
    assert share == pytest.approx(row["probs"][0], abs=0.12)


def test_the_floor_of_words_is_zero(mixed_prompts, tokenizer, end):
    for row in (mixed_prompts["held_out"][0], mixed_prompts["held_out"][-1]):
        [answer] = train_soft.prepare(tokenizer, end, row, 1, np.random.default_rng(0))["answers"]
        assert answer["floor"] == 0


# --------------------------------------------------------------------------------------- the forks


@pytest.mark.parametrize(("source", "times"), [("", 0), ('"weight": 1, "weight": 1', 2)])
def test_a_piece_that_does_not_occur_once_is_an_error_that_names_it(source, times):
    with pytest.raises(distributions.InputError, match=f'"weight": 1.* {times} times'):
        make_forks.replace_piece(source, '"weight": 1', '"weight": 2')


def test_a_function_that_is_not_there_is_an_error_that_names_it():
    with pytest.raises(distributions.InputError, match="function loss .*defined 0 times"):
        make_forks.replace_function("def other():\n    pass\n", "loss", '"""A loss."""\n')


def test_your_own_trainer_is_kept_and_named_with_the_forks(tmp_path, capsys):
    (tmp_path / "train_mine.py").write_text("mine")
    (tmp_path / "train_linked.py").symlink_to("train_mine.py")  # needs flags of its own
    call(make_forks, tmp_path)
    printed = capsys.readouterr().out
    assert printed.startswith(f"'METHODS=soft hard {' '.join(make_forks.FORKS)} mine' ")
    assert f"'FLAGS_mine={make_forks.SOFT_FLAGS}'" in printed
    call(make_forks, tmp_path)  # a second time changes nothing

    exact_file = tmp_path / "train_exact.py"
    exact_file.write_text("edited")
    assert "train_exact.py exists" in complaint(make_forks, tmp_path)
    call(make_forks, tmp_path, "--remove")
    assert exact_file.read_text() == "edited"
    assert len(list(tmp_path.glob("train_*.py"))) == 3
    assert (tmp_path / "train_mine.py").read_text() == "mine"


@pytest.fixture(scope="module")
def forks(tmp_path_factory) -> dict:
    """Each fork as a module, imported from the file that make_forks.py writes."""
    folder = tmp_path_factory.mktemp("forks")
    command = [sys.executable, make_forks.__file__, str(folder)]
    written = subprocess.run(command, env=ENV, capture_output=True, text=True, check=True)
    assert written.stdout.startswith(f"'METHODS=soft hard {' '.join(make_forks.FORKS)}' ")
    sys.path.insert(0, str(folder))
    yield {name: __import__(f"train_{name}") for name in make_forks.FORKS}
    sys.path.remove(str(folder))


def test_all_is_every_leaf_weighted_by_its_probability(forks, tokenizer, end):
    row = first_row("ood", "poisson")
    rng = np.random.default_rng(0)
    answers = forks["all"].prepare(tokenizer, end, row, 1001, rng)["answers"]
    texts, probs, _ = distributions.canonical_outputs(row)
    weights = {tokenizer.decode(answer["path"][:-1]): answer["weight"] for answer in answers}
    assert weights == pytest.approx(dict(zip(texts, probs, strict=True)))

    [answer] = forks["few"].prepare(tokenizer, end, row, 1, rng)["answers"]
    assert answer["weight"] == 1


def test_smooth_is_hard_with_a_tenth_of_the_target_on_all_tokens(forks):
    logits = torch.randn(2, 3, 7)
    batch = {"completions": torch.tensor([[1, 2, 3], [4, 5, trie.PAD]])}
    on_all_tokens = -logits.log_softmax(-1).mean(-1)  # (R, L)
    uniform = torch.stack([on_all_tokens[0].mean(), on_all_tokens[1, :2].mean()])
    expected = 0.9 * train_hard.loss(logits, batch) + 0.1 * uniform
    assert torch.allclose(forks["smooth"].loss(logits, batch), expected)


def test_early_halves_the_weight_from_token_to_token(forks):
    """A path of two tokens, with one child each: the losses -log p count 2/3 and 1/3."""
    logits = torch.randn(1, 2, 7)
    batch = {"completions": torch.tensor([[1, 2]]), "q": torch.ones(1, 2, 1)}
    batch["tokens"] = batch["completions"][..., None]
    first, second = -logits[0].log_softmax(-1)[[0, 1], [1, 2]]
    expected = (2 * first + second) / 3
    assert torch.allclose(forks["early"].loss(logits, batch), expected)


def trained(forks, name: str, folder: Path, data: Path, *flags) -> list[dict]:
    """The log of a fork, trained briefly on the bundled model, where its loss must fall.

    It is trained with the flags that make_forks.py prints, and a few more.
    """
    all_flags = [*make_forks.FORKS[name].flags.split(), "--epochs", 1, "--lr", "5e-3", *flags]
    call(forks[name], "--model", TINY, "--data", data, "--out", folder / name, *all_flags)
    log = distributions.read_rows([folder / name / "log.jsonl"])
    losses = [entry["loss"] for entry in log]
    first_half, second_half = np.array_split(losses, 2)
    assert second_half.mean() < first_half.mean(), name
    return log


@pytest.mark.parametrize("name", ["reverse", "few", "exact", "smooth", "batch8", "early", "mlp"])
def test_every_fork_trains(forks, data, tmp_path, name):
    flags = ("--limit", 48, "--batch", 6)
    log = trained(forks, name, tmp_path, data / "train.jsonl", *flags)
    assert len(log) == 8
    if name == "exact":
        assert all(entry["floor"] == 0 for entry in log)
    if name == "mlp":
        config = json.loads((tmp_path / name / "adapter_config.json").read_text())
        trained_modules = {name.split(".")[-1] for name in config["target_modules"]}
        assert {"q_proj", "o_proj", "gate_proj", "down_proj"} <= trained_modules


def test_all_trains(forks, data, tmp_path):
    """On integers only: a continuous prompt has a thousand leaves."""
    rows = distributions.read_rows([data / "train.jsonl"])
    integers = [row for row in rows if row["family"] in ("binomial", "skellam")]
    distributions.write_text(tmp_path / "train.jsonl", distributions.to_jsonl(integers))
    flags = ("--limit", 48, "--batch", 4)
    log = trained(forks, "all", tmp_path, tmp_path / "train.jsonl", *flags)
    assert len(log) == 12


def test_on_policy_training_calibrates(forks, data, prompts, tmp_path):
    """Its loss falls, and so does the excess KL on prompts that it has not seen."""
    flags = ("--limit", 256, "--batch", 8)
    log = trained(forks, "onpolicy", tmp_path, data / "train.jsonl", *flags)
    assert all("floor" not in entry and entry["tokens"] > 8 * 8 * 2 for entry in log)

    adapter_flags = {"base": (), "onpolicy": ("--adapter", tmp_path / "onpolicy")}
    results = []
    for name, adapter in adapter_flags.items():
        out = tmp_path / f"{name}.jsonl"
        flags = ("--prompts", *prompts, "--n", 20, "--out", out, *adapter)
        call(sample, "numbers", "--model", TINY, *flags)
        results += distributions.read_rows([out])

    excess = {}
    for score in metrics.aggregate(results):
        if score["metric"] == "excess_kl":
            excess[score["method"], score["split"]] = score["value"]
    for split in ("unseen", "ood"):
        assert 0 < excess["onpolicy", split] < excess["base", split] / 2
