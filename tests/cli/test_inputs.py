import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hetmerge import InputError
from hetmerge.config import Calibration
from hetmerge.inputs import array_batches, token_batches
from hetmerge.texts import read_text


def characters(text: str) -> list[int]:
    return [ord(character) for character in text]


def test_windows_are_disjoint_runs_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("".join(chr(200 + k) for k in range(95)))
    settings = Calibration(path=str(path), tokens=55, sequence_length=10, batch_size=4, seed=3)
    batches = token_batches(settings, characters)
    ids = torch.cat([batch["input_ids"] for batch in batches])
    assert [len(batch["input_ids"]) for batch in batches] == [3, 3]
    assert ids.shape == (6, 10)
    assert (ids.diff(dim=1) == 1).all()
    starts = (ids[:, 0] - 200).tolist()
    assert len(set(starts)) == 6
    assert all(start % 10 == 0 for start in starts)
    again = token_batches(settings, characters)
    assert torch.equal(again[0]["input_ids"], batches[0]["input_ids"])


def test_more_tokens_than_there_are_take_all(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("x" * 25)
    settings = Calibration(path=str(path), tokens=1000, sequence_length=10)
    assert token_batches(settings, characters)[0]["input_ids"].shape == (2, 10)
    with pytest.raises(InputError, match="25 tokens are fewer than one sequence_length of 512"):
        token_batches(Calibration(path=str(path)), characters)


def test_jsonl_lines_are_joined(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text(f"{json.dumps({'text': 'one'})}\n\n{json.dumps({'text': 'two', 'n': 1})}\n")
    assert read_text(path) == "one\n\ntwo"
    path.write_text('{"text": "one"}\n["two"]\n')
    with pytest.raises(InputError, match=r"text.jsonl:2: expected a JSON object"):
        read_text(path)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
def test_arrays_of_every_kind(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"inputs{suffix}"
    rows = np.arange(60, dtype=np.float64).reshape(20, 3)
    if suffix == ".npy":
        np.save(path, rows)
    elif suffix == ".npz":
        np.savez(path, inputs=rows)
    else:
        save_file({"inputs": torch.from_numpy(rows)}, path)
    whole = torch.cat(array_batches(Calibration(path=str(path), batch_size=8), torch.float32))
    assert whole.dtype == torch.float32
    assert torch.equal(whole, torch.from_numpy(rows).float())
    some = array_batches(Calibration(path=str(path), samples=5, seed=1), torch.float64)
    (chosen,) = some
    assert chosen.shape == (5, 3)
    assert set(chosen[:, 0].tolist()) < set(rows[:, 0].tolist())
    assert len(set(chosen[:, 0].tolist())) == 5


def test_ids_stay_integers_and_pickles_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ids.npy"
    np.save(path, np.arange(12, dtype=np.int32).reshape(4, 3))
    (batch,) = array_batches(Calibration(path=str(path)), torch.float32)
    assert batch.dtype == torch.int64
    np.save(path, np.array([{"a": 1}, None], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="holds no readable array"):
        array_batches(Calibration(path=str(path)), torch.float32)
    np.save(path, np.arange(3.0))
    with pytest.raises(InputError, match="expected one array"):
        array_batches(Calibration(path=str(path)), torch.float32)
