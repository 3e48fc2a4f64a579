"""The training loop: batches in, one optimizer step each, and the figures that it reports."""

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gaitgl.losses import batch_all_triplet_loss
from gaitgl.model import GaitGL
from pipeline.batches import TrainingBatch
from pipeline.devices import autocast
from pipeline.distributed import ALONE, World
from pipeline.training_history import Step


class NotFiniteError(Exception):
    """A step whose loss or gradient is not finite; the weights are still those before it."""

    def __init__(
        self, step: int, loss: float, loss_per_strip: list[float], bad_gradients: list[str]
    ) -> None:
        what = "gradient" if math.isfinite(loss) else "loss"
        super().__init__(f"the {what} of step {step} is not finite (loss {loss:.4g})")
        self.step, self.loss, self.loss_per_strip = step, loss, loss_per_strip
        self.bad_gradients = bad_gradients
        """Names of the weights whose gradients are not finite; empty where the loss is not."""


def learning_rate(step: int, lr: float, warmup_steps: int, lr_drops: Iterable[int]) -> float:
    """The rate of step ``step`` (counted from 1): linear warm-up, then a tenth after each drop."""
    warm = min(1.0, step / (warmup_steps + 1))
    return lr * warm * 0.1 ** sum(step > drop for drop in lr_drops)


def new_optimizer(model: nn.Module) -> torch.optim.Adam:
    """Adam with its moments at zero, as they are before the first step: ready to be restored.

    ``model`` must be where it will be trained: moments lie in memory as the weights do.
    """
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    for weight in model.parameters():
        optimizer.state[weight] = {
            "step": torch.zeros((), device=weight.device),
            "exp_avg": torch.zeros_like(weight),
            "exp_avg_sq": torch.zeros_like(weight),
        }
    return optimizer


def everything_trained(model: nn.Module, optimizer: torch.optim.Adam) -> dict[str, Tensor]:
    """Weights and moments under their names: what, copied back, makes a training go on unchanged.

    Nothing else does: batches depend on seed and step alone, and no layer draws random numbers.
    """
    tensors = {f"weight.{name}": weight.data for name, weight in model.named_parameters()}
    for name, weight in model.named_parameters():
        tensors |= {f"{key}.{name}": value for key, value in optimizer.state[weight].items()}
    return tensors


def train_steps(
    model: GaitGL,
    optimizer: torch.optim.Adam,
    batches: Iterable[TrainingBatch],
    *,
    first_step: int = 1,
    lr: float,
    warmup_steps: int,
    lr_drops: list[int],
    margin: float,
    precision: str,
    device: torch.device,
    world: World = ALONE,
    compiled: bool = False,
) -> Iterator[Step]:
    """Train ``model``, which lies on ``device``, in place, one step a batch; yields after each.

    With several processes each gets its share of the batches, and all do the same step.
    ``compiled`` lets torch.compile rewrite the network; the model itself stays as it is.
    Raises NotFiniteError, before the weights are touched, at the first loss or gradient that is not
    finite.
    """
    network: Callable[[Tensor], Tensor] = model if world.size == 1 else _averaging(model, device)
    if compiled:
        network = torch.compile(network)
    context = autocast(device, precision)
    for step, batch in enumerate(batches, start=first_step):
        model.train()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, lr, warmup_steps, lr_drops)
        # pinned memory is read while the host goes on
        silhouettes = batch.silhouettes.to(device, non_blocking=True).float() / 255
        with context:
            embeddings = network(silhouettes)  # [n / processes, c, strips]
        result = batch_all_triplet_loss(world.gather(embeddings), batch.labels, margin)
        optimizer.zero_grad(set_to_none=True)
        # the loss is that of all processes' embeddings, and `_averaging` divides by their number:
        # right for what lies before world.gather, which is all of `model`
        (result.loss * world.size).backward()  # type: ignore[no-untyped-call]
        gradients = {name: w.grad for name, w in model.named_parameters() if w.grad is not None}
        grad_norm = nn.utils.get_total_norm(list(gradients.values()))
        # one wait for the device instead of four
        loss, active, mean_distance, norm = torch.stack(
            [
                result.loss.detach(),
                result.active_per_strip.sum(),
                result.mean_distance.mean(),
                grad_norm,
            ]
        ).tolist()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            bad = [name for name, grad in gradients.items() if not grad.isfinite().all()]
            per_strip = result.loss_per_strip.tolist()
            raise NotFiniteError(step, loss, per_strip, bad if math.isfinite(loss) else [])
        optimizer.step()
        strips = result.active_per_strip.numel()
        p = model.gem_p  # waits once more: for this step's update
        yield Step(
            step,
            loss,
            active / (result.triplets * strips),
            mean_distance,
            norm,
            optimizer.param_groups[0]["lr"],
            math.nan if p is None else p,
        )


def _averaging(model: GaitGL, device: torch.device) -> nn.Module:
    """The model with gradients averaged over processes; all start from the weights of the first."""
    ids = [device] if device.type == "cuda" else None
    return DistributedDataParallel(model, ids, gradient_as_bucket_view=True)
