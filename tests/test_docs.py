"""The commands, parameter keys, links and Python code of the documentation are valid.

Commands are in indented blocks and in fenced blocks of `sh`, `bash` or no language; other output is in blocks of
another language (`text`, `yaml`, `csv`). Inline code is checked where possible.
"""

import ast
import re
import shlex
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer.main
from dvc.cli.parser import DvcParserError, get_main_parser
from markdown_it import MarkdownIt
from markdown_it.token import Token
from ruamel.yaml import YAML
from typer.exceptions import Exit, TyperException

from effimini.cli import app
from prep.core.params import Params
from tests.clone import ROOT
from tests.test_graph import KEYS, STAGES

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
SHELL = {"", "sh", "bash"}
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
SECTIONS = {key.partition(".")[0] for key in KEYS}
FOLDERS = ("benchmarks", "constraints", "docs", "effimini", "params", "prep", "runs", "shards", "tests", "validation")
FILES = {"onnx", "parquet", "py", "safetensors"}  # endings of files with the name of a section
BENCHMARK = re.compile(r"make (ablation|corpus|bench-)|python -m benchmarks\.")
# Each command of a block, and the file that runs it.
RUN: dict[str, str] = {
    "dvc artifacts get": "tests/test_sharing.py",
    "dvc commit": "tests/test_team.py",
    "dvc dag": "tests/test_pipeline.py",
    "dvc exp run": "tests/test_pipeline.py",
    "dvc get": "tests/test_sharing.py",
    "dvc pull": "tests/test_team.py",
    "dvc push": "tests/test_team.py",
    "dvc remote add": "tests/test_team.py",
    "dvc repro": "tests/test_team.py",
    "dvc status": "tests/test_team.py",
    "effimini accept": "tests/validation/test_validate.py",
    "effimini batch": "tests/shards/test_steps.py",
    "effimini card": "tests/shards/test_card.py",
    "effimini categories": "tests/prep/test_categories.py",
    "effimini compare": "tests/effimini/test_compare.py",
    "effimini report": "tests/effimini/test_run_report.py",
    "effimini curve": "tests/effimini/test_curve.py",
    "effimini diff": "tests/test_sharing.py",
    "effimini embed": "tests/effimini/test_embed.py",
    "effimini evaluate": "tests/test_team.py",
    "effimini export": "tests/effimini/test_export.py",
    "effimini import": "tests/effimini/test_import_weights.py",
    "effimini fetch": "tests/test_team.py",
    "effimini inspect": "tests/prep/catalogue/test_inspect.py",
    "effimini gc": "tests/effimini/test_gc.py",
    "effimini info": "tests/test_parameters.py",
    "effimini lint": "tests/test_parameters.py",
    "effimini pipeline": "tests/test_team.py",
    "effimini plan": "tests/effimini/test_plan.py",
    "effimini predict": "tests/effimini/test_predict.py",
    "effimini preset": ".ci/run",
    "effimini preview": "tests/shards/test_preview.py",
    "effimini publish": "tests/shards/test_publish.py",
    "effimini remove": "tests/effimini/test_remove.py",
    "effimini sample": "tests/test_pipeline.py",
    "effimini serve": "tests/effimini/test_serve.py",
    "effimini train": "tests/test_sharing.py",
    "effimini validate": "tests/test_team.py",
    "effimini where": "tests/shards/test_steps.py",
    "git add": "tests/test_team.py",
    "git clone": "tests/clone.py",
    "git commit": "tests/test_team.py",
    "git tag": "tests/test_sharing.py",
    "make audit": ".ci/run",
    "make device-check": "tests/test_device_check.py",
    "make lint": ".ci/run",
    "make repro": ".ci/run",
    "make test": ".ci/run",
}
# Programs of the system and the shell, which are not checked.
SYSTEM = {"cat", "cd", "cp", "curl", "df", "export", "ls", "mkdir", "mv", "rm", "sbatch", "sed", "source", "tar"}
# The other commands, and why no test runs them.
NOT_RUN: dict[str, str] = {
    "benchmarks": "they take minutes; tests/test_benchmarks.py imports them",
    "git checkout": "part of git; the provenance tests cover the missing `dvc checkout`",
    "git push": "part of git",
    "dvc checkout": "part of DVC: links files of its cache",
    "dvc exp show": "part of DVC: prints",
    "dvc gc": "part of DVC: removes",
    "dvc metrics show": "part of DVC: prints",
    "dvc plots show": "part of DVC: prints",
    "make setup": "`make test` does it",
    "pip install": "of a package that is no dependency",
    "python -c": "needs that package",
    "pre-commit install": "pre-commit is installed by those who use it",
    "pytest -q": "runs tests itself",
}


