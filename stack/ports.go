package stack

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"podgate/stack/flow"
	"podgate/stack/link"
	"podgate/stack/packet"
)

// install makes a snapshot the current one, between two batches.
func (w *worker) install(s *Snapshot) {
	w.current.Store(s)
	w.snap = s
	w.cookies = nil
}

// attach gives a device a port.
func (w *worker) attach(spec PortSpec, dev link.Device) (flow.PortID, error) {
	if spec.MTU == 0 {
		spec.MTU = w.cfg.MTU
	}
	segment, err := w.snap.segmentNamed(spec.Network)
	if err != nil {
		return 0, err
	}
	at := &attachment{PortSpec: spec, segment: segment}
	if !spec.Local {
		for _, a := range spec.Addrs {
			at.addrs = append(at.addrs, packet.AddrFrom(a))
		}
	}
	if err := w.admit(at); err != nil {
		return 0, err
	}
	id, err := w.freeID()
	if err != nil {
		return 0, err
	}
	at.id = id
	if w.poller != nil {
		if err := w.poller.add(dev.FD(), id); err != nil {
			return 0, err
		}
	}
	for len(w.ports) <= int(id) {
		w.ports = append(w.ports, nil)
	}
	w.ports[id] = &port{attachment: at, dev: dev}
	if dev.FD() < 0 {
		w.byHand = append(w.byHand, w.ports[id])
	}
	w.install(w.snap.withPort(at))
	return id, nil
}

// admit says what is wrong with a port, if anything.
func (w *worker) admit(at *attachment) error {
	if at.Local {
		if w.snap.local != nil {
			return errors.New("there is a local port already")
		}
		return nil
	}
	if at.MAC.Group() || at.MAC == (packet.MAC{}) || at.MAC == w.cfg.GatewayMAC {
		return fmt.Errorf("MAC %s cannot be a pod's", at.MAC)
	}
	for _, other := range w.snap.ports {
		if other != nil && !other.Local && other.segment == at.segment && other.MAC == at.MAC {
			return fmt.Errorf("MAC %s belongs to %s", at.MAC, other.label())
		}
	}
	for _, a := range at.addrs {
		if other := w.snap.owner[a]; other != nil {
			return fmt.Errorf("address %s belongs to %s", a, other.label())
		}
		if w.snap.isOwn(a) {
			return fmt.Errorf("address %s is the gateway's own", a)
		}
	}
	return nil
}

// freeID goes round, so that an ID is not used again soon.
func (w *worker) freeID() (flow.PortID, error) {
	for range 1<<16 - 1 {
		w.nextID++
		id := w.nextID
		if id != 0 && (int(id) >= len(w.ports) || w.ports[id] == nil) {
			return id, nil
		}
	}
	return 0, errors.New("all 65535 ports are taken")
}

// maxDrain is how many batches a port that is being detached is read: more than
// the queue of a TAP holds, and an end for one that goes on sending.
const maxDrain = 16

// drain forwards what waits in a port's device.
func (w *worker) drain(id flow.PortID) {
	if int(id) >= len(w.ports) || w.ports[id] == nil {
		return
	}
	for range maxDrain {
		if n, err := w.take(w.ports[id]); n == 0 || err != nil {
			return
		}
	}
}

// detach takes a port and everything that refers to it away.
func (w *worker) detach(id flow.PortID) error {
	if int(id) >= len(w.ports) || w.ports[id] == nil {
		return fmt.Errorf("detach port %d: no such port", id)
	}
	gone := w.ports[id]
	w.ports[id] = nil
	w.byHand = slices.DeleteFunc(slices.Clone(w.byHand), func(pt *port) bool { return pt == gone })
	w.faulty = slices.DeleteFunc(slices.Clone(w.faulty), func(pt *port) bool { return pt == gone })
	w.forgetPort(id)
	w.mappings.forgetPort(gone.attachment)
	w.install(w.snap.withoutPort(gone.attachment))
	if w.poller != nil {
		w.poller.remove(gone.dev.FD())
	}
	return gone.dev.Close()
}

func (pt *port) record() PortRecord {
	r := PortRecord{
		ID:       uint16(pt.id),
		Name:     pt.Name,
		MAC:      pt.MAC.String(),
		MTU:      pt.MTU,
		Local:    pt.Local,
		Network:  pt.Network,
		RxFrames: pt.rxFrames.load(),
		RxBytes:  pt.rxBytes.load(),
		TxFrames: pt.txFrames.load(),
		TxBytes:  pt.txBytes.load(),
		Dropped:  pt.dropped.load(),
		TxLost:   pt.lost.load(),
	}
	if pt.Pod.Name != "" {
		r.Pod = pt.Pod.String()
	}
	if pt.faulty != nil {
		r.Faults = pt.faulty.Faults().String()
	}
	for _, a := range pt.Addrs {
		r.Addrs = append(r.Addrs, a.String())
	}
	return r
}

// record describes a flow.
func (w *worker) record(f *flow.Flow) FlowRecord {
	c := w.cookie(f)
	r := FlowRecord{
		Started:      time.Unix(0, f.Created),
		Proto:        protoName(f.Orig.Proto),
		SrcPod:       w.snap.port(f.Orig.Port).label(),
		Service:      serviceName(c.service),
		Backend:      backendName(c.backend, 0),
		State:        f.State().String(),
		Verdict:      Forward.String(),
		Age:          time.Duration(w.now - f.Created),
		Idle:         time.Duration(w.now - f.LastSeen),
		Packets:      f.Orig.Packets,
		Bytes:        f.Orig.Bytes,
		ReplyPackets: f.Reply.Packets,
		ReplyBytes:   f.Reply.Bytes,
	}
	r.Src, r.Dst = ends(f.Orig.Tuple)
	r.DstPod = w.snap.podAt(f.Orig.Rewrite.Tuple().Dst)
	if src := w.snap.podAt(f.Orig.Src); src != "" {
		r.SrcPod = src
	}
	if c.cut != nil {
		r.Verdict, r.State = Drop.String(), c.cut.reason.String()
	}
	return r
}
