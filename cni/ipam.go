package cni

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"
)

// Theory of operation
//
// Addresses come from one of three places. Without ranges, the gateway gives
// those of its pod ranges. With ranges, they are leased here: a file for each
// address in a folder for each network, as the host-local plugin keeps them, so
// that the two can take over from each other. Any other type of IPAM is a plugin
// that is run.
//
// A lease is a file of the address's name that says whose it is: container,
// CRLF, interface. All is done under a lock on the folder. A lease appears at
// once and whole, by rename, so that a plugin that is killed leaves none that
// nobody owns; DEL and GC find leases by their owner.

const (
	ownIPAM   = "podgate"
	hostLocal = "host-local"

	leaseFolder = "/var/lib/cni/networks" // host-local's
	lineBreak   = "\r\n"
	lastPrefix  = "last_reserved_ip."
)

// ipRange is one of addresses that are given out, first and last included.
type ipRange struct {
	Subnet     string `json:"subnet"`
	RangeStart string `json:"rangeStart,omitempty"`
	RangeEnd   string `json:"rangeEnd,omitempty"`
	Gateway    string `json:"gateway,omitempty"`

	subnet           netip.Prefix
	first, last, via netip.Addr
}

// rangeSet gives one address.
type rangeSet []*ipRange

// pool is what addresses are leased from: one of each set.
type pool struct {
	ipRange
	Type       string         `json:"type"`
	Ranges     []rangeSet     `json:"ranges"`
	Routes     []*types.Route `json:"routes"`
	DataDir    string         `json:"dataDir"`
	ResolvConf string         `json:"resolvConf"`

	dir string
}

// loadPool reads the ipam object; nil if it has no ranges, so that the gateway's
// are used.
func loadPool(c *config, data []byte) (*pool, error) {
	var conf struct {
		IPAM json.RawMessage `json:"ipam"`
	}
	if err := json.Unmarshal(data, &conf); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "cannot decode the network configuration", err.Error())
	}
	p := &pool{}
	if len(conf.IPAM) > 0 {
		if err := strictly(conf.IPAM, p); err != nil {
			return nil, invalid("ipam: %s", strings.TrimPrefix(jsonPlace(err), "json: "))
		}
	}
	if p.Subnet != "" {
		p.Ranges = append([]rangeSet{{&p.ipRange}}, p.Ranges...)
	} else if p.RangeStart != "" || p.RangeEnd != "" || p.Gateway != "" {
		return nil, invalid("ipam: rangeStart, rangeEnd and gateway need a subnet")
	}
	p.Ranges = append(slices.Clone(c.RuntimeConfig.IPRanges), p.Ranges...)
	p.dir = filepath.Join(leaseFolder, c.Name)
	if p.DataDir != "" {
		p.dir = filepath.Join(p.DataDir, c.Name)
	}
	var all []*ipRange
	for i, set := range p.Ranges {
		if len(set) == 0 {
			return nil, invalid("ipam.ranges[%d]: is empty", i)
		}
		for j, r := range set {
			if err := r.parse(); err != nil {
				return nil, invalid("ipam.ranges[%d][%d].%v", i, j, err)
			}
			if r.subnet.Addr().Is4() != set[0].subnet.Addr().Is4() {
				return nil, invalid("ipam.ranges[%d]: IPv4 and IPv6 in one set", i)
			}
			for _, o := range all {
				if o.first.Compare(r.last) <= 0 && r.first.Compare(o.last) <= 0 {
					return nil, invalid("ipam.ranges[%d][%d]: %s-%s overlaps %s-%s", i, j, r.first, r.last, o.first, o.last)
				}
			}
			all = append(all, r)
		}
	}
	if len(all) == 0 && c.IPAM.Type == hostLocal {
		return nil, invalid("ipam: host-local needs a subnet or ranges")
	}
	return p, nil
}

