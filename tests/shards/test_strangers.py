"""Shards that a stranger wrote: whatever they state, a command reads them or ends with one sentence and exit code 2."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from effimini.cli import app
from prep.core import files
from prep.core.errors import UserError, printable
from shards.location import File, ShardLocation
from shards.stream import ShardDataset
from tests.shards import damage
from tests.shards.made import HOW, make_shards

ROOT = Path(__file__).parents[2]
TAR, INDEX_FILE = "train-000.tar", "train-000.arrow"
COMMANDS = ("info", "card", "preview", "diff", "lint")
FULL = {
    "join": {"reviews": "all"},
    "groups": {"max_items_per_key": 9},
    "sample": {
        "require": ["title"], "min_chars": 0, "fraction": 0.2, "bands": 20, "min_per_category": 0, "eval_fraction": 1.0,
        "validation": 0.1, "test": 0.1, "salt": "",
    },
    "images": {"prefer": "large", "request": 0, "resolution": 16, "fit": "crop", "quality": 90},
}  # fmt: skip


@pytest.fixture
def made(tmp_path: Path) -> Path:
    folder = make_shards(tmp_path / "shards", {"train": [4, 3], "test": [2]})
    damage.reseal(folder / "Made", lambda about: about.update(parameters=FULL))
    return folder


def run(command: str, folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run a command on shards, as `main` does."""
    places = [str(folder), str(folder)] if command == "diff" else [str(folder)]
    if command == "preview":
        words = (*words, "--output", str(folder.parent / "preview.html"))
    arguments = [command, *places, "--params", str(ROOT / "params.yaml"), *words]
    done = CliRunner().invoke(app, arguments)
    if isinstance(done.exception, UserError):
        return subprocess.CompletedProcess(arguments, 2, done.stdout, f"effimini: {printable(str(done.exception))}\n")
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


def refused(done: "subprocess.CompletedProcess[str]", command: str) -> str:
    """Check that a command ended with one sentence, or for lint with violations, and return what it said."""
    assert done.returncode == (1 if command == "lint" else 2), (done.stdout, done.stderr)
    if command == "lint":
        return done.stdout
    assert re.fullmatch(r"effimini: [^\n]+\n", done.stderr), done.stderr
    return done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_the_shards_as_made_are_read(command: str, made: Path) -> None:
    done = run(command, made)
    assert (done.returncode, done.stderr if command != "lint" else "") == (0, "")


