"""A training that is killed goes on from its checkpoint, and ends with the same bytes."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ENV, ROOT, TINY, call, complaint

import train_hard
import train_soft
import trie

TRAINERS = {"soft": train_soft, "hard": train_hard}
# Four steps in each of two epochs. Dropout is on, so the random states matter.
FLAGS = "--limit 16 --epochs 2 --batch 4 --draws 2 --branches 2 --accumulate 2 --lr 1e-3".split()
STEPS = 8


def options(data: Path, out: Path) -> list:
    return ["--model", TINY, "--data", data / "train.jsonl", *FLAGS, "--out", out]


def without_seconds(log: Path) -> list[dict]:
    return [json.loads(line) | {"seconds": 0} for line in log.read_text().splitlines()]


def assert_same_training(folder: Path, whole: Path) -> None:
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    assert without_seconds(folder / "log.jsonl") == without_seconds(whole / "log.jsonl")
    assert not (folder / "checkpoint.pt").exists()


@pytest.fixture(scope="module", params=TRAINERS)
def whole(request, data, tmp_path_factory) -> Path:
    """An uninterrupted training; its folder is named after the method."""
    out = tmp_path_factory.mktemp("whole") / request.param
    call(TRAINERS[request.param], *options(data, out))
    return out


def train_and_die(step: int, saves: bool, method: str, arguments: list) -> None:
    """Train, but for a kill at a step, right before or after it is saved."""
    save_if_due = trie.Checkpoint.save_if_due

    def save_and_die(checkpoint, number, end_of_epoch):
        if number < step or saves:
            save_if_due(checkpoint, number, end_of_epoch)
        if number == step:
            os.kill(os.getpid(), signal.SIGKILL)

    trie.CHECKPOINT_SECONDS = 0  # save at every step
    trie.Checkpoint.save_if_due = save_and_die
    call(TRAINERS[method], *arguments)


def train_until(step: int, saves: bool, method: str, arguments: list) -> None:
    """Train in a process of its own, which is killed.

    It is forked from a server that has only imported torch: a process in which torch has already
    worked cannot be forked, and importing torch anew takes longer than the training.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train_soft", "train_hard"])
    process = context.Process(target=train_and_die, args=(step, saves, method, arguments))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_four_kills_change_no_byte(whole, data, tmp_path):
    out = tmp_path / whole.name
    rng = np.random.default_rng(0)
    killed_at = sorted(rng.choice(np.arange(1, STEPS + 1), 4, replace=False).tolist())
    for step in killed_at:
        train_until(step, bool(rng.integers(2)), whole.name, options(data, out))
        assert not (out / "adapter_model.safetensors").exists()
    assert (out / "checkpoint.pt").exists()
    call(TRAINERS[whole.name], *options(data, out))
    assert_same_training(out, whole)


def test_it_is_saved_at_the_end_of_an_epoch_and_every_five_minutes(data, tmp_path, monkeypatch):
    saved, now = [], [0.0]
    replace = os.replace

    def note_and_replace(source, target):
        if Path(target).name == "checkpoint.pt":
            saved.append(len((tmp_path / "soft" / "log.jsonl").read_text().splitlines()))
        replace(source, target)

    def clock():
        now[0] += 29.0  # it is read at the start, at each step, and after saving
        return now[0]

    monkeypatch.setattr(trie.os, "replace", note_and_replace)
    call(train_soft, *options(data, tmp_path / "soft"))
    assert saved == [4, 8]
    shutil.rmtree(tmp_path / "soft")
    saved.clear()
    monkeypatch.setattr(trie, "CHECKPOINT_SECONDS", 60)
    monkeypatch.setattr(trie.time, "monotonic", clock)
    call(train_soft, *options(data, tmp_path / "soft"))
    assert saved == [3, 4, 7, 8]


@pytest.mark.parametrize("changed", ["options", "data", "code", "identity"])
def test_a_checkpoint_of_another_training_is_an_error(changed, data, tmp_path, monkeypatch):
    out = tmp_path / "soft"
    train_until(2, True, "soft", options(data, out))
    arguments = options(data, out)
    if changed == "options":
        arguments += ["--seed", "1"]
    if changed == "data":
        lines = (data / "train.jsonl").read_text().splitlines(True)
        (tmp_path / "train.jsonl").write_text("".join(lines[1:]))
        arguments += ["--data", tmp_path / "train.jsonl"]
    if changed == "code":
        shutil.copy(ROOT / "train_soft.py", tmp_path / "other.py")
        (tmp_path / "other.py").open("a").write("# another script\n")
        monkeypatch.setattr(train_soft, "__file__", str(tmp_path / "other.py"))
    if changed == "identity":
        shutil.copytree(TINY, tmp_path / "tiny")
        (tmp_path / "tiny" / "more.json").write_text("{}")
        arguments += ["--model", tmp_path / "tiny"]
    before = (out / "checkpoint.pt").read_bytes(), (out / "log.jsonl").read_bytes()
    line = complaint(train_soft, *arguments)
    assert "checkpoint.pt" in line and f"different {changed}" in line and str(out) in line
    assert before == ((out / "checkpoint.pt").read_bytes(), (out / "log.jsonl").read_bytes())


DRIVER = f"""
import json, os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
import distributions, train_hard, train_soft, trie

save_if_due = trie.Checkpoint.save_if_due
trie.CHECKPOINT_SECONDS = 0

for method, killed_at, arguments in json.loads(sys.argv[1]):

    def save_and_die(checkpoint, number, end_of_epoch):
        save_if_due(checkpoint, number, end_of_epoch)
        if number == killed_at and checkpoint.accelerator.process_index == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    trie.Checkpoint.save_if_due = save_and_die
    sys.argv = [f"train_{{method}}.py", *arguments]
    {{"soft": train_soft, "hard": train_hard}}[method].main()
assert trie.processes().num_processes == 2
"""


def train_in_two_processes(driver: Path, trainings: list[tuple]) -> int:
    """Run trainings one after the other: (method, the step at which it is killed, arguments)."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    launch += ["--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"]
    words = [*launch, str(driver), json.dumps(trainings, default=str)]
    return subprocess.run(words, env=ENV, capture_output=True, text=True).returncode


def test_two_processes_go_on_as_well(data, tmp_path):
    (driver := tmp_path / "driver.py").write_text(DRIVER)
    soft, hard = (options(data, tmp_path / "killed" / method) for method in TRAINERS)
    whole_soft, whole_hard = (options(data, tmp_path / "whole" / method) for method in TRAINERS)

    assert train_in_two_processes(driver, [("soft", 3, soft)]) != 0
    assert train_in_two_processes(driver, [("soft", 0, soft), ("hard", 6, hard)]) != 0
    assert (tmp_path / "killed" / "hard" / "checkpoint.pt").exists()
    rest = [("hard", 0, hard), ("soft", 0, whole_soft), ("hard", 0, whole_hard)]
    assert train_in_two_processes(driver, rest) == 0
    for method in TRAINERS:
        assert_same_training(tmp_path / "killed" / method, tmp_path / "whole" / method)
