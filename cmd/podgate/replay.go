package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"podgate/control"
	"podgate/stack"
	"podgate/stack/link"
	"podgate/stack/packet"
)

// Theory of operation
//
// A capture becomes a pod by way of a pair of datagram sockets: the gateway serves
// one as it serves a virtual machine's, this command writes the recorded frames of
// one sender into the other. A full socket makes the writer wait, so that nothing
// is lost on the way, however fast.
//
// The pod asks for the sender's MAC and addresses. Where these are another's, or
// none of this cluster's, it takes what is free, and the frames are changed to
// come from there: source MAC and IP, and the gateway's MAC where the destination's
// is that of no pod. ARP and what came from link-local addresses is left out then:
// the gateway needs neither.

// replay is a capture to be sent.
type replay struct {
	file, from string
	fast, keep bool

	sender packet.MAC
	addrs  []netip.Addr                // that it sent from, the first of each family
	to     map[packet.Addr]packet.Addr // what they become; nil: they stay
	began  time.Time
	plan   control.AttachPlan
	mac    packet.MAC // of the plan
	gw     packet.MAC
}

// attach makes the pod, sends everything and reports.
func (r *replay) attach(cmd *cobra.Command, q control.AttachRequest) error {
	ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := r.scan(); err != nil {
		return fmt.Errorf("capture %s: %w", r.file, err)
	}
	c, instance, err := client(cmd)
	if err != nil {
		return err
	}
	out, err := r.join(ctx, c, q)
	if err != nil {
		return explain(err, instance)
	}
	defer out.Close()
	if err := sayAttached(cmd, q, r.plan, "a capture"); err != nil {
		return err
	}
	sent, took, err := r.play(ctx, out)
	if ctx.Err() != nil {
		err = nil
	}
	if err == nil {
		err = r.report(cmd, q, sent, took)
	}
	if r.keep && err == nil {
		return nil
	}
	gone, cancel := context.WithTimeout(context.WithoutCancel(ctx), byHandTime)
	defer cancel()
	return errors.Join(err, c.Call(gone, "detach", control.DetachRequest{Container: q.Container, IfName: q.IfName}, new(control.DetachResult)))
}

// records calls each with the frames of the capture until it returns false.
func (r *replay) records(each func(*link.PcapRecord) bool) error {
	f, err := os.Open(r.file)
	if err != nil {
		return errors.Unwrap(err) // the caller names the file
	}
	defer f.Close()
	pr := link.NewPcapReader(bufio.NewReaderSize(f, 1<<18))
	for {
		rec, err := pr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if len(rec.Frame) >= 14 && !each(&rec) {
			return nil
		}
	}
}

// scan finds the sender, and the addresses that it sent from.
func (r *replay) scan() error {
	if r.from != "" {
		mac, err := net.ParseMAC(r.from)
		if err != nil || len(mac) != len(r.sender) {
			return fmt.Errorf("--from %q is no Ethernet address", r.from)
		}
		r.sender = packet.MAC(mac)
	}
	frames := 0
	var p packet.Packet
	err := r.records(func(rec *link.PcapRecord) bool {
		mac := packet.MAC(rec.Frame[6:12])
		if r.sender == (packet.MAC{}) {
			r.sender = mac
		}
		if mac != r.sender {
			return true
		}
		frames++
		if packet.Decode(&p, framed(nil, rec.Frame)) != packet.OK || p.EtherType != packet.EtherIPv4 && p.EtherType != packet.EtherIPv6 {
			return true
		}
		a := p.Src.Netip()
		known := slices.ContainsFunc(r.addrs, func(b netip.Addr) bool { return a.Is4() == b.Is4() })
		if a.IsGlobalUnicast() && !known {
			r.addrs = append(r.addrs, a)
		}
		return true
	})
	switch {
	case err != nil:
		return err
	case frames == 0 && r.from != "":
		return fmt.Errorf("it has no frame from %s", r.from)
	case frames == 0:
		return errors.New("it has no Ethernet frames")
	}
	return nil
}

// framed is an Ethernet frame as devices have it, in buf's memory.
func framed(buf packet.Frame, eth []byte) packet.Frame {
	buf = append(buf[:0], make([]byte, packet.VnetHdrLen)...)
	return append(buf, eth...)
}

// join attaches the pod, with the recorded addresses unless others are asked for
// or these cannot be had, and returns where its frames are to be written.
func (r *replay) join(ctx context.Context, c *control.Client, q control.AttachRequest) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, byHandTime)
	defer cancel()
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	try := func(q control.AttachRequest) error {
		return c.Attach(ctx, q, func(p control.AttachPlan) (control.NIC, error) {
			r.plan = p
			return control.NIC{Kind: q.Kind, File: theirs}, nil
		})
	}
	as := q
	if len(q.Addrs) == 0 && q.MAC == "" && len(r.addrs) > 0 {
		as.Addrs, as.MAC = r.addrs, r.sender.String()
	}
	err = try(as)
	if refused := new(control.Refused); len(q.Addrs) == 0 && errors.As(err, &refused) && refused.Reason == control.Taken {
		err = try(q)
	}
	if err == nil {
		err = r.translate()
	}
	if err != nil {
		ours.Close()
		return nil, err
	}
	return ours, nil
}

