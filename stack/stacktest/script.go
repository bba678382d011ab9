package stacktest

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/tools/txtar"

	"podgate/stack"
	"podgate/stack/link"
	"podgate/stack/packet"
)

var update = flag.Bool("update", false, "rewrite what scripts expect")

// Run runs the script file, a txtar archive: its comment is a list of commands,
// a line each, `out` is what they are to print, the other files are manifests.
// After the last command the counters that are not 0 are printed too, so that a
// script names all of them.
//
//	apply FILE                 apply manifests; new pods are ready at once
//	delete FILE                delete what they name
//	send POD PROTO SRC > DST [OPTION...]
//	reply POD [OPTION...]      answer the last packet that POD got
//	error POD KIND             answer it with an ICMP error: port-unreachable, ...
//	arp POD who-has DST [tell SRC]
//	nd POD who-has DST         a neighbour solicitation; announce ADDR: an advertisement that nobody asked for
//	advance DURATION           move the clock
//	ready POD true|false       set a pod's readiness
//	detach POD                 take a pod's interface away
//	await ADDR...              pods that ran before the gateway did, not attached yet
//	forbid PREFIX...           destinations outside that pods may not reach
//	egress off|on
//	mtu N                      of every port; comes first
//	mtu POD N                  give the pod another interface, with that MTU
//	uplink [OPTION...]         a way out that masquerades: mapping=endpoint-independent, filtering=likewise, ports=FIRST-LAST
//	node                       the node itself is attached: node
//	route PREFIX POD           a network behind a pod; unroute PREFIX: no longer
//	masquerade FIRST-LAST      source ports that may be claimed; comes first
//	fault POD [LIST]           a bad link, such as loss=10%,delay=20ms; none: a good one
//	trace POD PROTO DST        what the production decision says
//	reach PROTO PORT [6]       who reaches whom by it, over IPv4 or IPv6: rows send
//	told POD NAME ADDR DURATION an answer of DNS to POD
//	apply-broken FILE          apply manifests of which some are rejected
//	flows, drops, denials      list them
//
// A pod's further interface is POD.net1. An address is a pod's name, svc/NAME,
// gateway, gateway.NETWORK, uplink (its next hop), node, dns, or a literal; @6 means its IPv6 one; :PORT follows. Options: S SA A FA RA F R (TCP flags), len=N, ttl=N,
// seq=N, mss=N, id=N (echo), mac=MAC (source), to=MAC|POD|gateway (destination),
// gso=N, partial, nosum, df, frag=N (in fragments of N bytes), only=I,J (of them).
func Run(t *testing.T, file string) {
	t.Helper()
	ar, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	s := &script{t: t, files: map[string]string{}}
	for _, f := range ar.Files {
		s.files[f.Name] = string(f.Data)
	}
	for _, line := range strings.Split(string(ar.Comment), "\n") {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			s.run(line)
		}
	}
	s.counters()
	got := s.out.String()
	if *update {
		ar.Files = slices.DeleteFunc(ar.Files, func(f txtar.File) bool { return f.Name == "out" })
		ar.Files = append(ar.Files, txtar.File{Name: "out", Data: []byte(got)})
		if err := os.WriteFile(file, txtar.Format(ar), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if want := s.files["out"]; got != want {
		t.Errorf("%s:\ngot\n%s\nwant\n%s", file, got, want)
	}
}

type script struct {
	t     *testing.T
	files map[string]string
	cfg   stack.Config
	w     *World
	out   bytes.Buffer
	line  string
	ident uint32
}

func (s *script) world() *World {
	if s.w == nil {
		s.w = New(s.t, s.cfg)
	}
	return s.w
}

func (s *script) fail(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatalf("%s: %v", s.line, err)
	}
}

