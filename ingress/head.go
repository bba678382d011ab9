package ingress

import (
	"bytes"
	"slices"
)

// Headers as they are on the wire
//
// What is parsed here is only what can be read in one way: names are tokens,
// lines end in CRLF and are not folded, there is one Host, at most one
// Content-Length of digits, and no field that changes how the message is framed
// or what the connection is for. Everything else is odd, and left to net/http,
// which answers or refuses it.

// head is the header of a request or response. Its slices are those of the
// bytes that were parsed.
type head struct {
	method, target []byte // of a request
	host           []byte
	status         int    // of a response
	reason         []byte // its first line after "HTTP/1.1 "
	fields         []field
	length         int64 // of the body, -1 if it is not said
	close          bool  // the connection ends with this message
	date           bool  // a response has the field
	size           int   // bytes, with the empty line
}

// has reports whether there is a field of that name, however it is spelt.
func (h *head) has(name string) bool {
	return slices.ContainsFunc(h.fields, func(f field) bool { return bytes.EqualFold(f.name, []byte(name)) })
}

// field is a line that is passed on; line ends in CRLF.
type field struct{ name, line []byte }

// form is what a header turned out to be.
type form uint8

const (
	plainForm form = iota
	unfinished
	odd
)

var crlf2 = []byte("\r\n\r\n")

// request reads the header of a request at the beginning of b.
func (h *head) request(b []byte) form {
	line, rest, f := h.begin(b)
	if f != plainForm {
		return f
	}
	i := bytes.IndexByte(line, ' ')
	j := bytes.LastIndexByte(line, ' ')
	if i < 1 || j <= i+1 || string(line[j+1:]) != "HTTP/1.1" {
		return odd
	}
	h.method, h.target = line[:i], line[i+1:j]
	for _, c := range h.method {
		if c < 'A' || c > 'Z' {
			return odd
		}
	}
	if h.target[0] != '/' || !plainTarget(h.target) || string(h.method) == "CONNECT" {
		return odd
	}
	if !h.rest(rest) || h.host == nil {
		return odd
	}
	h.length = max(h.length, 0)
	return plainForm
}

// response reads the header of a response.
func (h *head) response(b []byte) form {
	line, rest, f := h.begin(b)
	if f != plainForm {
		return f
	}
	if len(line) < len("HTTP/1.1 200") || string(line[:9]) != "HTTP/1.1 " || len(line) > 12 && line[12] != ' ' {
		return odd
	}
	for _, c := range line[9:12] {
		if c < '0' || c > '9' {
			return odd
		}
		h.status = h.status*10 + int(c-'0')
	}
	h.reason = line[9:]
	if !h.rest(rest) || h.host != nil {
		return odd
	}
	return plainForm
}

// rest reads the lines after the first. It returns false if one is odd.
func (h *head) rest(b []byte) bool {
	for len(b) > len("\r\n") {
		name, value, line, next := cutField(b)
		if line == nil || len(h.fields) == maxFields {
			return false
		}
		b = next
		switch len(name) {
		case 4:
			if fold(name, "host") {
				if h.host != nil || len(value) == 0 || !plainHost(value) {
					return false
				}
				h.host = value
				continue
			}
			h.date = h.date || fold(name, "date")
		case 10:
			if fold(name, "connection") {
				if h.close = h.close || fold(value, "close"); !h.close && !fold(value, "keep-alive") {
					return false
				}
				continue
			}
			if fold(name, "keep-alive") {
				continue
			}
		case 14:
			if fold(name, "content-length") && (h.length >= 0 || !h.number(value)) {
				return false
			}
		}
		for _, forbidden := range oddFields {
			if fold(name, forbidden) {
				return false
			}
		}
		h.fields = append(h.fields, field{name, line})
	}
	return true
}

// oddFields are for the next hop, or change how a message is framed.
var oddFields = []string{
	"te", "expect", "upgrade", "trailer", "http2-settings", "proxy-connection", "transfer-encoding", "proxy-authenticate", "proxy-authorization",
}

// begin finds the end of a header and its first line.
func (h *head) begin(b []byte) (line, rest []byte, f form) {
	*h = head{fields: h.fields[:0], length: -1}
	end := bytes.Index(b, crlf2)
	if end < 0 {
		// Lines that end otherwise would be waited for in vain.
		for i := bytes.IndexByte(b, '\n'); i >= 0; {
			if i == 0 || b[i-1] != '\r' {
				return nil, nil, odd
			}
			next := bytes.IndexByte(b[i+1:], '\n')
			if next < 0 {
				break
			}
			i += 1 + next
		}
		return nil, nil, unfinished
	}
	h.size = end + len(crlf2)
	b = b[:h.size]
	i := bytes.IndexByte(b, '\n')
	if i < 1 || b[i-1] != '\r' || !plainText(b[:i-1]) {
		return nil, nil, odd
	}
	return b[:i-1], b[i+1:], plainForm
}

// cutField takes the next line of a header. line is nil if it is odd.
func cutField(b []byte) (name, value, line, rest []byte) {
	i := bytes.IndexByte(b, '\n')
	if i < 1 || b[i-1] != '\r' {
		return nil, nil, nil, nil
	}
	line, rest = b[:i+1], b[i+1:]
	text := line[:len(line)-2]
	colon := 0
	for colon < len(text) && tokens[text[colon]] {
		colon++
	}
	if colon == 0 || colon == len(text) || text[colon] != ':' {
		return nil, nil, nil, nil
	}
	name, value = text[:colon], text[colon+1:]
	for len(value) > 0 && (value[0] == ' ' || value[0] == '\t') {
		value = value[1:]
	}
	for len(value) > 0 && (value[len(value)-1] == ' ' || value[len(value)-1] == '\t') {
		value = value[:len(value)-1]
	}
	if !plainText(value) {
		return nil, nil, nil, nil
	}
	return name, value, line, rest
}

// number reads a Content-Length.
func (h *head) number(value []byte) bool {
	if len(value) == 0 || len(value) > 18 {
		return false
	}
	n := int64(0)
	for _, c := range value {
		if c < '0' || c > '9' {
			return false
		}
		n = n*10 + int64(c-'0')
	}
	h.length = n
	return true
}

// fold compares with a lower-case name of ASCII letters and "-".
func fold(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			c |= 0x20
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// plainText reports whether a field's value has no control characters.
func plainText(b []byte) bool {
	for _, c := range b {
		if c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// plainHost reports whether a Host is a name or an address, with or without a port.
func plainHost(b []byte) bool {
	for _, c := range b {
		if !hostBytes[c] {
			return false
		}
	}
	return true
}

// plainTarget reports whether a target's path is encoded as net/url would write
// it, so that it can be passed on as it came.
func plainTarget(b []byte) bool {
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case c == '?':
			for _, c := range b[i+1:] {
				if c <= ' ' || c >= 0x7f {
					return false
				}
			}
			return true
		case c == '%':
			if i+2 >= len(b) || !hexBytes[b[i+1]] || !hexBytes[b[i+2]] {
				return false
			}
			i += 2
		case !pathBytes[c]:
			return false
		}
	}
	return true
}

const alphanumeric = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

var (
	tokens    = set(alphanumeric + "!#$%&'*+-.^_`|~")
	hostBytes = set(alphanumeric + "-._:[]")
	pathBytes = set(alphanumeric + "-._~!$&'()*+,;=:@/")
	hexBytes  = set("0123456789abcdefABCDEF")
)

func set(bytes string) (s [256]bool) {
	for i := range len(bytes) {
		s[bytes[i]] = true
	}
	return s
}
