"""Send the metrics of a training to TensorBoard, MLflow or Weights & Biases, besides DVCLive's files.

Input: the name of a tracker, the settings of the run, and metrics by step. Output: what the tracker keeps:
event files in ``build/tensorboard``, or a run where its own environment variables say. Guarantees: a tracker changes no
byte of the training; one that fails later is named once in the log and left alone.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

from prep.core.errors import UserError, first_sentence

log = logging.getLogger(__name__)

EVENTS = Path("build/tensorboard")  # a folder for each run, by its start
PROJECT = "effimini"

Log: TypeAlias = Callable[[Mapping[str, float], int], None]  # of metrics, and the last step that they include, from 1
Settings: TypeAlias = Mapping[str, Any]


def start(name: str, settings: Settings) -> AbstractContextManager[Log]:
    """Return a context with the function that sends metrics to a tracker; it ends the run.

    Args:
        name: none, tensorboard, mlflow or wandb.
        settings: of the run, to be shown beside it.

    Raises:
        UserError: the name is another one. On entry: the tracker's library is not installed, or it does not start.
    """
    if name == "none":
        return nullcontext(discard)
    if name not in TRACKERS:
        raise UserError(f"there is no tracker {name}; choose from none, {', '.join(TRACKERS)}")
    return _started(name, settings)


def discard(metrics: Mapping[str, float], step: int) -> None:
    """Send nothing."""


@contextmanager
def _started(name: str, settings: Settings) -> Iterator[Log]:
    with ExitStack() as run:
        try:
            send = run.enter_context(TRACKERS[name](settings))
        except ModuleNotFoundError as error:
            raise UserError(
                f"{error.name} is not installed and is needed for the tracker {name}; "
                f"run `pip install effimini[{name}]`"
            ) from None
        except Exception as error:  # the trackers' errors have no common base class
            raise UserError(
                f"the tracker {name} does not start ({first_sentence(error)}); correct its settings"
            ) from error
        failed = False

        def careful(metrics: Mapping[str, float], step: int) -> None:
            nonlocal failed
            if failed:
                return
            try:
                send(metrics, step)
            except Exception as error:  # noqa: BLE001 -- as above; hours of training are worth more
                failed = True
                log.warning("the tracker %s failed (%s); training goes on without it", name, first_sentence(error))

        yield careful


@contextmanager
def _tensorboard(settings: Settings) -> Iterator[Log]:
    library = import_module("torch.utils.tensorboard")
    with library.SummaryWriter(str(EVENTS / time.strftime("%Y%m%d-%H%M%S"))) as writer:
        writer.add_text("settings", "\n".join(f"    {name}: {value}" for name, value in settings.items()))

        def send(metrics: Mapping[str, float], step: int) -> None:
            for name, value in metrics.items():
                writer.add_scalar(name, value, step)
            writer.flush()

        yield send


@contextmanager
def _mlflow(settings: Settings) -> Iterator[Log]:
    library = import_module("mlflow")
    with library.start_run():
        library.log_params(settings)
        yield lambda metrics, step: library.log_metrics(dict(metrics), step=step)


@contextmanager
def _wandb(settings: Settings) -> Iterator[Log]:
    library = import_module("wandb")
    with library.init(project=os.environ.get("WANDB_PROJECT", PROJECT), config=dict(settings)) as run:
        yield lambda metrics, step: run.log(dict(metrics), step=step)


TRACKERS: Mapping[str, Callable[[Settings], AbstractContextManager[Log]]] = {
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
    "wandb": _wandb,
}
