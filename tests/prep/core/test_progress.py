"""A long stage says how far it is: a bar on a terminal, lines in the log elsewhere."""

import logging
import os
import pty
import subprocess
import sys
import threading
import time

import pytest

from prep.core import progress


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the log, which a stage writes to every twentieth of a second; it grows."""
    monkeypatch.setattr(progress, "INTERVAL", 0.05)
    caplog.set_level(logging.INFO, "prep")
    return caplog.messages


def until(condition: object, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Wait until a line contains `condition`, and return all lines."""
    while not any(str(condition) in line for line in caplog.messages):
        time.sleep(0.01)
    return caplog.messages


@pytest.mark.usefixtures("lines")
def test_a_long_stage_logs_count_rate_and_time_left(caplog: pytest.LogCaptureFixture) -> None:
    for number in progress.bar(range(1000), "C: things"):
        if number == 250:
            until("250 of 1,000 (25.0 %)", caplog)
            break
    line = next(line for line in caplog.messages if "(25.0 %)" in line)
    assert line.startswith("C: things: 250 of 1,000 (25.0 %), ")
    assert line.rpartition(", ")[2].endswith(" left")
    assert "/s, " in line


@pytest.mark.usefixtures("lines")
def test_a_stage_that_is_stuck_goes_on_logging(caplog: pytest.LogCaptureFixture) -> None:
    with progress.shown("C", 10, lambda: (3, "gone 2")):
        found = until("none for", caplog)
    assert found[-1].startswith("C: 3 of 10 (30.0 %), ")
    assert found[-1].endswith(", none for 0 s, gone 2")


@pytest.mark.usefixtures("lines")
def test_what_an_earlier_run_did_is_no_part_of_the_rate(caplog: pytest.LogCaptureFixture) -> None:
    with progress.byte_bar("file", 4_000_000, 1_000_000):
        found = until("file", caplog)
    assert found[0].startswith("file: 1.0 of 4.0 MB (25.0 %), 0.0 MB/s")


@pytest.mark.usefixtures("lines")
def test_a_count_without_a_total_has_no_time_left(caplog: pytest.LogCaptureFixture) -> None:
    for _ in progress.bar(iter([1]), "C"):
        until("C: ", caplog)
    assert caplog.messages[0].startswith("C: 0, 0.0/s")
    assert "left" not in caplog.messages[0]


def test_a_stage_shorter_than_the_interval_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert list(progress.bar(range(3), "C")) == [0, 1, 2]
    assert not caplog.messages


def test_no_thread_is_left_when_the_consumer_ends_early() -> None:
    def shown() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "progress"]

    counted = progress.bar(range(3), "C")
    next(counted)
    assert len(shown()) == 1
    counted.close()  # type: ignore[attr-defined]
    assert not shown()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (90, "2 min"), (3599, "1 h 0 min"), (11_111, "3 h 5 min")]
)
def test_a_duration_has_at_most_two_units(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text


def test_a_rate_has_the_unit_in_which_it_is_at_least_one() -> None:
    line = progress._Line(None, 0, "")
    assert [line._per_time(rate) for rate in (1234, 0.5, 0.01, 0)] == ["1,234.0/s", "30.0/min", "36.0/h", "0.0/s"]


ON_TERMINAL = """
import time
from prep.core import progress
with progress.shown("C: things", 4, lambda: (1, "gone 2")):
    time.sleep(1)
"""


def test_a_terminal_shows_a_bar_and_the_log_nothing() -> None:
    parent, child = pty.openpty()
    env = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen([sys.executable, "-c", ON_TERMINAL], stdin=child, stderr=child, stdout=child, env=env):
        os.close(child)
        shown = b""
        try:
            while got := os.read(parent, 4096):
                shown += got
        except OSError:  # how Linux reports the end of a terminal
            pass
    os.close(parent)
    text = shown.decode()
    assert "C: things" in text
    assert "━" in text
    assert "1 of 4 (25.0 %)" in text
    assert "gone 2" in text
