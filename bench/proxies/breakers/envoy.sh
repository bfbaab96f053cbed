#!/bin/sh
exec "$BENCH_CACHE/envoy" -c "$RUN_DIR/envoy.yaml" --concurrency 1 --disable-hot-restart --log-level error
