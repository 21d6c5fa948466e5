"""A saved model as an ONNX file, which onnxruntime runs without torch's network.

In: a folder written by `EffiMini.save_pretrained`. Out: a folder with ``model.onnx`` and the model's own configuration
and tokenizer, which `effimini predict` reads as it reads the model's. Guaranteed: the graph's scores are the network's
within `TOLERANCE` on batches and texts of several sizes, with and without images, or nothing is written; the folder
appears whole.
"""

import logging
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from effimini import cost
from effimini.model import CONFIG_FILE, EffiMini
from prep.core import files
from prep.core.errors import UserError, first_sentence

log = logging.getLogger(__name__)

GRAPH = "model.onnx"
BESIDE = (CONFIG_FILE, "tokenizer.json", "tokenizer_config.json")
TOLERANCE = 1e-3  # stars; a score is written with two decimals, and rounding makes 1e-6 to 1e-5
CHECKED = ((1, 1), (1, None), (3, 7), (8, None))  # batches and tokens compared; None: as many as the model reads
# The graph's inputs: images of the model's size, any batch, any number of tokens that the model reads.
INPUTS = {"images": "tensor(uint8)", "tokens": "tensor(int64)", "mask": "tensor(int64)", "has_image": "tensor(bool)"}
OUTPUT = "stars"  # float32 [B], not clamped

Array = npt.NDArray[Any]


class Graph:
    """An ONNX file that `export` made, opened to be run on the CPU.

    Args:
        source: the file, or its bytes.
        size: height and width of the images it is to be given, px.

    Attributes:
        parameters: of the network it was made from.
        flops: of one sample, as `metrics.flops` counts them.

    Raises:
        UserError: onnxruntime is not installed, or the file is no such graph.
    """

    def __init__(self, source: Path | bytes, size: int) -> None:
        where = source if isinstance(source, Path) else GRAPH
        runtime = package("onnxruntime", f"it runs {where}")
        options = runtime.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised
        options.intra_op_num_threads = torch.get_num_threads()  # as OMP_NUM_THREADS says
        try:
            given = str(source) if isinstance(source, Path) else source
            self._session = runtime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own have no common type
            raise UserError(
                f"{where} cannot be read as ONNX ({first_sentence(error)}); run `effimini export` again"
            ) from error
        inputs = {found.name: found.type for found in self._session.get_inputs()}
        outputs = [found.name for found in self._session.get_outputs()]
        about = self._session.get_modelmeta().custom_metadata_map
        if inputs != INPUTS or outputs != [OUTPUT] or not {"parameters", "flops"} <= about.keys():
            raise UserError(
                f"{where} is a graph from {', '.join(inputs)} to {', '.join(outputs)} that `effimini export` has not "
                "made; run it on a model folder"
            )
        if (found := self._session.get_inputs()[0].shape[1:]) != [3, size, size]:
            raise UserError(
                f"{where} reads images of shape {found} where {CONFIG_FILE} says {size} px; they belong to two models, "
                "so run `effimini export` again"
            )
        self.parameters, self.flops = int(about["parameters"]), int(about["flops"])

    def score(self, *inputs: Array) -> npt.NDArray[np.float32]:
        """Return stars, float32 [B], not clamped, of the arguments of `EffiMini.forward` as arrays."""
        (stars,) = self._session.run([OUTPUT], dict(zip(INPUTS, inputs, strict=True)))
        return np.asarray(stars, np.float32)


