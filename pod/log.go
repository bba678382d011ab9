package pod

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"sync"
	"time"
)

// containerLog is what one run of a container wrote to stdout and stderr, which
// are one pipe. Every line begins with the time at which its first byte came.
// There are at most two files: when path grows beyond max, it becomes path.1.
type containerLog struct {
	path string
	max  int64
	now  func() time.Time

	mu      sync.Mutex
	file    *os.File // nil once ended
	size    int64
	turns   int // rotations
	midline bool
	changed chan struct{} // closed at the next write or at the end
}

func newLog(path string, max int64, now func() time.Time) (*containerLog, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	return &containerLog{path: path, max: max, now: now, file: f, changed: make(chan struct{})}, nil
}

// The buffer of a container that says little, and of one that says much.
const (
	leastDrained = 1 << 10
	mostDrained  = 32 << 10
)

// drain copies from r, which it owns, until nobody can write any more.
func (l *containerLog) drain(r *os.File) {
	defer r.Close()
	buf := make([]byte, leastDrained)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			l.write(buf[:n])
		}
		if n == len(buf) && n < mostDrained {
			buf = make([]byte, 2*n)
		}
		if err != nil {
			l.end()
			return
		}
	}
}

// write loses what does not fit on the disk.
func (l *containerLog) write(b []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return
	}
	if l.size > l.max && !l.midline {
		l.rotate()
	}
	stamp := l.now().UTC().AppendFormat(nil, time.RFC3339Nano)
	stamp = append(stamp, ' ')
	var out bytes.Buffer
	for line := range bytes.Lines(b) {
		if !l.midline {
			out.Write(stamp)
		}
		out.Write(line)
		l.midline = line[len(line)-1] != '\n'
	}
	n, _ := l.file.Write(out.Bytes())
	l.size += int64(n)
	l.tell()
}

// rotate keeps the file that there is if no other can be made.
func (l *containerLog) rotate() {
	if os.Rename(l.path, l.path+".1") != nil {
		return
	}
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return
	}
	l.file.Close()
	l.file, l.size = f, 0
	l.turns++
}

func (l *containerLog) tell() {
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *containerLog) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return
	}
	l.file.Close()
	l.file = nil
	l.tell()
}

func (l *containerLog) remove() {
	l.end()
	os.Remove(l.path)
	os.Remove(l.path + ".1")
}

// logReader reads a containerLog, from the first byte that there still is.
type logReader struct {
	log    *containerLog
	opt    LogOptions
	closed chan struct{}
	once   sync.Once

	mu      sync.Mutex // held by Read while it waits
	files   []*os.File // still to be read; the last one is being written
	turns   int        // of the log when the last one was opened
	offset  int64      // read of the last one
	line    []byte     // begun
	out     []byte     // to be returned
	primed  bool       // Tail has been applied
	skipped bool       // the begun line, which is already partly returned, is unwanted
	partial bool       // the begun line is already partly returned
}

func (l *containerLog) open(opt LogOptions) (io.ReadCloser, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := &logReader{log: l, opt: opt, closed: make(chan struct{}), turns: l.turns}
	for _, p := range []string{l.path + ".1", l.path} {
		f, err := os.Open(p)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			closeAll(r.files)
			return nil, err
		}
		r.files = append(r.files, f)
	}
	return r, nil
}

// Close ends a Read that waits.
func (r *logReader) Close() error {
	r.once.Do(func() { close(r.closed) })
	r.mu.Lock()
	defer r.mu.Unlock()
	r.drop()
	return nil
}

func (r *logReader) drop() {
	closeAll(r.files)
	r.files = nil
}

func (r *logReader) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.out) == 0 {
		if !r.primed {
			r.prime()
			continue
		}
		more, err := r.fill()
		if err != nil {
			r.drop()
			return 0, err
		}
		if more {
			continue
		}
		if !r.wait() {
			r.drop()
			return 0, io.EOF
		}
	}
	n := copy(p, r.out)
	r.out = r.out[n:]
	return n, nil
}

// prime reads what there is, to find its last lines.
func (r *logReader) prime() {
	for {
		if more, err := r.fill(); !more || err != nil {
			break
		}
	}
	r.primed = true
	if r.opt.Tail <= 0 {
		return
	}
	end := len(r.out)
	if end > 0 && r.out[end-1] == '\n' {
		end--
	}
	for range r.opt.Tail {
		if end = bytes.LastIndexByte(r.out[:end], '\n'); end < 0 {
			return
		}
	}
	r.out = r.out[end+1:]
}

// fill reads a piece and says whether there was one.
func (r *logReader) fill() (bool, error) {
	buf := make([]byte, 32<<10)
	for len(r.files) > 0 {
		n, err := r.files[0].Read(buf)
		if n > 0 {
			if len(r.files) == 1 {
				r.offset += int64(n)
			}
			r.take(buf[:n])
			return true, nil
		}
		if err != io.EOF {
			return false, err
		}
		if len(r.files) == 1 {
			return false, nil
		}
		r.files[0].Close()
		r.files = r.files[1:]
	}
	return false, nil
}

// take turns file content into output.
func (r *logReader) take(b []byte) {
	for line := range bytes.Lines(b) {
		r.line = append(r.line, line...)
		if !r.partial {
			stamp, text, ok := bytes.Cut(r.line, []byte(" "))
			if !ok {
				continue // the time itself is cut in two
			}
			at, err := time.Parse(time.RFC3339Nano, string(stamp))
			r.skipped = err == nil && at.Before(r.opt.Since)
			if !r.opt.Timestamps && err == nil {
				r.line = text
			}
			r.partial = true
		}
		if !r.skipped {
			r.out = append(r.out, r.line...)
		}
		if line[len(line)-1] == '\n' {
			r.partial = false
		}
		r.line = nil
	}
}

// wait returns true when there may be more to read.
func (r *logReader) wait() bool {
	select {
	case <-r.closed:
		return false
	default:
	}
	l := r.log
	l.mu.Lock()
	if l.turns != r.turns {
		// Ours was renamed; it may have grown since, so it is read once more.
		if f, err := os.Open(l.path); err == nil {
			r.files = append(r.files, f)
		}
		r.turns, r.offset = l.turns, 0
		l.mu.Unlock()
		return true
	}
	if l.size > r.offset {
		l.mu.Unlock()
		return true
	}
	changed, ended := l.changed, l.file == nil
	l.mu.Unlock()
	if ended || !r.opt.Follow {
		return false
	}
	select {
	case <-changed:
		return true
	case <-r.closed:
		return false
	}
}
