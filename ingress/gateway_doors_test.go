package ingress

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// TestGatewaysSideBySide: those that fit share an address, others get the next.
func TestGatewaysSideBySide(t *testing.T) {
	w := newWorld(t, gw("gw", http80), gw("same", http80), gw("host", "{name: http, port: 80, protocol: HTTP, hostname: a.b}"), gw("third", http80), gw("tls", "{name: tls, port: 80, protocol: TLS, tls: {mode: Passthrough}}"))
	want := map[string]string{"gw": "127.0.0.1", "same": "127.0.0.2", "host": "127.0.0.1", "third": "127.0.0.3", "tls": "127.0.0.4"}
	check := func() {
		t.Helper()
		for name, addr := range want {
			if s := w.gateway(name); len(s.Addresses) != 1 || s.Addresses[0].Value != addr || said(s.Conditions, "Programmed") != "True Programmed" {
				t.Errorf("%s: %+v, want %s", name, s.Addresses, addr)
			}
		}
	}
	check()
	w.store.Delete(w.load(gw("same", http80)))
	delete(want, "same")
	check() // nobody moves
	w.apply(gw("late", http80))
	want["late"] = "127.0.0.2"
	check()
}

func TestGatewaysAtOneAddressConflict(t *testing.T) {
	w := newWorld(t, gw("gw", http80), gw("late", http80, "{name: b, port: 81, protocol: HTTP}"), gw("tls", "{name: tls, port: 80, protocol: TLS, tls: {mode: Passthrough}}"))
	w.cfg.Gateway = GatewayConfig{Addr: netip.MustParseAddr("192.0.2.9")}
	for name, want := range map[string]string{"gw/http": "False NoConflicts, True Accepted", "late/http": "True HostnameConflict, False HostnameConflict", "late/b": "False NoConflicts, True Accepted", "tls/tls": "True ProtocolConflict, False ProtocolConflict"} {
		gateway, l, _ := strings.Cut(name, "/")
		s := w.listener(gateway, l)
		if got := said(s.Conditions, "Conflicted") + ", " + said(s.Conditions, "Accepted"); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
	if got := said(w.gateway("late").Conditions, "Accepted"); got != "True ListenersNotValid" {
		t.Error(got)
	}
}

func TestPortsThatOthersHave(t *testing.T) {
	w := newWorld(t, gw("gw", http80), gw("https", "{name: a, port: 8080, protocol: TLS, tls: {mode: Passthrough}}"))
	at := netip.MustParseAddr("192.0.2.9")
	w.cfg.Gateway = GatewayConfig{Addr: at, Taken: map[netip.AddrPort]string{netip.AddrPortFrom(at, 80): "Service a/b has it"}, Ingress: map[netip.AddrPort]bool{netip.AddrPortFrom(at, 8080): false}}
	for _, name := range []string{"gw", "https"} {
		if got := said(w.gateway(name).Listeners[0].Conditions, "Accepted"); got != "False PortUnavailable" {
			t.Errorf("%s: %s", name, got)
		}
	}
	w.cfg.Gateway = GatewayConfig{Failed: map[netip.AddrPort]string{netip.MustParseAddrPort("127.0.0.1:80"): "in use"}}
	if got := said(w.gateway("gw").Listeners[0].Conditions, "Accepted"); got != "False PortUnavailable" {
		t.Error(got)
	}
	if len(w.prev.Entrances()) != 2 {
		t.Error("a door that failed is not tried again")
	}
}

func TestAddressesThatAreAskedFor(t *testing.T) {
	for spec, want := range map[string]string{
		"addresses: [{value: 127.0.0.9}],":                                 "True Accepted, True Programmed [127.0.0.9]",
		"addresses: [{value: 127.0.0.9}, {value: 127.0.0.1}],":             "True Accepted, True Programmed [127.0.0.1 127.0.0.9]",
		"addresses: [{type: IPAddress}],":                                  "True Accepted, True Programmed [127.0.0.1]",
		"addresses: [{value: 192.0.2.1}],":                                 "True Accepted, False AddressNotUsable []",
		"addresses: [{type: Hostname, value: a.b}],":                       "False UnsupportedAddress, False Invalid []",
		"infrastructure: {parametersRef: {group: a.b, kind: C, name: d}},": "False InvalidParameters, False Invalid []",
	} {
		w := newWorld(t, gwIn("default", "gw", spec, http80))
		s := w.gateway("gw")
		addrs := []string{}
		for _, a := range s.Addresses {
			addrs = append(addrs, a.Value)
		}
		if got := fmt.Sprintf("%s, %s %v", said(s.Conditions, "Accepted"), said(s.Conditions, "Programmed"), addrs); got != want {
			t.Errorf("%s: got %s, want %s", spec, got, want)
		}
	}
}