def export(model: Path, out: Path) -> None:
    """Write the model saved in the folder `model` as ONNX to the folder `out`.

    Args:
        model: a folder written by `EffiMini.save_pretrained`.
        out: is replaced if it is an earlier export.

    Raises:
        UserError: a package is absent, the model cannot be read or be expressed in ONNX, the two score differently,
            or `out` is something else; nothing is written.
    """
    for name in ("onnx", "onnxruntime", "onnxscript"):
        package(name, "`effimini export` uses it")
    if out.exists() and not (out / GRAPH).exists():  # it would be replaced, with all it holds
        raise UserError(f"{out} exists and is no exported model; give --output a new folder")
    if out.resolve() == model.resolve():
        raise UserError(f"{out} is the model's own folder, which would be replaced; give --output a new one")
    network = EffiMini.from_pretrained(model)
    if absent := [name for name in BESIDE if not (model / name).exists()]:
        raise UserError(f"{model} lacks {', '.join(absent)}; take the folder of a trained model, as models/best is")
    graph = _graph(network, model)
    difference = _score_difference(network, Graph(graph, network.config.size))
    if not difference <= TOLERANCE:  # nor NaN
        raise UserError(
            f"{model} scores {difference:.2g} stars apart in torch and in onnxruntime, over the tolerance of "
            f"{TOLERANCE:g}; use the model folder itself, and report it with the installed versions of both"
        )
    with files.atomic_folder(out) as partial:
        (partial / GRAPH).write_bytes(graph)
        for name in BESIDE:
            (partial / name).write_bytes((model / name).read_bytes())
    log.info("%s: %.1f MB, at most %.1g stars from torch's scores", out / GRAPH, len(graph) / 1e6, difference)


def package(name: str, purpose: str) -> Any:
    """Import a package of the extra `onnx`.

    Raises:
        UserError: it is not installed.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError:
        raise UserError(f"{name} is not installed and {purpose}; run `pip install effimini[onnx]`") from None


def _graph(network: EffiMini, model: Path) -> bytes:
    """Return the network as the bytes of an ONNX file, its parameters and FLOPs in the file's metadata."""
    for chatty in ("onnxscript", "onnx_ir"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    config = network.config
    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens", max=config.max_tokens)
    shapes = {"images": {0: batch}, "tokens": {0: batch, 1: tokens}, "mask": {0: batch, 1: tokens}}
    try:
        with warnings.catch_warnings(action="ignore"):  # torch's about its own insides; the scores are compared
            program = torch.onnx.export(
                network,
                tuple(torch.from_numpy(array) for array in _example_inputs(network, 2, config.max_tokens)),
                input_names=list(INPUTS),
                output_names=[OUTPUT],
                dynamic_shapes=shapes | {"has_image": {0: batch}},
                dynamo=True,  # it refuses a size that the network fixes, where tracing would keep the example's
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise UserError(
            f"{model} cannot be expressed in ONNX ({first_sentence(error)}); use the model folder itself, or train "
            "with other encoders"
        ) from error
    assert program is not None  # it is without dynamo only
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # traces of torch's insides, other ones in each run
    costs = cost.costs(network)
    program.model.metadata_props.update({name: str(getattr(costs, name)) for name in ("parameters", "flops")})
    return bytes(program.model_proto.SerializeToString())


def _example_inputs(network: EffiMini, rows: int, tokens: int) -> tuple[Array, Array, Array, Array]:
    """Return random inputs of `rows` samples, every second without an image, with texts of different lengths.

    The images are faint noise about grey: full noise is so far from any picture that a network may blow the rounding of
    float32 up to hundredths of a star, in either library.
    """
    random = np.random.default_rng(rows * 1000 + tokens)
    size, pieces = network.config.size, network.tokenizer.get_vocab_size()
    images = random.integers(96, 160, (rows, 3, size, size), np.uint8)
    ids = random.integers(0, pieces, (rows, tokens), np.int64)
    lengths = random.integers(1, tokens, rows, endpoint=True)
    lengths[-1] = tokens
    mask = (np.arange(tokens) < lengths[:, None]).astype(np.int64)
    return images, ids, mask, np.arange(rows) % 2 == 0


@torch.inference_mode()
def _score_difference(network: EffiMini, graph: Graph) -> float:
    """Return the largest difference of the two, stars."""
    found = []
    for rows, tokens in CHECKED:
        inputs = _example_inputs(network, rows, min(tokens or network.config.max_tokens, network.config.max_tokens))
        stars = network(*(torch.from_numpy(array) for array in inputs)).numpy()
        found.append(np.abs(stars - graph.score(*inputs)))
    return float(np.concatenate(found).max())
