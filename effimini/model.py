"""The network: an image encoder, a text encoder, and a small head on their concatenated features.

Input: parameters (`build`), or a folder written by `EffiMini.save_pretrained` (`EffiMini.from_pretrained`). Output: a
module that maps a batch of samples to stars. Guarantees: weights that cannot be loaded are an error, never silently
replaced by random ones; a saved model is rebuilt offline, with the same outputs and the tokenizer of its training.
"""

import difflib
import json
import logging
from collections.abc import Mapping
from contextlib import nullcontext
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

from effimini import precheck
from effimini.calibration import Interval, Line, apply_line
from effimini.closed_form import COLUMNS_WEIGHT, IMAGE_WEIGHT, LAST_WEIGHT, MIDDLE_WEIGHT, ClosedForm
from effimini.kernel import Kernel
from effimini.model_folder import model_folder
from effimini.precheck import CONFIG_FILE
from effimini.words import Words
from prep import hub
from prep.core import files, writers
from prep.core.errors import UserError, first_sentence
from prep.core.formats import check_format
from prep.core.params import EncoderParams, Params
from shards import tokens

log = logging.getLogger(__name__)

WEIGHTS_FILE = "model.safetensors"
FORMAT = 1  # of a model folder; increment it when an older reader would misread one
NEEDS = "0.1.0"  # the first version of EffiMini that reads it
_READABLE = (FORMAT,)
FILES = (CONFIG_FILE, WEIGHTS_FILE, "tokenizer.json", "tokenizer_config.json")  # of a saved model
# BERT's pooler is not used, and weights of sentence encoders may lack it; it counts as parameters.
_UNUSED = ("pooler.",)
# Tensors of models that were saved before the closed form had several blocks.
_RENAMED = {
    "ngrams.weight": "closed_form.terms.ngrams.weight",
    "ngrams.bias": "closed_form.bias",
    "ngrams.fraction": "closed_form.fraction",
}


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of config.json: everything needed to rebuild a trained model and to prepare its input."""

    format: int = FORMAT
    needs: str = NEEDS  # the first version of EffiMini that reads it
    source: str  # source.kind of the training data: demo, mirror, hub
    image: str  # timm's name of the architecture
    mean: tuple[float, ...]  # normalization of the image encoder's input, by channel, in [0, 1]
    std: tuple[float, ...]
    text: dict[str, Any]  # transformers' configuration of the text encoder
    pooling: str = "first"
    hashed_ngrams: int = 0
    first_words: int = 0  # buckets of first words of titles
    kernel: int = 0  # landmarks
    tabular: tuple[str, ...] = ()  # columns that the kernel compares too, in order
    hidden: tuple[int, ...]
    dropout: float
    size: int  # px, height and width
    fit: str
    resample: str = "bicubic"
    request: int = 0  # px, longest side to which the host, or `predict`, reduces a larger image first; 0: none
    quality: int  # JPEG; 0: the images are not encoded
    max_pixels: int
    fields: tuple[str, ...]  # text fields, in order
    max_tokens: int
    calibration: Line | None = None  # applied in evaluation mode; None: the scores are the stars
    interval: Interval | None = None


class EffiMini(nn.Module):
    """Predicts stars from concatenated image and text features with a head of linear layers.

    If configured, a closed form (hashed terms of the text, a kernel on features of several layers) contributes a
    fraction of the score, and a line fitted on the validation split turns the score into stars; in training mode only
    the network is used.

    Args:
        config: the configuration.
        image: the image encoder; maps normalized images [B, 3, H, W] to features [B, F].
        text: the text encoder, from transformers.
        tokenizer: the tokenizer of the text encoder; saved with the weights.

    Attributes:
        autocast: whether matrix products and convolutions run in bfloat16; the stars are float32.
        feature_mean: subtracted from the features before the head, float32 [F + D]; 0 unless the encoders are frozen.
        feature_scale: divisor of the features after that, float32 [F + D]; 1 unless the encoders are frozen.
        layers: the L layers of the text encoder that the kernel reads; none without one.
        kernel_width: number of encoder features that the kernel compares, L * D + F.
    """

    text: Any  # no common type of transformers' models has the attributes that we use
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
            pooler.requires_grad_(requires_grad=False)  # it gets no gradient, which DDP must know in advance
        hidden_size = int(self.text.config.hidden_size)
        width = features = image_width(image) + hidden_size
        layers: list[nn.Module] = []
        for hidden in config.hidden:
            layers += [nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Dropout(config.dropout)]
            width = hidden
        self.head = nn.Sequential(*layers, nn.Linear(width, 1))
        self.layers: tuple[int, ...] = ()
        if config.kernel:
            depth = int(self.text.config.num_hidden_layers)
            self.layers = (depth // 2, depth)
        self.kernel_width = len(self.layers) * hidden_size + image_width(image)
        self.closed_form = None
        if config.hashed_ngrams or config.kernel:
            groups = [
                (hidden_size, MIDDLE_WEIGHT),
                (hidden_size, LAST_WEIGHT),
                (image_width(image), IMAGE_WEIGHT),
                *([(2 * len(config.tabular), COLUMNS_WEIGHT)] if config.tabular else []),
            ]
            self.closed_form = ClosedForm(
                config.hashed_ngrams,
                config.first_words,
                Words(tokenizer, int(self.text.config.vocab_size), config.max_tokens),
                Kernel(config.kernel, groups, len(config.tabular)) if config.kernel else None,
            )
        self.register_buffer("feature_mean", torch.zeros(features))
        self.register_buffer("feature_scale", torch.ones(features))
        self.register_buffer("mean", torch.tensor(config.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, -1, 1, 1), persistent=False)

    def image_features(self, images: Tensor) -> Tensor:
        """Normalize images, uint8 [B, 3, H, W], and return their features, float32 [B, F]."""
        return cast(Tensor, self.image((images.float() / 255 - self.mean) / self.std))

    def text_features(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return the last hidden state of the first token, or the mean over all tokens, float32 [B, D].

        With a kernel, the means over all tokens of the L layers that it reads come first: [B, L * D + D].

        Args:
            tokens: int64 [B, T].
            mask: int64 [B, T], 1 at tokens and 0 at padding.
        """
        found = self.text(input_ids=tokens, attention_mask=mask, output_hidden_states=bool(self.layers))
        states = cast(Tensor, found.last_hidden_state)
        layers = [_mean(found.hidden_states[layer], mask) for layer in self.layers]
        return torch.cat([*layers, states[:, 0] if self.config.pooling == "first" else _mean(states, mask)], dim=1)

    def forward(
        self, images: Tensor, tokens: Tensor, mask: Tensor, has_image: Tensor, tabular: Tensor | None = None
    ) -> Tensor:
        """Return unclamped stars, float32 [B].

        Args:
            images: uint8 [B, 3, H, W].
            tokens: int64 [B, T].
            mask: int64 [B, T], 1 at tokens and 0 at padding.
            has_image: bool [B]; the image features of samples without an image are set to 0.
            tabular: the columns `config.tabular`, float32 [B, C], NaN where missing; None: all are.
        """
        return self.stars(self.features(images, tokens, mask, has_image), tokens, mask, tabular)

    def stars(self, features: Tensor, tokens: Tensor, mask: Tensor, tabular: Tensor | None = None) -> Tensor:
        """Return unclamped stars, float32 [B], of what `features` returned; other arguments as `forward`."""
        stars = self.score(features)
        if self.training:
            return stars
        if self.closed_form is not None:
            closed_form: Tensor = self.closed_form(tokens, mask, features[:, : self.kernel_width], tabular)
            fraction = self.closed_form.fraction
            stars = fraction * closed_form + (1 - fraction) * stars  # exactly one of the two if the fraction is 0 or 1
        return cast(Tensor, apply_line(self.config.calibration, stars))

    def features(self, images: Tensor, tokens: Tensor, mask: Tensor, has_image: Tensor) -> Tensor:
        """Return the input of the head, [B, F + D]: image features, then text features; arguments as `forward`.

        With a kernel, the means of the L layers that it reads come first, [B, L * D + F + D]; its inputs are the first
        L * D + F columns, and those of the head the last F + D.
        """
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.autocast):
            image = self.image_features(images) * has_image.unsqueeze(1)
            text = self.text_features(tokens, mask)
            width = text.shape[1] // (len(self.layers) + 1)
            return torch.cat([text[:, :-width], image, text[:, -width:]], dim=1)

    def score(self, features: Tensor) -> Tensor:
        """Return the head's unclamped stars, float32 [B], of features, of which the last F + D columns are used."""
        standard = (features[:, -len(self.feature_mean) :] - self.feature_mean) / self.feature_scale
        with torch.autocast(features.device.type, torch.bfloat16, enabled=self.autocast):
            return cast(Tensor, self.head(standard).squeeze(1).float())

    def save_pretrained(self, folder: Path) -> None:
        """Write weights, configuration and tokenizer to `folder`, atomically."""
        with files.atomic_folder(folder) as partial:
            state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
            save_weights(partial / WEIGHTS_FILE, state)
            kernel = self.closed_form.kernel if self.closed_form is not None else None
            landmarks = len(kernel.landmarks) if kernel is not None else 0  # fewer if there are fewer training samples
            config = msgspec.structs.replace(self.config, kernel=landmarks, format=FORMAT, needs=NEEDS)
            writers.write_json(partial / CONFIG_FILE, config)
            (partial / "tokenizer.json").write_text(self.tokenizer.to_str() + "\n", encoding="utf-8")
            settings = {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "model_max_length": self.config.max_tokens,
            }
            writers.write_json(partial / "tokenizer_config.json", settings)

    @classmethod
    def from_pretrained(cls, folder: str | Path, revision: str | None = None) -> "EffiMini":
        """Load a saved model, in evaluation mode.

        Args:
            folder: a folder, which is read without network access; or OWNER/NAME, a model on the hub.
            revision: a branch, tag or commit of the model on the hub; None is its main branch.

        Raises:
            UserError: a file is missing, or was not written by `save_pretrained`; or as in `model_folder`.
        """
        folder = model_folder(folder, revision, FILES)
        precheck.saved_model(folder)
        config = read_config(folder / CONFIG_FILE, "a model configuration", "run `dvc checkout` or train again")
        image = _timm(config.image, config.size, pretrained=False)
        settings = dict(config.text)
        text = _random_text(AutoConfig.for_model(settings.pop("model_type"), **settings))
        tokenizer = tokens.load_tokenizer(str(folder))
        tokens.check_vocabulary(tokenizer, cast(PretrainedConfig, text.config).vocab_size, str(folder))
        model = cls(config, image, text, tokenizer)
        _load_weights(model, folder / WEIGHTS_FILE, optional=())
        return model.eval()


