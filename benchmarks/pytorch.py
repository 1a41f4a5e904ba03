"""Backprop in PyTorch on the reference net, where PyTorch is installed."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

from benchmarks import nets
from benchmarks.timing import Effort, Found, Program, Skipped, interleaved, timed_rows
from bpeq import rules

RATIOS: tuple[str, ...] = ()
BATCH, COUNT = 128, 20


def run(effort: Effort) -> Found:
    """Rows of both, interleaved."""
    if importlib.util.find_spec("torch") is None:
        raise Skipped("PyTorch is not installed")
    task = nets.reference(effort.quick)
    made = rules.autodiff(task.network, nets.COST)
    programs = {
        "backprop by jax.grad": nets.steps(task, made, BATCH, COUNT),
        "backprop in PyTorch": Program(torch_steps(task), COUNT),
    }
    seconds = interleaved(programs, effort.rounds)
    return Found(timed_rows(seconds, programs, batch=BATCH, net=task.name), {})


def torch_steps(task: nets.Task) -> Any:
    """COUNT updates by torch.autograd and SGD from the same weights, on the same batches."""
    import torch

    def dense(i: int) -> Any:
        w, b = (torch.tensor(np.asarray(task.params[i][name])) for name in ("w", "b"))
        layer = torch.nn.Linear(*w.shape)
        layer.weight.data, layer.bias.data = w.T.contiguous(), b
        return layer

    class Shifted(torch.nn.Module):
        def forward(self, z: Any) -> Any:
            return torch.sigmoid(4 * z - 2)

    net = torch.nn.Sequential(dense(0), Shifted(), dense(2), Shifted())
    optimizer = torch.optim.SGD(net.parameters(), lr=nets.RATE)
    batch = nets.examples(task, BATCH * COUNT)
    x = torch.tensor(np.asarray(batch.x)).reshape(COUNT, BATCH, -1)
    y = torch.nn.functional.one_hot(torch.tensor(np.asarray(batch.y, np.int64)), 10).float()
    y = y.reshape(COUNT, BATCH, 10)

    def call() -> None:
        for images, targets in zip(x, y, strict=True):
            optimizer.zero_grad()
            (0.5 * ((net(images) - targets) ** 2).sum(1)).mean().backward()
            optimizer.step()

    return call
