package main

import (
	"encoding/binary"
	"encoding/json"
	"math"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"podgate/kube"
	"podgate/nat"
	"podgate/stack"
	"podgate/stack/link"
	"podgate/stack/packet"
)

// flowsProcess fills a data plane with flows from a pod to a Service and then
// sends frames of flows chosen at random through it, from the device that makes
// them to the one that swallows them. It reports what a flow takes and what a
// frame costs.
func flowsProcess(args []string) error {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	runtime.GOMAXPROCS(1)
	plane, err := stack.New(stack.Config{
		GatewayMAC: gatewayMAC, GatewayAddrs: []netip.Addr{gatewayAddr}, LocalAddrs: []netip.Addr{gatewayAddr},
		PodCIDRs: podCIDRs, ServiceCIDRs: serviceCIDRs, MaxFlows: n, PortShare: 1,
	})
	if err != nil {
		return err
	}
	client, server := newFrameMaker(n), podSpec{Name: "server", Addr: netip.MustParseAddr("10.244.0.5")}
	name := kube.Name{Namespace: "bench", Name: "client"}
	if _, err := plane.Attach(stack.PortSpec{Pod: name, Name: "eth0", MAC: client.mac, Addrs: client.addrs}, client); err != nil {
		return err
	}
	name.Name = server.Name
	if _, err := plane.Attach(stack.PortSpec{Pod: name, Name: "eth0", MAC: server.mac(), Addrs: []netip.Addr{server.Addr}}, &frameMaker{}); err != nil {
		return err
	}
	table, _ := nat.Compile(nil, state(gatewaySpec{Pods: []podSpec{server}, Service: serviceAddr}), nat.Config{
		NodeName: "podgate", NodeAddrs: []netip.Addr{gatewayAddr}, ServiceCIDRs: serviceCIDRs,
	})
	plane.Publish(stack.Input{Services: table})
	debug.FreeOSMemory()
	before, err := resident(os.Getpid())
	if err != nil {
		return err
	}
	for client.made < n {
		plane.Poll()
	}
	debug.FreeOSMemory()
	after, err := resident(os.Getpid())
	if err != nil {
		return err
	}
	f := flowFigures{Held: plane.FlowCount(), Bytes: (after - before) * 1024 / float64(n)}
	f.Hit, f.Allocs = client.hits(plane)
	return json.NewEncoder(os.Stdout).Encode(f)
}

// frameMaker is a device whose frames are each of another flow until there are n,
// and then those of again.
type frameMaker struct {
	n, made int
	mac     packet.MAC
	addrs   []netip.Addr // flowsEach of each
	again   []uint32     // flows
	at      int          // in again
}

const (
	flowsEach = 50_000 // flows of one source address
	udpPort   = 5004   // of the Service: see metrics
	flowFrame = packet.VnetHdrLen + 60
)

func newFrameMaker(n int) *frameMaker {
	m := &frameMaker{n: n, mac: podSpec{Addr: netip.MustParseAddr("10.244.1.0")}.mac()}
	for i := range (n + flowsEach - 1) / flowsEach {
		m.addrs = append(m.addrs, netip.AddrFrom4([4]byte{10, 244, 1, byte(i)}))
	}
	return m
}

// write makes a datagram of flow i, to the Service.
func (m *frameMaker) write(b []byte, i int) {
	clear(b)
	eth := b[packet.VnetHdrLen:]
	copy(eth, gatewayMAC[:])
	copy(eth[6:], m.mac[:])
	ip := eth[14:]
	eth[12], ip[0], ip[3], ip[8], ip[9] = 8, 0x45, 46, 64, byte(packet.UDP)
	src, dst := m.addrs[i/flowsEach].As4(), serviceAddr.As4()
	copy(ip[12:], src[:])
	copy(ip[16:], dst[:])
	binary.BigEndian.PutUint16(ip[10:], packet.Checksum(ip[:20]))
	udp := ip[20:]
	binary.BigEndian.PutUint16(udp, uint16(1024+i%flowsEach))
	binary.BigEndian.PutUint16(udp[2:], udpPort)
	udp[5], udp[6] = 26, 1 // its length, and a checksum that nobody looks at
}

// ReadBatch implements link.Device.
func (m *frameMaker) ReadBatch(bufs []packet.Frame) (int, error) {
	i := 0
	for ; i < len(bufs) && m.made < m.n; i++ {
		bufs[i] = bufs[i][:flowFrame]
		m.write(bufs[i], m.made)
		m.made++
	}
	for ; i < len(bufs) && m.at < len(m.again); i++ {
		bufs[i] = bufs[i][:flowFrame]
		m.write(bufs[i], int(m.again[m.at]))
		m.at++
	}
	return i, nil
}

// hits sends frames of flows chosen at random and says what one takes, in ns,
// beyond its reading. Frames are made where they are read, as a kernel copies them
// there: prepared ones would take the caches from the flows.
func (m *frameMaker) hits(plane *stack.Plane) (ns, allocs float64) {
	const batch, frames = 64, 1 << 18
	m.again = make([]uint32, frames)
	for i := range m.again {
		m.again[i] = uint32(rand.IntN(m.n))
	}
	bufs := make([]packet.Frame, batch)
	for i := range bufs {
		bufs[i] = make(packet.Frame, link.MaxFrame)
	}
	pass := func(step func()) float64 {
		start := cpuTime()
		for m.at = 0; m.at < len(m.again); {
			step()
		}
		return float64(cpuTime()-start) / frames
	}
	var reading, all []float64
	var before, after runtime.MemStats
	pass(func() { plane.Poll() })
	for range 9 {
		reading = append(reading, pass(func() { m.ReadBatch(bufs) }))
		runtime.ReadMemStats(&before)
		all = append(all, pass(func() { plane.Poll() }))
		runtime.ReadMemStats(&after)
		allocs += float64(after.Mallocs-before.Mallocs) / frames / 9
	}
	return median(all) - median(reading), math.Floor(allocs*100) / 100
}

// cpuTime is what this process has had of the CPUs.
func cpuTime() time.Duration {
	var t unix.Timespec
	unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &t) // fails with a bad address alone
	return time.Duration(t.Nano())
}

// WriteBatch implements link.Device.
func (m *frameMaker) WriteBatch(frames []packet.Frame) (int, error) { return len(frames), nil }

// FD implements link.Device: it is polled by hand.
func (m *frameMaker) FD() int { return -1 }

// Close implements link.Device.
func (m *frameMaker) Close() error { return nil }
