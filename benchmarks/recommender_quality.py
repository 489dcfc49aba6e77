"""How well the recommender ranks held-out pages, beside the usual baselines, on any data set.

    python benchmarks/recommender_quality.py DATA [DATA ...] [--split temporal] [--seeds 0 1 2] [--json]
    python benchmarks/recommender_quality.py DATA [DATA ...] --choose

DATA is one data set, in one file or several, gzipped or not, in one of three formats (or "sequences" or
"interests", which are made up, with counts and times: pages that lead to each other, pages of a field):

- pairs: ``user item [count] [timestamp]`` a line, separated by white space or commas, with or without a
  header. A lone third column is a timestamp if its median passes 10^8, else a count; ``--columns`` overrides.
- msweb: the UCI "anonymous web data" format, with lines ``C,"id",id`` and ``V,id,1``.
- transactions: one user a line, items separated by white space (and by -1 and -2, as SPMF writes them).

The random split holds out 20 % of the pages of every user with at least 5. The temporal split trains on the
first 80 % of the views by time and holds out the pages users who were there before view for the first time.
Rankings never hold a page the user saw in training. Whatever has a parameter chooses it by recall@3 on a
validation split of each training set, made like the random split, averaged over the seeds, over the grids
below; "ours, defaults" has nothing to choose. Dense EASE^R works in 24 bytes x pages^2 and is left out where
that passes ``--dense-memory``: ``--pages`` keeps the most popular pages so that it fits.

``--choose`` is how the defaults were chosen: it prints recall@3 for each regularisation and each number of
predictors, on the validation splits alone. Nothing held out for testing is looked at.

``pip install 'user_pipeline[bench]'`` brings ``implicit``; without it its models are left out.
"""

import argparse
import gzip
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csc_array, csr_array, csr_matrix, diags_array

from benchmarks.evaluate import leave_out, measure
from user_pipeline.recommender.co_views import largest_in_rows
from user_pipeline.recommender.counting import count_co_views
from user_pipeline.recommender.defaults import MEMORY_LIMIT, REGULARISATION
from user_pipeline.recommender.interactions import Interactions, interactions
from user_pipeline.recommender.parallel import single_threaded_blas
from user_pipeline.recommender.predictors import DENSE_PAGES
from user_pipeline.recommender.score import recommend
from user_pipeline.recommender.weights import fit

RANKED = 20
# What a method chooses: nothing, a number or several.
Parameter: TypeAlias = Any
GRIDS: dict[str, list[Parameter]] = {
    "popularity": [None],
    "item cosine": [20, 100, 500],
    "RP3beta": [0.0, 0.2, 0.4, 0.6, 0.8],
    "implicit cosine": [20, 100, 500],
    "implicit TF-IDF": [20, 100, 500],
    "implicit BM25": [(k, k1, b) for k in (20, 100, 500) for k1, b in ((1.2, 0.75), (100.0, 0.5))],
    "implicit ALS": [(f, alpha, r) for f in (32, 128) for alpha in (10.0, 40.0) for r in (0.01, 100.0, 300.0, 1000.0)],
    "dense EASE^R": [5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0],
    "ours, defaults": [None],
    "ours": [5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0],
}
NEIGHBOURS = (50, 100, 150, 200)
PARAMETERS = {
    "item cosine": "neighbours",
    "RP3beta": "beta",
    "implicit cosine": "K",
    "implicit TF-IDF": "K",
    "implicit BM25": "K, K1, B",
    "implicit ALS": "factors, alpha, regularization",
    "dense EASE^R": "regularisation",
    "ours": "regularisation",
}

Scores = Callable[[csr_array], NDArray[np.floating[Any]]]
Pages = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Views:
    """A data set in codes, one entry a line of it."""

    user: NDArray[np.int64]
    page: NDArray[np.int64]
    count: NDArray[np.float64]
    time: NDArray[np.float64] | None = None

    def chosen(self, which: NDArray[np.bool_]) -> "Views":
        """Some of the entries, users and pages numbered anew."""
        return Views(
            pd.factorize(self.user[which], sort=True)[0],
            pd.factorize(self.page[which], sort=True)[0],
            self.count[which],
            None if self.time is None else self.time[which],
        )


@dataclass(frozen=True, slots=True)
class Split:
    """What to learn from, and users x page codes to be found."""

    train: Interactions
    held_out: csr_array


