"""What this machine does per second: a calibration of less than a minute.

Input: the parameters, and some rows of the source. Output: a `Machine`. Guarantees: nothing is written but to
temporary folders; at most `PICTURES` images are requested.
"""

import json
import os
import random
import resource
import shutil
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import numpy as np
import torch
from distributed.system import MEMORY_LIMIT
from dvc_objects.fs.system import reflink
from torch import nn

from effimini.distributed import Distributed, init_distributed
from effimini.loss import weighted_huber
from effimini.model import EffiMini, build
from effimini.plan.survey import Survey, download_rate
from effimini.train import parameter_groups, prepare
from prep.core.fields import assemble
from prep.core.params import Params
from prep.core.tables.images import OK
from prep.sample import SampleRow
from shards import tokens
from shards.fetch import fetch_some, image_base

PICTURES = 256  # several for each connection, so that opening these is a small part of the time
_ROUNDS = 20  # of the work that a core is measured by
_STEPS, _STEP_SECONDS = 3, 5.0  # minimum number and time of the measured steps
_BATCHES = 9  # whose longest text is measured
_MAX_BATCH = 256  # samples in a measured step


class Pictures(msgspec.Struct, frozen=True, kw_only=True):
    """The images of some items."""

    fetched: float  # fraction of the requested images
    source_bytes: float  # mean size on the host
    stored_bytes: float  # mean size at training size
    cpu: float  # seconds per image, to request, decode and encode it
    rate: float  # images per second that the host sends at `fetch.connections`


class Steps(msgspec.Struct, frozen=True, kw_only=True):
    """The configured model on this machine, data aside."""

    train: float  # seconds per sample, forward and backward
    score: float  # seconds per sample, forward
    tokens: int  # of the longest text of a batch
    memory: int  # bytes of a process that has trained
    device: str  # cpu or cuda


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What this machine has, and what it does per second."""

    cores: int
    memory: int  # bytes
    disk: int  # free bytes of the disk with the data folder
    hard_links: bool  # whether this disk has them; the local store uses them
    clones: bool  # whether this disk can clone files (reflink); DVC's cache does so
    work: float  # seconds of CPU time for a fixed amount of work; see `work`
    download_rate: float | None  # bytes per second that the source sends; None if it is on this machine
    pictures: Pictures | None  # None if no item has an image
    steps: Steps

    @property
    def stored_bytes(self) -> float:
        """Mean size of an item's image at training size; 0 for an item without one."""
        return self.pictures.stored_bytes * self.pictures.fetched if self.pictures else 0.0


def calibrate(params: Params, surveyed: Survey, data: Path) -> Machine:
    """Measure this machine.

    Args:
        params: the parameters.
        surveyed: the source, for images and texts of its items.
        data: the folder of the tables, for its disk.

    Raises:
        UserError: an encoder cannot be loaded, or the image host refuses all requests.
    """
    folder = next(path for path in (data.absolute(), *data.absolute().parents) if path.exists())
    rows = [row for rows in surveyed.rows.values() for row in rows]
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        memory=int(MEMORY_LIMIT),
        disk=shutil.disk_usage(folder).free,
        hard_links=_works(os.link, folder),
        clones=_works(reflink, folder),
        work=work(),
        download_rate=download_rate(params, surveyed.categories),
        pictures=_pictures(params, surveyed),
        steps=measure_steps(params, _tokens_of_batch(params, rows)),
    )


def work() -> float:
    """Return the CPU time, in seconds, of work like that of the data stages: JSON, compression and sorting.

    It is made of libraries only, so a change of a stage does not change it.
    """
    rng = np.random.default_rng(0)
    words = [f"{number:x}" for number in rng.integers(0, 1 << 32, 20_000).tolist()]
    document, numbers = json.dumps({word: [word, len(word), None] for word in words}), rng.random(400_000)

    def once() -> None:
        for _ in range(4):
            json.loads(document)
        zlib.compress(document.encode(), 6)
        np.sort(numbers)

    return min(_cpu(once) for _ in range(_ROUNDS))


def _works(link: Callable[[str, str], None], folder: Path) -> bool:
    """Return whether a file in a folder can be linked or cloned."""
    try:
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            file = Path(temporary) / "file"
            file.write_bytes(b"a")
            link(str(file), f"{file}.link")
    except OSError:  # it cannot, or the disk is read-only
        return False
    return True


