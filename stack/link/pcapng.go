package link

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
)

// The blocks and options of pcapng (draft-ietf-opsawg-pcapng) that are written,
// and read back; all other blocks are skipped by the reader.
const (
	blockSection   = 0x0a0d0d0a
	blockInterface = 1
	blockPacket    = 6

	byteOrderMagic = 0x1a2b3c4d
	linkEthernet   = 1

	optEnd, optName, optDescription = 0, 2, 3
	optResolution                   = 9
	optFlags                        = 2 // of a packet
	optAppl                         = 4 // of a section

	// maxBlock is the longest block that the reader takes.
	maxBlock = 1 << 20
)

// PcapWriter writes Ethernet frames as pcapng. Every block is one Write; the
// error of one is that of all that follow. It is used by one goroutine.
type PcapWriter struct {
	w          io.Writer
	buf        bytes.Buffer
	interfaces uint32
	err        error
}

// NewPcapWriter starts a section; application is who writes it.
func NewPcapWriter(w io.Writer, application string) (*PcapWriter, error) {
	pw := &PcapWriter{w: w}
	pw.begin(blockSection)
	pw.u32(byteOrderMagic)
	pw.u16(1)
	pw.u16(0)
	pw.u32(0xffffffff) // length of the section: unknown
	pw.u32(0xffffffff)
	pw.option(optAppl, []byte(application))
	pw.option(optEnd, nil)
	return pw, pw.end()
}

// Interface describes one more interface and returns its number. Times are in
// nanoseconds.
func (pw *PcapWriter) Interface(name, description string) (uint32, error) {
	pw.begin(blockInterface)
	pw.u16(linkEthernet)
	pw.u16(0)
	pw.u32(0) // no limit
	pw.option(optName, []byte(name))
	pw.option(optDescription, []byte(description))
	pw.option(optResolution, []byte{9})
	pw.option(optEnd, nil)
	pw.interfaces++
	return pw.interfaces - 1, pw.end()
}

// Packet writes an Ethernet frame that passed an interface at a time, in ns of
// the Unix epoch; inbound is from the interface's peer to the gateway.
func (pw *PcapWriter) Packet(iface uint32, at int64, inbound bool, eth []byte) error {
	pw.begin(blockPacket)
	pw.u32(iface)
	pw.u32(uint32(uint64(at) >> 32))
	pw.u32(uint32(at))
	pw.u32(uint32(len(eth)))
	pw.u32(uint32(len(eth)))
	pw.bytes(eth)
	direction := uint32(2)
	if inbound {
		direction = 1
	}
	pw.option(optFlags, binary.LittleEndian.AppendUint32(nil, direction))
	pw.option(optEnd, nil)
	return pw.end()
}

func (pw *PcapWriter) begin(kind uint32) {
	pw.buf.Reset()
	pw.u32(kind)
	pw.u32(0) // length, known at the end
}

func (pw *PcapWriter) end() error {
	n := uint32(pw.buf.Len() + 4)
	pw.u32(n)
	binary.LittleEndian.PutUint32(pw.buf.Bytes()[4:], n)
	if pw.err == nil {
		_, pw.err = pw.w.Write(pw.buf.Bytes())
	}
	return pw.err
}

func (pw *PcapWriter) u16(v uint16) { pw.buf.Write(binary.LittleEndian.AppendUint16(nil, v)) }
func (pw *PcapWriter) u32(v uint32) { pw.buf.Write(binary.LittleEndian.AppendUint32(nil, v)) }

func (pw *PcapWriter) bytes(b []byte) {
	pw.buf.Write(b)
	pw.buf.Write(make([]byte, -len(b)&3))
}

func (pw *PcapWriter) option(code uint16, value []byte) {
	pw.u16(code)
	pw.u16(uint16(len(value)))
	pw.bytes(value)
}

// PcapRecord is one frame of a capture.
type PcapRecord struct {
	Interface string // its name, "" if it has none
	At        int64  // ns of the Unix epoch
	Inbound   bool   // from the interface's peer, as far as that is known
	Frame     []byte // Ethernet, the reader's until the next call
}

// PcapReader reads captures of Ethernet, of either byte order: pcapng, and the
// older pcap of tcpdump, which has one interface without a name and knows no
// directions.
type PcapReader struct {
	r          io.Reader
	order      binary.ByteOrder
	classic    bool // pcap; nanoseconds is its unit
	interfaces []pcapInterface
	block      []byte
}

type pcapInterface struct {
	name     string
	ethernet bool
	perSec   uint64 // units of time a second
}

// NewPcapReader reads from r, which should be buffered.
func NewPcapReader(r io.Reader) *PcapReader { return &PcapReader{r: r} }

var errPcap = errors.New("no capture (pcapng or pcap)")

