"""Fitting the few constants of a machine that may differ from cluster to cluster.

Theory of operation
1. Four factors may change, each multiplying constants that one physical cause moves together:
   the engine's CPU time per step, the front end's time per request, and the fractions of the GPU's
   peak and of its memory bandwidth that this cluster reaches (clocks, power limits, cooling).
   Nothing depends on the model or on the load.
2. A candidate is judged by the simulator itself: every observation's load is played, and mean TTFT
   and TPOT are compared as logarithms of ratios. TTFT counts half, since it depends on how a client
   starts up.
3. Each factor is held to 1 by what is known about it beforehand, as by one more measurement. So a
   factor that the observations say nothing about stays where it was.
4. Some observations take no part, and are compared before and after all the same.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from frontier_mock.cluster.build import build_cluster
from frontier_mock.config.resolve import ResolvedCluster, build_costs
from frontier_mock.cost.specs import StepSpec
from frontier_mock.drive.offline import run as play
from frontier_mock.report.summary import report_cluster
from frontier_mock.workload.build import build_source
from frontier_mock.workload.observations import Observation

TTFT_SIGMA: Final = 0.10
TPOT_SIGMA: Final = 0.05
"""Relative errors of one measurement that count as one standard deviation."""

_STEP: Final = 0.04
"""Step of the numeric derivative, in logarithms: batches are discrete, so a small one sees none."""


@dataclass(frozen=True, slots=True)
class Factor:
    """One number that may change. `sigma` is how far it is expected to, in logarithms."""

    name: str
    sigma: float
    what: str


FACTORS: Final = (
    Factor("cpu", 0.5, "CPU time of the engine, per step and per running request"),
    Factor("frontend", 0.7, "time of the front end, per request and per prompt token"),
    Factor("compute", 0.15, "fraction of the GPU's peak that is reached"),
    Factor("memory", 0.15, "fraction of the memory bandwidth that is reached"),
)

Factors = Mapping[str, float]
UNCHANGED: Final[Factors] = {factor.name: 1.0 for factor in FACTORS}


@dataclass(frozen=True, slots=True)
class Comparison:
    """One observation beside its simulation: signed relative errors."""

    name: str
    ttft: float
    tpot: float
    output_tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """The factors found, and the errors of both parts before and after."""

    factors: dict[str, float]
    fitted: tuple[list[Comparison], list[Comparison]]
    held_back: tuple[list[Comparison], list[Comparison]]


def changed(step: StepSpec, factors: Factors) -> StepSpec:
    """`step` on a machine whose constants are multiplied by `factors`."""
    engine, hardware = step.engine, step.hardware
    cpu, frontend = factors["cpu"], factors["frontend"]
    compute, memory = factors["compute"], factors["memory"]
    return replace(
        step,
        engine=replace(
            engine,
            cpu_step_s=engine.cpu_step_s * cpu,
            cpu_request_s=engine.cpu_request_s * cpu,
            frontend_s=engine.frontend_s * frontend,
            frontend_token_s=engine.frontend_token_s * frontend,
        ),
        hardware=replace(
            hardware,
            peak_bf16_flops=hardware.peak_bf16_flops * compute,
            peak_fp8_flops=hardware.peak_fp8_flops * compute,
            hbm_bytes_per_s=hardware.hbm_bytes_per_s * memory,
        ),
    )


def compare(
    cluster: ResolvedCluster, factors: Factors, observations: Sequence[Observation]
) -> list[Comparison]:
    """Every observation's load on the cluster with these factors."""
    workers = tuple(
        replace(worker, step=changed(worker.step, factors)) for worker in cluster.spec.workers
    )
    spec = replace(cluster.spec, workers=workers)
    costs = build_costs(spec)
    made = []
    for seen in observations:
        done = play(
            build_cluster(spec, costs), build_source(seen.workload, seed=spec.seed, rows=seen.rows)
        )
        measured = [item.measured for item in done.items]
        result = report_cluster(done.cluster, seen.name, 0.0, measured, None).result
        ttft_ms, tpot_ms = result["ttft_ms"]["mean"], result["tpot_ms"]["mean"]
        made.append(
            Comparison(
                seen.name,
                (ttft_ms or 0.0) / seen.ttft_ms - 1.0,
                (tpot_ms or 0.0) / seen.tpot_ms - 1.0 if seen.tpot_ms else 0.0,
                result["output_tokens_per_s"] / seen.output_tokens_per_s - 1.0,
            )
        )
    return made


