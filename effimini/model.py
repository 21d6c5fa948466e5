"""The network: an image encoder and a text encoder, their features side by side, and a small head.

In: parameters (`build`), or a folder written by `EffiMini.save_pretrained` (`EffiMini.from_pretrained`).
Out: a module that maps a batch of samples to stars. Guaranteed: weights that cannot be loaded are an error,
never a silent random start; a saved folder is rebuilt offline to the same outputs, with the tokenizer it
was trained with.
"""

import difflib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import effimini.torchvision_shim  # noqa: F401 -- must come before timm and transformers

# isort: split
import httpx
import msgspec
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig
from transformers.utils import logging as transformers_logging

from effimini.hashed_ngrams import HashedNgrams
from prep.core import files, writers
from prep.core.errors import UserError, first_sentence
from prep.core.params import EncoderParams, Params
from shards import tokens

log = logging.getLogger(__name__)

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
# No output of ours uses BERT's pooler, and files of sentence encoders may lack it; it counts in the parameters.
_UNUSED = ("pooler.",)


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything needed to rebuild a trained model and to prepare its input, as stored in its config.json."""

    source: str  # kind of the data it was trained on: demo, mirror, hub
    image: str  # timm's name of the architecture
    mean: tuple[float, ...]  # of the encoder's input, by channel, in [0, 1]
    std: tuple[float, ...]
    text: dict[str, Any]  # transformers' configuration
    pooling: str = "first"
    hashed_ngrams: int = 0
    hidden: tuple[int, ...]
    dropout: float
    size: int  # px, height and width
    fit: str
    quality: int  # JPEG
    max_pixels: int
    fields: tuple[str, ...]  # text fields, in order
    max_tokens: int


class EffiMini(nn.Module):
    """Concatenated image and text features through a head of linear layers (reference section 1).

    Beside it, if the configuration asks for it, a linear model of the text's terms, which has a share of the score; in
    training mode the network stands alone.

    Args:
        config: what the model is.
        image: maps normalised images [B, 3, H, W] to features [B, F].
        text: a transformers encoder.
        tokenizer: the text encoder's, saved beside the weights.

    Attributes:
        autocast: whether matrix products and convolutions are in bfloat16; the stars are float32.
        feature_mean: is taken from each feature before the head, float32 [F + D]; 0 unless the encoders are frozen.
        feature_scale: divides it then; 1 unless the encoders are frozen.
    """

    text: Any  # transformers' models have no common type with what we use of them
    mean: Tensor
    std: Tensor
    feature_mean: Tensor
    feature_scale: Tensor

    def __init__(self, config: Config, image: nn.Module, text: nn.Module, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config, self.tokenizer, self.image, self.text = config, tokenizer, image, text
        self.autocast = False
        pooler = getattr(text, "pooler", None)
        if isinstance(pooler, nn.Module):
            pooler.requires_grad_(requires_grad=False)  # no gradient reaches it, which DDP must know beforehand
        width = features = image_width(image) + int(self.text.config.hidden_size)
        layers: list[nn.Module] = []
        for hidden in config.hidden:
            layers += [nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Dropout(config.dropout)]
            width = hidden
        self.head = nn.Sequential(*layers, nn.Linear(width, 1))
        self.ngrams = HashedNgrams(config.hashed_ngrams) if config.hashed_ngrams else None
        self.register_buffer("feature_mean", torch.zeros(features))
        self.register_buffer("feature_scale", torch.ones(features))
        self.register_buffer("mean", torch.tensor(config.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, -1, 1, 1), persistent=False)

    def image_features(self, images: Tensor) -> Tensor:
        """Return features float32 [B, F] of images uint8 [B, 3, H, W], normalised as the encoder expects."""
        return cast(Tensor, self.image((images.float() / 255 - self.mean) / self.std))

    def text_features(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return the last hidden state of the first token, or the mean of all, float32 [B, D].

        Args:
            tokens: int64 [B, T].
            mask: int64 [B, T], 1 where a token is.
        """
        states = cast(Tensor, self.text(input_ids=tokens, attention_mask=mask).last_hidden_state)
        if self.config.pooling == "first":
            return states[:, 0]
        there = mask.unsqueeze(2).to(states.dtype)
        return (states * there).sum(dim=1) / there.sum(dim=1)

    def forward(self, images: Tensor, tokens: Tensor, mask: Tensor, has_image: Tensor) -> Tensor:
        """Return stars, float32 [B], not clamped.

        Args:
            images: uint8 [B, 3, H, W].
            tokens: int64 [B, T].
            mask: int64 [B, T], 1 where a token is.
            has_image: bool [B]; image features of a sample without one are multiplied by 0.
        """
        stars = self.score(self.features(images, tokens, mask, has_image))
        if self.ngrams is None or self.training:
            return stars
        ngram_stars: Tensor = self.ngrams(tokens, mask)
        fraction = self.ngrams.fraction
        return fraction * ngram_stars + (1 - fraction) * stars  # exactly one of them at a share of 0 or 1

    def features(self, images: Tensor, tokens: Tensor, mask: Tensor, has_image: Tensor) -> Tensor:
        """Return what the head reads, [B, F + D], of the arguments of `forward`: image features, then text features."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.autocast):
            image = self.image_features(images) * has_image.unsqueeze(1)
            return torch.cat([image, self.text_features(tokens, mask)], dim=1)

    def score(self, features: Tensor) -> Tensor:
        """Return stars, float32 [B], not clamped, of features [B, F + D]."""
        standard = (features - self.feature_mean) / self.feature_scale
        with torch.autocast(features.device.type, torch.bfloat16, enabled=self.autocast):
            return cast(Tensor, self.head(standard).squeeze(1).float())

    def save_pretrained(self, folder: Path) -> None:
        """Write weights, configuration and tokenizer to `folder`, which appears whole or not at all."""
        with files.atomic_folder(folder) as partial:
            state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
            save_weights(partial / WEIGHTS_FILE, state)
            writers.write_json(partial / CONFIG_FILE, self.config)
            (partial / "tokenizer.json").write_text(self.tokenizer.to_str() + "\n", encoding="utf-8")
            settings = {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "model_max_length": self.config.max_tokens,
            }
            writers.write_json(partial / "tokenizer_config.json", settings)

    @classmethod
    def from_pretrained(cls, folder: Path) -> "EffiMini":
        """Rebuild the model saved in `folder`, without any hub, in evaluation mode.

        Raises:
            UserError: a file is absent or is not what `save_pretrained` writes.
        """
        if not (folder / CONFIG_FILE).exists():
            raise UserError(
                f"{folder} holds no {CONFIG_FILE}, so it is no saved model; run `dvc repro train` to have one"
            )
        try:
            config = msgspec.json.decode((folder / CONFIG_FILE).read_bytes(), type=Config)
        except msgspec.DecodeError as error:
            raise UserError(f"{folder / CONFIG_FILE} is not a model's configuration: {error}") from None
        image = _timm(config.image, config.size, pretrained=False)
        settings = dict(config.text)
        text = _random_text(AutoConfig.for_model(settings.pop("model_type"), **settings))
        model = cls(config, image, text, tokens.load_tokenizer(str(folder)))
        _load_weights(model, folder / WEIGHTS_FILE, optional=())
        return model.eval()


def build(params: Params, *, random: bool = False) -> EffiMini:
    """Build the model that `params` describe, with the weights they name.

    Args:
        params: the sections model, images, text, fetch and source are read.
        random: take a random start for both encoders whatever the parameters say, to look at the
            architecture.

    Raises:
        UserError: an encoder is unknown, cannot be had, does not fit its weights, or is too short for
            max_tokens.
    """
    image_from = "random" if random else params.model.image.weights
    image = _image_encoder(EncoderParams(name=params.model.image.name, weights=image_from), params.images.resolution)
    text_from = "random" if random else params.model.text.weights
    text = _text_encoder(EncoderParams(name=params.model.text.name, weights=text_from), params.model.attention_dropout)
    tokenizer = tokens.load_tokenizer(params.model.text.name)
    settings = cast(PretrainedConfig, text.config)
    positions, vocabulary = getattr(settings, "max_position_embeddings", None), settings.vocab_size
    if positions is not None and params.text.max_tokens > positions:
        raise UserError(
            f"text.max_tokens {params.text.max_tokens} is more than the {positions} positions of "
            f"{params.model.text.name}; lower it"
        )
    if tokenizer.get_vocab_size() > vocabulary:
        raise UserError(
            f"the tokenizer of {params.model.text.name} has {tokenizer.get_vocab_size()} pieces, its encoder "
            f"{vocabulary}; the two do not belong together, set model.text.name to a folder where they do"
        )
    stored = settings.to_dict()
    for key in ("_name_or_path", "transformers_version", "dtype", "architectures"):
        stored.pop(key, None)
    given = cast(dict[str, Any], image.pretrained_cfg)
    config = Config(
        source=params.source.kind,
        image=params.model.image.name,
        mean=tuple(given["mean"]),
        std=tuple(given["std"]),
        text=json.loads(json.dumps(stored)),
        pooling=params.model.pooling,
        hashed_ngrams=params.model.hashed_ngrams,
        hidden=params.model.hidden,
        dropout=params.model.dropout,
        size=params.images.resolution,
        fit=params.images.fit,
        quality=params.images.quality,
        max_pixels=params.fetch.max_pixels,
        fields=params.text.fields,
        max_tokens=params.text.max_tokens,
    )
    return EffiMini(config, image, text, tokenizer)


def save_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as a safetensors file that may be read by whom the umask lets read a new file.

    The library writes a temporary file, which it alone may read, and gives it the name.
    """
    path.unlink(missing_ok=True)
    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, metadata={"format": "pt"})
    path.chmod(mode & 0o777)


