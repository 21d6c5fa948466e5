"""Compare the stage `fetch` with img2dataset: the same images from an nginx on this machine, resized equally.

    make bench-fetch                  # or: python -m benchmarks.fetch [--urls 20000] [--faulty 2000] [--repeats 5]

Input: the posters in ``$EFFIMINI_CORPUS``, each with several URLs, and nginx on the path. Output: tables and
build/bench-fetch/results.json. Guarantees: each measurement has a separate process; repeats are interleaved; both sides
have the same maximum number of connections and of attempts (four per image); every image is center-cropped to 224 px
and saved as JPEG of quality 90, with its sha256; time and CPU time exclude imports and nginx; nginx counts the
requests; memory is resident minus shared memory of the process tree, sampled. Ours writes the images table and the
store; img2dataset writes tars.
"""

# ruff: noqa: PLC0415 -- each side imports only its own packages, and the peer runs without the project

import argparse
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from benchmarks.ingest import now, since, watched
from benchmarks.tables import median_range, table
from prep.core import writers
from prep.core.tables.sample import SAMPLE

BUILD = Path("build/bench-fetch")
SIZE, QUALITY, CONNECTIONS, TRIES, CORES = 224, 90, 64, 4, 2
RATE = 60  # requests per second that the rate-limited server allows
SERVERS = {
    "fast": "The fast server",
    "faulty": "The faulty server: a random fifth of the responses is 429 or 503",
    "limited": f"The rate-limited server: 429 above {RATE} requests per second",
}
_CONFIGURATION = """
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
  log_format status $status;
  access_log {folder}/access.log status;
  default_type image/jpeg; keepalive_requests 100000;
  {temporary}
  split_clients $request_id $fault {{ 10% 429; 10% 503; * 0; }}
  limit_req_zone $server_port zone=all:1m rate={rate}r/s;
  limit_req_status 429;
  server {{ listen 127.0.0.1:{fast}; root {pictures}; }}
  server {{ listen 127.0.0.1:{limited}; root {pictures}; limit_req zone=all burst={rate} nodelay; }}
  server {{
    listen 127.0.0.1:{faulty}; root {pictures};
    if ($fault = 429) {{ return 429; }}
    if ($fault = 503) {{ return 503; }}
  }}
}}
"""


