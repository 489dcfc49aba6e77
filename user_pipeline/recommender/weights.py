"""Page-to-page weights: the ridge regression of every page on others, EASE^R and a family around it.

EASE^R (Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019) finds the pages x pages matrix B with a
zero diagonal that minimizes ``|X - X B|^2 + lambda |B|^2``. But for a constant this is

    tr(B' (G + lambda I) B) - 2 tr(B' R)    with G = R = X'X,

so all that is known of the views is how often two pages go together: G among the pages that predict, R between them
and the page that is predicted. The family lets both know the order of the views. Two pages of a user D positions
apart count ``k(D) = c + (1 - c) e^-D`` in G; R says more of what came after. With E as in :mod:`.order`:

    G = c X'X + (1 - c) (E + E')          the viewers of each page on the diagonal
    A = (1 - c) (E - E')
    R = G + d A                           R[i, j]: how much i, the page seen, speaks for j

Counted as ordered pairs, ``F = c F_all + (1 - c) E``, this is ``G = F + F'`` if pages that share a position count half
in each direction, as they do in E; then ``c = 1`` gives X'X. In A the part ``c (F_all - F_all')`` is left out: it would
take a second count of all pairs of all users. Measured as recall@3 of the next page with c = 0.3 and d = 0.5, it adds
.001 for page navigation (.176), .015 on a travel site (.180) and .001 for game reviews (.037). With c = 0, where it
makes no difference, these are .258, .217 and .038.

With a Lagrange multiplier for each element of the diagonal and ``P = (G + lambda I)^-1`` the minimum is where
``(G + lambda I) B = R - diag(g)``, that is ``B = P (G + d A - diag(g)) = I + d P A - P diag(h)`` with
``h = g + lambda``. Its diagonal is zero if ``h = (1 + d diag(P A)) / diag(P)``. Off the diagonal, then:

    B = d P A - P diag((1 + d diag(P A)) / diag(P))

and EASE^R's ``-P / diag(P)`` with d = 0, c = 1. The columns are separate regressions. Letting each use only K pages
chosen for it, as SLIM does to be fast (Ning & Karypis, "SLIM: Sparse Linear Methods for Top-N Recommender Systems",
ICDM 2011, section III-E), leaves a K x K system a page: ``b_j = (G[N, N] + lambda I)^-1 R[N, j]`` with N the pages
chosen for j. With K covering all pages it is the same; in a small catalog it does by default.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from user_pipeline.recommender.co_views import CoViews
from user_pipeline.recommender.counting import count_co_views
from user_pipeline.recommender.defaults import EASE, MEMORY_LIMIT, Parameters
from user_pipeline.recommender.interactions import Interactions
from user_pipeline.recommender.order import EARLIER, Order, weigh_by_distance
from user_pipeline.recommender.predictors import find_predictors
from user_pipeline.recommender.solve import solve


def fit(
    views: Interactions,
    parameters: Parameters = EASE,
    *,
    neighbours: int | None = None,
    regularisation: float | None = None,
    memory_limit: int = MEMORY_LIMIT,
    n_threads: int | None = None,
) -> csr_array:
    """Learn the weights of every page on the pages that tell most about it.

    Args:
        views: users x columns; in order if ``parameters.long_range`` is below 1.
        parameters: which model; ``trend`` has no effect here.
        neighbours: K, how many pages each page is predicted from at most. None for all of them in a catalog of at
            most ``DENSE_PAGES`` for which there is memory, otherwise ``NEIGHBOURS``.
        regularisation: in the place of that of ``parameters``.
        memory_limit: bytes to work in beside the input and its transpose, see :func:`.count_co_views`. With order 13
            bytes a view come on top.
        n_threads: threads to use, every core by default; the result does not depend on it.

    Returns:
        Weights, columns x columns, float32 with a zero diagonal: ``scores = views @ weights``.

    Raises:
        ValueError: the model needs an order and the views have none.
    """
    if regularisation is not None:
        parameters = replace(parameters, regularisation=regularisation)
    penalty, lead = parameters.regularisation, None
    if not parameters.is_ordered:
        co_views = count_co_views(views, memory_limit=memory_limit, n_threads=n_threads)
    else:
        co_views, order = _count_in_order(views, parameters.long_range, memory_limit, n_threads)
        factor = parameters.direction * (1 - parameters.long_range)

        def lead_of(start: int, stop: int) -> NDArray[np.float64]:
            return order.rows(start, stop, factor * EARLIER)

        lead = lead_of if factor else None
    predictors = find_predictors(
        co_views,
        neighbours,
        penalty,
        is_ordered=parameters.is_ordered,
        lead=lead,
        memory_limit=memory_limit,
        n_threads=n_threads,
    )
    return solve(co_views, predictors, penalty, lead=lead, n_threads=n_threads)


def _count_in_order(
    views: Interactions, long_range: float, memory_limit: int, n_threads: int | None
) -> tuple[CoViews, Order]:
    """G of a model that knows the order."""
    if long_range:
        co_views = count_co_views(views, memory_limit=memory_limit, n_threads=n_threads, cell=np.float32)
    else:
        co_views = CoViews.blank(views.popularity.astype(np.float64), memory_limit, np.float32)
    order = Order.of(views)
    return weigh_by_distance(co_views, order, long_range, memory_limit=memory_limit, n_threads=n_threads), order
