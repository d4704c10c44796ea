"""NoveltyBench, offline: its rules by hand, its draws, judges that really judge, and resuming.

The judges here are tiny classifiers with random weights, so the tests say nothing about the quality
of a judgement. Nor do they read the real prompts, which are on the hub.
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

# --------------------------------------------------------------------------------------- the rules


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
    assert novelty.same_words(a, b) is same
    assert novelty.same_words(b, a) is same


def test_an_answer_joins_the_first_class_whose_first_member_is_the_same():
    """Answer 2 equals answer 1 only, which is not the first of its class, so 2 opens a class.

    Answer 3 equals the first members of both classes, and joins the first class.
    """
    same = np.zeros((5, 5), bool)
    for i, j in ((0, 1), (1, 2), (0, 3), (2, 3), (2, 4)):
        same[i, j] = True
    assert novelty.greedy_classes(same) == [0, 0, 1, 0, 1]


def test_nine_cuts_divide_rewards_into_ten_points():
    cuts = [-7.71875, -6.28125, -6, -5.71875, -5.5, -5, -4.375, -3.4375, -2.046875]
    assert [novelty.reward_points(cut) for cut in cuts] == list(range(1, 10))
    assert [novelty.reward_points(cut + 1e-3) for cut in cuts] == list(range(2, 11))
    assert novelty.reward_points(-math.inf) == 1
    assert novelty.reward_points(50.0) == 10


@pytest.mark.parametrize(
    "scores, utility",
    [
        ([10] * 10, 10),
        ([10] + [0] * 9, 10 * 0.2 / (1 - 0.8**10)),  # a geometric series
        ([5, 0, 4], (5 + 4 * 0.64) / (1 + 0.8 + 0.64)),
        ([7], 7),
    ],
)
def test_utility_discounts_later_answers(scores, utility):
    assert novelty.utility(scores) == pytest.approx(utility, rel=1e-12)


def test_the_discount_is_the_patience():
    assert novelty.utility([3, 1], patience=0.5) == pytest.approx(3.5 / 1.5)


# ------------------------------------------------------------------------------ answers and judges

SPLITS = ("curated", "wildchat")
PROMPTS = ("Name a random city.", sample.MCQ)


@pytest.fixture(scope="module")
def drawn(adapters, tmp_path_factory) -> Path:
    """A folder with <method>/novelty.jsonl of the base model and of an adapter.

    They were asked one prompt of each split.
    """
    folder = tmp_path_factory.mktemp("novelty")
    rows = []
    for split, prompt in zip(SPLITS, PROMPTS, strict=True):
        rows.append({"id": f"{split}-0", "split": split, "prompt": prompt, "tag": 0})
    write_text(folder / "mine.jsonl", to_jsonl(rows))
    for method, adapter in (("base", ()), ("soft", ("--adapter", adapters["soft"]))):
        flags = ("--prompts", folder / "mine.jsonl", "--max-tokens", 20)
        out = folder / method / "novelty.jsonl"
        call(novelty, "draw", "--model", TINY, *adapter, *flags, "--out", out)
    return folder


@pytest.fixture(scope="module")
def judges(tmp_path_factory, drawn) -> dict[str, str]:
    """The options for a classifier that reads pairs and a reward model that reads chats.

    Both are tiny and random, but adjusted so that they tell the base model's answers apart.
    """
    folder = tmp_path_factory.mktemp("judges")
    draws = read_rows([drawn / "base" / "novelty.jsonl"])[1]["draws"]
    texts = [draw.removesuffix("…") for draw in draws]
    torch.manual_seed(0)
    save_classifier(folder / "same", texts)
    save_reward_model(folder / "good", texts)
    return {"--classifier": str(folder / "same"), "--reward": str(folder / "good")}


def save_classifier(folder: Path, texts: list[str]) -> None:
    """A random DeBERTa of two labels, in bfloat16, whose threshold separates pairs of texts."""
    backend = Tokenizer(models.BPE(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    marks = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    options = {"vocab_size": 180, "special_tokens": list(marks.values()), "show_progress": False}
    backend.train_from_iterator(sample.CATEGORIES, trainers.BpeTrainer(**options))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **marks)
    tokenizer.save_pretrained(folder)

    config = DebertaV2Config(
        vocab_size=190,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        max_relative_positions=-1,
        type_vocab_size=0,
        num_labels=2,
        initializer_range=0.3,
    )
    classifier = DebertaV2ForSequenceClassification(config).eval()

    # Shift the second logit so that 45 % of the neighbouring texts are the same.
    differences = []
    with torch.inference_mode():
        for a, b in zip(texts, texts[1:], strict=False):
            ids = tokenizer(a, b, return_tensors="pt")["input_ids"]
            no, yes = classifier(input_ids=ids).logits[0]
            differences.append(yes - no)
        threshold = math.log(0.102 / 0.898)
        classifier.classifier.bias[1] -= torch.stack(differences).quantile(0.55) - threshold
    classifier.to(torch.bfloat16).save_pretrained(folder)


def save_reward_model(folder: Path, texts: list[str]) -> None:
    """The bundled model with a reward head, whose rewards spread about -5, where the cuts are."""
    reward = Qwen3ForSequenceClassification.from_pretrained(TINY, num_labels=1, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    hidden = []  # for each text, the vector from which the head reads the reward

    def keep(module, inputs):
        hidden.append(inputs[0][0, -1])

    hook = reward.score.register_forward_pre_hook(keep)
    with torch.inference_mode():
        for text in texts:
            talk = [{"role": "user", "content": PROMPTS[1]}, {"role": "assistant", "content": text}]
            chat = tokenizer.apply_chat_template(talk, tokenize=False)
            reward(**tokenizer(chat, return_tensors="pt"))
        hook.remove()

        vectors = torch.stack(hidden)
        mean = vectors.mean(0)
        # Along the second principal direction, texts with the same beginning differ, too.
        direction = torch.linalg.svd(vectors - mean).Vh[1]
        direction -= direction @ mean / mean.square().sum() * mean
        spread = 2 * direction / (vectors @ direction).std()
        reward.score.weight.copy_((spread - 5 * mean / mean.square().sum())[None])
    reward.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def judge(folder: Path, judges: dict[str, str], command=call, **others: str):
    """Run `novelty.py judge` on a folder's files; `others` replaces one of the judges."""
    options = judges | {f"--{key}": value for key, value in others.items()}
    flags = [word for option in options.items() for word in option]
    files = sorted(folder.glob("*/novelty.jsonl"))
    return command(novelty, "judge", *files, *flags, "--out", folder / "means.jsonl")


