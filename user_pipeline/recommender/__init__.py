"""Which pages a user will want next: numerics on sparse matrices, with no Dagster, no I/O and no clock.

Three steps, each a function of the one before::

    views = interactions(user, page, n_users=..., n_pages=...)
    weights = fit(views)
    for part in recommend(views, weights, seen=(user, page)): ...

- :mod:`.interactions` turns integer codes into a users x pages matrix, and keeps the order of each user's views;
- :mod:`.weights` learns page-to-page weights from it: EASE^R, or a model of the family around it that knows the order;
- :mod:`.score` ranks every user's unseen pages by them, and fills up with the most popular.

:class:`.Parameters` says which model. Below these three: pages are counted together (:mod:`.co_views`,
:mod:`.counting`) and by distance (:mod:`.order`), each page's predictors are chosen (:mod:`.predictors`), and the
systems are solved (:mod:`.solve`); :mod:`.histories` weighs what a user has seen.

Nothing is imported here: NumPy and SciPy load with the module that needs them.
"""