def set_parameter(section: str, key: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda about: about["parameters"][section].__setitem__(key, value)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


MANIFESTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "a category that is a path": lambda about: about.update(category="../out/priv"),
    "another category": lambda about: about.update(category="Other"),
    "a name with a slash": lambda about: about["shards"][0].update(name="../train-000.tar"),
    "a name with a line end": lambda about: about["shards"][0].update(name="train-000.tar\n"),
    "a long name": lambda about: about["shards"][0].update(name=f"train-{'0' * 5000}.tar"),
    "a name twice": lambda about: about["shards"].append(about["shards"][0]),
    "an unknown split": lambda about: about["shards"][0].update(split="dev"),
    "samples beyond belief": lambda about: about["shards"][0].update(samples=10**18),
    "more samples than fit in the tar": lambda about: about["shards"][0].update(samples=1000),
    "samples beyond 64 bits": lambda about: about["shards"][0].update(samples=10**40),
    "a negative size": lambda about: about["shards"][0].update(bytes=-1),
    "a size beyond any disk": lambda about: about["shards"][0].update(bytes=2**62),
    "no size": lambda about: about["shards"][0].pop("bytes"),
    "a negative band": lambda about: about["shards"][0].update(band=-1),
    "no shards": lambda about: about.update(shards=[]),
    "no parameters": lambda about: about.pop("parameters"),
    "parameters that are a list": lambda about: about.update(parameters=[]),
    "no resolution": lambda about: about["parameters"]["images"].pop("resolution"),
    "a resolution beyond memory": set_parameter("images", "resolution", 10**9),
    "a negative resolution": set_parameter("images", "resolution", -16),
    "a resolution that is text": set_parameter("images", "resolution", "16"),
    "a fraction that is text": set_parameter("sample", "fraction", "all"),
    "a fraction above 1": set_parameter("sample", "fraction", 1e300),
    "parameters in parameters": set_parameter("sample", "salt", nested(5)),
    "a key with an escape": lambda about: about["parameters"].update({"\x1b[2J": {"a": 1}}),
    "no tokens": lambda about: about.pop("tokens"),
    "an unknown text field": lambda about: about["tokens"].update(fields=["price"]),
    "no text fields": lambda about: about["tokens"].update(fields=[]),
    "a maximum of -1 tokens": lambda about: about["tokens"].update(max_tokens=-1),
    "an unknown source": lambda about: about["source"].update(kind="\x1b[31m"),
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_manifest_with_absurd_values_is_refused(kind: str, made: Path) -> None:
    damage.reseal(made / "Made", MANIFESTS[kind])
    location = ShardLocation(made, 10**9, 1)
    with pytest.raises(UserError, match=r"^[^\n]*Made/manifest.json [^\n]*$"):
        location.manifest("Made")
    with pytest.raises(UserError, match="manifest.json"):
        ShardDataset(made, ["Made"], "train")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", ["a category that is a path", "samples beyond belief", "no resolution"])
def test_every_command_refuses_such_a_manifest(kind: str, command: str, made: Path) -> None:
    damage.reseal(made / "Made", MANIFESTS[kind])
    assert "Made/manifest.json" in refused(run(command, made), command)


TEXTS = {
    "not JSON": b"\x00\xff",
    "empty": b"",
    "NaN": b'{"format": NaN}',
    "a number beyond a float": b'{"format": 4, "category": 1e999}',
    "a list": b"[]",
    "deep nesting": b'{"format": 4, "parameters": ' + b"[" * 200_000,
    "deep objects": b'{"a": ' * 100_000,
    "half a surrogate": b'{"format": 4, "category": "\\ud800"}',
    "not UTF-8": b'{"format": 4, "category": "\xff"}',
}


@pytest.mark.parametrize("kind", TEXTS)
def test_what_is_not_a_manifest_is_refused(kind: str, made: Path) -> None:
    (made / "Made/manifest.json").write_bytes(TEXTS[kind])
    with pytest.raises(UserError, match=r"^[^\n]*Made/manifest.json (is not a manifest|has format)[^\n]*$"):
        ShardLocation(made, 10**9, 1).manifest("Made")


def test_a_card_names_the_parameter_that_the_manifest_lacks(made: Path) -> None:
    for section, key in (("join", "reviews"), ("sample", "eval_fraction"), ("images", "quality")):
        damage.reseal(made / "Made", lambda about, s=section, k=key: about["parameters"][s].pop(k))
        assert key in refused(run("card", made), "card")
        damage.reseal(made / "Made", lambda about: about.update(parameters=FULL))


def test_a_category_that_is_no_name_is_refused(made: Path) -> None:
    for name in ("../shards/Made", "Made/", "", ".", "a" * 500, "x\x1b[2J"):
        with pytest.raises(UserError, match="is not the name of a category"):
            ShardLocation(made, 10**9, 1).manifest(name)


# --- indexes ---


def rewritten(change: Callable[[list[dict[str, Any]]], object], **about: str) -> Callable[[Path], object]:
    return lambda path: damage.set_index(path, change, **about)


def with_nulls(path: Path) -> None:
    """Write the index with a null in a column that the file declares as nullable."""
    table = pa.ipc.open_file(path).read_all()
    column = pa.array([None, *table["review_count"].to_pylist()[1:]], pa.int64())
    place = table.schema.get_field_index("review_count")
    write_table(path, table.set_column(place, pa.field("review_count", pa.int64()), column))


def with_type(name: str, kind: pa.DataType) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        table = pa.ipc.open_file(path).read_all()
        write_table(path, table.set_column(table.schema.get_field_index(name), name, table[name].cast(kind)))

    return change


def write_table(path: Path, table: pa.Table, **options: Any) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema, **options) as writer:
        writer.write_table(table)


def offsets_beyond(path: Path) -> None:
    """Change the last offset of the token ids to a place far behind the end."""
    content = bytearray(path.read_bytes())
    table = pa.ipc.open_file(path).read_all()
    offsets = table["tokens"].chunk(0).offsets.to_numpy()
    at = content.index(offsets.tobytes())
    content[at + 4 * (len(offsets) - 1) : at + 4 * len(offsets)] = (2**30).to_bytes(4, "little")
    path.write_bytes(content)