class Page(NamedTuple):
    """The checked contents of a page."""

    path: Path
    commands: list[list[str]]  # of its blocks, split into words
    code: list[str]  # inline
    links: list[str]
    anchors: set[str]  # of its headings


def parse(path: Path, text: str) -> Page:
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    blocks = [t.content for t in tokens if t.type == "code_block" or (t.type == "fence" and t.info in SHELL)]
    inline = [child for token in tokens for child in token.children or ()]
    headings = [after.content for before, after in pairwise(tokens) if before.type == "heading_open"]
    return Page(
        path,
        [words for block in blocks for words in commands(block)],
        [" ".join(token.content.split()) for token in inline if token.type == "code_inline"],
        [str(token.attrs["href"]) for token in inline if token.type == "link_open"],
        {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings},
    )


@cache
def page(path: Path) -> Page:
    return parse(path, path.read_text(encoding="utf-8"))


def python_blocks(path: Path) -> Iterator[Token]:
    yield from (t for t in MarkdownIt("commonmark").parse(path.read_text()) if t.type == "fence" and t.info == "python")


def commands(block: str) -> Iterator[list[str]]:
    """Yield the words of each command of a block, without comments, leading variables and redirections."""
    for line in block.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(re.sub(r"(^|\s)#.*", "", line), posix=True, punctuation_chars=True)
        lexer.whitespace_split, lexer.commenters = True, ""
        words: list[str] = []
        redirected = False
        for word in [*lexer, ";"]:
            if set(word) <= set(";|&"):
                if words:
                    yield words
                words, redirected = [], False
            elif set(word) <= set("<>") or redirected:
                redirected = not redirected
            elif words or not re.match(r"\w+=", word):
                words.append(word)


def name_of(words: list[str]) -> str:
    """Return the program and its subcommand, for example `dvc exp run`."""
    if words[0] == "torchrun":
        return "effimini " + words[words.index("effimini.cli") + 1]
    if BENCHMARK.match(" ".join(words)):
        return "benchmarks"
    of_three = words[0] == "dvc" and words[1] in {"artifacts", "exp", "metrics", "plots", "remote"}
    return " ".join(words[: 3 if of_three else 2])


def mistakes(shown: Page) -> list[str]:
    """Return the mistakes on a page."""
    found = [mistake for words in shown.commands for mistake in in_command(words)]
    for code in shown.code:
        if re.match(r"(effimini|dvc|make) [a-z]", code):
            found += in_command(shlex.split(code), whole=False)
        if re.match(rf"({'|'.join(FOLDERS)})/[^*<]*\.(md|py|toml|txt|yaml)$", code) and not (ROOT / code).exists():
            found.append(f"{code}: no such file")
        section, _, last = code.partition(".")
        if re.fullmatch(r"[a-z]+(\.[a-z_]+)+", code) and section in SECTIONS and last not in FILES:
            found += in_key(code)
    return found + [mistake for link in shown.links for mistake in in_link(shown, link)]


def in_command(words: list[str], *, whole: bool = True) -> Iterator[str]:
    """Yield the mistakes in a command; it may lack arguments unless it is `whole`."""
    if words[0] == "torchrun" and "effimini.cli" in words:
        words = ["effimini", *words[words.index("effimini.cli") + 1 :]]
    match words:
        case ["effimini", name, *rest]:
            group: Any = typer.main.get_command(app)
            command = group.get_command(group.make_context("effimini", [name], resilient_parsing=True), name)
            try:
                if command is None:
                    yield f"effimini {name}: no such command"
                elif rest != ["--help"]:
                    command.make_context(name, list(rest))
            except (TyperException, Exit) as error:
                if whole or type(error).__name__ != "MissingParameter":
                    yield f"{shlex.join(words)}: {error}"
        case ["make", *rest]:
            yield from (f"make {word}: no such target" for word in rest if "=" not in word and word not in TARGETS)
        case ["python", "-m", module, *_] if not (ROOT / module.replace(".", "/")).with_suffix(".py").exists():
            yield f"python -m {module}: no such module"
        case ["dvc", *rest]:
            yield from in_dvc(rest, whole=whole)


