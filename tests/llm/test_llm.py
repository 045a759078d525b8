"""The benchmark of small language models, from training to table, with networks of a few steps."""

import math
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytestmark = [pytest.mark.data, pytest.mark.slow]
ROWS = "? alone;ensemble, probabilities;head B;pca+refit;distilled B*"
ORDERED = ["A alone", "B alone", "ensemble, probabilities", "head B", "pca+refit"]


@pytest.fixture(scope="module")
def ran(data: Path, script, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    path = cache / "llm.csv"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        pair = script("lm_pairs").PAIRS[2]  # whose parents start from others
        for spec in pair.specs(0):
            script("lm_train").ensure(spec, "smoke")

        def run() -> None:
            words = ["--setting", "smoke", "--pairs", pair.name, "--seeds", "0", "--rows", ROWS]
            script("lm_run").main([*words, "--results", str(path)])

        run()
        yield script, path, run


def test_every_row_is_kept(ran) -> None:
    script, path, _ = ran
    found = script("lm_results").read(path)
    assert [r.recipe for r in found.values()] == [*ORDERED, "distilled B, 64 steps"]
    for result in found.values():
        assert result.mean == pytest.approx((result.english + result.code) / 2, abs=1e-4)
        assert 3 < result.mean < 9  # bits of a byte, after a few steps of training
    table = script("lm_tables").table(found, "lineage")
    assert all(f"| {name} |" in table for name in ORDERED)


def test_what_is_there_is_not_run_again(ran, script, monkeypatch) -> None:
    _, path, run = ran
    before = path.read_bytes()
    monkeypatch.setattr(script("lm_run"), "Bench", lambda *_: pytest.fail("ran again"))
    run()
    assert path.read_bytes() == before


def test_parts_of_the_text_do_not_overlap(data: Path, script) -> None:
    lm = script("lm_data")
    for domain in lm.DOMAINS:
        parts = {part: lm.windows(domain, part, 50) for part in lm.PARTS}
        seen = {part: {tuple(x) for x in ids.tolist()} for part, ids in parts.items()}
        assert not seen["test"] & (seen["train"] | seen["calibration"])
        assert all(len(lm.text(domain, part)) > 50_000 for part in lm.PARTS)


def test_bits_of_a_uniform_predictor(data: Path, script) -> None:
    uniform = lambda ids: torch.full((*ids.shape, 256), -math.log(256))  # noqa: E731
    assert script("lm_measure").bits(uniform, 4).mean == pytest.approx(8, abs=1e-6)
