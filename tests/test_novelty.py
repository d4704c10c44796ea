"""NoveltyBench, offline: its rules by hand, its draws by sample.py's machinery, judges that really judge, resuming.

The judges are tiny random classifiers, so the quality of their judgement is not tested; nor are the real prompts, which
are on the hub.
"""

import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, call, complaint
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen3ForSequenceClassification,
)

import sample
from distributions import InputError, read_rows, to_jsonl, write_text

sys.path.insert(0, str(ROOT / "tests" / "extras"))
import novelty

# ------------------------------------------------------------------------------------------------------ the rules


@pytest.mark.parametrize(
    "a, b, same",
    [
        ("Paris", "paris ", True),
        ("New York", "york", True),  # 2 * 1 >= 2
        ("the big red dog", "a dog", False),  # 2 * 1 < 4
        ("one two three four five", "five one two", True),  # 2 * 3 >= 5
        ("one two three four five", "five one", False),
        ("dog dog dog", "dog", False),  # common words are counted once: 2 * 1 < 3
        ("", "", True),
        ("one two three four five six", "six", None),
    ],
)
def test_short_answers_are_compared_by_their_words(a, b, same):
    assert novelty.same_words(a, b) is same and novelty.same_words(b, a) is same


def test_classes_are_greedy():
    """Answer 2 is like 1, but 1 went to 0's class, whose first member is 0: so 2 opens a class. 3 could join both."""
    same = np.zeros((5, 5), bool)
    for i, j in ((0, 1), (1, 2), (0, 3), (2, 3), (2, 4)):
        same[i, j] = True
    assert novelty.greedy_classes(same) == [0, 0, 1, 0, 1]


def test_rewards_are_cut_into_ten():
    cuts = [-7.71875, -6.28125, -6, -5.71875, -5.5, -5, -4.375, -3.4375, -2.046875]
    assert [novelty.reward_points(cut) for cut in cuts] == list(range(1, 10))
    assert [novelty.reward_points(cut + 1e-3) for cut in cuts] == list(range(2, 11))
    assert novelty.reward_points(-math.inf) == 1 and novelty.reward_points(50.0) == 10


@pytest.mark.parametrize(
    "scores, utility",
    [
        ([10] * 10, 10),
        ([10] + [0] * 9, 10 * 0.2 / (1 - 0.8**10)),  # a geometric series
        ([5, 0, 4], (5 + 4 * 0.64) / (1 + 0.8 + 0.64)),
        ([7], 7),
    ],
)
def test_utility_is_discounted_by_patience(scores, utility):
    assert novelty.utility(scores) == pytest.approx(utility, rel=1e-12)
    assert novelty.utility([3, 1], patience=0.5) == pytest.approx(3.5 / 1.5)


# ------------------------------------------------------------------------------------------------ answers, judges

PROMPTS = ("Name a random city.", sample.MCQ)


@pytest.fixture(scope="module")
def drawn(adapters, tmp_path_factory) -> Path:
    """runs/<method>/novelty.jsonl of the base model and of an adapter, about a prompt of either split."""
    folder = tmp_path_factory.mktemp("novelty")
    splits = ("curated", "wildchat")
    rows = [
        {"id": f"{s}-0", "split": s, "prompt": p, "tag": 0}
        for s, p in zip(splits, PROMPTS, strict=True)
    ]
    write_text(folder / "mine.jsonl", to_jsonl(rows))
    for name, adapter in (("base", ()), ("soft", ("--adapter", adapters["soft"]))):
        flags = (
            "--prompts",
            folder / "mine.jsonl",
            "--max-tokens",
            20,
            "--out",
            folder / name / "novelty.jsonl",
        )
        call(novelty, "draw", "--model", TINY, *adapter, *flags)
    return folder


