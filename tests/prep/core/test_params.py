import copy
import re
from collections.abc import Iterator, Mapping
from io import StringIO
from pathlib import Path
from typing import Any, get_args

import pytest
from dvc.utils.hydra import apply_overrides
from ruamel.yaml import YAML

from prep.core.errors import UserError
from prep.core.fields import LABELS
from prep.core.params import TextField, load_params, read_yaml

ROOT = Path(__file__).parents[3]
TEXT = StringIO()
YAML().dump(read_yaml(ROOT / "params/demo.yaml"), TEXT)  # not params.yaml, which a user may have changed
DEMO = re.sub(" *#.*", "", TEXT.getvalue())


def test_the_paper_preset_has_the_papers_values() -> None:
    paper = load_params(ROOT / "params/paper.yaml")
    assert len(paper.source.categories) == 25
    assert (paper.sample.fraction, paper.sample.min_chars) == (0.2, 29)
    assert (paper.weights.count, paper.weights.clip, paper.train.huber_delta) == ("rating_number", 5.0, 1.0)
    recipe = paper.train
    assert (recipe.learning_rate, recipe.weight_decay, recipe.warmup, recipe.batch_size) == (2e-5, 0.01, 0.1, 32)
    assert (recipe.epochs, recipe.patience, recipe.max_grad_norm, recipe.seed) == (10, 1, 1.0, 42)
    assert (paper.images.resolution, paper.images.fit, paper.text.max_tokens) == (224, "squash", 256)
    assert paper.text.fields == ("main_category", "title", "features", "description")
    assert paper.model.image.name == "efficientnet_b0.ra_in1k"
    assert (paper.model.hidden, paper.model.dropout) == ((512, 256), 0.1)


@pytest.mark.parametrize(
    ("line", "wrong", "expected"),
    [
        ("fraction: 0.2", "fracton: 0.2", r"sample\.fracton is not a parameter; did you mean fraction\?"),
        ("resolution: 64", "size: 64", r"images\.size is now images\.resolution; rename them in"),
        ("fraction: 0.2", "fraction: 0.22", r"sample: fraction 0\.22 is not a whole number of bands; .* 0\.05"),
        ("fraction: 0.2", "fraction: lots", r"sample\.fraction: must be a valid number, found 'lots'"),
        ("fraction: 0.2", "fraction: 1.5", r"sample\.fraction: must be less than or equal to 1, found 1\.5"),
        ("compile: false", "compile: 0", r"train\.compile: must be a valid boolean, found 0"),
        ("epochs: 9", "epochs: 0", r"train\.epochs: must be greater than or equal to 1, found 0"),
        ("kind: demo", "kind: demon", r"source\.kind: 'demon' is not 'demo', 'mirror', 'hub' or 'table'"),
        ("kind: demo", "kind: mirror", r"source: kind mirror needs location"),
        ("kind: demo", "kind: hub", r"source: kind hub needs revision: .* found ''; .*categories --hub` prints"),
        ("metadata: jsonl", "metadata: json", r"source\.metadata: 'json' is not 'jsonl' or 'parquet'"),
        ("  salt: effimini\n", "", r"sample\.salt is missing"),
        ("[main_category, title, f", "[main_categry, title, f", r"text\.fields\.0: 'main_categry' is not .*'title'"),
        ("hidden: [512, 256]", "hidden: [512, x]", r"model\.hidden\.1: must be a valid integer, found 'x'"),
        ("Demo_Toys", "../Toys", r"source\.categories\.1: .*found '\.\./Toys'"),
        ("Demo_Toys", "Demo_Kitchen", r"source: categories has duplicates"),
        ("validation: 0.1", "validation: 0.95", r"leave no training items"),
        ("scheduler: synchronous", "scheduler: fast", r"dask\.scheduler: .*found 'fast'"),
        (
            "skip: []",
            "skip: [5-3]",
            r"train: skip has the range 5-3, whose first step is after its last; write the smaller",
        ),
        ("skip: []", "skip: [1-3, 7, 3-5]", r"train: skip names step 3 twice; write each step once, such as 1-5"),
        (
            "skip: []",
            "skip: [0-3]",
            r"train\.skip\.0: '0-3' is neither a step from 1 on nor a range of steps, such as 1200",
        ),
        ("skip: []", "skip: [2, 3.5]", r"train\.skip\.1: 3\.5 is neither a step"),
        ("skip: []", "skip: 1200-1210", r"train\.skip: must be a valid array, found '1200-1210'"),
        ("skip: []", "skip: [7]", r"train\.skip is set and model\.hashed_ngrams is 65536, .* leave train\.skip empty"),
        ("mixture: {}", "mixture: {Demo_Toys: 2}", r"train\.mixture is set and model\.hashed_ngrams is 65536, but"),
        ("mixture: {}", "mixture: {Demo_Toys: 0}", r"train\.mixture\.Demo_Toys: must be greater than 0, found 0"),
        (
            "mixture: {}",
            "mixture: {Toys: 2}",
            r"train\.mixture names Toys, which is not in source\.categories \(Demo_K",
        ),
        ("sample:\n", "sample: [\n", r"is not valid YAML: .*line"),
        (
            "max_grad_norm: 1.0",
            "max_grad_norms: 1.0",
            r"train\.max_grad_norms is not .* mean max_grad_norm\?; 1 more to correct",
        ),
        (DEMO, "- a list", r"the whole file: must be an object"),
    ],
)
def test_an_error_names_the_file_the_key_and_the_value(tmp_path: Path, line: str, wrong: str, expected: str) -> None:
    assert line in DEMO
    path = tmp_path / "params.yaml"
    path.write_text(DEMO.replace(line, wrong, 1))
    with pytest.raises(UserError) as caught:
        load_params(path)
    message = str(caught.value)
    assert str(path) in message
    assert re.search(expected, message), message
    assert "\n" not in message