def read(paths: list[Path], layout: str, columns: list[str] | None) -> Views:
    """Read one data set, or make one up."""
    if [str(path) for path in paths] in (["sequences"], ["interests"]):
        return sequences() if str(paths[0]) == "sequences" else interests()
    files = [[line for line in _lines(path) if line] for path in paths]
    lines = [line for file in files for line in file]
    layout = _layout(lines) if layout == "auto" else layout
    if layout == "pairs":
        return _pairs(lines, columns)
    if layout == "msweb":
        # Its two files number their users alike, though they are not the same.
        views = [(f"{number} {user}", page) for number, file in enumerate(files) for user, page in _msweb(file)]
        user, page = zip(*views, strict=True)
    else:
        items = [[item for item in line.split() if item not in {"-1", "-2"}] for line in lines]
        user = tuple(np.repeat(np.arange(len(items)), [len(item) for item in items]).tolist())
        page = tuple(item for line in items for item in line)
    return Views(_codes(user), _codes(page), np.ones(len(user)))


def sequences(n_users: int = 60_000, n_pages: int = 8000, steps: int = 9, onward: int = 5) -> Views:
    """Each page leads to a few others, the first of them most often; users follow, and some go back and forth."""
    rng = np.random.default_rng(0)
    following = rng.integers(0, n_pages, (n_pages, onward))
    here, pages = (n_pages * rng.random(n_users) ** 2).astype(np.int64), []
    for _ in range(steps):
        pages.append(here)
        here = following[here, np.minimum(rng.geometric(0.45, n_users) - 1, onward - 1)]
    begin = rng.random(n_users)
    return Views(
        np.tile(np.arange(n_users), steps),
        _codes(np.concatenate(pages).tolist()),
        rng.geometric(0.6, n_users * steps).astype(np.float64),
        np.concatenate([begin + 0.01 * step for step in range(steps)]),
    )


