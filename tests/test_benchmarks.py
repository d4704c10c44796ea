"""NoveltyBench, retention and the bridges to other tools, offline: real loading, batching, resuming and formats.

The judges of NoveltyBench are tiny random classifiers, so the quality of their judgement is not tested; nor are the
real data sets, which are on the hub.
"""

import functools
import gc
import json
import math
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ENV, ROOT, TINY, call, complaint
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    GenerationConfig,
    Qwen3ForSequenceClassification,
)

import metrics
import sample
import trie
from distributions import read_jsonl, write_jsonl

lm_eval = pytest.importorskip("lm_eval", reason="needs requirements-benchmarks.txt")
lm_eval_tasks = pytest.importorskip("lm_eval.tasks")

# ----------------------------------------------------------------------------------------------- NoveltyBench


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
    assert metrics.same_words(a, b) is same and metrics.same_words(b, a) is same


def test_classes_are_greedy():
    """Answer 2 is like 1, but 1 went to 0's class, whose first member is 0: so 2 opens a class. 3 could join both."""
    same = np.zeros((5, 5), bool)
    for i, j in ((0, 1), (1, 2), (0, 3), (2, 3), (2, 4)):
        same[i, j] = True
    assert metrics.greedy_classes(same) == [0, 0, 1, 0, 1]


def test_rewards_are_cut_into_ten():
    cuts = [-7.71875, -6.28125, -6, -5.71875, -5.5, -5, -4.375, -3.4375, -2.046875]
    assert [metrics.reward_points(cut) for cut in cuts] == list(range(1, 10))
    assert [metrics.reward_points(cut + 1e-3) for cut in cuts] == list(range(2, 11))
    assert metrics.reward_points(-math.inf) == 1 and metrics.reward_points(50.0) == 10


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
    assert metrics.novelty_utility(scores) == pytest.approx(utility, rel=1e-12)
    assert metrics.novelty_utility([3, 1], patience=0.5) == pytest.approx(3.5 / 1.5)


@pytest.fixture(scope="module")
def generated(adapters, tmp_path_factory):
    """Folders with the answers of the base model and of an adapter to two prompts."""
    folder = tmp_path_factory.mktemp("novelty")
    prompts = ("Name a random city.", sample.MCQ)
    write_jsonl(folder / "mine.jsonl", [{"id": f"curated-{i}", "prompt": p, "tag": i} for i, p in enumerate(prompts)])
    for name, adapter in (("base", ()), ("soft", ("--adapter", adapters["soft"]))):
        flags = ("--prompts", folder / "mine.jsonl", "--max-tokens", 60, "--out", folder / name / "generations.jsonl")
        call(sample, "novelty", "--model", TINY, *adapter, *flags)
    return folder


