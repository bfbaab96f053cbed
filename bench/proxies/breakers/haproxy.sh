#!/bin/sh
exec haproxy -db -f "$RUN_DIR/haproxy.cfg"
