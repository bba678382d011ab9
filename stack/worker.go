package stack

import (
	"sync/atomic"

	"podgate/stack/flow"
	"podgate/stack/link"
	"podgate/stack/packet"
)

// Theory of operation
//
// A worker owns everything that changes: the flow table, the ports' queues, the
// affinity table, the counters. It is a step function of (frames, now): receive
// takes one batch from one port, and for each frame
//
//	classify -> flow? -> decide, commit -> replay -> the destination's queue
//
// and flush writes every queue that was touched. Nothing here blocks, locks or
// looks at a clock; the loop in run.go, or a test by hand, says when. Frames
// live in the worker's buffers from ReadBatch until flush, and so do the frames
// that the worker itself makes.
//
// Exceptions leave the straight way early: ARP and neighbour discovery
// (arp_nd.go), groups (multicast.go), fragments (fragments.go) and ICMP
// (icmp.go). Each ends in a Reason, or comes back with what it found.

// budget is how many frames one batch takes from a port.
const budget = 64

type worker struct {
	cfg      *Config
	current  *atomic.Pointer[Snapshot]
	snap     *Snapshot // of this batch
	now      int64     // of this batch
	ports    []*port   // by PortID; nil: none
	byHand   []*port   // those that epoll cannot wait for
	flows    *flow.Table
	cookies  map[cookie]*cookie // of flows, each by what it says: see remember
	affinity *affinity
	loads    loads
	mappings *mappings
	frags    *fragments
	poller   *poller // nil while driven by hand

	buffers   []byte
	frames    [budget]packet.Frame // of buffers
	batch     [budget]arrival      // of frames
	crowd     int                  // frames in batch
	batches   uint64               // until now
	acks      acks
	touched   []*port
	made      arena
	answering *answering    // nil: nobody does
	inner     packet.Packet // what an ICMP error quotes
	nextID    flow.PortID
	ticked    int64
	shared    int64 // when goroutines behind the local port were last given work
	stirred   int64 // when there was something to do
	gap       int64 // between that and the time before

	reasons  [numReasons]counter
	denials  map[denial]*denials
	verdicts *verdictLog // nil: nobody reads
	drops    dropRing

	captures []*capture
	faulty   []*port // with a bad link

	exhausted map[packet.Tuple]bool // where no source port was left since the last tick

	strangers map[packet.Tuple]int64 // conversations that clients disowned, and when: see disowned
}

// arrival is a frame as it came.
type arrival struct {
	pkt   packet.Packet
	fault packet.Fault
	hash  uint64   // of its flow.Key
	at    flow.Ref // where that probably is
}

// port is an attachment at work.
type port struct {
	*attachment
	dev    link.Device
	faulty *link.Faulty   // dev, if the link is bad
	out    []packet.Frame // to be written at the next flush

	rxFrames, rxBytes counter
	txFrames, txBytes counter
	dropped, lost     counter
	floods, errors    bucket
}

func newWorker(cfg *Config, current *atomic.Pointer[Snapshot]) *worker {
	w := &worker{
		cfg:       cfg,
		current:   current,
		snap:      current.Load(),
		ports:     make([]*port, 1),
		affinity:  newAffinity(),
		loads:     loads{},
		mappings:  newMappings(),
		exhausted: map[packet.Tuple]bool{},
		strangers: map[packet.Tuple]int64{},
		frags:     newFragments(),
		denials:   map[denial]*denials{},
		answering: newAnswering(cfg),
	}
	w.flows = flow.New(flow.Config{MaxFlows: cfg.MaxFlows, PortShare: cfg.PortShare, Timeouts: cfg.Timeouts,
		Finished: w.over, Removed: func(f *flow.Flow, _ flow.Cause) { w.over(f); w.release(f) }})
	w.buffers = make([]byte, budget*link.MaxFrame)
	for i := range w.frames {
		w.frames[i] = w.buffer(i)
	}
	w.made.grow(budget * ownFrame)
	return w
}

// over ends the count of a conversation in loads.
func (w *worker) over(f *flow.Flow) {
	if c, ok := w.flows.Deps(f).(*cookie); ok && c.holds != nil {
		w.loads.release(c.holds)
		done := *c
		done.holds = nil
		w.remember(f, done)
	}
}

