// Package gvproxy pins the version of gvisor-tap-vsock that `go run ./bench
// egress` builds and measures beside podgate. It is a module of its own, so that
// neither chooses the other's gVisor.
package gvproxy
