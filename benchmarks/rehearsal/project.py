"""A project folder for the rehearsal: the tracked files, the paper's parameters, tiny encoders, a git repository.

Input: the working tree, ``params/paper.yaml``. Output: a folder like a fresh clone, in which the pipeline runs against
two servers on loopback. Guarantees: the parameters are the paper's but for `overrides`; the repository's working tree
is not changed.
"""

import difflib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import BertWordPieceTokenizer

from benchmarks.rehearsal.figures import CATEGORIES
from benchmarks.rehearsal.text import stream, vocabulary
from prep.core import presets
from prep.core.params import read_yaml
from prep.core.writers import write_json

HUB_PORT, IMAGES_PORT, S3_PORT = range(_first := int(os.environ.get("REHEARSAL_PORT", "8766")), _first + 3)
ENCODER = "encoders/text"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CHARACTERS_PER_TOKEN = 4.44  # of the 2,000 real rows, tokenized for MiniLM
_TEXT = {  # a BERT that is as small as it can be
    "model_type": "bert", "architectures": ["BertModel"], "hidden_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 512, "type_vocab_size": 2,
    "pad_token_id": 0, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
}  # fmt: skip


def overrides(items: int) -> dict[str, Any]:
    """Return what differs from the paper's parameters, for a twin of `items`."""
    real = 1000 * sum(category.items for category in CATEGORIES.values())
    return {
        # the same fraction of the smallest categories, so that 40 % adds as much as it does in the real data
        "sample.min_per_category": max(1, round(8000 * items / real)),
        "fetch.mirror": f"http://127.0.0.1:{IMAGES_PORT}",
        "model.image.name": "lcnet_035",
        "model.image.weights": "random",
        "model.text.name": ENCODER,
        "model.text.weights": "random",
        "train.epochs": 1,
        "dask.workers": len(os.sched_getaffinity(0)),  # of this machine; results do not depend on it
    }


def environment(project: Path, build: Path) -> dict[str, str]:
    """Return the environment of the commands in a project."""
    found = os.environ | {
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
        "PYTHONPATH": os.pathsep.join((str(project), str(build / "packages"))),
        "HF_ENDPOINT": f"http://127.0.0.1:{HUB_PORT}",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DVC_NO_ANALYTICS": "1",
        "EFFIMINI_STORE": str(project / ".effimini"),
    }
    for name, value in {
        "ENDPOINT_URL": f"http://127.0.0.1:{S3_PORT}",
        "ACCESS_KEY_ID": "rehearsal",
        "SECRET_ACCESS_KEY": "rehearsal",
        "DEFAULT_REGION": "us-east-1",
    }.items():
        found[f"AWS_{name}"] = value
    for role in ("AUTHOR", "COMMITTER"):
        found |= {f"GIT_{role}_NAME": "rehearsal", f"GIT_{role}_EMAIL": "rehearsal@example.org"}
    return found


def call(words: Sequence[str], cwd: Path, env: Mapping[str, str]) -> str:
    """Run a command that has to succeed; return what it printed."""
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"`{' '.join(words)}` failed in {cwd}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def make_project(project: Path, build: Path, items: int) -> str:
    """Write the project if it is missing; return the difference of its parameters from the preset, as a diff.

    Args:
        project: the folder.
        build: the folder of the rehearsal.
        items: items of the twin.
    """
    env = environment(project, build)
    if not (project / ".git").exists():
        shutil.rmtree(project, ignore_errors=True)
        listed = subprocess.run(["git", "ls-files", "-z", "-co", "--exclude-standard"], check=True, capture_output=True)
        for name in filter(None, listed.stdout.decode().split("\0")):
            if Path(name).exists() and name != "dvc.lock":
                (project / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(name, project / name)
        write_encoder(project / ENCODER)
        call(["effimini", "preset", "paper", "--force"], project, env)
        _override(project / "params.yaml", overrides(items))
        call(["effimini", "pipeline"], project, env)
        for words in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "The rehearsal"]):
            call(["git", *words], project, env)
    presets.write_yaml(read_yaml(project / "params/paper.yaml"), build / "paper.yaml")
    pair = [path.read_text().splitlines() for path in (build / "paper.yaml", project / "params.yaml")]
    changed = difflib.unified_diff(*pair, "params/paper.yaml", "params.yaml", lineterm="", n=0)
    return "\n".join(changed)


def _override(path: Path, values: Mapping[str, Any]) -> None:
    content = read_yaml(path)
    for key, value in values.items():
        *sections, name = key.split(".")
        section = content
        for each in sections:
            section = section[each]
        section[name] = value
    presets.write_yaml(content, path)


def write_encoder(folder: Path) -> None:
    """Write a tiny BERT and a tokenizer that needs as many tokens for the twin's text as MiniLM's for real text."""
    folder.mkdir(parents=True, exist_ok=True)
    sample = [stream("plain").text[at : at + 1000] for at in range(0, 200_000, 1000)]

    def tokenizer(words: int) -> BertWordPieceTokenizer:
        letters = [*map(str, range(10)), *"abcdefghijklmnopqrstuvwxyz.,|:&-'"]
        syllables = sorted({word[:size] for word in vocabulary() for size in (2, 3)} - set(vocabulary()[:words]))
        pieces = [*SPECIAL, *letters, *vocabulary()[:words], *(f"##{piece}" for piece in (*letters, *syllables))]
        return BertWordPieceTokenizer({piece: place for place, piece in enumerate(dict.fromkeys(pieces))})

    def distance(words: int) -> float:
        encodings = tokenizer(words).encode_batch(sample, add_special_tokens=False)
        return abs(sum(map(len, sample)) / sum(map(len, encodings)) - CHARACTERS_PER_TOKEN)

    chosen = tokenizer(min((1 << power for power in range(8, 15)), key=distance))
    (folder / "tokenizer.json").write_text(chosen.to_str(), encoding="utf-8")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    special = {f"{name.strip('[]').lower()}_token": name for name in SPECIAL}
    write_json(folder / "tokenizer_config.json", settings | special)
    (folder / "config.json").write_text(json.dumps(_TEXT | {"vocab_size": chosen.get_vocab_size()}))
