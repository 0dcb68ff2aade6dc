"""A winner kernel by kernel: as it was measured, and looked into anew against the floor, with what was compiled."""

from __future__ import annotations

from collections.abc import Sequence

from api.dashboard import figures
from api.dashboard.html import Html, join, tag
from api.dashboard.layout import chart, panel
from api.dashboard.source import highlighted
from api.dashboard.words import finite_json, strategy_mark
from api.units import amount, duration, share_text
from autotune.explanation import Explanation
from autotune.inspection import KernelCost, ProgramCost
from autotune.measurement import Kernel, Measurement
from autotune.winner import Winner

MEASURED = ("Kernel", "Time", "Of all", "Operations", "Bytes at least")
EXPLAINED = ("Kernel", "Time", "Of all", "Operations", "Bytes at least", "Floor", "Of the floor")


def kernels_panel(number: int, winner: Winner, measurements: Sequence[Measurement]) -> Html:
    """What the final knows of the winner's kernels; the rest is measured when somebody asks for it."""
    mine = [m for m in measurements if m.ok and m.kernels and m.candidate == winner.candidate]
    kernels = mine[-1].kernels if mine else ()
    look = tag("button", "Show the floor and the source", type="button", class_="quiet",
               data_show=f"/dashboard/kernels/{number}")  # fmt: skip
    return panel(
        "Kernel by kernel",
        _measured(mine[-1]) if mine else None,
        tag("div", look, tag("span", "compiles and times it on this machine, some ten seconds", class_="note"),
            class_="actions"),
        tag("div", class_="shown", aria_live="polite"),
        note=f"{len(kernels)} kernel{'' if len(kernels) == 1 else 's'}, in execution order; each timed alone, "
        "so that their sum may differ from the whole" if kernels else None,
    )  # fmt: skip


def explanation_part(explanation: Explanation) -> Html:
    """Shares of the floor, the kernel to attack next, the runner-up, the generated source."""
    program, floor, second = explanation.winner, explanation.floor, explanation.runner_up
    said = [
        f"The convolution's own floor on this device is {duration(floor.seconds)}, bound by {floor.bound}.",
        f"{share_text(explanation.share)} of it is reached.",
    ]
    attack = program.to_json()["attack"]
    if attack is not None:
        kernel = program.kernels[attack]
        said.append(f"Next to attack: {kernel.role}, {duration(kernel.excess_s)} above its floor.")
    if second is not None:
        said.append(f"The runner-up, {second.name}, takes {second.ratio:.2f} times as long.")
    said.append("All of this was timed just now, beside whatever else runs on this machine.")
    beside = explanation.default
    return join([
        tag("p", " ".join(said)),
        _explained(program, "The winner's kernels"),
        [tag("h3", "Beside it ", strategy_mark(explanation.decision.default.strategy)),
         _explained(beside, "The default's kernels")] if beside is not None else None,
        tag("h3", "Generated source"),
        [_source(kernel) for kernel in program.kernels],
    ])  # fmt: skip


def _measured(measurement: Measurement) -> Html:
    kernels = measurement.kernels
    total = sum(kernel.median_s or 0.0 for kernel in kernels)
    drawn = None
    if total and all(kernel.median_s for kernel in kernels):
        drawn = chart(
            "kernels", finite_json(figures.kernel_times(measurement)), label="Time of each kernel", size="short"
        )
    return join([drawn, _table(MEASURED, [_measured_row(kernel, total) for kernel in kernels], "Kernels")])


def _measured_row(kernel: Kernel, total: float) -> Html:
    return _row(tag("code", kernel.name), kernel.median_s, total, kernel.ops, kernel.bytes)


def _explained(program: ProgramCost, label: str) -> Html:
    total = sum(kernel.time_s or 0.0 for kernel in program.kernels)
    return _table(EXPLAINED, [_explained_row(kernel, total) for kernel in program.kernels], label)


def _explained_row(kernel: KernelCost, total: float) -> Html:
    share = None
    if kernel.share is not None:
        share = join([share_text(kernel.share), tag("progress", max=1, value=f"{min(kernel.share, 1.0):.3f}",
                                                    aria_label="Share of the floor")])  # fmt: skip
    name = join([kernel.role, tag("span", tag("code", kernel.name), class_="sub")])
    cells = (duration(kernel.floor_s), share)
    return _row(name, kernel.time_s, total, kernel.operations, kernel.bytes, *cells)


def _row(name: Html, seconds: float | None, total: float, operations: int, size: int, *more: Html | str | None) -> Html:
    values = [
        duration(seconds) if seconds else "-",
        f"{seconds / total:.0%}" if seconds and total else "-",
        amount(operations), amount(size), *more,
    ]  # fmt: skip
    return tag("tr", tag("th", name, scope="row"), [tag("td", value, class_="n") for value in values])


def _table(titles: Sequence[str], rows: Sequence[Html], label: str) -> Html:
    head = [tag("th", title, scope="col", class_="n" if at else None) for at, title in enumerate(titles)]
    table = tag("table", tag("thead", tag("tr", head)), tag("tbody", rows))
    return tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=label)


def _source(kernel: KernelCost) -> Html:
    options = ", ".join(kernel.options) or "no options"
    region = tag("div", highlighted(kernel.source or ""), class_="source", tabindex="0", role="region",
                 aria_label=f"Source of {kernel.name}")  # fmt: skip
    summary = tag("summary", f"{kernel.role}: {kernel.name}, {amount(kernel.source_bytes)}B")
    return tag("details", summary, tag("p", options, class_="note"), region)
