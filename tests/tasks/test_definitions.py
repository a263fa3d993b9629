"""Every task of the library loads; those with available data are read for real."""

import json
from collections import Counter
from pathlib import Path

import pytest

from tasks.data import contamination, load_split, task_digest, unpinned
from tasks.task import BUILT_IN, COMPLETION, SPLITS, HubSource, find_tasks, load_task

NAMES = sorted(find_tasks([]))

LOCAL_ROWS = {
    "sst2": {"train": 6920, "validation": 872, "test": 1821},
    "trec": {"train": 4952, "validation": 500, "test": 500},
    "sst2-text": {"train": 6920, "validation": 872, "test": 1821},
    "trec-text": {"train": 4952, "validation": 500, "test": 500},
    "mmlu": {"validation": 1531, "test": 14042},
    "humaneval": {"test": 164},
    "gsm8k": {"train": 6973, "validation": 500, "test": 1319},
    "metamath-gsm8k": {"test": 1319},
    "boolq": {"train": 8927, "validation": 500, "test": 3270},
    "piqa": {"test": 1838},
    "siqa": {"test": 1954},
    "winogrande": {"test": 1267},
    "arc-easy": {"train": 2001, "validation": 250, "test": 2376},
    "arc-challenge": {"train": 969, "validation": 150, "test": 1172},
    "openbookqa": {"train": 4707, "validation": 250, "test": 500},
    **{
        f"strings-{op}": {"train": 8000, "validation": 500, "test": 1000}
        for op in ("copy", "reverse", "shift", "compose")
    },
    **{name: {"train": 7500, "validation": 500, "test": 900} for name in ("addition", "addition-offset")},
}

FIRST = {
    "sst2": ("no movement , no yuks , not much of anything .", "negative"),
    "trec": ("How far is it from Denver to Aspen ?", "NUM"),
    "boolq": ("Please answer the following question with true or false, question: does ethanol", " false"),
    "piqa": ("Please choose the correct solution to the question: How do I ready a guinea pig", " solution1"),
    "siqa": ("Please choose the correct answer to the question: Tracy didn't go home", " answer3"),
    "winogrande": ("Please choose the correct answer to fill in the blank", " option2"),
    "arc-easy": ("Please choose the correct answer to the question: Which statement best", " answer1"),
    "arc-challenge": ("Please choose the correct answer to the question: An astronomer", " answer3"),
    "openbookqa": ("Please choose the correct answer to the question: A person wants to start", " answer2"),
}


@pytest.mark.parametrize("name", NAMES)
def test_definition(name: str) -> None:
    definition = load_task(name, []).definition
    assert definition.licence
    assert definition.summary.endswith(".")
    sources = [definition.source, *(rule.source for rule in definition.splits.values() if rule.source)]
    for hub in (source.hub for source in sources if source.hub):
        assert hub.pinned is not bool(hub.unpinned), f"{hub.id}: pin it to a commit, or say why it is not"
    if not definition.source.generator:
        assert any(source.hub for source in sources)
        assert definition.citation or "no paper" in definition.notes
        assert definition.prompt or definition.kind == "language-modelling"
    assert "validation" in definition.splits, "tuning needs one"
    assert definition.version >= 1
    if name.startswith("math10k"):
        assert "Known leak" in definition.notes


FAMILIES = """
metamath-gsm8k gsm8k math boolq piqa siqa hellaswag winogrande arc-easy arc-challenge openbookqa math10k-aqua
math10k-svamp math10k-mawps alpaca mmlu cola mrpc qqp qnli mnli rte sst2 trec snli samsum xsum wmt16-de-en
wmt16-ro-en codealpaca-humaneval humaneval codealpaca-mbpp mbpp pubmedqa medqa financial-sentiment strings-compose
addition wikitext-2
"""


def test_every_family_has_its_tasks() -> None:
    assert set(FAMILIES.split()) <= set(NAMES)


def test_a_commit_pins_and_a_branch_does_not() -> None:
    assert not load_task("trec", []).definition.source.hub.pinned  # type: ignore[union-attr]
    assert list(load_task("trec", []).definition.unpinned) == ["CogComp/trec"]
    assert load_task("gsm8k", []).definition.unpinned == {}
    with pytest.raises(ValueError, match="'unpinned' says why there is none"):
        HubSource(id="a/b", revision="a" * 40, unpinned="no reason")


