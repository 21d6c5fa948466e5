import numpy as np

from prep.core.hashes import hashes, units

GOLDEN = ["ad6f4550e0670ca7", "b6d82ef3655ef895", "e9431812f7a8f89d"]


def test_a_hash_depends_only_on_salt_and_value() -> None:
    assert hashes("s", ["a", "b"]).tolist() == [hashes("s", ["a"])[0], hashes("s", ["b"])[0]]
    assert hashes("s", ["a"]) != hashes("t", ["a"])
    assert hashes("s", ["\u00e9"]) == hashes("s", ["\u00e9".encode()])
    assert hashes("s", []).dtype == np.uint64


def test_hashes_are_the_same_on_every_machine_and_version() -> None:
    assert [f"{value:016x}" for value in hashes("effimini", ["", "a", "B000000001"])] == GOLDEN


def test_units_are_uniform() -> None:
    u = units("s", [str(i) for i in range(10_000)])
    assert 0 <= u.min() < 0.001
    assert 0.999 < u.max() < 1
    assert abs(u.mean() - 0.5) < 0.01  # over three standard deviations