def read_config(path: Path, what: str, otherwise: str) -> Config:
    """Read the config.json of a saved or an exported model.

    Args:
        path: the file.
        what: what it should be, for the message.
        otherwise: what to do if it cannot be read, for the message.

    Raises:
        UserError: it cannot be read, or has a format that this version does not read.
    """
    try:
        content = path.read_bytes()
        check_format(content, _READABLE, str(path), otherwise)
        return msgspec.json.decode(content, type=Config)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not {what} ({error}); {otherwise}") from None


def build(params: Params, *, random: bool = False) -> EffiMini:
    """Build the model that `params` describe, with the configured weights.

    Args:
        params: the parameters; the sections model, images, text, fetch and source are read.
        random: initialize both encoders randomly and ignore the configured weights, to inspect the architecture.

    Raises:
        UserError: an encoder is unknown, cannot be loaded, does not match its weights, or has fewer positions than
            max_tokens.
    """
    image_from, text_from = (
        "random" if random else encoder.weights for encoder in (params.model.image, params.model.text)
    )
    asks_hub = image_from == "pretrained" or not Path(tokens.encoder_source(params.model.text.name)).is_dir()
    with hub.offline_unless_reachable() if asks_hub else nullcontext():
        image = _image_encoder(
            EncoderParams(name=params.model.image.name, weights=image_from),
            params.images.resolution,
            params.model.drop_path,
        )
        text = _text_encoder(
            EncoderParams(name=params.model.text.name, weights=text_from), params.model.attention_dropout
        )
    tokenizer = tokens.load_tokenizer(params.model.text.name)
    settings = cast(PretrainedConfig, text.config)
    positions, vocabulary = getattr(settings, "max_position_embeddings", None), settings.vocab_size
    if positions is not None and params.text.max_tokens > positions:
        raise UserError(
            f"text.max_tokens {params.text.max_tokens} is more than the {positions} positions of "
            f"{params.model.text.name}; lower it"
        )
    tokens.check_vocabulary(tokenizer, vocabulary, params.model.text.name)
    text_config = settings.to_dict()
    for key in ("_name_or_path", "transformers_version", "dtype", "architectures"):
        text_config.pop(key, None)
    image_config = cast(dict[str, Any], image.pretrained_cfg)
    config = Config(
        source=params.source.kind,
        image=params.model.image.name,
        mean=tuple(image_config["mean"]),
        std=tuple(image_config["std"]),
        text=json.loads(json.dumps(text_config)),
        pooling=params.model.pooling,
        hashed_ngrams=params.model.hashed_ngrams,
        first_words=params.model.hashed_ngrams,
        kernel=params.model.kernel,
        tabular=params.model.tabular,
        hidden=params.model.hidden,
        dropout=params.model.dropout,
        size=params.images.resolution,
        fit=params.images.fit,
        resample=params.images.resample,
        request=params.images.request,
        quality=params.images.quality,
        max_pixels=params.fetch.max_pixels,
        fields=params.text.fields,
        max_tokens=params.text.max_tokens,
    )
    return EffiMini(config, image, text, tokenizer)


