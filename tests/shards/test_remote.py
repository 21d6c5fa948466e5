"""Remote shards: over HTTP from an unreliable server, over S3, through a cache shared by processes."""

import gzip
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
import pytest
from filelock import FileLock

from prep.core import files
from prep.core.errors import UserError
from shards import location
from shards.cache import Cache, Damaged, _cached_sizes
from shards.loader import Loader
from shards.stream import ShardDataset
from tests.s3 import bucket_of, s3
from tests.shards.host import Host
from tests.shards.made import make_shards

__all__ = ["s3"]
SIZES = {"train": [7, 5, 9, 4]}
Fault = Callable[[Any, bytes], None]


def refuse(request: Any, content: bytes) -> None:
    request.answer(503)


def cut(request: Any, content: bytes) -> None:
    request.truncate(content)


def flip(request: Any, content: bytes) -> None:
    request.answer(200, content[:-1] + bytes([content[-1] ^ 1]))


def page(request: Any, content: bytes) -> None:
    request.answer(200, b"<html>welcome</html>")


def hang(request: Any, content: bytes) -> None:
    request.hang()


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return make_shards(tmp_path / "shards", SIZES)


@pytest.fixture
def host(made: Path) -> Iterator[Host]:
    with Host() as server:
        server.files = {f"/{path.relative_to(made)}": path.read_bytes() for path in made.rglob("*") if path.is_file()}
        yield server


def inject(host: Host, path: str, fault: Fault, times: int) -> None:
    """Respond to the first `times` requests for a path with a fault."""

    def answer(request: Any, number: int) -> None:
        fault(request, host.files[path]) if number <= times else request.serve()

    host.faults[path] = answer


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(location, "SILENCE", 1)
    monkeypatch.setattr(location, "PAUSE", 0.01)


def read(where: str | Path, workers: int = 0, **tokenization: Any) -> list[tuple[Any, ...]]:
    batches = Loader(
        ShardDataset(where, ["Made"], "train", **tokenization),
        batch_size=4,
        seed=2,
        length_bucket_batches=2,
        workers=workers,
    )
    return [(batch.keys, batch.tokens.tolist(), batch.images.tolist()) for batch in batches]


def test_an_interrupt_ends_the_command_while_a_host_does_not_respond(host: Host) -> None:
    host.faults["/Made/manifest.json"] = lambda request, _: request.hang(60)
    # interrupts are ignored in a shell's background job, which these tests may be
    script = "import signal; signal.signal(2, signal.default_int_handler); from effimini.cli import main; main()"
    with subprocess.Popen([sys.executable, "-c", script, "lint", host.url, "Made"]) as running:
        while not host.asked:
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        try:
            assert running.wait(20) == 130
        finally:
            running.kill()
    assert host.asked == {"/Made/manifest.json": 1}


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_over_http_equal_those_of_the_folder_and_each_file_is_downloaded_once(
    host: Host, made: Path, workers: int
) -> None:
    assert read(host.url, workers) == read(made)
    again = host.asked.copy()
    assert all(count == 1 for path, count in again.items() if not path.endswith("manifest.json"))
    assert read(host.url, workers) == read(made)
    assert {p for p in host.asked if host.asked[p] != again[p]} == {"/Made/manifest.json"}


@pytest.mark.parametrize(
    ("file", "fault"),
    [
        *product(["train-002.tar", "train-001.arrow"], [refuse, cut, flip, page, hang]),
        *product(["manifest.json"], [refuse, cut, hang]),  # nothing names its sha256
    ],
)
def test_an_interrupted_transfer_is_retried(host: Host, made: Path, fault: Fault, file: str) -> None:
    inject(host, f"/Made/{file}", fault, 2)
    assert read(host.url) == read(made)
    assert host.asked[f"/Made/{file}"] == 3
    assert list((files.store() / "cache").glob("*.partial")) == []


def test_shards_are_downloaded_before_they_are_read(tmp_path: Path) -> None:
    made = make_shards(tmp_path / "many", {"train": [4] * 30})
    with Host() as host:
        host.files = {f"/{path.relative_to(made)}": path.read_bytes() for path in made.rglob("*") if path.is_file()}
        batches = iter(Loader(ShardDataset(host.url, ["Made"], "train"), batch_size=4, seed=2))
        next(batches)  # of four shards at most
        tars = {path for path in host.files if path.endswith(".tar")}
        deadline = time.monotonic() + 10
        while not tars <= set(host.asked) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert tars <= set(host.asked)


