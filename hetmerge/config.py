"""The YAML of `hetmerge merge`: what may stand in it, checked before any work starts."""

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from hetmerge.errors import ConfigError
from hetmerge.widths import BUDGETS, is_architecture, is_budget

Positive = Annotated[int, Field(gt=0)]
TEXT_FILES = (".txt", ".jsonl")
ARRAY_FILES = (".npy", ".npz", ".safetensors")
_COUNT = re.compile(r"(\d+(?:\.\d+)?(?:e\d+)?) ?([KMBT]?)", re.IGNORECASE)
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT])(i?)B", re.IGNORECASE)
DType = Literal["float64", "float32", "bfloat16", "float16"]


def _width(value: Any) -> Any:
    choices = list(value.values()) if isinstance(value, dict) else [value]
    if choices and all(
        choice in ("max", "union") or (type(choice) in (int, float) and 0 < choice < float("inf"))
        for choice in choices
    ):
        return value
    raise ValueError(
        "expected 'max', 'union', a factor above 0, or a mapping of space name to such a value, "
        f"got {_shown(value)}"
    )


def _unit(value: Any) -> Any:
    if value is None or (type(value) is int and value > 0) or (isinstance(value, str) and value):
        return value
    raise ValueError(
        f"expected a number of units above 0, the path of a unit, or null, got {_shown(value)}"
    )


def _budget(value: Any) -> Any:
    found = {k: _count(v) for k, v in value.items()} if isinstance(value, dict) else value
    if found is None or is_budget(found):
        return found
    raise ValueError(
        f"expected a mapping of one of {', '.join(BUDGETS)} to a number above 0 such as 400000 or "
        f"'6B', got {_shown(value)}"
    )


def _count(value: Any) -> Any:
    """A number that is written as "800M" or "6B", which YAML reads as text, as is "6e9"."""
    if isinstance(value, str) and (found := _COUNT.fullmatch(value)):
        return float(found[1]) * 1000 ** " KMBT".index(found[2].upper() or " ")
    return value


def _architecture(value: Any) -> Any:
    if value is None or is_architecture(value):
        return value
    raise ValueError(
        "expected names of whole numbers in a configuration with their values, such as "
        f"{{hidden_size: 2048}}, got {_shown(value)}"
    )


def _size(value: Any) -> Any:
    if isinstance(value, str) and (found := _SIZE.fullmatch(value)) and float(found[1]) > 0:
        return value
    raise ValueError(f"expected a size such as '5GB' or '500MB', got {_shown(value)}")


def bytes_of(size: str) -> int:
    """Bytes of a size such as "5GB" (10^9) or "2GiB" (2^30)."""
    found = _SIZE.fullmatch(size)
    assert found is not None
    base = 1024 if found[3] else 1000
    return int(float(found[1]) * base ** " KMGT".index(found[2].upper()))


class Section(BaseModel):
    """A mapping whose unknown keys are errors that name the nearest valid one."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            raise ValueError(f"expected a mapping, got {_shown(data)}")
        allowed = list(cls.model_fields)
        for key in data:
            if key in allowed:
                continue
            near = get_close_matches(str(key), allowed, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(allowed)}"
            raise ValueError(f"unknown key {key!r}; {hint}")
        return data


class ModelParameters(Section):
    """What may differ from model to model."""

    weight: Annotated[float, Field(ge=0)] = 1.0


class ModelSource(Section):
    """One parent: a directory (`model`) or a Python factory (`python: module:function`)."""

    model: str | None = None
    python: str | None = None
    parameters: ModelParameters = ModelParameters()

    @model_validator(mode="after")
    def _one_source(self) -> "ModelSource":
        if (self.model is None) == (self.python is None):
            raise ValueError("give exactly one of 'model' (a directory) and 'python'")
        if self.python is not None and self.python.count(":") != 1:
            raise ValueError(f"python: expected module:function, got {self.python!r}")
        return self


class MergeParameters(Section):
    """Options of the merge; the defaults are those of `hetmerge.merge`."""

    depth: Literal["segment", "layer", "uniform", "head", "tail"] = "segment"
    missing: Literal["zero", "repeat"] = "zero"
    importance: Literal["fisher", "weights"] = "fisher"
    outputs: Literal["average", "concat"] = "average"
    labels: list[list[str]] | None = None
    alpha: Annotated[float, Field(gt=0)] = 0.5
    beta: Annotated[float, Field(ge=0)] = 1.0
    width: Annotated[Any, BeforeValidator(_width)] = "max"
    budget: Annotated[Any, BeforeValidator(_budget)] = None
    architecture: Annotated[Any, BeforeValidator(_architecture)] = None
    refit: bool = True
    ridge: Literal["auto"] | Annotated[float, Field(gt=0)] = 0.01
    head: Literal["ridge", "kl", "bayes"] = "ridge"
    repair: Literal["none", "bn", "repair"] = "none"
    stop_at: Annotated[Any, BeforeValidator(_unit)] = None
    names: list[str] | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    backend: Literal["auto", "reference", "native", "torch", "triton", "cuda"] = "auto"

    @model_validator(mode="after")
    def _one_dial(self) -> "MergeParameters":
        if self.budget is not None and self.width != "max":
            raise ValueError("give 'budget' or 'width', not both: a budget chooses the widths")
        if self.architecture is not None and (self.budget is not None or self.width != "max"):
            raise ValueError("give 'architecture' alone: it decides the widths")
        return self


class TextSource(Section):
    """Text: a file, or a data set of the hub that the datasets package streams."""

    path: str | None = None
    dataset: str | None = None
    subset: str | None = None
    split: str = "train"
    column: str = "text"
    tokens: Positive = 65536
    sequence_length: Positive = 512
    batch_size: Positive | None = None
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _one_text(self) -> "TextSource":
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give exactly one of 'path' (a file) and 'dataset' (a hub id)")
        if self.path is not None and self.suffix not in self.suffixes():
            allowed = ", ".join(self.suffixes())
            raise ValueError(f"path: expected a file ending in {allowed}, got {self.path!r}")
        for key in sorted({"subset", "split", "column"} & self.model_fields_set):
            if self.path is not None:
                raise ValueError(f"{key!r} does not apply to a {self.suffix} file")
        return self

    @classmethod
    def suffixes(cls) -> tuple[str, ...]:
        return TEXT_FILES

    @property
    def suffix(self) -> str:
        return Path(self.path or "").suffix

    @property
    def is_text(self) -> bool:
        return self.dataset is not None or self.suffix in TEXT_FILES


class Calibration(TextSource):
    """Unlabelled inputs: text for language models, or a file with one array [N, ...] for others."""

    samples: Positive | None = None
    exclude_massive: bool = False

    @model_validator(mode="after")
    def _keys_fit_the_file(self) -> "Calibration":
        texts = {"tokens", "sequence_length", "exclude_massive"}
        for key in sorted(({"samples"} if self.is_text else texts) & self.model_fields_set):
            raise ValueError(f"{key!r} does not apply to {self._kind}")
        return self

    @classmethod
    def suffixes(cls) -> tuple[str, ...]:
        return (*TEXT_FILES, *ARRAY_FILES)

    @property
    def _kind(self) -> str:
        return "a data set" if self.path is None else f"a {self.suffix} file"


class Evaluation(TextSource):
    """Held-out text on which parents and result are scored."""


class Tokenizer(Section):
    """Whose tokenizer, and so whose rows of the vocabulary, the merged model gets.

    `base` is the first model's, `union` that with the others' tokens added; any other value is the
    name of one of the models.
    """

    source: Annotated[str, Field(min_length=1)] = "base"


class Polishing(Section):
    """Training of the finished merge on its parents' outputs; 0 steps: none."""

    steps: Annotated[int, Field(ge=0)]
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4