// parse fills in what is left out, as host-local does.
func (r *ipRange) parse() (err error) {
	if r.subnet, err = netip.ParsePrefix(r.Subnet); err != nil {
		return fmt.Errorf("subnet: %q is no range such as 10.1.0.0/24", r.Subnet)
	}
	if r.subnet != r.subnet.Masked() {
		return fmt.Errorf("subnet: %s: must be the network address, %s", r.Subnet, r.subnet.Masked())
	}
	if r.subnet.Addr().BitLen()-r.subnet.Bits() < 2 {
		return fmt.Errorf("subnet: %s is too small", r.Subnet)
	}
	r.first, r.last = r.subnet.Addr().Next(), lastOf(r.subnet)
	if r.subnet.Addr().Is4() {
		r.last = r.last.Prev() // the broadcast address
	}
	r.via = r.first
	for _, f := range []struct {
		name, value string
		to          *netip.Addr
	}{{"rangeStart", r.RangeStart, &r.first}, {"rangeEnd", r.RangeEnd, &r.last}, {"gateway", r.Gateway, &r.via}} {
		if f.value == "" {
			continue
		}
		a, err := netip.ParseAddr(f.value)
		if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		if a = a.Unmap(); f.name != "gateway" && !r.subnet.Contains(a) {
			return fmt.Errorf("%s: %s is not in %s", f.name, a, r.subnet)
		}
		*f.to = a
	}
	if r.first.Compare(r.last) > 0 {
		return fmt.Errorf("rangeStart: %s is behind rangeEnd %s", r.first, r.last)
	}
	return nil
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().As16()
	for bit := 128 - p.Addr().BitLen() + p.Bits(); bit < 128; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	a := netip.AddrFrom16(b)
	if p.Addr().Is4() {
		return a.Unmap()
	}
	return a
}

// leases says whether addresses are leased here.
func (p *pool) leases() bool { return p != nil && len(p.Ranges) > 0 }

