"""How long the recommender takes and how much memory, beside ``implicit`` cosine and dense EASE^R.

    python benchmarks/recommender_speed.py [--sizes 200000x20000x10e6 1000000x20000x50e6] [--repeat 1]
    [--json]

Users, pages and views are synthetic: a user's number of views is log-normal; a quarter of the views go to
pages by a Zipf law over all pages, the rest by a Zipf law over the pages of the user's two fields of
interest, of 200. Views of the same page by the same user count once, as in the table of pairs the pipeline
keeps; the number of views in ``--sizes`` is the number of such pairs, about. They come in random order, which
is also that of their times, spread over 90 days.

Each peer runs in its own process and reads the same two int32 arrays, users and pages; "ours in order" a third, the
recency of each pair as the pipeline knows it; it uses all of the model, with reasons. "choice by playback" is what
the pipeline does before that, once a day, with the times of the pairs of as many users as it takes. Timed, in
seconds of wall clock: everything from these arrays to the best three unseen pages of every user, imports included. Peak
memory is that of the whole process, arrays and interpreter included. Dense EASE^R runs where 24 bytes x
pages^2 fit into ``--dense-memory`` and pages are few enough to wait for (``--dense-pages``).

``pip install 'user_pipeline[bench]'`` brings ``implicit``.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from user_pipeline.recommender.interactions import recency_of

FIELDS = 200
Codes = NDArray[np.int32]


def generate(n_users: int, n_pages: int, n_views: int, seed: int = 0) -> Iterator[tuple[Codes, Codes]]:
    """Distinct pairs of user and page, for 50,000 users at a time."""
    rng = np.random.default_rng(seed)
    everywhere = _zipf(n_pages, 1.0)
    in_field = _zipf(max(1, n_pages // FIELDS), 0.9)
    # About a third of all views repeats a pair.
    mean = 1.48 * n_views / n_users
    for first in range(0, n_users, 50_000):
        users = min(50_000, n_users - first)
        activity = rng.lognormal(-0.32, 0.8, users)
        user = np.repeat(np.arange(users), np.maximum(1, rng.poisson(mean * activity)))
        fields = rng.integers(0, FIELDS, (users, 2))
        field = fields[user, (rng.random(len(user)) < 0.3).astype(int)]
        near = np.searchsorted(in_field, rng.random(len(user))) * FIELDS + field
        far = np.searchsorted(everywhere, rng.random(len(user)))
        page = np.where(rng.random(len(user)) < 0.25, far, near) % n_pages
        pairs = rng.permutation(np.unique(user * n_pages + page))
        yield (first + pairs // n_pages).astype(np.int32), (pairs % n_pages).astype(np.int32)


def _zipf(n: int, exponent: float) -> NDArray[np.float64]:
    weight: NDArray[np.float64] = np.cumsum(1.0 / np.arange(1, n + 1) ** exponent)
    weight /= weight[-1]
    return weight


def ours(user: Codes, page: Codes, n_users: int, n_pages: int) -> int:
    """Three pages for everyone by user_pipeline."""
    from user_pipeline.recommender.interactions import interactions
    from user_pipeline.recommender.score import recommend
    from user_pipeline.recommender.weights import fit

    views = interactions(user, page, n_users=n_users, n_pages=n_pages)
    return sum(len(part.user) for part in recommend(views, fit(views)))


def in_order(user: Codes, page: Codes, n_users: int, n_pages: int, recency: Codes) -> int:
    """The same by a model that uses all the pipeline knows: order, direction and trend."""
    from user_pipeline.recommender.defaults import Parameters
    from user_pipeline.recommender.interactions import interactions
    from user_pipeline.recommender.score import recommend
    from user_pipeline.recommender.weights import fit

    views = interactions(user, page, n_users=n_users, n_pages=n_pages, recency=recency)
    parameters = Parameters(long_range=0.3, direction=0.5, trend=0.1)
    discoveries = np.bincount(page[recency == 0], minlength=n_pages)
    weights = fit(views, parameters)
    parts = recommend(views, weights, parameters, discoveries=discoveries, with_reasons=True)
    return sum(len(part.user) for part in parts)


def choice_by_playback(user: Codes, page: Codes, n_users: int, n_pages: int, time: NDArray[np.int64]) -> int:
    """Choose the model by the last days."""
    from user_pipeline.recommendations.codes import PAST_ROWS
    from user_pipeline.recommender.discoveries import Discoveries
    from user_pipeline.recommender.playback import DAY, Past, choose

    day = time // DAY
    # Every view is a first one here.
    keys, users = np.unique(day * n_pages + page, return_counts=True)
    chosen = user < n_users * min(1.0, PAST_ROWS / len(user))
    none = np.empty(0, np.int32)
    past = Past(
        user=user[chosen],
        page=page[chosen],
        time=time[chosen],
        before=(none, none),
        discoveries=Discoveries((keys % n_pages).astype(np.int32), keys // n_pages, users, n_pages),
        since=np.zeros(n_pages, np.int64),
        n_users=int(user[chosen].max()) + 1,
    )
    return choose(past, int(day.max())).users


def implicit_cosine(user: Codes, page: Codes, n_users: int, n_pages: int) -> int:
    """Three pages for everyone by implicit's cosine model, its defaults."""
    from implicit.nearest_neighbours import CosineRecommender
    from scipy.sparse import csr_matrix

    views = csr_matrix((np.ones(len(user), np.float32), (user, page)), shape=(n_users, n_pages))
    model = CosineRecommender()
    model.fit(views, show_progress=False)
    pages, _ = model.recommend(np.arange(n_users), views, N=3, filter_already_liked_items=True)
    return int(np.count_nonzero(pages >= 0))


