"""mutmut with one pytest session: tests are collected once, and each mutant's process is a fork that runs its own.

Input: a folder with a configuration of mutmut, the arguments of its command line, and in ``MUTANTS`` how many mutants
are run; without it, all are. mutmut starts pytest anew in each fork, which takes ten times as long as most tests here.
"""

import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import mutmut.__main__ as command
import pytest
from _pytest.config import _prepareconfig
from _pytest.main import Session
from _pytest.runner import runtestprotocol
from mutmut.configuration import config
from mutmut.runners.harness import ListAllTestsResult, TestRunner
from mutmut.state import state
from mutmut.utils.file_utils import change_cwd
from mutmut.workers.isolation import ForkRunner, MutantRunner

collect = command.collect_source_file_mutation_data


class SessionRunner(TestRunner):
    """Runs collected tests."""

    def __init__(self) -> None:
        given = config()
        with change_cwd("mutants"):
            arguments = ["-q", *given.pytest_add_cli_args, *given.pytest_add_cli_args_test_selection]
            self._config = _prepareconfig(arguments)
            self._config._do_configure()
            session = Session.from_config(self._config)
            self._config.hook.pytest_sessionstart(session=session)
            session.perform_collect()
        self._of_fixtures: set[str] = set()  # functions that fixtures of a file call
        self._config.pluginmanager.register(self)
        self._tests = {item.nodeid: item for item in session.items}

    def run_stats(self, *, tests: Iterable[str]) -> int:
        """Run tests, all if none is named, and note their seconds and the functions that they call.

        What the fixtures of a file call, is called for each of its tests.
        """
        called: dict[str, set[str]] = {}

        def note(name: str, reports: list[pytest.TestReport]) -> None:
            state().duration_by_test[name] = sum(report.duration for report in reports)
            called[name] = set(state()._stats)
            state()._stats.clear()

        for _, group in groupby(tests or self._tests, key=lambda name: name.partition("::")[0]):
            self._of_fixtures.clear()
            names = list(group)
            if not self._pass(names, note):
                return 1
            for name in names:
                for function in called[name] | self._of_fixtures:
                    state().tests_by_mangled_function_name[function].add(name)
        return 0

    def pytest_runtest_call(self) -> None:
        """Note what was called before a test."""
        self._of_fixtures |= set(state()._stats)

    def run_tests(self, *, mutant_name: str | None, tests: Iterable[str]) -> int:
        """Return 1 if a test fails; if none is named, run the fastest, for all have passed in `run_stats`."""
        seconds = state().duration_by_test
        fastest = sorted(set().union(*state().tests_by_mangled_function_name.values()), key=seconds.__getitem__)[:20]
        ordered = sorted(tests or fastest, key=list(self._tests).index)  # so that no fixture is made twice
        return int(not self._pass(ordered))

    def run_forced_fail(self) -> int:
        """Return 1 if a test fails."""
        return self.run_tests(mutant_name=None, tests=[])

    def list_all_tests(self) -> ListAllTestsResult:
        """Return the names of the tests."""
        return ListAllTestsResult(ids=set(self._tests))

    def _pass(
        self,
        tests: Iterable[str],
        note: Callable[[str, list[pytest.TestReport]], None] = lambda name, reports: None,
    ) -> bool:
        """Run tests up to the first that fails, in a temporary folder of their own; return whether none does."""
        items = [self._tests[name] for name in tests]
        factory: Any = self._config._tmp_path_factory  # type: ignore[attr-defined]
        factory._basetemp = Path(tempfile.mkdtemp())
        with change_cwd("mutants"):
            for item, after in zip(items, [*items[1:], None], strict=True):
                reports = runtestprotocol(item, log=False, nextitem=after)
                note(item.nodeid, reports)
                if failed := any(report.failed for report in reports):
                    break
            # a test that fails leaves fixtures for the next one, in the folder that is removed here
            items[0].session._setupstate.teardown_exact(None)
        shutil.rmtree(factory._basetemp, ignore_errors=True)
        return not failed


def sampled(**arguments: Any) -> tuple[list[Any], Any]:
    """Return the same random mutants each time, in place of all."""
    mutants, files = collect(**arguments)
    count = int(os.environ.get("MUTANTS", len(mutants)))
    return random.Random(0).sample(mutants, min(count, len(mutants))), files


def runner(max_workers: int = 1) -> MutantRunner:
    """Return the runner of mutmut."""
    return ForkRunner(max_workers=max_workers, test_runner=SessionRunner(), debug=config().debug)


if __name__ == "__main__":
    command.get_mutant_runner = runner
    command.collect_source_file_mutation_data = sampled
    command.cli(sys.argv[1:])
