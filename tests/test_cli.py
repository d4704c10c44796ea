"""The scripts as a user runs them: the whole chain on a few prompts, kills and reruns, and every kind of bad input."""

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

import numpy as np
import pytest
import torch
from conftest import BRIEF, ENV, ROOT, TINY, call, command, complaint, script, train
from safetensors.torch import load_file, save_file

import distributions
import metrics
import sample as sample_script
import train_hard
import train_soft
import trie
from distributions import InputError, read_jsonl, run, write_jsonl

METRICS = {"normalized_w1", "logit_kl", "logit_kl_floor", "excess_kl", "valid_rate", "gof_pass_rate"}
METRICS |= {"answer_rate", "tokens"}


@pytest.fixture(scope="session")
def prompts(tmp_path_factory, data) -> list[Path]:
    """Two unseen prompts and two ood ones."""
    folder = tmp_path_factory.mktemp("prompts")
    for split in ("unseen", "ood"):
        write_jsonl(folder / f"{split}.jsonl", read_jsonl(data / f"{split}.jsonl")[:4:3])
    return [folder / "unseen.jsonl", folder / "ood.jsonl"]


def sample(out, *flags) -> list[dict]:
    """sample.py on the embedded model; the rows it wrote."""
    call(sample_script, *flags, "--model", TINY, "--out", out)
    assert not out.with_name(out.name + ".partial").exists()
    return read_jsonl(out)


# ------------------------------------------------------------------------------------------------- the chain


@pytest.mark.parametrize("method, steps", [("soft", 3), ("hard", 3)])
def test_training_writes_adapter_log_and_provenance(adapters, method, steps):
    out = adapters[method]
    assert {p.name for p in out.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "log.jsonl",
        "run.json",
    }
    log = read_jsonl(out / "log.jsonl", ("step", "loss", "floor", "lr", "tokens", "seconds"))
    assert [entry["step"] for entry in log] == list(range(1, steps + 1))
    assert all(0 < entry["floor"] < entry["loss"] and entry["tokens"] > 0 for entry in log)
    assert log[-1]["loss"] < log[0]["loss"]
    run = json.loads((out / "run.json").read_text())
    assert run["args"]["limit"] == 48 and run["seed"] == 0 and run["versions"]["torch"] and run["device"]
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (16, 32, 0.05)
    assert sorted(config["target_modules"]) == ["k_proj", "o_proj", "q_proj", "v_proj"]


def test_defaults_are_the_papers_recipe(data, tmp_path):
    """189 steps of 32 prompts for soft, 1988 of 32 completions for hard: counted by a scheduler that stops at once."""
    for method, steps, epochs in (("soft", 189, 3), ("hard", 1988, 2)):
        code = (
            f"import sys; sys.argv = ['x', '--model', {TINY!r}, '--data', {str(data / 'train.jsonl')!r}, '--out', "
            f"{str(tmp_path / method)!r}]; import train_{method} as t\n"
            "def stop(optimizer, warmup, steps): print('STEPS', steps, warmup); raise SystemExit\n"
            "t.get_cosine_schedule_with_warmup = stop; t.main()"
        )
        result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=ENV, capture_output=True, text=True)
        assert f"STEPS {steps} {round(0.03 * steps)}" in result.stdout, result.stderr
        args = json.loads((tmp_path / method / "run.json").read_text())["args"]
        assert (args["batch"], args["epochs"], args["lr"], args["branches"]) == (32, epochs, 2e-4, 1)


