package local

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	echoIdle      = 30 * time.Second
	echoQueue     = 256 // requests that wait to be sent
	echoHeaderLen = header.ICMPv4MinimumSize
)

// echoKey is a ping: who pings whom with which identifier.
type echoKey struct {
	pod, to netip.Addr
	id      uint16
}

// echoRequest is one request as it came in.
type echoRequest struct {
	key   echoKey
	ttl   uint8
	msg   []byte // ICMP message
	quote quote  // network header and ICMP header
}

// echoes carries ICMP echo to the outside and back, one socket a ping: a ping
// socket (icmp(7)), which any user may open whose group is in
// net.ipv4.ping_group_range, or a raw one where CAP_NET_RAW allows it.
type echoes struct {
	s      *Stack
	queue  chan echoRequest
	flows  *sessions[echoKey, *echoSocket]
	denied sync.Once // logged
}

// echoSocket is the socket of one ping.
type echoSocket struct {
	key     echoKey
	session *session
	file    *os.File
	raw     syscall.RawConn
	isRaw   bool
	id      uint16 // on the wire, of a raw socket
	ttl     uint8  // as last set
	first   quote  // network header and ICMP header of a request
}

func startEchoes(s *Stack) *echoes {
	x := &echoes{
		s:     s,
		queue: make(chan echoRequest, echoQueue),
		flows: newSessions[echoKey, *echoSocket](s.cfg.Limits.Pings, &s.count.echoDropped),
	}
	s.wg.Go(func() { x.send(s.ctx) })
	return x
}

func (x *echoes) close() { x.flows.close() }

// handle sees ICMP messages for no endpoint; false leaves an echo request to
// netstack, which answers for the gateway's own addresses.
func (x *echoes) handle(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	h := pkt.TransportHeader().Slice()
	to := addrPort(id.LocalAddress, 0).Addr()
	request := byte(header.ICMPv4Echo)
	if to.Is6() {
		request = byte(header.ICMPv6EchoRequest)
	}
	if len(h) == 0 || h[0] != request || x.s.own[to] || to.IsMulticast() {
		return false
	}
	r := echoRequest{key: echoKey{addrPort(id.RemoteAddress, 0).Addr(), to, id.LocalPort}, ttl: ttlOf(pkt)}
	if x.s.Refuses(to) {
		x.s.count.echoRefused.Add(1)
		x.s.answer(quoteOf(pkt, quoteLen), prohibited)
		return true
	}
	r.msg = append(append(make([]byte, 0, len(h)+pkt.Data().Size()), h...), pkt.Data().AsRange().ToSlice()...)
	if len(r.msg) < echoHeaderLen {
		return true
	}
	r.quote = quoteOf(pkt, len(pkt.NetworkHeader().Slice())+echoHeaderLen)
	select {
	case x.queue <- r:
	default:
		x.s.count.echoDropped.Add(1)
	}
	return true
}

// send is the goroutine that sends requests.
func (x *echoes) send(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case r := <-x.queue:
			x.s.count.echoRequests.Add(1)
			if err := x.sendOne(r); err != nil {
				x.s.answer(append(r.quote, r.msg[echoHeaderLen:min(len(r.msg), quoteLen-len(r.quote)+echoHeaderLen)]...), reactionTo(err))
			}
		}
	}
}

func (x *echoes) sendOne(r echoRequest) error {
	sock, ok := x.flows.get(r.key)
	if !ok {
		var err error
		if sock, err = x.open(r); sock == nil {
			return err
		}
	}
	sock.session.touch()
	if sock.isRaw {
		binary.BigEndian.PutUint16(r.msg[4:], sock.id)
		r.msg[2], r.msg[3] = 0, 0
		if r.key.to.Is4() { // the kernel sums ICMPv6
			binary.BigEndian.PutUint16(r.msg[2:], ^checksum.Checksum(r.msg, 0))
		}
	}
	var err error
	if cerr := sock.raw.Control(func(fd uintptr) {
		if sock.ttl != r.ttl {
			sock.ttl = r.ttl
			outsideOptions(int(fd), r.key.to.Is4(), r.ttl)
		}
		for range 2 { // the first error may be that of an earlier request
			if _, err = unix.SendmsgN(int(fd), r.msg, nil, nil, unix.MSG_DONTWAIT); err == nil {
				break
			}
		}
	}); cerr != nil {
		return nil // idle just now
	}
	if errors.Is(err, unix.EMSGSIZE) || errors.Is(err, unix.EAGAIN) {
		return nil // the error queue has it; congestion
	}
	return err
}

