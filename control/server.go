package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"

	"golang.org/x/sys/unix"
)

// Verbs are what a running instance can be asked. Each may be called from
// several goroutines at once; an error becomes the client's message.
type Verbs struct {
	Status    func() Status
	Apply     func(context.Context, ApplyRequest) (ApplyResult, error)
	Delete    func(context.Context, ApplyRequest) (ApplyResult, error)
	Get       func(context.Context, GetRequest) (GetResult, error)
	Trace     func(TraceRequest) (any, error)
	Flows     func(FlowsRequest) (any, error)
	Policy    func(PolicyRequest) (any, error)
	DNS       func(DNSRequest) (any, error)
	Exec      func(context.Context, ExecRequest, []*os.File) (int, error) // owns the files
	Logs      func(context.Context, LogsRequest) (io.ReadCloser, error)
	Forward   func(ForwardRequest) (ForwardTarget, error)
	Dial      func(context.Context, DialRequest) (*os.File, error)                      // a socket of the pod, the server's to close
	Capture   func(context.Context, CaptureRequest, io.Writer) error                    // writes pcapng until the context ends
	Fault     func(FaultRequest) (string, error)                                        // what is so now, for people
	Attach    func(context.Context, AttachRequest, func(AttachPlan) (NIC, error)) error // owns the file of the NIC
	Detach    func(context.Context, DetachRequest) (DetachResult, error)
	Attached  func() []Attachment
	Readiness func() Readiness
	Shutdown  func() // begins the teardown and returns
}

// Server answers on a unix socket.
type Server struct {
	verbs Verbs
	http  http.Server
	ln    net.Listener
}

// Listen makes the socket at path, mode 0600. The caller holds the instance's
// lock, so a socket that is there already is a dead one and is replaced.
func Listen(path string, verbs Verbs) (*Server, error) {
	os.Remove(path)
	old := unix.Umask(0o177)
	ln, err := net.Listen("unix", path)
	unix.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	s := &Server{verbs: verbs, ln: sameUser{ln.(*net.UnixListener)}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) { answer(w, verbs.Status(), nil) })
	handle(mux, "POST /v1/apply", verbs.Apply)
	handle(mux, "POST /v1/delete", verbs.Delete)
	handle(mux, "POST /v1/get", verbs.Get)
	handle(mux, "POST /v1/trace", func(_ context.Context, q TraceRequest) (any, error) { return verbs.Trace(q) })
	handle(mux, "POST /v1/flows", func(_ context.Context, q FlowsRequest) (any, error) { return verbs.Flows(q) })
	handle(mux, "POST /v1/policy", func(_ context.Context, q PolicyRequest) (any, error) { return verbs.Policy(q) })
	handle(mux, "POST /v1/dns", func(_ context.Context, q DNSRequest) (any, error) { return verbs.DNS(q) })
	handle(mux, "POST /v1/fault", func(_ context.Context, q FaultRequest) (string, error) { return verbs.Fault(q) })
	handle(mux, "POST /v1/detach", verbs.Detach)
	mux.HandleFunc("GET /v1/attached", func(w http.ResponseWriter, r *http.Request) { answer(w, verbs.Attached(), nil) })
	mux.HandleFunc("GET /v1/attachable", func(w http.ResponseWriter, r *http.Request) { answer(w, verbs.Readiness(), nil) })
	mux.HandleFunc("POST /v1/attach", s.attach)
	mux.HandleFunc("POST /v1/exec", s.exec)
	mux.HandleFunc("POST /v1/logs", s.logs)
	handle(mux, "POST /v1/forward", func(_ context.Context, q ForwardRequest) (ForwardTarget, error) { return verbs.Forward(q) })
	mux.HandleFunc("POST /v1/dial", s.dial)
	mux.HandleFunc("POST /v1/capture", s.capture)
	mux.HandleFunc("POST /v1/shutdown", func(w http.ResponseWriter, r *http.Request) {
		answer(w, struct{}{}, nil)
		verbs.Shutdown()
	})
	s.http.Handler = mux
	return s, nil
}

// Serve answers until Close.
func (s *Server) Serve() error {
	if err := s.http.Serve(s.ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Close ends the listener and every connection.
func (s *Server) Close() error { return s.http.Close() }

// sameUser admits connections of this process's own user and of root.
type sameUser struct{ *net.UnixListener }

func (l sameUser) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if uid, err := peerUID(c); err == nil && (uid == uint32(os.Getuid()) || uid == 0) {
			return c, nil
		}
		c.Close()
	}
}

