"""The work inside a category, spread by Dask: on this machine's processes or on a running cluster.

In: a function and the arguments of each call. Out: the results in the order of the calls, so that nothing
downstream can see how many workers there were (promise 1). The workers of a cluster see the same files under the
same paths.
"""

import sys
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, TypeVar

from prep.params import Dask

Result = TypeVar("Result")


def run(function: Callable[..., Result], calls: Iterable[tuple[Any, ...]], settings: Dask) -> list[Result]:
    """Call `function` with each tuple of arguments and return the results in order.

    Args:
        function: importable, with picklable arguments and result.
        calls: the arguments of each call.
        settings: ``scheduler`` is one of Dask's own words (synchronous, threads, processes) or the address of a
            running scheduler (tcp://host:port); ``workers`` counts local workers.
    """
    import dask  # noqa: PLC0415 -- a stage that does not spread work should not pay for it
    from dask.diagnostics import ProgressBar  # noqa: PLC0415

    tasks = [dask.delayed(function, pure=False)(*call) for call in calls]
    if settings.scheduler.startswith("tcp://"):
        from distributed import Client  # noqa: PLC0415

        with Client(settings.scheduler) as client:
            return list(client.gather(client.compute(tasks)))
    bar = ProgressBar(minimum=2, out=sys.stderr) if sys.stderr.isatty() else nullcontext()
    with bar:
        return list(dask.compute(*tasks, scheduler=settings.scheduler, num_workers=settings.workers))