func (s *script) run(line string) {
	s.line = line
	fmt.Fprintf(&s.out, "> %s\n", line)
	words := strings.Fields(line)
	cmd, args := words[0], words[1:]
	if cmd == "mtu" && len(args) == 1 {
		n, err := strconv.Atoi(args[0])
		s.fail(err)
		s.cfg.MTU = n
		return
	}
	if cmd == "masquerade" {
		_, err := fmt.Sscanf(args[0], "%d-%d", &s.cfg.MasqueradePorts[0], &s.cfg.MasqueradePorts[1])
		s.fail(err)
		return
	}
	w := s.world()
	switch cmd {
	case "apply":
		w.Apply(s.file(args[0]))
	case "delete":
		w.Delete(s.file(args[0]))
	case "send":
		s.send(w.Pod(args[0]), args[1:])
	case "reply":
		s.reply(w.Pod(args[0]), args[1:])
	case "error":
		s.icmpError(w.Pod(args[0]), args[1])
	case "arp":
		s.arp(w.Pod(args[0]), args[1:])
	case "nd":
		s.nd(w.Pod(args[0]), args[1:])
	case "advance":
		d, err := time.ParseDuration(args[0])
		s.fail(err)
		w.Advance(d)
	case "ready":
		w.Ready(parseName(args[0]), args[1] == "true")
	case "detach":
		w.Detach(parseName(args[0]))
	case "fault":
		spec := ""
		if len(args) > 1 {
			spec = args[1]
		}
		f, err := link.ParseFaults(spec)
		s.fail(err)
		s.fail(w.Plane.SetFaults(parseName(args[0]).String(), f))
	case "mtu":
		n, err := strconv.Atoi(args[1])
		s.fail(err)
		w.Reattach(parseName(args[0]), n)
	case "await":
		w.Input.Awaited = nil
		for _, a := range args {
			w.Input.Awaited = append(w.Input.Awaited, netip.MustParseAddr(a))
		}
		w.Publish()
	case "forbid":
		w.Input.Forbidden = nil
		for _, a := range args {
			w.Input.Forbidden = append(w.Input.Forbidden, netip.MustParsePrefix(a))
		}
		w.Publish()
	case "egress":
		w.Input.EgressOff = args[0] == "off"
		w.Publish()
	case "node":
		w.AddNode()
	case "uplink":
		s.uplink(args)
	case "route":
		w.Routes = append(w.Routes, stack.Route{Prefix: netip.MustParsePrefix(args[0]), Pod: parseName(args[1])})
		w.publish()
	case "unroute":
		w.Routes = slices.DeleteFunc(w.Routes, func(r stack.Route) bool { return r.Prefix.String() == args[0] })
		w.publish()
	case "trace":
		s.trace(args)
	case "reach":
		s.reach(args)
	case "flows":
		s.flows()
	case "drops":
		s.drops()
	case "denials":
		s.denials()
	case "apply-broken":
		for _, p := range w.ApplyBroken(s.file(args[0])) {
			fmt.Fprintf(&s.out, "  %s\n", p)
		}
	case "told":
		a, _ := s.addr(args[2])
		ttl, err := time.ParseDuration(args[3])
		s.fail(err)
		w.Told(w.Pod(args[0]), args[1], a, ttl)
	default:
		s.fail(errors.New("unknown command"))
	}
	s.received()
}

func (s *script) uplink(args []string) {
	var nat stack.Masquerade
	for _, arg := range args {
		switch key, value, _ := strings.Cut(arg, "="); key {
		case "mapping":
			nat.IndependentMapping = value == "endpoint-independent"
		case "filtering":
			nat.IndependentFiltering = value == "endpoint-independent"
		case "ports":
			_, err := fmt.Sscanf(value, "%d-%d", &nat.Ports[0], &nat.Ports[1])
			s.fail(err)
		}
	}
	s.w.AddUplink(nat)
}

func (s *script) file(name string) string {
	data, ok := s.files[name]
	if !ok {
		s.fail(fmt.Errorf("no file %s", name))
	}
	return data
}

