package ingress

import (
	"net/netip"
	"net/url"
	"strings"
)

// Paths
//
// A request's path is taken apart at its slashes before anything is decoded, as
// the Ingress API compares element by element. What that means for a path that
// could be read in two ways:
//
//   - "." and ".." elements, also written %2e, are removed as RFC 3986, section
//     5.2.4 says, before matching, and the backend gets the path without them:
//     no rule can be walked around, and what is matched is what is sent.
//   - An empty element is an element: "/a//b" is not "/a/b", and "//a" is not
//     below "/a". The backend gets it as it was asked.
//   - %2F is a character of its element and separates nothing: "/a%2Fb" is one
//     element. The backend gets it encoded as it was asked.
//   - Other encodings do not matter for matching: "/caf%C3%A9" is "/café". The
//     backend gets them as they were asked.

// cleanPath removes the dot elements of an escaped path. It returns its argument
// if there are none.
func cleanPath(escaped string) string {
	if escaped == "" {
		return "/"
	}
	if !strings.Contains(escaped, "/.") && !strings.Contains(escaped, "%2") {
		return escaped
	}
	elements := strings.Split(escaped, "/")
	out := elements[:1] // what is before the first slash: nothing
	for i, e := range elements[1:] {
		last := i == len(elements)-2
		switch dots(e) {
		case 0:
			out = append(out, e)
			continue
		case 2:
			out = out[:max(1, len(out)-1)]
		}
		if last {
			out = append(out, "") // "/a/b/.." is "/a/"
		}
	}
	return strings.Join(out, "/")
}

// dots is 1 for ".", 2 for "..", 0 for any other element.
func dots(e string) int {
	if len(e) > len("%2e%2e") {
		return 0
	}
	switch strings.ReplaceAll(strings.ToLower(e), "%2e", ".") {
	case ".":
		return 1
	case "..":
		return 2
	}
	return 0
}

// matchPath is the form in which paths are compared: elements decoded, with
// only the two characters left encoded that would make it ambiguous.
func matchPath(escaped string) string {
	if !strings.Contains(escaped, "%") {
		return escaped
	}
	elements := strings.Split(escaped, "/")
	for i, e := range elements {
		plain, err := url.PathUnescape(e)
		if err != nil {
			plain = e // a rule's path that happens to contain a percent sign
		}
		elements[i] = encodeAmbiguous.Replace(plain)
	}
	return strings.Join(elements, "/")
}

// decoded is a path in matchPath's form as characters, as nginx's $uri has it.
func decoded(path string) string {
	if plain, err := url.PathUnescape(path); err == nil {
		return plain
	}
	return path
}

var encodeAmbiguous = strings.NewReplacer("%", "%25", "/", "%2F")

// matchHost is the form in which hosts are compared: lower case, without port
// and without the final dot.
func matchHost(host string) string {
	if _, err := netip.ParseAddr(host); err != nil { // an address may be all colons
		if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") {
			host = host[:i]
		}
	}
	return strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
}

// parentDomain is what follows the first label: "foo.com" of "a.foo.com". It is
// "" where there is no label that a wildcard could stand for.
func parentDomain(host string) string {
	label, parent, _ := strings.Cut(host, ".")
	if label == "" {
		return ""
	}
	return parent
}
