# The image of a Spark cluster for runs with USER_PIPELINE_ENGINE=spark: master, workers and Connect server. Executors
# run the code of the runs, so both images are built of one checkout. Build it in the root of the checkout:
#
#   docker build --file deploy/spark.Dockerfile --build-arg PYTHON_DIGEST=sha256:... --tag user_pipeline_spark:0.1.0 .
#
# with the digest that deploy/digests.sh prints.

# As in deploy/Dockerfile: executors have the Python of the runs.
ARG PYTHON=3.11-slim-bookworm
ARG PYTHON_DIGEST

FROM python:${PYTHON}@${PYTHON_DIGEST:?run-deploy/digests.sh} AS build
ENV UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_PYTHON_DOWNLOADS=never
RUN pip install --no-cache-dir "uv==0.13.*"
WORKDIR /build
# Spark, its Java and what the code needs on executors, by hash. Without Dagster and the databases' clients.
COPY requirements-spark.lock ./
RUN uv venv /opt/venv \
    && uv pip install --python /opt/venv --no-cache --require-hashes --no-deps --requirements requirements-spark.lock
COPY pyproject.toml README.md LICENSE ./
COPY user_pipeline user_pipeline
RUN uv build --wheel --out-dir dist . \
    && uv pip install --python /opt/venv --no-cache --no-deps dist/*.whl
# A Java home for Spark, and one path to it whatever the version of Python.
RUN ln -s /opt/venv/lib/python3*/site-packages/pyspark /opt/spark \
    && /opt/venv/bin/python -m user_pipeline.cli.spark_java /opt/java

FROM python:${PYTHON}@${PYTHON_DIGEST:?run-deploy/digests.sh}
# Java unpacks libraries and runs them from there: not in /tmp, where a container may not run anything.
ENV PATH=/opt/venv/bin:$PATH \
    SPARK_HOME=/opt/spark \
    JAVA_HOME=/opt/java \
    JDK_JAVA_OPTIONS=-Djava.io.tmpdir=/var/lib/user_pipeline/scratch \
    SPARK_LOCAL_DIRS=/var/lib/user_pipeline/scratch \
    USER_PIPELINE_SCRATCH_DIR=/var/lib/user_pipeline/scratch
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin pipeline \
    && install --directory --owner=pipeline --group=pipeline "$USER_PIPELINE_SCRATCH_DIR"
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/spark /opt/spark
COPY --from=build /opt/java /opt/java
COPY deploy/spark.sh /opt/user_pipeline/spark.sh
# Only the scratch directory and /tmp are ever written: the root file system may be read-only.
WORKDIR /var/lib/user_pipeline/scratch
# By number, so that Kubernetes can see that it is not root.
USER 10001:10001
# Says which of its processes there are; docker-compose.yaml names them.
CMD ["sh", "/opt/user_pipeline/spark.sh"]
