"""The values of a sweep's axes, from model to parallel strategy."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from pydantic import AfterValidator, Field, field_validator, model_serializer, model_validator

from harness.digests import canonical_json
from harness.yamlfile import FileModel, Later


def named(value: object) -> Any:
    """Accept ``- lora`` as short for ``- {name: lora}``."""
    return {"name": value} if isinstance(value, str) else value


def _plain(value: dict[str, object]) -> dict[str, object]:
    """Parameters become part of a cell's identity, so they must be plain JSON."""
    try:
        canonical_json(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"parameters must be plain numbers, text, lists and keys ({error})") from None
    return value


OptimizerName = Literal["adamw", "adamw-8bit", "adafactor", "sgd", "lion"]
Params = Annotated[dict[str, Any], AfterValidator(_plain)]


class ModelSpec(FileModel):
    """Source of a model.

    ``id`` is one of: ``builtin:nano`` (built and pre-trained by the program), ``package:NAME/FOLDER`` (files
    inside an installed Python package; a folder, or one GGUF file), ``gguf:PATH/FILE.gguf`` or
    ``gguf:OWNER/NAME/FILE.gguf`` (a GGUF file here or on the Hub, decoded once into the cache), ``skeleton:NAME`` (a
    real architecture with random weights), a local folder, or a Hub id.
    ``{architecture: NAME, weights: random, overrides: {num_hidden_layers: 2}}`` is another way to write
    ``{id: "skeleton:NAME?num_hidden_layers=2"}``.

    Attributes:
        label: shown instead of the last part of ``id``; no part of a cell's identity.
        prompt_format: ``chat`` asks in the form of the model's chat template: loss on the answers of the assistant
            alone, and generation ends at the template's end token. ``plain`` is the task's text as it is.
        system_prompt: of every conversation that has none (``chat``); None: what the template does without one.
    """

    id: str
    label: str | None = Field(default=None, min_length=1)
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    trust_remote_code: bool = False
    prompt_format: Annotated[Literal["plain", "chat"], Later()] = "plain"
    system_prompt: Annotated[str | None, Later()] = None

    @model_validator(mode="after")
    def _system_prompt_needs_chat(self) -> ModelSpec:
        if self.system_prompt is not None and self.prompt_format != "chat":
            raise ValueError("'system_prompt' needs 'prompt_format: chat'")
        return self

    @model_validator(mode="before")
    @classmethod
    def _architecture(cls, value: object) -> object:
        if not isinstance(value, dict) or not {"architecture", "weights", "overrides"} & value.keys():
            return value
        rest = {k: v for k, v in value.items() if k not in ("architecture", "weights", "overrides")}
        if "id" in value or "architecture" not in value or value.get("weights") != "random":
            raise ValueError("give either 'id', or 'architecture' together with 'weights: random'")
        overrides = value.get("overrides") or {}
        if not isinstance(overrides, dict):
            raise ValueError("'overrides' maps configuration values to what they become")
        changes = urlencode({k: canonical_json(v) for k, v in sorted(overrides.items())})
        return {"id": f"skeleton:{value['architecture']}" + (f"?{changes}" if changes else ""), **rest}


class MethodSpec(FileModel):
    """One fine-tuning method: its registered name, its parameters and, if the sweep sets it, a learning rate."""

    name: str
    label: str | None = None
    params: Params = Field(default_factory=dict)
    learning_rate: float | None = Field(default=None, gt=0)
    steps: int | None = Field(default=None, gt=0, description="own number of steps; marked on the board")


class QuantizationSpec(FileModel):
    """One quantization: its registered name, its parameters and the moment it happens."""

    name: str
    label: str | None = None
    params: Params = Field(default_factory=dict)
    moment: Literal["before_training", "after_merge"] = "before_training"


