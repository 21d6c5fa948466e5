"""The stage `fetch` beside img2dataset: the same pictures from one nginx on this machine, at the same resize.

    make bench-fetch                  # or: python -m benchmarks.fetch [--urls 20000] [--faulty 2000] [--repeats 5]

In: the posters of ``$EFFIMINI_CORPUS``, each under several URLs, and nginx on the path. Out: tables and
build/bench-fetch/results.json. Guaranteed: each measurement is made in a process of its own; repeats are interleaved;
the same number of connections is open at most; every picture becomes 224 px by its centre, JPEG of quality 90, with its
sha256; time and computing are of the work, imports left out, nginx's not counted; requests are counted by nginx; memory
is what is of no file (resident less shared), sampled over the tree of processes. Ours has in it the images table beside
the store; img2dataset writes tars. Each side may ask four times for a picture.
"""

# ruff: noqa: PLC0415 -- a side imports what is its own, and the peer runs without the project

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
from benchmarks.tables import spread, table
from prep.core import writers
from prep.core.tables.sample import SAMPLE

BUILD = Path("build/bench-fetch")
SIZE, QUALITY, CONNECTIONS, TRIES, CORES = 224, 90, 64, 4, 2
RATE = 60  # answers a second of the limited server
SERVERS = {
    "fast": "The fast server",
    "faulty": "The server of which every fifth answer is 429 or 503, by chance",
    "limited": f"The server that answers 429 beyond {RATE} requests a second",
}
_CONFIGURATION = """
worker_processes 1; daemon off; pid {here}/nginx.pid; error_log {here}/error.log;
events {{ worker_connections 1024; }}
http {{
  log_format status $status;
  access_log {here}/access.log status;
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
    """Serve `pictures`; give the base URLs of the fast server and of the faulty one."""
    here = (BUILD / "nginx").absolute()
    shutil.rmtree(here, ignore_errors=True)
    here.mkdir(parents=True)
    here.chmod(0o755)
    with ExitStack() as stack:
        sockets = {name: stack.enter_context(socket.socket()) for name in SERVERS}
        for each in sockets.values():
            each.bind(("127.0.0.1", 0))
        ports = {name: each.getsockname()[1] for name, each in sockets.items()}
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = " ".join(f"{kind}_temp_path {here}/{kind};" for kind in kinds)
    text = _CONFIGURATION.format(here=here, pictures=pictures, temporary=temporary, rate=RATE, **ports)
    (here / "nginx.conf").write_text(text)
    with subprocess.Popen(["nginx", "-e", here / "error.log", "-c", here / "nginx.conf"]) as server:
        try:
            for _ in range(100):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", ports["fast"])) == 0:
                        break
                time.sleep(0.05)
            yield {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
        finally:
            server.terminate()


def asked() -> int:
    """Return the number of answers that nginx has given."""
    with (BUILD / "nginx/access.log").open("rb") as file:
        return sum(1 for _ in file)


def ours(urls: Path, out: Path, *, processes: int) -> dict[str, float]:
    """EffiMini: the stage `fetch`."""
    from dataclasses import replace

    import pyarrow as pa

    from prep.core.params import DaskParams, load_params
    from shards import fetch as stage

    # as rows of a sample whose URLs the mirror serves
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
    return since(begin) | {"had": report["tables"]["images"]["rows_out"]}


def img2dataset(urls: Path, out: Path, *, processes: int) -> dict[str, float]:
    """img2dataset: centre_crop, tars, the defaults of everything else."""
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
    spent = since(begin)
    counts = [json.loads(path.read_text()) for path in (out / "tars").glob("*_stats.json")]
    return spent | {"had": sum(count["successes"] for count in counts)}


SIDES: dict[str, Callable[[Path, Path], dict[str, float]]] = {
    "EffiMini, 1 process": partial(ours, processes=1),
    "EffiMini, 2 processes": partial(ours, processes=2),
    "img2dataset, 1 process": partial(img2dataset, processes=1),
    "img2dataset, 2 processes": partial(img2dataset, processes=2),
}
PEER = "img2dataset, 1 process"


def measured(side: str, base: str, names: list[str], peer: Path) -> dict[str, float]:
    """Make one measurement in a fresh process."""
    out = BUILD / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    urls = out / "urls.json"
    urls.write_text(json.dumps([base, names]))
    python = sys.executable if side.startswith("EffiMini") else str(peer)
    before = asked()
    figures, peaks = watched(
        [python, "-m", "benchmarks.fetch", "--side", side, str(urls), str(out)],
        EFFIMINI_STORE=str(out / "store"),
        NO_ALBUMENTATIONS_UPDATE="1",
    )
    found = {**figures, "requests": asked() - before, "memory": peaks.total, "urls": len(names)}
    shutil.rmtree(out)
    print(side, {name: round(value, 2) for name, value in found.items()}, file=sys.stderr)
    return found


def limit(pictures: list[Path]) -> float:
    """Return how many pictures are decoded, fitted, hashed and encoded in a second of computing."""
    from shards.images import pixels

    bodies = [path.read_bytes() for path in pictures]
    begin = now()
    for body in bodies:
        pixels.to_training(body, SIZE, "crop", QUALITY, 10**8)
    return len(bodies) / since(begin)["cpu"]


def report(title: str, found: dict[str, dict[str, list[float]]]) -> None:
    """Print the table of one server."""
    cost = {side: statistics.median(f["cpu"]) / f["urls"][0] * 1000 for side, f in found.items()}
    rows = [
        (
            side,
            spread([n / s for n, s in zip(f["urls"], f["seconds"], strict=True)]),
            spread([1000 * c / n for c, n in zip(f["cpu"], f["urls"], strict=True)], ".2f"),
            f"{cost[PEER] / cost[side]:.2f}",
            spread(f["memory"]),
            f"{100 * statistics.median(f['had']) / f['urls'][0]:.2f}",
            f"{statistics.median(f['requests']) / f['urls'][0]:.3f}",
        )
        for side, f in found.items()
    ]
    head = (
        "side", "images/s", "CPU s per 1,000", "times the images per CPU second of img2dataset, 1 process",
        "memory, MB", "had, %", "requests an image",
    )  # fmt: skip
    repeats = len(found[PEER]["cpu"])
    table(f"{title}: {found[PEER]['urls'][0]:,} URLs; median of {repeats} (least to most)", head, rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser("python -m benchmarks.fetch", description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, default=BUILD / "venv/bin/python", help="its Python")
    parser.add_argument("--urls", type=int, default=20_000)
    parser.add_argument("--faulty", type=int, default=2_000, help="URLs of the servers that refuse")
    parser.add_argument("--servers", nargs="+", choices=list(SERVERS), default=list(SERVERS))
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    if not chosen.peer.exists() or not shutil.which("nginx"):
        sys.exit(f"{chosen.peer} or nginx is missing; run `make bench-fetch`, and install nginx by your system's means")
    corpus = Path(os.environ.get("EFFIMINI_CORPUS", "../shared/corpus")).resolve() / "movies"
    pictures = sorted((corpus / "images/I").glob("*.jpg"))
    if not pictures:
        sys.exit(f"{corpus} holds no posters; name the corpus folder in EFFIMINI_CORPUS")
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
    alone = [limit(pictures) for _ in range(chosen.repeats)]
    print(f"\nOur decode, resize, hash and encode alone: {spread(alone)} images per CPU second.")
    (BUILD / "results.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        name, urls_file, folder = sys.argv[2:]
        print(json.dumps(SIDES[name](Path(urls_file), Path(folder))))
    else:
        main()
