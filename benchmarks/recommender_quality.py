"""How well the recommender ranks held-out pages, beside the usual baselines, on any data set.

    python benchmarks/recommender_quality.py DATA [DATA ...] [--split random|temporal|next|nextday] [--json]
    python benchmarks/recommender_quality.py DATA [DATA ...] --choose

DATA is one data set, in one file or several, gzipped or not, in one of four formats (or "sequences" or
"interests", which are made up, with counts and times: pages that lead to each other, pages of a field):

- events: CSV of ``user,item,unix_timestamp``, with or without a header.
- pairs: ``user item [count] [timestamp]`` a line, separated by white space or commas, with or without a
  header. A lone third column is a timestamp if its median passes 10^8, else a count; ``--columns`` overrides.
- msweb: the UCI "anonymous web data" format, with lines ``C,"id",id`` and ``V,id,1``.
- transactions: one user a line, items separated by white space (and by -1 and -2, as SPMF writes them).

The splits:

- random holds out 20 % of the pages of every user with at least 5.
- temporal trains on the first 80 % of the views by time and holds out the pages users who were there before view for
  the first time.
- next holds out the last 20 % of the pages that were new to each user with at least 5 events, and drops all of the
  user's events from the first of these on.
- nextday plays days back as the product does: it learns from the window of 90 days up to a day, for the users active in
  it, and looks for the pages each of them views for the first time on the next day. ``--days`` of them are chosen at
  random from the second half.

Rankings never hold a page the user saw before. Whatever has a parameter chooses it by recall@3 on a validation split of
each training set, over the grids of ``benchmarks/methods.py``: made like the random split, for next like the next one,
and for nextday on five days from before the second half. "ours" chooses as the product does: on nextday by playing back
the days up to each day, otherwise by the same rule on the validation split. "ours, defaults" has nothing to choose, nor
has "EASE^R 20". Dense models work in 24 bytes x pages^2 and are left out where that passes ``--dense-memory``:
``--pages`` keeps the most popular pages so that it fits. ``+-`` is the standard error of recall@3 over users.

``--choose`` prints recall@3 for each regularisation and each number of predictors, on the validation splits alone.
Nothing held out for testing is looked at.

``pip install 'user_pipeline[bench]'`` brings ``implicit``; without it its models are left out.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from benchmarks.datasets import FORMATS, MalformedLineError, Views, capped, read
from benchmarks.evaluate import Measures, leave_out, measure_users
from benchmarks.methods import (
    DENSE,
    GRIDS,
    IN_TIME,
    PARAMETERS,
    RANKED,
    REGULARISATIONS,
    Parameter,
    candidates,
    ours,
    ranked,
)
from benchmarks.splits import (
    Split,
    days_to_play,
    next_split,
    nextday_split,
    of_counts,
    random_split,
    temporal_split,
)
from user_pipeline.recommender.defaults import Parameters
from user_pipeline.recommender.playback import choose
from user_pipeline.recommender.predictors import DENSE_PAGES
from user_pipeline.recommender.race import decide

NEIGHBOURS = (50, 100, 150, 200)
VALIDATION_DAYS = 5


def main() -> None:
    """Measure every method on every split and print the means."""
    arguments = _arguments()
    try:
        views = read(arguments.data, arguments.format, arguments.columns)
    except (MalformedLineError, OSError) as error:
        sys.exit(str(error))
    views = capped(views, arguments.users, arguments.pages)
    splits, validation = _splits(views, arguments)
    if arguments.choose:
        _print_choices(validation, arguments.ranked_users)
        return
    n_pages = int(views.page.max()) + 1
    judged = sum(int(np.count_nonzero(np.diff(split.held_out.indptr))) for split in splits)
    notes = [f"{int(views.user.max()) + 1} users, {n_pages} pages, {len(views.user)} views, {_conditions(arguments)}"]
    notes.append(f"{judged} users judged by, in {len(splits)} splits")
    methods = _methods(arguments, splits, n_pages, notes)
    results = []
    for method in methods:
        began = time.perf_counter()
        result = _result(method, splits, validation, arguments.ranked_users)
        results.append({**result, "seconds": time.perf_counter() - began})
        print(f"{method} done in {results[-1]['seconds']:.0f} s", file=sys.stderr)
    if arguments.json:
        print(json.dumps({"notes": notes, "results": results}, indent=2))
    else:
        _print(notes, results)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--format", choices=FORMATS, default="auto")
    parser.add_argument("--columns", nargs="*", choices=["count", "time", "-"], help="of pairs: after user and item")
    parser.add_argument("--split", choices=["random", "temporal", "next", "nextday"], default="random")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the random split")
    parser.add_argument("--days", type=int, default=20, help="how many days nextday plays back")
    parser.add_argument(
        "--min-viewers", type=int, default=1, help="nextday: as USER_PIPELINE_RECOMMENDATION_MIN_VIEWERS"
    )
    parser.add_argument("--users", type=int, help="keep this many users, chosen at random")
    parser.add_argument("--pages", type=int, help="keep this many of the most popular pages")
    parser.add_argument("--ranked-users", type=int, default=50_000, help="rank for at most this many users")
    parser.add_argument("--dense-memory", type=float, default=4e9, help="bytes a dense model may take")
    parser.add_argument("--methods", nargs="+", choices=list(GRIDS), default=list(GRIDS))
    parser.add_argument("--choose", action="store_true", help="print what each parameter gives on validation")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _conditions(arguments: argparse.Namespace) -> str:
    detail = {"random": f", seeds {arguments.seeds}", "nextday": f", {arguments.days} days"}
    return f"{arguments.split} split{detail.get(arguments.split, '')}"


def _splits(views: Views, arguments: argparse.Namespace) -> tuple[list[Split], list[Split]]:
    """What to measure on, and what to choose parameters by."""
    if arguments.split == "next":
        held = next_split(views)
        assert held.events is not None  # noqa: S101 - for the type checker
        return [held], [next_split(held.events)]
    if arguments.split == "nextday":
        played = [
            [split for day in days if (split := nextday_split(views, day, arguments.min_viewers))]
            for days in (
                days_to_play(views, arguments.days, 0.5, 1.0),
                days_to_play(views, VALIDATION_DAYS, 0.25, 0.5),
            )
        ]
        if not played[0]:
            sys.exit("No user views a new page on the day after another: there is nothing to play back.")
        return played[0], played[1] or played[0][:1]
    if arguments.split == "temporal":
        splits = [temporal_split(views)]
    else:
        splits = [random_split(views, seed) for seed in arguments.seeds]
    return splits, [_validation(split) for split in splits]


def _validation(split: Split) -> Split:
    """Split the training data again; only the codes survive in it."""
    x = split.train.matrix
    counts = csr_array(x.astype(np.float64))
    full = csr_array((counts.data, split.train.pages[counts.indices], counts.indptr), shape=split.held_out.shape)
    return of_counts(*leave_out(full, seed=12345))


def _methods(arguments: argparse.Namespace, splits: list[Split], n_pages: int, notes: list[str]) -> list[str]:
    """The methods that can be measured; notes tell of the others."""
    methods = list(arguments.methods)
    if splits[0].discoveries is None:
        methods = [method for method in methods if method not in IN_TIME]
    if 24 * n_pages**2 > arguments.dense_memory and set(DENSE) & set(methods):
        methods = [method for method in methods if method not in DENSE]
        fits = int((arguments.dense_memory / 24) ** 0.5)
        notes.append(f"dense models left out: they need {24e-9 * n_pages**2:.1f} GB; --pages {fits} would fit")
    if not _has_implicit() and any(method.startswith("implicit") for method in methods):
        methods = [method for method in methods if not method.startswith("implicit")]
        notes.append("implicit is not installed (pip install 'user_pipeline[bench]'): its models are left out")
    return methods


def _result(method: str, splits: list[Split], validation: list[Split], ranked_users: int) -> dict[str, Any]:
    """The means of a method over all users of all splits; users of another seed are the same again."""
    parameters = _chosen(method, splits, validation, ranked_users)
    rows = [
        _measured(method, parameter, split, ranked_users) for parameter, split in zip(parameters, splits, strict=True)
    ]
    is_played = splits[0].past is not None
    recalls = np.concatenate([short.recall for short, _ in rows])
    n = len(recalls) if is_played else len(rows[0][0].recall)
    means = {
        "recall@3": recalls.mean(),
        "NDCG@3": np.concatenate([short.ndcg for short, _ in rows]).mean(),
        "hit@3": np.concatenate([short.hit for short, _ in rows]).mean(),
        "recall@20": np.concatenate([long.recall for _, long in rows]).mean(),
        "coverage": np.mean([short.coverage for short, _ in rows]),
        "standard error": recalls.std() / np.sqrt(n),
    }
    [(most, times)] = Counter(map(_shown, parameters)).most_common(1)
    names = f"{PARAMETERS[method]} = " if method in PARAMETERS else ""
    often = f" ({times} of {len(parameters)} times)" if times < len(parameters) else ""
    chosen = f"{names}{most}{often}" if most else ""
    return {"method": method, **{name: float(value) for name, value in means.items()}, "chosen": chosen}


def _shown(parameter: Parameter) -> str:
    if not isinstance(parameter, Parameters):
        return "" if parameter is None else str(parameter)
    if not parameter.personal:
        return "trend alone" if parameter.trend else "popularity alone"
    return (
        f"lambda {parameter.regularisation:g}, c {parameter.long_range:g}, d {parameter.direction:g}, "
        f"a {parameter.trend:g}"
    )


def _chosen(method: str, splits: list[Split], validation: list[Split], ranked_users: int) -> Sequence[Parameter]:
    """The parameter for each split."""
    if method == "ours, defaults":
        return [candidates(split)[1] for split in splits]
    if method == "ours":
        if splits[0].past is not None:
            return [choose(split.past, split.day).parameters for split in splits if split.past is not None]
        models, default = candidates(validation[0])
        recalls = [
            np.concatenate([_measured(method, model, split, ranked_users)[0].recall for split in validation])
            for model in models
        ]
        return [decide(np.stack(recalls), models, default).parameters] * len(splits)
    grid = GRIDS[method]
    if len(grid) == 1:
        return grid * len(splits)

    def recall(value: Parameter) -> float:
        found = [_measured(method, value, split, ranked_users)[0].recall for split in validation]
        return float(np.concatenate(found).mean())

    return [max(grid, key=recall)] * len(splits)


def _measured(method: str, parameter: Parameter, split: Split, ranked_users: int) -> tuple[Measures, Measures]:
    """Of the first three and of the first ``RANKED``."""
    users = _judged(split, ranked_users)
    pages = ranked(method, parameter, split, users)
    return measure_users(pages, split.held_out[users], 3), measure_users(pages, split.held_out[users], RANKED)


def _judged(split: Split, ranked_users: int) -> NDArray[np.int64]:
    users: NDArray[np.int64] = np.flatnonzero(np.diff(split.held_out.indptr) > 0)
    if len(users) > ranked_users:
        users = np.sort(np.random.default_rng(0).permutation(users)[:ranked_users])
    return users


def _print_choices(validation: list[Split], ranked_users: int) -> None:
    """Recall@3 of ours on validation, regularisation by number of predictors."""
    n_pages = len(validation[0].train.pages)
    columns = [k for k in NEIGHBOURS if k < n_pages] + [n_pages] * (n_pages <= DENSE_PAGES)
    print(f"{'':>14}" + "".join(f"{f'K = {k}' if k < n_pages else 'all pages':>11}" for k in columns))
    for regularisation in REGULARISATIONS:
        row = []
        for k in columns:
            found = []
            for split in validation:
                users = _judged(split, ranked_users)
                pages = ours(Parameters(regularisation), split, users, neighbours=k)
                found.append(measure_users(pages, split.held_out[users], 3).recall)
            row.append(np.concatenate(found).mean())
        print(f"{regularisation:14g}" + "".join(f"{recall:11.4f}" for recall in row), flush=True)


def _has_implicit() -> bool:
    try:
        import implicit  # noqa: F401 - an extra
    except ImportError:
        return False
    return True


def _print(notes: list[str], results: list[dict[str, Any]]) -> None:
    print(*notes, sep="\n")
    names = ["recall@3", "standard error", "NDCG@3", "hit@3", "recall@20", "coverage"]
    shown = ["recall@3", "+-", *names[2:]]
    print(f"{'':18}" + "".join(f"{name:>11}" for name in shown) + "  chosen on validation")
    for row in results:
        print(f"{row['method']:18}" + "".join(f"{row[name]:11.4f}" for name in names) + f"  {row['chosen']}")


if __name__ == "__main__":
    main()