// received prints what came for everybody.
func (s *script) received() {
	for _, p := range s.w.all() {
		name := "local"
		if p != s.w.Local {
			name = shortName(p.Name.Namespace, p.Name.Name)
		}
		for _, f := range p.Received() {
			fmt.Fprintf(&s.out, "%s: %s\n", name, s.w.Describe(f))
		}
	}
}

func (s *script) counters() {
	fmt.Fprintln(&s.out, "counters")
	all := s.w.Counters()
	for _, name := range slices.Sorted(maps.Keys(all)) {
		fmt.Fprintf(&s.out, "  %s %d\n", name, all[name])
	}
}

// addr resolves an address with an optional port.
func (s *script) addr(word string) (packet.Addr, uint16) {
	if ap, err := netip.ParseAddrPort(word); err == nil {
		return packet.AddrFrom(ap.Addr()), ap.Port()
	}
	if a, err := netip.ParseAddr(word); err == nil {
		return packet.AddrFrom(a), 0
	}
	name, portText, _ := strings.Cut(word, ":")
	var port uint64
	if portText != "" {
		var err error
		port, err = strconv.ParseUint(portText, 10, 16)
		s.fail(err)
	}
	for a, n := range s.w.names() {
		if n == name {
			return packet.AddrFrom(a), uint16(port)
		}
	}
	s.fail(fmt.Errorf("nobody is called %s", name))
	panic("unreachable")
}

func (s *script) send(from *Pod, args []string) {
	if len(args) < 4 || args[2] != ">" {
		s.fail(errors.New("usage: send POD PROTO SRC > DST [OPTION...]"))
	}
	var p Packet
	p.Src, p.SrcPort = s.addr(args[1])
	p.Dst, p.DstPort = s.addr(args[3])
	p.Proto = s.proto(args[0], p.Dst)
	s.transmit(from, p, args[4:])
}

func (s *script) proto(word string, dst packet.Addr) packet.Proto {
	switch word {
	case "tcp":
		return packet.TCP
	case "udp":
		return packet.UDP
	case "udplite":
		return packet.UDPLite
	case "sctp":
		return packet.SCTP
	case "icmp":
		if dst.Is4() {
			return packet.ICMP
		}
		return packet.ICMPv6
	}
	n, err := strconv.ParseUint(word, 10, 8)
	s.fail(err)
	return packet.Proto(n)
}

// reply answers the last packet that the pod got.
func (s *script) reply(from *Pod, args []string) {
	var last packet.Packet
	if fault := packet.Decode(&last, from.last); fault != packet.OK {
		s.fail(fmt.Errorf("nothing to reply to: %s", fault))
	}
	p := Packet{Tuple: last.Tuple.Reverse()}
	s.transmit(from, p, args)
}

func (s *script) transmit(from *Pod, p Packet, args []string) {
	p.SrcMAC = from.MAC
	p.DstMAC = s.next(from, p.Dst)
	frag, only := 0, ""
	for _, arg := range args {
		key, value, has := strings.Cut(arg, "=")
		n, _ := strconv.Atoi(value)
		switch {
		case !has && strings.Trim(arg, "FSRPA") == "":
			for _, c := range arg {
				p.TCPFlags |= 1 << strings.IndexRune("FSRPA", c)
			}
		case key == "len":
			p.Payload = make([]byte, n)
		case key == "ttl":
			p.TTL = uint8(n)
		case key == "mss":
			p.MSS = n
		case key == "seq":
			p.Seq = uint32(n)
		case key == "id" && p.DstPort != 0:
			p.DstPort = uint16(n)
		case key == "id":
			p.SrcPort = uint16(n)
		case key == "mac":
			p.SrcMAC = s.mac(value)
		case key == "to":
			p.DstMAC = s.mac(value)
		case key == "gso":
			p.GSOSize = n
		case key == "partial":
			p.Partial = true
		case key == "nosum":
			p.NoChecksum = true
		case key == "df":
			p.DontFragment = true
		case key == "frag":
			frag = n
		case key == "only":
			only = value
		default:
			s.fail(fmt.Errorf("unknown option %s", arg))
		}
	}
	if (p.Proto == packet.ICMP || p.Proto == packet.ICMPv6) && p.SrcPort == 0 && p.DstPort == 0 {
		p.SrcPort = 7
	}
	frames := []packet.Frame{p.Frame()}
	if frag != 0 {
		frames = s.fragments(frames[0], frag, only)
	}
	s.w.Send(from, frames...)
}

