r"""What training costs elsewhere: benchmarks and perplexities of the base model and of adapters.

    python tests/extras/retention.py --model Qwen/Qwen3-0.6B --adapter runs/soft \
        --out runs/retention

To try it in seconds, without the hub, measure the perplexity of a text of your own:

    python tests/extras/retention.py --model tests/tiny --texts LICENSE --out small

The tasks are the paper's. lm-evaluation-harness runs five tasks of tinyBenchmarks (arXiv
2402.14992) and IFEval, each by one call of `lm_eval run`, with the chat template and without
thinking; this needs requirements-extras.txt. The scores of tinyBenchmarks are gp-IRT estimates or,
if the package tinyBenchmarks is not installed, plain accuracies. A task paloma_X is the token
perplexity on the slice X of PALOMA, a gated data set: accept its terms on the hub, and log in.
With --texts, plain text files take the place of these tasks.

The script writes each result to DIR/<method>/<task>.json. The scores of the tasks that it was asked
for go to DIR/scores.jsonl and into the table that it prints. A task that already has a result is
not run again.

The paper does not specify how the documents of PALOMA are read. Our choice: each one on its own,
and its first token is not scored.
"""

import importlib.util
import json
import math
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
import distributions
import metrics
import trie

FIVE = ("tinyMMLU", "tinyHellaswag", "tinyTruthfulQA", "tinyWinogrande", "tinyGSM8k")
PALOMA = ("wikitext_103", "c4_en", "dolma-v1_5", "mc4", "ptb", "redpajama", "falcon-refinedweb")
TASKS = (*FIVE, "ifeval", *(f"paloma_{name}" for name in PALOMA))

# -------------------------------------------------------------------------------------- perplexity


@torch.inference_mode()
def token_nll(model, ids: list[int], window: int = 2048, stride: int = 1024) -> list[float]:
    """-log p of each token of a text, in nats, except the first, which nothing precedes.

    No BOS is put in front. Windows of `window` tokens begin `stride` tokens apart, and in each only
    the tokens that no earlier window held are scored. The window and the stride are the paper's.
    """
    ids = torch.tensor(ids, device=model.device)
    nats = []
    for start in range(0, len(ids), stride):
        held = ids[start : start + window]
        new = ids[1 + len(nats) : start + window]
        if len(new) == 0:
            break
        output = model(input_ids=held[None], use_cache=False, logits_to_keep=len(new) + 1)
        logits = output.logits[0, :-1].float()  # the last position predicts what follows the window
        nats += torch.nn.functional.cross_entropy(logits, new, reduction="none").tolist()
    return nats


