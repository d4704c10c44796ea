"""The scripts as a user runs them: from prompts to tables, interruptions, and every bad input."""

import argparse
import json
import os
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import (
    BRIEF,
    ENV,
    ROOT,
    TINY,
    assert_mentions,
    call,
    command,
    complaint,
    script,
    train,
)
from safetensors.torch import load_file, save_file

import distributions
import metrics
import sample
import train_hard
import train_soft
import trie

# What sample.py adds to every row.
ADDED = {"model", "weights", "method", "axis", "seed", "draws", "tokens", "seconds"}
NUMBER_METRICS = {
    "normalized_w1",
    "cdf_gap",
    "tv",
    "logit_kl",
    "logit_kl_floor",
    "excess_kl",
    "form_kl",
    "shape_kl",
    "valid_rate",
    "answer_rate",
    "tokens",
}


def draw(out, *flags) -> list[dict]:
    """Run sample.py on the bundled model; returns the rows it wrote."""
    call(sample, *flags, "--model", TINY, "--out", out)
    assert not partial_of(out).exists()
    return distributions.read_rows([out])


def partial_of(out: Path) -> Path:
    """Where the finished rows of a file wait until all are there."""
    return out.with_name(out.name + ".partial")


def write_rows(path, rows) -> Path:
    distributions.write_text(path, distributions.to_jsonl(rows))
    return path


def without_time(rows) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


# ----------------------------------------------------------------------- from prompts to tables


@pytest.mark.parametrize("method", ["soft", "hard"])
def test_training_writes_adapter_log_and_provenance(adapters, method):
    out = adapters[method]
    assert {path.name for path in out.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "log.jsonl",
        "run.json",
    }
    log = distributions.read_rows(
        [out / "log.jsonl"], ("step", "loss", "floor", "lr", "tokens", "seconds")
    )
    assert [entry["step"] for entry in log] == [1, 2, 3]
    for entry in log:
        assert 0 < entry["floor"] < entry["loss"]
        assert entry["tokens"] > 0
    assert log[-1]["loss"] < log[0]["loss"]

    record = json.loads((out / "run.json").read_text())
    assert record["args"]["limit"] == 48
    assert record["args"]["seed"] == 0
    assert record["versions"]["torch"]
    assert record["device"]
    assert record["identity"] == trie.identity(TINY) != TINY

    config = json.loads((out / "adapter_config.json").read_text())
    assert config["r"] == 16
    assert config["lora_alpha"] == 32
    assert config["lora_dropout"] == 0.05
    # In this order, whatever the run.
    assert config["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"]


STOP_AT_THE_SCHEDULER = """
import train_{method}

def stop(optimizer, warmup, steps):
    print("STEPS", steps, warmup)
    raise SystemExit

train_{method}.get_cosine_schedule_with_warmup = stop
train_{method}.main()
"""


@pytest.mark.parametrize(
    "method, steps, epochs, draws", [("soft", 189, 3, 1), ("hard", 1988, 2, 16)]
)
def test_defaults_are_the_papers_recipe(data, tmp_path, method, steps, epochs, draws):
    """Soft has 189 steps of 32 prompts, and hard 1988 of 32 completions."""
    out = tmp_path / method
    code = STOP_AT_THE_SCHEDULER.format(method=method)
    flags = ["--model", TINY, "--data", str(data / "train.jsonl"), "--out", str(out)]
    result = subprocess.run(
        [sys.executable, "-c", code, *flags], cwd=ROOT, env=ENV, capture_output=True, text=True
    )
    assert f"STEPS {steps} {round(0.03 * steps)}\n" in result.stdout, result.stderr
    args = json.loads((out / "run.json").read_text())["args"]
    assert args["batch"] == 32
    assert args["epochs"] == epochs
    assert args["draws"] == draws
    assert args["branches"] == 1
    assert args["lr"] == 2e-4


def test_another_seed_gives_another_adapter(adapters, data, tmp_path):
    weights = load_file(adapters["soft"] / "adapter_model.safetensors")
    other = train("soft", tmp_path / "other", data, *BRIEF, "--seed", 1)
    other_weights = load_file(other / "adapter_model.safetensors")
    assert any(not torch.equal(weights[key], other_weights[key]) for key in weights)


@pytest.mark.parametrize("method", ["soft", "hard"])
def test_accumulation_changes_nothing(data, tmp_path, method):
    """LoRA starts at 0, so dropout has no effect on the first step."""
    flags = ["--limit", 24, "--epochs", 1, "--draws", 2, "--branches", 2]
    first_steps = []
    for parts in (1, 3):
        out = train(method, tmp_path / str(parts), data, *flags, "--accumulate", parts)
        first_steps.append(distributions.read_rows([out / "log.jsonl"])[0])
    whole, in_parts = first_steps
    assert in_parts["floor"] == pytest.approx(whole["floor"])
    assert in_parts["tokens"] == whole["tokens"]
    assert in_parts["loss"] == pytest.approx(whole["loss"], rel=1e-5)


def test_two_equal_trainings_give_the_same_bytes(adapters, data, tmp_path):
    again = train("soft", tmp_path / "soft", data, *BRIEF)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (again / name).read_bytes() == (adapters["soft"] / name).read_bytes()


