"""The pipeline's graph is complete: a stage depends on every file and parameter that determines its output.

`docs/parameters.md` lists which stages read which parameter; DVC's hash of each stage must agree with it.
"""

import ast
import dataclasses
import re
import shutil
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
from dvc.dependency import ParamsDependency
from dvc.repo import Repo
from dvc.stage.cache import _get_cache_hash
from dvc.stage.serialize import to_single_stage_lockfile
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.meta import Meta
from ruamel.yaml import YAML

from effimini import evaluate, train
from prep import download, groups, join, sample, weights
from prep.core import pipeline
from prep.core.errors import UserError
from prep.core.params import DECIDES_NO_BYTE, Params, flatten, load_params, narrow
from shards import decontaminate, fetch, shard
from tests.clone import ROOT
from validation import checks

PACKAGES = ("prep", "shards", "effimini", "validation")
STAGES: dict[str, Any] = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text())["stages"]
READS = {
    "download": download.READS,
    "join": join.READS,
    "groups": groups.READS,
    "sample": sample.READS,
    "fetch": fetch.READS,
    "decontaminate": decontaminate.READS,
    "shard": shard.READS,
    "weights": weights.READS,
    "train": train.READS,
    "evaluate": evaluate.READS,
    **{f"validate_{table}": (*checks.READS, *gate.reads) for table, gate in checks.GATES.items()},
}

# Files of the project that a stage imports but that do not affect its output, so that changing one does not make the
# stage stale. The names after a file are the stages for which this holds; without names it holds for all.
NO_BYTE: dict[str, tuple[str, ...]] = {
    # errors, progress and time
    "prep/core/errors.py": (),
    "prep/core/formats.py": (),
    "prep/core/progress.py": (),
    "effimini/clock.py": (),
    "effimini/time_profile.py": (),
    "effimini/trackers.py": (),
    # refuses what is absent
    "effimini/precheck.py": (),
    # atomic writes and the local store; prep/core/writers.py determines the content
    "prep/core/files.py": (),
    "prep/core/locks.py": (),
    # names of columns, with which parameters are compared
    "prep/core/tables/tabular.py": ("join", "groups", "fetch", "decontaminate", "weights"),
    # DVC compares the values of the parameters
    "prep/core/params.py": (),
    # where the work is done; results are in the order of the calls
    "prep/blocks.py": (),
    "prep/core/cluster.py": (),
    "prep/core/memory.py": (),
    "prep/core/open_files.py": (),
    "shards/pool.py": (),
    "shards/prefetch.py": (),
    "effimini/stop.py": (),
    # transfers: the bytes are those that the source announced, or the stage fails
    "prep/hub.py": (),
    "prep/ranges.py": (),
    "prep/core/retry.py": (),
    "prep/source.py": (),
    "shards/cache.py": (),
    "shards/location.py": (),
    "shards/revision.py": (),
    "shards/http_client.py": (),
    "shards/hub.py": (),
    # the models of a project are folders, which it returns as they are
    "effimini/model_folder.py": (),
    "prep/core/repository.py": (),
    # refuses indexes that are wrong, and reads the others as they are
    "shards/index.py": (),
    # requests to hosts, and the journal that keeps fetched images until the tables are written; the images are the same
    "shards/images/client.py": (),
    # also says which URLs are asked for; the others only ask whether an address is public
    "shards/images/urls.py": tuple(name for name in READS if name not in {"sample", "fetch", "decontaminate"}),
    "shards/images/journal.py": (),
    # declares operators that a CPU build of torch lacks; no model runs them
    "effimini/torchvision_shim.py": (),
    # the kinds of raw files, only for types; the pattern of ids, only to refuse others
    "prep/core/tables/raw.py": ("fetch", "shard", "train", "evaluate"),
    # reads raw files, of which the stage asks for the place only
    **dict.fromkeys(("prep/variants.py", "prep/rewritten.py", "prep/core/lists.py"), ("fetch",)),
    # takes downloaded files apart; the others decode only stored images
    "shards/images/containers.py": tuple(name for name in READS if name != "fetch"),
    # added to dvc.yaml if the source is the demo
    "prep/demo.py": ("fetch", "download"),
    # names the stray folders of a table
    "prep/core/pipeline.py": (),
    # lists the files of a sample, which these do not read
    "prep/core/parts.py": ("train", "evaluate"),
    # reads data/weights.json, which only their gate does
    "prep/weights.py": tuple(name for name in READS if name.startswith("validate_") and name != "validate_weights"),
    # validation/tars.py reads shards, which only their gate does
    **dict.fromkeys(
        ("shards/lint.py", "shards/manifest.py", "shards/images/pixels.py", "shards/tokens.py", "prep/core/fields.py"),
        tuple(name for name in READS if name.startswith("validate_") and name != "validate_shards"),
    ),
    # validation/exclusions.py reads titles, which only their gate does; fetch asks for the place of raw files
    **dict.fromkeys(
        ("prep/core/text.py", "prep/core/leaks.py"),
        ("fetch", *(name for name in READS if name.startswith("validate_") and name != "validate_exclusions")),
    ),
    # validation/exclusions.py searches near duplicates, which only their gate does
    **dict.fromkeys(
        (
            *("shards/decontaminate.py", "shards/near_duplicates.py", "shards/nearest.py"),
            *("shards/images/similarity.py", "prep/near_duplicate_titles.py", "prep/core/reports.py"),
        ),
        tuple(name for name in READS if name.startswith("validate_") and name != "validate_exclusions"),
    ),
}


