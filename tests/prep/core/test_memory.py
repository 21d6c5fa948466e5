import os
import subprocess
import sys

import pytest

from prep.core import memory
from prep.core.cluster import dask_pool
from prep.core.params import DaskParams

SIZE = 300_000_000  # bytes
SECOND_ROUND = """
import resource
from prep.core import memory
{setting}
def pages():
    block = b"x" * {size}
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
first, second = pages(), pages()
print(second - first)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the settings are those of glibc")
def test_freed_memory_is_reused_without_page_faults() -> None:
    def pages(setting: str) -> int:
        code = SECOND_ROUND.format(setting=setting, size=SIZE)
        return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)

    assert pages("") > SIZE / 4096 / 2
    assert pages("memory.keep_freed()") < 1000


def test_workers_keep_what_they_free() -> None:
    with dask_pool(DaskParams(scheduler="processes", workers=1)) as pool:
        found = pool.map(os.getenv, [(name,) for name in memory.ENVIRONMENT])
    assert found == list(memory.ENVIRONMENT.values())
