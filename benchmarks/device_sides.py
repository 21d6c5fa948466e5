"""What `benchmarks.device_checks` compares: a plain torch loop and our trainer, on the same synthetic data.

Input: a `Size` and a folder. Output: shards in that folder, and steps of a training. Guarantees: both sides have the
same JPEGs, texts of the same number of tokens, labels, architectures and settings; nothing is downloaded.
"""

import io
import json
import math
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import effimini.torchvision_shim  # noqa: F401 -- must come before what imports torchvision

# isort: split
import numpy as np
import simplejpeg
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import AutoConfig, AutoModel

from benchmarks.device_check import ROOT, Size
from effimini.distributed import init_distributed, set_tf32
from effimini.model import EffiMini
from effimini.train import StepResult, Trainer
from prep.core import files, writers
from prep.core.fields import assemble
from prep.core.params import EncoderParams, Params, load_params
from prep.weights import counts_of, sample_weights
from shards import manifest, tokens
from shards.manifest import Manifest, Shard, Source, Tokenization
from shards.prefetch import DEPTH
from shards.stream import Batch
from shards.tar import index_tar, write_tar
from shards.tokens import TokenizationConfig

MANY, FEW = "Many", "Few"  # categories: one to measure speed on, one for whole trainings
FIELDS = ("title", "description")
PICTURES = 256  # different ones
DROP_PATH, DROPOUT = 0.2, 0.1
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Sample(NamedTuple):
    """One sample, in the forms that both sides read."""

    jpeg: bytes
    metadata: dict[str, Any]


