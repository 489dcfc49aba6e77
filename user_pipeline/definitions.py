"""The one Definitions of the code location: all that is in ``defs/``, with the resources that the settings describe.

Loading it computes nothing and connects to nothing.
"""

from pathlib import Path

import dagster as dg

import user_pipeline.defs
from user_pipeline.defs.resources import RESOURCES
from user_pipeline.private_files import keep_private

# Before anything is written: runs are processes that load this module.
keep_private()

# What dg.load_from_defs_folder does, less one thing: it also imports every installed library of components, to describe
# them in the UI. That costs each process as much again as all else here, and no component is used. It also works
# without pyproject.toml, which an installed package does not have.
_TREE = dg.ComponentTree.from_module(defs_module=user_pipeline.defs, project_root=Path(__file__).parents[1])

# One name at most may hold Definitions here.
defs = dg.Definitions.merge(
    _TREE.build_defs("."),
    # A process for each step would cost more than most steps do.
    dg.Definitions(resources=RESOURCES, executor=dg.in_process_executor),
)
