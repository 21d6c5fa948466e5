"""The checks of `benchmarks.device_check`, each a function that yields the rows of the table.

Input: a size, a folder for data, and the moment (of the monotonic clock) at which a check should end. Output: rows.
Guarantees: the sides of a comparison take turns, so that a slow minute hits all alike; a figure is the median of the
turns with the least and the most; what is not measured for lack of time, memory or a package is a row with that reason.
"""

import gc
import hashlib
import importlib
import multiprocessing
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.device_check import SKIPPED, Row, Size
from benchmarks.tables import median_range

GPU = torch.cuda.is_available()
PRECISIONS = ("bf16", "tf32", "fp32") if GPU else ("bf16", "fp32")
WAITING = 0.02  # most of the time that may be spent on waiting for data
TIMES_PLAIN = 3.0  # least speed at small batches, where launches take longer than their kernels
# Relative difference of the first loss, and of the gradient's norm, from those of plain torch in fp32, at most.
LIMITS = {"fp32": (1e-4, 1e-3), "tf32": (1e-2, 5e-2), "bf16": (5e-2, 2e-1)}
STARS = 0.01  # difference of scores at most; they are written with two decimals
COMPILING = 60.0  # seconds that must be left to compile
if not GPU:
    torch.set_num_threads(1)  # the networks are so narrow that other threads would only wait for each other


def nothing() -> None:
    """Do nothing."""


class Side(NamedTuple):
    """One side of a comparison."""

    step: Callable[[], object]
    before: Callable[[], object] = nothing  # each turn, not timed
    after: Callable[[], object] = nothing


def synchronize() -> None:
    """Wait for the GPU."""
    if GPU:
        torch.cuda.synchronize()


def turn(side: Side, batch: int, size: Size) -> float:
    """Return the rate of one turn, samples/s."""
    side.before()
    synchronize()
    start, steps = time.perf_counter(), 0
    while steps < size.steps or time.perf_counter() - start < size.turn:
        side.step()
        steps += 1
    synchronize()
    rate = steps * batch / (time.perf_counter() - start)
    side.after()
    return rate