@pytest.mark.parametrize("revision", ["main", "v1.0", "2b6d039", "2B6D039ED471F2BA5FD2ACB718BF33B0A7E5598E"])
def test_a_revision_that_can_move_is_an_error(tmp_path: Path, revision: str) -> None:
    path = tmp_path / "params.yaml"
    text = DEMO.replace("kind: demo", "kind: hub")
    path.write_text(text.replace("revision: ''", f"revision: {'a1' * 20}"))
    assert load_params(path).source.revision == "a1" * 20
    path.write_text(text.replace("revision: ''", f"revision: {revision}"))
    with pytest.raises(UserError, match=rf"a branch or tag can move, found '{revision}'"):
        load_params(path)


def test_the_error_of_a_missing_file_says_how_to_create_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist; .*effimini preset paper.*dvc get URL params.yaml"):
        load_params(tmp_path / "params.yaml")


def test_steps_to_skip_are_read_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    text = DEMO.replace("hashed_ngrams: 65536", "hashed_ngrams: 0")
    path.write_text(text.replace("skip: []", "skip: [1200-1210, '9', 1300, 7-8]"))
    assert load_params(path).train.skipped == [(7, 8), (9, 9), (1200, 1210), (1300, 1300)]


def test_dvc_sets_steps_to_skip_and_a_mixture_as_the_documentation_says(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(DEMO.replace("hashed_ngrams: 65536", "hashed_ngrams: 0"))
    apply_overrides(path, ["train.skip=[1200-1210,1300]", "+train.mixture={Demo_Toys: 2, Demo_Beauty: 0.5}"])
    found = load_params(path).train
    assert found.skipped == [(1200, 1210), (1300, 1300)]
    assert found.mixture == {"Demo_Toys": 2, "Demo_Beauty": 0.5}


def test_numbers_are_read_as_dvc_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(re.sub("learning_rate: .*", "learning_rate: 2e-5", DEMO))
    assert load_params(path).train.learning_rate == 2e-5


def test_text_fields_are_the_fields_with_labels() -> None:
    assert set(get_args(TextField)) == set(LABELS)


def numbers(values: Mapping[str, Any], prefix: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the place of each number among nested values."""
    for key, value in enumerate(values) if isinstance(values, list) else values.items():
        if isinstance(value, (dict, list)):
            yield from numbers(value, (*prefix, key))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield (*prefix, key)


VALUES = YAML(typ="safe").load(DEMO)


@pytest.mark.parametrize("wrong", ["-1", str(2**70), "1" * 4000, ".nan", ".inf", "-.inf", "1e400", "'7'", "[1]"])
def test_a_number_out_of_range_is_named(tmp_path: Path, wrong: str) -> None:
    path = tmp_path / "params.yaml"
    places = list(numbers(VALUES))
    assert ("train", "seed") in places
    assert ("model", "hidden", 0) in places
    for place in places:
        content = copy.deepcopy(VALUES)
        *sections, last = place
        section = content
        for name in sections:
            section = section[name]
        section[last] = "MARK"
        text = StringIO()
        YAML(typ="safe").dump(content, text)
        path.write_text(text.getvalue().replace("MARK", wrong))
        with pytest.raises(UserError) as caught:
            load_params(path)
        name = ".".join(map(str, place))
        assert str(caught.value).startswith(f"{path}: {name}: must be "), caught.value
        assert len(str(caught.value)) < 300


def test_a_layer_that_no_memory_holds_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(DEMO.replace("hidden: [512, 256]", "hidden: [512, 100000000]"))
    with pytest.raises(UserError, match=r"model\.hidden\.1: must be less than or equal to 65536, found 100000000"):
        load_params(path)


BOMB = "a0: &a0 [1, 2]\n" + "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(12))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[" * 5000 + "]" * 5000, "is nested too deeply"),
        ("a: " + "{b: " * 3000 + "1" + "}" * 3000, "is nested too deeply"),
        (BOMB, r"has more than 10,000 values; remove the aliases"),
        ("a: &a [*a]\n", "a is not a parameter"),
        ("? [a, b]\n: 1\n", r"has the key .*a.*b.*, which is not a name"),
        ("a: " + "1" * 5000, "is not valid YAML"),
        ("# " + "x" * 1_000_001, "has more than 1,000,000 characters"),
        ("train: !!python/object/apply:os.system [ls]\n", "source is missing"),
        ("a: *b\n", "is not valid YAML"),
        ("a: 1\na: 2\n", "is not valid YAML"),
        ("", "the whole file"),
        ("\x00", "is not valid YAML"),
        ("a: # b\n  c:0\n\nd: 1\n", "is not valid YAML"),
    ],
)
def test_a_file_that_is_none_of_parameters_gets_one_sentence(tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=expected) as caught:
        load_params(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_folder_as_a_parameter_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder; name a parameter file"):
        load_params(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="does not exist"):
        load_params(tmp_path / "file/params.yaml")
    with pytest.raises(UserError, match="more than 1,000,000 characters"):
        load_params(Path("/dev/zero"))


def test_presets_that_extend_each_other_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b\n")
    (tmp_path / "b.yaml").write_text("extends: a\n")
    with pytest.raises(UserError, match="extends"):
        load_params(tmp_path / "a.yaml")


def test_aliases_are_allowed(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(DEMO.replace("long_text_fraction: {", "long_text_fraction: &long {").replace(
        re.search(r"near_duplicate_fraction: (\{.*\})", DEMO)[1], "*long", 1  # type: ignore[index]
    ))  # fmt: skip
    found = load_params(path).validation
    assert found.near_duplicate_fraction == found.long_text_fraction