INDEXES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a negative offset": (rewritten(lambda rows: rows[1].update(jpg_offset=-9)), "jpg_offset -9, expected 0 to"),
    "an offset beyond the tar": (
        rewritten(lambda rows: rows[1].update(json_offset=2**50)),
        "json_offset 1125899906842624",
    ),
    "a length beyond the tar": (rewritten(lambda rows: rows[1].update(jpg_length=2**30)), "jpg_length 1073741824"),
    "a negative length": (rewritten(lambda rows: rows[1].update(jpg_length=-1)), "jpg_length -1"),
    "a negative token id": (rewritten(lambda rows: rows[1].update(tokens=[5, -1])), "token id -1"),
    "too many tokens": (
        rewritten(lambda rows: rows[1].update(tokens=[5] * 99)),
        "number of tokens 99, expected 1 to 32",
    ),
    "no tokens": (rewritten(lambda rows: rows[1].update(tokens=[])), "number of tokens 0"),
    "a label that is not a number": (
        rewritten(lambda rows: rows[1].update(average_rating=float("nan"))),
        "average_rating nan, expected 1 to 5",
    ),
    "a label of 9 stars": (rewritten(lambda rows: rows[1].update(average_rating=9.0)), "average_rating 9.0"),
    "a negative count": (rewritten(lambda rows: rows[1].update(rating_number=-1)), "rating_number -1"),
    "a key that is not an id": (rewritten(lambda rows: rows[1].update(key="\x1b[2J\n")), "key '.x1b"),
    "a sample too few": (rewritten(list.pop), "it has 3 samples, expected 4"),
    "no padding id": (rewritten(lambda _: None, pad_id=""), "is not an index"),
    "a padding id of -1": (rewritten(lambda _: None, pad_id="-1"), "token id -1"),
    "nulls": (with_nulls, "null values"),
    "another type": (with_type("rating_number", pa.int32()), "types"),
    "token ids of another type": (with_type("tokens", pa.list_(pa.int64())), "types"),
    "a column too few": (
        lambda path: write_table(path, pa.ipc.open_file(path).read_all().drop_columns("key")),
        "is not an index",
    ),
    "offsets beyond the end": (offsets_beyond, "is not an index"),
    "compressed": (
        lambda path: write_table(
            path, pa.ipc.open_file(path).read_all(), options=pa.ipc.IpcWriteOptions(compression="zstd")
        ),
        "compressed",
    ),
    "text": (lambda path: path.write_bytes(b"no index at all"), "is not an index"),
}


@pytest.mark.parametrize("kind", INDEXES)
def test_an_index_with_absurd_values_is_refused(kind: str, made: Path) -> None:
    change, message = INDEXES[kind]
    change(made / "Made" / INDEX_FILE)
    damage.reseal(made / "Made")
    with pytest.raises(UserError, match=rf"^[^\n]*{INDEX_FILE} cannot be read \([^\n]*{message}[^\n]*$"):
        ShardDataset(made, ["Made"], "train").batch(range(4), 4)
    assert INDEX_FILE in refused(run("info", made), "info")


def test_token_ids_beyond_the_vocabulary_are_refused_where_it_is_known(made: Path) -> None:
    damage.set_index(made / "Made" / INDEX_FILE, lambda rows: rows[1].update(tokens=[5, 10**6]))
    damage.reseal(made / "Made")
    ShardDataset(made, ["Made"], "train").batch(range(4), 4)
    with pytest.raises(UserError, match=f"{INDEX_FILE} cannot be .* the token id 1000000, expected 0 to 198"):
        ShardDataset(made, ["Made"], "train", HOW).batch(range(4), 4)


