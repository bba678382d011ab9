package flow

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"podgate/stack/packet"
)

var flagNames = map[byte]uint8{'S': packet.SYN, 'A': packet.ACK, 'F': packet.FIN, 'R': packet.RST}

// TestTCPStates replays conversations: ">" is a packet on the Orig leg, "<" on
// the Reply leg, then its flags, then the state that must follow. "renew" is a
// packet that Hit refuses.
func TestTCPStates(t *testing.T) {
	for name, script := range map[string]string{
		"life": `>S syn-sent <SA syn-recv >A established >A established <A established
			>FA fin-wait <A close-wait <A close-wait <FA last-ack >A time-wait >S renew`,
		"server closes first":         `>S syn-sent <SA syn-recv >A established <FA fin-wait >A close-wait >FA last-ack <A time-wait`,
		"FIN with the ACK of the FIN": `>S syn-sent <SA syn-recv >A established >FA fin-wait <FA last-ack >A time-wait`,
		"FINs cross":                  `>S syn-sent <SA syn-recv >A established >FA fin-wait <FA last-ack <A last-ack >A time-wait`,
		"FIN again is no second FIN":  `>S syn-sent <SA syn-recv >A established >FA fin-wait >FA fin-wait <A close-wait >FA close-wait <A close-wait`,
		"last ACK is the other's":     `>S syn-sent <SA syn-recv >A established >FA fin-wait <FA last-ack <FA last-ack >A time-wait`,
		"refused":                     `>S syn-sent <RA closed >S renew`,
		"reset":                       `>S syn-sent <SA syn-recv >A established <R closed >A closed >S renew`,
		"reset in time wait":          `>S syn-sent <SA syn-recv >FA fin-wait <FA last-ack >A time-wait >R closed`,
		"SYN again":                   `>S syn-sent >S syn-sent <SA syn-recv >S syn-recv <SA syn-recv >A established`,
		"SYN into a live connection":  `>S syn-sent <SA syn-recv >A established >S established <A established >R closed`,
		"challenge ACK":               `>S syn-sent <A syn-sent >R closed`,
		"ACK that nobody asked for":   `>S syn-sent >A syn-sent >FA syn-sent`,
		"both open":                   `>S syn-sent <S syn-recv >SA syn-recv <SA syn-recv >A established`,
		"reply SYN in time wait":      `>S syn-sent <SA syn-recv >A established >FA fin-wait <FA last-ack >A time-wait <S renew`,
		"seen from the middle":        `>A picked-up >A picked-up <A established <FA fin-wait`,
		"seen from its SYN ACK":       `>SA picked-up <A established`,
		"seen from its FIN":           `>FA picked-up >FA picked-up <A close-wait <FA last-ack >A time-wait`,
		"seen from its last FIN":      `>FA picked-up <FA last-ack >A time-wait`,
		"seen from its RST":           `>R closed`,
		"syn-recv then FIN":           `>S syn-sent <SA syn-recv >FA fin-wait`,
	} {
		t.Run(name, func(t *testing.T) {
			table := New(Config{})
			f := mustInsert(t, table, packet.TCP, 1, 0)
			words := strings.Fields(script)
			for i := 0; i < len(words); i += 2 {
				l := &f.Orig
				if words[i][0] == '<' {
					l = &f.Reply
				}
				flags := uint8(0)
				for _, c := range []byte(words[i][1:]) {
					flags |= flagNames[c]
				}
				got := "renew"
				if table.Hit(f, l, flags, 40, 0) {
					got = f.State().String()
				}
				if got != words[i+1] {
					t.Fatalf("packet %d (%s): got %s, want %s", i/2+1, words[i], got, words[i+1])
				}
			}
		})
	}
}

func TestOtherProtocolsAreRepliedOrNot(t *testing.T) {
	for _, proto := range []packet.Proto{packet.UDP, packet.UDPLite, packet.SCTP, packet.ICMP, packet.ICMPv6, 47} {
		table := New(Config{})
		f := mustInsert(t, table, proto, 1, 0)
		for i, c := range []struct {
			leg  *Leg
			want State
		}{{&f.Orig, Unreplied}, {&f.Orig, Unreplied}, {&f.Reply, Replied}, {&f.Orig, Replied}} {
			table.Hit(f, c.leg, 0, 100, 0)
			if f.State() != c.want {
				t.Errorf("%v, packet %d: got %v, want %v", proto, i+1, f.State(), c.want)
			}
		}
	}
}

// A flow lives as long after its last packet as its state's timeout says.
func TestTimeouts(t *testing.T) {
	const S, A, F, R = packet.SYN, packet.ACK, packet.FIN, packet.RST
	handshake := []int{S, -(S | A), A}
	for _, c := range []struct {
		proto packet.Proto
		hits  []int // flags, negative on the Reply leg
		want  time.Duration
	}{
		{packet.UDP, []int{0}, 30 * time.Second},
		{packet.UDP, []int{0, -64}, 2 * time.Minute},
		{packet.UDPLite, []int{0, -64}, 2 * time.Minute},
		{packet.ICMP, []int{0}, 30 * time.Second},
		{packet.ICMPv6, []int{0, -64}, 30 * time.Second},
		{packet.SCTP, []int{0, -64}, 10 * time.Minute},
		{47, []int{0}, 10 * time.Minute},
		{packet.TCP, nil, 2 * time.Minute},
		{packet.TCP, []int{S}, 2 * time.Minute},
		{packet.TCP, []int{S, -(S | A)}, time.Minute},
		{packet.TCP, handshake, 24 * time.Hour},
		{packet.TCP, append(handshake[:3:3], F|A), 2 * time.Minute},
		{packet.TCP, append(handshake[:3:3], F|A, -A), time.Hour},
		{packet.TCP, append(handshake[:3:3], F|A, -(F | A)), 30 * time.Second},
		{packet.TCP, append(handshake[:3:3], F|A, -(F | A), A), 2 * time.Minute},
		{packet.TCP, append(handshake[:3:3], R), 10 * time.Second},
		{packet.TCP, []int{A}, 2 * time.Minute},
	} {
		t.Run(fmt.Sprint(c.proto, c.hits), func(t *testing.T) {
			table := New(Config{})
			f := mustInsert(t, table, c.proto, 1, 0)
			now := int64(0)
			for _, h := range c.hits {
				now += int64(time.Second)
				l := &f.Orig
				if h < 0 {
					l, h = &f.Reply, -h
				}
				table.Hit(f, l, uint8(h), 40, now)
			}
			key := f.Orig.Key
			if got := f.Expires(); got != now+int64(c.want) {
				t.Errorf("expires after %v, want %v", time.Duration(got-now), c.want)
			}
			if f, _ := table.Lookup(&key, now+int64(c.want)-1); f == nil {
				t.Error("gone before its time")
			}
			if f, _ := table.Lookup(&key, now+int64(c.want)); f != nil {
				t.Error("found after its time")
			}
			if table.Len() != 0 {
				t.Error("not removed")
			}
		})
	}
}

func TestTimeoutsAreConfigurable(t *testing.T) {
	table := New(Config{Timeouts: Timeouts{UDP: time.Second}})
	f := mustInsert(t, table, packet.UDP, 1, 0)
	table.Hit(f, &f.Orig, 0, 40, 5)
	if got, want := f.Expires(), 5+int64(time.Second); got != want {
		t.Errorf("expires at %d, want %d", got, want)
	}
}