# --- parameters ---


DEMO: dict[str, Any] = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text())
KEYS = dict(flatten(DEMO))


def expanded(names: Iterable[str]) -> set[str]:
    return {key for key in KEYS for name in names if key == name or key.startswith(f"{name}.")}


@cache
def documented() -> dict[str, set[str]]:
    """Return the stages of each parameter according to docs/parameters.md."""
    rows = re.findall(r"^\| `([\w.]+)` \| ([^|]*) \|$", (ROOT / "docs/parameters.md").read_text(), re.MULTILINE)
    return {key: set(re.findall(r"`(\w+)`", stages)) for key, stages in rows}


def changed(value: Any) -> Any:
    """Return another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    return [*value, "another"] if isinstance(value, list) else f"{value}x"


def test_no_parameter_has_a_name_that_dvc_leaves_out_of_its_hash() -> None:
    ignored = {Meta.PARAM_SIZE, Meta.PARAM_NFILES}
    assert ignored == {"size", "nfiles"}
    assert [key for key in KEYS if ignored & set(key.split("."))] == []


def test_every_parameter_is_documented_once_and_no_other() -> None:
    text = (ROOT / "docs/parameters.md").read_text()
    assert re.findall(r"^\| `([\w.]+)` \|", text, re.MULTILINE) == list(KEYS)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_declares_the_parameters_it_reads(stage: str) -> None:
    read = expanded(READS[stage]) - expanded(DECIDES_NO_BYTE)
    declared = expanded(STAGES[stage].get("params", []))
    assert declared == read
    assert read == {key for key, stages in documented().items() if stage in stages}


def test_an_undeclared_parameter_cannot_be_read() -> None:
    params = load_params(ROOT / "params.yaml")
    narrowed = narrow(params, ("source.kind", "join", "model.text.name"))
    assert (narrowed.source.kind, narrowed.join, narrowed.model.text.name) == ("demo", params.join, "effimini/minilm")
    for read in (
        lambda: narrowed.sample,
        lambda: narrowed.source.categories,
        lambda: narrowed.model.image,
        lambda: narrowed.model.text.weights,
    ):
        with pytest.raises(AttributeError):
            read()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DVC project with the graph and the parameters, without data."""
    folder = tmp_path_factory.mktemp("graph")
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text("[core]\n no_scm = true\n analytics = false\n check_update = false\n")
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copyfile(ROOT / name, folder / name)
    return folder


def hashes(folder: Path) -> dict[str, str]:
    """Return the key of each stage in DVC's run cache; for equal keys, DVC restores the outputs."""
    found = {}
    with Repo(str(folder)) as repo:
        for stage in repo.index.stages:
            for dependency in stage.deps:
                if isinstance(dependency, ParamsDependency):
                    dependency.save()
                else:
                    dependency.hash_info, dependency.meta = HashInfo("md5", "0" * 32), Meta()
            for out in stage.outs:
                out.hash_info, out.meta = HashInfo("md5", "0" * 32), Meta()
            found[stage.name] = _get_cache_hash(to_single_stage_lockfile(stage), key=True)
    return found


@pytest.fixture(scope="module")
def before(project: Path) -> dict[str, str]:
    return hashes(project)


@pytest.mark.parametrize("key", [key for key in KEYS if key != "source.categories"])
def test_a_changed_parameter_makes_the_stages_stale_that_read_it(
    project: Path, before: dict[str, str], key: str
) -> None:
    other = msgspec.json.decode(msgspec.json.encode(DEMO))
    *sections, name = key.split(".")
    section = other
    for part in sections:
        section = section[part]
    section[name] = changed(section[name])
    YAML().dump(other, project / "params.yaml")
    after = hashes(project)
    assert {stage.partition("@")[0] for stage in after if after[stage] != before[stage]} == documented()[key]


