"""How much longer a job will take, as far as its budget says: for the dashboard and the terminal alike."""

from __future__ import annotations

from autotune.job import Budget, Job, JobState


def job_time_left_s(job: Job) -> float | None:
    """Seconds until the job is done if every remaining key uses its budget; None where nothing says so.

    The final rounds of a budget in trials are not foreseen, nor is a wait for the device.
    """
    if job.state.ended:
        return None
    progress = job.progress if job.state is JobState.RUNNING else {}
    rest = key_time_left_s(job.budget, _number(progress, "used_s"), int(_number(progress, "trials")))
    per_key = job.budget.seconds
    later = job.total_keys - job.done_keys - 1
    if rest is None or (later > 0 and per_key is None):
        return None
    return rest + max(0, later) * (per_key or 0.0)


def key_time_left_s(budget: Budget, used_s: float, trials: int) -> float | None:
    """Seconds that one key's budget still allows, by its time or by the pace of its trials; the sooner counts."""
    ends = []
    if budget.seconds is not None:
        ends.append(budget.seconds - used_s)
    if budget.trials is not None and trials > 0 and used_s > 0:
        ends.append((budget.trials - trials) * used_s / trials)
    return max(0.0, min(ends)) if ends else None


def _number(progress: dict[str, object], name: str) -> float:
    said = progress.get(name, 0.0)
    return float(said) if isinstance(said, int | float) else 0.0