@contextmanager
def nginx(pictures: Path) -> Iterator[dict[str, str]]:
    """Serve the folder `pictures`; yield the base URLs by name of the server."""
    folder = (BUILD / "nginx").absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    with ExitStack() as stack:
        sockets = {name: stack.enter_context(socket.socket()) for name in SERVERS}
        for bound in sockets.values():
            bound.bind(("127.0.0.1", 0))
        ports = {name: bound.getsockname()[1] for name, bound in sockets.items()}
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = " ".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    text = _CONFIGURATION.format(folder=folder, pictures=pictures, temporary=temporary, rate=RATE, **ports)
    (folder / "nginx.conf").write_text(text)
    with subprocess.Popen(["nginx", "-e", folder / "error.log", "-c", folder / "nginx.conf"]) as server:
        try:
            for _ in range(100):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", ports["fast"])) == 0:
                        break
                time.sleep(0.05)
            yield {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
        finally:
            server.terminate()


def request_count() -> int:
    """Return the number of requests that nginx has logged."""
    with (BUILD / "nginx/access.log").open("rb") as file:
        return sum(1 for _ in file)


def ours(urls: Path, out: Path, *, processes: int) -> dict[str, float]:
    """EffiMini: the stage `fetch`."""
    from dataclasses import replace

    import pyarrow as pa

    from prep.core.params import DaskParams, load_params
    from shards import fetch as stage

    # rows of a sample with URLs that the mirror serves
    base, names = json.loads(urls.read_text())
    empty = {field.name: "" if field.type == pa.string() else 0 for field in SAMPLE}
    rows = [
        empty | {"parent_asin": str(n), "image_urls": [f"https://m.media-amazon.com{name}"]}
        for n, name in enumerate(names)
    ]
    for band in range(20):
        part = pa.Table.from_pylist(rows[band::20], SAMPLE)
        writers.write_table(out / f"sample/C/train-{band:02d}.parquet", part)
    params = load_params(Path("params/paper.yaml"))
    params = replace(
        params,
        images=replace(params.images, resolution=SIZE, fit="crop", quality=QUALITY, request=0, max_bad_fraction=1.0),
        fetch=replace(
            params.fetch, mirror=base, connections=CONNECTIONS, max_attempts=TRIES, max_consecutive_refusals=10**6
        ),
        dask=DaskParams(scheduler="processes" if processes > 1 else "synchronous", workers=CORES),
    )
    begin = now()
    stage.fetch("C", params, out)
    report = json.loads((out / "images/C/report.json").read_text())
    return since(begin) | {"fetched": report["tables"]["images"]["rows_out"]}


def img2dataset(urls: Path, out: Path, *, processes: int) -> dict[str, float]:
    """img2dataset: center_crop, tars, and defaults for everything else."""
    from img2dataset import download

    base, names = json.loads(urls.read_text())
    (out / "urls.txt").write_text("".join(f"{base}{name}\n" for name in names))
    begin = now()
    download(
        url_list=str(out / "urls.txt"),
        output_folder=str(out / "tars"),
        output_format="webdataset",
        image_size=SIZE,
        resize_mode="center_crop",
        encode_quality=QUALITY,
        compute_hash="sha256",
        number_sample_per_shard=1000,
        processes_count=processes,
        thread_count=CONNECTIONS // processes,
        retries=TRIES - 1,
    )
    figures = since(begin)
    counts = [json.loads(path.read_text()) for path in (out / "tars").glob("*_stats.json")]
    return figures | {"fetched": sum(count["successes"] for count in counts)}


SIDES: dict[str, Callable[[Path, Path], dict[str, float]]] = {
    "EffiMini, 1 process": partial(ours, processes=1),
    "EffiMini, 2 processes": partial(ours, processes=2),
    "img2dataset, 1 process": partial(img2dataset, processes=1),
    "img2dataset, 2 processes": partial(img2dataset, processes=2),
}
PEER = "img2dataset, 1 process"


def measured(side: str, base: str, names: list[str], peer: Path) -> dict[str, float]:
    """Run one measurement in a new process."""
    out = BUILD / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    urls = out / "urls.json"
    urls.write_text(json.dumps([base, names]))
    python = sys.executable if side.startswith("EffiMini") else str(peer)
    before = request_count()
    figures, peaks = watched(
        [python, "-m", "benchmarks.fetch", "--side", side, str(urls), str(out)],
        EFFIMINI_STORE=str(out / "store"),
        NO_ALBUMENTATIONS_UPDATE="1",
    )
    found = {**figures, "requests": request_count() - before, "memory": peaks.total, "urls": len(names)}
    shutil.rmtree(out)
    print(side, {name: round(value, 2) for name, value in found.items()}, file=sys.stderr)
    return found


def limit(pictures: list[Path]) -> float:
    """Return how many images per CPU second are decoded, resized, hashed and encoded."""
    from shards.images import pixels

    bodies = [path.read_bytes() for path in pictures]
    begin = now()
    for body in bodies:
        pixels.to_training(body, pixels.Preparation(SIZE, "crop", QUALITY, 10**8))
    return len(bodies) / since(begin)["cpu"]


def report(title: str, found: dict[str, dict[str, list[float]]]) -> None:
    """Print the table of one server."""
    cost = {side: statistics.median(f["cpu"]) / f["urls"][0] * 1000 for side, f in found.items()}
    rows = [
        (
            side,
            median_range([n / s for n, s in zip(f["urls"], f["seconds"], strict=True)]),
            median_range([1000 * c / n for c, n in zip(f["cpu"], f["urls"], strict=True)], ".2f"),
            f"{cost[PEER] / cost[side]:.2f}",
            median_range(f["memory"]),
            f"{100 * statistics.median(f['fetched']) / f['urls'][0]:.2f}",
            f"{statistics.median(f['requests']) / f['urls'][0]:.3f}",
        )
        for side, f in found.items()
    ]
    head = (
        "side", "images/s", "CPU s per 1,000", "images per CPU second relative to img2dataset, 1 process",
        "memory, MB", "fetched, %", "requests per image",
    )  # fmt: skip
    repeats = len(found[PEER]["cpu"])
    table(f"{title}: {found[PEER]['urls'][0]:,} URLs; median of {repeats} (minimum to maximum)", head, rows)


def main() -> None:
    """Run the measurements and print them."""
    parser = argparse.ArgumentParser("python -m benchmarks.fetch", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--peer", type=Path, default=BUILD / "venv/bin/python", help="Python of the environment with img2dataset"
    )
    parser.add_argument("--urls", type=int, default=20_000)
    parser.add_argument(
        "--faulty", type=int, default=2_000, help="number of URLs for the faulty and the rate-limited server"
    )
    parser.add_argument("--servers", nargs="+", choices=list(SERVERS), default=list(SERVERS))
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    if not chosen.peer.exists() or not shutil.which("nginx"):
        sys.exit(f"{chosen.peer} or nginx is missing; run `make bench-fetch`, and install nginx")
    corpus = Path(os.environ.get("EFFIMINI_CORPUS", "../shared/corpus")).resolve() / "movies"
    pictures = sorted((corpus / "images/I").glob("*.jpg"))
    if not pictures:
        sys.exit(f"{corpus} contains no posters; set EFFIMINI_CORPUS to the corpus folder")
    code = "from importlib.metadata import version as v; print('img2dataset', v('img2dataset'))"
    peer = subprocess.run([chosen.peer, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    served = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True).stderr.split()[-1]
    print(
        f"EffiMini {commit.stdout.strip()}, {peer}, {served}; Python {platform.python_version()}, "
        f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}."
    )
    names = [f"/images/I/{pictures[n % len(pictures)].name}?n={n}" for n in range(chosen.urls)]
    results = {}
    with nginx(corpus) as bases:
        for server in chosen.servers:
            count = chosen.urls if server == "fast" else chosen.faulty
            rounds = [
                {side: measured(side, bases[server], names[:count], chosen.peer) for side in SIDES}
                for _ in range(chosen.repeats)
            ]
            found = {side: {name: [r[side][name] for r in rounds] for name in rounds[0][side]} for side in SIDES}
            report(SERVERS[server], found)
            results[server] = found
    rates = [limit(pictures) for _ in range(chosen.repeats)]
    print(
        f"\nOnly decoding, resizing, hashing and encoding, with our code: {median_range(rates)} images per CPU second."
    )
    (BUILD / "results.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        name, urls_file, folder = sys.argv[2:]
        print(json.dumps(SIDES[name](Path(urls_file), Path(folder))))
    else:
        main()
