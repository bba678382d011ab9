package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Theory of operation
//
// An interface is made by who may enter the pod's network namespace, and served
// by the gateway, which may not. They meet on the control socket, in a
// conversation that leaves HTTP behind after the request:
//
//	client                                gateway
//	AttachRequest         ------------->  reserves addresses
//	                      <-------------  AttachPlan: addresses, MAC, MTU
//	makes the interface
//	NIC, its descriptor   ------------->  serves it, writes it down
//	                      <-------------  done
//
// If the client goes away before the end, the gateway takes all of it back: a
// killed client leaves nothing but its interface, which goes with its descriptor.

// AttachRequest asks that an interface in somebody's network namespace become a
// pod's. An attachment is known by container and interface name.
type AttachRequest struct {
	Container string `json:"container"`
	IfName    string `json:"ifName"`
	Network   string `json:"network,omitempty"` // of CNI; empty: attached by hand
	Netns     string `json:"netns,omitempty"`   // path of the namespace, where the client is; or of a machine's socket

	Namespace string            `json:"namespace"`
	Pod       string            `json:"pod"`
	UID       string            `json:"uid,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`

	Addrs     []netip.Addr `json:"addrs,omitempty"` // wanted; none: the gateway chooses
	MAC       string       `json:"mac,omitempty"`   // likewise
	MTU       int          `json:"mtu,omitempty"`   // bytes, likewise
	Kind      string       `json:"kind,omitempty"`  // "tap" or "veth"; likewise
	HostPorts []HostPort   `json:"hostPorts,omitempty"`
	Faults    string       `json:"faults,omitempty"` // of the link, such as "rate=8000000"
	Aliases   []string     `json:"aliases,omitempty"`

	// Again asks for an attachment that exists but has lost its descriptor: the
	// answer is the plan of old, the interface is to be opened and not made.
	Again bool `json:"again,omitempty"`
}

// HostPort is a port of the host that leads to the pod.
type HostPort struct {
	HostIP        string `json:"hostIP,omitempty"`
	HostPort      int32  `json:"hostPort"`
	ContainerPort int32  `json:"containerPort"`
	Protocol      string `json:"protocol,omitempty"` // "tcp", "udp", "sctp"
}

// AttachPlan is what the interface has to be like.
type AttachPlan struct {
	Addrs       []netip.Prefix `json:"addrs"`    // with the length of the on-link prefix
	Gateways    []netip.Addr   `json:"gateways"` // at most one a family
	MAC         string         `json:"mac"`
	MTU         int            `json:"mtu"`
	Kind        string         `json:"kind,omitempty"`
	HostIf      string         `json:"hostIf,omitempty"` // of a veth that exists: see Again
	Nameservers []netip.Addr   `json:"nameservers,omitempty"`
	Domain      string         `json:"domain,omitempty"` // of the cluster
	Waiting     int            `json:"waiting,omitempty"`
}

// NIC is an interface that was made by plan.
type NIC struct {
	Kind   string   `json:"kind"`             // "tap" or "veth"
	HostIf string   `json:"hostIf,omitempty"` // the other end of a veth
	File   *os.File `json:"-"`
}

// Attachment is one that the gateway knows.
type Attachment struct {
	Request AttachRequest `json:"request"`
	Plan    AttachPlan    `json:"plan"`
	Waiting bool          `json:"waiting,omitempty"` // for its descriptor, since the gateway was restarted
}

// DetachRequest ends attachments: one, or of a network all that are not valid.
type DetachRequest struct {
	Container string `json:"container,omitempty"`
	IfName    string `json:"ifName,omitempty"`

	Network string     `json:"network,omitempty"`
	Valid   []Endpoint `json:"valid,omitempty"`
}

// Endpoint names an attachment.
type Endpoint struct {
	Container string `json:"container"`
	IfName    string `json:"ifName"`
}

// DetachResult lists what was detached.
type DetachResult struct {
	Detached []Attachment `json:"detached"`
}

// Refused is an error that says why an attachment cannot be.
type Refused struct {
	Reason string `json:"reason,omitempty"` // one of the constants, or empty
	Text   string `json:"text"`
}

// Reasons that callers branch on.
const (
	Exhausted = "exhausted" // no address is left
	Taken     = "taken"     // what was asked for is somebody else's
	NotReady  = "not ready" // it may be later
)

