"""Between text and tokens: chat prompts, the end token, the prefix trie, and passes that read what is shared once.

The canonical outputs of a prompt, tokenized and closed with the model's own end-of-turn token, form a prefix trie. At
each prefix the target for the next token is the remaining probability, renormalized (arXiv 2605.11845, soft):
    q(c | prefix) = mass of the leaves that begin with prefix + c  /  mass of the leaves that begin with prefix

*Prefill once, branch many*: `prefill` reads the prompts, `branch` runs answers behind each from a copy of its KV cache
(gradients flow through it), and `walk` draws answers, one row for each distinct prefix.
What this file does not do: know families, objectives or axes. It is a library; it has no command.
"""

import copy
import datetime
import json
import os
import platform
import re
import shutil
import subprocess
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from scipy.special import xlogy
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    Mxfp4Config,
)
from transformers.cache_utils import DynamicLayer
from transformers.utils import logging as transformers_logging

from distributions import InputError, digest, write_text

PAD = -1  # fills short rows of a token matrix; never a token id
DATE = datetime.date(
    2024, 7, 26
)  # what templates that print today's date get: a result must not change overnight
# subtle: transformers hands a template plain values only, so its strftime_now can be replaced in Jinja alone.
PINNED = "".join(
    f".replace('{code}', '{DATE.strftime(code)}')" for code in ("%d", "%m", "%b", "%B", "%y", "%Y")
)
PINNED = "{% macro strftime_now(format) %}{{ format" + PINNED + " }}{% endmacro %}"
transformers_logging.disable_progress_bar()
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")  # transformers', of itself


def processes() -> PartialState:
    """This process among those that `accelerate launch` started; started otherwise, it is the only one."""
    return PartialState(cpu=not torch.cuda.is_available(), timeout=datetime.timedelta(weeks=1))


def load(name: str, adapter: str | Path | None = None) -> tuple:
    """(model, tokenizer, end): a causal LM in eval mode, with a PEFT adapter if one is given, and its end token. A draw
    ends at any of generation_config.eos_token_id. Raises InputError for a model or adapter that is missing or unfit."""
    device = processes().device
    options = {
        "dtype": torch.float32 if device.type == "cpu" else torch.bfloat16
    }  # which is slow on a CPU
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        quantized = getattr(AutoConfig.from_pretrained(name), "quantization_config", None) or {}
        if (
            quantized.get("quant_method") == "mxfp4"
        ):  # gpt-oss: its four-bit experts cannot be trained through
            options["quantization_config"] = Mxfp4Config(dequantize=True)
        model, info = AutoModelForCausalLM.from_pretrained(
            name, output_loading_info=True, **options
        )
    except (
        Exception
    ) as error:  # a checkpoint can be broken in many ways, and each has its own class
        raise InputError(f"cannot load the model {name!r}: {error}") from None
    if missing := sorted(info["missing_keys"]):
        raise InputError(
            f"{name!r} lacks {len(missing)} weights of its architecture, such as {missing[0]}"
        )
    # Of the checkpoint's own settings nothing else is kept: `generate` would fill in its top_k, penalties and the like.
    own, end = model.generation_config.eos_token_id, end_token(tokenizer)
    ends = {end, *(own if isinstance(own, list) else [own])} - {None}
    model.generation_config = GenerationConfig(eos_token_id=sorted(ends))
    model = model.to(device).eval()
    return (load_adapter(model, name, Path(adapter)) if adapter else model), tokenizer, end


def identity(name: str) -> str:
    """What a model is, however its name is written: checksums of a folder's files that matter, or a hub id."""
    files = [
        path
        for path in sorted(Path(name).glob("*"))
        if path.suffix in (".json", ".jinja", ".safetensors")
    ]
    return " ".join(map(digest, files)) or name


