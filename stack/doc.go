// Package stack is the data plane: what happens to a frame.
package stack
