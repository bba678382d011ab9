package ingress

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
)

// Annotations
//
// An Ingress's annotations are read by name, each by the group that it belongs
// to; a name that nobody read is one that podgate does not have, and is
// reported, as is a value that makes no sense. Where an Ingress says nothing the
// controller's ConfigMap does, under the same name. A guard (addresses,
// passwords, certificates) that is asked for and cannot be had denies all: what
// was meant to be closed is not open.

// Annotations are looked for under each of these, in this order.
var annotationPrefixes = []string{"podgate.dev/", "nginx.ingress.kubernetes.io/"}

// reader reads one Ingress's annotations.
type reader struct {
	*compiler
	ing    *networkingv1.Ingress
	known  map[string]bool // names that were read
	o      *options
	failed bool // a value of the group that is read makes no sense
}

// options reads what an Ingress asks for.
func (c *compiler) options(ing *networkingv1.Ingress) *options {
	asks := false
	for key := range ing.Annotations {
		for _, prefix := range annotationPrefixes {
			asks = asks || strings.HasPrefix(key, prefix)
		}
	}
	if !asks && c.defaults != nil {
		return c.defaults
	}
	o := plain
	r := &reader{compiler: c, ing: ing, known: map[string]bool{}, o: &o}
	for _, group := range []func(){
		r.redirects, r.paths, r.upstream, r.balancing, r.addresses, r.limits, r.passwords, r.askedFor,
		r.certificates, r.endpointTLS, r.crossOrigin, r.fields, r.errors, r.copies,
	} {
		r.failed = false
		group()
	}
	for _, key := range slices.Sorted(maps.Keys(ing.Annotations)) {
		for _, prefix := range annotationPrefixes {
			if name, ok := strings.CutPrefix(key, prefix); ok && !r.known[name] {
				c.warn(ing, "metadata.annotations["+key+"]", "has no effect: %s", notHere(name))
			}
		}
	}
	if !asks {
		c.defaults = &o
	}
	return &o
}

// annotation returns the value of the first of these names that is there, of the
// Ingress or else of the ConfigMap.
func (r *reader) annotation(names ...string) string {
	value, found := "", false
	for _, name := range names {
		r.known[name] = true
		for _, prefix := range annotationPrefixes {
			if v, ok := r.ing.Annotations[prefix+name]; ok && !found {
				value, found = strings.TrimSpace(v), true
			}
		}
	}
	if !found && slices.Contains(globals, names[0]) {
		value = strings.TrimSpace(r.config[names[0]])
	}
	return value
}

// bad reports a value that makes no sense.
func (r *reader) bad(name, format string, args ...any) {
	r.failed = true
	key := "data[" + name + "] of ConfigMap " + r.configName.String()
	for _, prefix := range slices.Backward(annotationPrefixes) {
		if _, ok := r.ing.Annotations[prefix+name]; ok {
			key = "metadata.annotations[" + prefix + name + "]"
		}
	}
	r.warn(r.ing, key, format, args...)
}

func (r *reader) flag(name string, otherwise bool) bool {
	v := r.annotation(name)
	if v == "" {
		return otherwise
	}
	switch v {
	case "on":
		return true
	case "off":
		return false
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		r.bad(name, "%q is neither true nor false", v)
		return otherwise
	}
	return b
}

func (r *reader) number(name string, otherwise int) int {
	v := r.annotation(name)
	if v == "" {
		return otherwise
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 0 {
		r.bad(name, "%q is not a number", v)
		return otherwise
	}
	return n
}

// seconds reads a duration as nginx does: a number of seconds, or with a unit.
func (r *reader) seconds(name string) time.Duration {
	v := r.annotation(name)
	if v == "" {
		return 0
	}
	d, err := parseSeconds(v)
	if err != nil {
		r.bad(name, "%q is not a number of seconds", v)
	}
	return d
}

func parseSeconds(v string) (time.Duration, error) {
	if n, err := strconv.ParseUint(v, 10, 31); err == nil {
		return time.Duration(n) * time.Second, nil
	}
	d, err := time.ParseDuration(v)
	if err == nil && d < 0 {
		err = strconv.ErrRange
	}
	return max(d, 0), err
}

func (r *reader) template(name string) template { return r.parse(name, r.annotation(name)) }

// parse reads a value with variables.
func (r *reader) parse(name, value string) template {
	t, err := compileTemplate(value)
	if err != nil {
		r.bad(name, "%v", err)
		return nil
	}
	return t
}

// deny closes the Ingress: a guard cannot be had.
func (r *reader) deny(name, format string, args ...any) {
	r.bad(name, format, args...)
	r.o.denied = name + ": " + fmt.Sprintf(format, args...)
}

// notHere says what there is none of, for an annotation that nobody read.
func notHere(name string) string {
	for _, of := range []struct{ part, why string }{
		{"modsecurity", "podgate has no web application firewall, requests are not inspected"},
		{"owasp", "podgate has no web application firewall, requests are not inspected"},
		{"-snippet", "podgate reads none of nginx's own configuration"},
		{"opentelemetry", "podgate makes no spans; what comes in traceparent and the like is passed on"},
		{"opentracing", "podgate makes no spans; what comes in traceparent and the like is passed on"},
		{"global-rate-limit", "podgate counts by itself: limit-rps, limit-rpm and limit-connections do"},
	} {
		if strings.Contains(name, of.part) {
			return of.why
		}
	}
	return "podgate does not have this"
}
