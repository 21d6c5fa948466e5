"""`effimini lint`: shards as written have no violations, and each kind of damage is reported for its file."""

import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil
import pytest
from typer.testing import CliRunner, Result

from effimini.cli import app
from prep.core import files, writers
from prep.core.errors import UserError
from prep.core.tables.tabular import TABULAR_NAMES
from shards.images.pixels import BLANK
from shards.lint import LintRule, lint
from shards.location import ShardLocation
from tests.shards import damage
from tests.shards.host import Host
from tests.shards.made import MINILM, jpeg

ROOT = Path(__file__).parents[2]
HERE = "Demo_Toys"
TAR, INDEX = "train-00-000.tar", "train-00-000.arrow"
Damage = Callable[[Path], object]  # called with the folder of the category


@pytest.fixture(scope="module")
def clean(made_data: Callable[..., Path]) -> Path:
    return made_data("shard", **{"shards.samples_per_shard": 6, "sample.fraction": 0.5}) / "shards"


@pytest.fixture
def shards(clean: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(clean, tmp_path / "shards"))


def run(*words: object) -> Result:
    return CliRunner().invoke(app, ["lint", "--params", str(ROOT / "params.yaml"), *map(str, words)])


def test_shards_as_written_have_no_violations(clean: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    done = run(clean)
    assert (done.exit_code, done.stdout) == (0, "")
    manifests = [files.read_json(path)["shards"] for path in sorted(clean.glob("*/manifest.json"))]
    samples = sum(shard["samples"] for manifest in manifests for shard in manifest)
    assert len(manifests) == 2
    assert caplog.messages == [f"0 violations in {sum(map(len, manifests))} shards, {samples} samples read"]


def repacked(change: Callable[[Path], object], tar: str = TAR) -> Damage:
    """Damage a tar, then rebuild its index and update the manifest to match."""

    def apply(folder: Path) -> None:
        change(folder / tar)
        damage.index(folder / tar)
        damage.reseal(folder)

    return apply


def resealed(change: Damage) -> Damage:
    def apply(folder: Path) -> None:
        change(folder)
        damage.reseal(folder)

    return apply


def shorten_tabular(members: list[tuple[str, bytes]]) -> None:
    """Remove tabular values of a sample; its JSON keeps its length, so the index stays valid."""
    name, content = members[3]
    members[3] = name, msgspec.json.encode(json.loads(content) | {"tabular": [1.0]}).ljust(len(content))


def copied(to: str, name: str = TAR) -> Damage:
    """Replace the first sample of `name` by a sample of `to`."""

    def apply(folder: Path) -> None:
        taken = []
        damage.repack(folder / name, lambda members: taken.extend(members[:2]))
        damage.repack(folder / to, lambda members: members.__setitem__(slice(0, 2), taken))
        damage.index(folder / to)
        damage.reseal(folder)

    return apply


def flipped(number: int, place: int) -> Damage:
    """Flip a byte of the image or JSON of a member, or of its header (a negative position)."""
    return lambda folder: damage.flip(folder / TAR, damage.member(folder / TAR, number).offset_data + place)


def symlink(members: list[damage.Member]) -> None:
    info = tarfile.TarInfo(str(members[2][0]))
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    members[2] = info, b""


def renamed(tar: Path, key: str) -> None:
    damage.repack(tar, lambda m: m.__setitem__(slice(2, 4), [(f"{key}.jpg", m[2][1]), (f"{key}.json", m[3][1])]))


def pictured(content: bytes) -> Callable[[Path], None]:
    """Replace the image of the first sample that has one."""
    return lambda tar: damage.repack(tar, lambda members: members.__setitem__(0, (members[0][0], content)))


def cut(name: str, keep: Callable[[bytes], bytes]) -> Damage:
    return lambda folder: damage.write(folder / name, keep((folder / name).read_bytes()))


def manifest(change: Callable[[dict], object]) -> Damage:
    return lambda folder: damage.reseal(folder, change)


# Each kind of damage to a folder, and the files that must be reported, each with a part of the message.
DAMAGE: dict[str, tuple[Damage, dict[str, str]]] = {
    "a flipped byte of an image": (flipped(2, 300), {TAR: "sha256 that differs"}),
    "a flipped byte of JSON": (flipped(3, 0), {TAR: r"\w+.json cannot be read"}),
    "a flipped byte of a tar header": (flipped(2, -400), {TAR: r"no tar header at byte \d+", INDEX: "its tar has 1"}),
    "a flipped byte of the first header": (flipped(0, -400), {TAR: "is not a complete tar", INDEX: "its tar has 0"}),
    "a flipped byte of an index": (lambda f: damage.flip(f / INDEX, 2000), {INDEX: "sha256 that differs"}),
    "a tar cut in a member": (cut(TAR, lambda c: c[:3000]), {TAR: "3000 bytes, expected", INDEX: "its tar"}),
    "a tar without its end": (
        resealed(cut(TAR, lambda c: c.rstrip(b"\0").ljust(-(-len(c.rstrip(b"\0")) // 512) * 512, b"\0"))),
        {TAR: "does not end with blocks of zeros"},
    ),
    "a tar with bytes after its end": (resealed(cut(TAR, lambda c: c + b"more")), {TAR: "does not end with blocks"}),
    "an empty tar": (cut(TAR, lambda c: b""), {TAR: "is not a complete tar", INDEX: "its tar has 0"}),
    "a missing tar": (lambda f: (f / TAR).unlink(), {TAR: "is missing"}),
    "a missing index": (lambda f: (f / INDEX).unlink(), {INDEX: "is missing"}),
    "an unknown tar": (lambda f: shutil.copy(f / TAR, f / "train-99-000.tar"), {"train-99-000.tar": "not listed"}),
    "an unknown index": (lambda f: shutil.copy(f / INDEX, f / "test-9.arrow"), {"test-9.arrow": "not listed"}),
    "a missing manifest": (lambda f: (f / "manifest.json").unlink(), {"manifest.json": "does not exist"}),
    "an invalid manifest": (cut("manifest.json", lambda c: c[:-9]), {"manifest.json": "is not a manifest"}),
    "a manifest with a path outside the folder": (
        manifest(lambda m: m["shards"][0].update(name="../../x-0.tar")),
        {"manifest.json": "is not a manifest"},
    ),
    "a manifest of another category": (manifest(lambda m: m.update(category="A")), {"manifest.json": "category 'A'"}),
    "a shard named twice": (
        manifest(lambda m: m["shards"].append(m["shards"][0])),
        {"manifest.json": "names test-000.tar 2 times", "test-000.tar": "is also in test-000.tar"},
    ),
    "a shard of another split than its name": (
        manifest(lambda m: m["shards"][0].update(split="train", band=1)),
        {"manifest.json": "test-000.tar in split train, band 1"},
    ),
    "a wrong count": (
        manifest(lambda m: m["shards"][0].update(samples=1)),
        {"test-000.tar": r"has \d samples, expected 1"},
    ),
    "an index of other tokens": (
        resealed(lambda f: damage.index(f / TAR, max_tokens=8)),
        {INDEX: "is stale: made with max_tokens 8, expected 32"},
    ),
    "an index of another tokenizer": (
        resealed(lambda f: damage.set_index(f / INDEX, tokenizer="other")),
        {INDEX: "is stale: made with tokenizer other, expected [0-9a-f]{64}"},
    ),
    "an index from before the tar": (
        resealed(lambda f: damage.set_facts(f / TAR, 0, rating_number=77777)),
        {INDEX: r"json_length \d+ for \w+, its tar has \d+"},
    ),
    "an index with another fact": (
        resealed(lambda f: damage.set_index(f / INDEX, lambda rows: rows[0].update(rating_number=77777))),
        {INDEX: r"rating_number 77777 for \w+, its tar has \d+"},
    ),
    "an index with samples too few": (
        resealed(lambda f: damage.set_index(f / INDEX, list.pop)),
        {INDEX: r"has \d samples, its tar has \d"},
    ),
    "an index in another order": (
        resealed(lambda f: damage.set_index(f / INDEX, list.reverse)),
        {INDEX: r"has key '\w+' for \w+"},
    ),
    "an index without token ids": (
        resealed(lambda f: damage.set_index(f / INDEX, lambda rows: rows[1].update(tokens=[]))),
        {INDEX: "1 samples with no token ids"},
    ),
    "an invalid index": (cut(INDEX, lambda c: c[:-50]), {INDEX: "is not an index"}),
    "two images exchanged": (resealed(lambda f: damage.swap(f / TAR, 0, 4)), {INDEX: r"has j\w+ \d+ for"}),
    "two JSONs exchanged": (
        resealed(lambda f: damage.swap(f / TAR, 1, 3)),
        {TAR: r"json has parent_asin", INDEX: ""},
    ),
    "a sample twice in a tar": (
        repacked(lambda tar: damage.repack(tar, lambda members: members.extend(members[:2]))),
        {TAR: rf"\w+ is also in {TAR}"},
    ),
    "a sample twice in a split": (copied("train-01-000.tar"), {"train-01-000.tar": rf"\w+ is also in {TAR}"}),
    "a sample in two splits": (
        copied("validation-000.tar"),
        {"validation-000.tar": rf"\w+ is also in {TAR} of split train"},
    ),
    "a null": (repacked(lambda tar: damage.set_facts(tar, 1, store=None)), {TAR: "has store None, expected type str"}),
    "an int for a float": (
        repacked(lambda tar: damage.set_facts(tar, 1, average_rating=4)),
        {TAR: "average_rating 4, expected type float"},
    ),
    "an unknown fact": (
        repacked(lambda tar: damage.set_facts(tar, 1, price=4)),
        {TAR: r"'price'\], expected the keys"},
    ),
    "too few tabular values": (
        resealed(lambda folder: damage.repack(folder / TAR, shorten_tabular)),
        {TAR: r"has tabular \[1.0\], expected a list of \d+ values"},
    ),
    "an int among the tabular values": (
        repacked(lambda tar: damage.set_facts(tar, 1, tabular=[*[None] * (len(TABULAR_NAMES) - 1), 1])),
        {TAR: "has 1 in tabular, expected a number or null"},
    ),
    "a tabular value that no float32 has": (
        repacked(lambda tar: damage.set_facts(tar, 1, tabular=[1e300, *[None] * (len(TABULAR_NAMES) - 1)])),
        {TAR: r"has 1e\+300 in tabular, expected a number or null"},
    ),
    "another tabular value in an index": (
        resealed(lambda f: damage.set_index(f / INDEX, lambda rows: rows[0]["tabular"].__setitem__(0, 77.0))),
        {INDEX: r"has tabular \[77.0, .* for \w+, its tar has"},
    ),
    "a fact of another category": (
        repacked(lambda tar: damage.set_facts(tar, 1, category="Demo_Kitchen")),
        {TAR: "has category 'Demo_Kitchen'"},
    ),
    "an image of another size": (repacked(pictured(jpeg(1))), {TAR: "has 16x16 px, expected 32x32"}),
    "no image where one should be": (repacked(pictured(BLANK)), {TAR: "has 1x1 px, expected 32x32"}),
    "an image where none should be": (
        repacked(lambda tar: damage.set_facts(tar, 0, has_image=False)),
        {TAR: "has 32x32 px, expected 1x1"},
    ),
    "an image that is cut": (repacked(pictured(jpeg(1)[:200])), {TAR: ""}),
    "an invalid image": (repacked(pictured(b"<html>")), {TAR: "cannot be decoded"}),
    "a name that is a path": (
        resealed(lambda f: renamed(f / TAR, "../x")),
        {TAR: r"has members \['../x.jpg', '../x.json'\]", INDEX: ""},
    ),
    "a sample without its image": (
        resealed(lambda f: damage.repack(f / TAR, lambda members: members.pop(2))),
        {TAR: r"has members \['\w+.json'\]", INDEX: ""},
    ),
    "a link": (
        resealed(lambda f: damage.repack(f / TAR, symlink)),
        {TAR: r"member '\w+.jpg' that is not a regular file", INDEX: ""},
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_reported_only_for_the_damaged_files(kind: str, shards: Path) -> None:
    apply, expected = DAMAGE[kind]
    apply(shards / HERE)
    done = run(shards)
    assert done.exit_code == 1, done.output
    lines = done.stdout.splitlines()
    assert {line.partition(": ")[0] for line in lines} == {f"{HERE}/{name}" for name in expected}, lines
    for name, what in expected.items():
        assert any(re.search(rf"^{HERE}/{re.escape(name)}: .*{what}", line) for line in lines), lines


def test_all_files_are_checked_and_violations_are_in_the_order_of_the_manifests(
    shards: Path,
) -> None:
    for category in ("Demo_Kitchen", HERE):
        (shards / category / "test-000.tar").unlink()
        damage.write(shards / category / INDEX, b"no index")
        damage.flip(shards / category / "validation-000.tar", 300)
    (shards / HERE / "unknown.tar").touch()
    (shards / "Empty").mkdir()
    done = run(shards, "--json")
    found = json.loads(done.stdout)
    assert (done.exit_code, run(shards, "--json").stdout) == (1, done.stdout)
    of_one = [
        ("test-000.tar", LintRule.FILES),
        (INDEX, LintRule.BYTES),
        (INDEX, LintRule.INDEX),
        ("validation-000.tar", LintRule.BYTES),
    ]
    reported = [
        (fault["where"], fault["rule"])
        for fault in found["violations"]
        if fault["rule"] not in {LintRule.TAR, LintRule.COUNT}
    ]
    assert [each for each in reported if each[1] != LintRule.MEMBERS] == [
        *((f"Demo_Kitchen/{name}", rule) for name, rule in of_one),
        (f"{HERE}/unknown.tar", LintRule.FILES),
        *((f"{HERE}/{name}", rule) for name, rule in of_one),
        ("Empty/manifest.json", LintRule.MANIFEST),
    ]
    assert found["shards"] == len([*shards.glob("*/*.arrow")])


def test_any_changed_bytes_are_reported_and_nothing_is_raised(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    draw = random.Random(4)
    manifest_path = shards / HERE / "manifest.json"
    manifest = files.read_json(manifest_path)
    manifest["shards"] = [shard for shard in manifest["shards"] if shard["name"] == TAR]
    writers.write_json(manifest_path, manifest)
    for _ in range(60):
        path = shards / HERE / draw.choice([TAR, INDEX])
        good = path.read_bytes()
        bad = bytearray(good)
        for _ in range(draw.choice([1, 1, 20])):
            bad[draw.randrange(len(bad))] ^= draw.randrange(1, 256)
        damage.write(path, bytes(bad))
        (found,) = [each for each in lint(ShardLocation(shards, 0, 1), [HERE]) if each.read]
        assert (f"{HERE}/{path.name}", LintRule.BYTES) in [(fault.where, fault.rule) for fault in found.violations]
        damage.write(path, good)


def test_the_size_of_an_image_is_checked_before_decoding(shards: Path) -> None:
    def enlarge(tar: Path) -> None:
        frame = jpeg(1).index(b"\xff\xc0") + 5
        pictured(jpeg(1)[:frame] + b"\xff\xdc\xff\xdc" + jpeg(1)[frame + 4 :])(tar)  # 12 GB of pixels

    repacked(enlarge)(shards / HERE)
    assert "has 65500x65500 px, expected 32x32" in run(shards).stdout


def test_remote_shards_are_checked(shards: Path) -> None:
    with Host() as host:
        host.files = {f"/{path.relative_to(shards)}": path.read_bytes() for path in shards.rglob("*.*")}
        assert run(host.url, "Demo_Kitchen", HERE).stdout == ""
        del host.files[f"/{HERE}/{TAR}"]
        shutil.rmtree(files.store() / "cache")
        lines = run(host.url, HERE).stdout.splitlines()
    assert [line.partition(" does not")[0] for line in lines] == [f"{HERE}/{TAR}: {host.url}/{HERE}/{TAR}"]


def children(process: psutil.Process) -> list[psutil.Process]:
    return [child for child in process.children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]


def test_no_process_outlives_a_killed_lint(clean: Path, tmp_path: Path) -> None:
    many = tmp_path / "shards"
    for number in range(30):
        shutil.copytree(clean / HERE, many / f"C{number}")
        damage.reseal(many / f"C{number}", lambda about, n=number: about.update(category=f"C{n}"))
    with subprocess.Popen(
        [sys.executable, "-m", "effimini.cli", "lint", many], cwd=ROOT, stdout=subprocess.DEVNULL
    ) as run:
        started = psutil.Process(run.pid)
        while not (workers := children(started)):
            assert run.poll() is None
            time.sleep(0.01)
        run.kill()
    assert psutil.wait_procs(workers, timeout=20)[1] == []


def test_a_killed_worker_is_an_error_message(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.lint._check_tar", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(UserError, match=r"Demo_Toys: a process that read the shards was killed; run again"):
        list(lint(ShardLocation(clean, 0, 1), [HERE]))


def test_token_ids_are_compared_with_the_texts(shards: Path) -> None:
    location = ShardLocation(shards, 0, 1)
    assert [fault for found in lint(location, tokenizer=MINILM) for fault in found.violations] == []
    damage.set_index(shards / HERE / INDEX, lambda rows: rows[1]["tokens"].__setitem__(2, 7))
    damage.reseal(shards / HERE)
    assert [fault for found in lint(location) for fault in found.violations] == []
    (fault,) = [fault for found in lint(location, tokenizer=MINILM) for fault in found.violations]
    assert (fault.where, fault.rule) == (f"{HERE}/{INDEX}", LintRule.TOKENS)
    assert re.fullmatch(r"has other token ids than the text of \w+", fault.what)


def test_headers_within_headers_are_a_violation(shards: Path) -> None:
    def nest(tar: Path) -> None:
        header = tarfile.TarInfo("x")
        header.type = tarfile.XHDTYPE
        damage.write(tar, header.tobuf() * 5000 + tar.read_bytes())

    resealed(lambda folder: nest(folder / TAR))(shards / HERE)
    done = run(shards)
    assert done.exit_code == 1, done.exception
    assert f"{HERE}/{TAR}: is not a complete tar" in done.stdout


def test_no_shards_give_an_error_message_and_exit_code_2(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "effimini.cli", "lint", tmp_path / "none"],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{tmp_path}/none has no <category>/manifest.json" in done.stderr
