"""One cell of the quickstart sweep written with transformers and peft alone: what a careful user would type.

Same model, data, steps, scores, reload and merge as the harness's cell, without its guards, meters and record.
Run as ``python -m tests.benchmarks.bare MODEL_FOLDER SEED``.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, set_seed

from tasks.data import load_split
from tasks.task import load_task

STEPS, BATCH = 100, 32


def items(name: str, split: str, n: int, seed: int = 0) -> list[tuple[str, str]]:
    found = load_split(load_task(name, []), split, data_root=None, max_items=n, seed=seed)
    return [(i.prompt, i.answer) for i in found]


def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    width = max(len(r["input_ids"]) for r in rows)
    return {
        "input_ids": torch.tensor([r["input_ids"] + [0] * (width - len(r["input_ids"])) for r in rows]),
        "attention_mask": torch.tensor([[1] * len(r["input_ids"]) + [0] * (width - len(r["input_ids"])) for r in rows]),
        "labels": torch.tensor([r["labels"] + [-100] * (width - len(r["labels"])) for r in rows]),
    }


def score(model, tokenizer, pairs: list[tuple[str, str]]) -> float:
    """Exact match of greedy completions, and a likelihood pass over the answers."""
    right = 0
    with torch.inference_mode():
        for at in range(0, len(pairs), 64):
            batch = pairs[at : at + 64]
            enc = tokenizer([p for p, _ in batch], return_tensors="pt", padding=True, padding_side="left")
            out = model.generate(
                input_ids=enc["input_ids"], attention_mask=enc["attention_mask"], max_new_tokens=8, do_sample=False
            )
            texts = tokenizer.batch_decode(out[:, enc["input_ids"].shape[1] :], skip_special_tokens=True)
            right += sum(t.strip() == a for t, (_, a) in zip(texts, batch, strict=True))
            model(**collate([row(tokenizer, p, a) for p, a in batch])).loss.item()
    return right / len(pairs)


def row(tokenizer, prompt: str, answer: str) -> dict[str, list[int]]:
    head = tokenizer(prompt)["input_ids"]
    tail = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return {"input_ids": head + tail, "labels": [-100] * len(head) + tail}


def main(folder: str, seed: int) -> None:
    torch.set_num_threads(1)
    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    base = AutoModelForCausalLM.from_pretrained(folder)
    skills = [items(s, "test", 100) for s in ("strings-copy", "strings-reverse", "strings-shift")]
    before = [score(base, tokenizer, s) for s in skills]
    rows = [row(tokenizer, p, a) for p, a in items("strings-compose", "train", 4000, seed)]
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            max_steps=STEPS,
            per_device_train_batch_size=BATCH,
            learning_rate=3e-3,
            use_cpu=True,
            lr_scheduler_type="cosine",
            warmup_steps=8,
            adam_beta2=0.98,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
            seed=seed,
            dataloader_pin_memory=False,
        )
        Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate).train()
        model.eval().save_pretrained(Path(scratch) / "adapter")
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), Path(scratch) / "adapter")
    model.eval()
    score(model, tokenizer, items("strings-compose", "validation", 100))
    test = items("strings-compose", "test", 200)
    accuracy = score(model, tokenizer, test)
    after = [score(model, tokenizer, s) for s in skills]
    one = {k: v[:1] for k, v in collate(rows[:1]).items() if k != "labels"}
    times = []
    with torch.inference_mode():
        for _ in range(23):
            began = time.perf_counter()
            model(**one)
            times.append(time.perf_counter() - began)
    merged = score(model.merge_and_unload(), tokenizer, test)
    print(accuracy, merged, statistics.fmean(before), statistics.fmean(after), statistics.median(times))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