def in_dvc(words: list[str], *, whole: bool) -> Iterator[str]:
    try:
        parsed = get_main_parser().parse_args(words)
    except (DvcParserError, SystemExit):
        if whole:
            yield f"dvc {shlex.join(words)}: DVC rejects it"
        return
    for setting in getattr(parsed, "set_param", None) or ():
        yield from in_key(setting.partition("=")[0].removeprefix("+"))  # of a key that is added
    for target in (getattr(parsed, "targets", None) or ()) if parsed.cmd != "remote" else ():
        if target.partition("@")[0] not in STAGES and not target.startswith(("data/", "models", "results")):
            yield f"dvc {shlex.join(words)}: {target} is neither a stage nor an output"


def in_key(key: str) -> Iterator[str]:
    if not any(known == key or known.startswith(f"{key}.") for known in KEYS):
        yield f"{key}: not in params.yaml"


def in_link(shown: Page, link: str) -> Iterator[str]:
    if re.match(r"[a-z]+:", link):
        return
    name, _, anchor = link.partition("#")
    target = (shown.path.parent / name).resolve() if name else shown.path
    if not target.exists():
        yield f"{link}: no such file"
    elif anchor and anchor not in (page(target) if name else shown).anchors:
        yield f"{link}: no such heading"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_page_has_no_mistake(path: Path) -> None:
    assert mistakes(page(path)) == []


@pytest.mark.parametrize(
    "mistake",
    [
        "    effimini preview --sample 3",
        "    effimini prewiev",
        "    effimini fetch",
        "    cd here && torchrun --nproc-per-node 2 -m effimini.cli train --shard x",
        "    dvc repro --allow-mising train",
        "    dvc pull shards",
        "    dvc exp run -S sample.fractoin=0.4",
        "    make repo  # of all",
        "    python -m benchmarks.fetsh",
        "`effimini sample --jason`",
        "`make repo`",
        "`train.learning_rat`",
        "`prep/params.py`",
        "[a](docs/none.md)",
        "[a](#none)",
        "[a](docs/parameters.md#none)",
    ],
)
def test_a_mistake_on_a_page_is_found(mistake: str) -> None:
    assert len(mistakes(parse(ROOT / "page.md", f"# A page\n\n{mistake}\n"))) == 1


def test_each_command_is_run_by_a_test_or_excused() -> None:
    shown = {name_of(words) for path in PAGES for words in page(path).commands if words[0] not in SYSTEM}
    assert not RUN.keys() & NOT_RUN.keys()
    assert shown == shown & (RUN.keys() | NOT_RUN.keys())
    assert NOT_RUN.keys() - shown == set()  # no unused excuse


@pytest.mark.parametrize("name", RUN)
def test_a_command_is_in_the_test_file_listed_for_it(name: str) -> None:
    text = (ROOT / RUN[name]).read_text()
    if RUN[name].endswith(".py"):
        nodes = list(ast.walk(ast.parse(text)))
        strings = {node.value for node in nodes if isinstance(node, ast.Constant)}
        called = {node.id for node in nodes if isinstance(node, ast.Name)}  # the function of a command's name
        assert set(name.split()[1:]) <= strings | called | {
            node.attr for node in nodes if isinstance(node, ast.Attribute)
        }
    else:
        assert name in text


def test_the_pre_commit_hooks_are_the_checks_of_make_lint() -> None:
    (recipe,) = re.findall(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    (local,) = YAML(typ="safe").load(ROOT / ".pre-commit-config.yaml")["repos"]
    checks = [f"sh -c 'PATH=\".venv/bin:$PATH\" && {line.strip()}'" for line in recipe.splitlines()]
    assert [hook["entry"] for hook in local["hooks"]] == checks


@pytest.fixture(scope="module")
def project(
    tmp_path_factory: pytest.TempPathFactory, make_params: Callable[..., Params], run_to: Callable[..., None]
) -> Path:
    """A folder with the shards of the demo categories in data/shards."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EFFIMINI_STORE", str(folder / "store"))
        run_to(make_params(**{"source.categories": list(KEYS["source.categories"])}), folder / "data", "shard")
    return folder


@pytest.mark.parametrize("path", [path for path in PAGES if any(python_blocks(path))], ids=lambda path: path.name)
def test_the_python_of_a_page_runs(path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    names: dict[str, Any] = {}
    for block in python_blocks(path):  # one after another, as a reader would
        exec(compile(block.content, f"{path.name}:{block.map}", "exec"), names)
