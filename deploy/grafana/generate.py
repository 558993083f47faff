"""Writes the Grafana dashboards: `make dashboards`, or into the folder that is named."""

import sys
from pathlib import Path

from grafana_foundation_sdk.builders import dashboard, heatmap, prometheus, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DataSourceRef, VariableOption, VariableRefresh
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

FOLDER = Path(__file__).parent / "dashboards"

_SOURCE = DataSourceRef(type_val="prometheus", uid="prometheus")
_WIDTH, _HEIGHT = 8, 8  # three panels a row
_WINDOW = "[$__rate_interval]"  # which Grafana chooses by what is shown and the scrape interval
_MODEL = 'model=~"$model"'
_PROCESS = 'job="genserve"'


def rate(metric: str, by: str, labels: str = _MODEL) -> str:
    """Return the query of a counter's growth a second, summed by labels."""
    return f"sum by ({by}) (rate({metric}{{{labels}}}{_WINDOW}))"


def quantile(share: float, metric: str, by: str = "") -> str:
    """Return the query of a histogram's quantile, by labels."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', labels)})"


def mean(metric: str, by: str) -> str:
    """Return the query of the mean of what a histogram has observed, by labels."""
    return f"{rate(f'{metric}_sum', by)} / {rate(f'{metric}_count', by)}"


def level(metric: str, by: str) -> str:
    """Return the query of a gauge, summed by labels over replicas."""
    return f"sum by ({by}) ({metric}{{{_MODEL}}})"


def lines(title: str, meaning: str, unit: str, *queries: tuple[str, str]) -> timeseries.Panel:
    """Return a panel of lines, of queries that come after the names of their lines."""
    panel = timeseries.Panel().title(title).description(meaning).unit(unit)
    panel = panel.datasource(_SOURCE).span(_WIDTH).height(_HEIGHT)
    for letter, (name, query) in zip("ABC", queries, strict=False):
        panel = panel.with_target(_query(letter, query).legend_format(name))
    return panel


def buckets(title: str, meaning: str, unit: str, metric: str) -> heatmap.Panel:
    """Return a heat map over time of how many observations fell into each bucket."""
    query = f"sum by (le) (increase({metric}_bucket{{{_MODEL}}}{_WINDOW}))"
    target = _query("A", query).legend_format("{{le}}").format(PromQueryFormat.HEATMAP)
    panel = heatmap.Panel().title(title).description(meaning).unit(unit).calculate(False)
    return panel.datasource(_SOURCE).span(_WIDTH).height(_HEIGHT).with_target(target)


def _query(letter: str, query: str) -> prometheus.Dataquery:
    return prometheus.Dataquery().ref_id(letter).datasource(_SOURCE).expr(query).range()


def _empty(title: str, name: str) -> dashboard.Dashboard:
    model = (
        dashboard.QueryVariable("model")
        .label("model")
        .datasource(_SOURCE)
        .query("label_values(genserve_model_ready, model)")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .current(VariableOption(selected=True, text="All", value="$__all"))
        .all_value(".*")  # requests that were refused before their model was known have none
    )
    made = dashboard.Dashboard(title).uid(name).tags(["genserve"]).readonly()
    return made.refresh("15s").time("now-1h", "now").timezone("browser").with_variable(model)


def serving() -> dashboard.Dashboard:
    """Return the dashboard of what any server has: traffic, latency, batches, resources."""
    return (
        _empty("genserve: serving", "genserve-serving")
        .with_row(dashboard.Row("Traffic"))
        .with_panel(
            lines(
                "Requests",
                "Requests that ended, well or not.",
                "reqps",
                ("{{model}} {{operation}}", rate("genserve_requests_total", "model, operation")),
            )
        )
        .with_panel(
            lines(
                "Errors",
                "Requests that ended without a result, by the reason.",
                "reqps",
                (
                    "{{code}}",
                    rate("genserve_requests_total", "code", f'{_MODEL}, code!="OK"'),
                ),
            )
        )
        .with_panel(
            lines(
                "Share of faults, 5 minutes",
                "Requests that failed by the server's fault. An alarm is raised beyond 5 %.",
                "percentunit",
                ("{{model}}", f"model:genserve_request_faults:ratio_rate5m{{{_MODEL}}}"),
            )
        )
        .with_panel(
            lines(
                "Images and vectors",
                "Images, or vectors, produced or scored.",
                "ops",
                ("{{model}} {{operation}}", rate("genserve_images_total", "model, operation")),
                ("{{model}} {{operation}}", rate("genserve_vectors_total", "model, operation")),
            )
        )
        .with_panel(
            lines(
                "In flight",
                "Requests admitted and not yet answered, and streams that are open.",
                "short",
                ("requests", "sum(genserve_requests_in_flight)"),
                ("streams", "sum(genserve_open_streams)"),
            )
        )
        .with_row(dashboard.Row("Latency"))
        .with_panel(
            lines(
                "Requests",
                "Time from admission to the result.",
                "s",
                ("median", quantile(0.5, "genserve_request_seconds")),
                ("95 %", quantile(0.95, "genserve_request_seconds")),
                ("99 %", quantile(0.99, "genserve_request_seconds")),
            )
        )
        .with_panel(
            lines(
                "95 % of requests, by phase",
                "The whole request; how long its rows or images waited; one run of a graph.",
                "s",
                ("whole", quantile(0.95, "genserve_request_seconds")),
                ("queue", quantile(0.95, "genserve_queue_seconds")),
                ("run", quantile(0.95, "genserve_compute_seconds")),
            )
        )
        .with_panel(
            lines(
                "95 % of requests, by operation, 5 minutes",
                "An alarm is raised beyond 5 s.",
                "s",
                (
                    "{{model}} {{operation}}",
                    f"model_operation:genserve_request_seconds:p95_rate5m{{{_MODEL}}}",
                ),
            )
        )
        .with_panel(
            lines(
                "Mean run",
                "Time that one batch ran, or one row of the images that share a run.",
                "s",
                ("{{model}} {{graph}}", mean("genserve_compute_seconds", "model, graph")),
            )
        )
        .with_panel(
            buckets(
                "Requests by their time",
                "How many requests took how long.",
                "s",
                "genserve_request_seconds",
            )
        )
        .with_row(dashboard.Row("Batches"))
        .with_panel(
            lines(
                "Mean rows",
                "Rows of inputs that share a run. Rows are never padded.",
                "short",
                ("{{model}} {{graph}}", mean("genserve_batch_rows", "model, graph")),
            )
        )
        .with_panel(
            lines(
                "Release reasons",
                "Why a batch was no larger: full, drained (all that was queued), or shared with "
                "idle workers.",
                "ops",
                ("{{reason}}", rate("genserve_batches_total", "reason")),
            )
        )
        .with_panel(
            buckets(
                "Batches by their rows",
                "How many batches had how many rows.",
                "short",
                "genserve_batch_rows",
            )
        )
        .with_panel(
            lines(
                "Queue",
                "Rows that wait for a worker, of all models; requests of which nothing runs yet.",
                "short",
                ("rows", "sum(genserve_queued_rows)"),
                ("requests for {{model}}", level("genserve_queued_requests", "model")),
            )
        )
        .with_row(dashboard.Row("Resources"))
        .with_panel(
            lines(
                "Memory",
                "Resident memory of each replica.",
                "bytes",
                ("{{instance}}", f"process_resident_memory_bytes{{{_PROCESS}}}"),
            )
        )
        .with_panel(
            lines(
                "CPU",
                "Cores that each replica keeps busy.",
                "short",
                ("{{instance}}", rate("process_cpu_seconds_total", "instance", _PROCESS)),
            )
        )
        .with_panel(
            lines(
                "Open files",
                "Files and connections of each replica.",
                "short",
                ("{{instance}}", f"process_open_fds{{{_PROCESS}}}"),
            )
        )
        .with_panel(
            lines(
                "Models",
                "Replicas in which a model is ready, and those in which it failed to load.",
                "short",
                ("{{model}}@{{version}} ready", level("genserve_model_ready", "model, version")),
                (
                    "{{model}}@{{version}} refused",
                    level("genserve_model_refused", "model, version"),
                ),
            )
        )
        .with_panel(
            lines(
                "Time to load",
                "Time to load, verify and warm a model.",
                "s",
                (
                    "{{model}}@{{version}}",
                    f"max by (model, version) (genserve_model_load_seconds{{{_MODEL}}})",
                ),
            )
        )
    )


def images() -> dashboard.Dashboard:
    """Return the dashboard of what generative models have: painting, and verdicts on images."""
    return (
        _empty("genserve: images", "genserve-images")
        .with_row(dashboard.Row("Progressive sampling"))
        .with_panel(
            lines(
                "Time to the first row",
                "Time from a request to the first row of its first image.",
                "s",
                ("{{model}} median", quantile(0.5, "genserve_first_row_seconds", "model")),
                ("{{model}} 95 %", quantile(0.95, "genserve_first_row_seconds", "model")),
            )
        )
        .with_panel(
            lines(
                "Busy slots",
                "Share of slots that hold an image. An alarm is raised where all stay busy while "
                "images wait.",
                "percentunit",
                ("{{model}} {{graph}}", f"model_graph:genserve_busy_slots:ratio{{{_MODEL}}}"),
            )
        )
        .with_panel(
            lines(
                "Waiting",
                "Images without a slot.",
                "short",
                ("{{model}} {{graph}}", level("genserve_waiting_images", "model, graph")),
            )
        )
        .with_panel(
            lines(
                "Rows",
                "Rows of pixels that are painted.",
                "ops",
                ("{{model}}", rate("genserve_rows_total", "model")),
            )
        )
        .with_panel(
            lines(
                "Images in a run",
                "Images that share one run, on average.",
                "short",
                (
                    "{{model}}",
                    f"{rate('genserve_rows_total', 'model')} / sum by (model) "
                    f"(rate(genserve_compute_seconds_count{{{_MODEL}}}{_WINDOW})"
                    " and on (instance, model, graph) genserve_slots)",
                ),
            )
        )
        .with_panel(
            lines(
                "Begun and unfinished",
                "Images that got a slot, and those that left it before their last row.",
                "ops",
                ("begun", rate("genserve_joined_images_total", "")),
                ("{{reason}}", rate("genserve_unfinished_images_total", "reason")),
            )
        )
        .with_row(dashboard.Row("Verdicts"))
        .with_panel(
            buckets(
                "P-values",
                "Of the score that decides: for normal images, as many in each tenth.",
                "short",
                "genserve_p_value",
            )
        )
        .with_panel(
            lines(
                "Share of anomalous images, 15 minutes",
                "For normal images about the false-positive rate that requests ask for. An alarm "
                "is raised beyond 20 %.",
                "percentunit",
                (
                    "{{model}} {{calibration}}",
                    f"model_calibration:genserve_anomalous_images:ratio_increase15m{{{_MODEL}}}",
                ),
            )
        )
        .with_panel(
            lines(
                "Drift",
                "Standard deviations by which the last images score higher than normal ones. An "
                "alarm is raised beyond 4 or -4.",
                "short",
                ("{{model}} {{calibration}} {{instance}}", f"genserve_score_drift{{{_MODEL}}}"),
            )
        )
        .with_panel(
            lines(
                "Judged images",
                "Images that were judged, by the verdict.",
                "ops",
                ("{{model}} {{verdict}}", rate("genserve_judged_images_total", "model, verdict")),
            )
        )
        .with_panel(
            lines(
                "Images that drift is of",
                "At first there are few.",
                "short",
                (
                    "{{model}} {{calibration}} {{instance}}",
                    f"genserve_score_drift_images{{{_MODEL}}}",
                ),
            )
        )
    )


def write(folder: Path) -> None:
    """Write every dashboard into a folder, as Grafana imports it."""
    folder.mkdir(parents=True, exist_ok=True)
    for build in (serving, images):
        text = JSONEncoder(sort_keys=True, indent=2).encode(build().build())
        (folder / f"{build.__name__}.json").write_text(text + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
