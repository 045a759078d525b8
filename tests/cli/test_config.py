from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from hetmerge import ConfigError
from hetmerge.alignment import DEPTHS
from hetmerge.config import MergeConfig, MergeParameters, bytes_of, read_config
from hetmerge.options import BACKENDS, IMPORTANCES, MATCHES, Options
from hetmerge.outputs import OUTPUTS
from hetmerge.repair import REPAIRS
from hetmerge.softmax_head import HEADS

GOOD: dict[str, Any] = {
    "models": [{"model": "deep", "parameters": {"weight": 3}}, {"python": "nets:shallow"}],
    "calibration": {"path": "inputs.npy"},
}


def written(tmp_path: Path, data: object) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def test_defaults_need_not_be_written(tmp_path: Path) -> None:
    config = read_config(written(tmp_path, GOOD))
    assert config.weights == [3.0, 1.0]
    assert (config.merge_method, config.dtype, config.out_dtype) == ("auto", "float32", None)
    assert config.parameters == MergeParameters()
    assert (config.parameters.alpha, config.parameters.beta, config.parameters.width) == (
        0.5,
        1.0,
        "max",
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model": 1}, "unknown key 'model'; did you mean 'models'?"),
        ({"parameters": {"alhpa": 0.5}}, "parameters: unknown key 'alhpa'; did you mean 'alpha'?"),
        ({"calibration": {"path": "a.npy", "smaples": 3}}, "did you mean 'samples'?"),
        (
            {"models": [{"model": "a", "parameters": {"weigth": 1}}, {"model": "b"}]},
            "models.0.parameters: unknown key 'weigth'; did you mean 'weight'?",
        ),
        ({"zzz": 1}, "unknown key 'zzz'; allowed: models, merge_method"),
    ],
)
def test_unknown_keys_name_the_nearest(
    tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(written(tmp_path, {**GOOD, **changes}))
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"parameters": {"alpha": "high"}}, "parameters.alpha: "),
        ({"parameters": {"alpha": True}}, "parameters.alpha: "),
        ({"parameters": {"alpha": 0}}, "parameters.alpha: "),
        ({"parameters": {"beta": float("nan")}}, "parameters.beta: "),
        ({"parameters": {"refit": "yes"}}, "parameters.refit: "),
        ({"parameters": {"width": "mx"}}, "parameters.width: expected 'max', 'union'"),
        ({"parameters": {"width": -2.0}}, "parameters.width: expected 'max', 'union'"),
        ({"parameters": {"width": True}}, "parameters.width: expected 'max', 'union'"),
        ({"parameters": {"stop_at": 0}}, "parameters.stop_at: expected a number of units above 0"),
        ({"parameters": {"stop_at": True}}, "parameters.stop_at: expected a number of units"),
        ({"parameters": {"width": {}}}, "parameters.width: expected 'max', 'union'"),
        ({"parameters": {"budget": 9}}, "parameters.budget: expected a mapping of one of"),
        ({"parameters": {"budget": {"bytes": 9}}}, "parameters.budget: expected a mapping of one"),
        ({"parameters": {"budget": {"flops": "6 X"}}}, "parameters.budget: expected a mapping of"),
        ({"parameters": {"budget": {"flops": "0M"}}}, "parameters.budget: expected a mapping of"),
        ({"parameters": {"architecture": 9}}, "parameters.architecture: expected names of whole"),
        (
            {"parameters": {"architecture": {"hidden_size": 9}, "width": 2}},
            "parameters: give 'architecture' alone",
        ),
        (
            {"parameters": {"budget": {"flops": 9.0}, "width": "union"}},
            "parameters: give 'budget' or 'width', not both",
        ),
        ({"parameters": {"labels": [["a"]]}}, "parameters.labels: expected 2 lists, got 1"),
        ({"parameters": {"names": ["a"]}}, "parameters.names: expected 2, got 1"),
        ({"parameters": None}, "parameters: expected a mapping, got None"),
        ({"merge_method": "slerp"}, "merge_method: "),
        ({"models": [{"model": "a"}]}, "models: "),
        ({"models": [{"model": "a", "python": "b:c"}, {"model": "d"}]}, "exactly one of 'model'"),
        ({"models": [{"python": "module"}, {"model": "d"}]}, "expected module:function"),
        ({"models": [{"model": "a", "parameters": {"weight": -1}}] * 2}, "parameters.weight: "),
        ({"models": [{"model": "a", "parameters": {"weight": 0}}] * 2}, "weight must be above 0"),
        ({"calibration": {"path": "a.pkl"}}, "expected a file ending in .txt, .jsonl, .npy"),
        ({"calibration": {}}, "calibration: give exactly one of 'path' (a file) and 'dataset'"),
        ({"calibration": {"path": "a.txt", "dataset": "d"}}, "exactly one of 'path'"),
        ({"calibration": {"path": "a.txt", "split": "test"}}, "'split' does not apply to a .txt"),
        ({"calibration": {"dataset": "d", "samples": 5}}, "'samples' does not apply to a data set"),
        (
            {"calibration": {"path": "a.npy", "exclude_massive": True}},
            "'exclude_massive' does not apply to a .npy",
        ),
        ({"evaluation": {"path": "a.npy"}}, "evaluation: path: expected a file ending in .txt"),
        ({"evaluation": {"path": "b.txt"}}, "so calibration must be text too"),
        (
            {"calibration": {"path": "a.txt"}, "evaluation": {"path": "a.txt", "tokens": 3}},
            "evaluation: the same text as calibration",
        ),
        (
            {"tokenizer": {"source": "shallow"}},
            "tokenizer.source: expected 'base', 'union', or one of the models (deep), got 'shal",
        ),
        ({"tokenizer": {"sauce": "base"}}, "tokenizer: unknown key 'sauce'; did you mean 'source'"),
        ({"max_shard_size": "5 gigabytes"}, "max_shard_size: expected a size such as '5GB'"),
        ({"max_shard_size": "0GB"}, "max_shard_size: expected a size such as '5GB'"),
        ({"max_shard_size": 5}, "max_shard_size: expected a size such as '5GB'"),
        ({"trust_remote_code": "yes"}, "trust_remote_code: "),
        ({"out_dtype": "int8"}, "out_dtype: "),
        ({"calibration": {"path": "a.npy", "tokens": 5}}, "'tokens' does not apply to a .npy"),
        ({"calibration": {"path": "a.txt", "samples": 5}}, "'samples' does not apply to a .txt"),
        ({"calibration": {"path": "a.npy", "batch_size": 0}}, "calibration.batch_size: "),
        ({"dtype": "int8"}, "dtype: "),
    ],
)
def test_wrong_values_name_their_place(tmp_path: Path, changes: dict[str, Any], place: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(written(tmp_path, {**GOOD, **changes}))
    assert place in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "- 1", "hello", "a: [\n b: c", "\0"])