def load_adapter(model, name: str, adapter: Path):
    try:
        config, record = PeftConfig.from_pretrained(str(adapter)), adapter / "run.json"
        trained_on = (
            json.loads(record.read_text())["identity"]
            if record.exists()
            else config.base_model_name_or_path
        )
        if trained_on not in (name, identity(name)):
            raise InputError(
                f"it was trained on {config.base_model_name_or_path!r}, or on other weights of it"
            )
        model = PeftModel.from_pretrained(model, str(adapter)).eval()
    except (OSError, RuntimeError, TypeError, ValueError, KeyError, SafetensorError) as error:
        raise InputError(f"the adapter {adapter} does not fit {name!r}: {error}") from None
    # subtle: PEFT only warns when weights do not match by name, and the model then runs as its own base.
    probe = torch.arange(1, 9, device=model.device)[None]
    with torch.inference_mode():
        changed = model(input_ids=probe).logits
        if not changed.isfinite().all():
            raise InputError(
                f"the adapter {adapter} gives logits that are not finite: its training diverged"
            )
        with model.disable_adapter():
            if torch.equal(changed, model(input_ids=probe).logits):
                raise InputError(
                    f"the adapter {adapter} changes nothing; it was not trained, or did not load"
                )
    return model


def add_lora(model, seed: int):
    """The paper's LoRA on a model, ready to train: r 16, alpha 32, dropout .05 on the language model's q/k/v/o."""
    torch.manual_seed(seed)
    options = (
        {"exclude_modules": ".*vision_tower.*"} if hasattr(model.config, "vision_config") else {}
    )
    options |= {
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "task_type": "CAUSAL_LM",
    }
    return get_peft_model(
        model, LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, **options)
    ).train()


def save_adapter(accelerator, model, out: Path) -> None:
    """Write the adapter's weights, then its config: a folder with an adapter_config.json is a finished adapter."""
    weights, temporary = (
        accelerator.get_state_dict(model),
        out / "unfinished",
    )  # each process may hold a part
    if accelerator.is_main_process:
        model = accelerator.unwrap_model(model)
        config = model.peft_config["default"]
        config.target_modules = sorted(
            config.target_modules
        )  # a set, written in another order each time
        model.save_pretrained(temporary, state_dict=weights)
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            os.replace(temporary / name, out / name)
        shutil.rmtree(temporary)


def write_run(path: Path, args, **more) -> None:
    """Write a run's provenance, before any work starts: options, inputs, versions, hardware."""
    commit = subprocess.getoutput(f"git -C '{Path(__file__).parent}' rev-parse HEAD 2>/dev/null")
    cpu = (
        re.findall("model name.*: (.*)", Path("/proc/cpuinfo").read_text())
        if os.path.exists("/proc/cpuinfo")
        else []
    )
    versions = {name: version(name) for name in ("torch", "transformers", "peft", "numpy", "scipy")}
    record = {
        "args": vars(args),
        **more,
        "identity": identity(args.model),
        "date": str(DATE),
        "commit": commit,
    }
    record["device"] = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else [*cpu, platform.machine()][0]
    )
    record |= {"versions": versions, "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    write_text(path, json.dumps(record, indent=1) + "\n")


def render(tokenizer, messages: list[dict], thinking: bool = False, **options) -> str:
    """Messages in the model's chat template. Raises InputError where it cannot take them."""
    options |= {"enable_thinking": thinking, "reasoning_effort": "low"}
    try:
        options |= {
            "date_string": DATE.strftime("%d %b %Y"),
            "chat_template": PINNED + tokenizer.get_chat_template(),
        }
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)
    except Exception as error:  # a template is a program: it may raise anything
        raise InputError(f"the chat template cannot render a user's prompt: {error}") from None


encode_one = lambda tokenizer, text: tokenizer(text, add_special_tokens=False)[
    "input_ids"
]  # a template has its BOS
decode = lambda tokenizer, ids: tokenizer.decode(
    ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
)


def chat_ids(tokenizer, prompt: str, system: str = "", thinking: bool = False) -> list[int]:
    """Token ids of a user's prompt, up to where the assistant's answer (with `thinking`: its thoughts) begins."""
    messages = [{"role": "system", "content": system}] * bool(system) + [
        {"role": "user", "content": prompt}
    ]
    try:
        text = render(tokenizer, messages, thinking, add_generation_prompt=True)
    except InputError:
        if not system:
            raise
        return chat_ids(
            tokenizer, f"{system}\n\n{prompt}", thinking=thinking
        )  # some templates have no system prompt
    if (
        text.endswith("<|start|>assistant") and not thinking
    ):  # gpt-oss chooses a channel itself; open the answer's
        text += "<|channel|>final<|message|>"
    return encode_one(tokenizer, text)


