"""Drift: whether the images of late still score like those of the calibration."""

from collections import deque

import numpy as np

from service.core.requests import Anomaly
from service.core.scoring import conformal
from service.core.scoring.calibration import Calibration
from service.metrics import Metrics

WINDOW = 500
"""So many last images are compared with the calibration; of 5,000, a mean p-value of 0.45 among
them is then 3.7 standard deviations off."""


class Watch:
    """Counts the verdicts by one calibration, and tests the last `WINDOW` images for drift."""

    def __init__(self, metrics: Metrics, model: str, calibration: Calibration) -> None:
        labels = (model, calibration.id)
        self._count = calibration.count
        self._window: deque[float] = deque(maxlen=WINDOW)
        self._p_value = metrics.p_value.labels(*labels)
        self._anomalous = metrics.judged_images.labels(*labels, "anomalous")
        self._normal = metrics.judged_images.labels(*labels, "normal")
        self._drift = metrics.score_drift.labels(*labels)
        self._drift_images = metrics.score_drift_images.labels(*labels)

    def record(self, anomaly: Anomaly) -> None:
        """Take note of the verdicts on the images of one answer."""
        p_values, anomalous = anomaly.p_value.tolist(), int(anomaly.anomalous.sum())
        for p in p_values:
            self._p_value.observe(p)
        self._anomalous.inc(anomalous)
        self._normal.inc(len(p_values) - anomalous)
        self._window.extend(p_values)
        self._drift.set(conformal.drift(np.array(self._window), self._count))
        self._drift_images.set(len(self._window))