# --- code ---


@cache
def imports(path: str) -> frozenset[str]:
    """Return the files of the project that a file imports, at its top or within its functions."""
    return frozenset(_imports(ast.parse((ROOT / path).read_text())))


def _imports(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    todo = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        todo += list(ast.iter_child_nodes(node))
    paths = [f"{name.replace('.', '/')}.py" for name in found if name.split(".")[0] in PACKAGES]
    return {path for path in paths if (ROOT / path).exists()}


def closure(stage: str) -> set[str]:
    """Return the files of the project that a stage's command imports, and the templates that they use."""
    command = stage.partition("_")[0]
    cli = ast.parse((ROOT / "effimini/cli/stages.py").read_text())
    todo = _imports(next(node for node in cli.body if isinstance(node, ast.FunctionDef) and node.name == command))
    found: set[str] = set()
    while todo:
        path = todo.pop()
        found.add(path)
        todo |= imports(path) - found
    return found | _templates(found)


def _templates(paths: set[str]) -> set[str]:
    """Return the templates that files use, and those that these extend or import."""
    found: set[str] = set()
    while paths:
        named = {
            (folder / name).as_posix()
            for path in paths
            for name in re.findall(r'"(\w[\w.]*\.jinja)"', (ROOT / path).read_text())
            for folder in (Path(path).parent, Path("prep/core"))
            if (ROOT / folder / name).exists()
        }
        paths = named - found
        found |= named
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_every_file_that_determines_its_output(stage: str) -> None:
    declared = STAGES[stage]["deps"]
    excused = {path for path, stages in NO_BYTE.items() if not stages or stage in stages}
    needed = {path for path in closure(stage) - excused if not path.startswith("effimini/cli")}
    missing = {path for path in needed if not any(path == one or path.startswith(f"{one}/") for one in declared)}
    assert missing == set(), "add them to the deps in dvc.yaml, or to NO_BYTE with the reason"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_no_code_that_it_does_not_import(stage: str) -> None:
    code = [path for path in STAGES[stage]["deps"] if path.endswith((".py", ".jinja")) and path != "prep/demo.py"]
    assert set(code) <= closure(stage)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_versions_of_the_libraries_that_determine_its_output(stage: str) -> None:
    pinned = [path for path in STAGES[stage]["deps"] if path.startswith("constraints/")]
    imported = {
        name
        for path in closure(stage)
        if path.endswith(".py")
        for name in re.findall(r"^\s*(?:import|from) (\w+)", (ROOT / path).read_text(), re.MULTILINE)
    }
    for path in sorted((ROOT / "constraints").glob("*.txt")):
        libraries = {line.partition("==")[0].lower().replace("-", "_") for line in path.read_text().splitlines()}
        named = {"pillow": "PIL", "scikit_learn": "sklearn"}
        used = {named.get(library, library) for library in libraries} & imported
        needed = used - EXCUSED.get(stage, set())
        assert not needed or f"constraints/{path.name}" in pinned, f"{stage} imports {sorted(needed)}"


# Libraries that a stage imports but that do not affect its output.
EXCUSED = {
    "download": {"PIL"},  # the demo catalogue's images, which fetch reads
    **{name: {"PIL", "simplejpeg", "tokenizers", "webdataset"} for name in READS if name.startswith("validate_")},
    "validate_exclusions": set(),
    "validate_shards": set(),
}


def test_the_no_byte_list_has_only_imported_files() -> None:
    imported = set().union(*(closure(stage) for stage in STAGES))
    assert set(NO_BYTE) <= imported


# --- dependencies that follow from the parameters ---


def test_dvc_yaml_matches_the_parameters() -> None:
    pipeline.check_dvc_yaml(load_params(ROOT / "params.yaml"), ROOT / "dvc.yaml")


def changed_params(**changes: Any) -> Params:
    params = load_params(ROOT / "params.yaml")
    for section, new in changes.items():
        changed_section = dataclasses.replace(getattr(params, section), **new)
        params = dataclasses.replace(params, **{section: changed_section})
    return params


@pytest.mark.parametrize(
    ("changes", "lacks"),
    [
        ({"source": {"categories": ("Demo_Toys", "Books")}}, "stage validate_raw lacks the dependency data/raw/Books"),
        ({"source": {"categories": ("Demo_Toys",)}}, "stage validate_raw has the dependency data/raw/Demo_Kitchen"),
        ({"source": {"kind": "mirror", "location": "x"}}, "stage download has the dependency prep/demo.py"),
    ],
)
def test_a_dvc_yaml_of_other_parameters_is_rejected_and_updated(
    tmp_path: Path, changes: dict[str, dict[str, Any]], lacks: str
) -> None:
    path = Path(shutil.copyfile(ROOT / "dvc.yaml", tmp_path / "dvc.yaml"))
    before, params = path.read_text(), changed_params(**changes)
    with pytest.raises(UserError, match=f"{lacks}; run `effimini pipeline`, then `dvc repro`"):
        pipeline.check_dvc_yaml(params, path)
    assert pipeline.update_dvc_yaml(params, path)
    pipeline.check_dvc_yaml(params, path)
    assert not pipeline.update_dvc_yaml(params, path)
    assert re.findall("^ *#.*", path.read_text(), re.MULTILINE) == re.findall("^ *#.*", before, re.MULTILINE)
    assert pipeline.update_dvc_yaml(load_params(ROOT / "params.yaml"), path)
    assert path.read_text() == before  # regardless of its content in between


def test_stages_and_dependencies_that_a_team_added_are_kept(tmp_path: Path) -> None:
    path = Path(shutil.copyfile(ROOT / "dvc.yaml", tmp_path / "dvc.yaml"))
    own = "stages:\n  publish:\n    cmd: ./publish.sh\n    deps:\n      - models\n      - notes\n"
    text = path.read_text().replace("stages:\n", own, 1).replace("prep/groups.py", "prep/groups.py, ours/rules", 1)
    path.write_text(text)
    pipeline.update_dvc_yaml(load_params(ROOT / "params.yaml"), path)
    assert "ours/rules" in path.read_text()
    assert own in path.read_text()
    pipeline.check_dvc_yaml(load_params(ROOT / "params.yaml"), path)
    path.write_text(re.sub(r"    deps: \[\s*models,[^]]*\]", "    deps:\n      - models", path.read_text()))
    with pytest.raises(UserError, match="the deps of stage evaluate are not a list in brackets"):
        pipeline.update_dvc_yaml(load_params(ROOT / "params.yaml"), path)


def test_local_encoders_are_dependencies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(ROOT / "dvc.yaml", "dvc.yaml")
    Path("encoder").mkdir()
    Path("image.safetensors").touch()
    model = load_params(ROOT / "params.yaml").model
    text = dataclasses.replace(model.text, name="encoder")
    image = dataclasses.replace(model.image, weights="image.safetensors")
    local = changed_params(model={"text": text, "image": image})
    pipeline.update_dvc_yaml(local)
    stages = YAML(typ="safe", pure=True).load(Path("dvc.yaml").read_text())["stages"]
    assert [name for name in stages if "encoder" in stages[name]["deps"]] == ["shard", "validate_shards", "train"]
    assert [name for name in stages if "image.safetensors" in stages[name]["deps"]] == ["train"]
    hub = changed_params(model={"text": dataclasses.replace(model.text, name="nobody/an-encoder")})
    pipeline.update_dvc_yaml(hub)
    stages = YAML(typ="safe", pure=True).load(Path("dvc.yaml").read_text())["stages"]
    assert not {"encoder", "image.safetensors", "nobody/an-encoder"} & {d for s in stages.values() for d in s["deps"]}


def test_stages_of_a_removed_category_are_removed_from_the_lock(tmp_path: Path) -> None:
    path = Path(shutil.copyfile(ROOT / "dvc.yaml", tmp_path / "dvc.yaml"))
    names = ["groups", *(f"join@{category}" for category in ("Demo_Kitchen", "Demo_Toys"))]
    stages = {name: {"cmd": f"effimini {name}", "outs": [{"path": name, "md5": "0"}]} for name in names}
    lock, yaml = tmp_path / "dvc.lock", YAML()
    yaml.dump({"schema": "2.0", "stages": stages}, lock)
    pipeline.update_dvc_yaml(changed_params(source={"categories": ("Demo_Toys",)}), path)
    assert yaml.load(lock) == {"schema": "2.0", "stages": {name: stages[name] for name in ("groups", "join@Demo_Toys")}}


def test_a_folder_of_an_unknown_category_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("items/Demo_Toys", "items/Old", "items/.Old.new.partial", "shards/Old", "profiles"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "items/report.json").touch()
    pipeline.warn_of_strays(tmp_path, pipeline.TABLE_FOLDERS, ["Demo_Toys"])
    named = [tmp_path / "items/Old", tmp_path / "shards/Old"]
    assert len(caplog.messages) == 1
    assert caplog.messages[0].endswith(f"not in source.categories: {' '.join(map(str, named))}")
