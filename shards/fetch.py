"""Stage fetch: download the images of a category's sample at training size, with an outcome for every item.

Input: ``data/sample/<category>/*.parquet``. Output: ``data/images/<category>/``, one part per part of the sample with
its rows in the same order, and ``report.json``. Guarantees: fetched images stay in the image store, so an interrupt
loses only the requests in flight and the next run requests only what is missing; several workers together open no more
connections to a host than one worker would; the tables depend on the content of the store, never on the order of
arrival; the stage fails if the fraction of missing images exceeds the budget. Links die, so the store is part of the
data: this is the only stage that another machine may be unable to reproduce.
"""

import asyncio
import dataclasses
import hashlib
import logging
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import reduce
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec.structs import replace

from prep.core import files, progress, writers
from prep.core.cluster import DaskPool, dask_pool
from prep.core.errors import UserError, check_budget
from prep.core.params import FetchParams, Params, narrow
from prep.core.parts import sample_parts
from prep.core.reports import Funnel, earlier_reports
from prep.core.tables.images import IMAGES, NO_URL, OK, OUTCOMES
from prep.source import locate
from shards.images import pixels, urls
from shards.images.client import Answer, Client
from shards.images.journal import Journal, Record

READS = (
    *("source.kind", "source.location", "source.demo", "source.table", "images.request", "images.resolution"),
    *("images.fit", "images.resample", "images.quality", "images.max_bad_fraction", "fetch", "dask"),
)
TRANSIENT = frozenset({"timeout", "refused", "server_error", "unreachable"})  # retried by the next run
FAILURES = frozenset(OUTCOMES) - {OK, NO_URL}
# An item's next candidate is requested only if the previous one failed permanently. After a transient failure the next
# run retries the same candidate, so that the choice of an item's image does not depend on the host's bad moments.
SETTLED = TRANSIENT | {OK}
ROWS_PER_GROUP = 1_000  # a row group: some 10 MB of images
_NOTE = ".note"  # suffix of the files in which workers say how far they are
IN_FLIGHT = 1_000  # items; those that wait for a slow host do not keep the others from their hosts

log = logging.getLogger(__name__)


class Fetched(msgspec.Struct):
    """What was fetched so far, and what went wrong."""

    items: int = 0  # that are done
    outcomes: Counter[str] = msgspec.field(default_factory=Counter)  # of URLs
    errors: Counter[str] = msgspec.field(default_factory=Counter)  # messages and how often
    refusals: list[str] = msgspec.field(default_factory=list)  # messages about hosts that refused all requests

    def add(self, other: "Fetched") -> "Fetched":
        """Add what another task fetched, and return the sum."""
        self.items += other.items
        self.outcomes.update(other.outcomes)
        self.errors.update(other.errors)
        self.refusals += other.refusals
        return self

    def copy(self) -> "Fetched":
        """Return a copy, also while another thread adds to it."""
        return Fetched(self.items, self.outcomes.copy(), self.errors.copy(), [*self.refusals])

    def look(self) -> tuple[int, str]:
        """Return the number of items, and the outcomes and the most frequent error as text."""
        words = [f"{100 * self.outcomes[OK] / max(self.outcomes.total(), 1):.1f} % of images ok"]
        words += [f"{outcome} {count:,}" for outcome, count in self.outcomes.most_common(5) if outcome != OK]
        words += [f"most frequent error: {error} ({count:,} times)" for error, count in self.errors.most_common(1)]
        return self.items, ", ".join(words)


def fetch(category: str, params: Params, data: Path = Path("data"), retry: Collection[str] = TRANSIENT) -> None:
    """Fetch the missing images of a category, then write its images table.

    Args:
        category: a name of ``source.categories``.
        params: only those of `READS` are used.
        data: the folder of the stages' tables.
        retry: outcomes (of `FAILURES`) to retry, in addition to URLs that were never requested.

    Raises:
        UserError: the sample or the mirror does not exist, the mirror refuses all requests, or more than
            ``images.max_bad_fraction`` of the images, or all, cannot be fetched.
    """
    params = narrow(params, READS)
    parts = sample_parts(data, category)
    base = image_base(category, params)
    if not (urls.is_remote(base) or Path(base).is_dir()):
        raise UserError(f"the image mirror {base} is not a folder; check fetch.mirror and source.location")
    store = store_of(category, params, base)
    worker_folder = store.with_suffix(".spools")
    with Journal(store, _fetch_conditions(params, base)) as journal:
        _merge_worker_journals(journal, worker_folder)  # left by a killed run
        missing = _missing(
            progress.bar(parts, f"fetch {category}, what is missing: parts"), params.images.request, journal, retry
        )
        tasks = min(len(missing), params.fetch.connections)  # at least one connection per task
        items = [item for part in missing for item in part]
        # start workers only if there is work for more than one
        with dask_pool(params.dask if tasks > 1 else dataclasses.replace(params.dask, scheduler="synchronous")) as pool:
            scattered = pool.count > 1
            found = Fetched()
            look = _look_at_notes(worker_folder) if scattered else lambda: found.copy().look()
            try:
                with progress.shown(f"fetch {category}: images", len(items), look):
                    if scattered:
                        for one in _scatter(missing, tasks, params, base, worker_folder, pool):
                            found.add(one)
                    else:
                        _fetch_items(items, params, params.fetch, base, journal, found)
                if scattered:
                    _merge_worker_journals(journal, worker_folder)
            except KeyboardInterrupt:
                done = look()[0]
                log.warning("fetch %s: stopped when the images of %d of %d items were done", category, done, len(items))
                raise
            finally:
                for error, count in found.errors.most_common(5):
                    log.warning("fetch %s: %d x %s", category, count, error)
        _write_images(category, parts, params, journal, found.refusals, data)