def dense_ease(user: Codes, page: Codes, n_users: int, n_pages: int) -> int:
    """Three pages for everyone by dense EASE^R."""
    from scipy.sparse import csr_array
    from threadpoolctl import threadpool_limits

    views = csr_array((np.ones(len(user), np.float32), (user, page)), shape=(n_users, n_pages))
    gram = (views.T @ views).toarray().astype(np.float64)
    gram[np.diag_indices(n_pages)] += 20.0
    # A factorisation of this size over two BLAS threads was seen to crash.
    with threadpool_limits(1, user_api="blas"):
        weights = np.linalg.inv(gram)
    weights /= -np.diag(weights)
    np.fill_diagonal(weights, 0)
    weights = weights.astype(np.float32)
    found = 0
    for start in range(0, n_users, 2000):
        history = views[start : start + 2000]
        scores = history @ weights
        scores[history.nonzero()] = -np.inf
        found += np.argpartition(-scores, 3, axis=1)[:, :3].size
    return found


PEERS: dict[str, Callable[..., int]] = {
    "ours": ours,
    "ours in order": in_order,
    "choice by playback": choice_by_playback,
    "implicit cosine": implicit_cosine,
    "dense EASE^R": dense_ease,
}


def run(peer: str, folder: Path, n_users: int, n_pages: int) -> dict[str, Any]:
    """Time one peer in this process."""
    warnings.simplefilter("ignore")
    arrays = {name: np.load(folder / f"{name}.npy") for name in ("user", "page")}
    if peer == "ours in order":
        arrays["recency"] = np.load(folder / "recency.npy")
    if peer == "choice by playback":
        # The day has microseconds.
        arrays["time"] = (np.arange(len(arrays["user"])) * (90 * 86_400_000_000 / len(arrays["user"]))).astype(np.int64)
    began, cpu = time.perf_counter(), time.process_time()
    rows = PEERS[peer](n_users=n_users, n_pages=n_pages, **arrays)
    seconds = time.perf_counter() - began
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {
        "peer": peer,
        "seconds": seconds,
        "cpu": time.process_time() - cpu,
        "peak": peak / 2**30,
        "rows": rows,
    }


def main() -> None:
    """Measure every peer at every size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["200000x20000x10e6", "1000000x20000x50e6"])
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--repeat", type=int, default=1, help="times to run each peer, in turn; the best counts")
    parser.add_argument("--dense-memory", type=float, default=4e9)
    parser.add_argument("--dense-pages", type=int, default=6000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--run", nargs=4, metavar=("PEER", "FOLDER", "USERS", "PAGES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        peer, folder, n_users, n_pages = arguments.run
        print(json.dumps(run(peer, Path(folder), int(n_users), int(n_pages))))
        return
    report = []
    for size in arguments.sizes:
        n_users, n_pages, n_views = (int(float(number)) for number in size.split("x"))
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            parts = list(generate(n_users, n_pages, n_views))
            order = np.random.default_rng(0).permutation(sum(len(part[0]) for part in parts))
            for column, label in enumerate(["user", "page"]):
                np.save(folder / f"{label}.npy", np.concatenate([part[column] for part in parts])[order])
            pairs = len(order)
            # Of a user the pairs stand in random order, and the last of them was viewed last.
            user = np.load(folder / "user.npy")
            np.save(folder / "recency.npy", recency_of(user, np.arange(pairs)))
            del parts, order, user
            if not arguments.json:
                print(f"{n_users} users x {n_pages} pages, {pairs / 1e6:.1f} M views")
                print(f"  {'':20}{'seconds':>9}{'CPU s':>9}{'peak GiB':>10}{'of implicit':>13}")
            results = [
                result
                for _ in range(arguments.repeat)
                for peer in arguments.peers
                if (result := _start(peer, folder, n_users, n_pages, arguments)) is not None
            ]
        best = {
            peer: min((r for r in results if r["peer"] == peer), key=lambda r: r["seconds"], default=None)
            for peer in arguments.peers
        }
        reference = best.get("implicit cosine")
        for peer, result in best.items():
            if result is None:
                continue
            if not arguments.json:
                ratio = f"{result['seconds'] / reference['seconds']:13.2f}" if reference else ""
                print(f"  {peer:20}{result['seconds']:9.1f}{result['cpu']:9.1f}{result['peak']:10.2f}{ratio}")
        report.append({"users": n_users, "pages": n_pages, "views": pairs, "results": results})
    if arguments.json:
        print(json.dumps(report, indent=2))


def _start(peer: str, folder: Path, n_users: int, n_pages: int, arguments: argparse.Namespace) -> dict[str, Any] | None:
    if peer == "dense EASE^R" and (24 * n_pages**2 > arguments.dense_memory or n_pages > arguments.dense_pages):
        return None
    command = [sys.executable, __file__, "--run", peer, str(folder), str(n_users), str(n_pages)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"  {peer} failed: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


if __name__ == "__main__":
    main()