def test_the_chain_from_prompts_to_a_table(adapters, prompts, tmp_path):
    source = distributions.read_rows(prompts)
    files = []
    for method in ("base", "soft", "hard"):
        if method == "base":
            out, adapter = tmp_path / "base" / "numbers.jsonl", []
        else:
            out, adapter = tmp_path / f"{method}.jsonl", ["--adapter", adapters[method]]
        rows = draw(out, "numbers", "--prompts", *prompts, "--n", 100, *adapter)
        files.append(out)
        assert [{key: row[key] for key in source[0]} for row in rows] == source
        for row in rows:
            exact = {"bins", "logit_kl", "logit_kl_form", "logit_kl_floor"}
            assert set(row) - set(source[0]) == ADDED | exact
            assert (row["model"], row["method"], row["seed"]) == (TINY, method, 0)
            assert len(row["draws"]) == 100
            assert all(isinstance(text, str) for text in row["draws"])
            assert 100 < row["tokens"] <= 100 * 32

    # A run's logs are among its files, and are passed over.
    logs = [adapters["soft"] / "log.jsonl", adapters["hard"] / "log.jsonl"]
    scores_file, report = tmp_path / "scores.jsonl", tmp_path / "report.md"
    result = script("metrics.py", *files, *logs, "--out", scores_file, "--report", report)
    assert result.returncode == 0, result.stderr
    scores = distributions.read_rows([scores_file])
    columns = ["model", "method", "axis", "split", "metric", "value", "low", "high", "n"]
    expected = set()
    for method in ("base", "soft", "hard", "target"):
        for split in ("unseen", "ood"):
            expected |= {(method, split, metric) for metric in NUMBER_METRICS}
    for score in scores:
        assert [key for key in score if key != "seed"] == columns
        assert score["seed"] == 0
    assert len(scores) == len(expected)
    assert {(row["method"], row["split"], row["metric"]) for row in scores} == expected

    table = result.stdout.split("\n\n")[1]
    assert table in report.read_text()
    methods = [line.split("|")[3].strip() for line in table.split("\n")[2:6]]
    assert methods == ["base", "soft", "hard", "target"]


def test_open_answers_have_the_first_steps_distribution(adapters, tmp_path):
    prompt = {"id": "a", "prompt": "Name a random planet. Output ONLY the answer.", "note": 1}
    file = write_rows(tmp_path / "mine.jsonl", [prompt])
    out = tmp_path / "open.jsonl"
    (row,) = draw(out, "open", "--prompts", file, "--adapter", adapters["soft"])
    assert set(row) == set(prompt) | ADDED | {"support_90", "top"}
    assert row["method"] == "soft"
    assert len(row["draws"]) == 100 <= row["tokens"]
    assert len(row["top"]) == 20
    assert all(isinstance(text, str) for text, _ in row["top"])

    probs = [p for _, p in row["top"]]
    assert probs == sorted(probs, reverse=True)
    assert sum(probs[: row["support_90"]]) >= 0.9
    assert sum(probs[: row["support_90"] - 1]) < 0.9


def test_language_and_ssot_from_prompts_to_tables(prompts, tmp_path, capsys):
    planet = {"id": "a", "prompt": "Name a random planet. Output ONLY the answer."}
    mine = write_rows(tmp_path / "mine.jsonl", [planet])
    ssot = ["--protocol", "ssot", "--n", 6, "--max-tokens", 130]
    files = {
        name: tmp_path / f"{name}.jsonl" for name in ("open", "mcq", "open_ssot", "numbers_ssot")
    }
    draw(files["open"], "open", "--prompts", mine)

    (row,) = draw(files["mcq"], "mcq", "--n", 5)
    assert row["id"] == "mcq-000"
    assert len(row["draws"]) == 5
    assert all(row["draws"])
    assert 0 < row["tokens"] <= 5 * 256

    open_rows = draw(files["open_ssot"], "open", "--prompts", mine, *ssot)
    number_rows = draw(files["numbers_ssot"], "numbers", "--prompts", prompts[1], *ssot)
    for row in open_rows + number_rows:
        assert row["method"] == row["protocol"] == "ssot"
        assert len(row["draws"]) == 6
        assert "logit_kl" not in row
        assert any("</" in text for text in row["draws"])  # the raw texts are kept
        assert row["tokens"] > 100
    asked = distributions.read_rows([prompts[1]])
    assert [row["family"] for row in number_rows] == [row["family"] for row in asked]

    call(metrics, *files.values(), "--out", tmp_path / "scores.jsonl")
    page = capsys.readouterr().out
    for axis in ("numbers", "open", "mcq"):
        assert f"**{axis}**" in page
    assert page.count("| ssot ") == 2
    scores = distributions.read_rows([tmp_path / "scores.jsonl"])
    assert {row["axis"] for row in scores} == {"numbers", "open", "mcq"}