@pytest.fixture(scope="module")
def judges(tmp_path_factory, generated) -> dict[str, str]:
    """A classifier with DeBERTa's own kind of files, and a reward model. Both are tiny, random and of strong opinions."""
    import sentencepiece

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("judges")
    words = [f"{a} {b} {c}" for a in ("a", "the", "one") for b in sample.CATEGORIES for c in ("is", "of", "or not")]
    pieces = {"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"}
    ids = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3}
    (folder / "same").mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words), model_prefix=str(folder / "same" / "spm"), vocab_size=180, minloglevel=2,
        user_defined_symbols=["[MASK]"], **pieces, **ids,
    )  # fmt: skip
    (folder / "same" / "tokenizer_config.json").write_text('{"do_lower_case": false, "vocab_type": "spm"}')
    size = {"vocab_size": 190, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    relative = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": -1}
    config = DebertaV2Config(
        **size, **relative, intermediate_size=64, type_vocab_size=0, num_labels=2, initializer_range=0.3
    )
    classifier = DebertaV2ForSequenceClassification(config).eval()
    classifier.save_pretrained(folder / "same")
    tokenizer = AutoTokenizer.from_pretrained(folder / "same")
    texts = read_jsonl(generated / "base" / "generations.jsonl")[1]["generations"]
    with torch.inference_mode():  # a threshold that some pairs pass and some do not
        pairs = [tokenizer(a, b, return_tensors="pt")["input_ids"] for a, b in zip(texts, texts[1:], strict=False)]
        logits = torch.cat([classifier(input_ids=pair).logits for pair in pairs])
        classifier.classifier.bias[1] -= (logits[:, 1] - logits[:, 0]).quantile(0.55) - math.log(0.102 / 0.898)
    classifier.save_pretrained(folder / "same")

    reward = Qwen3ForSequenceClassification.from_pretrained(TINY, num_labels=1, dtype=torch.float32)
    reader = AutoTokenizer.from_pretrained(TINY)
    with torch.inference_mode():  # rewards around -5, where the cuts are
        logits = torch.cat([reward(**reader(text + "<|im_end|>\n", return_tensors="pt")).logits for text in texts])
        reward.score.weight *= -5 / logits.mean()
    reward.save_pretrained(folder / "good")
    reader.save_pretrained(folder / "good")
    return {"--classifier": str(folder / "same"), "--reward": str(folder / "good")}


@pytest.fixture(scope="module")
def judged(generated, judges):
    call(metrics, "novelty", generated / "base", generated / "soft", *flat(judges))
    return generated


def flat(options: dict) -> list:
    return [word for pair in options.items() for word in pair]


def test_generations_are_in_the_benchmarks_form(judged):
    for name, model in (("base", TINY), ("soft", f"{TINY} + soft")):
        rows = read_jsonl(judged / name / "generations.jsonl")
        assert [row["id"] for row in rows] == ["curated-0", "curated-1"] and [row["tag"] for row in rows] == [0, 1]
        for row in rows:
            assert set(row) == {"id", "prompt", "tag", "model", "generations"} and row["model"] == model
            assert len(row["generations"]) == 10 and all(isinstance(text, str) for text in row["generations"])
            assert len(set(row["generations"])) > 1  # ten streams of random numbers


def test_judgement_equals_one_pair_at_a_time(judged, judges):
    """The files' numbers from the models alone, one text at a time, no batch, no padding."""
    tokenizer = AutoTokenizer.from_pretrained(judges["--classifier"])
    classifier = AutoModelForSequenceClassification.from_pretrained(judges["--classifier"]).eval()
    reader = AutoTokenizer.from_pretrained(judges["--reward"])
    reward = AutoModelForSequenceClassification.from_pretrained(judges["--reward"]).eval()
    reward.config.pad_token_id = reader.pad_token_id

    @torch.inference_mode()
    def same(a, b):
        if max(len(a.split()), len(b.split())) <= 5:
            return 2 * len(set(a.lower().split()) & set(b.lower().split())) >= max(len(a.split()), len(b.split()))
        a, b = (tokenizer(text, add_special_tokens=False)["input_ids"][:128] for text in (a, b))
        pair = torch.tensor([[tokenizer.cls_token_id, *a, tokenizer.sep_token_id, *b, tokenizer.sep_token_id]])
        verdicts.append(classifier(input_ids=pair).logits.softmax(-1)[0, 1].item() > 0.102)
        return verdicts[-1]

    verdicts, all_points = [], set()
    for name in ("base", "soft"):
        for row in read_jsonl(judged / name / "scores.jsonl"):
            classes, scores = [], []
            for text in row["generations"]:
                for members in classes:
                    if same(members[0], text):
                        members.append(text)
                        scores.append(0)
                        break
                else:
                    classes.append([text])
                    talk = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": text}]
                    ids = reader(reader.apply_chat_template(talk, tokenize=False), return_tensors="pt")["input_ids"]
                    with torch.inference_mode():
                        value = reward(input_ids=ids).logits.item()
                    scores.append(1 + sum(value > cut for cut in metrics.REWARD_CUTS))
                    all_points.add(scores[-1])
            assert row["distinct"] == len(classes) == max(row["partition"]) + 1
            assert row["generation_scores"] == scores and [s for s in scores if s] == row["partition_scores"]
            weights = [0.8**i for i in range(10)]
            assert row["utility"] == pytest.approx(sum(map(np.multiply, weights, scores)) / sum(weights))
    assert {True, False} == set(verdicts) and len(all_points) > 2  # the random judges do tell texts apart


def test_summary_table_and_the_other_benchmarks_files(judged, judges, tmp_path, capsys):
    call(metrics, "novelty", judged / "base", judged / "soft", *flat(judges))  # nothing left to judge
    page = capsys.readouterr().out
    assert "NoveltyBench" in page and [line.split("|")[2].strip() for line in page.split("\n") if TINY in line] == [
        "base",
        "soft",
    ]
    for name in ("base", "soft"):
        scores = read_jsonl(judged / name / "scores.jsonl")
        means = {f"mean_{key}": np.mean([row[key] for row in scores]) for key in ("distinct", "utility")}
        assert json.loads((judged / name / "summary.json").read_text()) == pytest.approx(means)
    # Somebody else's scores, with nothing of ours around: the same utility, and a false one is found out.
    theirs = tmp_path / "theirs"
    write_jsonl(theirs / "scores.jsonl", [row | {"model": "gpt"} for row in read_jsonl(judged / "base/scores.jsonl")])
    call(metrics, "novelty", theirs)
    assert (theirs / "summary.json").read_bytes() == (judged / "base" / "summary.json").read_bytes()
    call(metrics, theirs / "scores.jsonl", judged / "soft" / "scores.jsonl", "--out", tmp_path / "s.jsonl")
    rows = read_jsonl(tmp_path / "s.jsonl")
    assert [(r["model"], r["method"], r["metric"], r["n"]) for r in rows] == [
        (model, method, metric, 2) for model, method in (("gpt", "base"), (TINY, "soft")) for metric in ("distinct", "utility")
    ]  # fmt: skip
    wrong = read_jsonl(judged / "base" / "scores.jsonl")
    wrong[1]["utility"] += 0.01
    write_jsonl(theirs / "scores.jsonl", wrong)
    assert "scores.jsonl:2: utility is " in complaint(metrics, "novelty", theirs)


def test_judging_goes_on_where_it_was_killed_or_where_the_other_tool_stopped(judged, judges, tmp_path):
    base, again = judged / "base", tmp_path / "again"
    shutil.copytree(base, again)
    for name in ("scores.jsonl", "partitions.jsonl"):
        first, second = (base / name).read_bytes().splitlines(keepends=True)
        marked = first.replace(b'"tag": 0', b'"tag": 7')
        (base / f"{name}.partial").write_bytes(marked + second[:40])
        (base / name).unlink()
        (base / "scores.jsonl").unlink(missing_ok=True)
        call(metrics, "novelty", base, *flat(judges))
        assert (base / name).read_bytes() == marked + second  # the first was kept, the second judged again
        shutil.copytree(again, base, dirs_exist_ok=True)
    for name in ("generations.jsonl", "partitions.jsonl.run.json", "scores.jsonl", "scores.jsonl.run.json"):
        (again / name).unlink()
    call(metrics, "novelty", again, *flat(judges))  # from partitions alone
    assert (again / "scores.jsonl").read_bytes() == (judged / "base" / "scores.jsonl").read_bytes()


def test_what_does_not_fit_together_is_one_line(judged, judges, tmp_path):
    folder = tmp_path / "base"
    again = lambda: shutil.copytree(judged / "base", folder, dirs_exist_ok=True)
    again()
    judge = lambda **other: complaint(
        metrics, "novelty", folder, *flat(judges | {f"--{k}": v for k, v in other.items()})
    )
    for option, file in (("classifier", "partitions"), ("reward", "scores")):
        line = judge(**{option: "another"})
        assert f"{file}.jsonl was made with" in line and "remove it to judge by 'another'" in line
    rows = read_jsonl(folder / "generations.jsonl")
    write_jsonl(folder / "generations.jsonl", [row | {"generations": ["x"] * 10} for row in rows])
    assert "partitions.jsonl is not about what the files before it have" in judge()
    (folder / "partitions.jsonl").unlink()
    assert "scores.jsonl is not about what the files before it have" in judge()
    again()
    write_jsonl(
        folder / "partitions.jsonl", [r | {"partition": [0] * 10} for r in read_jsonl(folder / "partitions.jsonl")]
    )
    assert "scores.jsonl is not about what the files before it have" in judge()
    again()
    write_jsonl(folder / "partitions.jsonl", read_jsonl(folder / "partitions.jsonl")[:1])
    assert "partitions.jsonl is not about what the files before it have" in judge()
    again()
    write_jsonl(folder / "scores.jsonl", [row | {"utility": None} for row in read_jsonl(folder / "scores.jsonl")])
    assert "scores.jsonl:1: utility is None" in judge()
    (folder / "scores.jsonl").unlink()
    assert "cannot load the judge 'another'" in judge(reward="another")
    line = judge(reward=TINY)
    assert "is no trained classifier with 1 label(s)" in line and "score.weight" in line
    (folder / "partitions.jsonl").unlink()
    line = judge(classifier=judges["--reward"])
    assert "is no trained classifier with 2 label(s)" in line
    write_jsonl(folder / "generations.jsonl", [rows[0], rows[1] | {"generations": [None] * 10}])
    assert "generations.jsonl:2: generations must be a list of texts" in judge()
    assert "generations.jsonl" in complaint(metrics, "novelty", tmp_path / "nothing")
    line = complaint(sample, "novelty", "--model", TINY, "--out", folder / "g.jsonl")
    assert "cannot load the data set yimingzhang/novelty-bench" in line and "--prompts FILE.jsonl" in line


def test_a_judge_that_fails_gives_no_points(judged, judges, tmp_path):
    folder = shutil.copytree(judged / "base", tmp_path / "base", ignore=shutil.ignore_patterns("scores*"))
    broken = shutil.copytree(judges["--reward"], tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    save_file(
        {key: value * torch.nan for key, value in weights.items()}, broken / "model.safetensors", {"format": "pt"}
    )
    flags = ("novelty", folder, "--classifier", judges["--classifier"], "--reward", broken)
    assert "gives rewards that are not finite" in complaint(metrics, *flags)
    config = json.loads((broken / "tokenizer_config.json").read_text())
    (broken / "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": config["eos_token"]}))
    assert "has no padding token of its own" in complaint(metrics, *flags)