def test_a_persistent_failure_is_an_error_message(host: Host) -> None:
    with pytest.raises(UserError, match="Nothing/manifest.json does not exist"):
        ShardDataset(host.url, ["Nothing"], "train")
    with pytest.raises(UserError, match="cannot be opened"):
        ShardDataset("nowhere://bucket/shards", ["Made"], "train")
    inject(host, "/Made/train-002.tar", flip, 100)
    with pytest.raises(
        UserError,
        match=r"train-002.tar cannot be read after 5 attempts \(Damaged: its sha256 differs from the manifest",
    ):
        read(host.url, workers=2)


def test_a_missing_file_is_an_error_message(host: Host) -> None:
    del host.files["/Made/train-001.arrow"]
    with pytest.raises(UserError, match=r"^[^\n]*train-001.arrow does not exist[^\n]*$"):
        read(host.url, workers=1)
    inject(host, "/Made/manifest.json", page, 100)
    with pytest.raises(UserError, match=r"http://127.*/Made/manifest.json is not a manifest"):
        read(host.url)


def test_a_manifest_cannot_name_a_file_outside_its_folder(host: Host) -> None:
    path = "/Made/manifest.json"
    host.files[path] = host.files[path].replace(b"train-002.tar", b"../../secret.tar")
    with pytest.raises(UserError, match="manifest.json is not a manifest"):
        read(host.url)


def test_a_cache_too_small_to_read_from_is_rejected(host: Host) -> None:
    with pytest.raises(UserError, match=r"the 4 shards read at once need .* GB; raise stream.cache_gb"):
        read(host.url, cache_bytes=10_000)


def content(number: int) -> bytes:
    return bytes([number]) * 1000


def fill(folder: Path, limit: int, numbers: list[int], log: Path) -> None:
    """Get files from a cache; each download writes a line, and is slow enough to overlap with others."""
    cache = Cache(folder, limit)
    for number in numbers:

        def download(to: Path, number: int = number) -> None:
            with log.open("a") as lines:
                lines.write(f"{number}\n")
            time.sleep(0.02)
            to.write_bytes(content(number))

        for _ in range(100):
            try:
                found = cache.get(sha(number), 1000, download).read_bytes()
            except FileNotFoundError:
                continue  # another process evicted it before it was opened
            assert found == content(number)
            break
        with FileLock(
            folder / "room.lock"
        ):  # otherwise the sum could include files that never existed at the same time
            assert sum(size for _, size, _ in _cached_sizes(folder)) <= limit


def sha(number: int) -> str:
    import hashlib

    return hashlib.sha256(content(number)).hexdigest()


def test_many_processes_share_a_cache_within_its_limit_and_download_each_file_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    numbers = list(range(12))
    turns = [numbers[turn:] + numbers[:turn] for turn in range(4)]
    context = multiprocessing.get_context("spawn")
    for folder, limit in (("all", 12_000), ("few", 6_000)):
        log.write_text("")
        (tmp_path / folder).mkdir()
        processes = [context.Process(target=fill, args=(tmp_path / folder, limit, turn, log)) for turn in turns]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * 4
        downloads = Counter(log.read_text().split())
        assert set(downloads) == set(map(str, numbers))
        if folder == "all":
            assert set(downloads.values()) == {1}


def test_the_least_recently_used_file_is_evicted_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 3000)
    for number in (1, 2, 3, 1, 4):
        cache.get(sha(number), 1000, lambda to, n=number: to.write_bytes(content(n)))
    assert {path.name for path in tmp_path.iterdir() if len(path.name) == 64} == {sha(1), sha(3), sha(4)}


def test_a_file_with_another_size_or_sha256_is_not_cached(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 3000)
    for wrong, what in ((content(2), "sha256"), (b"short", "received 5 bytes, expected 1000")):
        with pytest.raises(Damaged, match=what):
            cache.get(sha(1), 1000, lambda to, w=wrong: to.write_bytes(w))
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []
    with pytest.raises(UserError, match="has no space"):
        cache.get(sha(1), 4000, lambda to: None)


