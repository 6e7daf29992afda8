"""Runs queries over an explicit list of Parquet files. Written by headroom-aggregator; needs pyspark."""

import json
import sys

from pyspark.sql import SparkSession

with open(sys.argv[1], encoding="utf-8") as spec_file:
    spec = json.load(spec_file)

spark = (
    SparkSession.builder.appName("headroom")
    .config("spark.sql.session.timeZone", "UTC")
    .config("spark.sql.parquet.outputTimestampType", "TIMESTAMP_MICROS")
    .config("spark.ui.enabled", "false")
    .getOrCreate()
)
spark.sparkContext.setLogLevel("ERROR")
for table in spec["tables"]:
    # The columns are given, not inferred, so that a table without files has them as well.
    reader = spark.read.schema(table["columns"])
    frame = reader.parquet(*table["files"]) if table["files"] else spark.createDataFrame([], table["columns"])
    frame.createOrReplaceTempView(table["name"])
for job in spec["jobs"]:
    spark.sql(job["sql"]).coalesce(1).write.mode("overwrite").parquet(job["directory"])
spark.stop()