def image_width(image: nn.Module) -> int:
    """Return the number of features of a timm encoder without its classifier."""
    return int(getattr(image, "head_hidden_size", None) or cast(Any, image).num_features)


def _timm(name: str, size: int, *, pretrained: bool) -> nn.Module:
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 1)
        advice = f"did you mean {near[0]}?" if near else "`timm.list_models()` lists the names"
        raise UserError(f"model.image.name {name} is no timm model; {advice}")
    settings = timm.get_pretrained_cfg(name)
    fixed: dict[str, Any] = {"img_size": size} if settings is not None and settings.fixed_input_size else {}
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **fixed)
    except (OSError, RuntimeError, ValueError, httpx.HTTPError) as error:
        raise UserError(
            f"the weights of model.image.name {name} cannot be had ({first_sentence(error)}); connect to the "
            "network once, or set model.image.weights to a safetensors file or to random"
        ) from error


def _image_encoder(encoder: EncoderParams, size: int) -> nn.Module:
    image = _timm(encoder.name, size, pretrained=encoder.weights == "pretrained")
    if encoder.weights not in {"pretrained", "random"}:
        _load_weights(image, Path(encoder.weights), optional=())
    return image


def _text_encoder(encoder: EncoderParams, attention_dropout: float) -> nn.Module:
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        config = AutoConfig.from_pretrained(encoder.name)
        _set_attention_dropout(config, attention_dropout, encoder.name)
        if encoder.weights != "pretrained":
            text = _random_text(config)
        else:
            text, report = AutoModel.from_pretrained(
                encoder.name, config=config, output_loading_info=True, dtype=torch.float32
            )
            _refuse_missing(set(report["missing_keys"]), f"the weights of {encoder.name}", _UNUSED)
    except (OSError, RuntimeError, ValueError, SafetensorError, httpx.HTTPError) as error:
        raise UserError(
            f"model.text.name {encoder.name} cannot be loaded with weights {encoder.weights} "
            f"({first_sentence(error)}); correct the name, connect to the network once, or name a folder with the "
            "encoder"
        ) from error
    if encoder.weights not in {"pretrained", "random"}:
        _load_weights(text, Path(encoder.weights), optional=_UNUSED)
    return text


