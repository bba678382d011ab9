package ingress

import "testing"

func TestCleanPath(t *testing.T) {
	for path, want := range map[string]string{
		"":                "/",
		"/":               "/",
		"/a/b":            "/a/b",
		"/a/b/":           "/a/b/",
		"/a/./b":          "/a/b",
		"/a/../b":         "/b",
		"/a/..":           "/",
		"/a/b/..":         "/a/",
		"/a/.":            "/a/",
		"/..":             "/",
		"/../../etc":      "/etc",
		"/a/%2e%2E/b":     "/b",
		"/a/.%2e/b":       "/b",
		"/a/%2e/b":        "/a/b",
		"/a/...":          "/a/...",
		"/a/.b":           "/a/.b",
		"//a":             "//a",
		"/a//b":           "/a//b",
		"/a//../b":        "/a/b",
		"/a%2Fb":          "/a%2Fb",
		"/a%2F..%2Fb":     "/a%2F..%2Fb",
		"/a%2f..":         "/a%2f..",
		"/caf%C3%A9/./x":  "/caf%C3%A9/x",
		"/a/%2e%2e%2fb":   "/a/%2e%2e%2fb",
		"/a/b/../../../c": "/c",
	} {
		if got := cleanPath(path); got != want {
			t.Errorf("%q: got %q, want %q", path, got, want)
		}
		if again := cleanPath(want); again != want {
			t.Errorf("%q: cleaning again gives %q", want, again)
		}
	}
}

func TestMatchPath(t *testing.T) {
	for _, same := range [][2]string{
		{"/caf%C3%A9", "/café"},
		{"/a%20b", "/a b"},
		{"/%61", "/a"},
		{"/100%", "/100%25"},
	} {
		if a, b := matchPath(same[0]), matchPath(same[1]); a != b {
			t.Errorf("%q and %q differ: %q, %q", same[0], same[1], a, b)
		}
	}
	for _, differ := range [][2]string{
		{"/a%2Fb", "/a/b"},
		{"/a%252Fb", "/a%2Fb"},
		{"/a//b", "/a/b"},
		{"/A", "/a"},
	} {
		if a := matchPath(differ[0]); a == matchPath(differ[1]) {
			t.Errorf("%q and %q are both %q", differ[0], differ[1], a)
		}
	}
}

func TestMatchHost(t *testing.T) {
	for host, want := range map[string]string{
		"Shop.Example":      "shop.example",
		"shop.example:8080": "shop.example",
		"shop.example.":     "shop.example",
		"shop.example.:80":  "shop.example",
		"192.0.2.1:80":      "192.0.2.1",
		"[2001:db8::1]:80":  "2001:db8::1",
		"[2001:db8::1]":     "2001:db8::1",
		"2001:db8::1":       "2001:db8::1",
		"":                  "",
	} {
		if got := matchHost(host); got != want {
			t.Errorf("%q: got %q, want %q", host, got, want)
		}
	}
}