// locked calls f while nobody else uses the folder of leases.
func (p *pool) locked(f func() error) error {
	if err := os.MkdirAll(p.dir, 0o755); err != nil {
		return ioFailure(err)
	}
	lock, err := os.OpenFile(filepath.Join(p.dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return ioFailure(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return ioFailure(err)
	}
	return f()
}

func ioFailure(err error) error {
	return types.NewError(types.ErrIOFailure, "the leases cannot be kept", err.Error())
}

// lease takes an address of each set, of those that are wanted where they are in
// one, and says what follows from it.
func (p *pool) lease(container, ifName string, wanted []netip.Addr) (*current.Result, error) {
	res := &current.Result{CNIVersion: current.ImplementedSpecVersion, Routes: p.Routes}
	owner := container + lineBreak + ifName
	err := p.locked(func() error {
		taken, err := p.taken()
		if err != nil {
			return ioFailure(err)
		}
		for i, set := range p.Ranges {
			r, a, err := p.choose(i, set, taken, &wanted)
			if err == nil {
				err = p.write(a, i, owner)
			}
			if err != nil {
				return errors.Join(err, p.releaseAll(func(o string) bool { return o == owner }))
			}
			taken[a] = true
			res.IPs = append(res.IPs, &current.IPConfig{Address: *ipNet(netip.PrefixFrom(a, r.subnet.Bits())), Gateway: r.via.AsSlice()})
		}
		if len(wanted) > 0 {
			err := types.NewError(ErrAddressTaken, "the address cannot be had", fmt.Sprintf("%s is in none of the ranges, or a second one of the same", wanted[0]))
			return errors.Join(err, p.releaseAll(func(o string) bool { return o == owner }))
		}
		return nil
	})
	if err == nil && p.ResolvConf != "" {
		res.DNS, err = readResolvConf(p.ResolvConf)
		if err != nil {
			err = errors.Join(err, p.release(container, ifName))
		}
	}
	return res, err
}

// choose finds an address of a set that nobody has, going round so that one that
// was given back is not used again soon.
func (p *pool) choose(i int, set rangeSet, taken map[netip.Addr]bool, wanted *[]netip.Addr) (*ipRange, netip.Addr, error) {
	for _, r := range set {
		for k, a := range *wanted {
			if a.Compare(r.first) < 0 || a.Compare(r.last) > 0 {
				continue
			}
			if taken[a] || a == r.via {
				return nil, a, types.NewError(ErrAddressTaken, "the address cannot be had", fmt.Sprintf("%s is in use", a))
			}
			*wanted = slices.Delete(slices.Clone(*wanted), k, k+1)
			return r, a, nil
		}
	}
	at, a := 0, set[0].first
	if b, err := os.ReadFile(filepath.Join(p.dir, fmt.Sprint(lastPrefix, i))); err == nil {
		if last, err := netip.ParseAddr(strings.TrimSpace(string(b))); err == nil {
			for k, r := range set {
				if last.Compare(r.first) >= 0 && last.Compare(r.last) <= 0 {
					at, a = k, last.Next()
				}
			}
		}
	}
	for range len(set) + 1 { // the first range is entered twice: in the middle, and from its start
		r := set[at]
		for ; a.IsValid() && a.Compare(r.last) <= 0; a = a.Next() {
			if !taken[a] && a != r.via {
				return r, a, nil
			}
		}
		at = (at + 1) % len(set)
		a = set[at].first
	}
	return nil, a, types.NewError(ErrExhausted, "no address is left", fmt.Sprintf("all of %s are in use; leases are in %s", set, p.dir))
}

func (s rangeSet) String() string {
	var parts []string
	for _, r := range s {
		parts = append(parts, fmt.Sprintf("%s-%s", r.first, r.last))
	}
	return strings.Join(parts, ", ")
}

// taken are the addresses that are leased.
func (p *pool) taken() (map[netip.Addr]bool, error) {
	entries, err := os.ReadDir(p.dir)
	taken := make(map[netip.Addr]bool, len(entries))
	for _, e := range entries {
		if a, err := netip.ParseAddr(e.Name()); err == nil {
			taken[a] = true
		}
	}
	return taken, err
}

func (p *pool) write(a netip.Addr, set int, owner string) error {
	file := filepath.Join(p.dir, a.String())
	if err := os.WriteFile(file+".new", []byte(owner), 0o600); err != nil {
		return ioFailure(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		return ioFailure(err)
	}
	if err := os.WriteFile(filepath.Join(p.dir, fmt.Sprint(lastPrefix, set)), []byte(a.String()), 0o600); err != nil {
		return ioFailure(err)
	}
	return nil
}

// release gives back what an interface has leased.
func (p *pool) release(container, ifName string) error {
	if _, err := os.Stat(p.dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	owner := container + lineBreak + ifName
	return p.locked(func() error { return p.releaseAll(func(o string) bool { return o == owner }) })
}

// releaseAll gives back the leases of some owners; the lock is held.
func (p *pool) releaseAll(gone func(owner string) bool) (err error) {
	return p.each(func(file, owner string) error {
		if gone(owner) {
			return os.Remove(file)
		}
		return nil
	})
}

// each calls f for every lease, and for those that were never finished.
func (p *pool) each(f func(file, owner string) error) error {
	entries, err := os.ReadDir(p.dir)
	for _, e := range entries {
		if _, perr := netip.ParseAddr(strings.TrimSuffix(e.Name(), ".new")); perr != nil {
			continue
		}
		file := filepath.Join(p.dir, e.Name())
		owner, rerr := os.ReadFile(file)
		if rerr == nil {
			rerr = f(file, strings.TrimSpace(string(owner)))
		}
		err = errors.Join(err, rerr)
	}
	return err
}

// holds says whether an interface has leased an address.
func (p *pool) holds(container, ifName string, a netip.Addr) bool {
	b, err := os.ReadFile(filepath.Join(p.dir, a.String()))
	return err == nil && strings.TrimSpace(string(b)) == container+lineBreak+ifName
}

// keepOnly gives back all leases but those of the attachments named.
func (p *pool) keepOnly(valid []types.GCAttachment) error {
	if _, err := os.Stat(p.dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	keep := map[string]bool{}
	for _, v := range valid {
		keep[v.ContainerID+lineBreak+v.IfName] = true
	}
	return p.locked(func() error { return p.releaseAll(func(o string) bool { return !keep[o] }) })
}

// spare says whether an address of each set is left.
func (p *pool) spare() error {
	taken, err := p.taken()
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for i, set := range p.Ranges {
		if err == nil {
			_, _, err = p.choose(i, set, taken, new([]netip.Addr))
		}
	}
	return err
}

// readResolvConf reads what a resolv.conf(5) says.
func readResolvConf(name string) (dns types.DNS, err error) {
	f, err := os.Open(name)
	if err != nil {
		return dns, invalid("ipam.resolvConf: %v", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			dns.Nameservers = append(dns.Nameservers, fields[1])
		case "domain":
			dns.Domain = fields[1]
		case "search":
			dns.Search = append(dns.Search, fields[1:]...)
		case "options":
			dns.Options = append(dns.Options, fields[1:]...)
		}
	}
	return dns, lines.Err()
}
