"""`make bench TARGET=pixelcnn`: what painting costs, and what joining between rows gains.

It writes benchmarks/results/pixelcnn.md in under ten minutes, and refuses to run beside other load.
"""

from collections.abc import Callable, Iterable, Sequence
from statistics import median

from benchmarks import machine, pages
from benchmarks.arrivals import MIX, SMALL, Served, first_rows, last_rows
from benchmarks.batching import (
    BACKLOG,
    SECONDS,
    Comparison,
    Run,
    added_row_calls,
    compare_loaded,
    compare_saturated,
    serve_lone,
)
from benchmarks.batching import ROUNDS as BATCHING_ROUNDS
from benchmarks.intervals import Estimate, estimate
from benchmarks.multiples import NAIVE_SECONDS, ROUNDS, SLOTS, Case, measure_multiples
from benchmarks.pages import table
from benchmarks.raster_models import RasterModel, open_bundled, open_large
from benchmarks.streaming import STREAMS, measure_streams

LIGHT, HEAVY = 0.6, 0.7
"""Images offered, as shares of what the static batcher paints at saturation."""


def measure() -> None:
    """Run everything and write it down. Raises OtherLoad, writing nothing, if others joined."""
    work = machine.OtherWork()
    bundled, large = open_bundled(), open_large()
    parts = [
        _head(),
        _describe_multiples(measure_multiples([bundled, large])),
        _measure_batching(bundled),
        _describe_streams(measure_streams()),
    ]
    text = "\n".join(parts)
    text += f"\nOther processes: {machine.refuse_other_work(work):.2f} cores meanwhile.\n"
    pages.write("pixelcnn", text)


def _head() -> str:
    return f"""# PixelCNN: what painting costs, and what joining between rows gains

{pages.head("pixelcnn")}In brackets: the 95 % interval of the median
over rounds, by bootstrap. Of few rounds it can't be wider than they are.
"""


def _describe_multiples(cases: Sequence[Case]) -> str:
    tables = [
        _describe_model(model, [case for case in cases if case.model is model])
        for model in dict.fromkeys(case.model for case in cases)
    ]
    compared = [case for case in cases if case.different_pixels is not None]
    pixels = sum(case.batch for case in compared) * 28 * 28
    different = sum(case.different_pixels or 0 for case in compared)
    return f"""## In full forward passes

The floor is one full forward pass of the whole batch to its logits, one thread, the server's
session options. `row_step` is the row scheduler with one worker, hence one lane of {SLOTS} slots:
every row of every image with its log-probabilities, all bookkeeping included; `row_step_filtered`
is the same with top-k 50 and top-p 0.9. A batch of 64 is more than the slots: {SLOTS} images are
painted at a time, and others take their places. *Naive* runs a full forward pass for every pixel;
in full, once, where that takes less than {NAIVE_SECONDS:.0f} s; elsewhere (marked ~) a few pixels
a round, multiplied.
{ROUNDS} rounds, in which floor and samplers take turns.

{"".join(tables)}Aims: one image in at most 3 forward passes, batch 16 in at most 1.3.
Of {pixels} pixels that naive painted in full, {different} differ from the scheduler's.
"""


def _describe_model(model: RasterModel, cases: Sequence[Case]) -> str:
    header = [
        "batch",
        "forward pass, ms",
        "`row_step`, ms",
        "`row_step`, passes",
        "`row_step_filtered`, passes",
        "naive, passes",
        "`row_step` is faster than naive by",
    ]
    rows = [
        [
            str(case.batch),
            f"{1000 * median(case.forward):.2f}",
            f"{1000 * median(case.row_step):.1f}",
            case.multiple("row_step").format(),
            case.multiple("row_step_filtered").format(),
            ("" if case.naive_in_full else "~") + case.multiple("naive").format(0),
            case.speed_up().format(0),
        ]
        for case in cases
    ]
    return f"{model.description}.\n\n{table(header, rows)}\n"


def _measure_batching(model: RasterModel) -> str:
    saturated = compare_saturated(model)
    saturation = median(run.images_per_second for run in saturated.static)
    lone = serve_lone(model)
    light = compare_loaded(model, LIGHT * saturation)
    heavy = compare_loaded(model, HEAVY * saturation)
    return _describe_batching(saturated, lone, light, heavy)