def image_base(category: str, params: Params) -> str:
    """Return where the images of a category are fetched from: a folder, an http(s) base URL, or "" for any host."""
    return params.fetch.mirror or locate(params.source, category).images


def fetch_some(items: list[list[str]], params: Params, base: str, store: Path) -> list[Record]:
    """Fetch the images of a few items into an image store of their own, and return a record for each item.

    Args:
        items: the candidate URLs of each item, best first.
        params: as for `fetch`.
        base: what `image_base` returns.
        store: a file that does not exist.

    Raises:
        UserError: every host refuses all requests.
    """
    with Journal(store, _fetch_conditions(params, base)) as journal:
        candidates = [urls.candidates(item, params.images.request) for item in items]
        found = Fetched()
        with progress.shown("images", len(items), lambda: found.copy().look()):
            _fetch_items(candidates, params, params.fetch, base, journal, found)
        records = [_best(item, params.images.request, journal) for item in items]
        if found.refusals and not any(record.outcome == OK for record in records):
            raise UserError(found.refusals[0])
        return records


def _missing(parts: Iterable[Path], side: int, journal: Journal, retry: Collection[str]) -> list[list[list[str]]]:
    """Return the URLs to request, by part and item: those of an item in order, up to the first that is settled.

    Items without missing URLs, items with the same URLs as an earlier one, and parts without any other item are
    omitted.
    """
    requested: set[tuple[str, ...]] = set()
    missing = []
    for part in parts:
        lists = []
        for batch in _batches(part):
            for _, image_urls in batch:
                unknown = _unknown(urls.candidates(image_urls, side), journal, retry)
                if unknown and tuple(unknown) not in requested:
                    requested.add(tuple(unknown))
                    lists.append(unknown)
        missing.append(lists)
    return [lists for lists in missing if lists]


def _unknown(candidates: list[str], journal: Journal, retry: Collection[str] = ()) -> list[str]:
    """Return the candidates to request, in order, up to the first whose outcome is settled."""
    unknown = []
    for url in candidates:
        outcome = journal.outcome(url)
        if outcome is None or outcome in retry:
            unknown.append(url)
        elif outcome in SETTLED:
            break
    return unknown