// buffer is the memory of the i-th frame of a batch.
func (w *worker) buffer(i int) packet.Frame {
	at := i * link.MaxFrame
	return w.buffers[at : at+link.MaxFrame : at+link.MaxFrame]
}

// poll takes one batch from every port and returns how many frames came.
func (w *worker) poll(now int64) int {
	w.begin(now)
	n := w.advance()
	for _, in := range w.ports {
		if in != nil {
			n += w.receive(in)
		}
	}
	w.tick()
	return n
}

// begin fixes the snapshot and the time for what follows.
func (w *worker) begin(now int64) {
	w.now = now
	w.snap = w.current.Load()
}

// receive takes one batch from in, which is detached if its device is dead.
func (w *worker) receive(in *port) int {
	n, err := w.take(in)
	if err != nil {
		w.cfg.Log.Warn("device is gone", "port", in.id, "pod", in.label(), "err", err)
		w.detach(in.id)
	}
	return n
}

// take brings one batch from in to its destinations.
func (w *worker) take(in *port) (int, error) {
	n, err := in.dev.ReadBatch(w.frames[:])
	if n > 0 {
		if len(w.captures) != 0 {
			w.capture(in, w.frames[:n], true)
		}
		w.batches++
		w.decode(in, n)
		w.crowd = n
		for i := range n {
			w.frame(in, &w.batch[i])
		}
		w.flush()
		for i := range n {
			w.frames[i] = w.buffer(i)
		}
	}
	return n, err
}

// decode reads a whole batch before any of it is handled, so that the memory of
// its flows is on the way together.
func (w *worker) decode(in *port, n int) {
	var hashes [budget]uint64
	var refs [budget]flow.Ref
	bytes := 0
	for i, f := range w.frames[:n] {
		a := &w.batch[i]
		a.fault = packet.Decode(&a.pkt, f)
		a.hash = w.flows.Hash(&flow.Key{Tuple: a.pkt.Tuple, Port: in.id})
		hashes[i] = a.hash
		bytes += len(f) - packet.VnetHdrLen
	}
	if n > 1 {
		w.flows.Warm(hashes[:n], refs[:n])
	}
	for i, ref := range refs[:n] {
		w.batch[i].at = ref
	}
	in.rxFrames.add(uint64(n))
	in.rxBytes.add(uint64(max(bytes, 0)))
}

// frame classifies one frame, which is forwarded, answered or counted.
func (w *worker) frame(in *port, a *arrival) {
	p := &a.pkt
	if a.fault != packet.OK {
		w.drop(in, nil, fromFault(a.fault))
		return
	}
	if !in.Local && p.SrcMAC() != in.MAC {
		w.drop(in, p, SpoofedMAC)
		return
	}
	switch {
	case p.EtherType == packet.EtherARP:
		w.arp(in, p)
		return
	case p.DstMAC().Group():
		w.group(in, p)
		return
	case p.Fragment():
		w.fragment(in, p)
		return
	case p.Proto == packet.ICMP || p.Proto == packet.ICMPv6:
		if w.icmp(in, p) {
			return
		}
	case p.DstPort == dhcpServer && p.Proto == packet.UDP && w.snap.isOwn(p.Dst) && !in.Local:
		w.dhcp(in, p)
		return
	}
	w.unicast(in, p, a.hash, a.at)
}

// unicast finds the packet's flow, or makes it, and replays it.
func (w *worker) unicast(in *port, p *packet.Packet, hash uint64, at flow.Ref) {
	f, leg := w.flows.LookupAt(at, &flow.Key{Tuple: p.Tuple, Port: in.id}, hash, w.now)
	fresh := f == nil
	if fresh || f.Gen != w.snap.Generation {
		if f, leg = w.attend(in, p, f, leg); f == nil {
			return
		}
	}
	if p.TCPFlags&packet.RST != 0 && leg.Reply && f.State() == flow.PickedUp && w.disowned(in, p, f) {
		return
	}
	if !w.flows.Hit(f, leg, p.TCPFlags, p.Len(), w.now) {
		w.flows.Remove(f) // over, and the packet opens a new conversation
		if f, leg = w.open(in, p, nil); f == nil {
			return
		}
		w.flows.Hit(f, leg, p.TCPFlags, p.Len(), w.now)
	}
	if w.answering != nil && w.answered(in, p, f, leg) {
		return
	}
	switch gone := w.replay(in, p, leg); {
	case gone && p.Proto == packet.TCP && !w.cfg.AllAcks:
		w.thin(w.ports[leg.Out], p, leg, hash)
	case !gone && fresh:
		w.flows.Remove(f) // nobody has seen it: there is nothing to answer
	}
}