def test_one_judge_at_a_time(generated, judges, tmp_path, monkeypatch):
    folder, load = shutil.copytree(generated / "soft", tmp_path / "soft"), metrics.load_reward
    for name in ("partitions.jsonl", "scores.jsonl"):
        (folder / name).unlink(missing_ok=True)
    alive = lambda: any(isinstance(thing, DebertaV2ForSequenceClassification) for thing in gc.get_objects())
    monkeypatch.setattr(metrics, "load_reward", lambda name: alive() and pytest.fail("two judges") or load(name))
    call(metrics, "novelty", folder, *flat(judges))
    assert (folder / "scores.jsonl").exists()


# -------------------------------------------------------------------------------------------------- retention

TEXTS = ["Name a random planet.", "The heart pumps blood through the body.", "Output ONLY the number. 3.50000 " * 9]
CHOICES = [{"question": "Which is a planet?", "choices": ["Mars", "iron"], "answer": 0, "text": text} for text in TEXTS]
LOCAL = """
dataset_path: json
dataset_name: null
dataset_kwargs: {data_files: {test: FILE}}
training_split: null
validation_split: null
test_split: test
"""
QUIZ = """
doc_to_text: "{{question}}"
doc_to_target: answer
doc_to_choice: "{{choices}}"
num_fewshot: 0
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> dict[str, str]:
    """Small local tasks, made of the harness's own templates of a tinyBenchmarks and a PALOMA task."""
    folder = tmp_path_factory.mktemp("tasks")
    write_jsonl(folder / "data.jsonl", CHOICES)
    harness = f"{lm_eval.__path__[0]}/tasks"
    write_jsonl(
        folder / "wild.jsonl", [{"text": "ğž" * 700}]
    )  # one word, of so many nats that its perplexity overflows
    local, wild = (LOCAL.replace("FILE", str(folder / f"{name}.jsonl")) for name in ("data", "wild"))
    files = {
        "quiz": f"include: {harness}/tinyBenchmarks/tinyArc.yaml\ntask: quiz{local}{QUIZ}",
        "texts": f"include: {harness}/paloma/_paloma_template\ntask: texts{local}",
        "wild": f"include: {harness}/paloma/_paloma_template\ntask: wild{wild}",
        "gone": "task: gone\ndataset_path: no/such\noutput_type: multiple_choice\ntest_split: test\n" + QUIZ,
    }
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return {name: str(folder / f"{name}.yaml") for name in files}


