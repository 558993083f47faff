"""Verdicts: which calibration a request's scores are compared with, and what comes of it."""

from collections.abc import Sequence

import numpy as np

from service.core.requests import Anomaly, LikelihoodRequest, check_range
from service.core.scoring import conformal
from service.core.scoring.calibration import Calibration, Protocol
from service.core.scoring.scores import Statistics
from service.errors import GenserveError, InvalidRequest, NotCalibrated


def applicable(
    calibrations: Sequence[Calibration], request: LikelihoodRequest, protocol: Protocol
) -> Calibration | None:
    """Return the calibration that scores computed by this protocol are compared with, or None.

    Where scores are asked for, raises NotCalibrated if there is none, and InvalidRequest if there
    are several; OutOfRange for a false-positive rate or a group that it can't answer for.
    """
    wishes = _wishes(request)
    if request.parts is not None and "scores" not in request.parts:
        if wishes:
            raise InvalidRequest(f"{wishes[0]} is about scores; add scores to return")
        return None
    named = [made for made in calibrations if request.calibration in (None, made.id)]
    fitting = [made for made in named if made.protocol == protocol]
    if wishes and len(fitting) != 1:
        raise _refusal(calibrations, named, fitting, request, protocol, wishes[0])
    if len(fitting) != 1:
        return None
    if request.false_positive_rate is not None:
        conformal.rejected_ranks(request.false_positive_rate, fitting[0].count)
    if request.group:
        check_range("the number of images in a group", request.rows, 1, fitting[0].count)
    return fitting[0]


def verdict(
    calibration: Calibration, statistics: Statistics, request: LikelihoodRequest
) -> Anomaly:
    """Return the scores of statistics [N], and what they mean beside the calibration's."""
    scores = calibration.fit.score(statistics)
    p_values = {
        name: conformal.p_values(calibration.sorted_scores[name], values)
        for name, values in scores.items()
    }
    rate = request.false_positive_rate
    rate = conformal.DEFAULT_RATE if rate is None else rate
    ranks = conformal.rejected_ranks(rate, calibration.count)
    decision = calibration.decision
    decisive, compared = scores[decision], calibration.sorted_scores[decision]
    return Anomaly(
        calibration=calibration.id,
        count=calibration.count,
        decision=decision,
        scores=scores,
        p_values=p_values,
        percentile=conformal.percentiles(compared, decisive),
        q_value=conformal.q_values(p_values[decision]),
        anomalous=np.asarray(p_values[decision] <= rate),
        false_positive_rate=rate,
        realised_rate=conformal.realised_rate_interval(ranks, calibration.count),
        group_p_value=conformal.group_p_value(compared, decisive, request.seed)
        if request.group
        else None,
    )


def _wishes(request: LikelihoodRequest) -> list[str]:
    """Return the fields that ask for scores."""
    asked = {
        "false_positive_rate": request.false_positive_rate is not None,
        "calibration": request.calibration is not None,
        "group": request.group,
        "scores": request.parts is not None and "scores" in request.parts,
    }
    return [name for name, wished in asked.items() if wished]


def _refusal(
    calibrations: Sequence[Calibration],
    named: Sequence[Calibration],
    fitting: Sequence[Calibration],
    request: LikelihoodRequest,
    protocol: Protocol,
    wish: str,
) -> GenserveError:
    """Return why no single calibration answers a wish, and what would."""
    known = [made.id for made in calibrations]
    if not calibrations:
        message = (
            "the model has no calibration, so it gives no scores and p-values; make one with "
            f"genserve calibrate, or leave out {wish}"
        )
    elif not named:
        asked = str(request.calibration)[:100]
        message = f"there is no calibration {asked}; there are {', '.join(known)}"
    elif fitting:
        ids = ", ".join(made.id for made in fitting)
        return InvalidRequest(f"several calibrations apply: {ids}; name one as calibration")
    else:
        reasons = "; ".join(f"{made.id}: {protocol.difference(made.protocol)}" for made in named)
        message = (
            "no calibration was computed as this request's scores would be, so p-values would not "
            f"hold ({reasons}); ask as it was computed, or make another"
        )
    return NotCalibrated(message, calibrations=known)