def test_a_method_is_a_file(kit):
    """With train_x.py, make trains method x and puts it in every table, without another edit."""
    source = (kit / "train_soft.py").read_text()
    line = "    return kl.sum(1) / real.sum(1)\n"
    assert source.count(line) == 1
    doubled = line.replace("(1)\n", "(1) * 2\n")
    (kit / "train_mine.py").write_text(source.replace(line, doubled))

    make = ["make", f"PYTHON={sys.executable}", "METHODS=mine", "AXES=open"]
    make += ["FLAGS=--lr 1e-3 --limit 32 --epochs 1", "FLAGS_open=--n 4", "reproduce"]
    result = subprocess.run(make, cwd=kit, env=ENV, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "| mine " in result.stdout
    assert "| mine " in (kit / "runs/tiny/report.md").read_text()
    log = distributions.read_rows([kit / "runs/tiny/mine/log.jsonl"])
    assert log[0]["loss"] > 1.5  # twice what soft begins with


ARCSINE = """FAMILIES = {
    "arcsine": Family(
        "Arcsine",
        "a b",
        stats.arcsine,
        train=[(a, a + w) for a in (-2, -1, 0, 1, 2) for w in (1, 2, 4)],
        unseen=[(3, 9)],
        args=lambda a, b: (a, b - a),
    ),
"""


def test_a_new_family_is_one_entry(tmp_path, monkeypatch, capsys):
    """Data, training, draws, exact scores and the table follow from the entry alone."""
    source = (ROOT / "distributions.py").read_text()
    assert source.count("FAMILIES = {\n") == 1
    changed = tmp_path / "distributions.py"
    changed.write_text(source.replace("FAMILIES = {\n", ARCSINE))
    families = runpy.run_path(str(changed))["FAMILIES"]
    monkeypatch.setattr(distributions, "FAMILIES", families)

    data = tmp_path / "data"
    call(distributions, "--out", data)
    arcsine = {}
    for split in ("train", "unseen"):
        rows = distributions.read_rows([data / f"{split}.jsonl"])
        arcsine[split] = [row for row in rows if row["family"] == "arcsine"]
    assert len(arcsine["train"]) == 15
    prompt = arcsine["unseen"][0]["prompt"]
    assert prompt.count("Arcsine distribution with parameters a=3, b=9") == 1

    to_train = write_rows(tmp_path / "train.jsonl", arcsine["train"])
    brief = ["--epochs", 1, "--batch", 8, "--lr", "5e-3"]
    adapter = tmp_path / "soft"
    call(train_soft, "--model", TINY, "--data", to_train, "--out", adapter, *brief)

    to_ask = write_rows(tmp_path / "unseen.jsonl", arcsine["unseen"])
    base_file, soft_file = tmp_path / "base_rows.jsonl", tmp_path / "soft_rows.jsonl"
    draw(base_file, "numbers", "--prompts", to_ask, "--n", 50)
    draw(soft_file, "numbers", "--prompts", to_ask, "--n", 50, "--adapter", adapter)
    call(metrics, base_file, soft_file, "--out", tmp_path / "scores.jsonl")
    scores = {}
    for row in distributions.read_rows([tmp_path / "scores.jsonl"]):
        scores[row["method"], row["metric"]] = row["value"]
    assert scores["soft", "excess_kl"] < scores["base", "excess_kl"]
    assert scores["target", "excess_kl"] == 0
    assert scores["target", "valid_rate"] == 1
    assert scores["target", "cdf_gap"] < 0.226  # of 50 true draws, 1 % have a larger gap
    assert "| target " in capsys.readouterr().out


# ----------------------------------------------------------------------- interruptions and reruns


def default_interrupt():
    """A shell's background jobs ignore SIGINT, and their children inherit this."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def killed_midway(arguments, partial: Path, signal_number) -> str:
    """Start sample.py, kill it once it has finished a row, and return what it wrote to stderr."""
    process = subprocess.Popen(
        command("sample.py", *arguments),
        env=ENV,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=default_interrupt,
    )
    while process.poll() is None and not (partial.exists() and partial.stat().st_size):
        time.sleep(0.01)
    process.send_signal(signal_number)
    return process.communicate()[1]


@pytest.mark.parametrize("kind", ["ssot", "open"])
def test_sampling_that_was_killed_midway_ends_the_same(kind, prompts, tmp_path):
    """No row is lost or repeated, also with other --rows, as after running out of memory.

    With other options, going on is an error, and the finished rows stay.
    """
    if kind == "ssot":
        flags = ["numbers", "--prompts", *prompts, "--n", 6]
        flags += ["--protocol", "ssot", "--max-tokens", 60]
    else:
        questions = [f"Name a random {thing}." for thing in ("city", "bird", "tree", "fish")]
        (tmp_path / "questions.json").write_text(json.dumps(questions))
        flags = ["open", "--prompts", tmp_path / "questions.json", "--n", 60]
    whole = without_time(draw(tmp_path / "whole.jsonl", *flags))

    out = tmp_path / "out.jsonl"
    partial, record = partial_of(out), tmp_path / "out.run.json"
    arguments = [*flags, "--rows", 4, "--model", TINY, "--out", out]
    kill = signal.SIGKILL if kind == "ssot" else signal.SIGINT
    said = killed_midway(arguments, partial, kill)
    if kill == signal.SIGINT:
        assert_mentions(said, "sample.py: interrupted", "same command")
        assert said.endswith("\n")
    assert "Traceback" not in said
    assert not out.exists()
    assert partial.exists()
    with open(partial, "a") as file:
        file.write('{"id": "cut off in the mid')

    before = partial.read_bytes()
    line = complaint(sample, *arguments, "--seed", 5)
    assert_mentions(line, partial, "different options", record)
    elsewhere = record.rename(tmp_path / "elsewhere")
    line = complaint(sample, *arguments)
    assert_mentions(line, partial, "different options", record)
    elsewhere.rename(record)
    assert partial.read_bytes() == before

    assert without_time(draw(out, *flags, "--rows", 3)) == whole


def test_rows_of_other_inputs_or_other_code_are_never_mixed(adapters, prompts, tmp_path):
    """Going on with another model, other prompts or another version of the code is an error."""
    out = tmp_path / "out.jsonl"
    partial, record_file = partial_of(out), tmp_path / "out.run.json"
    flags = ["numbers", "--n", 3, "--paths", 2, "--model", TINY, "--out", out]
    both = ["--prompts", *prompts]
    call(sample, *flags, *both)
    whole = distributions.read_rows([out])
    kept = distributions.to_jsonl(whole[:1])
    assert out.read_text().startswith(kept)
    partial.write_text(kept)
    out.unlink()

    changed = shutil.copytree(TINY, tmp_path / "changed")
    template = changed / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    for other in (
        ["--prompts", prompts[0]],
        [*both, "--adapter", adapters["soft"]],
        [*both, "--model", changed],
    ):
        assert_mentions(complaint(sample, *flags, *other), partial, "different inputs", record_file)

    record = json.loads(record_file.read_text())
    record_file.write_text(json.dumps(record | {"code": "of another day"}))
    assert_mentions(complaint(sample, *flags, *both), partial, "different code", record_file)
    record_file.write_text(json.dumps(record))
    assert partial.read_text() == kept
    assert not out.exists()

    call(sample, *flags, *both)
    assert out.read_text().startswith(kept)
    assert without_time(distributions.read_rows([out])) == without_time(whole)


def test_rows_wait_in_one_partial_file_and_other_files_are_left_alone(tmp_path):
    """Copies of the partial file are the user's, and FILE.v1 and FILE.v2 have their own records."""
    out = tmp_path / "rows.v1"
    others = {
        "rows.v1.partial.bak": '{"id": "b"}\n',
        "rows.v1.partial.1": '{"id": "c"}\n',
        "rows.v2.partial": '{"id": "d"}\n',
    }
    for name, text in others.items():
        (tmp_path / name).write_text(text)
    args = argparse.Namespace(model=TINY)
    asked = [{"id": "a"}, {"id": "b"}, {"id": "c"}]
    answered = []

    def interrupted(prompts):
        if answered:
            raise KeyboardInterrupt
        answered.extend(prompts)
        return prompts

    def answer(prompts):
        answered.extend(prompts)
        return prompts

    with pytest.raises(KeyboardInterrupt):
        sample.write_rows(out, args, {}, asked, interrupted, 1)
    assert not out.exists()
    assert distributions.read_rows([partial_of(out)]) == asked[:1]

    sample.write_rows(out, args, {}, asked, answer, 1)
    assert answered == asked  # the first prompt was not asked again
    assert distributions.read_rows([out]) == asked
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"rows.v1", "rows.v1.run.json", *others}
    for name, text in others.items():
        assert (tmp_path / name).read_text() == text