func socketPair() (a, b *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(fds[0]), "replay"), os.NewFile(uintptr(fds[1]), "replay"), nil
}

// translate says what frames have to be changed to, by the plan.
func (r *replay) translate() error {
	mac, err := net.ParseMAC(r.plan.MAC)
	if err != nil || len(mac) != len(r.mac) {
		return fmt.Errorf("the gateway planned the MAC %q", r.plan.MAC)
	}
	r.mac, r.gw = packet.MAC(mac), macOf(r.plan.Gateways)
	same := r.mac == r.sender
	to := map[packet.Addr]packet.Addr{}
	for _, was := range r.addrs {
		for _, is := range r.plan.Addrs {
			if is.Addr().Is4() == was.Is4() {
				to[packet.AddrFrom(was)] = packet.AddrFrom(is.Addr())
				same = same && is.Addr() == was
			}
		}
	}
	if !same {
		r.to = to
	}
	return nil
}

// play sends the sender's frames.
func (r *replay) play(ctx context.Context, out *os.File) (sent int, took time.Duration, err error) {
	fd := int(out.Fd()) // and makes it blocking
	start, first := time.Now(), int64(0)
	r.began = start
	var failed error
	var buf packet.Frame
	err = r.records(func(rec *link.PcapRecord) bool {
		if packet.MAC(rec.Frame[6:12]) != r.sender {
			return true
		}
		if first == 0 {
			first = rec.At
		}
		if !r.fast && !wait(ctx, time.Until(start.Add(time.Duration(rec.At-first)))) || ctx.Err() != nil {
			return false
		}
		buf = framed(buf, rec.Frame)
		if r.to != nil && !r.change(buf) {
			return true
		}
		if failed = send(fd, buf.Eth()); failed == nil {
			sent++
		}
		return failed == nil
	})
	for failed == nil && ctx.Err() == nil && unread(fd) && wait(ctx, time.Millisecond) {
	}
	return sent, time.Since(start), errors.Join(err, failed)
}

// wait is false if ctx ended first.
func wait(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

func send(fd int, eth []byte) error {
	for {
		if _, err := unix.Write(fd, eth); err != unix.EINTR {
			return err
		}
	}
}

// unread says whether the gateway has still to take something.
func unread(fd int) bool {
	n, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
	return err == nil && n > 0
}

// change makes a frame the new pod's; false: it has no place here.
func (r *replay) change(f packet.Frame) bool {
	eth := f.Eth()
	copy(eth[6:12], r.mac[:])
	var p packet.Packet
	if packet.Decode(&p, f) != packet.OK {
		return true // broken ones are sent as they are
	}
	if p.EtherType == packet.EtherARP || p.Src.Netip().IsLinkLocalUnicast() {
		return false
	}
	if dst := p.DstMAC(); !dst.Group() && dst != macOf([]netip.Addr{p.Dst.Netip()}) {
		copy(eth[:6], r.gw[:])
	}
	if src, ok := r.to[p.Src]; ok {
		now := p.Tuple
		now.Src = src
		rw := packet.NewRewrite(p.Tuple, now)
		rw.Apply(&p)
	}
	return true
}

// report says what became of the frames.
func (r *replay) report(cmd *cobra.Command, q control.AttachRequest, sent int, took time.Duration) error {
	pod := q.Namespace + "/" + q.Pod
	res, err := call[control.GetResult](cmd, "get", control.GetRequest{Kind: "ports"})
	if err != nil {
		return err
	}
	ports, err := decodeAll[stack.PortRecord](res.Items)
	if err != nil {
		return err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d frames sent in %s", sent, took.Round(time.Millisecond))
	if i := slices.IndexFunc(ports, func(p stack.PortRecord) bool { return p.Pod == pod }); i >= 0 {
		fmt.Fprintf(&b, ", %d dropped; %d came back", ports[i].Dropped, ports[i].TxFrames)
	}
	drops, err := call[[]stack.DropRecord](cmd, "flows", control.FlowsRequest{Dropped: true})
	if err != nil {
		return err
	}
	why := map[string]int{}
	for _, d := range drops {
		if d.Port == pod && d.Time.After(r.began) {
			why[d.Reason]++
		}
	}
	for _, reason := range sortedKeys(why) {
		fmt.Fprintf(&b, "\n  %s: %d", reason, why[reason])
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), b.String())
	return err
}
