"""AdamW whose two moments are kept in 8 bits, so that they take 2.2 bytes a weight in place of 8.

Source: Dettmers et al., 8-bit Optimizers via Block-wise Quantization, 2022: blocks of numbers, each scaled by its
largest, as indices into a table that is fine near zero. Those of bitsandbytes and torchao cut blocks from a worker's
shard as it happens to be; here a block lies within a row of the weight, and shards are whole rows. So codes and scales
are shared out like the weight itself: a checkpoint holds them by name, and any number of workers reads them back to the
same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor import zeros as sharded_zeros
from torch.nn.functional import pad

BLOCK = 256  # numbers with a scale of their own; of a shorter row all
LEAST = 4096  # weights of a tensor; the moments of smaller ones stay in float32
_EXPONENTS = 7  # of the table: down to a millionth of a block's largest
MOMENTS = ("exp_avg", "exp_avg_sq")


class AdamW8bit(torch.optim.Optimizer):
    """As torch.optim.AdamW, but the moments of tensors with LEAST or more weights and two or more axes are in 8 bits.

    State of such a parameter (…, c), seen as (rows, c): `exp_avg` and `exp_avg_sq`, uint8 in its shape and sharding,
    and `exp_avg_scale`, `exp_avg_sq_scale` (rows…, blocks) float32.
    """

    def __init__(self, parameters: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float) -> None:
        """parameters: groups, each with `params` and `weight_decay`."""
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One update. Nothing waits for a GPU."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state.update(_first_state(parameter))
        state["step"] += 1
        weight, gradient, step = _local(parameter), _local(parameter.grad).float(), state["step"]
        moments = []
        for name, beta, new in zip(MOMENTS, group["betas"], (gradient, gradient.square()), strict=True):
            moment = _read(state, name).lerp_(new, 1 - beta)
            _write(state, name, moment)
            moments.append(moment / (1 - beta**step))
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.addcdiv_(moments[0], moments[1].sqrt_().add_(group["eps"]), value=-group["lr"])


def _first_state(parameter: Tensor) -> dict[str, Tensor]:
    state = {"step": torch.zeros((), device=_local(parameter).device)}
    for name in MOMENTS:
        if parameter.ndim < 2 or parameter.numel() < LEAST:
            state[name] = empty_state(parameter, tuple(parameter.shape), torch.float32)
            continue
        scales = (*parameter.shape[:-1], -(-parameter.shape[-1] // BLOCK))
        state[name] = empty_state(parameter, tuple(parameter.shape), torch.uint8)
        state[f"{name}_scale"] = empty_state(parameter, scales, torch.float32)
    return state


def empty_state(parameter: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros, shared out like the parameter where they have its rows, else on every worker."""
    local = _local(parameter)
    if isinstance(parameter, DTensor) and shape[:1] == tuple(parameter.shape[:1]) and len(shape) == parameter.ndim:
        return sharded_zeros(
            *shape, dtype=dtype, device_mesh=parameter.device_mesh, placements=parameter.placements
        )  # rows are dealt as FSDP deals them
    return torch.zeros(shape, dtype=dtype, device=local.device)


def _local(tensor: Tensor) -> Tensor:
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.detach()


def _read(state: dict[str, Tensor], name: str) -> Tensor:
    """A moment in float32, a new tensor or the state itself."""
    codes = _local(state[name])
    if codes.dtype != torch.uint8:
        return codes
    values = _table(name, codes.device)[codes.int()]
    for part, scale in _blocks(values, _local(state[f"{name}_scale"])):
        part.mul_(scale)
    return values


def _write(state: dict[str, Tensor], name: str, moment: Tensor) -> None:
    """Keep a moment; each number as the nearest of the table."""
    codes = _local(state[name])
    if codes.dtype != torch.uint8 or not codes.numel():
        return
    scales = _local(state[f"{name}_scale"])
    width = moment.shape[-1]
    padded = pad(moment, (0, -width % BLOCK)) if width > BLOCK else moment
    scales.copy_(padded.abs().unflatten(-1, (scales.shape[-1], -1)).amax(-1))
    scaled = moment.clone()
    for part, scale in _blocks(scaled, scales):
        part.div_(scale.clamp(min=torch.finfo(torch.float32).tiny))
    codes.copy_(torch.bucketize(scaled, _borders(name, codes.device)))


def _blocks(values: Tensor, scales: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Parts of values (…, c) whose last axes are whole blocks, and the scale of each number in them, to broadcast."""
    width = values.shape[-1]
    whole = width // BLOCK
    if whole:
        yield values[..., : whole * BLOCK].unflatten(-1, (whole, BLOCK)), scales[..., :whole, None]
    if width % BLOCK:
        yield values[..., whole * BLOCK :], scales[..., whole:]


@cache
def _values(name: str) -> Tensor:
    """At most 256 numbers, ascending: of the first moment −1…1, of the second those above 0 up to 1.

    For every power of ten down from 1 there are twice as many evenly spaced numbers as for the one below it. The second
    moment is never 0 in a block that is not: what is divided by its root would make a step out of all proportion.
    """
    signed = name == "exp_avg"
    numbers = [0.0] * signed
    for exponent in range(_EXPONENTS):
        count = 2 ** (exponent + (0 if signed else 1))
        edges = torch.linspace(0.1, 1, count + 1, dtype=torch.float64)
        positive = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (exponent - _EXPONENTS + 1)
        numbers += positive.tolist() + (-positive).tolist() * signed
    return torch.tensor(sorted([*numbers, 1.0]), dtype=torch.float64).float()


@cache
def _table(name: str, device: torch.device) -> Tensor:
    return _values(name).to(device)


@cache
def _borders(name: str, device: torch.device) -> Tensor:
    """Between neighbors of the table."""
    values = _values(name)
    return ((values[:-1] + values[1:]) / 2).to(device)