def test_rows_are_written_in_the_order_of_the_prompts(tmp_path):
    """Prompts are answered `together` at a time, and each answer is a row."""
    out = tmp_path / "rows.jsonl"
    asked = [{"id": str(i)} for i in range(5)]
    batches = []

    def answer(prompts):
        batches.append(len(prompts))
        return [prompt | {"draws": []} for prompt in prompts]

    sample.write_rows(out, argparse.Namespace(model=TINY), {}, asked, answer, 2)
    assert batches == [2, 2, 1]
    assert distributions.read_rows([out]) == [prompt | {"draws": []} for prompt in asked]


def test_result_rows_are_not_prompts(prompts, tmp_path):
    """A protocol's rows would keep the base's logit KL, and a training would see its evaluation."""
    base = tmp_path / "base.jsonl"
    draw(base, "numbers", "--prompts", *prompts, "--n", 2, "--paths", 2)
    flags = ["numbers", "--model", TINY, "--protocol", "ssot", "--out", tmp_path / "ssot.jsonl"]
    line = complaint(sample, *flags, "--prompts", base)
    assert_mentions(line, f"{base}:1: ", "draws")
    line = complaint(train_soft, "--model", TINY, "--data", base, "--out", tmp_path / "soft")
    assert_mentions(line, f"{base}:1: ", "draws")

    opened = tmp_path / "open.jsonl"
    assert len(draw(opened, "open", "--prompts", *prompts, "--n", 2)) == 4
    flags = ["open", "--model", TINY, "--out", tmp_path / "again.jsonl"]
    line = complaint(sample, *flags, "--prompts", opened)
    assert_mentions(line, opened, "draws")


def test_prompts_of_a_repeated_option_are_all_asked(prompts, tmp_path):
    flags = ["--prompts", prompts[0], "--prompts", prompts[1], "--n", 2, "--paths", 2]
    assert len(draw(tmp_path / "rows.jsonl", "numbers", *flags)) == 4