// Next is the next frame, or io.EOF after the last. A file that ends within a
// block is io.ErrUnexpectedEOF.
func (pr *PcapReader) Next() (PcapRecord, error) {
	for {
		if pr.classic {
			rec, err := pr.record()
			if err != nil || pr.interfaces[0].ethernet {
				return rec, err
			}
			continue
		}
		kind, body, err := pr.next()
		if err != nil {
			return PcapRecord{}, err
		}
		switch kind {
		case blockInterface:
			if err := pr.addInterface(body); err != nil {
				return PcapRecord{}, err
			}
		case blockPacket:
			rec, ok, err := pr.packet(body)
			if ok || err != nil {
				return rec, err
			}
		}
	}
}

// next reads one block, without its frame of type and lengths.
func (pr *PcapReader) next() (kind uint32, body []byte, err error) {
	var head [12]byte
	if _, err := io.ReadFull(pr.r, head[:8]); err != nil {
		return 0, nil, err
	}
	have := 8
	if pr.order == nil && pr.isClassic(head[:]) {
		return 0, nil, pr.startClassic()
	}
	if binary.LittleEndian.Uint32(head[:]) == blockSection { // a palindrome
		if _, err := io.ReadFull(pr.r, head[8:]); err != nil {
			return 0, nil, noEOF(err)
		}
		have = 12
		switch uint32(byteOrderMagic) {
		case binary.LittleEndian.Uint32(head[8:]):
			pr.order = binary.LittleEndian
		case binary.BigEndian.Uint32(head[8:]):
			pr.order = binary.BigEndian
		default:
			return 0, nil, errPcap
		}
		pr.interfaces = nil
	}
	if pr.order == nil {
		return 0, nil, errPcap
	}
	n := pr.order.Uint32(head[4:])
	if n < 12 || n&3 != 0 || n > maxBlock || int(n) < have+4 {
		return 0, nil, fmt.Errorf("%w: a block of %d bytes", errPcap, n)
	}
	if cap(pr.block) < int(n) {
		pr.block = make([]byte, n)
	}
	b := pr.block[:int(n)-have]
	if _, err := io.ReadFull(pr.r, b); err != nil {
		return 0, nil, noEOF(err)
	}
	return pr.order.Uint32(head[:]), b[:len(b)-4], nil
}

// ns is a time in nanoseconds.
func (i *pcapInterface) ns(units uint64) int64 {
	hi, lo := bits.Mul64(units%i.perSec, 1e9)
	part, _ := bits.Div64(hi, lo, i.perSec)
	return int64(units/i.perSec*1e9 + part)
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (pr *PcapReader) addInterface(b []byte) error {
	if len(b) < 8 {
		return fmt.Errorf("%w: a short interface block", errPcap)
	}
	i := pcapInterface{ethernet: pr.order.Uint16(b) == linkEthernet, perSec: 1e6}
	for o := b[8:]; len(o) >= 4; {
		code, n := pr.order.Uint16(o), int(pr.order.Uint16(o[2:]))
		padded := (n + 3) &^ 3
		if code == optEnd || 4+padded > len(o) {
			break
		}
		switch value := o[4 : 4+n]; {
		case code == optName:
			i.name = string(value)
		case code == optResolution && n == 1 && value[0]&0x80 != 0 && value[0]&0x7f < 40:
			i.perSec = 1 << (value[0] & 0x7f)
		case code == optResolution && n == 1 && value[0] <= 9:
			i.perSec = 1
			for range value[0] {
				i.perSec *= 10
			}
		}
		o = o[4+padded:]
	}
	pr.interfaces = append(pr.interfaces, i)
	return nil
}

// packet decodes a packet block; ok is false for one that is no Ethernet.
func (pr *PcapReader) packet(b []byte) (rec PcapRecord, ok bool, err error) {
	if len(b) < 20 {
		return rec, false, fmt.Errorf("%w: a short packet block", errPcap)
	}
	i, n := pr.order.Uint32(b), pr.order.Uint32(b[12:])
	if int64(i) >= int64(len(pr.interfaces)) || int64(n) > int64(len(b)-20) {
		return rec, false, fmt.Errorf("%w: a packet block that contradicts itself", errPcap)
	}
	iface := pr.interfaces[i]
	units := uint64(pr.order.Uint32(b[4:]))<<32 | uint64(pr.order.Uint32(b[8:]))
	rec = PcapRecord{Interface: iface.name, Frame: b[20 : 20+n]}
	rec.At = iface.ns(units)
	if o := b[min(len(b), 20+int(n+3)&^3):]; len(o) >= 8 && pr.order.Uint16(o) == optFlags {
		rec.Inbound = pr.order.Uint32(o[4:])&3 == 1
	}
	return rec, iface.ethernet, nil
}