def _cpu(function: Callable[[], object]) -> float:
    begin = time.process_time()
    function()
    return time.process_time() - begin


def _pictures(params: Params, surveyed: Survey) -> Pictures | None:
    base = image_base(params.source.categories[0], params)
    of_base = [each for each in surveyed.rows if image_base(each, params) == base]  # a demo category has its own
    items = [row.image_urls for each in of_base for row in surveyed.rows[each] if row.image_urls]
    chosen = random.Random(0).sample(items, min(PICTURES, len(items)))
    if not chosen:
        return None
    with tempfile.TemporaryDirectory() as folder:
        begin, cpu = time.monotonic(), time.process_time()
        records = fetch_some(chosen, params, base, Path(folder) / "pictures.journal")
        wall, cpu = time.monotonic() - begin, time.process_time() - cpu
    fetched = [record for record in records if record.outcome == OK]
    return Pictures(
        fetched=len(fetched) / len(records),
        source_bytes=_mean(record.source_bytes for record in fetched),
        stored_bytes=_mean(len(record.image) for record in fetched),
        cpu=cpu / len(records),
        rate=len(records) / wall,
    )


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean([*values] or [0.0])


def measure_steps(params: Params, count: int) -> Steps:
    """Measure the model on batches whose longest text has `count` tokens.

    Raises:
        UserError: an encoder cannot be loaded.
    """
    size, side = min(params.train.batch_size, _MAX_BATCH), params.images.resolution
    with init_distributed() as dist:
        model = prepare(build(params, random=True).to(dist.device), params, dist)
        images = torch.zeros((size, 3, side, side), dtype=torch.uint8, device=dist.device)
        ids = torch.ones((size, count), dtype=torch.int64, device=dist.device)
        has_image = torch.ones(size, dtype=torch.bool, device=dist.device)
        inputs = (images.contiguous(memory_format=torch.channels_last), ids, ids, has_image)
        return Steps(
            train=_train_seconds(model, params, inputs, dist) / size,
            score=_score_seconds(model, inputs, dist) / size,
            tokens=count,
            memory=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            device=dist.device.type,
        )


def _tokens_of_batch(params: Params, rows: list[SampleRow]) -> int:
    """Return how many tokens the longest text of a batch has, the median over some batches."""
    rng = random.Random(0)
    texts = [assemble(row.texts, params.text.fields) for row in rows] or [""]
    encoded = tokens.encode(tokens.load_tokenizer(params.model.text.name), texts, params.text.max_tokens)
    batches = [rng.choices(encoded, k=params.train.batch_size) for _ in range(_BATCHES)]
    return statistics.median_high(max(map(len, batch)) for batch in batches)


def _train_seconds(model: EffiMini, params: Params, inputs: tuple[torch.Tensor, ...], dist: Distributed) -> float:
    if params.train.freeze_encoders:  # their features are computed once; the head costs next to nothing
        return 0.0
    model.train()
    optimizer = torch.optim.AdamW(
        parameter_groups(model, params.train), weight_decay=params.train.weight_decay, fused=True
    )
    label = torch.full((len(inputs[0]),), 4.0, device=dist.device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        pieces = (tensor.chunk(params.train.gradient_accumulation_steps) for tensor in (*inputs, label))
        for *micro, stars in zip(*pieces, strict=True):
            loss = weighted_huber(model(*micro), stars, torch.ones_like(stars), params.train.huber_delta, len(label))
            loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), params.train.max_grad_norm)
        optimizer.step()

    return _seconds(step, dist)


def _score_seconds(model: EffiMini, inputs: tuple[torch.Tensor, ...], dist: Distributed) -> float:
    model.eval()

    def score() -> None:
        with torch.inference_mode():
            model(*inputs)

    return _seconds(score, dist)


def _seconds(function: Callable[[], None], dist: Distributed) -> float:
    """Return the median time of `_STEPS` calls or of `_STEP_SECONDS`, after one call that is not counted."""
    found: list[float] = []
    while len(found) <= _STEPS or sum(found[1:]) < _STEP_SECONDS:
        begin = time.monotonic()
        function()
        if dist.device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.monotonic() - begin)
    return statistics.median(found[1:])
