package pod

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Gateway and keeper talk over one SEQPACKET socket: a message is a JSON
// object in one packet, its descriptors ride along by SCM_RIGHTS. A message too
// long for a packet is put in a memfd, which then is the first descriptor of a
// packet that says only memfdMark.

// request is what the gateway asks for; exactly one of the pointers is set.
type request struct {
	ID       uint64
	Setup    *setupSpec    `json:",omitempty"`
	Sandbox  *sandboxSpec  `json:",omitempty"`
	Destroy  *destroySpec  `json:",omitempty"`
	Start    *startSpec    `json:",omitempty"` // descriptors: stdin, stdout, stderr
	Signal   *signalSpec   `json:",omitempty"`
	KillAll  *killAllSpec  `json:",omitempty"`
	Dial     *dialSpec     `json:",omitempty"` // the reply carries the socket
	Shutdown *shutdownSpec `json:",omitempty"`
}

// reply answers a request, or, with ID 0, tells of an exit.
type reply struct {
	ID   uint64
	Err  string     `json:",omitempty"`
	Code int        `json:",omitempty"` // of a Start that failed: 126 or 127
	Kind string     `json:",omitempty"` // of a Sandbox: TAP or Veth, the descriptors of its interfaces ride along
	Exit *exitEvent `json:",omitempty"`
}

// setupSpec opens the conversation.
type setupSpec struct {
	Dir     string   // of the runtime: removed when the gateway dies
	Remove  []string // likewise
	Binds   []bind   // made once, inherited by every pod
	NICKind string
}

// sandboxSpec is one pod's namespaces.
type sandboxSpec struct {
	ID          string
	Hostname    string
	HostNetwork bool
	NICs        []nicSpec
	Binds       []bind // the pod's own /etc files
}

type destroySpec struct{ Sandbox string }

// startSpec is a process in a container of a sandbox. The container's mount
// namespace is made, with Binds, when the first process needs it.
type startSpec struct {
	Sandbox, Container string
	Proc               uint64 // the name that signals and exits will use
	Argv, Env          []string
	Dir                string
	Binds              []bind
	Caps               []string // capabilities to add, "ALL" or "NET_ADMIN"
	DropCaps           []string
	NoNewPrivs         bool
	TTY                bool // the reply carries the master
	Rows, Cols         uint16
}

type signalSpec struct {
	Proc   uint64
	Signal syscall.Signal // to the process group
}

// killAllSpec kills whatever still runs in a container.
type killAllSpec struct{ Sandbox, Container string }

// dialSpec connects to what listens at a TCP port of a sandbox's loopback.
type dialSpec struct {
	Sandbox string
	Port    uint16
}

// shutdownSpec ends the keeper: SIGTERM to everybody, SIGKILL after Millis.
type shutdownSpec struct{ Millis int64 }

// exitEvent tells how a process ended: exit code, or 128 + signal.
type exitEvent struct {
	Proc         uint64
	Code, Signal int
}

// bind is a bind mount.
type bind struct {
	Source, Target string
	ReadOnly       bool `json:",omitempty"`
}

const (
	maxPacket = 64 << 10
	maxFiles  = 64 // descriptors of a message
	memfdMark = "m"
)

// wire is one end of the socket; send may be called from any goroutine.
type wire struct {
	conn *net.UnixConn
	mu   sync.Mutex // one packet at a time
	buf  []byte     // receive's
}

func newWire(f *os.File) (*wire, error) {
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	f.Close()
	return &wire{conn: c.(*net.UnixConn), buf: make([]byte, maxPacket)}, nil
}

// send borrows fds.
func (w *wire) send(v any, fds ...int) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(b) > maxPacket {
		m, err := memfd(b)
		if err != nil {
			return err
		}
		defer m.Close()
		b, fds = []byte(memfdMark), append([]int{int(m.Fd())}, fds...)
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	_, _, err = w.conn.WriteMsgUnix(b, oob, nil)
	return err
}

func memfd(b []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("podgate", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "memfd")
	if _, err := f.Write(b); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// receive is called from one goroutine only. The caller owns the descriptors.
func (w *wire) receive(v any) ([]*os.File, error) {
	oob := make([]byte, unix.CmsgSpace(maxFiles*4))
	n, oobn, _, _, err := w.conn.ReadMsgUnix(w.buf, oob)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, io.EOF
	}
	files, err := parseRights(oob[:oobn])
	if err != nil {
		return nil, err
	}
	b := w.buf[:n]
	if string(b) == memfdMark && len(files) > 0 {
		m := files[0]
		files = files[1:]
		st, err := m.Stat()
		if err == nil {
			b = make([]byte, st.Size())
			_, err = m.ReadAt(b, 0)
		}
		m.Close()
		if err != nil {
			return nil, err
		}
	}
	if err := json.Unmarshal(b, v); err != nil {
		return nil, fmt.Errorf("bad message %q: %w", b, err)
	}
	return files, nil
}

func parseRights(oob []byte) ([]*os.File, error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for _, m := range msgs {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return nil, err
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "passed"))
		}
	}
	return files, nil
}

// closeAll drops descriptors that arrived and are not wanted.
func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
