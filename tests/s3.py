"""An S3 server on loopback, and its buckets."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run an S3 server in a separate process and yield its address."""
    log = tmp_path_factory.mktemp("s3") / "log"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with log.open("w") as lines, subprocess.Popen(command, stderr=lines) as process:
        while not (found := re.search(r"Running on (\S+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        yield found[1]
        process.terminate()


def bucket_of(s3: str, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a bucket, and return the file system that it is in."""
    import s3fs

    for name, value in {
        "ENDPOINT_URL": s3,
        "ACCESS_KEY_ID": "me",
        "SECRET_ACCESS_KEY": "x",
        "DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    s3fs.S3FileSystem.clear_instance_cache()  # it would keep the credentials of an earlier test
    system = s3fs.S3FileSystem(skip_instance_cache=True)
    system.mkdir(bucket)
    return system
