#!/bin/sh
exec nginx -p "$RUN_DIR" -c "$RUN_DIR/nginx.conf"