def split(
    observations: Sequence[Observation], share: float
) -> tuple[list[Observation], list[Observation]]:
    """(fitted, held back): every so-manieth by name is held back, none of fewer than four."""
    ordered = sorted(observations, key=lambda seen: seen.name)
    if len(ordered) < 4:
        return ordered, []
    held = {i for i in range(len(ordered)) if int((i + 1) * share) > int(i * share)}
    fitted = [seen for i, seen in enumerate(ordered) if i not in held]
    return fitted, [ordered[i] for i in sorted(held)]


def calibrate(
    cluster: ResolvedCluster,
    observations: Sequence[Observation],
    names: Sequence[str],
    share: float,
    progress: Callable[[int], None] = lambda _: None,
) -> Calibration:
    """Fit the factors called `names` to all but a `share` of the observations.

    `progress` is told how many candidates have been simulated. Needs scipy.
    """
    from scipy.optimize import least_squares

    free = [factor for factor in FACTORS if factor.name in names]
    fitted, held_back = split(observations, share)
    tried = 0

    def factors_of(x: npt.NDArray[np.float64]) -> dict[str, float]:
        found = {factor.name: float(np.exp(v)) for factor, v in zip(free, x, strict=True)}
        return {**UNCHANGED, **found}

    def distance(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        nonlocal tried
        tried += 1
        progress(tried)
        errors = compare(cluster, factors_of(x), fitted)
        ttft = [np.log1p(max(error.ttft, -0.99)) / TTFT_SIGMA for error in errors]
        tpot = [np.log1p(max(error.tpot, -0.99)) / TPOT_SIGMA for error in errors]
        known = [v / factor.sigma for factor, v in zip(free, x, strict=True)]
        return np.array([*ttft, *tpot, *known])

    def slopes(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        here = distance(x)
        steps = _STEP * np.eye(len(free))
        return np.stack([(distance(x + step) - here) / _STEP for step in steps], axis=1)

    reach = np.array([3.0 * factor.sigma for factor in free])
    solved = least_squares(
        distance,
        np.zeros(len(free)),
        jac=slopes,
        bounds=(-reach, reach),
        x_scale=np.array([factor.sigma for factor in free]),
        loss="soft_l1",
        xtol=2e-3,
        ftol=1e-3,
        max_nfev=12,
    )
    factors = factors_of(solved.x)
    return Calibration(
        factors,
        (compare(cluster, UNCHANGED, fitted), compare(cluster, factors, fitted)),
        (compare(cluster, UNCHANGED, held_back), compare(cluster, factors, held_back)),
    )


def median_errors(errors: Sequence[Comparison]) -> dict[str, float]:
    """Median absolute and signed errors in percent."""
    made = {}
    for name in ("ttft", "tpot", "output_tokens_per_s"):
        values = [100.0 * float(getattr(error, name)) for error in errors]
        made[f"{name}_off"] = round(statistics.median(map(abs, values)), 2)
        made[f"{name}_bias"] = round(statistics.median(values), 2)
    return made


def profile(cluster: ResolvedCluster, found: Calibration) -> dict[str, Any]:
    """What goes into the profile file: whole hardware and engine profiles, and where from."""
    step = changed(cluster.spec.workers[0].step, found.factors)
    results = sorted(error.name for part in (found.fitted, found.held_back) for error in part[0])
    report: dict[str, Any] = {
        "results": results,
        "factors": {name: round(value, 4) for name, value in found.factors.items()},
    }
    for name, part in (("fitted", found.fitted), ("held_back", found.held_back)):
        if part[0]:
            report[name] = {"before": median_errors(part[0]), "after": median_errors(part[1])}
    made = {"hardware": asdict(step.hardware), "engine": asdict(step.engine)}
    for section in made.values():
        section["source"] = f"frontier-mock calibrate, from: {section['source']}"
    return {**made, "calibration": report}