TINY_BENCHMARKS = types.ModuleType("tinyBenchmarks")  # as if it were not installed: it needs 100 items and a download


@pytest.fixture(scope="module", autouse=True)
def one_task_manager():
    """Its index of thousands of tasks takes seconds to read; nothing here changes it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm_eval_tasks, "TaskManager", functools.cache(lm_eval_tasks.TaskManager))
        yield


@pytest.fixture(scope="module")
def retained(tasks, adapters, tmp_path_factory):
    folder = tmp_path_factory.mktemp("retention")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tinyBenchmarks", TINY_BENCHMARKS)
        for name, adapter in (("base", ()), ("hard", ("--adapter", adapters["hard"]))):
            flags = ("--out", folder / name, "--tasks", tasks["quiz"], tasks["texts"])
            call(sample, "retention", "--model", TINY, *adapter, *flags)
    return folder


def test_retention_from_the_real_harness_to_rows_and_table(retained, tmp_path, capsys, model, tokenizer):
    files = [retained / method / f"{task}.json" for method in ("hard", "base") for task in ("quiz", "texts")]
    call(metrics, *files, "--out", tmp_path / "scores.jsonl")
    page, rows = capsys.readouterr().out, read_jsonl(tmp_path / "scores.jsonl")
    found = {(row["method"], row["split"], row["metric"]): row for row in rows}
    assert set(found) == {
        (method, *score)
        for method in ("base", "hard")
        for score in (("quiz", "plain acc_norm"), ("texts", "bits_per_byte"), ("texts", "word_perplexity"))
    }
    for method in ("base", "hard"):
        row = found[method, "quiz", "plain acc_norm"]
        assert row["value"] * 3 == round(row["value"] * 3) and row["n"] == 3 and row["axis"] == "retention"
        assert row["stderr"] == pytest.approx(math.sqrt(row["value"] * (1 - row["value"]) / 2))  # n - 1
        for metric in ("bits_per_byte", "word_perplexity"):
            row = found[method, "texts", metric]
            assert row["difference"] == row["value"] - found["base", "texts", metric]["value"] and row["stderr"] is None
    assert found["hard", "texts", "bits_per_byte"]["difference"] != 0  # the adapter was on
    nats = 0.0  # by hand: each text after the token that the harness puts first, the end token
    for text in TEXTS:
        ids = torch.tensor([[tokenizer.eos_token_id, *trie.encode_one(tokenizer, text)]])
        with torch.inference_mode():
            log_probs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        nats -= log_probs.gather(1, ids[0, 1:, None]).sum().item()
    bits = nats / math.log(2) / sum(len(text.encode()) for text in TEXTS)
    assert found["base", "texts", "bits_per_byte"]["value"] == pytest.approx(bits, rel=1e-4)
    assert "hard - base" in page and "stride 1024" in page and "| texts " in page


def test_an_adapter_scores_the_same_by_the_harness_alone(retained, tasks, adapters, tmp_path):
    """`lm_eval --model_args pretrained=…,peft=…`: its file makes the same rows."""
    arguments = {"pretrained": TINY, "peft": str(adapters["hard"]), "dtype": "float32"}
    results = lm_eval.simple_evaluate(
        "hf", arguments, tasks=[tasks["texts"]], device="cpu", task_manager=lm_eval_tasks.TaskManager()
    )
    results.pop("samples")
    results["config"]["model_args"] = ",".join(f"{key}={value}" for key, value in arguments.items())
    (tmp_path / "results.json").write_text(json.dumps(results, default=str))
    theirs, ours = (
        metrics.read_results(path) for path in (tmp_path / "results.json", retained / "hard" / "texts.json")
    )
    assert [row | {"value": pytest.approx(row["value"], rel=1e-5)} for row in ours] == theirs and len(ours) == 2


def test_finished_tasks_are_kept_and_the_others_reported(retained, tasks, adapters, tmp_path, monkeypatch):
    import datasets

    flags = ("retention", "--model", TINY, "--out", retained / "base")
    before = {file: file.stat().st_mtime_ns for file in (retained / "base").iterdir()}
    load, gated = datasets.load_dataset, "Dataset 'no/such' is a gated dataset on the Hub. You must be authenticated."

    def refuse(path, *args, **kwargs):
        if path == "no/such":
            raise datasets.exceptions.DatasetNotFoundError(gated)
        return load(path, *args, **kwargs)

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    monkeypatch.setitem(sys.modules, "tinyBenchmarks", TINY_BENCHMARKS)
    line = complaint(sample, *flags, "--tasks", tasks["gone"], tasks["quiz"], "no_such_task")
    assert f"gone.yaml, no_such_task did not run: {gated}" in line and "HF_TOKEN" in line and "KeyError" in line
    assert {file: file.stat().st_mtime_ns for file in (retained / "base").iterdir()} == before
    new = tmp_path / "new"
    line = complaint(sample, *flags[:-1], new, "--tasks", tasks["gone"], tasks["wild"], tasks["texts"])
    assert "gone.yaml, " in line and "wild.yaml did not run" in line and "OverflowError" in line
    assert [file.name for file in new.iterdir()] == ["texts.json"]  # what could run did
    monkeypatch.undo()
    line = complaint(sample, *flags, "--tasks", tasks["gone"])  # no network
    assert "gone.yaml: Couldn't reach 'no/such' on the Hub" in line and "finished tasks are kept" in line
    line = complaint(sample, *flags, "--adapter", adapters["hard"], "--tasks", tasks["quiz"])
    assert "is of another run" in line
    line = complaint(sample, *flags, "--tasks", tasks["quiz"], "elsewhere/quiz.yaml")
    assert "would be written to the same file" in line


def test_plain_scores_give_way_to_gp_irt(retained, tasks, tmp_path, monkeypatch):
    """The package is a stand-in here, the path through the harness is real."""
    folder = shutil.copytree(retained / "base", tmp_path / "base")
    shutil.copy(retained / "base.run.json", tmp_path)
    flags = ("retention", "--model", TINY, "--out", folder, "--tasks", tasks["quiz"], tasks["texts"])
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    monkeypatch.setitem(sys.modules, "tinyBenchmarks", TINY_BENCHMARKS)
    monkeypatch.setattr(TINY_BENCHMARKS, "evaluate", lambda items, name: {name: {"gpirt": 0.375}}, raising=False)
    call(sample, *flags)
    assert (folder / "texts.json").read_bytes() == before["texts.json"]
    (row,) = metrics.read_results(folder / "quiz.json")
    assert (row["metric"], row["value"], row["stderr"]) == ("gp-IRT", 0.375, None)


def test_our_tasks_are_the_group_and_the_papers_slices():
    from lm_eval.tasks._yaml_loader import load_yaml

    folder = Path(lm_eval.__path__[0]) / "tasks"
    group = load_yaml(folder / "tinyBenchmarks" / "tinyBenchmarks.yaml")["task"]
    files = [file for file in folder.glob("tinyBenchmarks/tiny*.yaml") if file.stem != "tinyBenchmarks"]
    configs = [load_yaml(file, resolve_func=False) for file in files]
    shots = {config["task"]: config["num_fewshot"] for config in configs}
    assert {task["task"]: task["num_fewshot"] for task in group} == {task: shots[task] for task in metrics.TINY}
    slices = {load_yaml(file, resolve_func=False)["task"] for file in folder.glob("paloma/*.yaml")}
    assert sample.TASKS[:6] == metrics.TINY and set(sample.TASKS[6:]) < slices and len(sample.TASKS) == 13


def result_file(path, method, values: dict, aggregation: str):
    """A file as the harness writes it, of tinyBenchmarks' six tasks."""
    results = {task: {"alias": task, "acc,none": value, "acc_stderr,none": "N/A"} for task, value in values.items()}
    strict = results["tinyGSM8k"]["acc,none"]
    results["tinyGSM8k"] = {"exact_match,strict-match": strict, "exact_match_stderr,strict-match": "N/A"}
    results["tinyGSM8k"] |= {
        "exact_match,flexible-extract": strict + 0.125,
        "exact_match_stderr,flexible-extract": 0.03,
    }
    metric = lambda task: "exact_match" if task == "tinyGSM8k" else "acc"
    configs = {task: {"metric_list": [{"metric": metric(task), "aggregation": aggregation}]} for task in values}
    record = {"results": results, "configs": configs, "n-samples": {task: {"effective": 100} for task in values}}
    peft = "" if method == "base" else f",peft=runs/{method}"
    path.write_text(json.dumps(record | {"config": {"model_args": f"pretrained=a/b{peft},dtype=auto"}}))
    return path


