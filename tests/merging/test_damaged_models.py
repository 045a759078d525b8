"""Damaged or misplaced checkpoints: one clear line, and nothing half-written."""

import json
from pathlib import Path

import pytest
import torch
from families.plain import perceptron
from families.vision import ResNet, vgg

import hetmerge as hm
from hetmerge import CheckpointError


@pytest.fixture
def saved(make, tmp_path: Path) -> Path:
    hm.save(make(vgg, [8, 8]), tmp_path / "model")
    return tmp_path / "model"


def refused(path: Path, template=None) -> str:
    with pytest.raises(CheckpointError) as caught:
        hm.load(path, template)
    message = str(caught.value)
    assert "\n" not in message
    return message


def edit(path: Path, change) -> None:
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))


def test_truncated_tensors(saved: Path) -> None:
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert refused(saved).startswith(f"{file}: damaged (")


@pytest.mark.parametrize("size", [0, 5, 40])
def test_tensors_cut_in_their_header(saved: Path, size: int) -> None:
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    assert refused(saved).startswith(f"{file}: damaged (")


def test_missing_tensors(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    assert refused(saved) == f"{saved / 'model.safetensors'}: no such file"


def test_missing_description(saved: Path) -> None:
    (saved / "hetmerge.json").unlink()
    assert refused(saved) == f"{saved}: neither hetmerge.json nor config.json is there"


def test_missing_directory(tmp_path: Path) -> None:
    assert refused(tmp_path / "nothing") == f"{tmp_path / 'nothing'}: no such directory"


EDITS = {
    "version 7; this release reads 1": lambda b: b.update(version=7),
    "not a hetmerge model": lambda b: b.update(format="other"),
    "has no 'tensors'": lambda b: b.pop("tensors"),
    "says [9, 3, 3, 3]": lambda b: b["tensors"].update({"0.weight": [9, 3, 3, 3]}),
    "'blueprint' is damaged": lambda b: b.update(blueprint={"surprise": 1}),
    "'model' is damaged": lambda b: b.update(model={"class": 3}),
    "'tied' is damaged": lambda b: b.update(tied={"a": "nowhere"}),
    "'tensors' is damaged": lambda b: b.update(tensors=[]),
}


@pytest.mark.parametrize("message", EDITS)
def test_edited_description(saved: Path, message: str) -> None:
    edit(saved / "hetmerge.json", EDITS[message])
    assert message in refused(saved)


def test_description_that_names_other_code(saved: Path) -> None:
    """Only modules are built: an edited file cannot call what it likes."""
    spec = {"module": "os", "class": "system", "arguments": {"command": "exit 1"}}
    edit(saved / "hetmerge.json", lambda b: b.update(model=spec))
    assert "os.system cannot be built from what is saved" in refused(saved)


def test_description_with_arguments_the_class_refuses(saved: Path) -> None:
    spec = {"module": "torch.nn.modules.linear", "class": "Linear", "arguments": {"in": 1}}
    edit(saved / "hetmerge.json", lambda b: b.update(model=spec))
    assert "cannot be built from what is saved" in refused(saved)


def test_not_json(saved: Path) -> None:
    (saved / "hetmerge.json").write_text('{"format": "hetm')
    assert refused(saved).startswith(f"{saved / 'hetmerge.json'}: not JSON (")


def test_template_of_another_class(make, images, tmp_path: Path) -> None:
    parents = [make(ResNet, [2, 1], 8), make(ResNet, [1, 1], 12, seed=1)]
    hm.merge(parents, images, progress=False, match="zip").save(tmp_path / "merged")
    for template in (make(perceptron, [8]), make(vgg, [8, 8])):
        message = refused(tmp_path / "merged", template)
        assert message.startswith("template: Sequential has no module '")
        assert message.endswith("give a module of the class and depth of the deepest parent")
    message = refused(tmp_path / "merged")
    assert message.endswith(
        "families.vision.ResNet cannot be built from what is saved; import its module first, or "
        "pass template= with a module of that class"
    )


def test_existing_directory_is_left_alone(saved: Path, make) -> None:
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    with pytest.raises(CheckpointError, match="exists already; give a directory that does not"):
        hm.save(make(vgg, [4, 4]), saved)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before
    assert [p.name for p in saved.parent.iterdir()] == ["model"]


def test_parent_that_cannot_be_written(make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        hm.save(make(vgg, [4, 4]), tmp_path / "file" / "model")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_failure_while_writing_leaves_nothing(make, tmp_path: Path, monkeypatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hetmerge.checkpoints.save_file", fail)
    with pytest.raises(CheckpointError, match="No space left on device"):
        hm.save(make(vgg, [4, 4]), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_pickles_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    torch.save({}, tmp_path / "pytorch_model.bin")
    assert "is a pickle, which can run code when opened; convert it" in refused(tmp_path)