def _set_attention_dropout(config: PretrainedConfig, fraction: float, name: str) -> None:
    for key in ("attention_probs_dropout_prob", "attention_dropout"):  # BERT and its like; younger encoders
        if hasattr(config, key):
            setattr(config, key, fraction)
            return
    if fraction:
        raise UserError(f"model.attention_dropout is {fraction:g} and {name} has no attention dropout; set it to 0")


def _random_text(config: PretrainedConfig) -> nn.Module:
    text: nn.Module = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
    return text


def _load_weights(module: nn.Module, path: Path, optional: tuple[str, ...]) -> None:
    """Load a safetensors file into `module`: every tensor of the module must be there in its shape.

    Tensors the module has no place for (a classifier, a pretraining head) are left out and named in the log.
    """
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as safetensors ({first_sentence(error)}); correct the path") from error
    wanted = module.state_dict()
    _refuse_missing(wanted.keys() - found.keys(), str(path), optional)
    for name in sorted(wanted.keys() & found.keys()):
        if wanted[name].shape != found[name].shape:
            raise UserError(
                f"{path} holds {name} with shape {tuple(found[name].shape)} where the model has "
                f"{tuple(wanted[name].shape)}; the file belongs to another model"
            )
    if left_out := sorted(found.keys() - wanted.keys()):
        log.info(
            "%s: %d tensors have no place in the model and are left out: %s",
            path,
            len(left_out),
            left_out[:4],
        )
    module.load_state_dict({name: found.get(name, tensor) for name, tensor in wanted.items()})


def _refuse_missing(missing: set[str], where: str, optional: tuple[str, ...]) -> None:
    needed = sorted(name for name in missing if not name.startswith(optional or ("\0",)))
    if needed:
        raise UserError(
            f"{where} lack {len(needed)} tensors of the model, the first is {needed[0]}; "
            "they would start from random values, so take weights that belong to the encoder"
        )
    if missing:
        log.info("%s lack the unused %s, which start from random values", where, sorted(missing))
