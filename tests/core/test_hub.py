"""Names of models, against a cache of the hub made by hand; nothing here reaches a network."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hetmerge.errors import CheckpointError, InputError
from hetmerge.hub import fetch, find
from hetmerge.shards import INDEX, shards_of

constants = pytest.importorskip("huggingface_hub.constants")
SHA, OLD = "a" * 40, "b" * 40


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of a machine without a network that holds org/name at two commits."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    repo = tmp_path / "cache" / "models--org--name"
    for sha in (SHA, OLD):
        folder = repo / "snapshots" / sha
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(SHA)
    (repo / "refs" / "v1").write_text(OLD)
    return repo / "snapshots"


def test_a_directory_goes_before_the_hub(cache: Path) -> None:
    del cache
    Path("org/name").mkdir(parents=True)
    found = find("org/name")
    assert (found.path, found.revision, found.sha) == (Path("org/name"), None, None)
    assert fetch(found) == Path("org/name")


@pytest.mark.parametrize(
    ("name", "revision", "sha"),
    [
        ("org/name", None, SHA),
        ("org/name@main", "main", SHA),
        ("org/name@v1", "v1", OLD),
        (f"org/name@{OLD}", OLD, OLD),
    ],
)
def test_revisions_are_resolved_to_commits(
    cache: Path, name: str, revision: str | None, sha: str
) -> None:
    found = find(name)
    assert (found.name, found.revision, found.sha) == ("org/name", revision, sha)
    assert found.path == cache / sha


def test_weights_are_taken_from_the_cache(cache: Path) -> None:
    save_file({"a": torch.ones(2)}, cache / SHA / "model.safetensors")
    assert shards_of(fetch(find("org/name"))) == {"a": cache / SHA / "model.safetensors"}
    shard = "model-00001-of-00001.safetensors"
    save_file({"a": torch.ones(2)}, cache / OLD / shard)
    (cache / OLD / INDEX).write_text(json.dumps({"weight_map": {"a": shard}}))
    assert shards_of(fetch(find("org/name@v1"))) == {"a": cache / OLD / shard}


def test_a_hub_model_with_pickles_only(cache: Path) -> None:
    (cache / SHA / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(CheckpointError, match="pickles .* are not read.*save_pretrained"):
        fetch(find("org/name"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nowhere", "no such directory .and no hub id: org/name"),
        ("a/b/c", "no such directory .and no hub id"),
        ("../org/name", "no such directory .and no hub id"),
        ("org/name@", "no such directory .and no hub id"),
        ("org/other", "no such directory, and it cannot be had from the hub"),
        ("org/name@v2", "org/name@v2: no such directory, and it cannot be had"),
        ("gpt2@main", "gpt2@main: no such directory, and it cannot be had"),
        ("org/name..x", "the hub has no such model"),
    ],
)
def test_names_that_stand_for_nothing(cache: Path, name: str, expected: str) -> None:
    del cache
    with pytest.raises(InputError, match=expected):
        find(name)