// send queues a frame for the next flush.
func (w *worker) send(out *port, f packet.Frame) {
	if len(out.out) == 0 {
		w.touched = append(w.touched, out)
	}
	out.out = append(out.out, f)
}

// crowded is a device behind which goroutines of this process work.
type crowded interface {
	// Busy says whether the last WriteBatch gave them something to do.
	Busy() bool
}

// flush is the one place where frames are written and buffers released.
func (w *worker) flush() {
	for _, out := range w.touched {
		n, _ := out.dev.WriteBatch(out.out) // a dead device says so when it is read
		if b, ok := out.dev.(crowded); ok && b.Busy() {
			w.shared = w.now
		}
		if len(w.captures) != 0 {
			w.capture(out, out.out[:n], false)
		}
		bytes := 0
		for _, f := range out.out[:n] {
			bytes += len(f)
		}
		out.txFrames.add(uint64(n))
		out.txBytes.add(uint64(bytes - n*packet.VnetHdrLen))
		if lost := len(out.out) - n; lost > 0 {
			out.lost.add(uint64(lost))
			w.reasons[DeviceFull].add(uint64(lost))
		}
		out.out = out.out[:0]
	}
	w.touched = w.touched[:0]
	w.made.reset()
	if w.answering != nil {
		w.answering.depart()
	}
}

// tickEvery is how often, in nanoseconds, what is idle gets looked at.
const tickEvery = 100e6

// tick does the slow work: idle flows, old fragments, forgotten clients.
func (w *worker) tick() {
	if w.now-w.ticked < tickEvery {
		return
	}
	w.ticked = w.now
	w.sweep()
	w.frags.expire(w.now, func(id flow.PortID, f packet.Frame) {
		var p packet.Packet
		if in := w.ports[id]; in != nil && packet.Decode(&p, f) == packet.OK {
			w.drop(in, &p, FragmentOrphan)
		}
	})
	w.affinity.expire(w.now)
	w.mappings.expire(w.now)
	clear(w.exhausted)
	w.forgetStrangers()
}

// ownFrame is the room for a frame that the worker makes itself.
const ownFrame = 2048

// arena holds the frames that the worker makes during a batch. It has room for
// an answer to each frame that was read; pieces of frames may need more, which
// is then kept.
type arena struct {
	buf  []byte
	used int
}

// next is memory for an answer.
func (a *arena) next() []byte { return a.take(ownFrame) }

// take is memory for n bytes. What was taken before stays where it is.
func (a *arena) take(n int) []byte {
	if len(a.buf)-a.used < n {
		a.grow(max(n, 2*len(a.buf)))
	}
	b := a.buf[a.used : a.used+n : a.used+n]
	a.used += n
	return b
}

func (a *arena) grow(n int) { a.buf, a.used = make([]byte, n), 0 }

// reset makes the memory free again; more than maxArena is not kept.
func (a *arena) reset() {
	a.used = 0
	if len(a.buf) > maxArena {
		a.grow(budget * ownFrame)
	}
}

const maxArena = 1 << 20

// bucket is a token bucket of nanoseconds.
type bucket struct {
	full int64 // when the bucket is full again
}

// take says whether one more event at a rate per second is within a burst of a
// second's worth.
func (b *bucket) take(now int64, rate int) bool {
	cost := int64(1e9) / int64(rate)
	if b.full < now {
		b.full = now
	}
	if b.full+cost > now+1e9 {
		return false
	}
	b.full += cost
	return true
}
