"""What make does: it makes what is missing, keeps what is finished, and mixes in nothing stale.

A small run of the bundled model is made once. Most tests change something in a copy of it, and
run make there again. Where only the plan matters, the interpreter prints its arguments and runs
nothing.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ENV, FILES, ROOT, TINY, call

import metrics

# The variables of the small run. It asks its own questions, a few at a time.
SMALL = {
    "PYTHON": "./python",
    "METHODS": "soft",
    "AXES": "numbers open",
    "N": "4",
    "FLAGS": "--limit 16 --batch 2 --epochs 2 --lr 1e-3",
    "FLAGS_soft": "--draws 2 --branches 2",
    "FLAGS_numbers": "--paths 4 --rows 8",
    "FLAGS_open": "--n 2 --rows 4 --prompts questions.json",
}
QUESTIONS = [f"Name a city whose name has {letters} letters." for letters in range(4, 28)]

# The interpreter of all tests. With PLAN it only prints what it would run.
INTERPRETER = f"""#!/bin/sh
if [ "$PLAN" ]; then echo "$@"; else exec {sys.executable} "$@"; fi
"""

# An interpreter that writes a stage's file without any work, and does not end if WAIT names it.
PRETENDER = """#!/bin/sh
for out; do :; done  # the last argument
case $1 in distributions.py) exit ;; train_*) out=$out/adapter_model.safetensors ;; esac
printf 'one\\ntwo\\n' > $out
if [ "$out" = "$WAIT" ]; then exec sleep 100; fi
"""

DATA = "runs/data/train.jsonl"
NUMBERS = "runs/tiny/base/numbers.jsonl"
OPEN = "runs/tiny/base/open.jsonl"
ADAPTER = "runs/tiny/soft/adapter_model.safetensors"
TUNED_OPEN = "runs/tiny/soft/open.jsonl"
MINE = "runs/tiny/mine/adapter_model.safetensors"
TABLES = {"runs/tiny/scores.jsonl", "runs/tiny/report.md"}


def command(goals: tuple[str, ...], variables: dict[str, str]) -> list[str]:
    """make's command line for some goals, with the small run's variables, some of them changed."""
    assignments = [f"{name}={value}" for name, value in (SMALL | variables).items()]
    return ["make", *(goals or ("reproduce",)), *assignments]


def make(folder: Path, *goals: str, **variables: str) -> subprocess.CompletedProcess:
    """Run make in a kit's folder, as a user would."""
    words = command(goals, variables)
    return subprocess.run(words, cwd=folder, env=ENV, capture_output=True, text=True, timeout=900)


def plan(folder: Path, *goals: str, **variables: str) -> list[str]:
    """The commands that make would run, each as a script and its options, in order.

    distributions.py only checks the prompts that are there already, so then it does not count.
    """
    words = command(goals, variables)
    env = ENV | {"PLAN": "1"}
    result = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    printed = re.compile(r"(launch )?\S+\.py |-m \S+ ")  # make's own lines begin with ./python
    lines = [line for line in result.stdout.splitlines() if printed.match(line)]
    if (folder / variables.get("DATA", "runs/data") / "train.jsonl").exists():
        lines = [line for line in lines if not line.startswith("distributions.py ")]
    return lines


def would_make(folder: Path, *goals: str, **variables: str) -> list[str]:
    """The files and folders that make would have made, but for the tables, sorted by name."""
    lines = plan(folder, *goals, **variables)
    return sorted({line.split(" --out ")[1] for line in lines if not line.startswith("metrics.py")})


def complaints(result: subprocess.CompletedProcess) -> list[str]:
    """What was said on stderr, but for make's own lines."""
    lines = result.stderr.splitlines()
    return [line for line in lines if not line.startswith("make: *** ")]


def refusal(result: subprocess.CompletedProcess) -> tuple[str, str, str, str]:
    """What make says of one file that was made with other settings, and nothing else.

    It is: the file, how it was made, how it would be made now, and what to remove.
    """
    *difference, last = complaints(result)
    message = re.fullmatch(
        r"(\S+) was made with other settings or files \(< then, > now\)\. To redo it, remove (\S+)",
        last,
    )
    assert message, last
    then = [line[2:] for line in difference if line.startswith("< ")]
    now = [line[2:] for line in difference if line.startswith("> ")]
    others = [line for line in difference if line[:2] not in ("< ", "> ")]
    assert all(re.fullmatch(r"[0-9acd,]+|---", line) for line in others), others  # diff's own
    return message[1], "\n".join(then), "\n".join(now), message[2]


def snapshot(folder: Path) -> dict[str, tuple]:
    """Every file and folder of a kit: its bytes, and when it was written (of a folder neither)."""
    found = {}
    for path in folder.rglob("*"):
        if "__pycache__" in path.parts:
            continue
        entry = (path.read_bytes(), path.stat().st_mtime_ns) if path.is_file() else (None, None)
        found[str(path.relative_to(folder))] = entry
    return found


