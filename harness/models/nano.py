"""Builds and pre-trains a built-in model: tokenizer, weights, and proof that it knows its corpus.

The result is an ordinary folder (config, safetensors, tokenizer) in the cache, named by the digest of the
recipe and its corpus, so it is built once and every later cell reads the same weights.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.models.build_once import made_once
from harness.models.sources import Examples, ModelRecipe, TaskDigest

if TYPE_CHECKING:  # heavy, and only for types
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")
Progress = Callable[[int, int], None]


def ensure(
    recipe: ModelRecipe,
    cache: Path,
    *,
    examples: Examples,
    task_digest: TaskDigest,
    progress: Progress | None = None,
) -> Path:
    """Folder of the built model; builds it if the cache does not hold it yet.

    Safe against several processes: one builds, the others wait. A half-built folder is never seen, since the
    folder appears under its name only when complete.

    Args:
        examples: gives (prompt, answer) pairs of a corpus task.
        progress: called with (step, steps) while pre-training.
    """
    folder = cache / "models" / f"{recipe.name}-{recipe.identity(task_digest)}"
    if folder.is_dir() or recipe.origin is None:
        start = None
    else:
        start = ensure(recipe.origin, cache, examples=examples, task_digest=task_digest)
    return made_once(folder, lambda scratch: build(recipe, scratch, examples=examples, start=start, progress=progress))


def build_tokenizer(alphabet: str) -> PreTrainedTokenizerFast:
    """A character-level tokenizer that puts BOS in front by its post-processor.

    The post-processor matters: evaluation harnesses tokenize on their own, and without it a model trained
    with BOS is scored without.

    Returns:
        a ``PreTrainedTokenizerFast`` with pad, bos, eos and unk tokens.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def build(
    recipe: ModelRecipe,
    folder: Path,
    *,
    examples: Examples,
    start: Path | None = None,
    progress: Progress | None = None,
) -> None:
    """Pre-train the model of ``recipe`` and write it to ``folder``. Deterministic for a given thread count.

    Args:
        start: the model whose weights it starts from, where the recipe continues one.
    """
    import torch
    from transformers import LlamaForCausalLM

    plan = recipe.data["pretraining"]
    tokenizer = build_tokenizer(recipe.data["alphabet"])
    threads_before = torch.get_num_threads()
    torch.set_num_threads(min(int(plan["threads"]), os.cpu_count() or 1))
    torch.manual_seed(plan["seed"])
    model = LlamaForCausalLM.from_pretrained(start) if start else _fresh(recipe, tokenizer)
    share = plan["examples"] // len(recipe.corpus)
    pairs = [pair for name in recipe.corpus for pair in examples(name, share)]
    _pretrain(model, _encode(tokenizer, pairs), plan, tokenizer.pad_token_id, progress)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    torch.set_num_threads(threads_before)


def _fresh(recipe: ModelRecipe, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            tie_word_embeddings=False,
            **recipe.data["config"],
        )
    )


def _encode(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], int]]:
    """Token ids of prompt + answer + EOS, and the prompt's length in tokens."""
    encoded = []
    for prompt, answer in pairs:
        head = tokenizer(prompt)["input_ids"]
        tail = tokenizer(answer, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        encoded.append((head + tail, len(head)))
    return encoded


def _pretrain(
    model: PreTrainedModel,
    encoded: list[tuple[list[int], int]],
    plan: dict[str, Any],
    pad: int,
    progress: Progress | None,
) -> None:
    """AdamW with warm-up and cosine decay; the loss is on answers only."""
    import torch
    from transformers import get_cosine_schedule_with_warmup

    order = random.Random(plan["seed"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan["learning_rate"], betas=tuple(plan["betas"]))
    schedule = get_cosine_schedule_with_warmup(optimizer, plan["warmup_steps"], plan["steps"])
    model.train()
    for step in range(plan["steps"]):
        batch = order.sample(encoded, plan["batch_size"])
        width = max(len(ids) for ids, _ in batch)
        ids = torch.tensor([row + [pad] * (width - len(row)) for row, _ in batch])
        labels = torch.tensor([[-100] * head + row[head:] + [-100] * (width - len(row)) for row, head in batch])
        loss = model(input_ids=ids, attention_mask=(ids != pad).long(), labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if progress is not None:
            progress(step + 1, plan["steps"])
    model.eval()


def locate(
    model_id: str,
    *,
    cache: Path,
    examples: Examples,
    task_digest: TaskDigest,
    progress: Progress | None = None,
    dtype: str = "float32",
    revision: str | None = None,
) -> str:
    """Argument of ``from_pretrained`` for ``model_id``: a folder, or a Hub id.

    Args:
        dtype: of the weights that a GGUF file is decoded to.
        revision: of a GGUF file on the Hub.
    """
    from harness.models import gguf_files, skeleton, sources

    if sources.scheme_of(model_id) == "builtin":
        wanted = sources.recipe(model_id.partition(":")[2])
        return str(ensure(wanted, cache, examples=examples, task_digest=task_digest, progress=progress))
    if sources.scheme_of(model_id) == "skeleton":
        return str(skeleton.ensure(skeleton.skeleton(model_id), cache))
    if sources.scheme_of(model_id) == "gguf":
        file = gguf_files.local_file(model_id) or gguf_files.hub_file(model_id, revision)
        return str(gguf_files.ensure(file, cache, dtype=dtype))
    folder = sources.local_folder(model_id)
    return str(folder) if folder is not None else model_id
