"""Export of a saved model to ONNX, which onnxruntime runs without torch's network.

Input: a folder written by `EffiMini.save_pretrained`. Output: a folder with ``model.onnx`` and copies of the model's
configuration and tokenizer, which `effimini predict` reads like a model folder. Guarantees: the scores of the ONNX
graph are within `TOLERANCE` of torch's for several batch sizes and text lengths, with and without images, or nothing is
written; the folder is written atomically.
"""

import logging
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from effimini import cost, precheck
from effimini.metrics import Array
from effimini.model import EffiMini
from effimini.precheck import CONFIG_FILE, GRAPH
from prep.core import files
from prep.core.errors import UserError, first_sentence
from prep.core.tables.shards import TABULAR

log = logging.getLogger(__name__)

BESIDE = (CONFIG_FILE, "tokenizer.json", "tokenizer_config.json")
TOLERANCE = 1e-3  # stars; scores are written with two decimals, and rounding differences are 1e-6 to 1e-5
CHECKED = ((1, 1), (1, None), (3, 7), (8, None))  # batch sizes and numbers of tokens compared; None is max_tokens
# The inputs of the graph: fixed image size, dynamic batch size and number of tokens. A model with tabular columns has
# `TABULAR` too, float32 [B, C].
INPUTS = {"images": "tensor(uint8)", "tokens": "tensor(int64)", "mask": "tensor(int64)", "has_image": "tensor(bool)"}
OUTPUT = "stars"  # float32 [B], not clamped


class Exported(msgspec.Struct, frozen=True):
    """An exported model: what `effimini export --json` prints."""

    model: str  # the folder
    bytes: int  # of the graph
    difference: float  # largest one of its scores from torch's, stars


class Graph:
    """An ONNX file written by `export`, loaded for inference on the CPU.

    Args:
        source: the file, or its bytes.
        size: height and width of the input images, px.

    Attributes:
        parameters: number of parameters of the exported model.
        flops: FLOPs of one sample, as counted by `effimini.cost.flops`.

    Raises:
        UserError: onnxruntime is not installed, or the file was not written by `export`.
    """

    def __init__(self, source: Path | bytes, size: int) -> None:
        where = source if isinstance(source, Path) else GRAPH
        runtime = package("onnxruntime", f"is needed to run {where}")
        options = runtime.SessionOptions()
        options.log_severity_level = 4  # log only fatal errors; others are raised
        options.intra_op_num_threads = torch.get_num_threads()  # follows OMP_NUM_THREADS
        try:
            model = str(source) if isinstance(source, Path) else source
            self._session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no common base class
            raise UserError(
                f"{where} cannot be read as ONNX ({first_sentence(error)}); run `effimini export` again"
            ) from error
        inputs = {value.name: value.type for value in self._session.get_inputs()}
        outputs = [value.name for value in self._session.get_outputs()]
        about = self._session.get_modelmeta().custom_metadata_map
        columns = {TABULAR: "tensor(float)"} if TABULAR in inputs else {}
        if inputs != INPUTS | columns or outputs != [OUTPUT] or not {"parameters", "flops"} <= about.keys():
            raise UserError(
                f"{where} has inputs {', '.join(inputs)} and outputs {', '.join(outputs)}, so it was not written by "
                "`effimini export`; run it on a model folder"
            )
        if (found := self._session.get_inputs()[0].shape[1:]) != [3, size, size]:
            raise UserError(
                f"{where} expects images of shape {found} but {CONFIG_FILE} says {size} px, so the two belong to "
                "different models; run `effimini export` again"
            )
        self._inputs = list(inputs)
        self.parameters, self.flops = int(about["parameters"]), int(about["flops"])

    def score(self, *inputs: Array) -> npt.NDArray[np.float32]:
        """Return unclamped stars, float32 [B]; the inputs are the arguments of `EffiMini.forward` as arrays."""
        given = dict(zip((*INPUTS, TABULAR), inputs, strict=False))
        (stars,) = self._session.run([OUTPUT], {name: given[name] for name in self._inputs})
        return np.asarray(stars, np.float32)


