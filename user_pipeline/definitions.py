"""The one Definitions of the code location: all that is in ``defs/``, with the resources that the settings describe.

Loading it computes nothing and connects to nothing.
"""

from pathlib import Path

import dagster as dg

from user_pipeline.defs.resources import RESOURCES
from user_pipeline.private_files import keep_private

# Before anything is written: runs are processes that load this module.
keep_private()

# The path is that of the package, whose dg.toml an installed copy has too. One name at most may hold Definitions here.
defs = dg.Definitions.merge(
    dg.load_from_defs_folder(path_within_project=Path(__file__).parent),
    # A process for each step would cost more than most steps do.
    dg.Definitions(resources=RESOURCES, executor=dg.in_process_executor),
)