@cache
def samples(size: Size) -> list[Sample]:
    """Return the samples of a shard: smooth pictures with some noise, and texts that are longer than `size.tokens`."""
    random = np.random.default_rng(0)
    jpegs = []
    for _ in range(min(PICTURES, size.shard)):
        coarse = Image.fromarray(random.integers(0, 256, (7, 7, 3), np.uint8))
        pixels = np.asarray(coarse.resize((size.px, size.px), Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = np.clip(pixels + random.integers(-8, 9, pixels.shape), 0, 255).astype(np.uint8)
        jpegs.append(simplejpeg.encode_jpeg(np.ascontiguousarray(noisy), quality=90))
    vocabulary = tokens.load_tokenizer(tokens.PACKAGED).get_vocab()
    words = np.array(sorted(word for word in vocabulary if word.isalpha() and word.isascii()))
    found = []
    for number in range(size.shard):
        metadata = {
            **dict.fromkeys(("main_category", "features", "store", "details"), ""),
            "parent_asin": f"B{number:09d}",
            "category": MANY,
            "title": " ".join(random.choice(words, 8)),
            "description": " ".join(random.choice(words, size.tokens)),
            "average_rating": round(float(random.uniform(1, 5)), 1),
            "rating_number": int(random.integers(1, 1000)),
            "review_count": 1,
            "has_image": True,
        }
        found.append(Sample(jpegs[number % len(jpegs)], metadata))
    return found


@cache
def text_encoder(size: Size, folder: Path) -> Path:
    """Return the folder of a text encoder's configuration and tokenizer."""
    out = folder / "text"
    if not out.exists():
        with files.atomic_folder(out) as partial:
            shutil.copytree(tokens.encoder_source(tokens.PACKAGED), partial, dirs_exist_ok=True)
            config = json.loads((partial / "config.json").read_text())
            (partial / "config.json").write_text(json.dumps(config | dict(size.text)))
    return out


@cache
def make_shards(size: Size, folder: Path) -> Path:
    """Write the shards of both categories, if they are not there, and return their folder."""
    out = folder / "shards"
    if not out.exists():
        with files.atomic_folder(out) as partial:
            _write_category(partial / MANY, size, folder, size.shard, size.links)
            _write_category(partial / FEW, size, folder, size.few, 1)
    return out


def _write_category(out: Path, size: Size, folder: Path, count: int, names: int) -> None:
    """Write a manifest of one tar, under `names` names of the training split and one of the validation split."""
    out.mkdir()
    how = TokenizationConfig(str(text_encoder(size, folder)), FIELDS, size.tokens)
    tokenizer = tokens.load_tokenizer(how.name)
    first = out / "train-00-000.tar"
    write_tar(first, ((sample.metadata, sample.jpeg) for sample in samples(size)[:count]))
    index_tar(first, first.with_suffix(".arrow"), how, tokenizer)
    own = files.sha256(first), files.sha256(first.with_suffix(".arrow"))
    sizes = first.stat().st_size, first.with_suffix(".arrow").stat().st_size
    lines = []
    for number in range(names + 1):
        split, band = ("train", 0) if number < names else ("validation", None)
        name = f"train-00-{number:03d}.tar" if number < names else "validation-000.tar"
        if number:
            (out / name).hardlink_to(first)
            (out / name).with_suffix(".arrow").hardlink_to(first.with_suffix(".arrow"))
        lines.append(Shard(name, split, band, count, sizes[0], own[0], sizes[1], own[1]))
    about = Manifest(
        format=manifest.FORMAT,
        category=out.name,
        source=Source("demo", ""),
        parameters={"images": {"resolution": size.px}},
        tokens=Tokenization(tokens.tokenizer_fingerprint(tokenizer), FIELDS, size.tokens),
        shards=tuple(lines),
    )
    writers.write_json(out / manifest.MANIFEST_FILE, about)


def parameters(size: Size, folder: Path, precision: str, batch: int, category: str = MANY, **recipe: Any) -> Params:
    """Return the paper's parameters for these shards and encoders.

    Args:
        size: the size of data and encoders.
        folder: of the shards.
        precision: fp32, tf32 (fp32 with TF32 in convolutions and products) or bf16.
        batch: samples of a batch.
        category: whose shards are read.
        recipe: other parameters of train; ``dropout``: all three fractions of dropout.
    """
    params = load_params(ROOT / "params/paper.yaml")
    dropout = recipe.pop("dropout", None)
    fp32 = {"precision": "fp32", "tf32": "all" if precision == "tf32" else "none"}
    return replace(
        params,
        source=replace(params.source, categories=(category,)),
        images=replace(params.images, resolution=size.px),
        text=replace(params.text, fields=FIELDS, max_tokens=size.tokens),
        stream=replace(params.stream, workers=size.workers),
        model=replace(
            params.model,
            image=EncoderParams(name=size.image, weights="random"),
            text=EncoderParams(name=str(text_encoder(size, folder)), weights="random"),
            dropout=DROPOUT if dropout is None else dropout,
            attention_dropout=DROPOUT if dropout is None else dropout,
            drop_path=DROP_PATH if dropout is None else dropout,
        ),
        train=replace(
            params.train,
            batch_size=batch,
            **({"precision": "bf16", "tf32": "none"} if precision == "bf16" else fp32) | recipe,
        ),
    )


def set_flags(params: Params, *, ours: bool) -> None:
    """Set torch's global flags as `effimini.train.train` does, or as a plain loop of the same precision leaves them."""
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = ours, False
    set_tf32(params.train.tf32)


class Ours:
    """Steps of the trainer, on batches of its loader or on one that stays in memory.

    Attributes:
        trainer: the trainer.
        kept: the batch that stays in memory.
    """

    def __init__(self, params: Params, shards: Path) -> None:
        self.params = params
        self.trainer = Interrupted.of(params, shards)
        self.trainer.network.train()
        self._given = self._batches()
        self.kept = next(self._given)
        self._previous: StepResult | None = None
        self._done = 0

    def _batches(self) -> Iterator[Batch]:
        while True:
            yield from self.trainer.loader

    def drain(self) -> None:
        """Set the flags, and throw away the batches that were read while another side had its turn."""
        self.prepare()
        for _ in range(DEPTH * self.params.stream.workers):
            next(self._given)
        for _ in range(2):  # one waits for the readers, which is not waiting in the long run
            self.stream()

    def prepare(self) -> None:
        """Set the flags."""
        set_flags(self.params, ours=True)

    def stream(self) -> None:
        """Take a step on the next batch."""
        self._step(next(self._given))

    def keep(self) -> None:
        """Take a step on the batch in memory."""
        self._step(self.kept)

    def _step(self, batch: Batch) -> None:
        result = self.trainer.step(0, self._done % len(self.trainer.loader), batch)
        self._done += 1
        self.trainer.clock.start("data")
        self.trainer.clock.read()
        if self._previous is not None:
            self._previous.sums.tolist()  # as the trainer does: wait for the step before this one
        self._previous = result


class Interrupted(Trainer):
    """A trainer that gets a stop request in the step `after`, counted from 1; 0 for none."""

    after = 0

    @classmethod
    def of(cls, params: Params, shards: Path, after: int = 0) -> "Interrupted":
        """Return a trainer on this device, with torch's flags as in `effimini.train.train`."""
        set_flags(params, ours=True)
        with init_distributed() as dist:
            trainer = cls(params, shards, None, dist)
        trainer.after = after
        return trainer

    def step(self, epoch: int, step: int, batch: Batch) -> StepResult:
        """As `Trainer.step`."""
        result = super().step(epoch, step, batch)
        if self.progress.steps == self.after:
            os.kill(os.getpid(), signal.SIGTERM)
        return result


class PlainData(Dataset[dict[str, Any]]):
    """Samples as a plain loop reads them, with Pillow."""

    def __init__(self, size: Size) -> None:
        self._samples = samples(size)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, i: int) -> dict[str, Any]:
        sample = self._samples[i]
        pixels = np.array(Image.open(io.BytesIO(sample.jpeg)).convert("RGB"))
        return {
            "image": torch.from_numpy(pixels).permute(2, 0, 1),
            "text": assemble(sample.metadata, FIELDS),
            **sample.metadata,
        }


class PlainNetwork(nn.Module):
    """The network written with timm, transformers and torch alone; its weights have the names of ours."""

    def __init__(self, size: Size, folder: Path, dropout: float | None) -> None:
        super().__init__()
        self.image = timm.create_model(
            size.image, num_classes=0, drop_path_rate=DROP_PATH if dropout is None else dropout
        )
        config = AutoConfig.from_pretrained(text_encoder(size, folder))
        config.attention_probs_dropout_prob = DROPOUT if dropout is None else dropout
        self.text = AutoModel.from_config(config)
        layers: list[nn.Module] = []
        width = self.image(torch.zeros(2, 3, size.px, size.px)).shape[1] + config.hidden_size
        for hidden in (512, 256):
            drop = nn.Dropout(DROPOUT if dropout is None else dropout)
            layers += [nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.GELU(), drop]
            width = hidden
        self.head = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(self, images: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Return stars, float32 [B]."""
        text = self.text(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]
        found: Tensor = self.head(torch.cat([self.image(images), text], dim=1)).squeeze(1).float()
        return found


class Plain:
    """Steps of a plain loop: a DataLoader, autocast if it is bf16, and a look at each loss.

    Images go to the device as uint8, as ours do; float32 would take four times the shared memory of its workers.
    """

    def __init__(
        self, params: Params, size: Size, folder: Path, like: EffiMini | None = None, dropout: float | None = None
    ) -> None:
        self.params, self._size = params, size
        self._tokenizer = tokens.load_tokenizer(str(text_encoder(size, folder)))
        self._tokenizer.enable_truncation(size.tokens)
        self._tokenizer.enable_padding()
        self._given = self._batches()
        self.network = PlainNetwork(size, folder, dropout)
        if like is not None:
            own = self.network.state_dict()
            self.network.load_state_dict({name: value for name, value in like.state_dict().items() if name in own})
        self.network.to(DEVICE).train()
        settings = self.network.image.pretrained_cfg
        self._mean, self._std = (torch.tensor(settings[name]).view(1, 3, 1, 1).to(DEVICE) for name in ("mean", "std"))
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=params.train.learning_rate)
        self._schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 1_000_000)
        self.kept: tuple[Tensor, ...] | None = None

    def _collate(self, found: list[dict[str, Any]]) -> tuple[Tensor, ...]:
        texts = self._tokenizer.encode_batch([sample["text"] for sample in found])
        weights = [min(math.log1p(sample["rating_number"]) / 6, 5.0) for sample in found]
        return (
            torch.stack([sample["image"] for sample in found]),
            torch.tensor([text.ids for text in texts]),
            torch.tensor([text.attention_mask for text in texts]),
            torch.tensor([sample["average_rating"] for sample in found]),
            torch.tensor(weights),
        )

    def _batches(self) -> Iterator[tuple[Tensor, ...]]:
        loader = DataLoader(
            PlainData(self._size),
            self.params.train.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=self._size.workers,
            collate_fn=self._collate,
            pin_memory=DEVICE.type == "cuda",
            persistent_workers=True,
            multiprocessing_context="fork",  # a spawned process would import everything again
        )
        while True:
            yield from loader

    def prepare(self) -> None:
        """Set the flags."""
        set_flags(self.params, ours=False)

    def stream(self) -> None:
        """Take a step on the next batch."""
        self.step(next(self._given))

    def keep(self) -> None:
        """Take a step on one batch, which stays on the device."""
        if self.kept is None:
            self.kept = tuple(tensor.to(DEVICE) for tensor in next(self._given))
        self.step(self.kept)

    def step(self, batch: tuple[Tensor, ...]) -> tuple[float, float]:
        """Take a step; return its loss and the norm of its gradient."""
        images, ids, mask, labels, weights = (tensor.to(DEVICE, non_blocking=True) for tensor in batch)
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=self.params.train.precision == "bf16"):
            stars = self.network((images.float() / 255 - self._mean) / self._std, ids, mask)
        loss = (nn.functional.huber_loss(stars, labels, reduction="none") * weights).mean()
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self._schedule.step()
        return loss.item(), norm.item()


def as_plain(batch: Batch, trainer: Trainer) -> tuple[Tensor, ...]:
    """Return a batch of ours as the plain loop has it."""
    return batch.images, batch.tokens, batch.mask, batch.label, weights_of(batch, trainer)


def weights_of(batch: Batch, trainer: Trainer) -> Tensor:
    """Return the weights of the samples of a batch, float32 [B]."""
    return torch.from_numpy(sample_weights(counts_of(batch, trainer.weights), trainer.weights))