def changed(before: dict, after: dict) -> set[str]:
    """The names whose entries in two snapshots differ."""
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def shell(folder: Path, change: str) -> None:
    subprocess.run(change, shell=True, cwd=folder, check=True)


def write_interpreter(folder: Path, text: str) -> None:
    (folder / "python").write_text(text)
    (folder / "python").chmod(0o755)


def new_kit(folder: Path) -> Path:
    """A kit that has made nothing yet."""
    (folder / "tests" / "extras").mkdir(parents=True)
    requirements = [path.name for path in ROOT.glob("requirements*.txt")]
    for name in ("Makefile", *FILES, *requirements):
        shutil.copy(ROOT / name, folder)
    for name in ("rules.mk", "published.jsonl"):
        shutil.copy(ROOT / "tests" / "extras" / name, folder / "tests" / "extras")
    shutil.copytree(TINY, folder / "tests" / "tiny")
    (folder / "questions.json").write_text(json.dumps(QUESTIONS))
    write_interpreter(folder, INTERPRETER)
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A kit with a finished small run, and with the adapter of a fork that has drawn nothing."""
    folder = new_kit(tmp_path_factory.mktemp("make") / "kit")
    shutil.copy(folder / "train_soft.py", folder / "train_mine.py")
    result = make(folder, MINE, "reproduce")
    assert result.returncode == 0, result.stderr
    assert "| soft " in result.stdout and "| mine " not in result.stdout
    return folder


@pytest.fixture
def kit(finished, tmp_path) -> Path:
    """A copy of the finished kit, to change things in."""
    return shutil.copytree(finished, tmp_path / "kit")


@pytest.fixture
def empty_kit(tmp_path) -> Path:
    return new_kit(tmp_path / "kit")


# ------------------------------------------------------------- what was made with other settings


def refused(case: str, change: str, file: str, then: str, now: str, remove: str, **variables):
    """A case of the next test.

    A shell command makes a change in the kit, and make is asked for a file with some variables. It
    must answer that the file was made with `then`, which is `now` something else, and that
    `remove` must be removed to redo it.
    """
    return pytest.param(change, variables, file, then, now, remove, id=case)


OTHER_FLAGS = SMALL["FLAGS"].replace("1e-3", "2e-3")
REFUSED = [
    refused("N", "", NUMBERS, "--n 4", "--n 30", NUMBERS, N="30"),
    refused("FLAGS", "", ADAPTER, "--lr 1e-3", "--lr 2e-3", "runs/tiny/soft", FLAGS=OTHER_FLAGS),
    refused(
        "FLAGS of a method", "", ADAPTER, "--draws 2", "--draws 4", "runs/tiny/soft",
        FLAGS_soft="--draws 4 --branches 2",
    ),
    refused(
        "FLAGS of an axis", "", OPEN, "--n 2", "--n 5", OPEN,
        FLAGS_open="--n 5 --rows 4 --prompts questions.json",
    ),
    refused("SEED of the draws", "", OPEN, "--seed 0", "--seed 1", OPEN, SEED="1"),
    refused("SEED of a training", "", ADAPTER, "--seed 0", "--seed 1", "runs/tiny/soft", SEED="1"),
    refused(
        "another model of the same name", "cp -r tests/tiny tiny", OPEN,
        "--model tests/tiny", "--model tiny", OPEN, MODEL="tiny",
    ),
    refused(
        "an edited trainer", "echo '# new' >> train_soft.py", ADAPTER,
        "train_soft.py", "train_soft.py", "runs/tiny/soft",
    ),
    refused(
        "an edited fork", "echo '# new' >> train_mine.py", MINE,
        "train_mine.py", "train_mine.py", "runs/tiny/mine", METHODS="mine",
    ),
    refused(
        "an edited file that the flags name", "sed -i s/city/town/ questions.json", OPEN,
        "questions.json", "questions.json", OPEN,
    ),
    refused(
        "other weights of an adapter", "echo >> runs/tiny/soft/adapter_model.safetensors",
        TUNED_OPEN, "adapter_model.safetensors", "adapter_model.safetensors", TUNED_OPEN,
    ),
]  # fmt: skip


@pytest.mark.parametrize("change, variables, file, then, now, remove", REFUSED)
def test_a_file_that_was_made_with_other_settings_is_an_error(
    kit, change, variables, file, then, now, remove
):
    """The error shows the difference and nothing else, and nothing on disk changes."""
    shell(kit, change)
    before = snapshot(kit)

    result = make(kit, file, **variables)
    assert result.returncode != 0
    assert result.stdout == ""
    assert changed(before, snapshot(kit)) == set()

    its_name, made_with, asked_for, to_remove = refusal(result)
    assert its_name == file and to_remove == remove
    assert bool(made_with) == (then != "")
    assert then in made_with and now in asked_for


def test_a_file_without_its_record_is_an_error(kit):
    (kit / f"{OPEN}.made").unlink()
    before = snapshot(kit)
    result = make(kit, OPEN)
    difference, message = complaints(result)
    assert f"{OPEN}.made: No such file" in difference
    assert message.startswith(f"{OPEN} was made with other settings or files ")
    assert message.endswith(f" remove {OPEN}")
    assert changed(before, snapshot(kit)) == set()


@pytest.mark.parametrize(
    "change, file, variables",
    [
        ("", "unseen.jsonl", {"FLAGS_data": "--decimals 2"}),
        ("sed -i s/ONE/one/ runs/data/train.jsonl", "train.jsonl", {}),
        ("sed -i s/ONE/one/ runs/data/ood.jsonl", "ood.jsonl", {}),
        ("sed -i s/ONE/one/ distributions.py", "unseen.jsonl", {}),
    ],
)
def test_prompts_that_would_be_different_are_an_error(kit, change, file, variables):
    shell(kit, change)
    before = snapshot(kit)
    result = make(kit, NUMBERS, **variables)
    assert result.returncode != 0
    (line,) = complaints(result)
    assert line.startswith(f"distributions.py: error: runs/data/{file} ")
    assert "different prompts" in line and "remove it" in line
    assert changed(before, snapshot(kit)) == set()


def test_your_own_prompts_are_used_as_they_are(kit):
    """Prompts that make has not made may be any (exercise 7 of the README)."""
    (kit / "runs/own").mkdir()
    for split in ("train", "unseen", "ood"):
        shutil.copy(kit / f"runs/data/{split}.jsonl", kit / "runs/own")
    shell(kit, "sed -i s/ONE/one/ runs/own/*.jsonl")
    before = snapshot(kit)
    result = make(kit, "runs/own/train.jsonl", "runs/own/ood.jsonl", DATA="runs/own")
    assert result.returncode == 0, result.stderr
    assert changed(before, snapshot(kit)) == set()


@pytest.mark.parametrize(
    "prompts, file, remove",
    [
        ("train.jsonl", ADAPTER, "runs/tiny/soft"),
        ("unseen.jsonl", NUMBERS, NUMBERS),
        ("ood.jsonl", NUMBERS, NUMBERS),
    ],
)
def test_what_was_made_with_other_prompts_is_an_error(kit, prompts, file, remove):
    """Here distributions.py does not complain first."""
    write_interpreter(kit, PRETENDER)
    shell(kit, f"sed -i s/ONE/one/ runs/data/{prompts}")
    before = snapshot(kit)
    its_name, made_with, asked_for, to_remove = refusal(make(kit, file))
    assert its_name == file and to_remove == remove
    assert f" runs/data/{prompts}" in made_with and f" runs/data/{prompts}" in asked_for
    assert changed(before, snapshot(kit)) == set()


@pytest.mark.parametrize(
    "file, variables",
    [
        ("base/open.jsonl", {"FLAGS_open": "--prompts mine.json"}),
        ("base/open.jsonl", {"FLAGS_open": "--prompts=mine.json"}),
        ("soft/adapter_model.safetensors", {"FLAGS": "--words mine.json"}),
        ("soft/adapter_model.safetensors", {"FLAGS_soft": "--words mine.json"}),
    ],
)
def test_every_file_that_flags_name_is_watched(kit, file, variables):
    write_interpreter(kit, PRETENDER)
    (kit / "mine.json").write_text("[]")
    goal = f"runs/new/{file}"
    for _ in range(2):
        assert make(kit, goal, RUN="runs/new", **variables).returncode == 0
    (kit / "mine.json").write_text('["Name a city."]')
    _, made_with, asked_for, _ = refusal(make(kit, goal, RUN="runs/new", **variables))
    assert "mine.json" in made_with and "mine.json" in asked_for


def test_an_error_stops_make_before_the_tables(kit):
    """Stages that run side by side may each have their message, but there is nothing else."""
    before = snapshot(kit)
    result = make(kit, SEED="1")
    assert result.returncode != 0
    assert result.stdout == ""
    assert changed(before, snapshot(kit)) == set()
    message = r"\S+ was made with other settings or files .*"
    for line in complaints(result):
        assert re.fullmatch(rf"[<>] .*|[0-9acd,]+|---|{message}", line), line


# ---------------------------------------------------------------------------- what is kept


KEPT = [
    pytest.param("", id="a plain rerun"),
    pytest.param(
        "touch *.py Makefile questions.json tests/tiny/* runs/*/*.* runs/tiny/*/*",
        id="touched files",
    ),
    pytest.param(
        "echo '# new' | tee -a sample.py trie.py metrics.py train_hard.py train_mine.py",
        id="other edited files",
    ),
    pytest.param("cp train_soft.py train_new.py", id="a new trainer"),
]


@pytest.mark.parametrize("change", KEPT)
def test_a_finished_run_is_kept(kit, change):
    """Only the tables are made again."""
    shell(kit, change)
    before = snapshot(kit)
    (line,) = plan(kit)
    assert line.startswith("metrics.py ")
    assert changed(before, snapshot(kit)) == set()


def test_what_runs_a_stage_may_change(kit):
    shell(kit, "cp python python3")
    assert would_make(kit, PYTHON="./python3") == would_make(kit, LAUNCH="./python3 launch") == []


def test_the_tables_are_made_and_shown_again(kit):
    """They hold nothing but what is in the rows, so they follow an edited metrics.py."""
    shell(kit, 'sed -i \'s/"norm. W1"/"my distance"/\' metrics.py')
    before = snapshot(kit)
    result = make(kit)
    assert result.returncode == 0, result.stderr
    assert "| my distance " in result.stdout
    assert "| my distance " in (kit / "runs/tiny/report.md").read_text()
    assert changed(before, snapshot(kit)) == TABLES


def test_methods_and_axes_choose_what_the_tables_show(kit):
    lines = plan(kit, METHODS="", AXES="open")
    out = "--out runs/tiny/scores.jsonl --report runs/tiny/report.md"
    assert lines == [f"metrics.py {OPEN} {out}"]

    *_, line = plan(kit, METHODS="mine soft", AXES="open")
    assert line == f"metrics.py {OPEN} runs/tiny/mine/open.jsonl {TUNED_OPEN} {out}"


# ---------------------------------------------------------------------------- what is made


MISSING = [
    ("rm runs/tiny/soft/open.jsonl", {}, ["soft/open.jsonl"]),
    ("rm -r runs/tiny/base", {}, ["base/numbers.jsonl", "base/open.jsonl"]),
    ("rm -r runs/tiny/soft", {}, ["soft", "soft/numbers.jsonl", "soft/open.jsonl"]),
    ("", {"METHODS": "mine"}, ["mine/numbers.jsonl", "mine/open.jsonl"]),
    ("", {"METHODS": "soft hard"}, ["hard", "hard/numbers.jsonl", "hard/open.jsonl"]),
    ("", {"AXES": "mcq open"}, ["base/mcq.jsonl", "soft/mcq.jsonl"]),
    ("", {"METHODS": "ssot"}, ["ssot/numbers.jsonl", "ssot/open.jsonl"]),
    ("", {"METHODS": "ssot", "AXES": "open mcq"}, ["base/mcq.jsonl", "ssot/open.jsonl"]),
]


@pytest.mark.parametrize("change, variables, made", MISSING)
def test_only_what_is_missing_is_made(kit, change, variables, made):
    shell(kit, change)
    before = snapshot(kit)
    assert would_make(kit, **variables) == [f"runs/tiny/{name}" for name in made]
    after = snapshot(kit)
    assert all(after[name] == before[name] for name in before if not name.endswith(".made"))


def test_what_a_kill_left_beside_a_missing_file_does_not_matter(kit):
    (kit / TUNED_OPEN).unlink()
    (kit / f"{TUNED_OPEN}.made").write_text("half a comm")
    assert would_make(kit) == [TUNED_OPEN]


@pytest.mark.parametrize("gone", ["runs/data", "runs/data/ood.jsonl", "runs/data/unseen.jsonl"])
def test_prompts_that_are_gone_are_made_again(kit, gone):
    """They come out the same, so what was made with them is kept."""
    before = {path.name: path.read_bytes() for path in kit.glob("runs/data/*")}
    shell(kit, f"rm -r {gone}")
    result = make(kit, DATA, "runs/data/ood.jsonl")
    assert result.returncode == 0, result.stderr
    assert {path.name: path.read_bytes() for path in kit.glob("runs/data/*")} == before
    assert would_make(kit) == []


def test_a_stage_can_be_asked_for_by_name(kit):
    assert plan(kit, TUNED_OPEN) == []
    (kit / TUNED_OPEN).unlink()
    assert would_make(kit, TUNED_OPEN) == [TUNED_OPEN]
    (kit / NUMBERS).unlink()
    assert would_make(kit, TUNED_OPEN) == [TUNED_OPEN]


@pytest.mark.parametrize("variables", [{"METHODS": ""}, {"METHODS": "hard"}, {"AXES": "numbers"}])
def test_methods_and_axes_do_not_matter_to_a_stage_that_is_asked_for(kit, variables):
    assert plan(kit, TUNED_OPEN, **variables) == []


@pytest.mark.parametrize("method", ["mine", "hard"])
def test_a_method_that_is_not_in_methods_draws_from_its_own_adapter(kit, method):
    """The adapter of mine is there, but hard must be trained first."""
    *training, line = plan(kit, f"runs/tiny/{method}/open.jsonl", METHODS="soft")
    assert f" --adapter runs/tiny/{method} " in line
    assert [words.split()[0] for words in training] == ["train_hard.py"] * (method == "hard")


def test_every_method_has_its_own_file_and_flags(empty_kit):
    """A link of a trainer is a method of its own; ssot is not trained, and draws no exams."""
    (empty_kit / "train_longer.py").symlink_to("train_hard.py")
    lines = plan(
        empty_kit,
        MODEL="x/y",
        METHODS="soft longer ssot",
        AXES="numbers open mcq",
        FLAGS_longer="--branches 16 --epochs 4",
        FLAGS_ssot="--max-tokens 64",
    )

    flags, soft, numbers, questions = (
        SMALL[name] for name in ("FLAGS", "FLAGS_soft", "FLAGS_numbers", "FLAGS_open")
    )
    trained = f"--model x/y --data runs/data/train.jsonl --seed 0 {flags}"
    expected = [
        "distributions.py --out runs/data",
        f"train_soft.py {trained} {soft} --out runs/y/soft",
        f"train_longer.py {trained} --branches 16 --epochs 4 --out runs/y/longer",
    ]
    drawn_with = {
        "base": "",
        "soft": " --adapter runs/y/soft",
        "longer": " --adapter runs/y/longer",
        "ssot": " --protocol ssot",
    }
    prompts = "--prompts runs/data/unseen.jsonl runs/data/ood.jsonl"
    rows = []
    options_of_axis = {
        "numbers": f" --n 4 {prompts} {numbers}",
        "open": f" {questions}",
        "mcq": "",
    }
    for method, how in drawn_with.items():
        for axis, options in options_of_axis.items():
            if (method, axis) == ("ssot", "mcq"):
                continue
            file = f"runs/y/{method}/{axis}.jsonl"
            more = " --max-tokens 64" if method == "ssot" else ""
            drawing = f"sample.py {axis} --model x/y{how} --seed 0{options}{more} --out {file}"
            expected.append(drawing)
            rows.append(file)

    *stages, tables = lines
    assert set(stages) == set(expected)
    assert tables == (
        f"metrics.py {' '.join(rows)} --out runs/y/scores.jsonl --report runs/y/report.md"
    )


def test_a_method_without_its_file_is_an_error(kit):
    before = snapshot(kit)
    result = make(kit, METHODS="soft sotf")
    assert result.returncode != 0
    (line,) = result.stderr.splitlines()
    assert "METHODS: there is no train_sotf.py" in line
    assert changed(before, snapshot(kit)) == set()


def test_a_seed_has_a_run_of_its_own(kit, capsys):
    """The tables of both runs show mean and standard deviation."""
    *stages, tables = plan(kit, SEED="1", RUN="runs/tiny-1")
    assert [line.split()[0] for line in stages].count("sample.py") == 4
    assert len(stages) == 5  # and a training; the prompts are shared
    for line in stages:
        assert " --seed 1 " in line and " --out runs/tiny-1/" in line
    assert tables.startswith("metrics.py ") and "runs/tiny/" not in tables

    another = kit / "runs/tiny-1/base/open.jsonl"
    another.parent.mkdir(parents=True, exist_ok=True)
    another.write_text((kit / OPEN).read_text().replace('"seed": 0', '"seed": 1'))
    call(metrics, kit / OPEN, another, "--out", kit / "scores.jsonl")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "| base " in line]
    assert " ± " in line


# ---------------------------------------------------------------------------- where it lies


@pytest.mark.parametrize("model", ["x/y", "x/y/", "y", "../elsewhere/y"])
def test_the_last_part_of_a_models_name_names_its_run(empty_kit, model):
    made = would_make(empty_kit, MODEL=model, METHODS="")
    assert made == ["runs/data", "runs/y/base/numbers.jsonl", "runs/y/base/open.jsonl"]


@pytest.mark.parametrize("run, data", [("out/r", "out/d"), ("out/r", "out/r/data")])
def test_runs_and_data_may_lie_elsewhere(empty_kit, tmp_path, run, data):
    for folder in ("", f"{tmp_path}/"):
        made = would_make(empty_kit, RUN=f"{folder}{run}", DATA=f"{folder}{data}", AXES="open")
        names = [data, f"{run}/base/open.jsonl", f"{run}/soft", f"{run}/soft/open.jsonl"]
        assert made == sorted(f"{folder}{name}" for name in names)


def test_the_name_of_the_kits_folder_may_have_a_space(finished, tmp_path):
    kit = shutil.copytree(finished, tmp_path / "my kit")
    assert would_make(kit) == []
    (kit / OPEN).unlink()
    assert would_make(kit) == [OPEN]


def test_a_model_in_models_is_made_first(empty_kit):
    wanted = "tests/extras/checkpoints.py models/small"
    assert plan(empty_kit, "models/small") == [wanted]
    assert plan(empty_kit, MODEL="models/small").index(wanted) == 0
    (empty_kit / "models" / "small").mkdir(parents=True)
    assert wanted not in plan(empty_kit, MODEL="models/small")


# ---------------------------------------------------------------------------- processes


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="on a GPU stages run one by one")
def test_two_stages_run_side_by_side_on_a_cpu(kit):
    """Each runs one thread."""
    write_interpreter(
        kit, "#!/bin/sh\necho start $OMP_NUM_THREADS >> log\nsleep 1\necho end >> log\n"
    )
    shell(kit, "rm -r runs/tiny/base")
    variables = {"METHODS": "", "AXES": "numbers open mcq"}
    env = {name: value for name, value in ENV.items() if name != "OMP_NUM_THREADS"}
    subprocess.run(command((), variables), cwd=kit, env=env, check=True, capture_output=True)
    log = (kit / "log").read_text().splitlines()
    assert log[:3] == ["start 1", "start 1", "end"]


def test_launch_starts_training_and_drawing_but_not_the_rest(empty_kit):
    lines = plan(empty_kit, LAUNCH="./python launch")
    launched = {line.split()[1] for line in lines if line.startswith("launch ")}
    others = {line.split()[0] for line in lines if not line.startswith("launch ")}
    assert launched == {"train_soft.py", "sample.py"}
    assert others == {"distributions.py", "metrics.py"}


def start(folder: Path, *goals: str, env: dict = ENV, **variables: str) -> subprocess.Popen:
    """Start make in a process group of its own, which a signal can then end as Ctrl-C does."""
    return subprocess.Popen(
        command(goals, variables),
        cwd=folder,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background jobs ignore Ctrl-C, and what they start would do so, too.
        preexec_fn=obey_interrupts,
    )


def obey_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def wait_for_lines(path: Path, process: subprocess.Popen) -> None:
    """Wait until a file has two lines, while the process that writes it runs."""
    while not path.exists() or path.read_text().count("\n") < 2:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


def without_its_file(folder: Path) -> list[Path]:
    """The FILE.made that have no FILE beside them."""
    return [path for path in folder.rglob("*.made") if not path.with_suffix("").exists()]


def results(folder: Path) -> dict:
    """What a kit has made, by name, but for the tables and the seconds that it took."""
    found = {}
    for name, (content, _) in snapshot(folder).items():
        if content is None or not name.startswith("runs/") or name in TABLES:
            continue
        found[name] = content
        if name.endswith(".jsonl"):
            rows = [json.loads(line) for line in content.decode().splitlines()]
            found[name] = [row | {"seconds": None} for row in rows]
    return found


INTERRUPTED = [
    pytest.param(TUNED_OPEN, TUNED_OPEN, f"{TUNED_OPEN}.partial", id="a sampling"),
    pytest.param(ADAPTER, "runs/tiny/soft", "runs/tiny/soft/log.jsonl", id="a training"),
]


@pytest.mark.parametrize("goal, remove, grows", INTERRUPTED)
def test_an_interrupted_stage_goes_on(finished, kit, goal, remove, grows):
    """Ctrl-C leaves no FILE.made without its FILE, and what was drawn is kept to the byte."""
    shell(kit, f"rm -r {remove}")
    process = start(kit, goal)
    wait_for_lines(kit / grows, process)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert not (kit / goal).exists()
    assert "interrupted; run the same command again to continue" in errors
    assert without_its_file(kit) == []
    begun = (kit / grows).read_text()

    result = make(kit, goal)
    assert result.returncode == 0, result.stderr
    whole = results(finished)
    for name, content in results(kit).items():
        assert content == whole[name], name
    if goal == TUNED_OPEN:
        assert (kit / goal).read_text().startswith(begun)


@pytest.mark.parametrize("name", ["numbers", "open", "mcq", "published", "novelty"])
def test_an_interrupt_does_not_delete_what_was_just_finished(kit, name):
    """The rows are there, but their process has not ended yet."""
    write_interpreter(kit, PRETENDER)
    file = kit / f"runs/new/base/{name}.jsonl"
    goal = str(file.relative_to(kit))
    process = start(kit, goal, RUN="runs/new", env=ENV | {"WAIT": goal})
    wait_for_lines(file, process)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert file.exists() and Path(f"{file}.made").exists()


def test_partial_rows_of_other_code_or_options_are_an_error(kit):
    rows = (kit / TUNED_OPEN).read_text().splitlines(True)
    (kit / TUNED_OPEN).unlink()
    (kit / f"{TUNED_OPEN}.made").unlink()
    (kit / f"{TUNED_OPEN}.partial").write_text("".join(rows[:10]))
    shell(kit, "echo '# new' >> sample.py")
    before = snapshot(kit)

    result = make(kit, TUNED_OPEN, FLAGS_open=SMALL["FLAGS_open"].replace("--n 2", "--n 3"))
    assert result.returncode != 0
    *_, line = complaints(result)
    assert line.startswith(
        f"sample.py: error: {TUNED_OPEN}.partial was made with different options and code "
    )
    assert changed(before, snapshot(kit)) == set()


def test_what_was_killed_at_random_moments_ends_as_if_it_were_not(finished, empty_kit):
    """Ten kills of everything that make has started, a training and a sampling side by side."""
    moments = random.Random(0)
    for longest in (2, 2, 2, 10, 2, 2, 10, 2, 2, 10):  # seconds: as it starts, and as it works
        process = start(empty_kit, ADAPTER, OPEN)
        time.sleep(moments.uniform(longest / 2, longest))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    result = make(empty_kit, ADAPTER, OPEN)
    assert result.returncode == 0, result.stderr

    ours, whole = results(empty_kit), results(finished)
    others = ("numbers", "runs/tiny/mine/", "runs/tiny/soft/open")
    asked_for = {name for name in whole if not any(other in name for other in others)}
    assert ours.keys() == asked_for
    for name in ours:
        assert ours[name] == whole[name], name


# ---------------------------------------------------------------------------- the extras


def test_help_lists_every_target():
    """But for those that others need: the packages, and a name that is never up to date."""
    text = "".join((ROOT / name).read_text() for name in ("Makefile", "tests/extras/rules.mk"))
    targets = set(re.findall(r"^([a-z]+):(?!=)", text, re.MULTILINE))
    assert {"reproduce", "test", "compare", "sweep"} < targets
    result = subprocess.run(["make", "help"], cwd=ROOT, env=ENV, capture_output=True, text=True)
    assert result.returncode == 0 and result.stderr == ""
    listed = set(re.findall(r"^  make ([a-z]+)", result.stdout, re.MULTILINE))
    assert listed == targets - {"help", "venv", "extras"} | {"models"}


def test_the_packages_are_installed_first(empty_kit):
    """Unless PYTHON names an interpreter, which has them."""
    for goal, file in (("reproduce", "requirements-dev.txt"), ("novelty", "requirements-extras")):
        words = ["make", "-n", goal]
        result = subprocess.run(words, cwd=empty_kit, env=ENV, capture_output=True, text=True)
        wanted = ("venv .venv", f"-r {file}", "--model")
        positions = [result.stdout.find(text) for text in wanted]
        assert -1 not in positions
        assert positions == sorted(positions)


MODEL = "--model x/y"
EXTRAS = [
    (
        "compare",
        {"PUBLISHED_N": "7"},
        [
            "tests/extras/published.py prompts --out runs/data/published.jsonl",
            f"sample.py numbers {MODEL} --seed 0 --n 7 --prompts runs/data/published.jsonl "
            "--paths 4 --rows 8 --out runs/y/base/published.jsonl",
            f"sample.py numbers {MODEL} --adapter runs/y/soft --seed 0 --n 7 --prompts "
            "runs/data/published.jsonl --paths 4 --rows 8 --out runs/y/soft/published.jsonl",
            "tests/extras/published.py compare runs/y/base/published.jsonl "
            "runs/y/soft/published.jsonl --out runs/y",
        ],
    ),
    (
        "novelty",
        {"FLAGS_novelty": "--split wildchat", "JUDGES": "--reward X"},
        [
            f"tests/extras/novelty.py draw {MODEL} --seed 0 --split wildchat "
            "--out runs/y/base/novelty.jsonl",
            f"tests/extras/novelty.py draw {MODEL} --adapter runs/y/soft --seed 0 "
            "--split wildchat --out runs/y/soft/novelty.jsonl",
            "tests/extras/novelty.py judge runs/y/base/novelty.jsonl runs/y/soft/novelty.jsonl "
            "--reward X --out runs/y/novelty.jsonl",
        ],
    ),
    (
        "retention",
        {"METHODS": "soft hard", "FLAGS_retention": "--texts A B"},
        [
            f"tests/extras/retention.py {MODEL} --adapter runs/y/soft runs/y/hard --texts A B "
            "--out runs/y/retention",
        ],
    ),
    (
        "figures",
        {"METHODS": "", "AXES": "open"},
        ["tests/extras/figures.py runs/y/base/open.jsonl --out runs/y/figures"],
    ),
    (
        "bench",
        {"METHODS": "hard"},
        [f"tests/extras/speed.py {MODEL} --adapter runs/y/soft --out runs/y/speed.jsonl"],
    ),
    (
        "ask",
        {"PROMPT": 'Say "red".'},
        [f'tests/extras/ask.py Say "red". {MODEL} --run runs/y'],
    ),
]


@pytest.mark.parametrize("goal, variables, expected", EXTRAS)
def test_extras(empty_kit, goal, variables, expected):
    """Each draws or trains what it needs, and its own script comes last."""
    lines = plan(empty_kit, goal, MODEL="x/y", **variables)
    assert lines[-1] == expected[-1]
    assert set(expected) <= set(lines)
    trains = [line for line in lines if line.startswith("train_soft.py ")]
    assert len(trains) == (goal not in ("figures", "ask"))


def test_the_retention_of_the_base_alone_needs_no_adapter(empty_kit):
    lines = plan(empty_kit, "retention", MODEL="x/y", METHODS="ssot", FLAGS_retention="--texts A")
    assert lines == [f"tests/extras/retention.py {MODEL} --texts A --out runs/y/retention"]


def test_the_speed_of_a_shape_needs_no_training(empty_kit):
    lines = plan(empty_kit, "bench", SHAPE="qwen3-0.6b")
    assert lines == ["tests/extras/speed.py --shape qwen3-0.6b --out runs/qwen3-0.6b.jsonl"]


def test_the_tests_begin_with_the_linter(empty_kit):
    assert plan(empty_kit, "test") == [
        "-m ruff check -q .",
        "-m ruff format -q --check .",
        "-m pytest -q -n 2 --dist loadfile tests",
    ]


def test_the_board_trains_every_fork_with_two_seeds(kit):
    """Which forks there are, make_forks.py prints; a hyphen in a name is no trouble."""
    settings = "'METHODS=soft exact my-own' 'FLAGS_exact=--draws 8' 'FLAGS_my-own=--draws 2'"
    shell(kit, "cp train_soft.py train_my-own.py")
    written = f'cp train_soft.py train_exact.py; echo "{settings}"'
    forks = f'case "$*" in *make_forks.py" ".) {written}; exit ;; esac'
    write_interpreter(kit, f'#!/bin/sh\n{forks}\necho "$@"\n')

    def board(*more: str) -> list[str]:
        words = ["make", "board", "PYTHON=./python", "AXES=numbers", *more]
        done = subprocess.run(words, cwd=kit, env=ENV, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    for own_flags, more in (("--draws 2", ()), ("--draws 4", ("FLAGS_my-own=--draws 4",))):
        lines = board(*more)
        for seed in (0, 1):
            folder = f"runs/board/seed-{seed}"
            training = f"--model tests/tiny --data {DATA} --seed {seed} --lr 2e-3"
            assert f"train_exact.py {training} --draws 8 --out {folder}/exact" in lines
            assert f"train_my-own.py {training} {own_flags} --out {folder}/my-own" in lines
            methods = ("base", "soft", "exact", "my-own")
            rows = " ".join(f"{folder}/{method}/numbers.jsonl" for method in methods)
            tables = f"--out {folder}/scores.jsonl --report {folder}/report.md"
            assert f"metrics.py {rows} {tables}" in lines
        folders = "runs/board/seed-0 runs/board/seed-1"
        files = "--others tests/results/board.jsonl --out runs/board/board.jsonl"
        assert f"tests/extras/board.py {folders} {files}" in lines
        assert lines[-1] == "tests/solutions/make_forks.py . --remove"

    # METHODS may name a fork that is not written yet, and then only these are trained.
    shell(kit, "rm train_exact.py")
    lines = board("METHODS=soft exact", "SEEDS=0")
    assert not any("my-own" in line for line in lines)
    assert any(line.startswith("train_exact.py ") for line in lines)


def without(pattern: str) -> str:
    """An interpreter that prints what it would run, but fails where an argument has a pattern."""
    failure = f'case "$*" in *{pattern}*) echo cannot run {pattern} >&2; exit 1;; esac'
    return f'#!/bin/sh\n{failure}\necho "$@"\n'


def test_a_sweep_names_what_it_skipped(kit):
    """A model that cannot be loaded does not stop the others, whose rows end in one table."""
    write_interpreter(kit, without("no/such"))
    result = make(kit, "sweep", MODELS="no/such tests/tiny")
    assert result.returncode != 0
    assert "sweep: skipped no/such " in result.stdout
    assert "cannot run no/such" in result.stderr
    assert "warning" not in result.stderr

    rows = f"{NUMBERS} {OPEN} runs/tiny/soft/numbers.jsonl {TUNED_OPEN}"
    tables = f"metrics.py {rows} --out runs/sweep.jsonl --report runs/sweep.md"
    assert tables in result.stdout.splitlines()


def test_a_sweep_without_its_table_has_failed(kit):
    write_interpreter(kit, without("sweep.md"))
    result = make(kit, "sweep", MODELS="tests/tiny")
    assert result.returncode != 0
    assert "cannot run sweep.md" in result.stderr


def test_a_sweep_without_a_mistake_has_not_failed(kit):
    write_interpreter(kit, without("no/such"))
    result = make(kit, "sweep", MODELS="tests/tiny")
    assert result.returncode == 0, result.stderr
    assert "skipped" not in result.stdout
