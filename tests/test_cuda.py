"""What holds only on a GPU. `make device-check` runs these tests where there is one."""

from pathlib import Path

import pytest
import torch

import effimini.torchvision_shim  # noqa: F401 -- must come before what imports torchvision

# isort: split
from benchmarks import device_sides as sides
from benchmarks.device_check import SIZES
from effimini.checkpoint import newest_checkpoint
from effimini.distributed import Distributed
from effimini.inference import to_device
from effimini.model import EffiMini
from effimini.predict import load
from effimini.train import Trainer
from prep.core.errors import UserError
from prep.core.params import Params

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]
SIZE, BATCH = SIZES["tiny"], 4
CPU = Distributed(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards."""
    made = tmp_path_factory.mktemp("device")
    sides.make_shards(SIZE, made)
    return made


def params(folder: Path, precision: str = "fp32") -> Params:
    return sides.parameters(SIZE, folder, precision, BATCH, sides.FEW, dropout=0.0, epochs=1)


def trainer_of(folder: Path, precision: str = "fp32") -> Trainer:
    trainer = sides.Interrupted.of(params(folder, precision), folder / "shards")
    trainer.network.train()
    return trainer


def test_batches_are_in_pinned_memory(folder: Path) -> None:
    batch = next(iter(trainer_of(folder).loader))
    tensors = [value for value in batch if isinstance(value, torch.Tensor) and value.numel()]
    assert len(tensors) > 5
    assert all(tensor.is_pinned() for tensor in tensors)


def test_a_step_has_the_loss_and_the_gradient_of_a_step_on_the_cpu(folder: Path) -> None:
    on_gpu, on_cpu = trainer_of(folder), Trainer(params(folder), folder / "shards", None, CPU)
    on_cpu.network.train()
    on_cpu.model.load_state_dict(on_gpu.model.state_dict())
    batch = next(iter(on_gpu.loader))
    ours, expected = on_gpu.step(0, 0, batch), on_cpu.step(0, 0, batch)
    assert ours.norm.device.type == sides.DEVICE.type
    assert float(ours.sums[0]) == pytest.approx(float(expected.sums[0]), rel=1e-4)
    assert float(ours.norm) == pytest.approx(float(expected.norm), rel=1e-3)


def test_bf16_computes_in_bfloat16_and_keeps_weights_in_float32(folder: Path) -> None:
    trainer, seen = trainer_of(folder, "bf16"), set()
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(lambda _, __, out: seen.add(out.dtype))
    trainer.step(0, 0, next(iter(trainer.loader)))
    assert seen == {torch.bfloat16}
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}


def test_a_model_trained_on_the_gpu_scores_alike_on_the_cpu(folder: Path) -> None:
    trainer = trainer_of(folder)
    list(trainer.run())
    newest = newest_checkpoint(trainer.state)
    assert newest is not None
    saved = EffiMini.from_pretrained(newest / "last")
    weights = trainer.model.state_dict()
    for name, value in saved.state_dict().items():
        assert torch.equal(value, weights[name].cpu()), name
    batch = next(iter(trainer.loader))
    with torch.inference_mode():
        on_cpu = saved(*to_device(batch, torch.device("cpu"))).numpy()
    arrays = [tensor.numpy() for tensor in (*batch[:4], batch.tabular)]
    assert load(newest / "last").score(*arrays) == pytest.approx(on_cpu, abs=1e-3)


def test_a_gpu_without_enough_memory_is_a_users_error(folder: Path) -> None:
    trainer = trainer_of(folder)
    batch = next(iter(trainer.loader))
    large = batch._replace(images=batch.images.repeat_interleave(16, 2).repeat_interleave(16, 3))
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / torch.cuda.mem_get_info()[1])
    try:
        with pytest.raises(UserError, match="the cuda is out of memory in a step of train.batch_size 4 with"):
            trainer.step(0, 0, large)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
