#!/bin/sh
exec "$BENCH_CACHE/relay" "$PORT" "$WORKER_A" "$WORKER_B" "$WORKER_C" "$WORKER_D"
