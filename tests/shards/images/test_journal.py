import os
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prep.core.errors import UserError
from shards.images.journal import MAGIC, Journal, Record, forget, urls


def records(count, conditions="t"):
    return [
        Record(f"https://h/{n}", conditions, "ok" if n % 3 else "gone", 200, 1, image=bytes([n]) * n)
        for n in range(count)
    ]


def filled(path, count=5):
    """Return the offset at which each record ends."""
    ends = []
    with Journal(path, "t") as journal:
        for record in records(count):
            journal.append(record)
            ends.append(path.stat().st_size)
    return ends


def held(path, conditions="t"):
    with Journal(path, conditions) as journal:
        return [r.url for r in records(20) if journal.outcome(r.url)]


def test_appended_records_are_read_back(tmp_path):
    filled(tmp_path / "a" / "j")
    with Journal(tmp_path / "a" / "j", "t") as journal:
        assert len(journal) == 5
        assert [journal.get(r.url) for r in records(5)] == records(5)
        assert journal.outcome("https://h/0") == "gone"
        assert journal.outcome("https://h/9") is None
        with pytest.raises(KeyError):
            journal.get("https://h/9")


def test_the_latest_record_of_a_url_wins(tmp_path):
    with Journal(tmp_path / "j", "t") as journal:
        journal.append(Record("u", "t", "timeout"))
        journal.append(Record("u", "t", "ok", image=b"x"))
        assert journal.outcome("u") == "ok"
    with Journal(tmp_path / "j", "t") as journal:
        assert journal.get("u").image == b"x"
        assert len(journal) == 1


def test_a_failure_under_other_conditions_is_ignored_but_an_image_is_kept(tmp_path):
    filled(tmp_path / "j")
    assert held(tmp_path / "j", "other") == ["https://h/1", "https://h/2", "https://h/4"]


def test_a_truncated_last_record_is_removed(tmp_path):
    whole = tmp_path / "whole"
    ends = filled(whole, 3)
    data = whole.read_bytes()
    for length in range(len(data)):
        path = tmp_path / "torn"
        path.write_bytes(data[:length])
        kept = sum(end <= length for end in ends)
        with Journal(path, "t") as journal:
            assert len(journal) == kept
            journal.append(records(3)[2])
        with Journal(path, "t") as journal:
            assert [journal.get(r.url) for r in records(3)[:kept]] == records(3)[:kept]
            assert journal.get("https://h/2") == records(3)[2]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_flipped_byte_loses_only_its_own_record(tmp_path, data):
    path = tmp_path / "j"
    path.unlink(missing_ok=True)
    ends = filled(path, 6)
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    hit = sum(end <= at for end in ends)
    assert held(path) == [f"https://h/{n}" for n in range(6) if n != hit]


def test_the_magic_bytes_of_a_record_may_occur_in_an_image(tmp_path):
    with Journal(tmp_path / "j", "t") as journal:
        for name in "abc":
            journal.append(Record(name, "t", "ok", image=(MAGIC + b"\x05\0\0\0junk") * 50))
    content = bytearray((tmp_path / "j").read_bytes())
    content[20] ^= 1
    (tmp_path / "j").write_bytes(content)
    with Journal(tmp_path / "j", "t") as journal:
        assert [journal.outcome(name) for name in "abc"] == [None, "ok", "ok"]


def test_zeros_left_by_a_power_failure_are_removed(tmp_path):
    ends = filled(tmp_path / "j", 3)
    with (tmp_path / "j").open("ab") as file:
        file.write(bytes(5000))
    assert len(held(tmp_path / "j")) == 3
    assert (tmp_path / "j").stat().st_size == ends[-1]


def test_a_second_process_waits_for_the_first(tmp_path):
    script = (
        "import sys; from pathlib import Path; from shards.images.journal import Journal, Record\n"
        "with Journal(Path(sys.argv[1]), 't') as j: j.append(Record('second', 't', j.outcome('first') or 'none'))"
    )
    with Journal(tmp_path / "j", "t") as journal:
        second = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "j")], stderr=subprocess.PIPE, text=True
        )
        assert "in use by another run (process " in second.stderr.readline()
        assert second.poll() is None
        journal.append(Record("first", "t", "ok"))
    assert second.wait(30) == 0
    second.stderr.close()
    with Journal(tmp_path / "j", "t") as journal:
        assert journal.outcome("second") == "ok"


def test_appended_records_survive_kill_9(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from shards.images.journal import Journal, Record\n"
        "j = Journal(Path(sys.argv[1]), 't'); j.append(Record('a', 't', 'ok', image=b'x' * 100000))\n"
        "print('appended', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "j")], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stdout.readline() == "appended\n"
    process.kill()
    process.wait()
    process.stdout.close()
    with Journal(tmp_path / "j", "t") as journal:
        assert journal.get("a").image == b"x" * 100000


def test_forgotten_urls_leave_no_byte_and_the_others_stay(tmp_path):
    filled(tmp_path / "j")
    whole = (tmp_path / "j").read_bytes()
    assert forget(tmp_path / "j", {"https://h/1", "https://h/9"}) == 1
    assert b"https://h/1" not in (tmp_path / "j").read_bytes()
    assert urls(tmp_path / "j") == [f"https://h/{n}" for n in (0, 2, 3, 4)]
    with Journal(tmp_path / "j", "t") as journal:
        assert [journal.get(f"https://h/{n}") for n in (0, 2, 3, 4)] == [r for r in records(5) if r.url[-1] != "1"]
        assert journal.outcome("https://h/1") is None
        journal.append(records(2)[1])
    assert len((tmp_path / "j").read_bytes()) == len(whole)


def test_a_store_of_a_later_format_is_refused_and_kept(tmp_path):
    later = MAGIC[:3] + b"K0.2.0\n" + bytes(range(256))
    for use in (lambda path: Journal(path, "t"), urls, lambda path: forget(path, ["https://h/1"])):
        (tmp_path / "j").write_bytes(later)
        with pytest.raises(
            UserError, match=r"j has a later format than EffiMini .* reads; install EffiMini 0\.2\.0 or"
        ):
            use(tmp_path / "j")
        assert (tmp_path / "j").read_bytes() == later


def test_a_damaged_first_record_is_not_taken_for_a_later_format(tmp_path):
    filled(tmp_path / "j")
    whole = (tmp_path / "j").read_bytes()
    (tmp_path / "j").write_bytes(MAGIC[:3] + b"K" + whole[4:])
    assert held(tmp_path / "j") == [f"https://h/{n}" for n in range(1, 5)]


def test_fields_that_a_later_version_appends_are_skipped(tmp_path):
    class Longer(Record, frozen=True, array_like=True):
        licence: str = "unknown"

    with Journal(tmp_path / "j", "t") as journal:
        journal.append(Longer("https://h/1", "t", "ok", image=b"x"))
    with Journal(tmp_path / "j", "t") as journal:
        assert journal.get("https://h/1") == Record("https://h/1", "t", "ok", image=b"x")