def end_token(tokenizer) -> int:
    """The token that the chat template puts right after an assistant's answer. It is not always `eos_token_id` (Gemma).

    >>> _, tokenizer, end = load("tests/tiny")
    >>> tokenizer.decode(end), tokenizer.decode(encode(tokenizer, ["0.5", "12"], end)[0])
    ('<|im_end|>', '0.5<|im_end|>')
    """
    messages = [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Zq7ANSWER7qZ"},
    ]
    _, found, after = render(tokenizer, messages).rpartition("Zq7ANSWER7qZ")
    ids = encode_one(tokenizer, after)
    if not found or not ids or ids[0] not in tokenizer.added_tokens_decoder:
        raise InputError(
            f"the chat template does not close an answer with a special token (it puts {after[:20]!r})"
        )
    return ids[0]


def encode(tokenizer, texts: list[str], end: int) -> np.ndarray:
    """Completions as a matrix: each text's tokens, then the end token, then PAD. (N, W) int32."""
    # As one string, joined by the end token, which no merge can cross: several times faster than one by one.
    backend, joint = tokenizer.backend_tokenizer, tokenizer.convert_ids_to_tokens(end)
    (encoding,) = backend.encode_batch_fast([joint.join(texts) + joint], add_special_tokens=False)
    ids = np.array(encoding.ids, np.int32)
    lengths = np.diff(np.flatnonzero(ids == end), prepend=-1)
    tokens = np.full((len(lengths), lengths.max()), PAD, np.int32)
    tokens[np.arange(tokens.shape[1]) < lengths[:, None]] = ids
    if len(lengths) != len(texts) or tokens[-1, : lengths[-1]].tolist() != [
        *encode_one(tokenizer, texts[-1]),
        end,
    ]:
        raise InputError(
            f"this tokenizer encodes {texts[-1]!r} differently after {joint!r} than on its own"
        )
    return tokens