def test_rows_of_a_data_root_are_pinned_whatever_the_hub_is(data_root: Path) -> None:
    assert unpinned(load_task("sst2", []), data_root=data_root) == {}
    assert list(unpinned(load_task("sst2", []), data_root=None)) == ["stanfordnlp/sst2"]


def test_a_program_is_rendered_for_the_test_split_alone(tmp_path: Path) -> None:
    row = {"prompt": "def f(x):\n", "solution": "    return x", "test": "def check(f): assert f(1) == 1"}
    for folder, split in (("codealpaca", "train"), ("humaneval", "test")):
        lines = [json.dumps({**row, **({"entry_point": "f"} if split == "test" else {})})] * 600
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{split}.jsonl").write_text("\n".join(lines))
    task = load_task("codealpaca-humaneval", [])
    train, test = (load_split(task, s, data_root=tmp_path, max_items=1, seed=0)[0] for s in ("train", "test"))
    assert train.program == ""
    assert test.program == "def f(x):\n" + COMPLETION + "\n\ndef check(f): assert f(1) == 1\n\ncheck(f)\n"


def test_files_and_names_agree() -> None:
    assert len(NAMES) == len(list(BUILT_IN.glob("*.yaml")))
    assert set(LOCAL_ROWS) <= set(NAMES)


@pytest.mark.parametrize("name", sorted(LOCAL_ROWS))
def test_rows_of_real_data(name: str, data_root: Path) -> None:
    task = load_task(name, [])
    splits = {s: load_split(task, s, data_root=data_root, max_items=None, seed=0) for s in LOCAL_ROWS[name]}
    assert {s: len(items) for s, items in splits.items()} == LOCAL_ROWS[name]
    everything = [item for items in splits.values() for item in items]
    assert len({item.id for item in everything}) == len(everything)
    for item in everything:
        if task.definition.kind == "generation":
            assert item.answer.strip()
        else:
            names = item.choices or task.definition.labels
            assert item.answer == names[item.label]
    if name in FIRST:
        prompt, answer = FIRST[name]
        first = splits["test"][0]
        assert first.id == "test/0"
        assert first.prompt.startswith(prompt)
        assert first.answer == answer


def test_labels_of_sst2_and_trec(data_root: Path) -> None:
    sst2 = load_split(load_task("sst2", []), "test", data_root=data_root, max_items=None, seed=0)
    assert Counter(item.label for item in sst2) == {0: 912, 1: 909}
    trec = load_split(load_task("trec", []), "test", data_root=data_root, max_items=None, seed=0)
    assert Counter(item.label for item in trec) == {0: 9, 1: 138, 2: 94, 3: 65, 4: 81, 5: 113}


def test_arc_has_three_to_five_options(data_root: Path) -> None:
    items = load_split(load_task("arc-easy", []), "test", data_root=data_root, max_items=None, seed=0)
    assert Counter(len(item.choices) for item in items) == {3: 7, 4: 2365, 5: 4}


def test_contamination_of_real_data(data_root: Path) -> None:
    def split(name: str, which: str) -> list:
        return load_split(load_task(name, []), which, data_root=data_root, max_items=None, seed=0)

    assert contamination(split("gsm8k", "train"), split("gsm8k", "test")) == []
    trec = contamination(split("trec", "train"), split("trec", "test"))
    train = {item.prompt.lower() for item in split("trec", "train")}
    assert len(trec) == sum(item.prompt.lower() in train for item in split("trec", "test"))


@pytest.mark.parametrize("name", [n for n in NAMES if not n.startswith("math10k")])
def test_a_digest_needs_no_network(name: str, data_root: Path) -> None:
    task = load_task(name, [])
    assert task_digest(task, data_root=data_root) == task_digest(load_task(name, []), data_root=data_root)
    assert len(task_digest(task, data_root=None)) == 64


def test_validation_items_are_in_no_other_split(data_root: Path) -> None:
    for name in ("trec", "gsm8k", "arc-easy"):
        ids = [
            {i.id for i in load_split(load_task(name, []), s, data_root=data_root, max_items=None, seed=0)}
            for s in SPLITS
        ]
        assert len(set.union(*ids)) == sum(map(len, ids))
