package dns

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
)

func (p *corefileParser) forward(b *block, d corefileLine, options []corefileLine) {
	f := forwardRule{policy: "random", maxFails: 2, check: 500 * time.Millisecond}
	if len(d.words) < 3 {
		p.problem(d.n, "forward: FROM and at least one upstream are expected")
		return
	}
	from, err := zonesOf(d.words[1])
	if err != nil {
		p.problem(d.n, "forward: %v", err)
		return
	}
	f.from = from[0]
	serverName := ""
	for _, o := range options {
		args := o.words[1:]
		value := strings.Join(args, " ")
		switch o.words[0] {
		case "policy":
			if !slices.Contains([]string{"random", "round_robin", "sequential"}, value) {
				p.problem(o.n, "forward: policy is one of random, round_robin, sequential")
				continue
			}
			f.policy = value
		case "except":
			f.except = append(f.except, p.zones(o, args)...)
		case "tls_servername":
			serverName = value
		case "max_fails", "max_concurrent":
			n, err := strconv.Atoi(value)
			if err != nil || n < 0 || n > 1<<20 {
				p.problem(o.n, "forward: %s is a number", o.words[0])
				continue
			}
			if o.words[0] == "max_fails" {
				f.maxFails = n
			} else {
				f.max = n
			}
		case "health_check":
			if len(args) == 0 {
				continue
			}
			every, err := time.ParseDuration(args[0])
			if err != nil || every <= 0 {
				p.problem(o.n, "forward: health_check is a duration such as 0.5s")
				continue
			}
			f.check = every
		case "force_tcp":
			f.tcp = true
		case "prefer_udp", "expire", "tls", "max_idle_conns":
			if o.words[0] == "tls" && len(args) > 0 {
				p.problem(o.n, "forward: tls with files is not supported: the system's certificates are used")
			}
		default:
			p.problem(o.n, "forward: option %s is not supported and does nothing", o.words[0])
		}
	}
	for _, to := range d.words[2:] {
		ups, err := upstreamsOf(to)
		if err != nil {
			p.problem(d.n, "forward: %v", err)
			continue
		}
		for i := range ups {
			ups[i].ServerName = serverName
		}
		f.upstreams = append(f.upstreams, ups...)
	}
	b.forwards = append(b.forwards, f)
}

// upstreamsOf reads [tls://]ADDR[:PORT], or the servers of a resolv.conf.
func upstreamsOf(s string) ([]Upstream, error) {
	if strings.HasPrefix(s, "/") {
		if _, err := os.Stat(s); err != nil {
			return nil, err
		}
		c, err := dns.ClientConfigFromFile(s)
		if err != nil {
			return nil, err
		}
		var ups []Upstream
		for _, server := range c.Servers {
			if a, err := netip.ParseAddr(server); err == nil {
				ups = append(ups, Upstream{Addr: netip.AddrPortFrom(a, 53)})
			}
		}
		return ups, nil
	}
	rest, tls := strings.CutPrefix(s, "tls://")
	rest = strings.TrimPrefix(rest, "dns://")
	port := uint16(53)
	if tls {
		port = 853
	}
	if at, err := netip.ParseAddrPort(rest); err == nil && at.Port() != 0 {
		return []Upstream{{Addr: at, TLS: tls}}, nil
	}
	addr, err := netip.ParseAddr(strings.Trim(rest, "[]"))
	if err != nil {
		return nil, fmt.Errorf("%q is not an upstream such as 192.0.2.53, 192.0.2.53:5353 or tls://192.0.2.53", s)
	}
	return []Upstream{{Addr: netip.AddrPortFrom(addr, port), TLS: tls}}, nil
}

func (p *corefileParser) cache(b *block, d corefileLine, options []corefileLine) {
	c := cacheRule{on: true, success: time.Hour, denial: 30 * time.Minute, size: 9984}
	args := d.words[1:]
	seconds := func(s string) (time.Duration, bool) {
		n, err := strconv.Atoi(s)
		return time.Duration(n) * time.Second, err == nil && n > 0 && n < 1<<22
	}
	if len(args) > 0 {
		if ttl, ok := seconds(args[0]); ok {
			c.success, c.denial, args = ttl, ttl, args[1:]
		}
	}
	if len(args) > 0 {
		p.problem(d.n, "cache: a list of zones is not supported: all names of the block are cached")
	}
	for _, o := range options {
		args := o.words[1:]
		switch o.words[0] {
		case "success", "denial":
			if len(args) > 0 {
				if n, err := strconv.Atoi(args[0]); err == nil && n > 0 && n <= 1<<20 {
					c.size = n
				} else {
					p.problem(o.n, "cache: %s: the capacity is a number", o.words[0])
				}
			}
			if len(args) > 1 {
				ttl, ok := seconds(args[1])
				if !ok {
					p.problem(o.n, "cache: %s: the TTL is a number of seconds", o.words[0])
				} else if o.words[0] == "success" {
					c.success = ttl
				} else {
					c.denial = ttl
				}
			}
		case "disable":
			if len(args) == 0 {
				p.problem(o.n, "cache: disable success or denial")
				continue
			}
			switch zones := p.zones(o, args[1:]); args[0] {
			case "success":
				c.noHits = append(c.noHits, zones...)
			case "denial":
				c.noDenial = append(c.noDenial, zones...)
			default:
				p.problem(o.n, "cache: disable success or denial")
			}
		case "serve_stale":
			c.stale = time.Hour
			if len(args) > 0 {
				age, err := time.ParseDuration(args[0])
				if err != nil || age <= 0 {
					p.problem(o.n, "cache: serve_stale is a duration such as 1h")
					continue
				}
				c.stale = age
			}
		case "prefetch":
			n := 0
			if len(args) > 0 {
				n, _ = strconv.Atoi(args[0])
			}
			if n <= 0 {
				p.problem(o.n, "cache: prefetch is a number of queries")
				continue
			}
			c.prefetch = n
		default:
			p.problem(o.n, "cache: option %s is not supported and does nothing", o.words[0])
		}
	}
	b.cache = c
}