def test_partial_files_of_killed_downloads_are_removed_and_running_ones_are_not(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from shards.cache import Cache\n"
        "def download(to): to.write_bytes(b'half'); print('begun', flush=True); time.sleep(60)\n"
        f"Cache(Path(sys.argv[1]), 3000).get({sha(1)!r}, 1000, download)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        Cache(tmp_path, 3000)
        assert len(list(tmp_path.glob("*.partial"))) == 1
        process.kill()
    Cache(tmp_path, 3000)
    assert list(tmp_path.glob("*.partial")) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_over_s3_equal_those_of_the_folder(
    s3: str, made: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = f"team-{workers}"
    system = bucket_of(s3, bucket, monkeypatch)
    system.put(str(made / "Made"), f"{bucket}/films/Made", recursive=True)
    assert read(f"s3://{bucket}/films", workers) == read(made)
    assert location.ShardLocation(f"s3://{bucket}/films", 1, 1).categories() == ["Made"]
    with pytest.raises(UserError, match=f"s3://{bucket}/none/Made/manifest.json does not exist"):
        ShardDataset(f"s3://{bucket}/none", ["Made"], "train")


def test_s3_without_credentials_is_one_sentence(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket_of(s3, "closed", monkeypatch)
    # in a process of its own, as libraries keep the credentials that they have found
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    own = {"ENDPOINT_URL": s3, "DEFAULT_REGION": "us-east-1", "EC2_METADATA_DISABLED": "true"}
    done = subprocess.run(
        [sys.executable, "-m", "effimini", "info", "s3://closed/films"],
        cwd=tmp_path,
        env=clean | {"HOME": str(tmp_path)} | {f"AWS_{name}": value for name, value in own.items()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "effimini: s3://closed/films cannot be listed (Unable to locate credentials); check your access, or name its "
        "categories\n"
    )


def test_an_object_of_s3_is_read_up_to_its_size(s3: str, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = bucket_of(s3, "strangers", monkeypatch)
    system.put(str(made / "Made"), "strangers/films/Made", recursive=True)
    system.pipe("strangers/films/Made/train-002.tar", bytes(10_000_000))
    with pytest.raises(UserError, match=r"train-002.tar cannot be read after 5 attempts .*received more than"):
        read("s3://strangers/films")
    kept = [path.stat().st_size for path in (files.store() / "cache").iterdir()]
    assert max(kept) < 100_000
    monkeypatch.setattr(location.manifest, "LIMIT", 1_000_000)
    system.pipe("strangers/films/Made/manifest.json", bytes(10_000_000))
    with pytest.raises(UserError, match="has more than 1,000,000 bytes, the limit of a manifest"):
        read("s3://strangers/films")


def test_a_download_that_completes_while_the_folder_is_listed_counts_once(tmp_path: Path) -> None:
    (tmp_path / sha(1)).write_bytes(content(1))
    for number in (1, 2):
        (tmp_path / f"{sha(number)}.1000.partial").touch()
    (tmp_path / "abc.lock").touch()
    assert [(size, path.name) for _, size, path in _cached_sizes(tmp_path)] == [
        (1000, f"{sha(2)}.1000.partial"),
        (1000, sha(1)),
    ]


# --- servers of strangers ---


def endless(request: Any, _: int) -> None:
    """Send zeros until the client disconnects; count them."""
    request.send_response(200)
    request.end_headers()
    try:
        while True:
            request.wfile.write(bytes(1 << 16))
            request.server.sent += 1 << 16
    except OSError:
        request.close_connection = True


@pytest.fixture
def stranger(host: Host) -> Host:
    host.sent = 0  # bytes of endless responses
    return host


@pytest.mark.parametrize("file", ["train-002.tar", "train-001.arrow"])
def test_a_file_that_never_ends_is_read_up_to_its_size(stranger: Host, file: str) -> None:
    stranger.faults[f"/Made/{file}"] = endless
    with pytest.raises(UserError, match=rf"{file} cannot be read after 5 attempts .*received more than [\d,]+ bytes"):
        read(stranger.url)
    assert stranger.sent < 5 * 20_000_000  # what fits in the buffers of five connections
    kept = [path.stat().st_size for path in (files.store() / "cache").iterdir()]
    assert max(kept) < 100_000


def test_a_manifest_that_never_ends_is_read_up_to_a_limit(stranger: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(location.manifest, "LIMIT", 1_000_000)
    stranger.faults["/Made/manifest.json"] = endless
    with pytest.raises(UserError, match=r"Made/manifest.json has more than 1,000,000 bytes, the limit of a manifest"):
        read(stranger.url)
    assert stranger.sent < 20_000_000
    assert stranger.asked["/Made/manifest.json"] == 1


def test_a_local_manifest_beyond_the_limit_is_not_read(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (made / "Made/manifest.json").open("ab") as file:
        file.truncate(1 << 40)  # a hole, which takes no space
    with pytest.raises(UserError, match=r"Made/manifest.json has more than 100,000,000 bytes"):
        read(made)


def test_the_limit_of_a_manifest_has_room_for_many_shards(made: Path) -> None:
    about = msgspec.json.decode((made / "Made/manifest.json").read_bytes())
    one = about["shards"][0] | {"bytes": 2**40, "index_bytes": 2**40, "samples": 10**6, "band": 999}
    many = [one | {"name": f"train-999-{number:06d}.tar"} for number in range(100_000)]
    size = len(json.dumps(about | {"shards": many}, indent=1))
    assert 2 * size < location.manifest.LIMIT


def test_a_compressed_response_is_not_unpacked(stranger: Host) -> None:
    bomb = gzip.compress(bytes(50_000_000))

    def answer(request: Any, _: int) -> None:
        request.answer(200, bomb, {"Content-Encoding": "gzip"})

    for file, message in (("train-002.tar", "received more than"), ("manifest.json", "is not a manifest")):
        stranger.faults = {f"/Made/{file}": answer}
        with pytest.raises(UserError, match=message):
            read(stranger.url)


@pytest.mark.parametrize("target", ["http://169.254.169.254/", "http://[fe80::1]/", "http://[::ffff:169.254.1.1]/"])
def test_a_redirect_to_the_metadata_service_is_refused(stranger: Host, target: str) -> None:
    stranger.faults["/Made/manifest.json"] = lambda request, _: request.answer(302, b"", {"Location": target})
    with pytest.raises(UserError, match=r"leads to \S+, which is not a public address"):
        read(stranger.url)
    assert stranger.asked["/Made/manifest.json"] == 1


@pytest.mark.parametrize("target", ["127.0.0.1", "10.1.2.3", "192.168.1.1", "[::1]", "localhost", "0.0.0.0", "127.1"])
def test_a_public_url_cannot_lead_to_a_private_address(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # a name that was public when it was looked up first, and then leads to this machine or another one in its network
    answers = iter([[(2, 1, 6, "", ("8.8.8.8", 0))]])
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *a, **k: next(answers, None) or real(target.strip("[]"), *a, **k)
    )
    with pytest.raises(UserError, match=r"leads to \S+, which is not a public address"):
        read(f"http://shards.example:{9}/films")


def test_a_private_url_may_redirect_to_a_private_address(stranger: Host, made: Path) -> None:
    def answer(request: Any, number: int) -> None:
        if number == 1:
            request.answer(
                302, b"", {"Location": f"{stranger.url}/Made/manifest.json".replace("127.0.0.1", "127.0.0.2")}
            )
        else:
            request.serve()

    stranger.faults["/Made/manifest.json"] = answer
    with Host(address="127.0.0.2", port=stranger.server_port) as other:
        other.files = stranger.files
        assert read(stranger.url) == read(made)


def test_a_cached_file_that_was_changed_on_disk_is_downloaded_again(host: Host, made: Path) -> None:
    read(host.url)
    location._cache.cache_clear()  # as in the next process
    tar = files.store() / "cache" / files.sha256(made / "Made/train-002.tar")
    tar.write_bytes(b"x" + tar.read_bytes()[1:])
    assert read(host.url) == read(made)
    assert host.asked["/Made/train-002.tar"] == 2
    assert host.asked["/Made/train-001.tar"] == 1
