"""CIFAR-10 from the data folder's archive of JPEGs, decoded once and cached."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
ARCHIVE = "cifar10/cifar10_jpeg.tar.xz"


def data_folder() -> Path:
    folder = os.environ.get("HETMERGE_DATA")
    if not folder or not Path(folder).is_dir():
        raise SystemExit("set HETMERGE_DATA to the data folder (see benchmarks/vision/README.md)")
    return Path(folder)


def cifar10(split: str, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The first `count` images of a fixed random order: normalised [N, 3, 32, 32], labels [N]."""
    arrays = np.load(cached(split))
    order = np.random.RandomState(seed).permutation(len(arrays["labels"]))[:count]
    images = torch.from_numpy(arrays["images"][order]).permute(0, 3, 1, 2).float() / 255
    images = (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    return images.contiguous(), torch.from_numpy(arrays["labels"][order])


def cached(split: str) -> Path:
    """The split's npz file; decodes the whole archive when it is not there yet."""
    archive = data_folder() / ARCHIVE
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    # The size stands in the name, so that another archive never meets an old cache.
    folder = Path(base) / "hetmerge" / f"cifar10-{archive.stat().st_size}"
    if not (folder / f"{split}.npz").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _decode(archive, folder)
    return folder / f"{split}.npz"


def _decode(archive: Path, folder: Path) -> None:
    images: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    names: dict[str, list[str]] = {"train": [], "test": []}
    with tarfile.open(archive, "r:xz") as tar:
        for member in tar:
            if not member.name.endswith(".jpg"):
                continue
            file = tar.extractfile(member)
            assert file is not None
            split = member.name.split("/")[-3]
            names[split].append(member.name)
            images[split].append(np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB")))
    for split, members in names.items():
        order = np.argsort(members)
        folders = np.array([name.split("/")[-2] for name in members])[order]
        labels = np.unique(folders, return_inverse=True)[1].astype(np.int64)
        partial = folder / f"{split}.{os.getpid()}.npz"
        np.savez(partial, images=np.stack(images[split])[order], labels=labels)
        partial.replace(folder / f"{split}.npz")
