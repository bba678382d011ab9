package nat

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"podgate/kube"
)

// What the annotations of a Service ask for beyond its fields.
const (
	annotationBalance = "podgate.dev/load-balance" // hash or least-connections
	annotationDrain   = "podgate.dev/drain-time"   // a duration: see ServicePort.Drain
	annotationRanges  = "podgate.dev/port-ranges"  // NAME=FIRST-LAST, ...: see ServicePort.LastPort
)

// options are those that concern all ports of a Service.
type options struct {
	leastConnections bool
	drain            time.Duration
	proxy            proxyProtocol
	last             map[string]uint16 // by port name
}

func (c *compiler) options(svc *corev1.Service) (o options) {
	switch v := svc.Annotations[annotationBalance]; v {
	case "", "hash":
	case "least-connections":
		o.leastConnections = true
	default:
		c.unsupported(annotationBalance, v, "hash", "least-connections")
	}
	if v, ok := svc.Annotations[annotationDrain]; ok {
		d, err := time.ParseDuration(v)
		if err != nil || d < 0 {
			c.badAnnotation(annotationDrain, "Invalid value: %q: must be a duration, such as 30s", v)
		} else {
			o.drain = max(d, time.Nanosecond) // 0s: at once
		}
	}
	o.proxy = c.proxyProtocol(svc.Annotations)
	o.last = c.ranges(svc)
	return o
}

// ranges reads which ports stand for more than their number.
func (c *compiler) ranges(svc *corev1.Service) map[string]uint16 {
	last := map[string]uint16{}
	for _, word := range strings.FieldsFunc(svc.Annotations[annotationRanges], func(r rune) bool { return r == ',' || r == ' ' }) {
		name, numbers, named := strings.Cut(word, "=")
		if !named {
			name, numbers = "", word
		}
		from, to, _ := strings.Cut(numbers, "-")
		first, err1 := strconv.ParseUint(from, 10, 16)
		end, err2 := strconv.ParseUint(to, 10, 16)
		i := slices.IndexFunc(svc.Spec.Ports, func(p corev1.ServicePort) bool { return p.Name == name })
		switch {
		case cmp.Or(err1, err2) != nil || end < first:
			c.badAnnotation(annotationRanges, "Invalid value: %q: must be NAME=FIRST-LAST, such as rtp=10000-10999", word)
		case i < 0:
			c.badAnnotation(annotationRanges, "Not found: %q: no port of the Service has this name", name)
		case svc.Spec.Ports[i].Port != int32(first):
			c.badAnnotation(annotationRanges, "Invalid value: %q: must begin with the port's own number, %d", word, svc.Spec.Ports[i].Port)
		default:
			last[name] = uint16(end)
		}
	}
	return last
}

// badAnnotation reports an annotation that is not heeded; the Service works
// without it.
func (c *compiler) badAnnotation(name, format string, args ...any) {
	c.problem("metadata.annotations["+name+"]", format, args...)
	c.problems[len(c.problems)-1].Severity = kube.Warning
}

func (c *compiler) unsupported(name, value string, supported ...string) {
	for i := range supported {
		supported[i] = strconv.Quote(supported[i])
	}
	c.badAnnotation(name, "Unsupported value: %q: supported values: %s", value, strings.Join(supported, ", "))
}
