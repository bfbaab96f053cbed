#!/bin/sh
workers=worker-a=127.0.0.1:$WORKER_A,worker-b=127.0.0.1:$WORKER_B
workers=$workers,worker-c=127.0.0.1:$WORKER_C,worker-d=127.0.0.1:$WORKER_D
set --
[ "$TLS" = 0 ] || set -- --tls-cert "$TLS_CERT" --tls-key "$TLS_KEY"
exec "$OUTRIGGER_PROXY" serve --listen "127.0.0.1:$PORT" --admin-listen "127.0.0.1:$ADMIN_PORT" --threads 1 \
    --workers "$workers" --policy "$RUN_DIR/outrigger.yaml" "$@"
