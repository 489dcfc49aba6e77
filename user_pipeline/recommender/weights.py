"""Page-to-page weights: the EASE^R regression of every page on a few others.

EASE^R (Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019) finds the pages x pages
matrix B with a zero diagonal that minimises ``|X - X B|^2 + regularisation * |B|^2``, in closed form but
through the inverse of a dense pages x pages matrix. Its columns are separate ridge regressions. Letting each
use only K pages chosen for it, as SLIM does to be fast (Ning & Karypis, "SLIM: Sparse Linear
Methods for Top-N Recommender Systems", ICDM 2011, section III-E), leaves a K x K system a page:
``b_j = (G[N, N] + regularisation * I)^-1 G[N, j]`` with ``G = X'X`` and N the pages chosen for j. With K
covering all pages it is EASE^R; in a small catalogue it does by default.
"""

from scipy.sparse import csr_array

from user_pipeline.recommender.counting import count_co_views
from user_pipeline.recommender.defaults import MEMORY_LIMIT, REGULARISATION
from user_pipeline.recommender.interactions import Interactions
from user_pipeline.recommender.predictors import find_predictors
from user_pipeline.recommender.solve import solve


def fit(
    views: Interactions,
    *,
    neighbours: int | None = None,
    regularisation: float = REGULARISATION,
    memory_limit: int = MEMORY_LIMIT,
    n_threads: int | None = None,
) -> csr_array:
    """Learn the weights of every page on the pages that tell most about it.

    Args:
        views: users x columns.
        neighbours: K, how many pages each page is predicted from at most. None for all of them in a catalogue of at
            most ``DENSE_PAGES`` for which there is memory, otherwise ``NEIGHBOURS``.
        regularisation: the ridge penalty, in squared views.
        memory_limit: bytes to work in beside the input and its transpose, see :func:`.count_co_views`.
        n_threads: threads to use, every core by default; the result does not depend on it.

    Returns:
        Weights, columns x columns, float32 with a zero diagonal: ``scores = views @ weights``.
    """
    co_views = count_co_views(views, memory_limit=memory_limit, n_threads=n_threads)
    predictors = find_predictors(co_views, neighbours, regularisation, memory_limit=memory_limit, n_threads=n_threads)
    return solve(co_views, predictors, regularisation, n_threads=n_threads)