def test_another_seed_is_another_adapter_and_accumulation_changes_nothing(adapters, data, tmp_path):
    weights = load_file(adapters["soft"] / "adapter_model.safetensors")
    other = load_file(train("soft", tmp_path / "other", data, *BRIEF, "--seed", 1) / "adapter_model.safetensors")
    assert any(not torch.equal(weights[key], other[key]) for key in weights)
    for method in ("soft", "hard"):
        logs = []
        for parts in (1, 3):
            out = train(
                method, tmp_path / f"{method}{parts}", data, "--limit", 24, "--epochs", 1, "--accumulate", parts
            )
            logs.append(read_jsonl(out / "log.jsonl")[0])
        assert logs[0]["floor"] == pytest.approx(logs[1]["floor"]) and logs[0]["tokens"] == logs[1]["tokens"]
        assert logs[0]["loss"] == pytest.approx(
            logs[1]["loss"], rel=1e-5
        )  # LoRA starts at 0: dropout has no effect yet


def test_chain_from_rows_to_table(adapters, prompts, tmp_path):
    files = []
    for method in ("base", "soft", "hard"):
        files.append(tmp_path / f"{method}.jsonl")
        adapter = () if method == "base" else ("--adapter", adapters[method])
        rows = sample(files[-1], "numbers", "--prompts", *prompts, "--n", 100, *adapter)
        source = [row for path in prompts for row in read_jsonl(path)]
        assert [{k: row[k] for k in source[0]} for row in rows] == source
        added = {"axis", "model", "method", "ssot", "n", "draws", "logit_kl", "logit_kl_floor", "tokens", "seconds"}
        assert all(set(row) - set(source[0]) == added for row in rows)
        assert all(
            row["method"] == method and row["model"] == TINY and sum(row["draws"].values()) == 100 for row in rows
        )
    runs = [adapters["soft"], adapters["hard"]]
    report = tmp_path / "report.md"
    result = script("metrics.py", *files, "--out", tmp_path / "s.jsonl", "--runs", *runs, "--report", report)
    assert result.returncode == 0, result.stderr
    scores = read_jsonl(tmp_path / "s.jsonl")
    assert all(list(s) == ["model", "method", "axis", "split", "metric", "value", "low", "high", "n"] for s in scores)
    expected = {(m, s, k) for m in ("base", "soft", "hard", "target") for s in ("unseen", "ood") for k in METRICS}
    assert {(s["method"], s["split"], s["metric"]) for s in scores} == expected and len(scores) == len(expected)
    table = result.stdout.split("\n\n")[1]
    assert table in report.read_text() and "Hardware: " in report.read_text() and str(report) in result.stdout
    assert [line.split("|")[3].strip() for line in table.split("\n")[2:6]] == ["base", "soft", "hard", "target"]


def test_language_and_ssot_from_prompts_to_tables(adapters, prompts, tmp_path, capsys):
    mine = tmp_path / "mine.jsonl"
    write_jsonl(mine, [{"id": "a", "prompt": "Name a random planet. Output ONLY the answer.", "note": 1}])
    long = ("--ssot", "--n", 6, "--max-tokens", 130)
    files = [tmp_path / f"{name}.jsonl" for name in ("open", "ssot", "mcq", "numbers")]
    rows = {
        "open": sample(tmp_path / "open.jsonl", "open", "--prompts", mine, "--adapter", adapters["soft"]),
        "open ssot": sample(tmp_path / "ssot.jsonl", "open", "--prompts", mine, *long),
        "mcq": sample(tmp_path / "mcq.jsonl", "mcq", "--n", 5),
        "numbers ssot": sample(tmp_path / "numbers.jsonl", "numbers", "--prompts", prompts[1], *long),
    }
    (row,) = rows["open"]
    added = {"axis", "model", "method", "ssot", "n", "draws", "support_90", "top", "tokens", "seconds"}
    assert set(row) == {"id", "prompt", "note"} | added and row["method"] == "soft"
    assert row["n"] == 100 == sum(row["draws"].values()) and row["tokens"] >= 100
    assert len(row["top"]) == 20 and all(isinstance(text, str) for text, _ in row["top"])
    probs = [p for _, p in row["top"]]
    assert probs == sorted(probs, reverse=True) and sum(probs[: row["support_90"]]) >= 0.9
    assert sum(probs[: row["support_90"] - 1]) < 0.9
    assert [row["id"] for row in rows["mcq"]] == [f"mcq-000{i}" for i in range(5)]
    assert all(row["text"] and 0 < row["tokens"] <= 256 for row in rows["mcq"])
    for row in rows["open ssot"] + rows["numbers ssot"]:
        assert row["method"] == "ssot" and row["ssot"] is True and sum(row["draws"].values()) == row["n"] == 6
        assert any("<answer>" in text for text in row["draws"]) and row["tokens"] > 100  # the raw texts are kept
    assert [row["family"] for row in rows["numbers ssot"]] == [row["family"] for row in read_jsonl(prompts[1])]
    call(metrics, *files, "--out", tmp_path / "s")
    page = capsys.readouterr().out
    assert all(metrics.TITLES[axis] in page for axis in ("numbers", "open", "mcq")) and page.count("| ssot ") == 2
    assert {row["axis"] for row in read_jsonl(tmp_path / "s")} == {"numbers", "open", "mcq"}