def _scatter(
    missing: list[list[list[str]]], tasks: int, params: Params, base: str, worker_folder: Path, pool: DaskPool
) -> Iterator[Fetched]:
    """Fetch the parts in `tasks` tasks on the workers, which divide the connections; yield what each one fetched."""
    limits = dataclasses.replace(params.fetch, connections=params.fetch.connections // min(tasks, pool.count))
    calls = []
    for number in range(tasks):
        work = worker_folder / f"{number:04d}.json"
        writers.write_json(work, [item for part in missing[number::tasks] for item in part])
        calls.append((work, params, limits, base, progress.INTERVAL / 10))
    yield from pool.imap(_fetch_file, calls)


def _fetch_file(work: Path, params: Params, limits: FetchParams, base: str, seconds: float) -> Fetched:
    """Fetch the items of a file, and write a note of what is done next to it every `seconds`."""
    found, note = Fetched(), work.with_suffix(_NOTE)
    with Journal(work.with_suffix(".journal"), _fetch_conditions(params, base)) as journal:
        # skip what a worker that died has already fetched
        items = files.read_json(work)
        left = [unknown for item in items if (unknown := _unknown(item, journal))]
        found.items = len(items) - len(left)
        with progress.every(seconds, lambda: writers.write_json(note, found.copy())):
            _fetch_items(left, params, limits, base, journal, found)
    writers.write_json(note, found)
    return found


def _look_at_notes(worker_folder: Path) -> Callable[[], tuple[int, str]]:
    """Return a function that says how far all workers are, according to their notes."""

    def look() -> tuple[int, str]:
        notes = (path.read_bytes() for path in worker_folder.glob(f"*{_NOTE}"))
        decoded = (msgspec.json.decode(note, type=Fetched, dec_hook=lambda kind, value: kind(value)) for note in notes)
        return reduce(Fetched.add, decoded, Fetched()).look()

    return look


def _fetch_items(
    items: list[list[str]], params: Params, limits: FetchParams, base: str, journal: Journal, found: Fetched
) -> None:
    """Fetch items within `limits`, and add what happens to `found`."""
    decoders = ThreadPoolExecutor(params.dask.workers, "decode")
    try:
        with _terminated_like_interrupted():
            asyncio.run(_Fetcher(params, limits, base, journal, decoders, found).run(items))
    except BaseException:
        pixels.DECODING.interrupt()  # an interrupt waits for the images under way, not for those in line
        raise
    finally:
        decoders.shutdown(cancel_futures=True)


def _merge_worker_journals(journal: Journal, worker_folder: Path) -> None:
    """Append the records of the workers to the store."""
    for worker_journal in sorted(worker_folder.glob("*.journal")):
        journal.take(worker_journal)
    shutil.rmtree(worker_folder, ignore_errors=True)


def store_of(category: str, params: Params, base: str) -> Path:
    """Return the path of the journal; its name contains a fingerprint of everything the stored bytes depend on."""
    # An http(s) URL identifies one image, whichever mirror serves it; the files of a directory are specific to it.
    directory = "" if urls.is_remote(base) else base
    images = params.images
    # An older version made all images bicubic, and did not name it.
    resample = () if images.resample == "bicubic" else (images.resample,)
    depends_on = files.fingerprint(pixels.FORMAT, images.resolution, images.fit, images.quality, directory, *resample)
    return files.store() / "images" / depends_on[:16] / f"{category}.journal"


def _fetch_conditions(params: Params, base: str) -> str:
    """Return a fingerprint of the source and the limits: a recorded failure is valid only under these."""
    return files.fingerprint(base, params.fetch.max_bytes, params.fetch.max_pixels)[:16]


class _Fetcher:
    """Fetches URLs, each once, and records the results in the journal."""

    def __init__(
        self,
        params: Params,
        limits: FetchParams,
        base: str,
        journal: Journal,
        decoders: ThreadPoolExecutor,
        found: Fetched,
    ) -> None:
        self._params, self._limits = params, limits
        self._base = base
        self._remote = urls.is_remote(base)
        self._conditions = _fetch_conditions(params, base)
        self._journal = journal
        self._decoders = decoders
        self._client = Client(limits, base if self._remote else "")
        self._flights: dict[str, asyncio.Task[None]] = {}
        self._asked: set[str] = set()
        self._found = found

    async def run(self, items: list[list[str]]) -> None:
        """Request the URLs of each item in order, until one is settled.

        Raises:
            UserError: the mirror refuses all requests, or the proxy cannot be used.
        """
        left, message = iter(items), ""
        try:
            async with self._client, asyncio.TaskGroup() as group:
                for _ in range(min(len(items), IN_FLIGHT)):
                    group.create_task(self._work(left))
        except* UserError as errors:
            message = str(errors.exceptions[0])
        finally:
            self._found.refusals += self._client.refusals
        if message:  # without the error of aiohttp behind it, which Dask could not send
            raise UserError(message)

    async def _work(self, items: Iterator[list[str]]) -> None:
        for item in items:
            for url in item:
                if url not in self._asked:
                    self._asked.add(url)
                    self._flights[url] = asyncio.create_task(self._fetch(url))
                if flight := self._flights.get(url):
                    await flight
                    self._flights.pop(url, None)
                if self._journal.outcome(url) in SETTLED:
                    break
            self._found.items += 1

    async def _fetch(self, url: str) -> None:
        in_pool = asyncio.get_running_loop().run_in_executor
        async with self._client.room:
            if self._remote:
                served = urls.on_mirror(url, self._base)
                answer = await self._client.get(served) if served else Answer("bad_url")
            else:
                path = urls.in_directory(url, self._base)
                limit = self._limits.max_bytes
                answer = await in_pool(self._decoders, _read_file, path, limit) if path else Answer("bad_url")
            if answer.outcome == OK:
                record, error = await in_pool(self._decoders, _record, url, self._conditions, answer, self._params)
            else:
                record = Record(url, self._conditions, answer.outcome, answer.status, answer.attempts)
                error = answer.error or answer.outcome
        self._journal.append(record)
        self._found.outcomes[record.outcome] += 1
        if error:
            self._found.errors[error] += 1


def _read_file(path: Path, max_bytes: int) -> Answer:
    """Read a file of the directory that replaces the host."""
    try:
        if path.stat().st_size > max_bytes:
            return Answer("too_large", attempts=1, error=f"more than {max_bytes} bytes")
        return Answer(OK, attempts=1, body=path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return Answer("gone", attempts=1, error="no such file")
    except OSError as error:
        return Answer("unreachable", attempts=1, error=error.strerror or type(error).__name__)


def _record(url: str, conditions: str, answer: Answer, params: Params) -> tuple[Record, str]:
    """Return the record of an answer with a body, which is decoded, and what is wrong with the image, if anything."""
    record = Record(
        url,
        conditions,
        OK,
        answer.status,
        answer.attempts,
        source_bytes=len(answer.body),
        source_sha256=hashlib.sha256(answer.body).hexdigest(),
    )
    images = params.images
    try:
        how = pixels.Preparation(
            images.resolution, images.fit, images.quality, params.fetch.max_pixels, images.resample
        )
        decoded = pixels.to_training(answer.body, how)
    except pixels.Unusable as problem:
        return replace(record, outcome=problem.outcome), str(problem)
    decoded_record = replace(
        record,
        source_width=decoded.width,
        source_height=decoded.height,
        perceptual_hash=decoded.perceptual_hash,
        image=decoded.image,
    )
    return decoded_record, ""


def _batches(part: Path) -> Iterator[list[tuple[str, list[str]]]]:
    """Yield the parent_asin and the image URLs of the rows of a sample part, `ROWS_PER_GROUP` at a time."""
    for batch in pq.ParquetFile(part).iter_batches(ROWS_PER_GROUP, columns=["parent_asin", "image_urls"]):
        yield list(zip(batch["parent_asin"].to_pylist(), batch["image_urls"].to_pylist(), strict=True))


def _write_images(
    category: str, parts: list[Path], params: Params, journal: Journal, refusals: list[str], data: Path
) -> None:
    """Write the images table from the journal, part by part.

    Raises:
        UserError: too many images failed, or all and hosts refused them; of `refusals` the message is the first.
    """
    outcomes: Counter[str] = Counter()
    with files.atomic_folder(data / "images" / category) as partial:
        for part in progress.bar(parts, f"fetch {category}, tables: parts"):
            outcomes.update(_write_image_part(part, params.images.request, journal, partial / part.name))
        rows = outcomes.total()
        failures = Counter({outcome: n for outcome, n in outcomes.items() if outcome not in {OK, NO_URL}})
        for outcome, count in outcomes.most_common():
            log.info("fetch %s: %s %d (%.1f %%)", category, outcome, count, 100 * count / rows)
        if refusals and not outcomes[OK]:
            raise UserError(refusals[0])
        check_budget(
            failures,
            rows - outcomes[NO_URL],
            params.images.max_bad_fraction,
            f"images of {category}",
            refusals[0]
            if refusals
            else "run `dvc repro` again to retry the transient ones "
            f"({', '.join(sorted(TRANSIENT))}), or raise images.max_bad_fraction",
        )
        funnel = Funnel.of(rows, {outcome: n for outcome, n in outcomes.items() if outcome != OK})
        earlier = earlier_reports(data / "sample" / category)
        report = {"stage": "fetch", "category": category, "before": earlier, "tables": {"images": funnel}}
        writers.write_json(partial / "report.json", report)


def _write_image_part(part: Path, side: int, journal: Journal, target: Path) -> Counter[str]:
    """Write one part of the images table, a row group at a time, and return the count of each outcome."""
    outcomes: Counter[str] = Counter()
    small = [name for name in IMAGES.names if name != "image"]
    # JPEG does not compress further, and too few images are equal for a dictionary.
    with pq.ParquetWriter(
        target, IMAGES, compression="zstd", use_dictionary=["outcome"], write_statistics=small
    ) as writer:
        for batch in _batches(part):
            records = [(parent_asin, _best(image_urls, side, journal)) for parent_asin, image_urls in batch]
            outcomes.update(record.outcome for _, record in records)
            rows = [
                {"parent_asin": parent_asin} | {name: getattr(record, name) for name in IMAGES.names[1:]}
                for parent_asin, record in records
            ]
            writer.write_table(pa.Table.from_pylist(rows, IMAGES))
    return outcomes


def _best(image_urls: list[str], side: int, journal: Journal) -> Record:
    """Return the record of an item's image: that of its first settled candidate, otherwise of its last."""
    record = Record("", "", "bad_url" if image_urls else NO_URL)
    for url in urls.candidates(image_urls, side):
        record = journal.get(url)
        if record.outcome in SETTLED:
            break
    return record


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Make SIGTERM end the stage like SIGINT, so that connections and the journal are closed."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return

    def interrupt(*_: object) -> None:
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # shells start background jobs so
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