class SecondModel(FileModel):
    """Another model in a cell: a teacher, a reference. ``teacher: ID`` means ``{model: {id: ID}}``.

    It is loaded only for the stages that need it; its dtype and quantization are its own.

    Attributes:
        trained: how this model is trained before it is asked, by a cell with the seed of the one that asks; None: it is
            asked as it is. ``{model: ID, trained: {method: full, steps: 300, task: {name: trec}}}``.
    """

    model: ModelSpec
    quantization: QuantizationSpec = QuantizationSpec(name="none")
    trained: EarlierStage | None = None

    @model_validator(mode="before")
    @classmethod
    def _by_id(cls, value: object) -> object:
        if isinstance(value, str):
            return {"model": {"id": value}}
        if not isinstance(value, dict):
            return value
        if "id" in value:
            return {"model": value}
        return {
            **value,
            **({"model": {"id": value["model"]}} if isinstance(value.get("model"), str) else {}),
            **({"quantization": named(value["quantization"])} if "quantization" in value else {}),
        }

    @model_validator(mode="after")
    def _quantized_at_once(self) -> SecondModel:
        if self.quantization.moment != "before_training":
            raise ValueError("a second model does not train: its quantization has no 'moment'")
        return self


class JudgeSpec(FileModel):
    """A judge that compares generated answers with the reference: a local model, or a server.

    Attributes:
        model: asked by the log-probabilities of its two possible replies.
        url: of a server with the interface of OpenAI's chat completions, up to ``/v1``.
        name: the model's name there; give a dated one, because the name is all that holds it still.
        key_env: environment variable that holds the server's key.
        items: only so many test items, the first ones.
        timeout_s: of one reply of the server.
    """

    model: SecondModel | None = None
    url: str | None = Field(default=None, pattern=r"^https?://[^\s@]+$")
    name: str | None = None
    key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    items: int | None = Field(default=None, gt=0)
    timeout_s: float = Field(default=60, gt=0, le=600)

    @model_validator(mode="after")
    def _one_judge(self) -> JudgeSpec:
        if (self.model is None) == (self.url is None):
            raise ValueError("a judge is either a model or a url")
        if (self.url is None) != (self.name is None):
            raise ValueError("a judge with a url needs the model's name there, and only such a judge has one")
        if self.key_env is not None and self.url is None:
            raise ValueError("key_env is for a judge with a url")
        if self.model is not None and self.model.trained is not None:
            raise ValueError("a judge is asked as it is: it has no 'trained'")
        return self

    def identity(self) -> dict[str, Any]:
        """Plain JSON of what can change a verdict, without the local model, whose digest the plan adds."""
        content = self.model_dump(mode="json", include={"url", "name", "items", "timeout_s", "key_env"})
        return {k: v for k, v in content.items() if v is not None and (k != "timeout_s" or self.url is not None)}


class ObjectiveSpec(FileModel):
    """An objective: its registered name, its parameters and the models it asks.

    Attributes:
        lr_factor: multiplies the method's learning rate; None: what the objective declares.
        teacher: whose probabilities or answers are learned.
        reference: what a preference loss compares with; None: the base itself, before the method is attached.
    """

    name: str
    label: str | None = None
    params: Params = Field(default_factory=dict)
    lr_factor: float | None = Field(default=None, gt=0)
    teacher: SecondModel | None = None
    reference: SecondModel | None = None


class RecipeSpec(FileModel):
    """A recipe: its registered name, its parameters and the model it asks."""

    name: str
    label: str | None = None
    params: Params = Field(default_factory=dict)
    teacher: SecondModel | None = None