def save_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a safetensors file with the permissions of a new file under the current umask.

    The library writes a temporary file that only its owner may read, and renames it.
    """
    path.unlink(missing_ok=True)
    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, metadata={"format": "pt"})
    path.chmod(mode & 0o777)


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of hidden states [B, T, D] over the tokens, [B, D]."""
    weights = mask.unsqueeze(2).to(states.dtype)
    return (states * weights).sum(dim=1) / weights.sum(dim=1)


def image_width(image: nn.Module) -> int:
    """Return the number of features of a timm encoder without its classifier."""
    return int(getattr(image, "head_hidden_size", None) or cast(Any, image).num_features)


def _timm(name: str, size: int, *, pretrained: bool, drop_path: float = 0.0) -> nn.Module:
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 1)
        hint = f"did you mean {near[0]}?" if near else "`timm.list_models()` lists the names"
        raise UserError(f"model.image.name {name} is not a timm model; {hint}")
    settings = timm.get_pretrained_cfg(name)
    options: dict[str, Any] = {"img_size": size} if settings is not None and settings.fixed_input_size else {}
    if drop_path:
        options["drop_path_rate"] = drop_path
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    except TypeError as error:
        raise UserError(f"model.drop_path is {drop_path:g} but {name} has no stochastic depth; set it to 0") from error
    except (OSError, RuntimeError, ValueError, httpx.HTTPError) as error:
        raise UserError(
            f"the weights of model.image.name {name} cannot be fetched ({first_sentence(error)}); connect to the "
            "network once, or set model.image.weights to a safetensors file or to random"
        ) from error