def test_make_asks_for_each_method_on_each_axis():
    """ssot is not trained, and has no place among generated questions; AXES narrows."""
    arguments = ["make", "-n", "-B", f"PYTHON={sys.executable}", "reproduce", "METHODS=ssot soft", "MODEL=x/y"]
    for axes, wanted in (("numbers open mcq", 8), ("numbers", 3)):
        out = subprocess.run([*arguments, f"AXES={axes}"], cwd=ROOT, env=ENV, capture_output=True, text=True).stdout
        rows = {line.split("--out ")[1] for line in out.splitlines() if " sample.py " in line}
        assert len(rows) == wanted and "runs/y/numbers/ssot.jsonl" in rows and "runs/y/mcq/ssot.jsonl" not in rows
        assert "train_ssot.py" not in out and "train_soft.py" in out and out.count("--ssot") >= 1


def test_a_method_with_options_of_its_own_is_the_same_file():
    arguments = ["make", "-n", "-B", f"PYTHON={sys.executable}", "reproduce", "METHODS=hard-matched", "MODEL=x/y"]
    out = subprocess.run(arguments, cwd=ROOT, env=ENV, capture_output=True, text=True).stdout
    assert "train_hard.py --model x/y --data runs/data/train.jsonl --out runs/y/hard-matched " in out
    assert "--branches 16 --epochs 3" in out and "--adapter runs/y/hard-matched " in out


