package main

import (
	"fmt"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"podgate/dns"
)

// TestSameMessagesAsCoreDNS sends CoreDNS and podgate messages that differ in more
// than their question, and compares the codes and marks of what comes back.
// A difference that is meant has its reason.
func TestSameMessagesAsCoreDNS(t *testing.T) {
	st, upstream := objects(), startUpstream(t)
	theirs, ours := startCoreDNS(t, st, "insecure", upstream), startPodgate(t, st, dns.Insecure, upstream)
	const web, many = "web.shop.svc.cluster.local.", "many.shop.svc.cluster.local."
	edns := func(size uint16) func(*mdns.Msg) { return func(m *mdns.Msg) { m.SetEdns0(size, false) } }
	opcode := func(code int) func(*mdns.Msg) { return func(m *mdns.Msg) { m.Opcode = code } }
	for _, test := range []struct {
		what  string
		name  string
		qtype uint16
		edit  func(m *mdns.Msg)
		meant string // why podgate's answer is another
	}{
		{"plain", web, mdns.TypeA, func(*mdns.Msg) {}, ""},
		{"without RD", web, mdns.TypeA, func(m *mdns.Msg) { m.RecursionDesired = false }, ""},
		{"CD and AD", web, mdns.TypeA, func(m *mdns.Msg) { m.CheckingDisabled, m.AuthenticatedData = true, true }, ""},
		{"AA and RA in a query", web, mdns.TypeA, func(m *mdns.Msg) { m.Authoritative, m.RecursionAvailable = true, true }, ""},
		{"version.bind", "version.bind.", mdns.TypeTXT, func(m *mdns.Msg) { m.Question[0].Qclass = mdns.ClassCHAOS }, "classes other than IN are refused: CoreDNS forwards them"},
		{"IQUERY", web, mdns.TypeA, opcode(mdns.OpcodeIQuery), ""},
		{"STATUS", web, mdns.TypeA, opcode(mdns.OpcodeStatus), ""},
		{"NOTIFY", "cluster.local.", mdns.TypeSOA, opcode(mdns.OpcodeNotify), "there are no secondaries here (RFC 1996, 4.7): CoreDNS answers it as a query"},
		{"UPDATE", "cluster.local.", mdns.TypeSOA, opcode(mdns.OpcodeUpdate), ""},
		{"opcode 6", web, mdns.TypeA, opcode(6), ""},
		{"no question", web, mdns.TypeA, func(m *mdns.Msg) { m.Question = nil }, ""},
		{"two questions", web, mdns.TypeA, func(m *mdns.Msg) { m.Question = append(m.Question, m.Question[0]) }, ""},
		{"an answer in a query", web, mdns.TypeA, func(m *mdns.Msg) {
			m.Answer = []mdns.RR{&mdns.A{Hdr: mdns.RR_Header{Name: web, Rrtype: mdns.TypeA, Class: mdns.ClassINET}, A: []byte{192, 0, 2, 1}}}
		}, ""},
		{"EDNS", web, mdns.TypeA, edns(1232), ""},
		{"EDNS, a name that does not exist", "gone." + web, mdns.TypeA, edns(1232), ""},
		{"DO", web, mdns.TypeA, func(m *mdns.Msg) { m.SetEdns0(1232, true) }, ""},
		{"EDNS version 1", web, mdns.TypeA, func(m *mdns.Msg) { m.SetEdns0(1232, false); m.IsEdns0().SetVersion(1) }, ""},
		{"two OPT records", web, mdns.TypeA, func(m *mdns.Msg) { m.SetEdns0(1232, false); m.Extra = append(m.Extra, m.Extra[0]) }, "RFC 6891, 6.1.1: FORMERR"},
		{"an option that nobody knows", web, mdns.TypeA, func(m *mdns.Msg) {
			m.SetEdns0(1232, false)
			m.IsEdns0().Option = []mdns.EDNS0{&mdns.EDNS0_LOCAL{Code: 65001, Data: []byte{1, 2}}}
		}, ""},
		{"512 bytes for 100 addresses", many, mdns.TypeA, func(*mdns.Msg) {}, ""},
		{"512 bytes for 100 SRV", many, mdns.TypeSRV, func(*mdns.Msg) {}, ""},
		{"EDNS of 0 bytes", many, mdns.TypeA, edns(0), ""},
		{"EDNS of 600 bytes", many, mdns.TypeA, edns(600), ""},
		{"EDNS of 1232 bytes", many, mdns.TypeA, edns(1232), ""},
		{"EDNS of 4096 bytes", many, mdns.TypeA, edns(4096), "1232 bytes at most, so that no answer is fragmented: CoreDNS sends 4096"},
		{"EDNS of 4096 bytes for 100 SRV", many, mdns.TypeSRV, edns(4096), ""},
	} {
		for _, network := range []string{"udp", "tcp"} {
			q := new(mdns.Msg).SetQuestion(test.name, test.qtype)
			test.edit(q)
			want, got := marks(t, network, theirs, q), marks(t, network, ours, q)
			switch {
			case got == want:
			case test.meant == "":
				t.Errorf("%s over %s:\npodgate: %s\nCoreDNS: %s", test.what, network, got, want)
			default:
				t.Logf("%s over %s differs as intended: %s", test.what, network, test.meant)
			}
		}
	}
}

// marks are the header of the answer to q, and how much it holds if it is whole.
func marks(t *testing.T, network string, at where, q *mdns.Msg) string {
	t.Helper()
	c := dial(t, network, at)
	c.UDPSize = mdns.MaxMsgSize
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if err := c.WriteMsg(q); err != nil {
		t.Fatal(err)
	}
	m, err := c.ReadMsg()
	if err != nil {
		t.Fatal(err)
	}
	opt, extra := m.IsEdns0() != nil, len(m.Extra)
	if opt {
		extra--
	}
	text := fmt.Sprintf("%s %s qr=%v aa=%v tc=%v rd=%v ad=%v cd=%v edns=%v", mdns.OpcodeToString[m.Opcode], mdns.RcodeToString[m.Rcode],
		m.Response, m.Authoritative, m.Truncated, m.RecursionDesired, m.AuthenticatedData, m.CheckingDisabled, opt)
	if m.Truncated {
		return text
	}
	return fmt.Sprintf("%s, %d questions, %d answers, %d authorities, %d more", text, len(m.Question), len(m.Answer), len(m.Ns), extra)
}
