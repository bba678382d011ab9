package local

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// Ping sends ICMP echo requests from the node address, one a second, until one
// is answered, and returns its round-trip time, or ctx's error.
func (s *Stack) Ping(ctx context.Context, to netip.Addr) (time.Duration, error) {
	proto, request := icmp.ProtocolNumber4, byte(header.ICMPv4Echo)
	if !to.Unmap().Is4() {
		proto, request = icmp.ProtocolNumber6, byte(header.ICMPv6EchoRequest)
	}
	var wq waiter.Queue
	ep, err := s.net.NewEndpoint(proto, netProto(to), &wq)
	if err != nil {
		return 0, fmt.Errorf("ping %s: %s", to, err)
	}
	defer ep.Close()
	entry, readable := waiter.NewChannelEntry(waiter.ReadableEvents)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)

	peer := netip.AddrPortFrom(to, 0)
	if err := ep.Bind(fullAddress(s.sourceFor(netip.AddrPort{}, peer))); err != nil {
		return 0, fmt.Errorf("ping %s: %s", to, err)
	}
	if err := ep.Connect(fullAddress(peer)); err != nil {
		return 0, fmt.Errorf("ping %s: %s", to, err)
	}
	again := time.NewTicker(time.Second)
	defer again.Stop()
	var sent []time.Time // by sequence number
	for {
		// Type, code, checksum and identifier (netstack's to fill in), sequence.
		msg := make([]byte, header.ICMPv4MinimumSize+48)
		msg[0] = request
		binary.BigEndian.PutUint16(msg[6:], uint16(len(sent)))
		sent = append(sent, time.Now())
		if _, err := ep.Write(bytes.NewReader(msg), tcpip.WriteOptions{}); err != nil {
			return 0, fmt.Errorf("ping %s: %s", to, err)
		}
	wait:
		for {
			select {
			case <-ctx.Done():
				return 0, fmt.Errorf("ping %s: no answer: %w", to, ctx.Err())
			case <-again.C:
				break wait
			case <-readable:
			}
			for {
				var reply bytes.Buffer
				if _, err := ep.Read(&reply, tcpip.ReadOptions{}); err != nil {
					break
				}
				if b := reply.Bytes(); len(b) >= header.ICMPv4MinimumSize {
					if seq := int(binary.BigEndian.Uint16(b[6:])); seq < len(sent) {
						return time.Since(sent[seq]), nil
					}
				}
			}
		}
	}
}
