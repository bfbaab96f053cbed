// Package plugins takes the place of Prometheus's own list of service discoveries, most of which bring a cloud's SDK:
// the tests need this one.
package plugins

import _ "github.com/prometheus/prometheus/discovery/kubernetes"
