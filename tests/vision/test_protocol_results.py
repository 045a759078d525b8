"""The protocol's file and tables on planted results: means, spreads, differences, gaps."""

from pathlib import Path

import pytest
from rich.console import Console


@pytest.fixture
def planted(script, tmp_path: Path):
    """The depth pair and the pair beside it, three seeds and two; zip+refit only."""
    results, pairs = script("results"), script("pairs")
    depth = pairs.PAIRS["small"][0]
    path = tmp_path / "vision.csv"
    for pair, joints in ((depth, (0.60, 0.62, 0.67)), (depth.beside, (0.63, 0.64))):
        for seed, joint in enumerate(joints):
            line = script("measure").Row("zip+refit", joint, (0.8, 0.9), 1000, 2.5)
            results.add(path, results.result_of(line, pair, seed, "abc"))
    return path, depth


def test_the_file_gives_back_what_was_put_in(script, planted) -> None:
    path, depth = planted
    results = script("results")
    found = results.read(path)
    assert len(found) == 5
    kept = found[depth.name, 1, "zip+refit"]
    assert (kept.joint, kept.first, kept.second, kept.parameters) == (0.62, 0.8, 0.9, 1000)
    assert kept.mean == pytest.approx(0.85)
    assert [r.kind for r in found.values()].count("homogeneous") == 2
    before = path.read_bytes()
    results.add(path, kept)
    assert path.read_bytes() == before


def test_an_unknown_half_stays_unknown(script, planted) -> None:
    path, depth = planted
    results = script("results")
    line = script("measure").Row("A alone", 0.45, (0.9, None), 500, 0.0)
    results.add(path, results.result_of(line, depth, 0, "abc"))
    kept = results.read(path)[depth.name, 0, "A alone"]
    assert (kept.first, kept.second, kept.mean) == (0.9, None, None)
    table = script("protocol_tables").networks(results.read(path), [depth])
    assert "| resnet333x1@0-4 | 500 | 0 | 0.900 |" in table


def test_tables_average_over_seeds_and_compare_within_them(script, planted) -> None:
    path, depth = planted
    tables, found = script("protocol_tables"), script("results").read(path)
    # Means .63 and .635; sample deviations; differences only of seeds 0 and 1: -.03 and -.02.
    line = tables.claim(found, [depth], ["zip+refit"]).splitlines()[-1]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[2:] == [
        "0.630 ± 0.036",
        "0.635 ± 0.007",
        "-0.025 ± 0.007",
        "+0.000 ± 0.000",
        "0, 1",
    ]


def test_the_pair_beside_has_the_merged_size(script) -> None:
    pairs = script("pairs")
    for pair in [*pairs.PAIRS["small"], *pairs.PAIRS["full"]]:
        first, second = pair.specs(0)
        one, two = pair.beside.specs(0)
        merged = [max(a, b) for a, b in zip(first.blocks, second.blocks, strict=True)]
        assert list(one.blocks) == list(two.blocks) == merged
        assert one.widths == two.widths == max(first.widths, second.widths)
        assert (one.classes, two.classes) == (first.classes, second.classes)
        assert pair.kind == "heterogeneous"
        assert pair.beside.kind == "homogeneous"
        assert pair.beside.beside == pair.beside


def test_rows_are_chosen_by_name_or_pattern(script) -> None:
    matching, rows = script("results").lines.matching, script("recipes").recipes()
    assert list(matching(rows, "zip+refit,head*", ",")) == ["head A", "head B", "zip+refit"]
    with pytest.raises(SystemExit, match=r"nothing matches 'nowhere'.*zip\+refit"):
        matching(rows, "nowhere", ",")


def test_what_is_not_trained_is_named_and_nothing_is_written(
    script, tmp_path: Path, monkeypatch
) -> None:
    protocol = script("protocol")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(protocol, "OUT", Console(record=True, width=80))
    path = tmp_path / "vision.csv"
    protocol.main(["--pairs", "depth", "--seeds", "0,1", "--results", str(path)])
    told = protocol.OUT.export_text()
    for seed in (0, 1):
        for shape in ("resnet333x1@0-4", "resnet222x1@5-9"):
            assert told.count(f"{shape}/{seed}") == 1
    assert "train.py --setting small" in told
    assert not path.exists()