def in_turns(sides: Mapping[str, Side], batch: int, size: Size, deadline: float) -> dict[str, list[float]]:
    """Return the rates of each side, samples/s; fewer than `size.repeats` of them if the time is over."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(size.repeats):
        if repeat and time.monotonic() > deadline:
            break
        for name, side in sides.items():
            rates[name].append(turn(side, batch, size))
    return rates


def ratios(of: list[float], to: list[float]) -> list[float]:
    """Return the ratio of the rates of two sides in each repeat."""
    return [one / other for one, other in zip(of, to, strict=True)]


def verdict(met: bool) -> str:
    """Return the end of a value that has a target."""
    return ": met" if met else ": missed"


def peak(step: Callable[[], object], base: int) -> float:
    """Return the memory that a few steps of a side need on the GPU, above `base` bytes of other sides, GB."""
    if GPU:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        step()
    synchronize()
    return (torch.cuda.max_memory_allocated() - base) / 1e9 if GPU else 0.0


def allocated() -> int:
    """Return the bytes that are allocated on the GPU, after what is not used any more has been freed."""
    gc.collect()
    if not GPU:
        return 0
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated()


def is_out_of_memory(error: Exception) -> bool:
    """Return whether the GPU is out of memory; the trainer has a message of its own for that."""
    return isinstance(error.__cause__ or error, torch.OutOfMemoryError)


def matrix_products(size: Size, folder: Path, deadline: float) -> Iterator[Row]:
    """The speed of a large matrix product: the most that a training could reach."""
    side = (8192 if GPU else 1024) if size.steps > 1 else 256
    for precision in ("bf16", "tf32", "fp32"):
        if precision not in PRECISIONS:
            yield Row("matrix_products", precision, "", f"{SKIPPED}TF32 is of GPUs")
            continue
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        a = torch.randn(side, side, device="cuda" if GPU else "cpu", dtype=dtype)
        product = Side(lambda a=a: (a @ a, synchronize()))  # or a turn would queue products for many seconds
        product.step()
        rates = in_turns({"": product}, 2 * side**3, size, deadline)[""]
        value = median_range([rate / 1e12 for rate in rates], ".3g")
        yield Row("matrix_products", precision, f"TFLOP/s, {side} x {side}", value)


def precision(size: Size, folder: Path, deadline: float) -> Iterator[Row]:
    """The first loss and gradient of ours in each precision, against those of plain torch in fp32."""
    from benchmarks import device_sides as sides  # noqa: PLC0415

    batch = size.batches[0]
    shards = sides.make_shards(size, folder)
    reference: tuple[float, float] | None = None
    state: dict[str, torch.Tensor] = {}
    for name in sorted(PRECISIONS, key=lambda name: name != "fp32"):
        params = sides.parameters(size, folder, name, batch, dropout=0.0)
        trainer = sides.Interrupted.of(params, shards)
        trainer.network.train()
        given = next(iter(trainer.loader))
        if reference is None:
            state = {key: value.clone() for key, value in trainer.model.state_dict().items()}
            plain = sides.Plain(params, size, folder, trainer.model, dropout=0.0)
            plain.prepare()
            reference = plain.step(sides.as_plain(given, trainer))
        trainer.model.load_state_dict(state)
        sides.set_flags(params, ours=True)
        result = trainer.step(0, 0, given)
        found = float(result.sums[0]), float(result.norm)
        for what, ours, expected, limit in zip(
            ("loss", "norm of the gradient"), found, reference, LIMITS[name], strict=True
        ):
            difference = abs(ours - expected) / abs(expected)
            text = f"{difference:.2g} of {expected:.4g}"
            measured = f"first {what}, relative difference from plain torch in fp32"
            met = difference <= limit  # false for NaN
            yield Row(
                "precision", f"{name}, batch {batch}", measured, text, f"at most {limit:g}{verdict(met)}", not met
            )


def resume(size: Size, folder: Path, deadline: float) -> Iterator[Row]:
    """A training that is stopped twice ends with the weights of one that is not, byte for byte."""
    from benchmarks import device_sides as sides  # noqa: PLC0415
    from effimini import checkpoint  # noqa: PLC0415
    from effimini.model import WEIGHTS_FILE  # noqa: PLC0415
    from effimini.stop import Stopped  # noqa: PLC0415
    from prep.core import files  # noqa: PLC0415

    shards, batch = sides.make_shards(size, folder), size.batches[0]

    def trained(params: Any, stops: tuple[int, ...]) -> tuple[str, list[dict[str, float]]]:
        """Return the sha256 of the last weights, and the metrics."""
        for after in stops:
            with_stop = sides.Interrupted.of(params, shards, after)
            try:
                list(with_stop.run())
            except Stopped:
                continue
            raise RuntimeError(f"the training was not stopped after step {after}")
        trainer = sides.Interrupted.of(params, shards)
        list(trainer.run())
        newest = checkpoint.newest_checkpoint(trainer.state)
        assert newest is not None, trainer.state
        found = files.sha256(newest / "last" / WEIGHTS_FILE), trainer.progress.history
        shutil.rmtree(trainer.state)
        return found

    half = size.few // batch // 2
    stops = (half, 3 * half)
    for name in PRECISIONS:
        params = sides.parameters(size, folder, name, batch, sides.FEW, epochs=2, patience=2)
        whole = trained(params, ())
        equal = trained(params, stops) == whole
        setting = f"{name}, batch {batch}"
        measured = f"weights after stops in steps {' and '.join(map(str, stops))}"
        text = f"{'equal bytes' if equal else 'other bytes'} ({whole[0][:12]})"
        yield Row("resume", setting, measured, text, f"equal bytes{verdict(equal)}", not equal)
        if not equal and time.monotonic() < deadline:  # which of torch's operations would it be?
            torch.use_deterministic_algorithms(True)
            try:
                again = trained(params, ()) == trained(params, stops)
                text = "equal bytes" if again else "other bytes"
            except RuntimeError as error:  # an operation that has no deterministic form
                text = f"{SKIPPED}{' '.join(str(error).split())[:150]}"
            finally:
                torch.use_deterministic_algorithms(False)
            yield Row("resume", setting, f"{measured}, with torch.use_deterministic_algorithms", text)


def training(size: Size, folder: Path, deadline: float) -> Iterator[Row]:
    """Steps per second in each precision and batch size, beside a plain loop and beside one batch in memory."""
    from benchmarks import device_sides as sides  # noqa: PLC0415

    shards = sides.make_shards(size, folder)
    combinations = [(name, batch) for batch in size.batches for name in PRECISIONS]
    for number, (name, batch) in enumerate(combinations):
        setting, now = f"{name}, batch {batch}", time.monotonic()
        if now > deadline:
            yield Row("training", setting, "", f"{SKIPPED}no time is left")
            continue
        end = now + (deadline - now) / (len(combinations) - number)
        try:
            yield from _trained(sides, size, folder, shards, name, batch, end)
        except Exception as error:  # the trainer wraps the error of torch
            if "DataLoader worker" in str(error):  # most often /dev/shm is too small for its batches
                yield Row("training", setting, "", f"{SKIPPED}of the plain loop: {' '.join(str(error).split())[:150]}")
            elif is_out_of_memory(error):
                yield Row("training", setting, "", f"{SKIPPED}the GPU is out of memory")
            else:
                raise


def _trained(
    sides: Any, size: Size, folder: Path, shards: Path, name: str, batch: int, deadline: float
) -> Iterator[Row]:
    """Yield the rows of one precision and one batch size."""
    params = sides.parameters(size, folder, name, batch)
    base = allocated()
    plain = sides.Plain(params, size, folder)
    plain.prepare()
    memory = [peak(plain.stream, base)]
    base = allocated()
    ours = sides.Ours(params, shards)
    memory.append(peak(ours.keep, base))
    rates = in_turns(
        {
            "a plain loop": Side(plain.stream, plain.prepare),
            "ours": Side(ours.stream, ours.drain),
            "ours, one batch in memory": Side(ours.keep, ours.prepare),
        },
        batch, size, deadline,
    )  # fmt: skip
    setting = f"{name}, batch {batch}"
    for side, found in rates.items():
        value = median_range(found, ",.1f")
        if side != "a plain loop":
            value += f"; {statistics.median(ratios(found, rates['a plain loop'])):.2f} times the plain loop"
        yield Row("training", setting, f"{side}, samples/s", value)
    waits = [1 - ratio for ratio in ratios(rates["ours"], rates["ours, one batch in memory"])]
    met = statistics.median(waits) <= WAITING
    yield Row(
        "training",
        setting,
        "ours, waiting for data",
        median_range(waits, ".1%"),
        f"at most {WAITING:.0%}{verdict(met)}",
    )
    value = f"{memory[1]:.2f} (a plain loop: {memory[0]:.2f})" if GPU else f"{SKIPPED}there is no GPU"
    yield Row("training", setting, "ours, peak memory on the GPU, GB", value)


class Reading:
    """Reads batches in another thread, as fast as a number of reader threads can.

    Attributes:
        rates: samples/s of each turn.
    """

    def __init__(self, dataset: Any, batch: int, threads: int) -> None:
        self._dataset, self._batch, self._threads = dataset, batch, threads
        self.rates: list[float] = []

    def start(self) -> None:
        """Start reading."""
        self._ending, self._read, self._began = threading.Event(), 0, time.perf_counter()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        from shards.loader import Loader  # noqa: PLC0415

        loader = Loader(self._dataset, batch_size=self._batch, seed=0, workers=self._threads)
        while not self._ending.is_set():
            for found in loader:
                self._read += len(found.keys)
                if self._ending.is_set():
                    return

    def stop(self) -> None:
        """Stop reading."""
        self.rates.append(self._read / (time.perf_counter() - self._began))
        self._ending.set()
        self._thread.join()


def readers(size: Size, folder: Path, deadline: float) -> Iterator[Row]:
    """What reader threads take from the thread that launches kernels, and how fast they read alone."""
    from benchmarks import device_sides as sides  # noqa: PLC0415

    batch, name = size.batches[0], PRECISIONS[0]
    ours = sides.Ours(sides.parameters(size, folder, name, batch), sides.make_shards(size, folder))
    for _ in range(3):
        ours.keep()
    counts = sorted({1, max(1, size.workers // 2), size.workers})
    beside = {n: Reading(ours.trainer.data, batch, n) for n in counts}
    alone = {n: Reading(ours.trainer.data, batch, n) for n in counts}
    measured = {"no readers": Side(ours.keep, ours.prepare)}
    for n in counts:
        measured[f"{n} readers"] = Side(ours.keep, beside[n].start, beside[n].stop)
        measured[f"{n} readers alone"] = Side(lambda: time.sleep(size.turn), alone[n].start, alone[n].stop)
    rates = in_turns(measured, batch, size, deadline)
    setting, none = f"{name}, batch {batch}", rates["no readers"]
    yield Row("readers", setting, "steps on one batch, no readers, samples/s", median_range(none, ",.1f"))
    for n in counts:
        found = rates[f"{n} readers"]
        share = statistics.median(ratios(found, none))
        value = f"{median_range(found, ',.1f')}; {share:.2f} of the rate without readers"
        yield Row("readers", setting, f"steps on one batch, {n} reader threads at work, samples/s", value)
        value = f"{median_range(beside[n].rates, ',.0f')}; alone {median_range(alone[n].rates, ',.0f')}"
        yield Row("readers", setting, f"read by {n} threads meanwhile, samples/s", value)


def _digest(model: torch.nn.Module) -> str:
    """Return the sha256 of all weights."""
    found = hashlib.sha256()
    for value in model.state_dict().values():
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def partner(pipe: Connection, size: Size, folder: Path) -> None:
    """Train in a process of its own: send the sha256 of the weights after some steps, then the rate of each turn."""
    from benchmarks import device_sides as sides  # noqa: PLC0415

    batch = size.batches[0]
    ours = sides.Ours(sides.parameters(size, folder, PRECISIONS[0], batch), sides.make_shards(size, folder))
    for _ in range(5):
        ours.keep()
    pipe.send(_digest(ours.trainer.model))
    while pipe.recv():
        pipe.send(turn(Side(ours.keep, ours.prepare), batch, size))


def two_processes(size: Size, folder: Path, deadline: float) -> Iterator[Row]:
    """Two trainings at once on one GPU, against one alone."""
    importlib.import_module("benchmarks.device_sides").make_shards(size, folder)  # once, for both
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for _ in range(2):
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=partner, args=(theirs, size, folder), daemon=True))
        processes[-1].start()
        theirs.close()
        pipes.append(ours)
    try:
        digests = [pipe.recv() for pipe in pipes]
        alone, together = [], []
        for repeat in range(size.repeats):
            if repeat and time.monotonic() > deadline:
                break
            pipes[0].send(True)
            alone.append(pipes[0].recv())
            for pipe in pipes:
                pipe.send(True)
            together.append(sum(pipe.recv() for pipe in pipes))
        for pipe in pipes:
            pipe.send(False)
    finally:
        for process in processes:
            process.join(5)
            process.kill()
    setting = f"{PRECISIONS[0]}, batch {size.batches[0]}"
    yield Row("two_processes", setting, "one process, samples/s", median_range(alone, ",.1f"))
    value = f"{median_range(together, ',.1f')}; {statistics.median(ratios(together, alone)):.2f} times one"
    yield Row("two_processes", setting, "two processes at once, samples/s of both", value)
    equal = digests[0] == digests[1]
    text = "equal bytes" if equal else "other bytes"
    yield Row(
        "two_processes", setting, "weights of both after 5 steps", text, f"equal bytes{verdict(equal)}", not equal
    )


def onnx(size: Size, folder: Path, deadline: float) -> Iterator[Row]:
    """An exported model run by ONNX Runtime's CUDA provider, against torch on the GPU."""
    runtime = importlib.import_module("onnxruntime")
    for name in ("onnx", "onnxscript"):
        importlib.import_module(name)
    provider = "CUDAExecutionProvider"
    if provider not in (available := runtime.get_available_providers()):
        yield Row("onnx", "", "", f"{SKIPPED}this onnxruntime has only {', '.join(available)}")
        return
    from benchmarks import device_sides as sides  # noqa: PLC0415
    from effimini.distributed import set_tf32  # noqa: PLC0415
    from effimini.export import INPUTS, export  # noqa: PLC0415
    from effimini.model import EffiMini, build  # noqa: PLC0415
    from effimini.precheck import GRAPH  # noqa: PLC0415
    from shards.loader import Loader  # noqa: PLC0415
    from shards.stream import ShardDataset  # noqa: PLC0415

    build(sides.parameters(size, folder, "fp32", size.batches[0])).save_pretrained(folder / "model")
    export(folder / "model", folder / "exported")
    session = runtime.InferenceSession(
        str(folder / "exported" / GRAPH), providers=[(provider, {"use_tf32": "0"}), "CPUExecutionProvider"]
    )
    if session.get_providers()[0] != provider:
        yield Row("onnx", "", "", f"{SKIPPED}onnxruntime cannot load its CUDA provider")
        return
    set_tf32("none")
    network = EffiMini.from_pretrained(folder / "model").to(sides.DEVICE)
    data = ShardDataset(sides.make_shards(size, folder), (sides.MANY,), "train")
    for batch in size.batches[:2]:
        given = next(iter(Loader(data, batch_size=batch, seed=None)))[:4]
        arrays = {name: tensor.numpy() for name, tensor in zip(INPUTS, given, strict=True)}

        def in_torch(given: Any = given) -> Any:
            with torch.inference_mode():
                return network(*(tensor.to(sides.DEVICE) for tensor in given)).cpu().numpy()

        def in_onnx(arrays: Any = arrays) -> Any:
            return session.run(None, arrays)[0]

        difference = float(abs(in_torch() - in_onnx()).max())
        met, setting = difference <= STARS, f"fp32, batch {batch}"
        text = f"at most {STARS:g}{verdict(met)}"
        yield Row("onnx", setting, "largest difference of a score, stars", f"{difference:.1g}", text, not met)
        rates = in_turns({"torch": Side(in_torch), "onnxruntime": Side(in_onnx)}, batch, size, deadline)
        for name, found in rates.items():
            yield Row("onnx", setting, f"{name} on the GPU, samples/s", median_range(found, ",.1f"))


