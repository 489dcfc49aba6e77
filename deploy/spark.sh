#!/bin/sh
# A process of a Spark cluster, in its container (deploy/spark.Dockerfile):
#
#   spark.sh master HOST PORT
#   spark.sh worker HOST PORT spark://MASTER:PORT
#   spark.sh connect HOST PORT spark://MASTER:PORT      the server that USER_PIPELINE_SPARK_REMOTE leads to
#
# HOST is the name that the others know it by. It listens on that name's address alone.
#
# SPARK_CONNECT_AUTHENTICATE_TOKEN   of the Connect server: who has it may run code on the executors
# SPARK_WORKER_CORES                 tasks at once of a worker; 1 without it
# SPARK_WORKER_MEMORY                what a worker's executors get for their JVMs; 1g without it
# SPARK_EXECUTOR_MEMORY              of the Connect server: the JVM of one executor; 1g without it
# SPARK_SHUFFLE_PARTITIONS           of the Connect server: pieces that rows are sorted into; 16 without it
# USER_PIPELINE_MEMORY_LIMIT         of a worker: what DuckDB may use in each task, beside the JVM
set -eu

usage() {
    echo "$1: spark.sh master HOST PORT, or spark.sh worker|connect HOST PORT spark://MASTER:PORT" >&2
    exit 64
}

[ $# -ge 3 ] || usage "too few arguments"
kind=$1 host=$2 port=$3
shift 3
scratch=${USER_PIPELINE_SCRATCH_DIR:?the image sets it}
# Of what listens beside its port, such as the page of a master.
export SPARK_LOCAL_IP="$host"

case $kind in
    master)
        exec spark-class org.apache.spark.deploy.master.Master --host "$host" --port "$port" --webui-port 0
        ;;
    worker)
        [ $# -eq 1 ] || usage "a worker has one master"
        # Folders of applications that ended do not stay for ever.
        export SPARK_WORKER_OPTS="-Dspark.worker.cleanup.enabled=true"
        exec spark-class org.apache.spark.deploy.worker.Worker --host "$host" --port "$port" --webui-port 0 \
            --cores "${SPARK_WORKER_CORES:-1}" --memory "${SPARK_WORKER_MEMORY:-1g}" --work-dir "$scratch/work" "$1"
        ;;
    connect)
        [ $# -eq 1 ] || usage "a Connect server has one master"
        : "${SPARK_CONNECT_AUTHENTICATE_TOKEN:?set it: who reaches the server without one runs code on the executors}"
        exec spark-submit \
            --conf "spark.master=$1" \
            --conf "spark.connect.grpc.binding.address=$host" \
            --conf "spark.connect.grpc.binding.port=$port" \
            --conf "spark.driver.host=$host" \
            --conf "spark.driver.bindAddress=$host" \
            --conf "spark.executor.memory=${SPARK_EXECUTOR_MEMORY:-1g}" \
            --conf "spark.sql.shuffle.partitions=${SPARK_SHUFFLE_PARTITIONS:-16}" \
            --conf "spark.sql.warehouse.dir=$scratch/warehouse" \
            --conf spark.executor.logs.rolling.strategy=size \
            --conf spark.executor.logs.rolling.maxSize=20971520 \
            --conf spark.executor.logs.rolling.maxRetainedFiles=5 \
            --conf spark.ui.enabled=false \
            --class org.apache.spark.sql.connect.service.SparkConnectServer spark-internal
        ;;
    *)
        usage "there is no process $kind"
        ;;
esac