def _describe_batching(
    saturated: Comparison, lone: Sequence[Run], light: Comparison, heavy: Comparison
) -> str:
    mix = ", ".join(f"{images}: {100 * share:.0f} %" for images, share in MIX.items())
    added = estimate([added_row_calls(*pair) for pair in zip(light.scheduler, lone, strict=True)])
    row_call = 1000 * median(run.row_call for run in light.scheduler)
    aims = [
        (
            "images/s at saturation, scheduler over static",
            _ratio(saturated, _throughput).format(),
            "at least 0.95",
        ),
        (
            f"p95 to first row at {HEAVY:.0%} load, scheduler over static",
            _ratio(heavy, _p95).format(3),
            "at most 0.2",
        ),
        (
            f"p95 to first row of at most {SMALL} images at {LIGHT:.0%} load, less that of an "
            "idle server, in row calls",
            added.format(),
            "at most 3",
        ),
    ]
    return f"""## Against static batching

Both paint `mnist-pixelcnn` with the same `row_step` graph in this process, a worker a core. The
static batcher is work-conserving: an idle worker takes up to {SLOTS} of the images that wait, in
order of arrival (its share of them, where others are idle too), paints all their rows, and then
takes the next; it lays out its inputs once a batch and streams its rows too.

Requests ask for (images: share) {mix}.
They arrive at random (Poisson), handed over by a thread of their own, and time counts from when the
event loop is told. A request's first row is that of its first image. Both get the same arrivals;
who goes first alternates; {BATCHING_ROUNDS} rounds of {SECONDS:.0f} s, each with seeds of its own.
Load is images offered over what the *static batcher* paints at saturation, the median of this run.

Saturation, a backlog of {BACKLOG} images that is there from the start:

{_describe_saturation(saturated)}

{_describe_load(LIGHT, light)}

{_describe_load(HEAVY, heavy)}

{table(["", "measured", "aim"], aims)}
A row call is the median run of the `row_step` graph during the scheduler's round at that load,
however many images shared it: {row_call:.2f} ms. The idle server got such requests one at a time;
its p95 to the first row was {_milliseconds(lone, _p95_small)} ms.
"""


def _describe_saturation(saturated: Comparison) -> str:
    rows = [
        [name, estimate([run.images_per_second for run in runs]).format(0)]
        for name, runs in _painters(saturated)
    ]
    return table(["", "images/s"], rows)


def _describe_load(load: float, comparison: Comparison) -> str:
    header = [
        f"{load:.0%} load",
        "first row, p50 ms",
        "first row, p95 ms",
        "... of small, p95 ms",
        "last row, p50 ms",
        "last row, p95 ms",
        "... of small, p95 ms",
    ]
    figures = [
        lambda served: first_rows(served, 0.50),
        lambda served: first_rows(served, 0.95),
        lambda served: first_rows(served, 0.95, small=True),
        lambda served: last_rows(served, 0.50),
        lambda served: last_rows(served, 0.95),
        lambda served: last_rows(served, 0.95, small=True),
    ]
    rows = [
        [name, *(_milliseconds(runs, figure) for figure in figures)]
        for name, runs in _painters(comparison)
    ]
    return table(header, rows)


def _painters(comparison: Comparison) -> list[tuple[str, list[Run]]]:
    return [("row scheduler", comparison.scheduler), ("static batcher", comparison.static)]


def _throughput(run: Run) -> float:
    return run.images_per_second


def _p95(run: Run) -> float:
    return first_rows(run.served, 0.95)


def _p95_small(served: Sequence[Served]) -> float:
    return first_rows(served, 0.95, small=True)


def _ratio(comparison: Comparison, figure: Callable[[Run], float]) -> Estimate:
    pairs = zip(comparison.scheduler, comparison.static, strict=True)
    return estimate([figure(scheduler) / figure(static) for scheduler, static in pairs])


def _milliseconds(runs: Iterable[Run], figure: Callable[[Sequence[Served]], float]) -> str:
    return estimate([1000 * figure(run.served) for run in runs]).format(1)


def _describe_streams(streams: Sequence[tuple[float, float]]) -> str:
    share = estimate([first / whole for first, whole in streams])
    first, whole = (1000 * median(column) for column in zip(*streams, strict=True))
    return f"""## First row of a stream

One image of `mnist-pixelcnn` over REST (`POST /sample/stream`) from an idle server in a process
of its own, {STREAMS} streams one at a time: the first row is read after {first:.1f} ms, the
result after {whole:.1f} ms (medians). The share is {share.format(3)}; aim: at most 0.05.
The first of 28 rows is 0.036 of the painting.
"""
