"""Headers and indexes of checkpoints, against what safetensors itself reads."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from hetmerge.errors import CheckpointError
from hetmerge.shards import INDEX, read_header, shards_of, stored_tensors

TENSORS = {
    "a": torch.arange(6.0).view(2, 3),
    "b": torch.arange(4, dtype=torch.int64),
    "c": torch.ones(2, 0, 5),
    "d": torch.tensor(3.0, dtype=torch.bfloat16),
    "e": torch.tensor([True, False]),
    "f": torch.randn(3, 2, dtype=torch.float64),
}
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def write_sharded(folder: Path, **index: str) -> Path:
    names = list(TENSORS)
    save_file({n: TENSORS[n] for n in names[:3]}, folder / FIRST)
    save_file({n: TENSORS[n] for n in names[3:]}, folder / SECOND)
    weights = {n: FIRST if n in names[:3] else SECOND for n in names}
    (folder / INDEX).write_text(json.dumps({"weight_map": {**weights, **index}}))
    return folder


def raw(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def from_bytes(folder: Path) -> dict[str, Tensor]:
    return {name: stored.read() for name, stored in stored_tensors(folder).items()}


@pytest.mark.parametrize("name", ["model.safetensors", "weights.safetensors"])
def test_bytes_at_the_offsets_are_the_tensors(tmp_path: Path, name: str) -> None:
    save_file(TENSORS, tmp_path / name, metadata={"format": "pt"})
    found = from_bytes(tmp_path)
    assert found.keys() == TENSORS.keys()
    for key, tensor in TENSORS.items():
        assert found[key].dtype == tensor.dtype
        assert torch.equal(found[key], tensor)
    place = stored_tensors(tmp_path)["f"]
    assert torch.equal(place.read(torch.tensor([2, 0])), TENSORS["f"][[2, 0]])
    assert torch.equal(place.part(range(1, 3)).read(), TENSORS["f"][1:])


def test_shards_by_the_index(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    save_file({"x": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    assert shards_of(tmp_path) == {n: tmp_path / (FIRST if n in "abc" else SECOND) for n in TENSORS}
    found = from_bytes(tmp_path)
    assert all(torch.equal(found[n], TENSORS[n]) for n in TENSORS)


def test_links_of_the_hub_cache_are_followed(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots"
    blobs.mkdir()
    snapshot.mkdir()
    write_sharded(blobs)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(Path("..") / "blobs" / file.name)
    assert shards_of(snapshot).keys() == TENSORS.keys()


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ({"a": SECOND}, f"has 'a' in {SECOND}, but {FIRST} holds it"),
        ({"z": FIRST}, f"has 'z' in {FIRST}, which does not hold it"),
        ({"z": "model-3.safetensors"}, "model-3.safetensors is missing (1 of 3 shards"),
        ({"a": "../up.safetensors"}, "names '../up.safetensors', which leaves the folder"),
        ({"a": "/etc/passwd"}, "names '/etc/passwd', which leaves the folder"),
        ({"a": "x/../../up"}, "which leaves the folder"),
        ({"a": r"..\up.safetensors"}, "which leaves the folder"),
        ({"a": r"C:\up.safetensors"}, "which leaves the folder"),
        ({"a": 3}, "expected a weight_map of tensor name to file name"),
    ],
)
def test_indexes_that_do_not_fit(tmp_path: Path, index: dict[str, Any], expected: str) -> None:
    write_sharded(tmp_path, **index)
    with pytest.raises(CheckpointError) as caught:
        shards_of(tmp_path)
    assert expected in str(caught.value)


def test_a_tensor_that_the_index_does_not_know(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    save_file({"a": TENSORS["a"], "extra": torch.ones(2)}, tmp_path / FIRST)
    with pytest.raises(CheckpointError, match="has 'extra' nowhere, but"):
        shards_of(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_damaged_indexes(tmp_path: Path, text: str) -> None:
    write_sharded(tmp_path)
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match="damaged; expected"):
        shards_of(tmp_path)


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"no json", "damaged header"),
        (b"\xff\xff", "damaged header"),
        ([], "not a mapping"),
        ({"t": 3}, "tensor 't' has a damaged header entry"),
        ({"t": {**ENTRY, "shape": [3]}}, "tensor 't' has a damaged header entry"),
        ({"t": {**ENTRY, "shape": [-2]}}, "tensor 't' has a damaged header entry"),
        ({"t": {**ENTRY, "data_offsets": [8]}}, "tensor 't' has a damaged header entry"),
        ({"t": {**ENTRY, "dtype": "F4"}}, "tensor 't' is stored as 'F4'; allowed: BOOL"),
        ({"t": {**ENTRY, "dtype": [3]}}, "tensor 't' has a damaged header entry"),
        ({"t": {**ENTRY, "shape": [4], "data_offsets": [0, 16]}}, "cut short or damaged"),
    ],
)
def test_damaged_headers(tmp_path: Path, header: Any, expected: str) -> None:
    path = raw(tmp_path / "model.safetensors", header, bytes(8))
    with pytest.raises(CheckpointError, match=expected):
        read_header(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "cut short"),
        (b"\x00" * 7, "cut short"),
        (struct.pack("<Q", 1 << 40) + b"{}", "cut short"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    ],
)
def test_files_that_are_no_safetensors(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=expected):
        shards_of(tmp_path)


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    data = (tmp_path / SECOND).read_bytes()
    (tmp_path / SECOND).write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match=f"{SECOND}: has {len(data) - 1} bytes"):
        shards_of(tmp_path)
    (tmp_path / SECOND).write_bytes(data + b"x")
    with pytest.raises(CheckpointError, match=f"{SECOND}: has {len(data) + 1} bytes"):
        shards_of(tmp_path)


def test_folders_without_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such directory"):
        shards_of(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="holds no .safetensors file"):
        shards_of(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(CheckpointError, match="convert it to safetensors first.*save_pretrained"):
        shards_of(tmp_path)
    for name in ("one", "two"):
        save_file(TENSORS, tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match="holds 2 .safetensors files and neither"):
        shards_of(tmp_path)