def export(model: Path, out: Path) -> Exported:
    """Export the model in the folder `model` to ONNX in the folder `out`.

    Args:
        model: a folder written by `EffiMini.save_pretrained`.
        out: the folder to write; replaced if it is an earlier export.

    Raises:
        UserError: a package is not installed, the model cannot be read or exported, the scores of the two differ, or
            `out` exists and is not an export; nothing is written.
    """
    for name in ("onnx", "onnxruntime", "onnxscript"):
        package(name, "is needed by `effimini export`")
    precheck.to_export(model, out)
    network = EffiMini.from_pretrained(model)
    if missing := [name for name in BESIDE if not (model / name).exists()]:
        raise UserError(
            f"{model} has no {', '.join(missing)}; set --model to the folder of a trained model, such as models/best"
        )
    graph = _graph(network, model)
    difference = _score_difference(network, Graph(graph, network.config.size))
    if not difference <= TOLERANCE:  # also true for NaN
        raise UserError(
            f"the scores of {model} in torch and in onnxruntime differ by {difference:.2g} stars, over the tolerance "
            f"of {TOLERANCE:g}; use the model folder itself, and report a bug with the installed versions of both"
        )
    with files.atomic_folder(out) as partial:
        (partial / GRAPH).write_bytes(graph)
        for name in BESIDE:
            (partial / name).write_bytes((model / name).read_bytes())
    log.info("%s: %.1f MB, scores within %.1g stars of torch's", out / GRAPH, len(graph) / 1e6, difference)
    return Exported(str(out), len(graph), difference)


def package(name: str, purpose: str) -> Any:
    """Import a package of the extra `onnx`.

    Args:
        name: the package.
        purpose: what it is needed for, as the predicate of the error message.

    Raises:
        UserError: it is not installed.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError:
        raise UserError(f"{name} is not installed and {purpose}; run `pip install effimini[onnx]`") from None


def _graph(network: EffiMini, model: Path) -> bytes:
    """Return the network as the bytes of an ONNX file, with its parameters and FLOPs as metadata."""
    for library in ("onnxscript", "onnx_ir"):
        logging.getLogger(library).setLevel(logging.WARNING)
    config = network.config
    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens", max=config.max_tokens)
    shapes = {"images": {0: batch}, "tokens": {0: batch, 1: tokens}, "mask": {0: batch, 1: tokens}}
    shapes_of_columns = {TABULAR: {0: batch}} if config.tabular else {}
    try:
        with warnings.catch_warnings(action="ignore"):  # about torch internals; the scores are compared below
            program = torch.onnx.export(
                network,
                tuple(torch.from_numpy(array) for array in _example_inputs(network, 2, config.max_tokens)),
                input_names=[*INPUTS, *shapes_of_columns],
                output_names=[OUTPUT],
                dynamic_shapes=shapes | {"has_image": {0: batch}} | shapes_of_columns,
                dynamo=True,  # fails if the network fixes a dynamic size; tracing would keep the example's
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise UserError(
            f"{model} cannot be exported to ONNX ({first_sentence(error)}); use the model folder itself, or train with "
            "other encoders"
        ) from error
    assert program is not None  # it is None only without dynamo
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces, which differ between runs
    costs = cost.costs(network)
    program.model.metadata_props.update({name: str(getattr(costs, name)) for name in ("parameters", "flops")})
    return bytes(program.model_proto.SerializeToString())


def _example_inputs(network: EffiMini, rows: int, tokens: int) -> tuple[Array, ...]:
    """Return random inputs of `rows` samples with texts of different lengths, every second one without an image.

    The images are low-contrast noise around grey: full-range noise is so unlike a photo that the network may amplify
    float32 rounding to hundredths of a star, in either library.
    """
    random = np.random.default_rng(rows * 1000 + tokens)
    size, vocabulary = network.config.size, network.tokenizer.get_vocab_size()
    images = random.integers(96, 160, (rows, 3, size, size), np.uint8)
    ids = random.integers(0, vocabulary, (rows, tokens), np.int64)
    lengths = random.integers(1, tokens, rows, endpoint=True)
    lengths[-1] = tokens
    mask = (np.arange(tokens) < lengths[:, None]).astype(np.int64)
    if not network.config.tabular:
        return images, ids, mask, np.arange(rows) % 2 == 0
    columns = random.lognormal(size=(rows, len(network.config.tabular))).astype(np.float32)
    columns[random.random(columns.shape) < 0.2] = np.nan
    return images, ids, mask, np.arange(rows) % 2 == 0, columns


@torch.inference_mode()
def _score_difference(network: EffiMini, graph: Graph) -> float:
    """Return the largest difference between the scores of the two, stars."""
    differences = []
    for rows, tokens in CHECKED:
        inputs = _example_inputs(network, rows, min(tokens or network.config.max_tokens, network.config.max_tokens))
        stars = network(*(torch.from_numpy(array) for array in inputs)).numpy()
        differences.append(np.abs(stars - graph.score(*inputs)))
    return float(np.concatenate(differences).max())