def _graphed(sides: Any, params: Any, ours: Any, *, compiled: bool) -> Callable[[], object]:
    """Return the step of ours as one CUDA graph: forward, backward, clipping and optimizer, replayed as a whole.

    Memory of inputs and gradients stays in place, as https://docs.pytorch.org/docs/stable/notes/cuda.html describes.
    """
    from effimini.inference import to_device  # noqa: PLC0415
    from effimini.loss import weighted_huber  # noqa: PLC0415
    from effimini.model import build  # noqa: PLC0415
    from effimini.train import parameter_groups, prepare  # noqa: PLC0415

    recipe, batch = params.train, ours.kept
    model = prepare(build(params).to(sides.DEVICE), params, ours.trainer.dist).train()
    if compiled:
        model.compile(dynamic=False)
    groups = parameter_groups(model, recipe)
    optimizer = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay, fused=True, capturable=True)
    given = (*batch[:4], batch.tabular, batch.label, sides.weights_of(batch, ours.trainer))
    kept = (*to_device(batch, sides.DEVICE), *(tensor.to(sides.DEVICE) for tensor in given[-2:]))

    def once() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        *inputs, label, weight = kept
        loss = weighted_huber(model(*inputs), label, weight, recipe.huber_delta, len(label))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
        optimizer.step()
        return loss.detach()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            once()
    torch.cuda.current_stream().wait_stream(stream)
    optimizer.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = once()

    def step() -> None:
        for place, value in zip(kept, given, strict=True):
            place.copy_(value, non_blocking=True)
        graph.replay()
        loss.item()

    return step