def _image_encoder(encoder: EncoderParams, size: int, drop_path: float) -> nn.Module:
    image = _timm(encoder.name, size, pretrained=encoder.weights == "pretrained", drop_path=drop_path)
    if encoder.weights not in {"pretrained", "random"}:
        _load_weights(image, Path(encoder.weights), optional=())
    return image


def _text_encoder(encoder: EncoderParams, attention_dropout: float) -> nn.Module:
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    source = tokens.encoder_source(encoder.name)
    try:
        config = AutoConfig.from_pretrained(source)
        _set_attention_dropout(config, attention_dropout, encoder.name)
        if encoder.weights != "pretrained":
            text = _random_text(config)
        else:
            text, report = AutoModel.from_pretrained(
                source, config=config, output_loading_info=True, dtype=torch.float32
            )
            _refuse_missing(set(report["missing_keys"]), f"the weights of {encoder.name}", _UNUSED)
    except (OSError, RuntimeError, ValueError, SafetensorError, httpx.HTTPError) as error:
        raise UserError(
            f"model.text.name {encoder.name} cannot be loaded with weights {encoder.weights} "
            f"({first_sentence(error)}); correct the name, connect to the network once, or set it to a folder that "
            "contains the encoder"
        ) from error
    if encoder.weights not in {"pretrained", "random"}:
        _load_weights(text, Path(encoder.weights), optional=_UNUSED)
    return text


def _set_attention_dropout(config: PretrainedConfig, fraction: float, name: str) -> None:
    for key in ("attention_probs_dropout_prob", "attention_dropout"):  # BERT-like encoders; newer encoders
        if hasattr(config, key):
            setattr(config, key, fraction)
            return
    if fraction:
        raise UserError(f"model.attention_dropout is {fraction:g} but {name} has no attention dropout; set it to 0")


def _random_text(config: PretrainedConfig) -> nn.Module:
    text: nn.Module = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
    return text


def _load_weights(module: nn.Module, path: Path, optional: tuple[str, ...]) -> None:
    """Load a safetensors file into `module`; it must contain every tensor of the module, in the same shape.

    Tensors that the module does not have (a classifier, a pretraining head) are ignored and logged.

    Args:
        module: the module to load into.
        path: the safetensors file.
        optional: prefixes of the tensors that may be missing.
    """
    try:
        found = {_RENAMED.get(name, name): tensor for name, tensor in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as safetensors ({first_sentence(error)}); correct the path") from error
    wanted = module.state_dict()
    _refuse_missing(wanted.keys() - found.keys(), str(path), optional)
    for name in sorted(wanted.keys() & found.keys()):
        if wanted[name].shape != found[name].shape:
            raise UserError(
                f"{path} contains {name} with shape {tuple(found[name].shape)} but the model has shape "
                f"{tuple(wanted[name].shape)}; use the weights of this model"
            )
    if unexpected := sorted(found.keys() - wanted.keys()):
        log.info(
            "%s: ignored %d tensors that the model does not have: %s",
            path,
            len(unexpected),
            unexpected[:4],
        )
    module.load_state_dict({name: found.get(name, tensor) for name, tensor in wanted.items()})


def _refuse_missing(missing: set[str], where: str, optional: tuple[str, ...]) -> None:
    needed = sorted(name for name in missing if not name.startswith(optional or ("\0",)))
    if needed:
        raise UserError(
            f"{len(needed)} tensors of the model are missing from {where}, first {needed[0]}, and would be initialized "
            "randomly; use weights that belong to the encoder"
        )
    if missing:
        log.info("unused tensors are missing from %s and are initialized randomly: %s", where, sorted(missing))