@pytest.fixture
def small_disk():
    """No file may grow beyond 60 kB, until the returned function is called."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def enlarge():
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    yield enlarge
    enlarge()


def test_a_full_disk_loses_nothing(adapters, data, tmp_path, small_disk):
    out, partial = tmp_path / "out.jsonl", partial_of(tmp_path / "out.jsonl")
    flags = ["numbers", "--prompts", data / "unseen.jsonl", "--adapter", adapters["hard"]]
    flags += ["--model", TINY, "--out", out]
    assert_mentions(complaint(sample, *flags), "File too large")
    assert not out.exists()

    adapter = tmp_path / "soft"
    training = ["--model", TINY, "--data", data / "train.jsonl", "--out", adapter, *BRIEF]
    assert_mentions(complaint(train_soft, *training), "File too large")
    assert not (adapter / "adapter_model.safetensors").exists()

    small_disk()
    kept = partial.read_bytes().rpartition(b"\n")[0]
    assert kept.count(b"\n") >= 1
    call(sample, *flags)
    assert out.read_bytes().startswith(kept)
    assert len(distributions.read_rows([out])) == 24


def test_out_of_memory_names_the_option(prompts, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")

    monkeypatch.setattr(trie, "extend", full)
    flags = ["numbers", "--prompts", *prompts, "--model", TINY, "--out", tmp_path / "out.jsonl"]
    assert_mentions(complaint(sample, *flags), "out of memory", "lower --rows", "--accumulate")


# ---------------------------------------------------------------------- what already exists stays


@pytest.mark.parametrize("module", [train_soft, train_hard])
def test_an_adapter_is_not_overwritten(adapters, data, module):
    """A script that is called by hand says what to remove."""
    out = adapters["soft"]
    before = (out / "run.json").read_bytes()
    line = complaint(module, "--model", TINY, "--data", data / "train.jsonl", "--out", out)
    assert_mentions(line, out / "adapter_model.safetensors", "already", f"remove {out}")
    assert (out / "run.json").read_bytes() == before


def test_rows_inputs_and_folders_are_not_overwritten(prompts, tmp_path):
    flags = ["numbers", "--prompts", *prompts, "--n", 2, "--paths", 2]
    rows = draw(tmp_path / "rows.jsonl", *flags)
    for out in (tmp_path / "rows.jsonl", prompts[0], tmp_path):
        line = complaint(sample, *flags, "--model", TINY, "--out", out)
        assert_mentions(line, f"{out} ", "already", f"remove {out}")
    assert distributions.read_rows([tmp_path / "rows.jsonl"]) == rows
    assert len(distributions.read_rows(prompts)) == 4


def test_prompts_are_not_overwritten_with_others(prompts, tmp_path):
    rows = distributions.read_rows(prompts)
    file = write_rows(tmp_path / "data" / "ood.jsonl", rows)
    line = complaint(distributions, "--out", tmp_path / "data")
    assert_mentions(line, file, "already", "different prompts")
    assert distributions.read_rows([file]) == rows


def test_scores_replace_nothing_but_scores(prompts, tmp_path):
    rows_file, scores = tmp_path / "rows.jsonl", tmp_path / "scores.jsonl"
    rows = draw(rows_file, "numbers", "--prompts", *prompts, "--n", 2, "--paths", 2)
    notes = tmp_path / "README.md"
    notes.write_text("# Notes\n")
    for out in (rows_file, prompts[0], notes):
        line = complaint(metrics, rows_file, "--out", out)
        assert_mentions(line, out, "metrics.py did not write", "another name")
    assert distributions.read_rows([rows_file]) == rows
    assert len(distributions.read_rows(prompts)) == 4
    assert notes.read_text() == "# Notes\n"

    for _ in range(2):
        call(metrics, rows_file, "--out", scores)
    kept = scores.read_text()
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1}\n')
    assert_mentions(complaint(metrics, log, "--out", scores), f"{log}:1")
    assert scores.read_text() == kept


def test_a_report_replaces_nothing_but_a_report(prompts, tmp_path):
    rows_file, report = tmp_path / "rows.jsonl", tmp_path / "report.md"
    rows = draw(rows_file, "numbers", "--prompts", *prompts, "--n", 2, "--paths", 2)
    notes = tmp_path / "README.md"
    notes.write_text("**Notes**\n")
    flags = [rows_file, "--out", tmp_path / "scores.jsonl", "--report"]
    for path in (rows_file, notes):
        assert_mentions(complaint(metrics, *flags, path), path, "metrics.py did not write")
    assert distributions.read_rows([rows_file]) == rows
    assert notes.read_text() == "**Notes**\n"
    for _ in range(2):
        call(metrics, *flags, report)


def test_rows_that_pandas_joined_score_as_before(prompts, tmp_path):
    """There, what is missing in some rows is null."""
    number_file, coin_file = tmp_path / "numbers.jsonl", tmp_path / "coin.jsonl"
    flags = ["--n", 2, "--paths", 2]
    rows = draw(number_file, "numbers", "--prompts", prompts[0], *flags)
    coin = write_rows(tmp_path / "prompt.jsonl", [COIN])
    rows += draw(coin_file, "numbers", "--prompts", coin, *flags)
    keys = {key for row in rows for key in row}
    joined = [{key: row.get(key) for key in keys} for row in rows]
    joined_file = write_rows(tmp_path / "joined.jsonl", joined)

    call(metrics, number_file, coin_file, "--out", tmp_path / "apart_scores")
    call(metrics, joined_file, "--out", tmp_path / "joined_scores")
    apart = (tmp_path / "apart_scores").read_text()
    assert (tmp_path / "joined_scores").read_text() == apart


@pytest.mark.parametrize("name", ["base", "ssot", "target", "target-soft", "figures"])
def test_names_with_another_meaning_are_errors(adapters, data, tmp_path, name):
    """A method cannot be trained under such a name, nor an adapter be used under it."""
    out = tmp_path / "new" / name
    line = complaint(train_soft, "--model", TINY, "--data", data / "train.jsonl", "--out", out)
    assert_mentions(line, f"{name!r}", "another name")
    assert not (tmp_path / "new").exists()

    adapter = shutil.copytree(adapters["soft"], tmp_path / name)
    flags = ["open", "--model", TINY, "--adapter", adapter, "--out", tmp_path / "rows.jsonl"]
    assert_mentions(complaint(sample, *flags), f"{name!r}", "another name")


# --------------------------------------------------------------------------------------- bad input


def test_an_adapter_without_effect_is_an_error(adapters, tmp_path):
    """Its weights may be zero, or have names that PEFT does not match."""
    idle = shutil.copytree(adapters["soft"], tmp_path / "idle")
    weights = load_file(idle / "adapter_model.safetensors")
    zeroed = dict(weights)
    for key in weights:
        if "lora_B" in key:
            zeroed[key] = torch.zeros_like(weights[key])
    renamed = {key.replace("q_proj", "other"): value for key, value in zeroed.items()}
    for variant in (zeroed, renamed):
        save_file(variant, idle / "adapter_model.safetensors")
        with pytest.raises(distributions.InputError, match="changes nothing"):
            trie.load(TINY, str(idle))


def test_an_adapter_that_diverged_is_an_error(adapters, tmp_path):
    adapter = shutil.copytree(adapters["soft"], tmp_path / "adapter")
    weights = load_file(adapter / "adapter_model.safetensors")
    nans = {key: torch.full_like(value, torch.nan) for key, value in weights.items()}
    save_file(nans, adapter / "adapter_model.safetensors")
    with pytest.raises(distributions.InputError, match="training diverged"):
        trie.load(TINY, str(adapter))


COUNT = {"id": "a", "split": "ood", "family": "poisson", "params": {"lambda": 4}, "prompt": "p"}
COIN = {"id": "a", "split": "ood", "prompt": "p", "outputs": ["1", "2"], "probs": [0.5, 0.5]}
NO_FAMILY = {key: value for key, value in COUNT.items() if key != "family"}
BAD_FILES = {  # what is wrong -> the file's text, the facts that the error states
    "an empty file": ("", ["f.jsonl:1: "]),
    "missing keys": ('{"id": 1}\n', ["f.jsonl:1: ", "id, split, prompt"]),
    "no object": ("[1]\n", ["f.jsonl:1: ", "object"]),
    "no JSON": (json.dumps(COUNT) + "\n{oops\n", ["f.jsonl:2: "]),
    "an id twice": (
        (json.dumps(COUNT) + "\n") * 2,
        ["f.jsonl:2: ", "'a'", "already", "f.jsonl:1"],
    ),
    "NaN as a parameter": (
        json.dumps(COUNT | {"params": {"lambda": float("nan")}}),
        ["f.jsonl:1: ", "NaN"],
    ),
    "NaN elsewhere": (json.dumps(COUNT | {"note": float("nan")}), ["f.jsonl:1: ", "NaN"]),
    "an unknown family": (
        json.dumps(COUNT | {"family": "fish"}),
        ["f.jsonl:1: ", "family", "'fish'"],
    ),
    "no family": (json.dumps(NO_FAMILY), ["f.jsonl:1: ", "family"]),
    "an impossible parameter": (
        json.dumps(COUNT | {"params": {"lambda": -4}}),
        ["f.jsonl:1: ", "poisson", "{'lambda': -4}"],
    ),
    "a text as a parameter": (
        json.dumps(COUNT | {"params": {"lambda": "four"}}),
        ["f.jsonl:1: ", "poisson", "'four'"],
    ),
    "a missing parameter": (
        json.dumps(COUNT | {"params": {}}),
        ["f.jsonl:1: ", "poisson", "parameters lambda"],
    ),
    "a number as the id": (json.dumps(COUNT | {"id": 7}), ["f.jsonl:1: ", "id must", "string"]),
    "an output twice": (
        json.dumps(COIN | {"outputs": ["1", "1"]}),
        ["f.jsonl:1: ", "outputs", "different"],
    ),
    "probabilities that do not sum to 1": (
        json.dumps(COIN | {"probs": [0.5, 0.4]}),
        ["f.jsonl:1: ", "probs", "sum to 1", "0.9"],
    ),
}


@pytest.mark.parametrize("text, facts", BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_row_is_one_line_with_file_and_line(tmp_path, text, facts):
    file, out = tmp_path / "f.jsonl", tmp_path / "out"
    file.write_text(text)
    flags = ["--model", TINY, "--out", out]
    lines = [
        complaint(train_soft, "--data", file, *flags),
        complaint(train_hard, "--data", file, *flags),
        complaint(sample, "numbers", "--prompts", file, *flags),
    ]
    for line in lines:
        assert_mentions(line, *facts)
    assert not out.exists()


def run_with_warnings(name, *arguments) -> subprocess.CompletedProcess:
    """Run a script in a process of its own, in which Python shows all warnings."""
    env = {key: value for key, value in ENV.items() if key != "PYTHONWARNINGS"}
    return subprocess.run(command(name, *arguments), env=env, capture_output=True, text=True)


def test_an_error_is_all_that_is_printed(adapters, prompts, tmp_path):
    """Also where it comes after a model was loaded."""
    adapter = shutil.copytree(adapters["soft"], tmp_path / "broken")
    (adapter / "adapter_config.json").write_text("{")
    flags = ["numbers", "--model", TINY, "--prompts", *prompts, "--out", tmp_path / "rows.jsonl"]
    for arguments in (["numbers", "--n", 0], [*flags, "--adapter", adapter]):
        result = run_with_warnings("sample.py", *arguments)
        assert result.returncode == 1
        assert result.stdout == ""
        assert result.stderr.count("\n") == 1, result.stderr


def test_without_errors_only_progress_is_printed(adapters, prompts, tmp_path):
    out = tmp_path / "rows.jsonl"
    flags = ["numbers", "--model", TINY, "--prompts", *prompts, "--n", 2, "--paths", 2]
    result = run_with_warnings("sample.py", *flags, "--adapter", adapters["soft"], "--out", out)
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    for line in result.stderr.split("\n"):
        assert not line.strip() or line.startswith(f"{out}: "), result.stderr

    flags = ["--model", TINY, "--data", prompts[0], "--epochs", 1, "--out", tmp_path / "soft"]
    result = run_with_warnings("train_soft.py", *flags)
    assert result.returncode == 0, result.stderr
    assert "arning" not in result.stderr


TWO_WARNINGS = """
import warnings
import trie
for text in ("`is_gradient_checkpointing` is deprecated", "Another one"):
    warnings.warn(text, FutureWarning)
