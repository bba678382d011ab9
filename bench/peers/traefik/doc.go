// Package traefik pins the version of Traefik that `go run ./bench ingress`
// builds and measures beside podgate: the newest whose modules the public proxy
// has. It is a module of its own, with Traefik's replacements.
package traefik