// fragments cuts a frame up, and picks those that only names, in its order.
func (s *script) fragments(f packet.Frame, n int, only string) []packet.Frame {
	s.ident++
	all := Fragments(f, s.ident, n)
	if only == "" {
		return all
	}
	var some []packet.Frame
	for _, word := range strings.Split(only, ",") {
		i, err := strconv.Atoi(word)
		s.fail(err)
		some = append(some, all[i])
	}
	return some
}

// next is the MAC that a pod's kernel would send to.
func (s *script) next(from *Pod, dst packet.Addr) packet.MAC {
	if dst.IsMulticast() || dst.IsBroadcast() || dst.Is4() && dst[15] == 255 {
		if !dst.IsMulticast() {
			dst = packet.AddrFrom(netip.MustParseAddr("255.255.255.255"))
		}
		return packet.MulticastMAC(dst)
	}
	for _, p := range s.w.pods {
		if p != from && p.spec.Network == from.spec.Network && slices.Contains(p.Addrs, dst.Netip()) {
			return p.MAC
		}
	}
	return GatewayMAC
}

func (s *script) mac(word string) packet.MAC {
	if word == "gateway" {
		return GatewayMAC
	}
	if strings.Count(word, ":") != 5 {
		return s.w.Pod(word).MAC
	}
	var m packet.MAC
	for i, b := range strings.Split(word, ":") {
		n, err := strconv.ParseUint(b, 16, 8)
		s.fail(err)
		m[i] = byte(n)
	}
	return m
}

// icmpError answers the last packet that the pod got with an ICMP error.
func (s *script) icmpError(from *Pod, kind string) {
	var last packet.Packet
	if fault := packet.Decode(&last, from.last); fault != packet.OK {
		s.fail(fmt.Errorf("nothing to answer: %s", fault))
	}
	proto := packet.ICMPv6
	if last.Dst.Is4() {
		proto = packet.ICMP
	}
	for code, name := range icmpNames[proto] {
		if name == kind {
			buf := make([]byte, packet.MaxBuilt)
			f := packet.BuildICMPError(buf, &last, last.Dst, uint8(code>>8), uint8(code), 1400)
			if f == nil {
				s.fail(errors.New("no error may be sent about that"))
			}
			mac := s.next(from, last.Src)
			copy(f.Eth(), mac[:])
			copy(f.Eth()[6:], from.MAC[:])
			s.w.Send(from, f)
			return
		}
	}
	s.fail(fmt.Errorf("unknown error %s", kind))
}

func (s *script) arp(from *Pod, args []string) {
	a := packet.ARP{Op: packet.ARPRequest, SenderMAC: from.MAC, SenderIP: packet.AddrFrom(from.IP())}
	for i := 0; i+1 < len(args); i += 2 {
		switch args[i] {
		case "who-has":
			a.TargetIP, _ = s.addr(args[i+1])
		case "tell":
			a.SenderIP, _ = s.addr(args[i+1])
		case "mac":
			a.SenderMAC = s.mac(args[i+1])
		case "is-at": // an announcement
			a.Op = packet.ARPReply
			a.TargetIP = a.SenderIP
			a.SenderMAC = s.mac(args[i+1])
		}
	}
	s.w.Send(from, packet.BuildARP(make([]byte, packet.MaxBuilt), from.MAC, packet.MulticastMAC(packet.AddrFrom(netip.MustParseAddr("255.255.255.255"))), a))
}

