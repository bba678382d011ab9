// Package stacktest is the World: in-memory pods, a fake clock, packet scripts.
package stacktest
