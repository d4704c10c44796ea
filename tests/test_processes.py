"""Several processes, as `accelerate launch` starts them, on one machine or on two: they do the work of one."""

import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ENV, FILES, ROOT, TINY, call
from peft import LoraConfig
from safetensors.torch import load_file

import sample
import train_hard
import train_soft
import trie
from distributions import read_rows, to_jsonl, write_text

# 5 of 10 prompts each, in passes of 3 and 2.
TRAINING = (
    "--model",
    TINY,
    "--limit",
    20,
    "--epochs",
    1,
    "--batch",
    10,
    "--accumulate",
    2,
    "--draws",
    8,
    "--branches",
    4,
)
DRAWING = ("numbers", "--model", TINY, "--rows", 2048)
STEPS = 20 * 8 // 4 // 10

DRIVER = """
import runpy, sys
for line in open("commands"):
    sys.argv = line.split()
    runpy.run_path(sys.argv[0], run_name="__main__")
import trie
assert trie.processes().num_processes == 2  # each alone would make the same
"""


def launch(folder: Path, machines: int) -> None:
    """Run folder/driver.py as two processes, started by one launch on each machine; here all of them are this host.

    subtle: without --multi_gpu a launch on a machine with one GPU or none starts one process that knows of no other.
    The flag asks for no GPU: on a CPU the processes are joined by gloo.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
    ]
    command += [
        "--num_machines",
        str(machines),
        "--main_process_ip",
        "127.0.0.1",
        "--main_process_port",
        str(port),
    ]
    ranks = [["--machine_rank", str(rank), "driver.py"] for rank in range(machines)]
    deadline = time.monotonic() + 600
    with open(folder / "output", "w+") as output:
        options = {"cwd": folder, "env": ENV, "stdout": output, "stderr": output}
        launches = [subprocess.Popen(command + rank, **options) for rank in ranks]
        try:  # one that fails before the processes meet leaves the other waiting, so neither is waited for by itself
            while None in (codes := [started.poll() for started in launches]) and not any(codes):
                assert time.monotonic() < deadline, (folder / "output").read_text()
                time.sleep(0.1)
        finally:
            for started in launches:
                started.terminate()  # what it started ends with it
                started.wait()
    assert codes == [0] * machines, (folder / "output").read_text()


@pytest.fixture(scope="module")
def one(data, tmp_path_factory) -> Path:
    """A folder with what one process made: soft, hard, numbers.jsonl, of prompts.jsonl.

    Without dropout, whose masks depend on how rows are laid out.
    """
    folder = tmp_path_factory.mktemp("one")
    write_text(folder / "prompts.jsonl", to_jsonl(read_rows([data / "ood.jsonl"])[:5]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            trie, "LoraConfig", lambda **options: LoraConfig(**options | {"lora_dropout": 0.0})
        )
        for module in (train_soft, train_hard):
            call(module, *TRAINING, "--data", data / "train.jsonl", "--out", folder / module.METHOD)
    call(sample, *DRAWING, "--prompts", folder / "prompts.jsonl", "--out", folder / "numbers.jsonl")
    return folder


@pytest.fixture(scope="module", params=[1, 2], ids=["one machine", "two machines"])
def two(request, one, data, tmp_path_factory) -> Path:
    """A folder with the same of two processes, on one machine or on two that share the folder."""
    folder = tmp_path_factory.mktemp("two")
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    source = (ROOT / "trie.py").read_text()
    assert source.count("lora_dropout=0.05") == 1
    (folder / "trie.py").write_text(source.replace("lora_dropout=0.05", "lora_dropout=0.0"))
    commands = [
        ("train_soft.py", *TRAINING, "--data", data / "train.jsonl", "--out", "soft"),
        ("train_hard.py", *TRAINING, "--data", data / "train.jsonl", "--out", "hard"),
        ("sample.py", *DRAWING, "--prompts", one / "prompts.jsonl", "--out", "numbers.jsonl"),
    ]
    (folder / "commands").write_text(
        "".join(" ".join(map(str, command)) + "\n" for command in commands)
    )
    (folder / "driver.py").write_text(DRIVER)
    launch(folder, request.param)
    return folder


@pytest.mark.parametrize("method", ["soft", "hard"])
def test_two_processes_train_as_one(method, two, one):
    ours, theirs = (
        load_file(folder / method / "adapter_model.safetensors") for folder in (two, one)
    )
    assert any(value.abs().max() > 1e-5 for key, value in ours.items() if "lora_B" in key)
    assert all(torch.allclose(ours[key], theirs[key], atol=1e-5, rtol=0) for key in theirs)
    logs = [read_rows([folder / method / "log.jsonl"]) for folder in (two, one)]
    assert len(logs[0]) == len(logs[1]) == STEPS
    assert [row["tokens"] for row in logs[0]] == [row["tokens"] for row in logs[1]]
    assert [row["loss"] for row in logs[0]] == pytest.approx(
        [row["loss"] for row in logs[1]], rel=1e-5
    )


def test_two_processes_draw_the_rows_of_one(two, one):
    ours, theirs = (
        [r | {"seconds": 0} for r in read_rows([folder / "numbers.jsonl"])] for folder in (two, one)
    )
    for row in ours:
        row |= {key: pytest.approx(row[key], rel=1e-6) for key in row if key.startswith("logit_kl")}
    assert theirs == ours and not list(two.glob("*.partial*"))