"""


def test_one_warning_of_transformers_is_silenced_and_no_other():
    env = {key: value for key, value in ENV.items() if key != "PYTHONWARNINGS"}
    result = subprocess.run(
        [sys.executable, "-c", TWO_WARNINGS], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert "Another one" in result.stderr
    assert "is_gradient" not in result.stderr


# In these command lines, PROMPTS is a file of two prompts, and OUT a path that is free.
NUMBERS = ["numbers", "--model", TINY, "--prompts", "PROMPTS", "--out", "OUT"]
OPEN = ["open", "--model", TINY, "--out", "OUT"]
TRAINING = ["--model", TINY, "--data", "PROMPTS", "--out", "OUT"]
BAD_ARGUMENTS = [  # a script, its arguments, the facts that the error states
    (distributions, [], ["--out"]),
    (distributions, ["--out", "/proc/nowhere"], ["/proc/nowhere"]),
    (distributions, ["--out", "OUT", "--decimals", "0"], ["--decimals", "positive", " 0"]),
    (sample, [], ["numbers"]),
    (sample, [*NUMBERS, "--n", "0"], ["--n ", "positive", " 0"]),
    (sample, [*NUMBERS, "--n", "-3"], ["--n ", "positive", " -3"]),
    (sample, ["numbers", "--n", "x"], ["--n: ", "'x'"]),
    (sample, [*NUMBERS, "--model", "/no/model"], ["cannot load", "'/no/model'"]),
    (sample, [*NUMBERS, "--model", "no/model"], ["cannot load", "'no/model'"]),
    (sample, ["numbers", "--model", TINY, "--prompts", "/no/file", "--out", "OUT"], ["/no/file"]),
    (sample, [*NUMBERS, "--out", "/proc/x/y.jsonl"], ["/proc/x"]),
    (sample, [*NUMBERS, "--adapter", "/no/a"], ["'adapter_config.json'", "'/no/a'"]),
    (sample, [*OPEN, "--prompts", "/no/file"], ["/no/file"]),
    (sample, [*OPEN, "--seed", "-1"], ["--seed ", "positive", " -1"]),
    (sample, [*OPEN, "--max-tokens", "0"], ["--max-tokens ", "positive", " 0"]),
    (sample, [*OPEN, "--protocol", "cot"], ["--protocol", "'cot'"]),
    (sample, ["mcq", "--model", TINY, "--protocol", "ssot", "--out", "OUT"], ["--protocol"]),
    (train_soft, [*TRAINING, "--epochs", "0"], ["--epochs ", "positive", " 0"]),
    (train_soft, [*TRAINING, "--lr", "nan"], ["--lr ", "positive", " nan"]),
    (train_soft, [*TRAINING, "--lr", "0"], ["--lr ", "positive", " 0"]),
    (train_soft, [*TRAINING, "--out", "/proc/x"], ["/proc/x"]),
    (train_soft, [*TRAINING, "--model", "no/model"], ["cannot load", "'no/model'"]),
    (train_hard, [*TRAINING, "--branches", "3"], ["--branches", "must divide", "--draws"]),
    (train_hard, [*TRAINING, "--what"], ["unrecognized arguments: --what"]),
    (metrics, ["/no/file", "--out", "OUT"], ["/no/file"]),
    (metrics, ["PROMPTS", "--out", "OUT"], ["ood.jsonl:1: ", "method", "draws"]),
]


@pytest.mark.parametrize("module, arguments, facts", BAD_ARGUMENTS)
def test_bad_arguments_are_one_line(prompts, tmp_path, module, arguments, facts):
    paths = {"PROMPTS": prompts[1], "OUT": tmp_path / "out"}
    line = complaint(module, *[paths.get(argument, argument) for argument in arguments])
    assert_mentions(line, *facts)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("broken", ["a vision model", "no config", "cut weights", "no files"])
def test_a_folder_that_is_no_language_model_is_one_line(tmp_path, broken):
    folder = shutil.copytree(TINY, tmp_path / "model")
    if broken == "a vision model":
        config = {"model_type": "vit", "architectures": ["ViTModel"]}
        (folder / "config.json").write_text(json.dumps(config))
    elif broken == "no config":
        (folder / "config.json").write_text("{")
    elif broken == "cut weights":
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:5000])
    else:
        shutil.rmtree(folder)
        folder.mkdir()
    line = complaint(sample, "open", "--model", folder, "--out", tmp_path / "out")
    assert_mentions(line, "cannot load", folder)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes, fact",
    [
        ({"num_hidden_layers": 8}, "cannot load"),  # its layer_types are fewer
        ({"hidden_size": 96}, "cannot load"),  # its weights are smaller
        ({"num_hidden_layers": 7, "layer_types": None}, "model.layers.2"),  # it has two layers
    ],
)
def test_weights_that_do_not_fit_their_config_are_one_line(tmp_path, changes, fact):
    folder = shutil.copytree(TINY, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    line = complaint(sample, "open", "--model", folder, "--out", tmp_path / "out")
    assert_mentions(line, folder, fact)
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_chat_template_is_one_line(tmp_path):
    folder = shutil.copytree(TINY, tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    line = complaint(sample, "open", "--model", folder, "--out", tmp_path / "out")
    assert_mentions(line, "chat template")
    assert not (tmp_path / "out").exists()


def test_a_models_folder_may_have_a_space(prompts, tmp_path):
    folder, out = shutil.copytree(TINY, tmp_path / "my model"), tmp_path / "rows.jsonl"
    flags = ["--model", folder, "--prompts", prompts[1], "--n", 2, "--paths", 2, "--out", out]
    call(sample, "numbers", *flags)
    assert {row["model"] for row in distributions.read_rows([out])} == {str(folder)}


def test_an_adapter_belongs_to_the_weights_of_its_model(adapters, prompts, tmp_path):
    """A copy of the model, or another path to it, is the same model; other weights are not."""
    flags = ["numbers", "--adapter", adapters["soft"], "--prompts", *prompts]
    flags += ["--n", 2, "--paths", 2]
    other = shutil.copytree(TINY, tmp_path / "other")
    call(sample, *flags, "--model", other, "--out", tmp_path / "copy.jsonl")
    call(sample, *flags, "--model", os.path.relpath(TINY), "--out", tmp_path / "path.jsonl")

    weights = load_file(other / "model.safetensors")
    scaled = {key: value * 1.5 for key, value in weights.items()}
    save_file(scaled, other / "model.safetensors", {"format": "pt"})
    line = complaint(sample, *flags, "--model", other, "--out", tmp_path / "out")
    assert_mentions(line, adapters["soft"], "trained on", TINY)


def test_broken_adapters_are_one_line(adapters, prompts, tmp_path):
    adapter = shutil.copytree(adapters["soft"], tmp_path / "adapter")
    weights, config = adapter / "adapter_model.safetensors", adapter / "adapter_config.json"
    flags = ["numbers", "--prompts", *prompts, "--model", TINY, "--adapter", adapter]
    flags += ["--out", tmp_path / "out"]
    whole = weights.read_bytes()
    weights.write_bytes(whole[:5000])
    assert_mentions(complaint(sample, *flags), f"adapter {adapter} does not fit")
    weights.write_bytes(whole)

    settings = json.loads(config.read_text())
    another_rank = json.dumps(settings | {"r": 8})
    another_module = json.dumps(settings | {"target_modules": ["no_proj"]})
    for text in ("{", "[]", another_rank, another_module):
        config.write_text(text)
        assert_mentions(complaint(sample, *flags), f"adapter {adapter} does not fit")
    config.unlink()
    assert_mentions(complaint(sample, *flags), "'adapter_config.json'", f"'{adapter}'")


@pytest.mark.parametrize("module", [distributions, train_soft, train_hard, sample, metrics])
def test_every_script_has_help(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", "--help"])
    with pytest.raises(SystemExit) as ending:
        distributions.run(module.main)
    assert ending.value.code == 0
    assert f"python {module.__name__}.py" in capsys.readouterr().out
