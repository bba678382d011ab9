package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Client speaks to the instance behind a socket.
type Client struct {
	path string
	http http.Client
}

// InstanceDir is the folder of an instance: below $XDG_RUNTIME_DIR, or below /tmp
// in a folder of the user's own.
func InstanceDir(name string) string {
	if base := os.Getenv("XDG_RUNTIME_DIR"); base != "" {
		return filepath.Join(base, "podgate", name)
	}
	return filepath.Join(os.TempDir(), "podgate-"+strconv.Itoa(os.Getuid()), name)
}

// SocketPath is where an instance answers.
func SocketPath(name string) string { return filepath.Join(InstanceDir(name), "control.sock") }

// NewClient prepares a client; nothing is dialled yet.
func NewClient(path string) *Client {
	c := &Client{path: path}
	c.http.Transport = &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx) },
	}
	return c
}

// ErrNotRunning is what every call returns when no instance answers.
var ErrNotRunning = errors.New("not running")

func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", c.path)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, ErrNotRunning
	}
	return conn, err
}

// Status asks how the instance is.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var st Status
	return st, c.call(ctx, "GET", "/v1/status", nil, &st)
}

// Attached lists the attachments that the instance knows.
func (c *Client) Attached(ctx context.Context) (list []Attachment, err error) {
	return list, c.call(ctx, "GET", "/v1/attached", nil, &list)
}

// Call posts q to a verb ("apply") and decodes the answer into a.
func (c *Client) Call(ctx context.Context, verb string, q, a any) error {
	return c.call(ctx, "POST", "/v1/"+verb, q, a)
}

func (c *Client) call(ctx context.Context, method, path string, q, a any) error {
	body, err := c.open(ctx, method, path, q)
	if err != nil {
		return err
	}
	defer body.Close()
	return json.NewDecoder(body).Decode(a)
}

// Stream posts q to a verb and returns the answer's bytes as they come.
func (c *Client) Stream(ctx context.Context, verb string, q any) (io.ReadCloser, error) {
	return c.open(ctx, "POST", "/v1/"+verb, q)
}

func (c *Client) open(ctx context.Context, method, path string, q any) (io.ReadCloser, error) {
	req, err := request(ctx, method, path, q)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if errors.Is(err, ErrNotRunning) {
			return nil, ErrNotRunning
		}
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		msg, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
		return nil, errors.New(strings.TrimSpace(string(msg)))
	}
	return resp.Body, nil
}

func request(ctx context.Context, method, path string, q any) (*http.Request, error) {
	var body io.Reader
	if q != nil {
		b, err := json.Marshal(q)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	return http.NewRequestWithContext(ctx, method, "http://podgate"+path, body)
}

// Exec runs a command in a pod on the caller's own descriptors and returns its
// exit code. Cancelling ctx kills the command.
func (c *Client) Exec(ctx context.Context, q ExecRequest, stdin, stdout, stderr *os.File) (int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, br, err := c.upgrade(ctx, "/v1/exec", q)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	rights := unix.UnixRights(int(stdin.Fd()), int(stdout.Fd()), int(stderr.Fd()))
	if _, _, err := conn.WriteMsgUnix([]byte{0}, rights, nil); err != nil {
		return 0, fmt.Errorf("exec: %w", err)
	}
	var res ExecResult
	if err := json.NewDecoder(br).Decode(&res); err != nil {
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		return 0, fmt.Errorf("exec: the instance went away: %w", err)
	}
	if res.Error != "" {
		return res.Exit, errors.New(res.Error)
	}
	return res.Exit, nil
}

// Dial connects to a port of a pod's loopback. The connection is with the pod
// itself: it does not pass the instance and outlives it.
func (c *Client) Dial(ctx context.Context, q DialRequest) (*net.TCPConn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	uc, _, err := c.upgrade(ctx, "/v1/dial", q)
	if err != nil {
		return nil, err
	}
	defer uc.Close()
	if _, err := uc.Write([]byte{0}); err != nil {
		return nil, fmt.Errorf("dial: the instance went away: %w", err)
	}
	_, files, err := receiveRights(uc, make([]byte, 1), 1)
	if err != nil {
		return nil, fmt.Errorf("dial: the instance went away: %w", err)
	}
	defer files[0].Close()
	conn, err := net.FileConn(files[0])
	if err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	return conn.(*net.TCPConn), nil
}