class Trie:
    """The canonical outputs of one prompt as token paths. tokens (N, W) int32: one leaf per row, padded with PAD, rows
    in lexicographic order, so that leaves with a common prefix are neighbours. probs (N,): their probabilities. lengths
    (N,): their tokens, end token included. order (N,): the row of the caller's arrays that each leaf came from."""

    def __init__(self, tokens: np.ndarray, probs: np.ndarray):
        self.order = np.lexsort(tokens.T[::-1])
        self.tokens, self.probs = tokens[self.order], probs[self.order]
        self.lengths = (self.tokens != PAD).sum(1)

    def path(self, leaf: int) -> np.ndarray:
        return self.tokens[leaf, : self.lengths[leaf]]

    def path_targets(self, leaf: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each prefix on the way to a leaf: its children's tokens (C,) and their target q (C,), which sums to 1."""
        targets, low, high = [], 0, len(self.tokens)  # rows low..high share the prefix so far
        for depth in range(self.lengths[leaf]):
            column = self.tokens[low:high, depth]
            starts = np.flatnonzero(np.diff(column, prepend=PAD))
            mass = np.add.reduceat(self.probs[low:high], starts)
            targets.append((column[starts], mass / mass.sum()))
            child = np.searchsorted(starts, leaf - low, "right") - 1
            low, high = (
                low + starts[child],
                low + (starts[child + 1] if child + 1 < len(starts) else high - low),
            )
        return targets

    def quantile_leaves(self, quantiles: np.ndarray) -> np.ndarray:
        """The leaf at each quantile (in [0, 1)) of the target. Same shape, int."""
        cumulative = np.cumsum(self.probs)
        return np.searchsorted(cumulative, quantiles * cumulative[-1], "right").clip(
            max=len(self.probs) - 1
        )


def pad_targets(
    paths: list[np.ndarray], targets: list[list]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """R paths and their path_targets as tensors: completions (R, L), filled up with PAD; the children of each prefix,
    tokens (R, L, C) int64, and their probabilities q (R, L, C) float32, filled up with 0."""
    children = max(len(tokens) for path in targets for tokens, _ in path)
    completions = np.full((len(paths), max(map(len, paths))), PAD, np.int64)
    tokens = np.zeros((*completions.shape, children), np.int64)
    q = np.zeros(tokens.shape, np.float32)
    for r, (path, target) in enumerate(zip(paths, targets, strict=True)):
        completions[r, : len(path)] = path
        for t, (child_tokens, child_q) in enumerate(target):
            tokens[r, t, : len(child_q)], q[r, t, : len(child_q)] = child_tokens, child_q
    return torch.from_numpy(completions), torch.from_numpy(tokens), torch.from_numpy(q)


def kl_floor(probs: np.ndarray, perfect: np.ndarray, lengths: np.ndarray) -> float:
    """The logit KL of a perfect sampler, nats per token: sum over leaves of q / length * log(q / p5), as along a path
    the log-ratios add up. Not 0: the trie keeps 1001 of perhaps 10^6 values. probs (N,): q; perfect (N,): p5.

    >>> round(kl_floor(np.array([0.5, 0.5]), np.array([0.25, 0.25]), np.array([4, 4])), 3)      # log(2) / 4
    0.173
    """
    return float(np.sum((xlogy(probs, probs) - xlogy(probs, perfect)) / lengths))


class RoomyLayer(DynamicLayer):
    """A layer of the KV cache with room behind its tokens, (2, R, H, S, D), where new ones do not move the others."""

    def update(self, keys, values, *args, **kwargs):
        old, new = self.keys.shape[2], self.keys.shape[2] + keys.shape[2]
        if self.room is None or self.room.shape[3] < new:
            self.room = keys.new_empty(2, *keys.shape[:2], new + 32, keys.shape[3])
            self.room[0, :, :, :old], self.room[1, :, :, :old] = self.keys, self.values
        self.room[0, :, :, old:new], self.room[1, :, :, old:new] = keys, values
        self.keys, self.values = self.room[..., :new, :]
        return self.keys, self.values


class Prefix(NamedTuple):
    """R rows that a model has read: KV cache, attention mask (R, P), and logits (R, V) of the next token."""

    cache: object
    mask: torch.Tensor
    logits: torch.Tensor

    def fork(self, rows: torch.Tensor, roomy: bool = False) -> "Prefix":
        """A Prefix whose row i is this one's row rows[i]; gradients flow to it. roomy: it grows a token at a time."""
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        for (
            layer
        ) in cache.layers:  # what cache.batch_select_indices does, with a faster way of indexing
            layer.keys, layer.values = (
                layer.keys.index_select(0, rows),
                layer.values.index_select(0, rows),
            )
            if roomy and type(layer) in (DynamicLayer, RoomyLayer):  # not one whose window slides
                layer.__class__, layer.room = RoomyLayer, None
        return Prefix(cache, self.mask[rows], self.logits[rows])


def prefill(model, prompts: list[list[int]]) -> Prefix:
    """Read B prompts: what all begin with once, then the rest of each, left-padded so that their completions align."""
    # subtle: a sliding window counts places in the cache, and padding behind the head would push tokens out of it.
    config = getattr(
        model, "module", model
    ).config.get_text_config()  # several processes have wrappers around it
    alone = getattr(config, "sliding_window", None) or len(prompts) == 1
    shared = [] if alone else os.path.commonprefix([prompt[:-1] for prompt in prompts])
    rests, width = (
        [prompt[len(shared) :] for prompt in prompts],
        max(map(len, prompts)) - len(shared),
    )
    ids = torch.tensor([[PAD] * (width - len(rest)) + rest for rest in rests], device=model.device)
    prefix = Prefix(None, ids[:, :0], None)
    if shared:
        head, _ = extend(
            model, Prefix(None, ids[:1, :0], None), ids.new_tensor([shared]), logits_to_keep=1
        )
        prefix = head.fork(ids.new_zeros(len(ids)))
    return extend(model, prefix, ids, logits_to_keep=1)[0]


def extend(
    model, prefix: Prefix, tokens: torch.Tensor, logits_to_keep: int = 0
) -> tuple[Prefix, torch.Tensor]:
    """Read tokens (R, T), or PAD, into a prefix's cache (not to be used again): the longer Prefix, logits (R, T, V)."""
    mask = torch.cat([prefix.mask, (tokens != PAD).long()], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
    options = {"attention_mask": mask, "position_ids": positions, "past_key_values": prefix.cache}
    out = model(
        input_ids=tokens.clamp(min=0), use_cache=True, logits_to_keep=logits_to_keep, **options
    )
    return Prefix(out.past_key_values, mask, out.logits[:, -1]), out.logits


def branch(model, prefix: Prefix, completions: torch.Tensor) -> torch.Tensor:
    """Logits (B*K, L, V) of K completions per prefix row: position t predicts token t. They and their gradient equal,
    up to rounding, those of whole rows. completions (B*K, L): the K of a row side by side, PAD behind short ones."""
    rows = torch.arange(len(completions), device=completions.device) // (
        len(completions) // len(prefix.mask)
    )
    logits = [(forked := prefix.fork(rows)).logits[:, None]]
    if completions.shape[1] > 1:
        logits.append(
            extend(model, forked, completions[:, :-1].clamp(min=0))[1]
        )  # what follows a PAD is never used
    return torch.cat(logits, 1)


def choose(logits: torch.Tensor, owner: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """A next token for each of m draws, (m,), by inverse CDF, over the full vocabulary at temperature 1. logits (R, V);
    owner (m,): the row each draw is at; uniform (m,): each draw's own random number in [0, 1)."""
    cdf = (
        logits.double().softmax(-1).cumsum(-1)
    )  # (R, V); in float32 its rounding would reach 10^-5
    cdf = (cdf / cdf[:, -1:]).add_(
        torch.arange(len(cdf), device=cdf.device)[:, None]
    )  # row r runs from r to r + 1
    return torch.searchsorted(cdf.flatten(), owner + uniform, right=True) % cdf.shape[1]


@torch.inference_mode()
def walk(
    model, prompts: list[list[int]], ends: list[int], uniform: np.ndarray, rows: int = 1024
) -> list[list[int]]:
    """n answers to each of B prompts, drawn at temperature 1 over the full vocabulary: token ids, in the draws' order.
    One live row serves each *distinct* (prompt, prefix), so a thousand draws cost what their distinct prefixes cost.
    uniform (B * n, T): each draw's own random numbers, so `rows` (how many walk at once) changes no answer.
    The n of a prompt are side by side. An answer ends with one of `ends` or after T."""
    ends = torch.tensor(ends, device=model.device)
    home = torch.arange(len(prompts), device=model.device).repeat_interleave(
        len(uniform) // len(prompts)
    )
    start, paths = prefill(model, prompts), []
    for numbers, owner in zip(torch.from_numpy(uniform).split(rows), home.split(rows), strict=True):
        numbers, state = numbers.to(owner.device), start
        tokens = torch.full(numbers.shape, PAD, device=owner.device)
        draws = torch.arange(
            len(owner), device=owner.device
        )  # the unfinished ones; owner: the row each is at

        for t in range(numbers.shape[1]):
            tokens[draws, t] = token = choose(state.logits, owner, numbers[draws, t])
            on = ~torch.isin(token, ends)
            draws, owner, token = draws[on], owner[on], token[on]
            if not len(draws) or t + 1 == numbers.shape[1]:
                break

            # The distinct (row, token) pairs are the next rows. The cache is copied where a row has two children, or
            # where a quarter of the rows have none; until then these few read on, and nobody draws from them.
            vocabulary = state.logits.shape[1]
            pairs, child = torch.unique(owner * vocabulary + token, return_inverse=True)
            parents, tokens_read = pairs // vocabulary, pairs % vocabulary
            if (
                state is start
                or len(parents) < 0.75 * len(state.mask)
                or len(parents.unique()) < len(parents)
            ):
                state, owner = state.fork(parents, roomy=True), child
            else:
                tokens_read = torch.zeros_like(state.mask[:, 0]).index_copy(0, parents, tokens_read)
            state, _ = extend(model, state, tokens_read[:, None])
        paths += [
            path[:n]
            for path, n in zip(tokens.tolist(), (tokens != PAD).sum(1).tolist(), strict=True)
        ]
    return paths