def test_not_a_mapping_or_not_yaml(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="expected a mapping|not valid YAML"):
        read_config(path)


def test_missing_sections_and_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="calibration: required, but missing"):
        read_config(written(tmp_path, {"models": GOOD["models"]}))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path / "nowhere.yaml")


def test_keys_of_language_models(tmp_path: Path) -> None:
    changes = {
        "models": [{"model": "org/deep@v1"}, {"model": "shallow"}],
        "calibration": {"dataset": "org/text", "subset": "en", "exclude_massive": True},
        "evaluation": {"dataset": "org/text", "subset": "en", "split": "test"},
        "tokenizer": {"source": "org/deep@v1"},
        "out_dtype": "bfloat16",
        "max_shard_size": "1.5GiB",
    }
    config = read_config(written(tmp_path, {**GOOD, **changes}))
    assert config.calibration.is_text
    assert (config.calibration.split, config.calibration.column) == ("train", "text")
    assert bytes_of(config.max_shard_size) == 3 * 2**29
    plain = read_config(written(tmp_path, GOOD))
    assert (plain.tokenizer, plain.evaluation, plain.trust_remote_code) == (None, None, False)
    assert not plain.calibration.exclude_massive
    sizes = [bytes_of(size) for size in ("5GB", "500MB", "2 kb", "1KiB")]
    assert sizes == [5 * 10**9, 5 * 10**8, 2000, 1024]


def test_architecture(tmp_path: Path) -> None:
    fields = {"hidden_size": 64, "num_attention_heads": 4}
    config = read_config(written(tmp_path, {**GOOD, "parameters": {"architecture": fields}}))
    assert config.parameters.architecture == fields


def test_budget(tmp_path: Path) -> None:
    for budget in ({"parameters": 400000}, {"flops": 6e7}):
        config = read_config(written(tmp_path, {**GOOD, "parameters": {"budget": budget}}))
        assert config.parameters.budget == budget


@pytest.mark.parametrize(
    ("text", "number"), [("6B", 6e9), ("1.5b", 1.5e9), ("800 M", 8e8), ("6e9", 6e9), ("2T", 2e12)]
)
def test_budget_in_words(tmp_path: Path, text: str, number: float) -> None:
    given = {**GOOD, "parameters": {"budget": {"parameters": text}}}
    assert read_config(written(tmp_path, given)).parameters.budget == {"parameters": number}


def test_every_width_form(tmp_path: Path) -> None:
    for width in ("max", "union", 1.5, 2, {"stream": 1.25}):
        config = read_config(written(tmp_path, {**GOOD, "parameters": {"width": width}}))
        assert config.parameters.width == width


def test_choices_and_defaults_are_those_of_the_library() -> None:
    fields = MergeParameters.model_fields
    assert get_args(MergeConfig.model_fields["merge_method"].annotation) == MATCHES
    for name, choices in (
        ("depth", DEPTHS),
        ("importance", IMPORTANCES),
        ("outputs", OUTPUTS),
        ("repair", REPAIRS),
        ("head", HEADS),
        ("backend", BACKENDS),
    ):
        assert get_args(fields[name].annotation) == choices
    defaults = Options().to_dict()
    assert {name: defaults[name] for name in fields} == MergeParameters().model_dump()
    assert defaults["match"] == MergeConfig.model_fields["merge_method"].default


@pytest.mark.parametrize("place", [3, "layer2.3", None])
def test_where_a_partial_merge_stops(tmp_path: Path, place: int | str | None) -> None:
    config = read_config(written(tmp_path, {**GOOD, "parameters": {"stop_at": place}}))
    assert config.parameters.stop_at == place
    assert Options.make(config.parameters.model_dump()).stop_at == place
