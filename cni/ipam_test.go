package cni

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
)

func args(container string) *skel.CmdArgs {
	return &skel.CmdArgs{ContainerID: container, IfName: "eth0"}
}

func newPool(t *testing.T, ipam string) (*pool, error) {
	t.Helper()
	ipam = strings.Replace(ipam, "{", fmt.Sprintf(`{"dataDir": %q, `, t.TempDir()), 1)
	c := &config{PluginConf: types.PluginConf{Name: "net"}}
	return loadPool(c, fmt.Appendf(nil, `{"ipam": %s}`, ipam))
}

func mustPool(t *testing.T, ipam string) *pool {
	t.Helper()
	p, err := newPool(t, ipam)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func address(t *testing.T, res *current.Result, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, ip := range res.IPs {
		all = append(all, ip.Address.String())
	}
	return strings.Join(all, " ")
}

func TestRanges(t *testing.T) {
	for _, c := range []struct{ ipam, want string }{
		{`{"subnet": "10.1.2.0/24"}`, "10.1.2.1-10.1.2.254 via 10.1.2.1"},
		{`{"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.9", "rangeEnd": "10.1.2.20", "gateway": "10.1.2.254"}`, "10.1.2.9-10.1.2.20 via 10.1.2.254"},
		{`{"ranges": [[{"subnet": "fd00::/64"}]]}`, "fd00::1-fd00::ffff:ffff:ffff:ffff via fd00::1"},
		{`{"subnet": "10.1.2.0/31"}`, "too small"},
		{`{"subnet": "10.1.2.0"}`, "no range"},
		{`{"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.9", "rangeEnd": "10.1.2.8"}`, "rangeStart: 10.1.2.9 is behind rangeEnd 10.1.2.8"},
		{`{"ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "10.1.2.128/25"}]]}`, "ranges[1][0]: 10.1.2.129-10.1.2.254 overlaps"},
		{`{"ranges": [[{"subnet": "10.1.2.0/24"}, {"subnet": "fd00::/64"}]]}`, "IPv4 and IPv6 in one set"},
		{`{"ranges": [[]]}`, "ranges[0]: is empty"},
		{`{"rangeStart": "10.1.2.9"}`, "need a subnet"},
	} {
		p, err := newPool(t, c.ipam)
		got := fmt.Sprint(err)
		if err == nil {
			r := p.Ranges[0][0]
			got = fmt.Sprintf("%s-%s via %s", r.first, r.last, r.via)
		}
		if !strings.Contains(got, c.want) {
			t.Errorf("%s: %s; want %s", c.ipam, got, c.want)
		}
	}
}

// Addresses go round, the gateway's is left out, and the last one is the last.
func TestLeases(t *testing.T) {
	p := mustPool(t, `{"ranges": [[{"subnet": "10.1.2.0/29"}, {"subnet": "10.1.3.0/30"}], [{"subnet": "fd00::/64"}]]}`)
	var got []string
	for i := range 6 {
		res, err := p.lease(fmt.Sprint("c", i), "eth0", nil)
		got = append(got, strings.Fields(address(t, res, err))[0])
	}
	if want := "[10.1.2.2/29 10.1.2.3/29 10.1.2.4/29 10.1.2.5/29 10.1.2.6/29 10.1.3.2/30]"; fmt.Sprint(got) != want {
		t.Errorf("leased %v, want %v", got, want)
	}
	if err := p.spare(); err == nil {
		t.Error("an address is said to be left")
	}
	if _, err := p.lease("c9", "eth0", nil); err == nil || !strings.Contains(err.Error(), "10.1.2.1-10.1.2.6, 10.1.3.1-10.1.3.2 are in use") {
		t.Errorf("exhausted: %v", err)
	}
	p.release("c2", "eth0")
	p.release("c2", "eth0")
	wanted := []netip.Addr{netip.MustParseAddr("10.1.2.3")}
	if _, err := p.lease("c9", "eth0", wanted); err == nil || !strings.Contains(err.Error(), "10.1.2.3 is in use") {
		t.Errorf("taken: %v", err)
	}
	res, err := p.lease("c9", "eth0", []netip.Addr{netip.MustParseAddr("10.1.2.4"), netip.MustParseAddr("fd00::77")})
	if got := address(t, res, err); got != "10.1.2.4/29 fd00::77/64" {
		t.Errorf("asked for: %s", got)
	}
	if !p.holds("c9", "eth0", wanted[0].Next()) || p.holds("c9", "eth1", wanted[0].Next()) {
		t.Error("whose lease is it?")
	}
	if err := p.keepOnly([]types.GCAttachment{{ContainerID: "c9", IfName: "eth0"}}); err != nil {
		t.Fatal(err)
	}
	if taken, _ := p.taken(); len(taken) != 2 {
		t.Errorf("after GC: %v", taken)
	}
}

// A lease is what the host-local plugin would have written, and it is read.
func TestLeasesAreHostLocals(t *testing.T) {
	p := mustPool(t, `{"subnet": "10.1.2.0/24"}`)
	res, err := p.lease("c1", "eth0", nil)
	address(t, res, err)
	if b, err := os.ReadFile(filepath.Join(p.dir, "10.1.2.2")); string(b) != "c1\r\neth0" {
		t.Errorf("%q, %v", b, err)
	}
	if b, err := os.ReadFile(filepath.Join(p.dir, "last_reserved_ip.0")); string(b) != "10.1.2.2" {
		t.Errorf("%q, %v", b, err)
	}
	os.WriteFile(filepath.Join(p.dir, "10.1.2.3"), []byte("other\r\neth0"), 0o600)
	res, err = p.lease("c2", "eth0", nil)
	if got := address(t, res, err); got != "10.1.2.4/24" {
		t.Error(got)
	}
}

// 64 at a time, each in the middle of its life, some of them killed: no address
// is given twice, and none is left in the end.
func TestLeasesUnderLoad(t *testing.T) {
	p := mustPool(t, `{"subnet": "10.1.0.0/22"}`)
	const workers, rounds = 64, 32
	var mu sync.Mutex
	owner := map[string]string{}
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range rounds {
				id := fmt.Sprintf("c%d-%d", w, i)
				res, err := p.lease(id, "eth0", nil)
				if err != nil {
					t.Error(err)
					return
				}
				a := res.IPs[0].Address.String()
				mu.Lock()
				if other := owner[a]; other != "" {
					t.Errorf("%s is leased to %s and %s", a, other, id)
				}
				owner[a] = id
				mu.Unlock()
				if i%7 == 0 { // killed while it wrote: the runtime calls DEL
					os.WriteFile(filepath.Join(p.dir, strings.Split(a, "/")[0]+".new"), []byte(id+lineBreak+"eth0"), 0o600)
				}
				mu.Lock()
				delete(owner, a)
				mu.Unlock()
				if err := p.release(id, "eth0"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "lock" && !strings.HasPrefix(e.Name(), lastPrefix) {
			t.Errorf("left behind: %s", e.Name())
		}
	}
}

func TestResolvConf(t *testing.T) {
	f := filepath.Join(t.TempDir(), "resolv.conf")
	os.WriteFile(f, []byte("# of the node\nnameserver 192.0.2.53\nsearch a.example b.example\ndomain a.example\noptions ndots:2\n"), 0o600)
	dns, err := readResolvConf(f)
	if err != nil || fmt.Sprint(dns) != "{[192.0.2.53] a.example [a.example b.example] [ndots:2]}" {
		t.Errorf("%+v, %v", dns, err)
	}
}