def test_gp_irt_mean_and_differences(tmp_path, capsys):
    """Worked by hand; the aggregation's text is what the harness records where tinyBenchmarks is installed."""
    irt = "def agg_gpirt_arc(items): ..."
    base = result_file(
        tmp_path / "b.json", "base", dict(zip(metrics.TINY, (0.5, 0.25, 0.5, 0.75, 0.5, 0.5), strict=True)), irt
    )
    soft = result_file(
        tmp_path / "s.json", "soft", dict(zip(metrics.TINY, (0.5, 0.0, 0.5, 0.75, 0.5, 0.0), strict=True)), irt
    )
    rows = {(row["method"], row["split"], row["metric"]): row for row in metrics.retention_scores([soft, base])}
    assert (
        rows["base", "mean of the six", "gp-IRT"]["value"] == 0.5
        and rows["soft", "mean of the six", "gp-IRT"]["n"] == 600
    )
    assert rows["soft", "mean of the six", "gp-IRT"]["difference"] == -0.125  # (0.25 + 0.5) / 6
    assert rows["soft", "tinyGSM8k", "gp-IRT, strict-match"]["difference"] == -0.25
    assert rows["soft", "tinyGSM8k", "gp-IRT, flexible-extract"]["value"] == 0.125
    call(metrics, soft, base, "--out", tmp_path / "out")
    lines = capsys.readouterr().out.split("\n")
    assert [cell.strip() for cell in lines[2].split("|")[5:-1]] == ["base", "soft", "soft - base"]
    assert "0.375 ± 0.030 | 0.125 ± 0.030 | -0.250" in next(line for line in lines if "flexible" in line)
    assert "is in another file too" in complaint(metrics, soft, soft, "--out", tmp_path / "out")
    odd = json.loads(base.read_text())
    odd["results"]["group"] = {"acc,none": 0.5}  # a group has no n-samples
    odd["results"]["tinyArc"] |= {"acc,none": math.nan, "acc_stderr,none": math.inf}
    (tmp_path / "odd.json").write_text(json.dumps(odd))
    call(metrics, tmp_path / "odd.json", "--out", tmp_path / "out")
    found = {(row["split"], row["metric"]): row for row in read_jsonl(tmp_path / "out")}
    assert found["tinyArc", "gp-IRT"]["value"] is None and len(found) == 7  # and so there is no mean
    (tmp_path / "x.json").write_text("{}")
    assert "x.json: not a result file of lm-evaluation-harness" in complaint(metrics, tmp_path / "x.json", "--out", "o")


