"""Calls of `user-pipeline`, each in a process of its own, forked from one that has imported all, which ends as usual.

The exit code of each is printed, then what all of them wrote to stderr. Importing takes a second, a fork milliseconds.
"""

import json
import os
import sys
import tempfile

from user_pipeline.cli.main import main


def serve(calls: list[list[str]], at_once: int = 2) -> None:
    """Make the calls, some of them at once."""
    import adbc_driver_postgresql.dbapi
    import obstore.store
    import pyarrow.dataset
    import pyarrow.parquet

    from user_pipeline.ingest.vacuum import vacuum
    from user_pipeline.lake.lake import Lake
    from user_pipeline.resources.postgres import Databases
    from user_pipeline.resources.storage import ObjectStorage

    assert all(
        (
            adbc_driver_postgresql.dbapi,
            Databases,
            Lake,
            obstore.store,
            pyarrow.dataset,
            pyarrow.parquet,
            vacuum,
            ObjectStorage,
        )
    )
    codes: list[int] = []
    with tempfile.TemporaryFile() as said:
        running = 0
        for call in calls:
            if running == at_once:
                codes.append(os.waitstatus_to_exitcode(os.wait()[1]))
                running -= 1
            if not os.fork():
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, 1)
                os.dup2(said.fileno(), 2)
                main(call)
            running += 1
        codes += [os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(running)]
        said.seek(0)
        json.dump({"codes": codes, "said": said.read().decode()}, sys.stdout)


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
