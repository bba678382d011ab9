package dns

import (
	"cmp"
	"context"
	"slices"
	"strings"
)

// rules are a Corefile in force: what happens to a name beside the zone.
type rules struct {
	blocks []ruleZone // the longest zone first
	slow   bool       // something is to be done to names of the cluster before the zone is asked
	path   bool       // names of the cluster that do not exist may be answered by autopath

	stop context.CancelFunc // of what watches upstreams
}

// ruleZone is one zone of a server block.
type ruleZone struct {
	zone string
	*ruleBlock
}

// ruleBlock is a server block at work.
type ruleBlock struct {
	block
	routes []route // the longest FROM first
}

// route leads the names of a zone to upstreams.
type route struct {
	from   string
	except []string
	to     *forwarder
}

// SetCorefile replaces what the server does beside the zone; nil is what the
// Config says. Names that it forwards are cached anew.
func (s *Server) SetCorefile(c *Corefile) {
	ctx, stop := context.WithCancel(s.ctx)
	if c == nil {
		all := &ruleBlock{block: block{kube: true, autopath: s.cfg.Autopath}, routes: []route{{from: ".", to: s.forward}}}
		s.put(&rules{blocks: []ruleZone{{".", all}}, path: s.cfg.Autopath, stop: stop})
		return
	}
	r := &rules{stop: stop}
	for _, b := range c.blocks {
		rb := &ruleBlock{block: b}
		for _, rule := range b.forwards {
			f := s.forwarderOf(ctx, rule, b.cache)
			rb.routes = append(rb.routes, route{rule.from, rule.except, f})
			for _, u := range f.upstreams {
				if b.loop {
					f.suspect(u)
				}
			}
		}
		slices.SortStableFunc(rb.routes, func(a, b route) int { return cmp.Compare(len(b.from), len(a.from)) })
		for _, z := range b.zones {
			r.blocks = append(r.blocks, ruleZone{z, rb})
		}
	}
	slices.SortStableFunc(r.blocks, func(a, b ruleZone) int { return cmp.Compare(len(b.zone), len(a.zone)) })
	first := r.match(s.cfg.Domain)
	r.slow = first == nil || !first.kube || first.hosts != nil || first.templatesFor(s.cfg.Domain) || len(first.rewrites) > 0 || first.log || inZones(s.cfg.Domain, first.fall) ||
		slices.ContainsFunc(r.blocks, func(z ruleZone) bool { return z.zone != s.cfg.Domain && inZone(z.zone, s.cfg.Domain) })
	r.path = first != nil && first.autopath
	s.put(r)
}

// put puts rules in force.
func (s *Server) put(r *rules) {
	if old := s.rules.Swap(r); old != nil {
		old.stop()
	}
}

// forwarderOf makes the forwarder of a directive, with the block's cache; it
// watches its upstreams until ctx ends.
func (s *Server) forwarderOf(ctx context.Context, rule forwardRule, cache cacheRule) *forwarder {
	cfg := s.cfg
	cfg.CacheTTL, cfg.CacheSize = -1, 1
	if cache.on {
		cfg.CacheTTL, cfg.CacheSize = cache.success, cache.size
	}
	f := newForwarder(cfg, rule.upstreams)
	f.ctx, f.background, f.counters, f.loops = ctx, s.wait, s.forward.counters, s.forward.loops
	f.policy, f.maxFails, f.check, f.tcp = rule.policy, rule.maxFails, rule.check, rule.tcp
	f.cache.maxDenial, f.cache.stale, f.cache.prefetch = cache.denial, cache.stale, cache.prefetch
	f.cache.noHits, f.cache.noDenial = cache.noHits, cache.noDenial
	if rule.max > 0 {
		f.slots = make(chan struct{}, rule.max)
	}
	return f
}

// match returns the block that a lower-case name belongs to, nil if none.
func (r *rules) match(name string) *ruleBlock {
	if i := r.matching(name); i >= 0 {
		return r.blocks[i].ruleBlock
	}
	return nil
}

// matching is the place of the block that a lower-case name belongs to, -1 if none.
func (r *rules) matching(name string) int {
	for i := range r.blocks {
		if inZone(name, r.blocks[i].zone) {
			return i
		}
	}
	return -1
}

// route returns who resolves a name, nil if nobody does.
func (r *rules) route(name string) *forwarder {
	lower := strings.ToLower(name)
	if b := r.match(lower); b != nil {
		return b.route(lower)
	}
	return nil
}

// route returns who resolves a lower-case name, nil if nobody does.
func (b *ruleBlock) route(name string) *forwarder {
	for i := range b.routes {
		if inZone(name, b.routes[i].from) && !inZones(name, b.routes[i].except) {
			return b.routes[i].to
		}
	}
	return nil
}

// lookup says what is known about a name without asking an upstream.
func (b *ruleBlock) lookup(z *Zone, name string, qtype uint16) answer {
	if len(b.templates) > 0 {
		if a, ok := b.fromTemplates(z, name, qtype); ok {
			return a
		}
	}
	if b.hosts != nil {
		if records, known := b.hosts.answer(name, qtype); known {
			return answer{records: records}
		}
	}
	if !b.kube {
		return answer{chase: name}
	}
	a := z.answer(name, qtype)
	if a.denied() && inZones(strings.ToLower(name), b.fall) && b.route(strings.ToLower(name)) != nil {
		return answer{chase: name}
	}
	return a
}