@pytest.fixture(scope="module")
def judges(tmp_path_factory, drawn) -> dict[str, str]:
    """A classifier that reads pairs and a reward model that reads chats. Both are tiny, random, of strong opinions."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("judges")
    backend = Tokenizer(models.BPE(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    marks = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    trainer = trainers.BpeTrainer(
        vocab_size=180, special_tokens=list(marks.values()), show_progress=False
    )
    backend.train_from_iterator(sample.CATEGORIES, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **marks)
    tokenizer.save_pretrained(folder / "same")

    size = {"vocab_size": 190, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    relative = {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "max_relative_positions": -1,
    }
    config = DebertaV2Config(
        **size,
        **relative,
        intermediate_size=64,
        type_vocab_size=0,
        num_labels=2,
        initializer_range=0.3,
    )
    classifier = DebertaV2ForSequenceClassification(config).eval()
    texts = [
        text.removesuffix("…") for text in read_rows([drawn / "base" / "novelty.jsonl"])[1]["draws"]
    ]
    with torch.inference_mode():  # a threshold that some pairs pass and some do not
        pairs = [
            tokenizer(a, b, return_tensors="pt")["input_ids"]
            for a, b in zip(texts, texts[1:], strict=False)
        ]
        logits = torch.cat([classifier(input_ids=pair).logits for pair in pairs])
        classifier.classifier.bias[1] -= (logits[:, 1] - logits[:, 0]).quantile(0.55) - math.log(
            0.102 / 0.898
        )
    classifier.to(torch.bfloat16).save_pretrained(folder / "same")

    reward = Qwen3ForSequenceClassification.from_pretrained(TINY, num_labels=1, dtype=torch.float32)
    reader = AutoTokenizer.from_pretrained(TINY)
    states = []  # what the reward is read from; rewards are then -5 and more or less, where the cuts are
    hook = reward.score.register_forward_pre_hook(
        lambda module, inputs: states.append(inputs[0][0, -1])
    )
    with torch.inference_mode():
        for text in texts:
            talk = [{"role": "user", "content": PROMPTS[1]}, {"role": "assistant", "content": text}]
            reward(**reader(reader.apply_chat_template(talk, tokenize=False), return_tensors="pt"))
        states = torch.stack(states)
        mean = states.mean(0)
        direction = torch.linalg.svd(states - mean).Vh[
            1
        ]  # in which texts of one beginning differ, too
        direction -= direction @ mean / mean.square().sum() * mean
        weight = 2 * direction / (states @ direction).std() - 5 * mean / mean.square().sum()
        reward.score.weight.copy_(weight[None])
    hook.remove()
    reward.save_pretrained(folder / "good")
    reader.save_pretrained(folder / "good")
    return {"--classifier": str(folder / "same"), "--reward": str(folder / "good")}


def judge(folder, judges, command=call, **other):
    """`novelty.py judge` of a folder's files, by these judges or by --classifier and --reward in `other`."""
    options = judges | {f"--{key}": value for key, value in other.items()}
    files = sorted(folder.glob("*/novelty.jsonl"))
    return command(
        novelty, "judge", *files, *sum(options.items(), ()), "--out", folder / "means.jsonl"
    )


@pytest.fixture(scope="module")
def judged(drawn, judges) -> Path:
    judge(drawn, judges)
    return drawn


def test_draws_are_rows_like_any_other(drawn, tmp_path):
    for method in ("base", "soft"):
        rows = read_rows([drawn / method / "novelty.jsonl"])
        assert [row["id"] for row in rows] == ["curated-0", "wildchat-0"]
        for row in rows:
            assert set(row) >= {
                "id",
                "split",
                "prompt",
                "tag",
                "model",
                "method",
                "axis",
                "draws",
                "tokens",
                "seconds",
            }
            assert (row["model"], row["method"], row["axis"]) == (TINY, method, "novelty")
            assert (
                len(row["draws"]) == 10 and len(set(row["draws"])) > 1
            )  # ten streams of random numbers
        assert any(
            text.endswith("…") for text in rows[1]["draws"]
        )  # 20 tokens are not enough for a question
    flags = (
        "--prompts",
        drawn / "mine.jsonl",
        "--max-tokens",
        20,
        "--out",
        drawn / "base" / "novelty.jsonl",
    )
    assert "is there already" in complaint(novelty, "draw", "--model", TINY, *flags)
    # sample.py draws the same answers, also in a smaller batch
    flags = ("--prompts", drawn / "mine.jsonl", "--n", 10, "--max-tokens", 20, "--rows", 7)
    call(sample, "open", "--model", TINY, *flags, "--out", tmp_path / "open.jsonl")
    same = [
        [row["draws"] for row in read_rows([p])]
        for p in (tmp_path / "open.jsonl", drawn / "base/novelty.jsonl")
    ]
    assert same[0] == same[1]


