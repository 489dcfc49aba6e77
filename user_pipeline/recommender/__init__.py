"""Which pages a user will want next: numerics on sparse matrices, with no Dagster, no I/O and no clock.

Three steps, each a function of the one before::

    views = interactions(user, page, n_users=..., n_pages=...)
    weights = fit(views)
    for part in recommend(views, weights, seen=(user, page)): ...

- :mod:`.interactions` turns integer codes into a users x pages matrix;
- :mod:`.weights` learns page-to-page weights from it (EASE^R on a few pages each);
- :mod:`.score` ranks every user's unseen pages by them, and fills up with the most popular.

Nothing is imported here: NumPy and SciPy load with the module that needs them.
"""
