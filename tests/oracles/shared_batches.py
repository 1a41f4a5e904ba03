"""Run by test_parallel.py with four forced host devices: prints what sharing a batch changes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bpeq import costs, layers, rules, solvers, systems
from bpeq.config.loading import ConfigError, load_config
from bpeq.config.registry import KINDS
from bpeq.config.schema import wires
from bpeq.experiment import train
from bpeq.layers import chain, dense, tanh
from bpeq.systems.devices import imperfect
from bpeq.training.data_parallel import data_parallel
from bpeq.types import Batch, Cost, Estimate, Layer, PerExample, Solver, System

COST, NETWORK = costs.squared_error(), chain(dense(4), tanh(), dense(3))
HOPFIELD = systems.hopfield(NETWORK)
UNTIED = systems.hopfield(NETWORK, feedback="untied")  # has an asymmetry to measure
SETTLE, BRIEF = solvers.fixed_point(1e-9, 100), solvers.fixed_steps(4)
KEY = jax.random.key(3)
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


def built(name: str) -> Any:
    """A registered rule with its defaults; phases end when their own examples have settled."""
    parts = {Cost: COST, Layer: NETWORK, System: HOPFIELD, Solver: SETTLE}
    factory = KINDS["rules"][name]
    fewer = {"sweeps": 3} if name in ("bptt", "continual_eqprop") else {}
    return factory(**{key: parts[word] for key, word in wires(factory).items()}, **fewer)


def eqprop(**settings: Any) -> Any:
    return rules.eqprop(HOPFIELD, COST, BRIEF, BRIEF, **settings)


def running_mean() -> Any:
    """A rule of a user's own: its state follows the batch's mean, and its loss from infinity.

    It records numbers of the batch and of each example. One has the batch's length by chance.
    """
    plain = rules.backprop(NETWORK, COST)

    def estimate(params: Any, batch: Batch, state: Any, key: Any) -> tuple[Estimate, Any]:
        made, _ = plain.estimate(params, batch, (), key)
        each = {"error": (made.output[:, 0] - 1.0) ** 2}
        mean = jnp.mean(batch.x.sum(axis=1, keepdims=True) * jnp.arange(8.0), axis=0)
        made = made._replace(info={"each": PerExample(each), "mean": mean})
        after = 0.9 * state["mean"] + 0.1 * batch.x.mean(axis=0)
        return made, {"mean": after, "last": made.loss}

    def init(key: Any, params: Any) -> Any:
        return params, {"mean": jnp.ones(5), "last": jnp.asarray(jnp.inf)}

    return plain._replace(init=init, estimate=estimate)


NORMED = chain(dense(4), layers.batch_norm(), tanh(), layers.dropout(0.5), dense(3))
CASES = {
    **{name: (lambda name=name: built(name), NETWORK) for name in KINDS["rules"]},
    "eqprop auto": (lambda: eqprop(beta="auto"), NETWORK),
    "eqprop random-sign": (lambda: eqprop(nudging="random-sign"), NETWORK),
    "eqprop holomorphic": (lambda: eqprop(nudging="holomorphic"), NETWORK),
    "eqprop noisy": (
        lambda: rules.eqprop(imperfect(HOPFIELD, noise=0.1), COST, BRIEF, BRIEF),
        NETWORK,
    ),
    "eqprop carried": (lambda: eqprop(start="carried"), NETWORK),
    "eqprop kept": (lambda: eqprop(start="kept"), NETWORK),
    "vector_field_eqprop homeostasis": (
        lambda: rules.vector_field_eqprop(UNTIED, COST, BRIEF, BRIEF, homeostasis=0.1),
        UNTIED,
    ),
    "backprop normed": (lambda: rules.backprop(NORMED, COST), NORMED),
    "autodiff normed": (lambda: rules.autodiff(NORMED, COST), NORMED),
    "own": (running_mean, NETWORK),
}


def gap(a: Any, b: Any) -> float:
    """The largest difference of any two leaves, keys left out."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    plain = [(u, v) for u, v in pairs if not jnp.issubdtype(u.dtype, jax.dtypes.prng_key)]
    assert all(u.shape == v.shape and u.dtype == v.dtype for u, v in plain)
    apart = [np.abs(np.asarray(u, float) - np.asarray(v, float)).max() for u, v in plain]
    return float(np.max(apart))  # a NaN is no gap that `max` would see