class VariantSpec(FileModel):
    """How training is paid for: switches that replace settings of the sweep. ``plain`` switches nothing.

    Attributes:
        name: for people; not part of a cell's identity.
        batch_size: in the place of the sweep's, like ``gradient_accumulation``, ``max_length`` (tokens) and
            ``gradient_checkpointing``.
        attention: in the place of the model's, like ``dtype``.
        packing: rows of a batch share sequences of ``max_length`` tokens; each attends to itself alone and counts its
            positions from 0, so that the loss is the same.
        compile: ``torch.compile``; compiling is its own stage, before training.
        optimizer: in the place of the sweep's. ``adamw-8bit`` keeps the states of tensors above 4096 numbers in blocks
            of 8 bits (arXiv 2110.02861), ``adafactor`` keeps row and column sums (arXiv 1804.04235).
        offload: ``activations`` wait in the host's memory until the backward pass.
        kernels: ``liger``: fused kernels of that package.
    """

    name: str
    batch_size: int | None = Field(default=None, gt=0)
    gradient_accumulation: int | None = Field(default=None, gt=0)
    max_length: int | None = Field(default=None, gt=0)
    gradient_checkpointing: bool | None = None
    attention: Literal["sdpa", "eager", "flash_attention_2"] | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    packing: bool = False
    compile: bool = False
    optimizer: OptimizerName | None = None
    offload: Literal["none", "activations"] = "none"
    kernels: Literal["own", "liger"] = "own"

    @property
    def label(self) -> str:
        """The name, as on every axis."""
        return self.name

    def switches(self) -> dict[str, Any]:
        """The switches as plain JSON; ``{}`` for the plain variant."""
        return self.model_dump(mode="json", exclude={"name"}, exclude_defaults=True)