func peerUID(c *net.UnixConn) (uint32, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) {
		cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if cerr != nil {
		return 0, cerr
	}
	return cred.Uid, nil
}

func handle[Q, A any](mux *http.ServeMux, pattern string, verb func(context.Context, Q) (A, error)) {
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		if q, ok := decode[Q](w, r); ok {
			a, err := verb(r.Context(), q)
			answer(w, a, err)
		}
	})
}

// decode reads a question; one that cannot be read is answered here.
func decode[Q any](w http.ResponseWriter, r *http.Request) (q Q, ok bool) {
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return q, false
	}
	return q, true
}

func answer(w http.ResponseWriter, a any, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusUnprocessableEntity)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(a)
}

func (s *Server) logs(w http.ResponseWriter, r *http.Request) {
	q, ok := decode[LogsRequest](w, r)
	if !ok {
		return
	}
	rc, err := s.verbs.Logs(r.Context(), q)
	if err != nil {
		answer(w, nil, err)
		return
	}
	stop := context.AfterFunc(r.Context(), func() { rc.Close() })
	defer stop()
	defer rc.Close()
	io.Copy(flushing{w, http.NewResponseController(w)}, rc)
}

func (s *Server) capture(w http.ResponseWriter, r *http.Request) {
	q, ok := decode[CaptureRequest](w, r)
	if !ok {
		return
	}
	out := flushing{w, http.NewResponseController(w)}
	if err := s.verbs.Capture(r.Context(), q, out); err != nil {
		http.Error(w, err.Error(), http.StatusUnprocessableEntity) // too late once frames were sent
	}
}

// flushing sends every write at once, so that following output is live.
type flushing struct {
	io.Writer
	rc *http.ResponseController
}

func (f flushing) Write(p []byte) (int, error) {
	n, err := f.Writer.Write(p)
	if err == nil {
		err = f.rc.Flush()
	}
	return n, err
}

// exec leaves HTTP after the request: the connection then carries the three
// descriptors to the server and one ExecResult back; its end kills the command.
func (s *Server) exec(w http.ResponseWriter, r *http.Request) {
	q, ok := decode[ExecRequest](w, r)
	if !ok {
		return
	}
	uc, err := hijack(w, "podgate-exec")
	if err != nil {
		return
	}
	defer uc.Close()
	_, files, err := receiveRights(uc, make([]byte, 1), 3)
	if err != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { // ends with the connection: exec closes it on return
		io.Copy(io.Discard, uc)
		cancel()
	}()
	var res ExecResult
	if res.Exit, err = s.verbs.Exec(ctx, q, files); err != nil {
		res.Error = err.Error()
	}
	json.NewEncoder(uc).Encode(res)
}

// dial leaves HTTP with its answer: a byte of the client's says that it is ready
// for the message that brings the socket.
func (s *Server) dial(w http.ResponseWriter, r *http.Request) {
	q, ok := decode[DialRequest](w, r)
	if !ok {
		return
	}
	f, err := s.verbs.Dial(r.Context(), q)
	if err != nil {
		answer(w, nil, err)
		return
	}
	defer f.Close()
	uc, err := hijack(w, "podgate-dial")
	if err != nil {
		return
	}
	defer uc.Close()
	if _, err := io.ReadFull(uc, make([]byte, 1)); err == nil {
		uc.WriteMsgUnix([]byte{0}, unix.UnixRights(int(f.Fd())), nil) // a client that is gone has no use for it
	}
}

// receiveRights reads a message that brings n descriptors, which are the caller's.
func receiveRights(c *net.UnixConn, msg []byte, n int) (int, []*os.File, error) {
	oob := make([]byte, unix.CmsgSpace(4*n))
	read, oobn, _, _, err := c.ReadMsgUnix(msg, oob)
	if err != nil {
		return 0, nil, err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return 0, nil, err
	}
	var files []*os.File
	for _, m := range msgs {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "passed"))
		}
	}
	if len(files) != n {
		for _, f := range files {
			f.Close()
		}
		return 0, nil, fmt.Errorf("%d descriptors came, want %d", len(files), n)
	}
	return read, files, nil
}
