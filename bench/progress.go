package main

import (
	"fmt"
	"os"

	"golang.org/x/term"
)

// progress is one line that changes on a terminal, and a line for every result
// elsewhere.
type progress struct {
	w        *os.File
	terminal bool
}

func newProgress(w *os.File) *progress {
	return &progress{w, term.IsTerminal(int(w.Fd()))}
}

// doing shows what is under way.
func (p *progress) doing(s string) {
	if p.terminal {
		fmt.Fprintf(p.w, "\r\x1b[K%s", s)
	}
}

// done shows a result.
func (p *progress) done(s string) {
	if p.terminal {
		p.doing(s)
		return
	}
	fmt.Fprintln(p.w, s)
}

// failed shows what must not be overwritten.
func (p *progress) failed(s string) {
	p.end()
	fmt.Fprintln(p.w, s)
}

// end clears the line.
func (p *progress) end() {
	if p.terminal {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}
