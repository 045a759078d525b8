"""The protocol from training to picture: networks trained for seconds, a handful of images."""

from pathlib import Path

import pytest

pytestmark = [pytest.mark.data, pytest.mark.slow]
ROWS = "? alone,ensemble,head A,zip,zip+refit,union"
ORDERED = ["A alone", "B alone", "ensemble", "head A", "zip", "zip+refit", "union"]


@pytest.fixture(scope="module")
def ran(data: Path, script, tmp_path_factory):
    """Networks in a cache folder of their own, so that nothing trained before is used."""
    decoded = script("data").cached("test").parent
    cache = tmp_path_factory.mktemp("cache")
    (cache / "hetmerge").mkdir()
    (cache / "hetmerge" / decoded.name).symlink_to(decoded)
    path = cache / "vision.csv"
    (pair,) = script("pairs").PAIRS["smoke"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        for spec in {*pair.specs(0), *pair.beside.specs(0)}:
            script("train").ensure(spec, "smoke")

        def protocol(*words: str) -> None:
            fixed = ["--setting", "smoke", "--seeds", "0", "--rows", ROWS]
            script("protocol").main([*fixed, "--results", str(path), *words])

        protocol()
        yield script("results"), path, protocol, pair


def test_every_row_of_both_pairs_is_kept(ran) -> None:
    results, path, _, pair = ran
    found = results.read(path)
    assert [r.recipe for r in found.values()] == 2 * ORDERED
    assert {(r.pair, r.kind) for r in found.values()} == {
        (pair.name, "heterogeneous"),
        (pair.beside.name, "homogeneous"),
    }
    for name in (pair.name, pair.beside.name):
        rows = {recipe: found[name, 0, recipe] for recipe in ORDERED}
        assert rows["A alone"].first > 0.25  # five classes: it has learned something
        assert rows["B alone"].second > 0.25
        assert (rows["A alone"].second, rows["B alone"].first) == (None, None)
        # The ensemble's halves are the parents', and union is the ensemble.
        assert rows["ensemble"].first == rows["A alone"].first
        assert rows["ensemble"].second == rows["B alone"].second
        assert rows["union"].joint == pytest.approx(rows["ensemble"].joint, abs=0.005)
        for row in rows.values():
            if row.mean is not None:
                assert row.mean == pytest.approx((row.first + row.second) / 2, abs=1e-4)


def test_what_is_there_is_not_run_again(ran, script, monkeypatch) -> None:
    results, path, protocol, pair = ran
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(script("protocol"), "bench_of", lambda *_: pytest.fail("ran again"))
        protocol()
    assert path.read_bytes() == before
    # A line that is lost comes back with the same figures, and only that one is run.
    lost = (pair.name, 0, "zip+refit")
    kept = {key: result for key, result in results.read(path).items() if key != lost}
    wanted = results.read(path)[lost]
    path.unlink()
    for result in kept.values():
        results.add(path, result)
    protocol()
    again = results.read(path)
    assert {key: again[key] for key in kept} == kept
    assert (again[lost].joint, again[lost].mean) == (wanted.joint, wanted.mean)


def test_the_picture_is_drawn(ran, script, tmp_path: Path) -> None:
    results, path, _, pair = ran
    script("protocol_picture").draw(results.read(path), [pair], tmp_path / "protocol.png")
    assert (tmp_path / "protocol.png").read_bytes().startswith(b"\x89PNG")


def test_a_file_that_says_too_much_is_refused(ran, script) -> None:
    from dataclasses import replace

    results, path, _, pair = ran
    protocol = script("protocol")
    result = results.read(path)[pair.name, 0, "A alone"]
    parents = protocol.bench_of(pair, 0, "smoke").parents
    protocol.check(result, parents, 200)
    boastful = [replace(parents[0], accuracy=result.first + 0.3), parents[1]]
    with pytest.raises(SystemExit, match="but its file says"):
        protocol.check(result, boastful, 200)