def collectives(jaxpr: Any, looping: bool = False) -> list[tuple[str, bool]]:
    """Every collective of a program, and whether it is inside of a loop."""
    found = []
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name.startswith(("psum", "all_gather", "all_reduce", "pmean", "ppermute")):
            found.append((name, looping))
        for inner in jax.core.jaxprs_in_params(equation.params):
            found += collectives(inner, looping or name in ("while", "scan"))
    return found


def measured(make: Any, network: Any) -> dict[str, Any]:
    """An estimate, what it leaves, absorbs and records, and a second one where there is memory."""
    rule = make()
    params, state = rule.init(jax.random.key(1), network.init(jax.random.key(0), (5,))[0])
    x = jax.random.normal(jax.random.key(2), (16, 5))
    y, rows = jnp.arange(16) % 3, jnp.arange(16)[::-1]
    if rule.prepare is not None:
        state = rule.prepare(params, state, x, 8)

    def ended(rule: Any) -> Any:
        def program(params: Any, state: Any) -> Any:
            made, found = [], []
            for first in (0, 4) if rule.prepare is not None else (0,):
                own = rows[first : first + 8]
                estimate, state = rule.estimate(params, Batch(x[own], y[own], own), state, KEY)
                made.append(estimate)
            if rule.absorb is not None:
                found.append(rule.absorb(params, made[-1].info))
            if rule.name == "backprop":  # evaluated on a number that is no multiple of four
                found.append(rule.apply(params, x[:7]))
            return made, state, found

        return jax.jit(program, compiler_options=QUICK)(params, state)

    shared = data_parallel(rule, 4)
    difference = gap(ended(rule), ended(shared))
    args = (params, Batch(x[:8], y[:8], rows[:8]), state, KEY)
    found = collectives(jax.make_jaxpr(shared.estimate)(*args).jaxpr)
    return {"gap": difference, "collectives": found}


def trained(folder: Path, devices: int) -> dict[str, Any]:
    path = folder / "c.toml"
    path.write_text(CONFIG)
    where = folder / f"{devices}"
    summary = train.run(load_config(path, [f"devices={devices}"]), where)
    lines = (where / "metrics.jsonl").read_text().splitlines()
    return {"metrics": summary["metrics"], "rows": [json.loads(line) for line in lines]}


def refused(folder: Path, *overrides: str) -> str:
    try:
        train.run(load_config(folder / "c.toml", overrides), folder / "refused")
    except ConfigError as error:
        assert not (folder / "refused").exists()
        return str(error)
    return "nothing"


CONFIG = """
seeds = 2
precision = "float64"
data.name = "xor"
network.layers = ["dense(4)", "tanh", "dense(1)"]
rule = {name = "eqprop", beta = 0.1}
solvers.free = {name = "fixed_point", tolerance = 1e-9, max_steps = 100}
solvers.nudged = {name = "fixed_steps", steps = 5}
training = {epochs = 20, batch_size = 4, evaluate_every = 10}
"""


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    folder, *names = sys.argv[1:]
    found: dict[str, Any] = {name: measured(*CASES[name]) for name in names}
    runs = [trained(Path(folder), n) for n in (1, 4)]
    asked = [["devices=5"], ["devices='all'", "training.batch_size=2"]]
    said = [refused(Path(folder), *overrides) for overrides in asked]
    print(json.dumps({"cases": found, "runs": runs, "refused": said}))


if __name__ == "__main__":
    main()