func (s *script) nd(from *Pod, args []string) {
	src, mac := packet.AddrFrom(from.IP6()), from.MAC
	var target packet.Addr
	for i := 0; i+1 < len(args); i += 2 {
		switch args[i] {
		case "who-has":
			target, _ = s.addr(args[i+1])
		case "tell":
			src, _ = s.addr(args[i+1])
		case "mac":
			mac = s.mac(args[i+1])
		case "announce":
			target, _ = s.addr(args[i+1])
			s.w.Send(from, unsolicited(from.MAC, target))
			return
		}
	}
	f := packet.BuildNS(make([]byte, packet.MaxBuilt), mac, src, target)
	copy(f.Eth()[6:], from.MAC[:])
	s.w.Send(from, f)
}

// unsolicited is an advertisement of target to all nodes: an answer to nobody.
func unsolicited(mac packet.MAC, target packet.Addr) packet.Frame {
	var q packet.Packet
	packet.Decode(&q, packet.BuildNS(make([]byte, packet.MaxBuilt), mac, packet.Addr{}, target))
	return packet.BuildNA(make([]byte, packet.MaxBuilt), &q, &packet.ND{Target: target}, mac, false)
}

func (s *script) trace(args []string) {
	q := stack.TraceQuery{}
	if args[0] != "local" {
		q.Pod = parseName(args[0])
		q.Pod.Name, q.Name, _ = strings.Cut(q.Pod.Name, ".")
	}
	dst, port := s.addr(args[2])
	q.Dst, q.DstPort, q.Proto = dst.Netip(), port, s.proto(args[1], dst)
	fmt.Fprintln(&s.out, s.w.Plane.Trace(q))
}

// reach asks the production decision about all pairs of pods.
func (s *script) reach(args []string) {
	port, err := strconv.ParseUint(args[1], 10, 16)
	s.fail(err)
	pods := s.w.all()[1:]
	fmt.Fprintf(&s.out, "  %-6s", "")
	for _, to := range pods {
		fmt.Fprintf(&s.out, " %-5s", to.Name)
	}
	for _, from := range pods {
		fmt.Fprintf(&s.out, "\n  %-6s", from.Name)
		for _, to := range pods {
			q := stack.TraceQuery{Pod: from.Name, Dst: to.ip(len(args) < 3), DstPort: uint16(port)}
			q.Proto = s.proto(args[0], packet.AddrFrom(q.Dst))
			mark := "X"
			switch {
			case from == to: // never leaves the pod
				mark = "-"
			case s.w.Plane.Trace(q).Delivered():
				mark = "."
			}
			fmt.Fprintf(&s.out, " %-5s", mark)
		}
	}
	s.out.WriteString("\n")
}

func (s *script) flows() {
	var lines []string
	for _, f := range s.w.Plane.Flows() {
		lines = append(lines, fmt.Sprintf("  %s %s > %s %s->%s [%s] [%s] %s %s %d/%d packets %d/%d bytes\n",
			f.Proto, f.Src, f.Dst, f.SrcPod, f.DstPod, f.Service, f.Backend, f.State, f.Verdict, f.Packets, f.ReplyPackets, f.Bytes, f.ReplyBytes))
	}
	slices.Sort(lines)
	s.out.WriteString(strings.Join(lines, ""))
}

func (s *script) drops() {
	for _, d := range s.w.Plane.Drops(100) {
		fmt.Fprintf(&s.out, "  %s %s %s > %s %s->%s %s %s %v\n", d.Port, d.Proto, d.Src, d.Dst, d.SrcPod, d.DstPod, d.Verdict, d.Reason, d.Policies)
	}
}

func (s *script) denials() {
	for _, d := range s.w.Plane.Denials() {
		verb := "denied"
		if d.Audit {
			verb = "audited"
		}
		fmt.Fprintf(&s.out, "  %s: %s of %s with %s: %d %s\n", d.By, d.Direction, d.Pod, d.Peer, d.Packets, verb)
	}
}