// open makes the socket of a ping and starts its reader.
func (x *echoes) open(r echoRequest) (*echoSocket, error) {
	fd, isRaw, err := x.s.cfg.echoSocket(r.key.to)
	if err != nil {
		if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
			x.denied.Do(func() {
				x.s.log.Warn("pods cannot ping the outside: this user may open neither ping nor raw sockets; " +
					"widen sysctl net.ipv4.ping_group_range (to \"0 2147483647\") or grant CAP_NET_RAW")
			})
		}
		return nil, err
	}
	if err := outsideOptions(fd, r.key.to.Is4(), r.ttl); err != nil {
		unix.Close(fd)
		return nil, err
	}
	sock := &echoSocket{
		key: r.key, file: os.NewFile(uintptr(fd), "ping"), isRaw: isRaw,
		id: uint16(rand.Uint32()), ttl: r.ttl, first: r.quote,
	}
	if sock.raw, err = sock.file.SyscallConn(); err != nil {
		sock.file.Close()
		return nil, err
	}
	sock.session = x.flows.add(r.key, sock, echoIdle, func() { sock.file.Close() })
	if sock.session == nil {
		sock.file.Close()
		return nil, nil
	}
	x.s.wg.Go(func() { x.receive(sock) })
	return sock, nil
}

// openEchoSocket opens a ping socket connected to a, or else a raw one.
func openEchoSocket(a netip.Addr) (fd int, isRaw bool, err error) {
	if fd, err = connectEcho(a, unix.SOCK_DGRAM); err == nil || !errors.Is(err, errEchoSocket) {
		return fd, false, err
	}
	fd, err = connectEcho(a, unix.SOCK_RAW)
	return fd, true, err
}

// errEchoSocket marks an error of socket(2), rather than connect(2).
var errEchoSocket = errors.New("socket")

func connectEcho(a netip.Addr, typ int) (fd int, err error) {
	family, proto := unix.AF_INET6, unix.IPPROTO_ICMPV6
	var to unix.Sockaddr = &unix.SockaddrInet6{Addr: a.As16()}
	if a.Is4() {
		family, proto = unix.AF_INET, unix.IPPROTO_ICMP
		to = &unix.SockaddrInet4{Addr: a.As4()}
	}
	if fd, err = unix.Socket(family, typ|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto); err != nil {
		return -1, fmt.Errorf("%w: %w", errEchoSocket, err)
	}
	if err = unix.Connect(fd, to); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// receive carries answers and ICMP errors to the pod until the socket is closed.
func (x *echoes) receive(sock *echoSocket) {
	buf := datagramBuffers.Get().(*[maxDatagram]byte)
	defer datagramBuffers.Put(buf)
	for {
		var n int
		var rerr error
		var rep report
		var reported bool
		if err := sock.raw.Read(func(fd uintptr) bool {
			if n, rerr = unix.Read(int(fd), buf[:]); rerr == nil {
				return true
			}
			rep, reported = readReport(int(fd), buf[:])
			return reported || rerr != unix.EAGAIN
		}); err != nil {
			return
		}
		switch {
		case reported:
			if q := sock.quote(rep); q != nil {
				x.s.relay(q, rep)
			}
		case rerr == nil:
			if msg := sock.reply(buf[:n]); msg != nil {
				sock.session.touch()
				binary.BigEndian.PutUint16(msg[4:], sock.key.id)
				x.s.sendICMP(sock.key.to, sock.key.pod, msg)
			}
		}
	}
}

// reply is the ICMP message in what was read, if it answers this ping.
func (k *echoSocket) reply(b []byte) []byte {
	want := byte(header.ICMPv6EchoReply)
	if k.key.to.Is4() {
		want = byte(header.ICMPv4EchoReply)
		if k.isRaw && len(b) > 0 { // raw IPv4 sockets read the header too
			b = b[min(len(b), int(header.IPv4(b).HeaderLength())):]
		}
	}
	if len(b) < echoHeaderLen || b[0] != want || k.isRaw && binary.BigEndian.Uint16(b[4:]) != k.id {
		return nil
	}
	return b
}

// quote is the pod's request that r is about, or nil if it was another's. The
// payload of r is the ICMP message as it was sent.
func (k *echoSocket) quote(r report) quote {
	if len(r.payload) < echoHeaderLen {
		return k.first
	}
	if k.isRaw && binary.BigEndian.Uint16(r.payload[4:]) != k.id {
		return nil
	}
	q := append(make(quote, 0, quoteLen), k.first...)
	at := len(q) - echoHeaderLen
	copy(q[at:], r.payload[:echoHeaderLen])
	binary.BigEndian.PutUint16(q[at+4:], k.key.id)
	rest := r.payload[echoHeaderLen:]
	return append(q, rest[:min(len(rest), cap(q)-len(q))]...)
}