def interests(n_users: int = 40_000, n_pages: int = 10_000, n_views: int = 1_200_000, fields: int = 100) -> Views:
    """Half of all views are of the popular pages, the others of one's field, in which a page is viewed more often."""
    rng = np.random.default_rng(0)
    user = rng.choice(n_users, n_views, p=rng.dirichlet(np.full(n_users, 2.0)))
    field = rng.integers(0, fields, n_users)[user]
    is_own = rng.random(n_views) < 0.5
    rank = (n_pages ** rng.random(n_views)).astype(np.int64) - 1
    page = np.where(is_own, rank // fields * fields + field, rank) % n_pages
    count = rng.geometric(np.where(is_own, 0.4, 0.8)).astype(np.float64)
    return Views(_codes(user.tolist()), _codes(page.tolist()), count, rng.random(n_views))


def _lines(path: Path) -> Iterator[str]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8", errors="replace") as file:
        yield from map(str.strip, file)


def _layout(lines: list[str]) -> str:
    head = lines[:2000]
    if any(line.startswith('C,"') for line in head):
        return "msweb"
    widths = {len(line.replace(",", " ").split()) for line in head}
    return "pairs" if len(widths) == 1 and widths <= {2, 3, 4} else "transactions"


def _msweb(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    user = ""
    for line in lines:
        kind, *fields = line.split(",")
        if kind == "C":
            user = fields[1]
        elif kind == "V":
            yield user, fields[0]


def _pairs(lines: list[str], columns: list[str] | None) -> Views:
    rows = pd.Series(lines).str.split(r"[\s,]+", regex=True, expand=True)
    numbers = rows.iloc[:, 2:].apply(pd.to_numeric, errors="coerce")
    if rows.shape[1] > 2 and numbers.iloc[0].isna().any():
        rows, numbers = rows.iloc[1:], numbers.iloc[1:]
    if columns is None:
        is_time = numbers.shape[1] == 1 and numbers.iloc[:, 0].median() > 1e8
        columns = ["time"] if is_time else ["count", "time"][: numbers.shape[1]]
    values = {name: numbers.iloc[:, i].to_numpy(np.float64) for i, name in enumerate(columns)}
    return Views(_codes(rows[0]), _codes(rows[1]), values.get("count", np.ones(len(rows))), values.get("time"))


def _codes(labels: "Sequence[str] | Sequence[int] | pd.Series[str]") -> NDArray[np.int64]:
    return pd.factorize(pd.Series(labels), sort=True)[0]


def capped(views: Views, users: int | None, pages: int | None) -> Views:
    """The most popular pages only, then a random choice of users (always the same)."""
    if pages is not None:
        order = np.argsort(-np.bincount(views.page), kind="stable")[:pages]
        views = views.chosen(np.isin(views.page, order))
    if users is not None and users <= views.user.max():
        kept = np.random.default_rng(0).permutation(views.user.max() + 1)[:users]
        views = views.chosen(np.isin(views.user, kept))
    return views


def random_split(views: Views, seed: int) -> Split:
    """Hold out 20 % of the pages of every user with at least 5."""
    shape = (int(views.user.max()) + 1, int(views.page.max()) + 1)
    counts = csr_array((views.count, (views.user, views.page)), shape=shape)
    return _split(*leave_out(counts, seed=seed))


def temporal_split(views: Views) -> Split:
    """Hold out what users who viewed something in the first 80 % view for the first time afterwards."""
    if views.time is None:
        sys.exit("A temporal split needs timestamps.")
    shape = (int(views.user.max()) + 1, int(views.page.max()) + 1)
    early = views.time <= np.quantile(views.time, 0.8)
    train = csr_array((views.count[early], (views.user[early], views.page[early])), shape=shape)
    later = csr_array((np.ones(np.count_nonzero(~early)), (views.user[~early], views.page[~early])), shape=shape)
    is_new = later - later.multiply(train.astype(np.bool_))
    known = diags_array((np.diff(train.indptr) > 0).astype(np.float64)) @ is_new
    held_out = csr_array(known)
    held_out.eliminate_zeros()
    return _split(train, held_out)


def _split(train: csr_array, held_out: csr_array) -> Split:
    entries = train.tocoo()
    n_users, n_pages = train.shape
    views = interactions(entries.row, entries.col, n_users=n_users, n_pages=n_pages)
    return Split(views, held_out)


def ranked(method: str, parameter: Parameter, split: Split, users: NDArray[np.int64]) -> Pages:
    """Train a method and rank: users x RANKED page codes, -1 where it has none."""
    views = split.train
    if method.startswith("ours"):
        regularisation, neighbours = parameter if isinstance(parameter, tuple) else (parameter, None)
        weights = fit(views, neighbours=neighbours, regularisation=regularisation or REGULARISATION)
        out = np.full((views.matrix.shape[0], RANKED), -1)
        for part in recommend(views.of(users), weights, top_n=RANKED):
            out[part.user, part.rank - 1] = part.page
        return out[: len(users)]
    if method.startswith("implicit"):
        return _implicit(method, parameter, views, users)
    models: dict[str, Callable[[Interactions, Any], Scores]] = {
        "popularity": _popularity,
        "item cosine": _cosine,
        "RP3beta": _rp3beta,
        "dense EASE^R": _ease,
    }
    scores = models[method](views, parameter)
    parts = []
    step = max(1, 2**25 // views.matrix.shape[1])
    for start in range(0, len(users), step):
        history = views.matrix[users[start : start + step]].astype(np.float64)
        found = scores(history) + 1e-9 * views.popularity / views.popularity.max()
        found[history.nonzero()] = -np.inf
        best = np.argsort(-found, axis=1, kind="stable")[:, :RANKED] if found.shape[1] < 1000 else _top(found)
        pages = np.where(np.isneginf(np.take_along_axis(found, best, 1)), -1, views.pages[best])
        parts.append(np.pad(pages, ((0, 0), (0, RANKED - pages.shape[1])), constant_values=-1))
    return np.concatenate(parts)


def _top(scores: NDArray[np.floating[Any]]) -> NDArray[np.intp]:
    best = np.argpartition(-scores, RANKED, axis=1)[:, :RANKED]
    return np.take_along_axis(best, np.argsort(-np.take_along_axis(scores, best, 1), axis=1, kind="stable"), 1)


def _popularity(views: Interactions, _: None) -> Scores:
    return lambda history: np.tile(views.popularity.astype(np.float64), (history.shape[0], 1))


def _cosine(views: Interactions, neighbours: int) -> Scores:
    co_views = count_co_views(views, memory_limit=MEMORY_LIMIT)
    n, norm = co_views.n, np.sqrt(co_views.diagonal)
    near, pages = [], []
    for start in range(0, n, co_views.block):
        stop = min(start + co_views.block, n)
        cosine = co_views.rows(start, stop) / norm / norm[start:stop, None]
        cosine[np.arange(stop - start), np.arange(start, stop)] = -1
        # A stable sort: of equally near pages the more popular come first.
        pages.append(np.argsort(-cosine, axis=1, kind="stable")[:, : min(neighbours, n - 1)])
        near.append(np.take_along_axis(cosine, pages[-1], axis=1))
    ends = np.arange(n + 1) * min(neighbours, n - 1)
    values, rows = np.concatenate(near).ravel(), np.concatenate(pages).ravel()
    similar = csc_array((values, rows, ends), shape=(n, n)).tocsr()
    return lambda history: (history @ similar).toarray()


def _rp3beta(views: Interactions, beta: float) -> Scores:
    """Paudel et al., "Updatable, accurate, diverse, and scalable recommendations", TiiS 2017; three steps."""
    x = views.matrix.astype(np.float64)
    user_degree, page_degree = x.sum(axis=1), x.sum(axis=0)
    to_page = diags_array(1 / np.maximum(user_degree, 1e-12)) @ x
    walk = diags_array(1 / page_degree) @ (x.T @ to_page) @ diags_array(page_degree**-beta)
    walk = largest_in_rows(csr_array(walk), 2000)
    return lambda history: (history @ walk).toarray()


def _ease(views: Interactions, regularisation: float) -> Scores:
    """Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019."""
    x = views.matrix.astype(np.float64)
    # A factorisation of this size over two BLAS threads was seen to crash.
    with single_threaded_blas():
        inverse = np.linalg.inv((x.T @ x).toarray() + regularisation * np.eye(x.shape[1]))
    inverse /= -np.diag(inverse)
    np.fill_diagonal(inverse, 0)
    return lambda history: history @ inverse


def _implicit(method: str, parameter: Parameter, views: Interactions, users: NDArray[np.int64]) -> Pages:
    from implicit.als import AlternatingLeastSquares
    from implicit.nearest_neighbours import BM25Recommender, CosineRecommender, TFIDFRecommender

    x = csr_matrix(views.matrix.astype(np.float32))
    if method != "implicit ALS":
        if method == "implicit BM25":
            k, k1, b = parameter
            model = BM25Recommender(K=k, K1=k1, B=b)
        else:
            model = {"implicit cosine": CosineRecommender, "implicit TF-IDF": TFIDFRecommender}[method](K=parameter)
        model.fit(x, show_progress=False)
    else:
        factors, alpha, regularization = parameter
        model = AlternatingLeastSquares(factors, alpha=alpha, regularization=regularization, random_state=0)
        with single_threaded_blas():
            model.fit(x, show_progress=False)
    # Its item models return pages the user has seen where nothing else scores; they are dropped here.
    ask = min(RANKED + 10, x.shape[1])
    columns, scores = model.recommend(users, x[users], N=ask, filter_already_liked_items=True)
    out = np.full((len(users), RANKED), -1)
    seen = x[users]
    for i, (line, score) in enumerate(zip(columns, scores, strict=True)):
        history = seen.indices[seen.indptr[i] : seen.indptr[i + 1]]
        good = line[(line >= 0) & np.isfinite(score) & (score > -1e30) & ~np.isin(line, history)][:RANKED]
        out[i, : len(good)] = views.pages[good]
    return out


def main() -> None:
    """Measure every method on every seed and print the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--format", choices=["auto", "pairs", "msweb", "transactions"], default="auto")
    parser.add_argument("--columns", nargs="*", choices=["count", "time", "-"], help="what follows user and item")
    parser.add_argument("--split", choices=["random", "temporal"], default="random")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--users", type=int, help="keep this many users, chosen at random")
    parser.add_argument("--pages", type=int, help="keep this many of the most popular pages")
    parser.add_argument("--ranked-users", type=int, default=50_000, help="rank for at most this many users")
    parser.add_argument("--dense-memory", type=float, default=4e9, help="bytes dense EASE^R may take")
    parser.add_argument("--methods", nargs="+", choices=list(GRIDS), default=list(GRIDS))
    parser.add_argument("--choose", action="store_true", help="print what each parameter gives on validation")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()

    views = capped(read(arguments.data, arguments.format, arguments.columns), arguments.users, arguments.pages)
    temporal = arguments.split == "temporal"
    splits = [temporal_split(views)] if temporal else [random_split(views, seed) for seed in arguments.seeds]
    validation = [_validation(split) for split in splits]
    if arguments.choose:
        _print_choices(validation, arguments.ranked_users)
        return
    n_users, n_pages = splits[0].held_out.shape
    pairs = splits[0].train.matrix.nnz + splits[0].held_out.nnz
    conditions = f"{arguments.split} split, seeds {arguments.seeds}"
    notes = [f"{n_users} users, {n_pages} pages, {pairs} pairs, {conditions}"]
    methods = list(arguments.methods)
    if 24 * n_pages**2 > arguments.dense_memory and "dense EASE^R" in methods:
        methods.remove("dense EASE^R")
        fits = int((arguments.dense_memory / 24) ** 0.5)
        notes.append(f"dense EASE^R left out: it needs {24e-9 * n_pages**2:.1f} GB; --pages {fits} would fit")
    if not _has_implicit() and any(method.startswith("implicit") for method in methods):
        methods = [method for method in methods if not method.startswith("implicit")]
        notes.append("implicit is not installed (pip install 'user_pipeline[bench]'): its models are left out")

    results = []
    for method in methods:
        began = time.perf_counter()
        parameter = _tuned(method, validation, arguments.ranked_users)
        rows = [_measured(method, parameter, split, arguments.ranked_users) for split in splits]
        means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        chosen = f"{PARAMETERS[method]} = {parameter}" if method in PARAMETERS else ""
        results.append({"method": method, **means, "chosen": chosen, "seconds": time.perf_counter() - began})
        print(f"{method} done in {results[-1]['seconds']:.0f} s", file=sys.stderr)
    if arguments.json:
        print(json.dumps({"notes": notes, "results": results}, indent=2))
    else:
        _print(notes, results)


def _validation(split: Split) -> Split:
    """Split the training data again; only the codes survive in it."""
    x = split.train.matrix
    counts = csr_array(x.astype(np.float64))
    full = csr_array((counts.data, split.train.pages[counts.indices], counts.indptr), shape=split.held_out.shape)
    return _split(*leave_out(full, seed=12345))


def _tuned(method: str, validation: list[Split], ranked_users: int) -> Parameter:
    grid = GRIDS[method]
    if len(grid) == 1:
        return grid[0]

    def recall(value: Parameter) -> float:
        return sum(_measured(method, value, split, ranked_users)["recall@3"] for split in validation)

    return max(grid, key=recall)


def _measured(method: str, parameter: Parameter, split: Split, ranked_users: int) -> dict[str, float]:
    users = np.flatnonzero(np.diff(split.held_out.indptr) > 0)
    if len(users) > ranked_users:
        users = np.sort(np.random.default_rng(0).permutation(users)[:ranked_users])
    pages = ranked(method, parameter, split, users)
    short = measure(pages, split.held_out[users], 3)
    return {
        "recall@3": short.recall,
        "NDCG@3": short.ndcg,
        "hit@3": short.hit_rate,
        "recall@20": measure(pages, split.held_out[users], RANKED).recall,
        "coverage": short.coverage,
    }


def _print_choices(validation: list[Split], ranked_users: int) -> None:
    """Recall@3 of ours on validation, regularisation by number of predictors."""
    n_pages = len(validation[0].train.pages)
    columns = [k for k in NEIGHBOURS if k < n_pages] + [n_pages] * (n_pages <= DENSE_PAGES)
    print(f"{'':>14}" + "".join(f"{f'K = {k}' if k < n_pages else 'all pages':>11}" for k in columns))
    for regularisation in GRIDS["ours"]:
        row = [
            np.mean([_measured("ours", (regularisation, k), split, ranked_users)["recall@3"] for split in validation])
            for k in columns
        ]
        print(f"{regularisation:14g}" + "".join(f"{recall:11.4f}" for recall in row), flush=True)


def _has_implicit() -> bool:
    try:
        import implicit  # noqa: F401 - an extra
    except ImportError:
        return False
    return True


def _print(notes: list[str], results: list[dict[str, Any]]) -> None:
    print(*notes, sep="\n")
    names = ["recall@3", "NDCG@3", "hit@3", "recall@20", "coverage"]
    print(f"{'':16}" + "".join(f"{name:>11}" for name in names) + "  chosen on validation")
    for row in results:
        print(f"{row['method']:16}" + "".join(f"{row[name]:11.4f}" for name in names) + f"  {row['chosen']}")


if __name__ == "__main__":
    main()
