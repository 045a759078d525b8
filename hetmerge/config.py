"""The YAML of `hetmerge merge`: what may stand in it, checked before any work starts."""

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from hetmerge.errors import ConfigError
from hetmerge.widths import BUDGETS, is_budget

Positive = Annotated[int, Field(gt=0)]
TEXT_FILES = (".txt", ".jsonl")
ARRAY_FILES = (".npy", ".npz", ".safetensors")
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
    if value is None or is_budget(value):
        return value
    raise ValueError(
        f"expected a mapping of one of {', '.join(BUDGETS)} to a number above 0, "
        f"got {_shown(value)}"
    )


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
    importance: Literal["fisher", "weights"] = "fisher"
    outputs: Literal["average", "concat"] = "average"
    labels: list[list[str]] | None = None
    alpha: Annotated[float, Field(gt=0)] = 0.5
    beta: Annotated[float, Field(ge=0)] = 1.0
    width: Annotated[Any, BeforeValidator(_width)] = "max"
    budget: Annotated[Any, BeforeValidator(_budget)] = None
    refit: bool = True
    ridge: Literal["auto"] | Annotated[float, Field(gt=0)] = 0.01
    repair: Literal["none", "bn", "repair"] = "none"
    stop_at: Annotated[Any, BeforeValidator(_unit)] = None
    names: list[str] | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    backend: Literal["auto", "reference", "native", "torch", "triton", "cuda"] = "auto"

    @model_validator(mode="after")
    def _one_dial(self) -> "MergeParameters":
        if self.budget is not None and self.width != "max":
            raise ValueError("give 'budget' or 'width', not both: a budget chooses the widths")
        return self


class Calibration(Section):
    """Unlabelled inputs: a text file for language models, or one array [N, ...] for others."""

    path: str
    tokens: Positive = 65536
    sequence_length: Positive = 512
    samples: Positive | None = None
    batch_size: Positive | None = None
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _keys_fit_the_file(self) -> "Calibration":
        if self.suffix not in (*TEXT_FILES, *ARRAY_FILES):
            allowed = ", ".join((*TEXT_FILES, *ARRAY_FILES))
            raise ValueError(f"path: expected a file ending in {allowed}, got {self.path!r}")
        wrong = {"samples"} if self.is_text else {"tokens", "sequence_length"}
        for key in sorted(wrong & self.model_fields_set):
            raise ValueError(f"{key!r} does not apply to a {self.suffix} file")
        return self

    @property
    def suffix(self) -> str:
        return Path(self.path).suffix

    @property
    def is_text(self) -> bool:
        return self.suffix in TEXT_FILES


class Tokenizer(Section):
    """Whose tokenizer the merged model gets; this release requires all parents to share it."""

    source: Literal["base"] = "base"


class MergeConfig(Section):
    """A whole configuration file."""

    models: Annotated[list[ModelSource], Field(min_length=2)]
    merge_method: Literal["auto", "zip", "permute", "select", "identity"] = "zip"
    parameters: MergeParameters = MergeParameters()
    calibration: Calibration
    tokenizer: Tokenizer = Tokenizer()
    dtype: Literal["float64", "float32"] = "float32"
    out_dtype: DType | None = None

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
        return self

    @property
    def weights(self) -> list[float]:
        return [source.parameters.weight for source in self.models]


def read_config(path: str | Path) -> MergeConfig:
    """Read and check a configuration file.

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
