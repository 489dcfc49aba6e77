"""Compare candidates: which are clearly behind, and which is clearly better than the default.

Candidates are judged by the same users, so differences are paired: their standard error is that of the mean of the
differences.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from user_pipeline.recommender.defaults import Parameters

# A candidate replaces the default if it is better by this many standard errors of the difference.
CLEARLY = 1.5
# A candidate drops out if it is this many standard errors behind the best.
HOPELESS = 3.0


class Trial(NamedTuple):
    """How a candidate did.

    Attributes:
        parameters: the candidate.
        recall: mean of pages found / min(3, pages viewed for the first time).
        gain: how much better that is than the default's, in the mean.
        error: the standard error of the gain.
        users: how many users it was judged by; not all if it dropped out.
    """

    parameters: Parameters
    recall: float
    gain: float
    error: float
    users: int


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen and why.

    Attributes:
        parameters: the model.
        why: ``default``, ``playback``, or ``too little past``.
        days: how many days were played back.
        users: how many users were judged by, one on two days counting twice.
        trials: how the candidates did, in their order.
    """

    parameters: Parameters
    why: str
    days: int
    users: int
    trials: Sequence[Trial] = ()


def decide(
    recalls: NDArray[np.float64], candidates: Sequence[Parameters], default: Parameters, *, days: int = 0
) -> Choice:
    """The candidate that did best, if it is clearly better than the default.

    Args:
        recalls: candidates x users; NaN for the users after a candidate dropped out.
        candidates: the models.
        default: one of them, which does not drop out.
        days: that were played back.
    """
    reference = recalls[candidates.index(default)]
    trials = []
    for parameters, every in zip(candidates, recalls, strict=True):
        judged = ~np.isnan(every)
        recall, gain = every[judged], (every - reference)[judged]
        error = gain.std(ddof=1) / np.sqrt(len(gain))
        trials.append(Trial(parameters, float(recall.mean()), float(gain.mean()), float(error), len(gain)))
    # Rounded: sums of the same numbers in another order must not decide.
    finished = [trial for trial in trials if trial.users == recalls.shape[1]]
    best = max(finished, key=lambda trial: round(trial.gain, 9))
    if best.gain > CLEARLY * best.error:
        return Choice(best.parameters, "playback", days, best.users, trials)
    return Choice(default, "default", days, best.users, trials)


def still_running(recalls: NDArray[np.float64], running: Sequence[int], reference: int) -> list[int]:
    """The candidates that may still be the best, by the users so far, and the reference."""
    best = max(running, key=lambda number: round(float(recalls[number].mean()), 9))
    behind = recalls[best] - recalls[running]
    errors = behind.std(axis=1, ddof=1) / np.sqrt(behind.shape[1])
    is_close = behind.mean(axis=1) <= HOPELESS * errors + 1e-9
    return [number for number, close in zip(running, is_close, strict=True) if close or number == reference]