@pytest.fixture(scope="module")
def judged(drawn, judges) -> Path:
    judge(drawn, judges)
    return drawn


@pytest.fixture
def copied(judged, tmp_path) -> Path:
    """A copy of the judged folder, to change."""
    return shutil.copytree(judged, tmp_path, dirs_exist_ok=True)


# --------------------------------------------------------------------------------------- the draws


@pytest.mark.parametrize("method", ["base", "soft"])
def test_draws_are_rows_like_those_of_other_axes(drawn, method):
    rows = read_rows([drawn / method / "novelty.jsonl"])
    assert [row["id"] for row in rows] == ["curated-0", "wildchat-0"]
    keys = "id split prompt tag model method axis draws tokens seconds"
    for row in rows:
        assert set(row) >= set(keys.split())
        assert (row["model"], row["method"], row["axis"]) == (TINY, method, "novelty")
        assert len(row["draws"]) == 10
        assert len(set(row["draws"])) > 1  # each draw has random numbers of its own
    # 20 tokens are not enough for a question, so some draws were cut.
    assert any(draw.endswith("…") for draw in rows[1]["draws"])


def test_draws_that_are_there_are_not_replaced(drawn):
    flags = ("--prompts", drawn / "mine.jsonl", "--max-tokens", 20)
    out = drawn / "base" / "novelty.jsonl"
    line = complaint(novelty, "draw", "--model", TINY, *flags, "--out", out)
    assert f"{out} already exists" in line


def test_sample_draws_the_same_answers_in_smaller_batches(drawn, tmp_path):
    out = tmp_path / "open.jsonl"
    flags = ("--prompts", drawn / "mine.jsonl", "--n", 10, "--max-tokens", 20, "--rows", 7)
    call(sample, "open", "--model", TINY, *flags, "--out", out)
    files = (out, drawn / "base" / "novelty.jsonl")
    ours, theirs = ([row["draws"] for row in read_rows([file])] for file in files)
    assert ours == theirs


# ----------------------------------------------------------------------------------- the judgement


