"""Updates a second of every rule, on 784-512-10 at batch 128."""

from __future__ import annotations

from benchmarks import nets
from benchmarks.eqprop import certified
from benchmarks.timing import Effort, Found, Skipped, interleaved, ratio, timed_rows
from bpeq import rules, solvers
from bpeq.types import LearningRule

RATIOS: tuple[str, ...] = ()
BATCH, COUNT = 128, 8


def run(effort: Effort) -> Found:
    """A row a rule, with its time over that of backprop by `jax.grad`."""
    if effort.quick:
        raise Skipped("quick")
    task = nets.reference(effort.quick)
    programs = {name: nets.steps(task, rule, BATCH, COUNT) for name, rule in every(task).items()}
    seconds = interleaved(programs, max(3, effort.rounds // 2))
    rows = timed_rows(seconds, programs, batch=BATCH, net=task.name)
    for r in rows:
        over = ratio(seconds, r["name"], "autodiff").median
        r |= {"updates_a_second": 1 / r["seconds"], "over_autodiff": over}
    return Found(rows, {})


def every(task: nets.Task) -> dict[str, LearningRule]:
    """Relaxing rules take 30 sweeps, and 10 in each further phase, unless their name says more."""
    network, system, cost = task.network, task.system, nets.COST
    free, nudged = solvers.fixed_steps(30), solvers.fixed_steps(10)
    relaxing = (rules.vector_field_eqprop, rules.asymmetric_eqprop, rules.contrastive_hebbian)
    feedforward = (
        *(rules.autodiff, rules.backprop, rules.feedback_alignment),
        *(rules.direct_feedback_alignment, rules.sign_symmetric, rules.kolen_pollack),
        *(rules.predictive_coding, rules.dual_propagation, rules.target_propagation),
    )
    made = [make(network, cost) for make in feedforward]
    made += [make(system, cost, free, nudged) for make in relaxing]
    made += [
        nets.fixed(system),
        rules.coupled_learning(system, cost, free, nudged),
        rules.recurrent_backprop(system, cost, free, solvers.fixed_steps(10)),
        rules.continual_eqprop(system, cost, free, sweeps=10),
        rules.bptt(system, cost, sweeps=30),
    ]
    named = {rule.name: rule for rule in made}
    holomorphic = nets.fixed(system, nudging="holomorphic", points=4)
    return {
        **named,
        "eqprop, certified": certified(task),
        "eqprop, one-sided": nets.fixed(system, nudging="one-sided"),
        "eqprop, holomorphic 4": holomorphic,
    }