def test_judgement_equals_one_pair_at_a_time(judged, judges):
    """The files' numbers from the models alone, one text at a time, no batch, no padding."""
    tokenizer = AutoTokenizer.from_pretrained(judges["--classifier"])
    load = AutoModelForSequenceClassification.from_pretrained
    classifier = load(judges["--classifier"], dtype=torch.float32).eval()
    reader = AutoTokenizer.from_pretrained(judges["--reward"])
    reward = load(judges["--reward"], dtype=torch.float32).eval()
    reward.config.pad_token_id = reader.pad_token_id

    @torch.inference_mode()
    def same(a, b):
        if max(len(a.split()), len(b.split())) <= 5:
            return 2 * len(set(a.lower().split()) & set(b.lower().split())) >= max(
                len(a.split()), len(b.split())
            )
        a, b = (tokenizer(text, add_special_tokens=False)["input_ids"][:128] for text in (a, b))
        pair = torch.tensor(
            [[tokenizer.cls_token_id, *a, tokenizer.sep_token_id, *b, tokenizer.sep_token_id]]
        )
        verdicts.append(classifier(input_ids=pair).logits.softmax(-1)[0, 1].item() > 0.102)
        return verdicts[-1]

    verdicts, all_points = [], set()
    for method in ("base", "soft"):
        rows = read_rows([judged / method / "novelty" / "scores.jsonl"])
        for row, asked in zip(rows, read_rows([judged / method / "novelty.jsonl"]), strict=True):
            assert row["generations"] == [text.removesuffix("…") for text in asked["draws"]]
            classes, scores = [], []
            for text in row["generations"]:
                for members in classes:
                    if same(members[0], text):
                        members.append(text)
                        scores.append(0)
                        break
                else:
                    classes.append([text])
                    talk = [
                        {"role": "user", "content": row["prompt"]},
                        {"role": "assistant", "content": text},
                    ]
                    ids = reader(
                        reader.apply_chat_template(talk, tokenize=False), return_tensors="pt"
                    )["input_ids"]
                    with torch.inference_mode():
                        value = reward(input_ids=ids).logits.item()
                    scores.append(1 + sum(value > cut for cut in novelty.REWARD_CUTS))
                    all_points.add(scores[-1])
            assert row["distinct"] == len(classes) == max(row["partition"]) + 1
            assert (
                row["generation_scores"] == scores
                and [s for s in scores if s] == row["partition_scores"]
            )
            weights = [0.8**i for i in range(10)]
            assert row["utility"] == pytest.approx(
                sum(map(np.multiply, weights, scores)) / sum(weights)
            )
            assert {"id", "prompt", "model", "method", "split", "tag"} <= set(
                row
            ) and "draws" not in row
    assert {True, False} == set(verdicts) and len(
        all_points
    ) > 2  # the random judges do tell texts apart


def test_the_classifier_judges_in_float32(drawn, judges, tmp_path, monkeypatch):
    """Also of a bfloat16 checkpoint, and where a GPU would run it in bfloat16: there .102 lies between two numbers."""
    model, _ = novelty.load_judge(judges["--classifier"], 2, torch.float32)
    assert model.dtype == torch.float32 and json.loads(
        (Path(judges["--classifier"]) / "config.json").read_text()
    )["dtype"] == "bfloat16"  # fmt: skip
    asked = []

    def load(name, labels, dtype):
        asked.append((labels, dtype))
        if labels == 1:
            raise InputError("that is enough")

    shutil.copy(drawn / "base" / "novelty.jsonl", tmp_path)
    monkeypatch.setattr(novelty, "load_judge", load)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    options = sum(judges.items(), ())
    complaint(
        novelty, "judge", tmp_path / "novelty.jsonl", *options, "--out", tmp_path / "means.jsonl"
    )
    assert asked == [(2, torch.float32), (1, torch.bfloat16)]