def launches(size: Size, folder: Path, deadline: float) -> Iterator[Row]:
    """What torch.compile and CUDA graphs bring at small batches, where the launch of a kernel takes longer than it."""
    from benchmarks import device_sides as sides  # noqa: PLC0415

    batch, name = size.batches[0], PRECISIONS[0]
    shards, setting = sides.make_shards(size, folder), f"{name}, batch {batch}"
    params = sides.parameters(size, folder, name, batch)
    plain, ours = sides.Plain(params, size, folder), sides.Ours(params, shards)
    measured = {"a plain loop": Side(plain.keep, plain.prepare), "ours": Side(ours.keep, ours.prepare)}

    def compiled() -> Callable[[], object]:
        made = sides.Ours(sides.parameters(size, folder, name, batch, compile=True), shards)
        step: Callable[[], object] = made.keep
        return step

    made: dict[str, tuple[float, Callable[[], Callable[[], object]]]] = {
        "the whole step as a CUDA graph": (0.0, lambda: _graphed(sides, params, ours, compiled=False)),
        "train.compile": (COMPILING, compiled),
        "compiled, as a CUDA graph": (COMPILING, lambda: _graphed(sides, params, ours, compiled=True)),
    }
    for side, (seconds, make) in made.items():
        if deadline - time.monotonic() < seconds:
            yield Row("launches", setting, side, f"{SKIPPED}no time is left to compile")
            continue
        start = time.monotonic()
        try:
            step = make()
            for _ in range(3):
                step()
            synchronize()
        except Exception as error:  # noqa: BLE001 -- of any of the compilers; the other sides are still worth measuring
            text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            yield Row("launches", setting, side, f"{SKIPPED}{text}")
            continue
        yield Row("launches", setting, f"{side}, seconds to make", f"{time.monotonic() - start:.1f}")
        measured[side] = Side(step, ours.prepare)
    rates = in_turns(measured, batch, size, deadline)
    for side, found in rates.items():
        value, target = median_range(found, ",.1f"), ""
        if side != "a plain loop":
            times = statistics.median(ratios(found, rates["a plain loop"]))
            value += f"; {times:.2f} times the plain loop"
            target = f"at least {TIMES_PLAIN:g} times the plain loop{verdict(times >= TIMES_PLAIN)}"
        yield Row("launches", setting, f"{side}, one batch in memory, samples/s", value, target)
