"""A mistake is an error before the libraries that take seconds to import."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "timm", "great_expectations", "sklearn", "pandas", "datasets", "huggingface_hub")
SCRIPT = f"""
import atexit, sys
atexit.register(lambda: print(sorted({set(HEAVY)!r} & sys.modules.keys())))
from effimini import cli
cli.main()
"""
PREDICT = ("predict", "--output", "scores.csv")
LACKS = "does not exist; run `dvc repro train` to train a model, correct the path, or name a model on the hub"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ((*PREDICT, "--model", "nowhere", "--input", "good.csv"), LACKS),
        ((*PREDICT, "--model", "exported", "--input", "bad.csv"), "bad.csv, line 1: no column parent_asin, "),
        ((*PREDICT, "--model", "exported", "--input", "none.csv"), "none.csv does not exist"),
        (
            (*PREDICT, "--model", "exported", "--input", "good.csv", "--interval", "2"),
            "--interval is 2; give a fraction",
        ),
        (("export", "--model", "nowhere", "--output", "onnx"), LACKS),
        (("export", "--model", "saved", "--output", "saved"), "saved exists and is not an exported model"),
        (("import", "none.pt", "--output", "new"), "none.pt does not exist"),
        (("info", "--model", "nowhere"), LACKS),
        (("embed", "--model", "nowhere", "--input", "good.csv", "--output", "f.parquet"), LACKS),
        (
            ("embed", "--model", "saved", "--shards", "nowhere", "--output", "f.parquet"),
            "has no <category>/manifest.json",
        ),
        (("serve", "--model", "exported/model"), LACKS),
        (("info", "nowhere"), "has no <category>/manifest.json"),
        (("lint", "nowhere"), "has no <category>/manifest.json"),
        (("train",), "data/shards/Demo_Kitchen/manifest.json does not exist"),
        (("curve",), "data/shards/Demo_Kitchen/manifest.json does not exist"),
        (("evaluate",), LACKS),
        (("shard", "Demo_Toy"), "Demo_Toy is not in source.categories"),
        (("info", "--params", "wrong.yaml"), "wrong.yaml: sources is not a parameter"),
        (("plan", "--params", "wrong.yaml"), "wrong.yaml: sources is not a parameter"),
        (("results",), "results/evaluation.json does not exist"),
        (("publish", "team/rating", "--model", "team/other"), "team/other does not exist"),
    ],
)
def test_a_mistake_is_an_error_before_what_takes_long_to_import(
    command: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    (tmp_path / "good.csv").write_text("parent_asin,main_category,title,features,description,image_paths\nA,,t,,,\n")
    (tmp_path / "bad.csv").write_text("id,title\nA,t\n")
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported/model.onnx").touch()
    (tmp_path / "wrong.yaml").write_text("sources: {}\n")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/config.json").touch()
    stage = command[0] in {"train", "curve", "evaluate", "import", "shard"}
    options = ("--params", str(ROOT / "params.yaml")) if stage else ()
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, *command, *options],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert message in ended.stderr
    assert ended.stdout.strip() == "[]"