def test_means_of_each_split_and_of_all(judged, judges, capsys):
    judge(judged, judges)  # nothing left to judge
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in capsys.readouterr().out.split("\n")
    ]
    assert lines[0] == ["model", "split", "method", "prompts", "distinct", "utility"]
    keys = [
        (split, method) for split in ("curated", "wildchat", "all") for method in ("base", "soft")
    ]
    assert [tuple(line[1:3]) for line in lines[2:] if line] == keys
    found = {
        (row["split"], row["method"], row["metric"]): row
        for row in read_rows([judged / "means.jsonl"])
    }
    for method in ("base", "soft"):
        rows = read_rows([judged / method / "novelty" / "scores.jsonl"])
        for metric in ("distinct", "utility"):
            one, two = (row[metric] for row in rows)
            assert (
                found["curated", method, metric]["value"] == one
                and found["curated", method, metric]["low"] is None
            )
            both = found["all", method, metric]
            assert both["value"] == pytest.approx((one + two) / 2) and both["n"] == 2
            assert (both["low"], both["high"]) == (
                min(one, two),
                max(one, two),
            )  # a quarter of the resamples each


def test_judging_goes_on_where_it_was_killed(judged, judges, tmp_path):
    shutil.copytree(judged, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "base" / "novelty" / "scores.jsonl"
    first, second = file.read_bytes().splitlines(keepends=True)
    marked = first.replace(b'"tag": 0', b'"tag": 7')
    file.with_name("scores.jsonl.partial").write_bytes(marked + second[:40])
    file.unlink()
    judge(tmp_path, judges)
    assert file.read_bytes() == marked + second  # the first was kept, the second judged again


def test_what_does_not_fit_together_is_one_line(judged, judges, tmp_path, monkeypatch):
    shutil.copytree(judged, tmp_path, dirs_exist_ok=True)
    scores, answers = (
        tmp_path / "base" / "novelty" / "scores.jsonl",
        tmp_path / "base" / "novelty.jsonl",
    )
    before = scores.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(novelty, "load_judge", lambda *args: pytest.fail("work began"))
        for option in ("classifier", "reward"):
            line = judge(tmp_path, judges, complaint, **{option: "another"})
            assert (
                f"{scores} is about other answers or by another judge" in line
                and "remove it" in line
            )
        rows = read_rows([answers])
        write_text(answers, to_jsonl(row | {"draws": ["x"] * 10} for row in rows))
        assert f"{scores} is about other answers" in judge(tmp_path, judges, complaint)
        write_text(answers, to_jsonl(rows[:1]))
        line = judge(tmp_path, judges, complaint)
        assert "was asked of soft and not of base" in line and "wildchat-0" in line
        write_text(answers, to_jsonl(rows))
        (tmp_path / "means.jsonl").write_bytes(before)
        assert "means.jsonl is no file of scores" in judge(tmp_path, judges, complaint)
    (tmp_path / "means.jsonl").unlink()
    assert scores.read_bytes() == before
    for file in tmp_path.glob("*/novelty/scores.jsonl"):
        file.unlink()
    assert "cannot load the judge 'another'" in judge(tmp_path, judges, complaint, reward="another")
    line = judge(tmp_path, judges, complaint, reward=TINY)
    assert "is no trained classifier with 1 label(s)" in line and "score.weight" in line
    line = judge(tmp_path, judges, complaint, classifier=judges["--reward"])
    assert "is no trained classifier with 2 label(s)" in line


def test_a_partial_of_other_judges_is_kept_and_refused(judged, judges, tmp_path):
    shutil.copytree(judged, tmp_path, dirs_exist_ok=True)
    scores = tmp_path / "soft" / "novelty" / "scores.jsonl"
    partial = scores.rename(scores.with_name("scores.jsonl.partial"))
    record = scores.with_suffix(".run.json")
    made = json.loads(record.read_text())
    record.write_text(json.dumps(made | {"inputs": made["inputs"] | {"reward": "another"}}))
    assert "was made with other inputs" in judge(tmp_path, judges, complaint) and partial.exists()


def test_a_judge_that_fails_gives_no_points(judged, judges, tmp_path):
    shutil.copytree(judged, tmp_path, dirs_exist_ok=True)
    (tmp_path / "base" / "novelty" / "scores.jsonl").unlink()
    (tmp_path / "soft" / "novelty" / "scores.jsonl").unlink()
    broken = shutil.copytree(judges["--reward"], tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    nothing = {key: value * torch.nan for key, value in weights.items()}
    save_file(nothing, broken / "model.safetensors", {"format": "pt"})
    assert "gives rewards that are not finite" in judge(
        tmp_path, judges, complaint, reward=str(broken)
    )
    config = json.loads((broken / "tokenizer_config.json").read_text())
    (broken / "tokenizer_config.json").write_text(
        json.dumps(config | {"pad_token": config["eos_token"]})
    )
    assert "has no padding token of its own" in judge(
        tmp_path, judges, complaint, reward=str(broken)
    )


def test_the_benchmarks_own_prompts(tmp_path, monkeypatch):
    """A folder of the data set's name stands in for the hub's, whose files the same package reads."""
    flags = ("--model", TINY, "--n", 2, "--max-tokens", 8, "--out", tmp_path / "novelty.jsonl")
    line = complaint(novelty, "draw", *flags)
    assert "cannot load the data set yimingzhang/novelty-bench" in line and "--prompts FILE" in line
    datasets = pytest.importorskip("datasets", reason="needs requirements-extras.txt")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for split in ("curated", "wildchat"):
        rows = [
            {"id": f"{split}-{i}", "prompt": f"Name a random {name}."}
            for i, name in enumerate(("city", "fish"))
        ]
        write_text(Path(novelty.PROMPTS) / f"{split}.jsonl", to_jsonl(rows))
    files = "".join(
        f"  - split: {split}\n    path: {split}.jsonl\n" for split in ("curated", "wildchat")
    )
    write_text(
        Path(novelty.PROMPTS) / "README.md",
        f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n",
    )
    call(novelty, "draw", *flags, "--split", "curated", "wildchat")
    rows = read_rows([tmp_path / "novelty.jsonl"])
    assert [(row["id"], row["split"]) for row in rows] == [
        (f"{split}-{i}", split) for split in ("curated", "wildchat") for i in (0, 1)
    ]


def test_a_tokenizer_of_debertas_kind_loads(tmp_path):
    """The published classifier's tokenizer is a SentencePiece file, which other packages have to convert."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="needs requirements-extras.txt")
    pieces = {
        "pad_piece": "[PAD]",
        "bos_piece": "[CLS]",
        "eos_piece": "[SEP]",
        "unk_piece": "[UNK]",
    }
    ids = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(f"{a} {b} is" for a in ("a", "the", "one") for b in sample.CATEGORIES), vocab_size=180,
        model_prefix=str(tmp_path / "spm"), minloglevel=2, user_defined_symbols=["[MASK]"], **pieces, **ids,
    )  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false, "vocab_type": "spm"}')
    config = {
        "model_type": "deberta-v2",
        "vocab_size": 190,
        "hidden_size": 32,
        "num_hidden_layers": 1,
    }
    config |= {
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "type_vocab_size": 0,
        "num_labels": 2,
    }
    DebertaV2ForSequenceClassification(DebertaV2Config(**config)).save_pretrained(tmp_path)
    model, tokenizer = novelty.load_judge(str(tmp_path), 2, torch.float32)
    assert (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id) == (1, 2, 0)
    ids = tokenizer("one bird is", add_special_tokens=False)["input_ids"]
    assert 3 not in ids and tokenizer.decode(ids) == "one bird is"
    five, six = "one bird is the fish", "one bird is the fish tree"
    with torch.inference_mode():
        assert novelty.classify(model, tokenizer, [five, five, six, six])[1::2] in ([0, 0], [0, 1])


def test_help_is_the_docstring(capsys):
    with pytest.raises(SystemExit) as ending:
        call(novelty, "--help")
    assert ending.value.code == 0 and novelty.__doc__.strip() in capsys.readouterr().out
    assert len(novelty.__doc__.splitlines()) <= 25
    assert "--help lists the options" in complaint(novelty, "--nonsense")