def test_no_bytes_of_an_index_abort_the_process(made: Path, tmp_path: Path) -> None:
    """Any bytes give an index or a `ValueError`; a process of its own shows whether it lives."""
    script = tmp_path / "fuzz.py"
    script.write_text(
        "import random, sys\n"
        "from pathlib import Path\n"
        "import msgspec, pyarrow as pa\n"
        "from shards.index import read_index\n"
        "from shards.manifest import Shard\n"
        "from shards.reader import Index\n"
        "good, draw = Path(sys.argv[1]).read_bytes(), random.Random(int(sys.argv[3]))\n"
        "shard = msgspec.json.decode(sys.argv[2], type=Shard)\n"
        "for _ in range(3000):\n"
        "    bad = bytearray(good)\n"
        "    for _ in range(draw.choice([1, 1, 2, 8])):\n"
        "        near = draw.randrange(1200)\n"
        "        at = draw.choice([draw.randrange(len(bad)), near, len(bad) - 1 - near])\n"
        "        bad[at] = draw.choice([0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)])\n"
        "    if draw.random() < 0.1:\n"
        "        del bad[draw.randrange(len(bad)):]\n"
        "    try:\n"
        "        Index(read_index(pa.py_buffer(bytes(bad)), shard, 32))\n"
        "    except ValueError:\n"
        "        pass\n"
    )
    about = files.read_json(made / "Made/manifest.json")
    entry = next(shard for shard in about["shards"] if shard["name"] == TAR)
    done = subprocess.run(
        [sys.executable, script, made / "Made" / INDEX_FILE, json.dumps(entry), "1"],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=300,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


# --- files that are not there, or elsewhere ---


@pytest.mark.parametrize("name", [TAR, INDEX_FILE, "manifest.json"])
def test_a_link_out_of_the_folder_is_refused(name: str, made: Path, tmp_path: Path) -> None:
    shutil.move(made / "Made" / name, tmp_path / "elsewhere")
    (made / "Made" / name).symlink_to(tmp_path / "elsewhere")
    for command in ("preview", "lint"):
        assert f"{name} is a link out of the folder" in refused(run(command, made), command)


def test_links_into_the_cache_of_dvc_and_within_the_folder_are_read(made: Path, tmp_path: Path) -> None:
    cache = tmp_path / ".dvc/cache/files/md5/ab"
    cache.mkdir(parents=True)
    expected = ShardDataset(made, ["Made"], "train").keys
    for name, target in ((TAR, cache / ("0" * 30)), (INDEX_FILE, made / "Made/other")):
        shutil.move(made / "Made" / name, target)
        (made / "Made" / name).symlink_to(target)
    (tmp_path / "here").symlink_to(made)
    dataset = ShardDataset(tmp_path / "here", ["Made"], "train")
    assert (dataset.keys, len(dataset.image(0)) > 0) == (expected, True)


@pytest.mark.parametrize("name", [TAR, "manifest.json"])
def test_a_file_that_never_ends_or_never_begins_is_refused(name: str, made: Path) -> None:
    path = made / "Made" / name
    path.unlink()
    os.mkfifo(path)
    assert f"{name} is not a regular file" in refused(run("preview", made), "preview")
    path.unlink()
    path.symlink_to(path)
    assert name in refused(run("preview", made), "preview")


@pytest.mark.parametrize("name", [TAR, INDEX_FILE])
@pytest.mark.parametrize("cut", [False, True])
def test_a_local_file_that_differs_from_the_manifest_is_refused_when_it_is_first_read(
    name: str, cut: bool, made: Path
) -> None:
    path = made / "Made" / name
    damage.write(path, path.read_bytes()[:-512]) if cut else damage.flip(path, path.stat().st_size // 2)
    what = "expected" if cut else "its sha256 differs from the manifest"
    with pytest.raises(UserError, match=rf"^[^\n]*{name} cannot be read \([^\n]*{what}[^\n]*$"):
        ShardDataset(made, ["Made"], "train").batch(range(4), 4)
    assert name in refused(run("preview", made), "preview")


def test_a_local_file_is_verified_once_and_again_when_it_was_replaced(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified = []
    real = hashlib.sha256
    monkeypatch.setattr("shards.location.hashlib.sha256", lambda content: verified.append(1) or real(content))
    location = ShardLocation(made, 10**9, 1)
    (entry,) = [shard for shard in location.manifest("Made").shards if shard.name == TAR]
    file = File(f"Made/{TAR}", entry.bytes, entry.sha256)
    for _ in range(3):
        assert bytes(location.content(file)) == (made / "Made" / TAR).read_bytes()
    assert len(verified) == 1
    damage.flip(made / "Made" / TAR, 700)
    with pytest.raises(UserError, match="its sha256 differs from the manifest"):
        location.content(file)


# --- what is printed ---


def test_no_control_character_reaches_the_terminal(made: Path) -> None:
    evil = "\x1b[2J\x9b31m\u202eevil\r\x07"

    def change(about: dict[str, Any]) -> None:
        about["source"]["revision"] = evil
        about["parameters"]["sample"]["salt"] = evil

    damage.reseal(made / "Made", change)
    other = shutil.copytree(made, made.parent / "other")
    damage.reseal(other / "Made", set_parameter("sample", "salt", evil + "2"))
    damage.set_index(other / "Made" / INDEX_FILE, tokenizer=evil, fields=evil)
    damage.set_facts(other / "Made" / TAR, 0, store=evil, category=evil)
    damage.reseal(other / "Made")
    done = [run(command, folder) for command in COMMANDS for folder in (made, other)]
    done.append(run("info", made, evil))
    words = [sys.executable, "-m", "effimini.cli", "diff", made, other]
    done.append(subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT))
    for each in done:
        shown = each.stdout + each.stderr
        assert not set(shown) & {"\x1b", "\x9b", "\u202e", "\r", "\x07"}, shown
    assert "\\x1b[2J" in "".join(each.stdout for each in done)
