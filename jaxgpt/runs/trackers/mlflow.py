"""MLflow: its default store in the working directory (./mlflow.db), unless MLFLOW_TRACKING_URI names another."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from jaxgpt.runs.trackers.tracker import NOTHING, PROJECT, Row, TrackedRun

T = TypeVar("T")
ID_TAG = "jaxgpt.id"
STEP = "step"  # a metric: its newest value is the last step that the store has
MOST_METRICS, MOST_PARAMS, LONGEST_PARAM = 1000, 100, 6000  # MLflow's limits for one call
_one_at_a_time = threading.Lock()  # the first use of a store makes its tables and the experiment


class MLflow:
    """A run of MLflow. Its parameters can't change, so a field that changed later is a tag with the field's name."""

    def start(self, run: TrackedRun) -> int:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when the package is imported
        with _one_at_a_time:
            from mlflow import MlflowClient
            from mlflow.entities import Metric, Param, RunTag

            for name in ("mlflow", "urllib3.connectionpool"):  # each try, and each table that is made
                logging.getLogger(name).setLevel(logging.ERROR)

            self._client, self._metric = MlflowClient(), Metric
            experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT)
            found = self._client.search_runs([experiment], f"tags.`{ID_TAG}` = '{run.id}'", max_results=1)
            if not found:
                tags = {ID_TAG: run.id, "workdir": str(run.workdir)} | (
                    {"sweep": run.group} if run.group else {}
                )
                found = [self._client.create_run(experiment, tags=tags, run_name=run.name)]
        self._id = found[0].info.run_id
        self._client.update_run(self._id, status="RUNNING")
        before: dict[str, str] = found[0].data.params
        now = {name: str(value)[:LONGEST_PARAM] for name, value in run.config.items()}
        new = [Param(name, value) for name, value in now.items() if name not in before]
        for params in _parts(new, MOST_PARAMS):
            self._client.log_batch(self._id, params=params)
        changed = [RunTag(name, now[name]) for name in before if now.get(name, before[name]) != before[name]]
        if changed:
            self._client.log_batch(self._id, tags=changed)
        return int(found[0].data.metrics.get(STEP, NOTHING))

    def log(self, rows: Sequence[Row]) -> None:
        metrics: list[Any] = []
        for row in rows:
            milliseconds = int(row.time * 1000)
            own = [
                self._metric(name, value, milliseconds, row.step)
                for name, value in {**row.numbers, STEP: row.step}.items()
            ]
            if len(metrics) + len(own) > MOST_METRICS:
                self._client.log_batch(self._id, metrics=metrics)
                metrics = []
            metrics += own
            for name, text in row.texts.items():
                self._client.log_text(self._id, text, f"{name}/{row.step:08d}.txt")
        self._client.log_batch(self._id, metrics=metrics)

    def finish(self, report: Path | None) -> None:
        if report is not None:
            self._client.log_artifact(self._id, str(report))
        self._client.set_terminated(self._id)

    def _experiment(self, name: str) -> str:
        """The id of an experiment, which another process may make at the same time."""
        if (found := self._client.get_experiment_by_name(name)) is not None:
            return found.experiment_id
        try:
            return self._client.create_experiment(name)
        except Exception:
            if (found := self._client.get_experiment_by_name(name)) is None:
                raise
            return found.experiment_id


def _parts(values: Sequence[T], size: int) -> Iterable[Sequence[T]]:
    return (values[i : i + size] for i in range(0, len(values), size))