class MergeConfig(Section):
    """A whole configuration file."""

    models: Annotated[list[ModelSource], Field(min_length=2)]
    merge_method: Literal["auto", "zip", "permute", "select", "pca", "identity"] = "auto"
    parameters: MergeParameters = MergeParameters()
    calibration: Calibration
    evaluation: Evaluation | None = None
    tokenizer: Tokenizer | None = None
    polish: Polishing | None = None
    device: Annotated[str, Field(min_length=1)] = "cpu"
    dtype: Literal["float64", "float32", "bfloat16"] = "float32"
    out_dtype: DType | None = None
    max_shard_size: Annotated[str, BeforeValidator(_size)] = "5GB"
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _models_agree(self) -> "MergeConfig":
        if not any(source.parameters.weight for source in self.models):
            raise ValueError("models: at least one weight must be above 0")
        labels = self.parameters.labels
        if labels is not None and len(labels) != len(self.models):
            raise ValueError(
                f"parameters.labels: expected {len(self.models)} lists, got {len(labels)}"
            )
        names = self.parameters.names
        if names is not None and len(names) != len(self.models):
            raise ValueError(f"parameters.names: expected {len(self.models)}, got {len(names)}")
        if self.polish and self.polish.steps and self.parameters.stop_at is not None:
            raise ValueError(
                "polish: trains a whole merge; behind parameters.stop_at the heads are the "
                "parents' own, so give one of the two"
            )
        self._check_tokenizer()
        self._check_held_out()
        return self

    def _check_tokenizer(self) -> None:
        names = [source.model for source in self.models]
        if self.tokenizer and self.tokenizer.source not in ("base", "union", *names):
            shown = ", ".join(name for name in names if name)
            raise ValueError(
                f"tokenizer.source: expected 'base', 'union', or one of the models ({shown}), "
                f"got {self.tokenizer.source!r}"
            )

    def _check_held_out(self) -> None:
        mine, held = self.calibration, self.evaluation
        if held is None:
            return
        if not mine.is_text:
            raise ValueError("evaluation: scores language models, so calibration must be text too")
        same = [
            getattr(mine, k) == getattr(held, k) for k in ("path", "dataset", "subset", "split")
        ]
        if all(same):
            raise ValueError(
                "evaluation: the same text as calibration; what is scored must be held out"
            )

    @property
    def weights(self) -> list[float]:
        return [source.parameters.weight for source in self.models]


def read_config(path: str | Path, polish: int | None = None) -> MergeConfig:
    """Read and check a configuration file.

    Args:
        polish: steps that take the place of those in the file.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or does not fit; names the place.
    """
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise ConfigError(f"{path}: cannot be read ({reason})") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if polish is not None and isinstance(data, dict):
        data["polish"] = {**(data.get("polish") or {}), "steps": polish}
    try:
        return MergeConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_first_problem(error)}") from error


def _first_problem(error: ValidationError) -> str:
    """One line for the first problem: where it is, what is wrong, what came."""
    problem = error.errors()[0]
    place = ".".join(map(str, problem["loc"]))
    text = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing":
        text = "required, but missing"
    elif problem["type"] != "value_error":
        text = f"{text[:1].lower()}{text[1:]}, got {_shown(problem['input'])}"
    return f"{place}: {text}" if place else text


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