def perplexity(model, tokenizer, task: str, texts: list[str]) -> list[dict]:
    """The token perplexity of texts that are read one by one, as a list of one score.

    Raises InputError if there is no token to score.
    """
    window = min(2048, model.config.get_text_config().max_position_embeddings)
    nats = []
    for text in texts:
        ids = trie.encode_one(tokenizer, text)
        nats += token_nll(model, ids, window, window // 2)
    if not nats:
        raise distributions.InputError("fewer than two tokens")
    value = math.exp(math.fsum(nats) / len(nats))
    score = {"task": task, "metric": "token perplexity", "value": value}
    return [score | {"stderr": None, "n": len(nats)}]


def read_texts(task: str, files: dict[str, str]) -> list[str]:
    """Your own text, if the task is one of `files`, else the documents of a slice of PALOMA."""
    if task in files:
        return [Path(files[task]).read_text(encoding="utf-8")]
    from datasets import load_dataset  # in requirements-extras.txt

    documents = load_dataset("allenai/paloma", task.removeprefix("paloma_"), split="test")
    return list(documents["text"])


# ------------------------------------------------------------------------------------- the harness


def prepare(scratch: Path, gp_irt: bool) -> None:
    """Prepare what the harness needs, in the folder where it will run.

    gp-IRT needs item parameters, which its package fetches at the end of a run: fetch them now,
    before hours of work. Without gp-IRT, write copies of the harness's tasks whose scores are plain
    means. Raises InputError if the harness is missing, or if the parameters cannot be fetched.
    """
    scratch.mkdir(exist_ok=True)
    found = importlib.util.find_spec("lm_eval")
    if not found:
        raise distributions.InputError("lm_eval is missing: pip install -r requirements-extras.txt")

    if gp_irt:
        evaluate = "tinyBenchmarks.evaluate(numpy.arange(100) % 2, 'mmlu')"
        code = f"import numpy, tinyBenchmarks; {evaluate}"
        if subprocess.run([sys.executable, "-c", code], cwd=scratch).returncode:
            raise distributions.InputError("cannot fetch gp-IRT's item parameters; see above")
        return

    package = "git+https://github.com/felipemaiapolo/tinyBenchmarks"
    print(f"plain accuracies; for gp-IRT, pip install {package}")
    tasks = Path(found.origin).parent / "tasks" / "tinyBenchmarks"
    task_files = tasks.glob("tiny[!B]*.yaml")  # all but tinyBenchmarks.yaml, which is their group
    for file in (*task_files, *tasks.glob("utils_*.py")):
        text = re.sub(r"!function agg_functions\.\w+", "mean", file.read_text())
        distributions.write_text(scratch / "tasks" / file.name, text)


def harness(
    model: str, adapter: Path | None, task: str, batch: str, gp_irt: bool, scratch: Path
) -> list[dict]:
    """Run one task with `lm_eval run`, in the folder `scratch`. Raises InputError if it fails.

    Returns its scores, {task, metric, value, stderr, n}.
    """
    options = {
        "dtype": "bfloat16" if torch.cuda.is_available() else "float32",
        "chat_template_args": {
            "enable_thinking": False,
            "reasoning_effort": "low",
            "date_string": trie.DATE.strftime("%d %b %Y"),
        },
        # A relative path would not be found from the other folder.
        "pretrained": str(Path(model).resolve()) if Path(model).exists() else model,
    }
    if adapter:
        options["peft"] = str(adapter)

    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf"]
    command += ["--model_args", json.dumps(options), "--tasks", task]
    command += ["--apply_chat_template", "--batch_size", batch]
    if not gp_irt:
        command += ["--include_path", "tasks"]  # those that prepare() wrote
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([*command, "--output_path", f"{folder}/found.json"], cwd=scratch)
        files = list(Path(folder).glob("*.json"))  # the harness adds the time to the name
        if not files:
            reason = "lm_eval failed; see above"
            if done.returncode == -signal.SIGKILL:
                reason = "lm_eval was killed, probably for lack of memory; try a smaller --batch"
            raise distributions.InputError(reason)
        return read_scores(json.loads(files[0].read_text()), gp_irt)


def read_scores(found: dict, gp_irt: bool) -> list[dict]:
    """The scores in a result file of the harness, where a group of tasks has several entries.

    Their keys are "metric,filter", such as "exact_match,strict-match"; a filter "none" is left out.
    """
    rows = []
    for task, counts in found["n-samples"].items():
        scores = found["results"][task]
        for key in scores:
            metric, _, chosen = key.partition(",")
            if not chosen or metric.endswith("_stderr"):
                continue
            shown = "gp-IRT" if gp_irt and task.startswith("tiny") else metric
            row = {"task": task, "metric": shown if chosen == "none" else f"{shown}, {chosen}"}
            row["value"] = finite_number(scores[key])
            row["stderr"] = finite_number(scores.get(f"{metric}_stderr,{chosen}"))
            row["n"] = counts["effective"]
            rows.append(row)
    return rows


def finite_number(value: object) -> float | None:
    """A finite number as it is, and None for all else: the harness writes "N/A", or NaN."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None


# -------------------------------------------------------------------------------------- the scores


def mean_of_six(rows: list[dict]) -> list[dict]:
    """The paper's mean of a method's six scores (GSM8K has two), as a list of one row.

    The list is empty unless all six scores are there and are of one kind, gp-IRT or accuracy.
    """
    six = [row for row in rows if row["task"] in FIVE and row["value"] is not None]
    kinds = {"gp-IRT" if row["metric"].startswith("gp-IRT") else "accuracy" for row in six}
    if len(six) != 6 or len(kinds) != 1:
        return []
    mean = six[0] | {"task": "mean of six", "metric": kinds.pop(), "stderr": None}
    mean["value"] = sum(row["value"] for row in six) / 6
    mean["n"] = sum(row["n"] for row in six)
    return [mean]


def table(rows: list[dict]) -> list[str]:
    """The lines of a Markdown table, with a line for each score and a column for each method.

    Values have standard errors where there are any. Columns of differences from the base follow.
    """
    # Base comes first, even if all of its tasks failed: the differences are from it.
    methods = list(dict.fromkeys(["base", *(row["method"] for row in rows)]))
    found = {(row["task"], row["metric"], row["method"]): row for row in rows}
    scores = dict.fromkeys((task, metric) for task, metric, _ in found)  # in order, each once

    def show(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    lines = [["task", "score", "n", *methods, *(f"{method} - base" for method in methods[1:])]]
    for task, metric in scores:
        results = [found.get((task, metric, method), {}) for method in methods]
        cells = []
        for result in results:
            stderr = result.get("stderr")
            error = "" if stderr is None else f" ± {stderr:.3f}"
            cells.append(show(result.get("value"), ".3f") + error)
        base, *others = [result.get("value") for result in results]
        for value in others:
            difference = None if None in (base, value) else value - base
            cells.append(show(difference, "+.3f"))
        n = max(result.get("n", 0) for result in results)
        lines.append([task, metric, str(n), *cells])
    return metrics.markdown(zip(*lines, strict=True))


# ------------------------------------------------------------------------------------- the command


def has_gp_irt() -> bool:
    """Whether the package that computes gp-IRT is installed."""
    return importlib.util.find_spec("tinyBenchmarks") is not None


class Job(NamedTuple):
    """A task to run for a method, the file to write, and what the result depends on."""

    method: str
    task: str
    file: Path
    made: dict


def runs_here(task: str, texts: dict[str, str]) -> bool:
    """Whether this script runs a task itself, rather than the harness."""
    return task in texts or task.startswith("paloma_")


def jobs_of(model: str, methods: dict, tasks: list[str], texts: dict, out: Path) -> list[Job]:
    """The jobs whose results are not there yet.

    Raises InputError if there is a result that was made from other inputs than those given now.
    """
    identity = trie.identity(model)
    jobs = []
    for method, adapter in methods.items():
        weights = distributions.digest(adapter / "adapter_model.safetensors") if adapter else None
        for task in tasks:
            made = {"model": identity, "adapter": weights}
            if task in texts:
                made["text"] = distributions.digest(texts[task])
            elif task.startswith("tiny"):
                made["gp-IRT"] = has_gp_irt()

            file = out / method / f"{task}.json"
            if not file.exists():
                jobs.append(Job(method, task, file, made))
                continue
            before = json.loads(file.read_text())["made"]
            changed = [key for key in made if before.get(key) != made[key]]
            if changed:
                raise distributions.InputError(
                    f"{file} was made with another {', '.join(changed)}; remove it to redo it"
                )
    return jobs


def run_jobs(jobs: list[Job], methods: dict, texts: dict, args) -> list[str]:
    """Run the jobs and write their files. Returns what failed, and why, one line for each job."""
    gp_irt = has_gp_irt()
    scratch = Path(args.out) / "scratch"
    # The harness comes first: it loads the model itself, and none should be in memory then.
    jobs = sorted(jobs, key=lambda job: runs_here(job.task, texts))
    if not runs_here(jobs[0].task, texts):
        prepare(scratch, gp_irt)

    failed = []
    loaded = None  # the method whose model is in memory
    for job in jobs:
        adapter = methods[job.method]
        try:
            if runs_here(job.task, texts):
                if loaded != job.method:
                    model = tokenizer = loaded = None  # free the memory of the previous one
                    model, tokenizer, _ = trie.load(args.model, adapter)
                    loaded = job.method
                scores = perplexity(model, tokenizer, job.task, read_texts(job.task, texts))
            else:
                scores = harness(args.model, adapter, job.task, args.batch, gp_irt, scratch)
            source = {"model": args.model, "method": job.method, "axis": "retention"}
            result = {"made": job.made, "scores": [source | score for score in scores]}
            distributions.write_text(job.file, json.dumps(result, indent=1) + "\n")
        except (ImportError, OSError, ValueError, torch.OutOfMemoryError) as error:
            failed.append(f"{job.method}/{job.task} ({error})")
    return failed


def report(methods: dict, tasks: list[str], out: Path) -> None:
    """Gather the scores that are there; write and print them."""
    rows = []
    for method in methods:
        scores = []
        for task in tasks:
            file = out / method / f"{task}.json"
            if file.exists():
                scores += json.loads(file.read_text())["scores"]
        rows += scores + mean_of_six(scores)
    distributions.write_text(out / "scores.jsonl", distributions.to_jsonl(rows))
    print("\n".join(table(rows)))


def main() -> None:
    parser = distributions.Parser(description=__doc__)
    add = parser.add_argument
    several = {"nargs": "+", "action": "extend", "default": []}
    batch = "auto" if torch.cuda.is_available() else "2"
    add("--model", required=True, help="hub id or folder of a chat model")
    add("--adapter", **several, metavar="DIR", help="PEFT folders, whose names are the methods")
    add("--tasks", nargs="+", help="tasks of the harness, or paloma_X (default: the paper's)")
    add("--texts", **several, metavar="FILE", help="plain texts, in place of the paper's tasks")
    add("--batch", default=batch, help="batch size of lm_eval (%(default)s)")
    add("--out", required=True, metavar="DIR", help="folder for the results")
    args = parser.parse_args()

    out = Path(args.out)
    texts = {Path(path).name: path for path in args.texts}
    methods = {"base": None}
    for path in args.adapter:
        adapter = Path(path).resolve()
        methods[adapter.name] = adapter
    if len(methods) < 1 + len(args.adapter) or len(texts) < len(args.texts):
        raise distributions.InputError(
            "two adapters, or two texts, have the same name, or an adapter is called base"
        )
    default_tasks = () if texts else TASKS
    tasks = [*(args.tasks or default_tasks), *texts]

    jobs = jobs_of(args.model, methods, tasks, texts, out)
    failed = []
    if jobs:
        trie.write_run(out / "run.json", args, identity=trie.identity(args.model))
        failed = run_jobs(jobs, methods, texts, args)
    report(methods, tasks, out)
    if failed:
        raise distributions.InputError(
            f"did not run: {'; '.join(failed)}; the rest is in {out}, and is not run again"
        )


if __name__ == "__main__":
    distributions.run(main)