class ParallelSpec(FileModel):
    """How one cell trains on several devices of a machine. ``none``: on one.

    A step has the rows that the sweep says, whatever the strategy: each rank takes an equal part of every micro-batch.

    Attributes:
        strategy: ``ddp``: each rank holds the model and gradients are averaged (arXiv 2006.15704). ``fsdp``:
            parameters, gradients and optimizer states are sharded (torch's ``fully_shard``, arXiv 2304.11277).
            ``zero1`` to ``zero3``: DeepSpeed shards optimizer states, then gradients, then parameters (arXiv
            1910.02054). ``tp``: layers are split as transformers' ``tp_plan`` says.
        world_size: ranks, one device each.
        offload: with ``fsdp``, shards wait in the host's memory.
    """

    strategy: Literal["none", "ddp", "fsdp", "zero1", "zero2", "zero3", "tp"]
    world_size: int = Field(default=1, gt=0, le=1024)
    offload: Annotated[bool, Later()] = False
    label: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: object) -> object:
        return {"strategy": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _ranks(self) -> ParallelSpec:
        if (self.strategy == "none") != (self.world_size == 1):
            raise ValueError("a strategy needs a 'world_size' of at least 2, and 'none' has one rank")
        if self.offload and self.strategy != "fsdp":
            raise ValueError("'offload' is of the strategy fsdp")
        return self

    @property
    def name(self) -> str:
        """The strategy with its ranks, such as ``fsdp-4-offload``; ``none``."""
        if self.strategy == "none":
            return "none"
        return f"{self.strategy}-{self.world_size}" + ("-offload" if self.offload else "")

    def identity(self) -> dict[str, object]:
        """Plain JSON of what can change a number."""
        return self.model_dump(mode="json", exclude={"label"})


class Decoding(FileModel):
    """Generation settings. Temperature 0 is greedy.

    Attributes:
        samples: completions per item, for tasks judged by a program (pass@k).
    """

    temperature: float = Field(default=0.0, ge=0)
    top_k: int | None = Field(default=None, gt=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_new_tokens: int | None = Field(default=None, gt=0, description="None: what the task says")
    samples: Annotated[int, Later()] = Field(default=1, gt=0)

    @model_validator(mode="after")
    def _samples_differ(self) -> Decoding:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("several samples need a temperature above 0: greedy ones are all the same")
        return self


TaskFormat = Literal["finetune", "cloze", "letter"]


class TaskUse(FileModel):
    """A task of the library, optionally with fewer items (``None``: all of the split) and its own decoding.

    Attributes:
        steps: training steps on this task in the place of the sweep's; a method's own steps win over both.
        test_only: read only the test split, for data sets without any other; for methods that do not train.
        score: further tasks whose test splits are scored with the model trained on this one, each in a separate record.
            The model is trained once; rows that do not train are scored on those tasks too.
        format: of a multiple-choice task: what it is trained and scored in. ``finetune`` is the task's own prompt (as
            without ``format``), ``cloze`` scores the options' texts after the question, ``letter`` their letters. With
            it, a model that is not trained is scored in every format, so that no gain is measured from a base that
            could not read the question.
    """

    name: str
    label: str | None = None
    train_items: int | None = Field(default=None, gt=0)
    validation_items: int | None = Field(default=None, gt=0)
    test_items: int | None = Field(default=None, gt=0)
    decoding: Decoding | None = Field(default=None, description="None: what the sweep's evaluation says")
    steps: Annotated[int | None, Later()] = Field(default=None, gt=0)
    test_only: Annotated[bool, Later()] = False
    score: Annotated[tuple[str, ...], Later()] = ()
    format: Annotated[TaskFormat | None, Later()] = None


class SkillUse(FileModel):
    """A task whose skill is scored before adaptation and after it.

    Attributes:
        format: of a multiple-choice task: how it is asked, as under ``tasks``. Without it: in the task's own prompt,
            which a model that was not tuned on it may be unable to read.
    """

    name: str
    format: TaskFormat | None = None

    @model_serializer
    def _short(self) -> str | dict[str, str]:
        """By name alone where nothing else is said, as before formats could be named: keys of older cells hold it."""
        return self.name if self.format is None else {"name": self.name, "format": self.format}


class EarlierStage(FileModel):
    """One training before a cell's own: on the same model at the same quantization and seed.

    Attributes:
        steps: of this stage; None: the method's, else the task's or the sweep's.
        task: None: the cell's own.
        handover: ``merged``: what was trained is merged into the base, and what follows is attached to that base.
            ``unmerged``: what follows trains the same adapter on, so that it must be the same method.
    """

    method: MethodSpec
    steps: int | None = Field(default=None, gt=0)
    objective: ObjectiveSpec = Field(default_factory=lambda: ObjectiveSpec(name="sft"))
    recipe: RecipeSpec = Field(default_factory=lambda: RecipeSpec(name="plain"))
    task: TaskUse | None = None
    handover: Literal["merged", "unmerged"] = "merged"

    @field_validator("method", "objective", "recipe", "task", mode="before")
    @classmethod
    def _by_name(cls, value: object) -> object:
        return named(value)


class StagesSpec(FileModel):
    """The trainings before a cell's own method and objective. ``none``: there are none.

    Attributes:
        name: of the sequence, for people; not part of a cell's key.
    """

    name: str
    earlier: tuple[EarlierStage, ...] = ()

    @model_validator(mode="after")
    def _none_is_empty(self) -> StagesSpec:
        if (self.name == "none") != (not self.earlier):
            raise ValueError(
                "a sequence of stages has a 'name' and lists what is trained 'earlier'; 'none' has neither"
            )
        return self


class Rule(FileModel):
    """A set of cells by shell-style patterns; every key that is given must match."""

    model: str = "*"
    method: str = "*"
    quantization: str = "*"
    task: str = "*"
    hardware: str = "*"
    objective: str = "*"
    recipe: str = "*"
    stages: str = "*"
    variant: str = "*"
    parallel: str = "*"
    seed: int | None = None


class Exclusion(Rule):
    """Cells left out on purpose; they stay on the board with this reason."""

    why: str = Field(min_length=3)


class Priority(Rule):
    """Priority of the matching cells: the highest value runs first, 0 where no rule matches."""

    value: int


for one in (
    SecondModel,
    JudgeSpec,
    ObjectiveSpec,
    RecipeSpec,
):  # a stage has an objective, whose teacher may have a stage
    one.model_rebuild()
