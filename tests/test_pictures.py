from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hetmerge.pictures import cka_picture


def drawn(path: Path, similarity: dict, segments: dict) -> np.ndarray:
    cka_picture(similarity, segments, path)
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def test_the_alignment_is_drawn(tmp_path: Path) -> None:
    similarity = {"stage": [[1.0, 0.2], [0.8, 0.4], [0.3, 0.9]]}
    early = drawn(tmp_path / "a.png", similarity, {"stage": [0, 1]})
    late = drawn(tmp_path / "b.png", similarity, {"stage": [0, 2]})
    for pixels in (early, late):
        red, green, blue = np.moveaxis(pixels, 2, 0)
        assert ((red > 180) & (green < 80) & (blue < 80)).sum() > 500
    assert early.shape == late.shape
    assert (early != late).any(axis=2).sum() > 200


@pytest.mark.parametrize("shapes", [[(1, 1)], [(1, 1), (9, 3)], [(40, 20)], [(4, 2)] * 4])
def test_every_shape_fits(tmp_path: Path, shapes: list[tuple[int, int]]) -> None:
    values = np.random.RandomState(0)
    similarity = {f"s{k}": values.rand(*shape).tolist() for k, shape in enumerate(shapes)}
    segments = {f"s{k}": list(range(shape[1])) for k, shape in enumerate(shapes)}
    pixels = drawn(tmp_path / "c.png", similarity, segments)
    height, width, _ = pixels.shape
    edges = (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])
    assert all(bool((edge == 255).all()) for edge in edges)  # nothing is cut off
    assert min(height, width) >= 300
    assert max(height, width) < 4000
