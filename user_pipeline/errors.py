"""Errors that a second try cannot mend."""


class PermanentError(Exception):
    """Something a person has to change first: a setting, a bucket, an object, a table.

    Steps that raise it are not retried (see :func:`user_pipeline.assets.boundary.no_retry`).
    """
