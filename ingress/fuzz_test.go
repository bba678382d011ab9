package ingress

import (
	"bufio"
	"bytes"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// naive is the API's text: Exact matches the whole path, Prefix its elements;
// among the rules that match, Exact comes first, then the longest path, then
// the first rule.
func naive(rules []*route, path string) *route {
	var best *route
	better := func(r *route) bool {
		if best == nil || (r.kind == exactPath) != (best.kind == exactPath) {
			return best == nil || r.kind == exactPath
		}
		a, b := strings.Count(r.path, "/"), strings.Count(best.path, "/")
		return a > b || a == b && len(r.path) > len(best.path)
	}
	for _, r := range rules {
		matches := matchPath(r.path) == path
		if r.kind != exactPath {
			want := strings.Split(strings.TrimSuffix(matchPath(r.path), "/"), "/")
			got := strings.Split(path, "/")
			matches = len(got) >= len(want) && slices.Equal(got[:len(want)], want)
		}
		if matches && better(r) {
			best = r
		}
	}
	return best
}

func FuzzMatch(f *testing.F) {
	f.Add("p/foo\ne/foo\np/foo/\np/", "/foo/")
	f.Add("p/aaa/bbb\np/aaa\ni/aaa/bbb/ccc", "/aaa/bbb/ccc/ddd")
	f.Add("e/\np//\np/a//b", "//a/../b")
	f.Add("p/a%2Fb\np/a", "/a%2Fb/c")
	f.Fuzz(func(t *testing.T, rules, path string) {
		path = cleanPath("/" + path)
		if again := cleanPath(path); again != path {
			t.Fatalf("cleaned %q, cleaned again %q", path, again)
		}
		for _, e := range strings.Split(path, "/") {
			if dots(e) != 0 {
				t.Fatalf("%q has a dot element", path)
			}
		}
		h := &host{exact: map[string]*route{}, prefix: map[string]*route{}}
		var entered []*route
		for _, line := range strings.Split(rules, "\n") {
			kind, rest, ok := strings.Cut(line, "/")
			if !ok || strings.Contains(rest, "%") {
				continue // an encoded rule may be as long as another that is the same
			}
			r := &route{path: "/" + rest, kind: prefixPath}
			if kind == "e" {
				r.kind = exactPath
			}
			h.add(r)
			entered = append(entered, r)
		}
		if got, want := h.match(matchPath(path), nil), naive(entered, matchPath(path)); got != want {
			t.Fatalf("rules %q, path %q: got %+v, want %+v", rules, path, got, want)
		}
	})
}

// What the lane reads as a plain request is one to net/http too, and the same.
func FuzzHead(f *testing.F) {
	f.Add([]byte(plainGet))
	f.Add([]byte("POST /a%2Fb;v=1?x HTTP/1.1\r\nHost: [::1]:80\r\nContent-Length: 3\r\nConnection: close\r\nX-A:\t b\x80 \r\n\r\nabcGET"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var h head
		if h.request(b) != plainForm {
			return
		}
		in, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b)))
		if err != nil {
			t.Fatalf("%q: net/http says %v", b, err)
		}
		fields := 0
		for name, vs := range in.Header {
			if name != "Connection" && name != "Keep-Alive" {
				fields += len(vs)
			}
		}
		if in.Method != string(h.method) || in.RequestURI != string(h.target) || in.Host != string(h.host) || in.ContentLength != h.length ||
			in.Close != h.close || in.TransferEncoding != nil || in.ProtoMinor != 1 || fields != len(h.fields) {
			t.Fatalf("%q: %+v, net/http has %+v", b, h, in)
		}
		path, _, _ := strings.Cut(string(h.target), "?")
		if got := in.URL.EscapedPath(); got != path {
			t.Fatalf("path %q, net/http has %q", path, got)
		}
	})
}
