#!/bin/sh
exec "$OUTRIGGER_PROXY" serve --listen "127.0.0.1:$PORT" --admin-listen "127.0.0.1:$ADMIN_PORT" --threads 1 \
    --workers "$OUR_WORKERS" --policy "$RUN_DIR/outrigger.yaml"