def test_judgements_are_those_of_one_text_at_a_time(judged, judges):
    """The same figures from the models alone, without batches and without padding."""
    load = AutoModelForSequenceClassification.from_pretrained
    tokenizer = AutoTokenizer.from_pretrained(judges["--classifier"])
    classifier = load(judges["--classifier"], dtype=torch.float32).eval()
    reader = AutoTokenizer.from_pretrained(judges["--reward"])
    reward = load(judges["--reward"], dtype=torch.float32).eval()
    reward.config.pad_token_id = reader.pad_token_id
    verdicts = set()
    all_points = set()

    def same(a: str, b: str) -> bool:
        longer = max(len(a.split()), len(b.split()))
        if longer <= 5:
            return 2 * len(set(a.lower().split()) & set(b.lower().split())) >= longer
        a, b = (tokenizer(text, add_special_tokens=False)["input_ids"][:128] for text in (a, b))
        separator = tokenizer.sep_token_id
        pair = torch.tensor([[tokenizer.cls_token_id, *a, separator, *b, separator]])
        with torch.inference_mode():
            probs = classifier(input_ids=pair).logits.softmax(-1)
        verdict = probs[0, 1].item() > 0.102
        verdicts.add(verdict)
        return verdict

    def points(prompt: str, text: str) -> int:
        talk = [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
        chat = reader.apply_chat_template(talk, tokenize=False)
        ids = reader(chat, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            value = reward(input_ids=ids).logits.item()
        return 1 + sum(value > cut for cut in novelty.REWARD_CUTS)

    for method in ("base", "soft"):
        rows = read_rows([judged / method / "novelty" / "scores.jsonl"])
        for row, asked in zip(rows, read_rows([judged / method / "novelty.jsonl"]), strict=True):
            assert row["generations"] == [draw.removesuffix("…") for draw in asked["draws"]]
            classes, scores = [], []
            for text in row["generations"]:
                members = next((members for members in classes if same(members[0], text)), None)
                if members:
                    members.append(text)
                    scores.append(0)
                else:
                    classes.append([text])
                    scores.append(points(row["prompt"], text))

            assert row["distinct"] == len(classes) == max(row["partition"]) + 1
            assert row["generation_scores"] == scores
            assert row["partition_scores"] == [score for score in scores if score > 0]
            weights = [0.8**i for i in range(10)]
            total = sum(weight * score for weight, score in zip(weights, scores, strict=True))
            assert row["utility"] == pytest.approx(total / sum(weights))
            assert {"id", "prompt", "model", "method", "split", "tag"} <= set(row)
            assert "draws" not in row
            all_points |= set(row["partition_scores"])

    # The random judges do tell texts apart.
    assert verdicts == {True, False}
    assert len(all_points) > 2


def test_the_classifier_of_a_bfloat16_checkpoint_runs_in_float32(judges):
    config = json.loads((Path(judges["--classifier"]) / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    model, _ = novelty.load_judge(judges["--classifier"], 2, torch.float32)
    assert model.dtype == torch.float32


def test_the_classifier_is_in_float32_on_a_gpu_as_well(drawn, judges, tmp_path, monkeypatch):
    """In bfloat16, the threshold of .102 would lie between two neighbouring numbers."""
    asked = []

    def load_judge(name, labels, dtype):
        asked.append((labels, dtype))
        if labels == 1:
            raise InputError("that is enough")

    shutil.copy(drawn / "base" / "novelty.jsonl", tmp_path)
    monkeypatch.setattr(novelty, "load_judge", load_judge)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    flags = [word for option in judges.items() for word in option]
    out = tmp_path / "means.jsonl"
    line = complaint(novelty, "judge", tmp_path / "novelty.jsonl", *flags, "--out", out)
    assert "that is enough" in line
    assert asked == [(2, torch.float32), (1, torch.bfloat16)]


def test_means_of_each_split_and_of_all_prompts(judged, judges, capsys):
    capsys.readouterr()
    judge(judged, judges)  # nothing is left to judge
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert cells[0] == ["model", "split", "method", "prompts", "distinct", "utility"]
    groups = [(split, method) for split in (*SPLITS, "all") for method in ("base", "soft")]
    assert [tuple(line[1:3]) for line in cells[2:]] == groups

    means = {}
    for row in read_rows([judged / "means.jsonl"]):
        means[row["split"], row["method"], row["metric"]] = row
    for method in ("base", "soft"):
        rows = read_rows([judged / method / "novelty" / "scores.jsonl"])
        for metric in ("distinct", "utility"):
            one, two = (row[metric] for row in rows)
            curated = means["curated", method, metric]
            assert curated["value"] == one
            assert curated["low"] is None
            both = means["all", method, metric]
            assert both["value"] == pytest.approx((one + two) / 2)
            assert both["n"] == 2
            # A quarter of the resamples is twice the one prompt, a quarter twice the other.
            assert (both["low"], both["high"]) == (min(one, two), max(one, two))


# -------------------------------------------------------------------------- resuming, and mistakes


def test_judging_goes_on_where_it_was_killed(copied, judges):
    file = copied / "base" / "novelty" / "scores.jsonl"
    first, second = file.read_bytes().splitlines(keepends=True)
    marked = first.replace(b'"tag": 0', b'"tag": 7')
    file.with_name("scores.jsonl.partial").write_bytes(marked + second[:40])
    file.unlink()
    judge(copied, judges)
    assert file.read_bytes() == marked + second  # the first was kept, the second judged again


def test_a_partial_result_of_other_judges_is_kept_and_is_an_error(copied, judges):
    scores = copied / "soft" / "novelty" / "scores.jsonl"
    partial = scores.rename(scores.with_name("scores.jsonl.partial"))
    record = scores.with_suffix(".run.json")
    made = json.loads(record.read_text())
    made["inputs"]["reward"] = "another"
    record.write_text(json.dumps(made))
    assert "was made with different inputs" in judge(copied, judges, complaint)
    assert partial.exists()


@pytest.fixture
def untouched(copied, monkeypatch) -> Path:
    """A copy of the judged folder for files that do not belong together.

    That is found before any judge is loaded, and no score changes.
    """
    monkeypatch.setattr(novelty, "load_judge", lambda *args: pytest.fail("work began"))
    scores = copied / "base" / "novelty" / "scores.jsonl"
    before = scores.read_bytes()
    yield copied
    assert scores.read_bytes() == before


@pytest.mark.parametrize("option", ["classifier", "reward"])
def test_scores_by_another_judge_are_an_error(untouched, judges, option):
    line = judge(untouched, judges, complaint, **{option: "another"})
    scores = untouched / "base" / "novelty" / "scores.jsonl"
    assert f"{scores} was made from other answers or by another judge" in line
    assert "remove it" in line


def test_scores_of_other_answers_are_an_error(untouched, judges):
    answers = untouched / "base" / "novelty.jsonl"
    rows = [row | {"draws": ["x"] * 10} for row in read_rows([answers])]
    write_text(answers, to_jsonl(rows))
    line = judge(untouched, judges, complaint)
    assert f"{untouched / 'base' / 'novelty' / 'scores.jsonl'} was made from other answers" in line


UNFIT = [
    ({"axis": "open"}, "expected rows of `novelty.py draw`"),
    ({"draws": ["x"] * 9}, "different numbers of answers"),
    ({"method": "other"}, "is already in"),  # beside the first method in one file
]


@pytest.mark.parametrize("change, said", UNFIT)
def test_rows_that_cannot_be_judged_are_an_error(untouched, judges, change, said):
    answers = untouched / "base" / "novelty.jsonl"
    rows = read_rows([answers])
    others = [row | change for row in rows]
    write_text(answers, to_jsonl(rows + others if "method" in change else others))
    assert said in judge(untouched, judges, complaint)


def test_methods_that_were_asked_different_prompts_are_an_error(untouched, judges):
    answers = untouched / "base" / "novelty.jsonl"
    write_text(answers, to_jsonl(read_rows([answers])[:1]))
    line = judge(untouched, judges, complaint)
    assert "was asked of soft but not of base" in line
    assert "wildchat-0" in line


def test_a_file_that_holds_no_scores_is_not_replaced(untouched, judges):
    shutil.copy(untouched / "base" / "novelty" / "scores.jsonl", untouched / "means.jsonl")
    before = (untouched / "means.jsonl").read_bytes()
    assert "means.jsonl is not a file of scores" in judge(untouched, judges, complaint)
    assert (untouched / "means.jsonl").read_bytes() == before


@pytest.fixture
def unjudged(copied) -> Path:
    for scores in copied.glob("*/novelty/scores.jsonl"):
        scores.unlink()
    return copied


def test_a_model_that_is_no_judge_is_an_error(unjudged, judges):
    line = judge(unjudged, judges, complaint, reward="another")
    assert "cannot load the judge 'another'" in line
    line = judge(unjudged, judges, complaint, reward=TINY)
    assert "is not a trained classifier with 1 label(s)" in line
    assert "score.weight" in line
    line = judge(unjudged, judges, complaint, classifier=judges["--reward"])
    assert "is not a trained classifier with 2 label(s)" in line


def test_a_reward_model_that_fails_gives_no_points(unjudged, judges):
    broken = shutil.copytree(judges["--reward"], unjudged / "broken")
    weights = load_file(broken / "model.safetensors")
    nothing = {key: value * torch.nan for key, value in weights.items()}
    save_file(nothing, broken / "model.safetensors", {"format": "pt"})
    line = judge(unjudged, judges, complaint, reward=str(broken))
    assert "gives rewards that are not finite" in line


def test_a_judge_without_a_padding_token_is_an_error(unjudged, judges):
    changed = shutil.copytree(judges["--reward"], unjudged / "changed")
    config = json.loads((changed / "tokenizer_config.json").read_text())
    config["pad_token"] = config["eos_token"]
    (changed / "tokenizer_config.json").write_text(json.dumps(config))
    line = judge(unjudged, judges, complaint, reward=str(changed))
    assert "has no padding token of its own" in line


# ------------------------------------------------------------------ what the real benchmark brings


def test_without_the_data_set_one_line_says_so(tmp_path):
    line = complaint(novelty, "draw", "--model", TINY, "--out", tmp_path / "novelty.jsonl")
    assert "cannot load the data set yimingzhang/novelty-bench" in line
    assert "--prompts FILE" in line


def test_the_prompts_of_the_data_set(tmp_path, monkeypatch):
    """A folder of the data set's name takes the hub's place; the same package reads its files."""
    datasets = pytest.importorskip("datasets", reason="needs requirements-extras.txt")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    header = "---\nconfigs:\n- config_name: default\n  data_files:\n"
    for split in SPLITS:
        rows = [
            {"id": f"{split}-0", "prompt": "Name a random city."},
            {"id": f"{split}-1", "prompt": "Name a random fish."},
        ]
        write_text(Path(novelty.PROMPTS) / f"{split}.jsonl", to_jsonl(rows))
        header += f"  - split: {split}\n    path: {split}.jsonl\n"
    write_text(Path(novelty.PROMPTS) / "README.md", f"{header}---\n")

    flags = ("--n", 2, "--max-tokens", 8, "--out", tmp_path / "novelty.jsonl")
    call(novelty, "draw", "--model", TINY, *flags, "--split", *SPLITS)
    found = [(row["id"], row["split"]) for row in read_rows([tmp_path / "novelty.jsonl"])]
    assert found == [(f"{split}-{i}", split) for split in SPLITS for i in (0, 1)]


def test_a_tokenizer_like_debertas_loads(tmp_path):
    """The published classifier's tokenizer is a SentencePiece file, which has to be converted."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="needs requirements-extras.txt")
    articles = ("a", "the", "one")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(f"{a} {b} is" for a in articles for b in sample.CATEGORIES),
        vocab_size=180,
        model_prefix=str(tmp_path / "spm"),
        minloglevel=2,
        user_defined_symbols=["[MASK]"],
        pad_piece="[PAD]",
        bos_piece="[CLS]",
        eos_piece="[SEP]",
        unk_piece="[UNK]",
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
    )
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false, "vocab_type": "spm"}')
    config = DebertaV2Config(
        vocab_size=190,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        type_vocab_size=0,
        num_labels=2,
    )
    DebertaV2ForSequenceClassification(config).save_pretrained(tmp_path)

    model, tokenizer = novelty.load_judge(str(tmp_path), 2, torch.float32)
    assert (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id) == (1, 2, 0)
    ids = tokenizer("one bird is", add_special_tokens=False)["input_ids"]
    assert 3 not in ids
    assert tokenizer.decode(ids) == "one bird is"
    five, six = "one bird is the fish", "one bird is the fish tree"
    with torch.inference_mode():
        classes = novelty.classify(model, tokenizer, [five, five, six, six])
    assert classes[1::2] in ([0, 0], [0, 1])


def test_help_prints_the_docstring(capsys):
    with pytest.raises(SystemExit) as ending:
        call(novelty, "--help")
    assert ending.value.code == 0
    assert novelty.__doc__.strip() in capsys.readouterr().out
    assert len(novelty.__doc__.splitlines()) <= 25


def test_a_wrong_option_is_one_line():
    assert "--help lists the options" in complaint(novelty, "--nonsense")