# ---------------------------------------------------------------------------------------------------- bridges

IDS = torch.arange(40)[None]


@pytest.fixture(scope="module")
def wanted(adapters):
    with torch.inference_mode():
        return trie.load_model(TINY, str(adapters["soft"]))(input_ids=IDS).logits


def test_an_adapter_loads_in_peft_alone(adapters, wanted):
    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    with torch.inference_mode():
        assert torch.equal(PeftModel.from_pretrained(base, adapters["soft"])(input_ids=IDS).logits, wanted)


def test_a_merged_checkpoint_has_the_adapters_logits(adapters, wanted, model, tokenizer, tmp_path):
    out = tmp_path / "merged"
    flags = ("merge", "--model", TINY, "--adapter", adapters["soft"], "--out", out)
    call(sample, *flags)
    merged = trie.load_model(str(out))
    with torch.inference_mode():
        assert torch.allclose(merged(input_ids=IDS).logits, wanted, atol=1e-3)
        assert not torch.allclose(model(input_ids=IDS).logits, wanted, atol=1e-2)
    plain = GenerationConfig.from_pretrained(out)
    assert (plain.do_sample, plain.temperature, plain.top_k, plain.top_p) == (True, 1.0, 0, 1.0)
    assert plain.eos_token_id == trie.end_token(tokenizer) and not (tmp_path / "merged.tmp").exists()
    assert trie.load_tokenizer(str(out)).chat_template == tokenizer.chat_template
    assert "is there already; remove it first" in complaint(sample, *flags)