func (r *Refused) Error() string { return r.Text }

// step is what the gateway says twice.
type step struct {
	Plan    *AttachPlan `json:"plan,omitempty"`
	Refused *Refused    `json:"refused,omitempty"`
}

func (st step) err() error {
	if st.Refused != nil {
		return st.Refused
	}
	return nil
}

// upgrade asks for a conversation and returns its connection, which ends with ctx.
func (c *Client) upgrade(ctx context.Context, path string, q any) (*net.UnixConn, *bufio.Reader, error) {
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, nil, err
	}
	req, err := request(ctx, "POST", path, q)
	if err == nil {
		err = req.Write(conn)
	}
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	context.AfterFunc(ctx, func() { conn.Close() })
	br := bufio.NewReader(conn)
	resp, err := http.ReadResponse(br, req)
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		msg, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
		conn.Close()
		return nil, nil, errors.New(strings.TrimSpace(string(msg)))
	}
	return conn.(*net.UnixConn), br, nil
}

// Attach makes an attachment: build makes the interface, and keeps its file open
// until Attach has returned.
func (c *Client) Attach(ctx context.Context, q AttachRequest, build func(AttachPlan) (NIC, error)) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer func() {
		if err != nil && context.Cause(ctx) != nil {
			err = context.Cause(ctx)
		}
	}()
	conn, br, err := c.upgrade(ctx, "/v1/attach", q)
	if err != nil {
		return err
	}
	defer conn.Close()
	dec := json.NewDecoder(br)
	var st step
	if err := dec.Decode(&st); err != nil {
		return fmt.Errorf("the gateway went away: %w", err)
	}
	if err := st.err(); err != nil {
		return err
	}
	nic, err := build(*st.Plan)
	if err != nil {
		return err
	}
	msg, err := json.Marshal(nic)
	if err != nil {
		return err
	}
	if _, _, err := conn.WriteMsgUnix(msg, unix.UnixRights(int(nic.File.Fd())), nil); err != nil {
		return fmt.Errorf("pass the descriptor: %w", err)
	}
	st = step{}
	if err := dec.Decode(&st); err != nil {
		return fmt.Errorf("the gateway went away: %w", err)
	}
	return st.err()
}

// buildTime is how long a client may take to make an interface.
const buildTime = 30 * time.Second

// attach is the gateway's side of the conversation.
func (s *Server) attach(w http.ResponseWriter, r *http.Request) {
	q, ok := decode[AttachRequest](w, r)
	if !ok {
		return
	}
	conn, err := hijack(w, "podgate-attach")
	if err != nil {
		return
	}
	defer conn.Close()
	answer := json.NewEncoder(conn)
	err = s.verbs.Attach(context.WithoutCancel(r.Context()), q, func(plan AttachPlan) (nic NIC, err error) {
		if err := answer.Encode(step{Plan: &plan}); err != nil {
			return nic, err
		}
		conn.SetReadDeadline(time.Now().Add(buildTime))
		msg := make([]byte, 4096)
		n, files, err := receiveRights(conn, msg, 1)
		if err != nil {
			return nic, errors.New("the client went away")
		}
		nic.File = files[0]
		if err := json.Unmarshal(msg[:n], &nic); err != nil {
			nic.File.Close()
			return nic, err
		}
		return nic, nil
	})
	st := step{}
	if err != nil && !errors.As(err, &st.Refused) {
		st.Refused = &Refused{Text: err.Error()}
	}
	answer.Encode(st)
}

// hijack leaves HTTP.
func hijack(w http.ResponseWriter, protocol string) (*net.UnixConn, error) {
	c, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return nil, err
	}
	fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", protocol)
	return c.(*net.UnixConn), nil
}

// Readiness says whether an attachment could be made now.
type Readiness struct {
	Ready   bool   `json:"ready"`             // nothing can be attached before
	Free    uint64 `json:"free"`              // addresses in the pod ranges
	Waiting int    `json:"waiting,omitempty"` // attachments that wait for their descriptors
}

// Attachable asks the instance whether it can serve an attachment.
func (c *Client) Attachable(ctx context.Context) (r Readiness, err error) {
	return r, c.call(ctx, "GET", "/v1/attachable", nil, &r)
}
