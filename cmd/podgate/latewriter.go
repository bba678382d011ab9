package main

import (
	"bytes"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// lateWriter keeps what is written until the file for it exists: the instance's
// folder is made, and emptied, after logging begins.
type lateWriter struct {
	mu   sync.Mutex
	held bytes.Buffer // guarded by mu, until file is set
	file *os.File     // guarded by mu
}

func (w *lateWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.file == nil {
		return w.held.Write(p)
	}
	return w.file.Write(p)
}

// open makes the file, and standard error part of it, so that a crash is in the log.
func (w *lateWriter) open(name string) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.file = f
	f.Write(w.held.Bytes())
	return unix.Dup3(int(f.Fd()), 2, 0)
}