def test_vllm_can_take_the_adapter(adapters):
    """What `vllm serve --enable-lora --max-lora-rank 16` asks of a folder, as far as it can be seen without a GPU."""
    for folder in adapters.values():
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["peft_type"] == "LORA" and config["task_type"] == "CAUSAL_LM" and config["r"] == 16
        assert config["bias"] == "none" and not config["use_dora"] and not config["modules_to_save"]
        assert not config["rank_pattern"] and not config["alpha_pattern"] and not config["layers_to_transform"]
        assert set(config["target_modules"]) == {"q_proj", "k_proj", "v_proj", "o_proj"}
        weights = load_file(folder / "adapter_model.safetensors")
        sizes = json.loads((Path(TINY) / "config.json").read_text())
        heads, groups = (sizes[key] * sizes["head_dim"] for key in ("num_attention_heads", "num_key_value_heads"))
        widths = {"q": (sizes["hidden_size"], heads), "k": (sizes["hidden_size"], groups)}
        widths |= {"v": widths["k"], "o": (heads, sizes["hidden_size"])}
        expected = {}
        for layer in range(sizes["num_hidden_layers"]):
            for name, (width, height) in widths.items():
                stem = f"base_model.model.model.layers.{layer}.self_attn.{name}_proj.lora_"
                expected |= {f"{stem}A.weight": (16, width), f"{stem}B.weight": (height, 16)}
        assert {key: tuple(value.shape) for key, value in weights.items()} == expected


def test_make_reaches_every_benchmark():
    arguments = ["make", "-n", "-B", f"PYTHON={sys.executable}", "MODEL=x/y", "METHODS=ssot soft"]
    said = lambda *more: subprocess.run([*arguments, *more], cwd=ROOT, env=ENV, capture_output=True, text=True).stdout
    page = said("novelty", "JUDGES=--reward r")
    assert "--out runs/y/novelty-curated/base/generations.jsonl" in page and "--adapter runs/y/soft " in page
    assert (
        "metrics.py novelty runs/y/novelty-curated/base runs/y/novelty-curated/soft --reward r" in page
        and "ssot" not in page
    )
    assert "sample.py merge --model x/y --adapter runs/y/soft --out runs/y/merged/soft" in said("merge")
    assert "sample.py retention --model x/y" in said("retention") and "for method in base soft;" in said("retention")