def test_a_method_is_a_file(kit):
    """make trains method x with train_x.py and puts it in every table: no other edit."""
    tmp_path = kit
    source = (tmp_path / "train_soft.py").read_text()
    line = "    return ((kl * real).sum(1) / real.sum(1)).mean()\n"
    assert source.count(line) == 1
    (tmp_path / "train_mine.py").write_text(source.replace(line, line.replace(").mean()", ").mean() * 2")))
    arguments = [
        "make",
        f"PYTHON={sys.executable}",
        "METHODS=mine",
        "AXES=numbers",
        "N=20",
        "FLAGS=--lr 1e-3 --limit 32 --epochs 1",
    ]
    result = subprocess.run([*arguments, "reproduce"], cwd=tmp_path, env=ENV, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "| mine " in result.stdout and result.stdout.rstrip().endswith("report: runs/tiny/report.md")
    before = (tmp_path / "runs/tiny/mine/adapter_model.safetensors").stat().st_mtime_ns
    os.remove(tmp_path / "runs/tiny/numbers/mine.jsonl")  # only what is missing runs again
    result = subprocess.run([*arguments, "reproduce"], cwd=tmp_path, env=ENV, capture_output=True, text=True)
    assert (
        result.returncode == 0 and (tmp_path / "runs/tiny/mine/adapter_model.safetensors").stat().st_mtime_ns == before
    )
    assert "| mine " in (tmp_path / "runs/tiny/report.md").read_text()
    sweep = [*arguments, "sweep", "MODELS=no/such tests/tiny"]
    result = subprocess.run(sweep, cwd=tmp_path, env=ENV, capture_output=True, text=True)
    assert result.returncode != 0 and "sweep: skipped no/such" in result.stdout
    assert (
        "cannot load a tokenizer from 'no/such'" in result.stderr and "| tests/tiny | unseen | mine " in result.stdout
    )


ARCSINE = """
    "arcsine": Family("Arcsine", {"a": REAL, "b": REAL}, stats.arcsine, lambda a, b: (a, b - a),
        train=[(a, a + w) for a in lin(-2, 2, 5) for w in (1, 2, 4)], unseen=((3, 9),),
        rule=("a < b", lambda a, b: a < b)),
"""


def test_a_new_family_is_one_entry(kit, monkeypatch, capsys):
    """Data, training, draws, exact scores and table follow from the entry alone."""
    source = (kit / "distributions.py").read_text()
    (kit / "distributions.py").write_text(source.replace("FAMILIES = {\n", "FAMILIES = {" + ARCSINE))
    namespace = runpy.run_path(str(kit / "distributions.py"))
    monkeypatch.setattr(distributions, "FAMILIES", namespace["FAMILIES"])
    call(distributions, "--out", kit / "data")
    new = {
        split: [r for r in read_jsonl(kit / f"data/{split}.jsonl") if r["family"] == "arcsine"]
        for split in ("train", "unseen")
    }
    assert (
        len(new["train"]) == 15
        and new["unseen"][0]["prompt"].count("Arcsine distribution with parameters a=3, b=9") == 1
    )
    for split, rows in new.items():
        write_jsonl(kit / f"{split}.jsonl", rows)
    brief = ("--epochs", 1, "--batch", 8, "--lr", "5e-3")
    call(train_soft, "--model", TINY, "--data", kit / "train.jsonl", "--out", kit / "soft", *brief)
    for name, adapter in (("base", ()), ("soft", ("--adapter", kit / "soft"))):
        flags = ("--prompts", kit / "unseen.jsonl", "--n", 50, "--out", kit / f"{name}.jsonl")
        call(sample_script, "numbers", "--model", TINY, *adapter, *flags)
    call(metrics, kit / "base.jsonl", kit / "soft.jsonl", "--out", kit / "scores.jsonl")
    scores = {(r["method"], r["metric"]): r["value"] for r in read_jsonl(kit / "scores.jsonl")}
    assert scores["soft", "excess_kl"] < scores["base", "excess_kl"] and scores["target", "excess_kl"] == 0
    assert scores["target", "gof_pass_rate"] == 1 and "| target " in capsys.readouterr().out


# ------------------------------------------------------------------------------------------ kills and reruns


def without_time(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.mark.parametrize("kind", ["ssot", "mcq"])
def test_sampling_killed_midway_ends_the_same(kind, prompts, tmp_path):
    """No row is lost or repeated, and whatever the batch size."""
    flags = {
        "ssot": ["numbers", "--prompts", *prompts, "--n", 6, "--ssot", "--max-tokens", 60],
        "mcq": ["mcq", "--n", 24, "--max-tokens", 60],
    }[kind]
    whole = without_time(sample(tmp_path / "whole.jsonl", *flags))
    out, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    flags += ["--rows", 4]
    process = subprocess.Popen(
        command("sample.py", *flags, "--model", TINY, "--out", out), env=ENV, stderr=subprocess.PIPE
    )
    while process.poll() is None and not (partial.exists() and partial.stat().st_size):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT if kind == "mcq" else signal.SIGKILL)
    said = process.communicate()[1].decode()
    assert kind == "ssot" or said.endswith("sample.py: interrupted; run the same command again to go on\n")
    assert "Traceback" not in said and not out.exists() and partial.exists()
    with open(partial, "a") as file:
        file.write('{"id": "cut off in the mid')
    line = complaint(sample_script, *flags, "--model", TINY, "--out", out, "--seed", 5)
    assert "is of another run" in line
    assert without_time(sample(out, *flags[:-1], 3)) == whole  # with other --rows, as after running out of memory


def test_a_chain_killed_at_random_moments_ends_the_same(kit, monkeypatch):
    """Ten kills of everything that make has started, from data to table; then it is left alone."""
    brief = "--limit 48 --epochs 1 --batch 16 --lr 1e-3"
    arguments = ["make", "reproduce", f"PYTHON={sys.executable}", "METHODS=soft", "AXES=numbers", "N=100"]
    arguments += [f"FLAGS={brief}", "FLAGS_soft=$(FLAGS)"]
    for moment in np.random.default_rng(0).uniform(1, 10, 10):
        process = subprocess.Popen(
            arguments, cwd=kit, env=ENV, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(moment)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    result = subprocess.run(arguments, cwd=kit, env=ENV, capture_output=True, text=True)
    assert result.returncode == 0 and "| soft " in result.stdout, result.stderr
    monkeypatch.chdir(kit)
    call(distributions, "--out", "data")
    assert all(
        (kit / "data" / name).read_bytes() == (kit / "runs/data" / name).read_bytes() for name in os.listdir("data")
    )
    call(train_soft, "--model", "tests/tiny", "--data", "data/train.jsonl", "--out", "soft", *brief.split())
    ours, whole = (load_file(kit / folder / "adapter_model.safetensors") for folder in ("runs/tiny/soft", "soft"))
    assert all(torch.equal(ours[key], whole[key]) for key in whole)
    flags = ("numbers", "--model", "tests/tiny", "--prompts", "data/unseen.jsonl", "data/ood.jsonl", "--n", 100)
    for method, adapter in (("base", ()), ("soft", ("--adapter", "soft"))):
        call(sample_script, *flags, *adapter, "--out", "rows.jsonl")
        made = read_jsonl(kit / "runs" / "tiny" / "numbers" / f"{method}.jsonl")
        assert without_time(made) == without_time(read_jsonl(kit / "rows.jsonl"))
    assert not [file for file in kit.glob("runs/**/*") if file.suffix in (".tmp", ".partial")]


def test_gradient_checkpointing_changes_no_loss(adapters, data, tmp_path):
    train("soft", tmp_path / "soft", data, *BRIEF, "--gradient-checkpointing")
    ours, theirs = (read_jsonl(folder / "log.jsonl")[0]["loss"] for folder in (tmp_path / "soft", adapters["soft"]))
    assert ours == pytest.approx(theirs, rel=1e-5)  # of the first step, before dropout can act


@pytest.fixture
def small_disk():
    """No file may grow above 60 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_loses_nothing(adapters, data, prompts, tmp_path, small_disk):
    flags = ("numbers", "--prompts", data / "unseen.jsonl", "--adapter", adapters["hard"], "--model", TINY)
    assert "File too large" in complaint(sample_script, *flags, "--out", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
    merge = ("merge", "--model", TINY, "--adapter", adapters["hard"], "--out", tmp_path / "merged")
    assert "cannot write or read weights" in complaint(sample_script, *merge) and not (tmp_path / "merged").exists()
    line = complaint(train_soft, "--model", TINY, "--data", data / "train.jsonl", "--out", tmp_path / "soft", *BRIEF)
    assert "cannot write or read weights: " in line and not (tmp_path / "soft" / "adapter_config.json").exists()
    small_disk()
    kept = (tmp_path / "out.jsonl.partial").read_bytes().rpartition(b"\n")[0]
    assert kept.count(b"\n") >= 1
    call(sample_script, *flags, "--out", tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes().startswith(kept) and len(read_jsonl(tmp_path / "out.jsonl")) == 24


def test_out_of_memory_names_the_option(prompts, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")

    monkeypatch.setattr(trie, "extend", full)
    line = complaint(sample_script, "numbers", "--prompts", *prompts, "--model", TINY, "--out", tmp_path / "out.jsonl")
    assert "out of memory; lower --rows" in line and "--gradient-checkpointing" in line


# ------------------------------------------------------------------------------------------------- bad input


def test_an_adapter_without_effect_is_refused(adapters, tmp_path):
    idle = shutil.copytree(adapters["soft"], tmp_path / "idle")
    weights = load_file(idle / "adapter_model.safetensors")
    zeroed = {key: torch.zeros_like(value) if "lora_B" in key else value for key, value in weights.items()}
    for variant in (zeroed, {key.replace("q_proj", "other"): value for key, value in zeroed.items()}):
        save_file(variant, idle / "adapter_model.safetensors")
        with pytest.raises(InputError, match="changes nothing"):
            trie.load_model(TINY, str(idle))
    diverged = {key: torch.full_like(value, torch.nan) for key, value in weights.items()}
    save_file(diverged, idle / "adapter_model.safetensors")
    with pytest.raises(InputError, match="not finite"):
        trie.load_model(TINY, str(idle))


ROW = {"id": "a", "split": "ood", "family": "poisson", "params": {"lambda": 4}, "prompt": "p"}


@pytest.mark.parametrize(
    "lines, message",
    [
        ("", "f.jsonl: empty"),
        ('{"id": 1}\n', "f.jsonl:1: needs an object with the keys id, split, family, params, prompt"),
        ("[1]\n", "f.jsonl:1: needs an object"),
        (json.dumps(ROW) + "\n{oops\n", "f.jsonl:2: malformed JSON"),
        (json.dumps(ROW) + "\n" + json.dumps(ROW) + "\n", "f.jsonl:2: id 'a' was already at"),
        (json.dumps(ROW | {"params": {"lambda": float("nan")}}) + "\n", "f.jsonl:1: malformed JSON (NaN is not JSON"),
        (json.dumps(ROW | {"family": "fish"}) + "\n", "f.jsonl:1: unknown family 'fish'"),
        (json.dumps(ROW | {"params": {"lambda": -4}}) + "\n", "f.jsonl:1: poisson: lambda must be > 0, got -4"),
        (json.dumps(ROW | {"id": 7}) + "\n", "f.jsonl:1: id must be a text, got 7"),
        (json.dumps(ROW | {"prompt": "a\ud800"}) + "\n", "f.jsonl:1: prompt must be a text"),
        (json.dumps(ROW | {"family": ["poisson"]}) + "\n", "f.jsonl:1: unknown family ['poisson']"),
        (json.dumps(ROW | {"params": {}}) + "\n", "f.jsonl:1: poisson takes the parameters lambda"),
    ],
)
def test_bad_rows_are_one_line_with_file_and_line(tmp_path, lines, message):
    (tmp_path / "f.jsonl").write_text(lines)
    for module in (train_soft, train_hard, sample_script):
        arguments = ["numbers", "--prompts"] if module is sample_script else ["--data"]
        arguments += [tmp_path / "f.jsonl", "--model", TINY, "--out", tmp_path / "out"]
        assert message in complaint(module, *arguments)
        assert not (tmp_path / "out").exists()


def test_a_complaint_is_all_that_is_printed():
    result = script("sample.py", "numbers", "--n", 0)
    assert result.returncode == 1 and result.stdout == "" and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "module, arguments, message",
    [
        (distributions, [], "--out"),
        (distributions, ["--out", "/proc/nowhere"], "/proc/nowhere"),
        (sample_script, [], "numbers"),
        (sample_script, ["numbers", "--n", "0"], "--n: must be a positive integer, got '0'"),
        (sample_script, ["numbers", "--n", "-3"], "--n: "),
        (sample_script, ["numbers", "--model", "/no/model", "--prompts", "PROMPTS", "--out", "OUT"], "cannot load a tokenizer from '/no/model'"),
        (sample_script, ["numbers", "--model", TINY, "--prompts", "/no/file", "--out", "OUT"], "/no/file"),
        (sample_script, ["numbers", "--model", TINY, "--prompts", "PROMPTS", "--out", "/proc/x/y.jsonl"], "/proc/x"),
        (sample_script, ["numbers", "--model", TINY, "--adapter", "/no/a", "--prompts", "PROMPTS", "--out", "OUT"], "no adapter at /no/a"),
        (train_soft, ["--model", TINY, "--data", "PROMPTS", "--out", "OUT", "--epochs", "0"], "--epochs: must be a positive integer"),
        (train_soft, ["--model", TINY, "--data", "PROMPTS", "--out", "OUT", "--lr", "nan"], "--lr: must be a positive number"),
        (train_soft, ["--model", TINY, "--data", "PROMPTS", "--out", "/proc/x"], "/proc/x"),
        (train_hard, ["--model", TINY, "--data", "PROMPTS", "--out", "OUT", "--branches", "3"], "--branches 3 must divide --draws 16"),
        (train_hard, ["--model", TINY, "--data", "PROMPTS", "--out", "OUT", "--what"], "unrecognized arguments: --what"),
        (metrics, ["/no/file", "--out", "OUT"], "/no/file"),
        (sample_script, ["open", "--model", TINY, "--prompts", "/no/file", "--out", "OUT"], "/no/file"),
        (sample_script, ["open", "--model", TINY, "--out", "FOLDER"], "is a folder; --out must name a file"),
        (sample_script, ["open", "--model", TINY, "--seed", "-1", "--out", "OUT"], "--seed: must be a whole number from 0 up"),
        (sample_script, ["mcq", "--model", TINY, "--adapter", "/some/target", "--out", "OUT"], "an adapter called 'target'"),
        (sample_script, ["mcq", "--model", TINY, "--ssot", "--out", "OUT"], "unrecognized arguments: --ssot"),
        (metrics, ["PROMPTS", "--out", "OUT"], "ood.jsonl:1: needs an object with the keys"),
    ],
)  # fmt: skip
def test_bad_arguments_are_one_line(prompts, tmp_path, module, arguments, message):
    known = {"PROMPTS": prompts[1], "OUT": tmp_path / "out", "FOLDER": tmp_path}
    assert message in complaint(module, *(known.get(argument, argument) for argument in arguments))


def test_a_trained_adapter_is_not_overwritten(adapters, data):
    before = (adapters["soft"] / "run.json").read_bytes()
    arguments = ("--model", TINY, "--data", data / "train.jsonl", "--out", adapters["soft"])
    assert "already holds a trained adapter" in complaint(train_soft, *arguments)
    assert (adapters["soft"] / "run.json").read_bytes() == before


def test_an_adapter_of_another_model_is_refused(adapters, prompts, tmp_path):
    other = shutil.copytree(TINY, tmp_path / "other")
    arguments = ("numbers", "--adapter", adapters["soft"], "--prompts", *prompts, "--out", tmp_path / "out")
    assert "was trained on" in complaint(sample_script, *arguments, "--model", other)


def test_truncated_weights_are_one_line(adapters, prompts, tmp_path):
    broken, adapter = shutil.copytree(TINY, tmp_path / "m"), shutil.copytree(adapters["soft"], tmp_path / "a")
    for file in (broken / "model.safetensors", adapter / "adapter_model.safetensors"):
        file.write_bytes(file.read_bytes()[:5000])
    arguments = ("numbers", "--prompts", *prompts, "--out", tmp_path / "out")
    assert "cannot load the model" in complaint(sample_script, *arguments, "--model", broken)
    line = complaint(sample_script, *arguments, "--model", TINY, "--adapter", adapter)
    assert "does not fit" in line


def test_every_script_has_help(monkeypatch, capsys):
    for module in (distributions, train_soft, train_hard, sample_script, metrics):
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", "--help"])
        with pytest.raises(SystemExit) as ending:
            run(module.main)
        assert ending.value.code == 0 and f"python {module.__name__}.py" in capsys.readouterr().out
