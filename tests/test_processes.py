"""Several processes, started by `accelerate launch` on one machine or two, do the work of one.

Dropout is off here, because its masks depend on how rows are divided between processes.
"""

import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ENV, ROOT, TINY, call
from peft import LoraConfig
from safetensors.torch import load_file

import sample
import train_hard
import train_soft
from distributions import read_rows, to_jsonl, write_text

# Of two processes, each takes 5 of a step's 10 units, in passes of 3 and 2.
TRAINING = "--epochs 1 --limit 20 --batch 10 --accumulate 2 --draws 8 --branches 4".split()
STEPS = 20 * 8 // 4 // 10
DRAWING = ("numbers", "--model", TINY, "--rows", 2048)  # 2 prompts at a time

DRIVER = """
import runpy
import sys
from pathlib import Path

import peft

real_config = peft.LoraConfig


def config_without_dropout(**options):
    return real_config(**options | {"lora_dropout": 0.0})


peft.LoraConfig = config_without_dropout
for line in Path(__file__).with_name("commands").read_text().splitlines():
    sys.argv = line.split()
    sys.path.insert(0, str(Path(sys.argv[0]).parent))  # as Python does when it runs a script
    runpy.run_path(sys.argv[0], run_name="__main__")

import trie

assert trie.processes().num_processes == 2  # each of them alone would make the same files
"""


def launch(driver: Path, folders: list[Path]) -> None:
    """Run a script as two processes. Each folder is a machine; its processes run there.

    subtle: without --multi_gpu, a launch on a machine with one GPU or none starts one process that
    knows of no other. The flag asks for no GPU: on CPUs, gloo joins the processes.
    """
    machines = len(folders)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    command += ["--num_processes", "2", "--num_machines", str(machines)]
    command += ["--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]

    said = driver.with_name("output")
    deadline = time.monotonic() + 600
    launches = []
    with open(said, "w") as output:
        try:
            for rank, folder in enumerate(folders):
                words = [*command, "--machine_rank", str(rank), str(driver)]
                options = {"cwd": folder, "env": ENV, "stdout": output, "stderr": output}
                launches.append(subprocess.Popen(words, **options))
            # A process that fails early leaves the other waiting for it, so wait for any failure.
            codes = [None] * machines
            while None in codes and not any(codes):
                assert time.monotonic() < deadline, said.read_text()
                time.sleep(0.1)
                codes = [launched.poll() for launched in launches]
        finally:
            for launched in launches:
                launched.terminate()  # and with it the processes that it started
                launched.wait()
    assert codes == [0] * machines, said.read_text()


@pytest.fixture(scope="module")
def one(data, tmp_path_factory) -> Path:
    """What one process makes of prompts.jsonl: soft, hard and numbers.jsonl."""

    def config_without_dropout(**options):
        return LoraConfig(**options | {"lora_dropout": 0.0})

    folder = tmp_path_factory.mktemp("one")
    write_text(folder / "prompts.jsonl", to_jsonl(read_rows([data / "ood.jsonl"])[:5]))
    flags = ("--model", TINY, "--data", data / "train.jsonl", *TRAINING)
    with pytest.MonkeyPatch.context() as patch:
        for method, trainer in (("soft", train_soft), ("hard", train_hard)):
            patch.setattr(trainer, "LoraConfig", config_without_dropout)
            call(trainer, *flags, "--out", folder / method)
    call(sample, *DRAWING, "--prompts", folder / "prompts.jsonl", "--out", folder / "numbers.jsonl")
    return folder


def marked(line: str) -> str:
    """A row that says it has no tokens, as no row that is drawn does."""
    return re.sub(r'"tokens": [0-9]+', '"tokens": 0', line)


def leave_partial(one: Path, folder: Path) -> None:
    """Put into a folder what a killed run leaves: three rows, which are marked, and half of one."""
    lines = (one / "numbers.jsonl").read_text().splitlines(keepends=True)
    finished = [marked(line) for line in lines[:3]]
    (folder / "resumed.jsonl.partial").write_text("".join(finished) + lines[3][:40])
    shutil.copy(one / "numbers.run.json", folder / "resumed.run.json")


@pytest.fixture(scope="module", params=[1, 2], ids=["one machine", "two machines"])
def two(request, one, data, tmp_path_factory) -> Path:
    """What two processes make of the same, on one machine or on two that share no folder.

    They also go on with resumed.jsonl, where a run was killed.
    """
    folder = tmp_path_factory.mktemp("two")
    machines = [folder / f"machine-{rank}" for rank in range(request.param)]
    for machine in machines:
        machine.mkdir()
    leave_partial(one, machines[0])

    training = f"--model {TINY} --data {data / 'train.jsonl'} {' '.join(TRAINING)}"
    drawing = f"{' '.join(map(str, DRAWING))} --prompts {one / 'prompts.jsonl'}"
    commands = [
        f"{ROOT / 'train_soft.py'} {training} --out soft",
        f"{ROOT / 'train_hard.py'} {training} --out hard",
        f"{ROOT / 'sample.py'} {drawing} --out numbers.jsonl",
        f"{ROOT / 'sample.py'} {drawing} --out resumed.jsonl",
    ]
    (folder / "commands").write_text("\n".join(commands) + "\n")
    (folder / "driver.py").write_text(DRIVER)
    launch(folder / "driver.py", machines)
    return machines[0]


@pytest.mark.parametrize("method", ["soft", "hard"])
def test_two_processes_train_as_one(method, two, one):
    ours = load_file(two / method / "adapter_model.safetensors")
    theirs = load_file(one / method / "adapter_model.safetensors")
    assert any(value.abs().max() > 1e-5 for key, value in ours.items() if "lora_B" in key)
    assert ours.keys() == theirs.keys()
    for key in theirs:
        assert torch.allclose(ours[key], theirs[key], atol=1e-5, rtol=0)

    our_log = read_rows([two / method / "log.jsonl"])
    their_log = read_rows([one / method / "log.jsonl"])
    assert len(our_log) == len(their_log) == STEPS
    assert [row["tokens"] for row in our_log] == [row["tokens"] for row in their_log]
    losses = [row["loss"] for row in their_log]
    assert [row["loss"] for row in our_log] == pytest.approx(losses, rel=1e-5)


def text_without_seconds(file: Path) -> str:
    """A file of rows, byte for byte but for the time that each took."""
    return re.sub(r'"seconds": [-+.e0-9]+', '"seconds": 0', file.read_text())


def test_two_processes_draw_the_rows_of_one(two, one):
    expected = text_without_seconds(one / "numbers.jsonl")
    assert len(expected.splitlines()) == 5
    assert text_without_seconds(two / "numbers.jsonl") == expected


def test_two_processes_go_on_where_a_run_was_killed(two, one):
    """The rows that were finished are kept; the others are those of a run that was not killed."""
    lines = text_without_seconds(one / "numbers.jsonl").splitlines(keepends=True)
    finished = [marked(line) for line in lines[:3]]
    assert finished != lines[:3]
    assert text_without_seconds(two / "resumed.jsonl") == "".join(finished + lines[3:])


def test_only_the_main_process_writes(two):
    """A second machine, which shares no folder with the first, stays empty."""
    written = {path.parent for path in two.parent.glob("machine-*/*")}
    assert written == {two}


def test_no_partial_file_is_left(two):
    assert not list(two.glob("*.partial*"))
