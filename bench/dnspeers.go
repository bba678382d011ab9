package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	mdns "github.com/miekg/dns"

	"podgate/control"
	"podgate/stack/link/ns"
)

// dnsStartPodgate starts the program with n Services and a pod.
func dnsStartPodgate(r *rig, dir string, n int) (*dnsSystem, error) {
	exe := filepath.Join(dir, "podgate.exe")
	if _, err := os.Stat(exe); err != nil {
		if out, err := exec.Command("go", "build", "-o", exe, "./cmd/podgate").CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build podgate: %w\n%s", err, out)
		}
	}
	manifests, runtime := filepath.Join(dir, fmt.Sprintf("many-%d.yaml", n)), filepath.Join(dir, fmt.Sprintf("run-%d", n))
	self, err1 := os.Executable()
	host, err2 := r.ns("host")
	if err := errors.Join(err1, err2, os.WriteFile(manifests, []byte(dnsManifests(n)), 0o644), os.Mkdir(runtime, 0o700)); err != nil {
		return nil, err
	}
	environment := append(os.Environ(), "XDG_RUNTIME_DIR="+runtime)
	// Both end with the namespace, and so with this process, however that ends.
	up := host.Command(self, "dnsupstream")
	gateway := host.Command(exe, "up", manifests, "--set", "dns.upstreams=127.0.0.1"+dnsPort, "--set", "ingress.http=", "--set", "ingress.https=", "--set", "log.level=warn")
	gateway.Env, gateway.Stderr = environment, os.Stderr
	if err := errors.Join(host.Up("lo"), up.Start(), gateway.Start()); err != nil {
		return nil, err
	}
	r.closers = append(r.closers, func() {
		gateway.Process.Signal(syscall.SIGTERM)
		gateway.Wait()
		up.Process.Kill()
		up.Wait()
	})
	to := control.NewClient(filepath.Join(runtime, "podgate", "default", "control.sock"))
	s := &dnsSystem{
		name: fmt.Sprintf(dnsPodgate, n), at: "10.96.0.10", pid: gateway.Process.Pid, start: (*exec.Cmd).Start,
		command: func(name string, args ...string) *exec.Cmd {
			cmd := exec.Command(exe, append([]string{"exec", "-n", "many", "client", "--", name}, args...)...)
			cmd.Env = environment
			return cmd
		},
		change: func(name string, i int) error {
			var done control.ApplyResult
			q := control.ApplyRequest{Files: []control.File{{Name: name, Data: dnsFresh(name, i)}}}
			if err := to.Call(context.Background(), "apply", q, &done); err != nil {
				return err
			}
			for _, c := range done.Changes {
				if c.Error {
					return errors.New(c.Text)
				}
			}
			return nil
		},
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if st, err := to.Status(context.Background()); err == nil && st.Pods.Ready == 1 && st.Services > n {
			return s, nil
		}
		if time.Now().After(deadline) {
			return nil, errors.New("it is not ready after a minute")
		}
	}
}

// dnsStartCoreDNS starts CoreDNS behind a veth.
func dnsStartCoreDNS(r *rig, dir string, n int) (*dnsSystem, error) {
	exe := filepath.Join(dir, "coredns")
	build := exec.Command("go", "build", "-o", exe, ".")
	build.Dir, build.Env = "bench/peers/coredns", append(os.Environ(), "GOPROXY=off")
	if _, err := os.Stat(exe); err != nil {
		if out, err := build.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("cannot be built: run `go mod download` in bench/peers/coredns (%s)", firstLine(out))
		}
	}
	client, err1 := r.ns("client")
	server, err2 := r.ns("server")
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	corefile := filepath.Join(dir, "Corefile")
	text := ".:53 {\n bind 10.244.0.2\n errors\n kubernetes cluster.local in-addr.arpa ip6.arpa {\n endpoint http://127.0.0.1:8001\n pods insecure\n ttl 30\n }\n forward . 127.0.0.1" + dnsPort + "\n cache 30\n loadbalance\n}\n"
	self, err := os.Executable()
	err = errors.Join(err, ns.Veth(client, "eth0", server, "eth0"), client.Up("eth0"), server.Up("eth0"), server.Up("lo"),
		client.Addr("eth0", netip.MustParsePrefix("10.244.0.4/16")), server.Addr("eth0", netip.MustParsePrefix("10.244.0.2/16")),
		os.WriteFile(corefile, []byte(text), 0o644))
	if err != nil {
		return nil, err
	}
	var coredns *ns.Cmd
	for _, args := range [][]string{{exe, "apiserver", "-services", strconv.Itoa(n)}, {self, "dnsupstream"}, {exe, "-quiet", "-conf", corefile}} {
		coredns = server.Command(args[0], args[1:]...)
		coredns.Stderr = os.Stderr
		if err := coredns.Start(); err != nil {
			return nil, err
		}
		process := coredns
		r.closers = append(r.closers, func() { process.Process.Kill(); process.Wait() })
	}
	s := &dnsSystem{
		name: fmt.Sprintf(dnsCoreDNS, n), at: "10.244.0.2", pid: coredns.Process.Pid, command: exec.Command,
		start: func(cmd *exec.Cmd) error { in := client.Command(cmd.Path); in.Cmd = cmd; return in.Start() },
		change: func(name string, i int) error {
			return server.Do(func() error { // by hand: package http would dial on another thread
				c, err := net.Dial("tcp", "127.0.0.1:8001")
				if err != nil {
					return err
				}
				defer c.Close()
				fmt.Fprintf(c, "POST /fresh?name=%s&ip=%s&ports=%d HTTP/1.0\r\n\r\n", name, dnsFreshIP(i), dnsFreshPorts)
				if said, err := bufio.NewReader(c).ReadString('\n'); !strings.Contains(said, " 200 ") {
					return fmt.Errorf("the API server says %q, %v", said, err)
				}
				return nil
			})
		},
	}
	return s, client.Do(func() error { return dnsReady(s.at, fmt.Sprintf("s%d.many.svc.cluster.local.", n-1)) })
}

// dnsReady waits until a server knows a name.
func dnsReady(at, name string) error {
	for deadline := time.Now().Add(30 * time.Second); ; {
		m, _, err := (&mdns.Client{Timeout: time.Second}).Exchange(new(mdns.Msg).SetQuestion(name, mdns.TypeA), at+":53")
		if err == nil && len(m.Answer) > 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s does not know %s: %v", at, name, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// awaitChange makes a Service and returns how long it took, from the moment that
// the change was sent, until the pod had an answer about it, in milliseconds.
func (s *dnsSystem) awaitChange(i int) (float64, error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	name := fmt.Sprintf("fresh-%d", i)
	cmd := s.command(self, "dnsawait", "-server", s.at, "-name", name)
	cmd.Stderr = os.Stderr
	said, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := s.start(cmd); err != nil {
		return 0, err
	}
	defer cmd.Wait()
	lines := bufio.NewScanner(said)
	if !lines.Scan() || lines.Text() != "ready" {
		return 0, fmt.Errorf("the asker says %q", lines.Text())
	}
	start := time.Now()
	if err := s.change(name, i); err != nil {
		cmd.Process.Kill()
		return 0, err
	}
	if !lines.Scan() {
		return 0, errors.New("there was no answer")
	}
	at, err := strconv.ParseInt(lines.Text(), 10, 64)
	return float64(time.Unix(0, at).Sub(start)) / float64(time.Millisecond), err
}

func dnsFreshIP(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 96, 200, byte(10 + i)}) }

// dnsFresh is the manifest of a Service that is made while others ask for it.
func dnsFresh(name string, i int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: v1\nkind: Service\nmetadata: {name: %s, namespace: many}\nspec:\n  clusterIP: %s\n  ports:\n", name, dnsFreshIP(i))
	for p := range dnsFreshPorts {
		fmt.Fprintf(&b, "  - {name: p%d, port: %d}\n", p, 1+p)
	}
	return b.String()
}

func firstLine(b []byte) string {
	line, _, _ := strings.Cut(strings.TrimSpace(string(b)), "\n")
	return line
}

// dnsManifests are n Services, a headless one with 100 endpoints, and the pod.
func dnsManifests(n int) string {
	var b strings.Builder
	b.WriteString("apiVersion: v1\nkind: Pod\nmetadata: {name: client, namespace: many}\nspec: {enableServiceLinks: false, containers: [{name: c, image: none}]}\n")
	for i := range n {
		fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Service\nmetadata: {name: s%d, namespace: many}\nspec: {clusterIP: 10.96.%d.%d, ports: [{name: http, port: 80}]}\n", i, 1+i/250, i%250)
	}
	b.WriteString("---\napiVersion: v1\nkind: Service\nmetadata: {name: headless, namespace: many}\nspec: {clusterIP: None, ports: [{name: http, port: 80}]}\n")
	b.WriteString("---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: headless-1, namespace: many, labels: {kubernetes.io/service-name: headless}}\naddressType: IPv4\nports: [{name: http, port: 80}]\nendpoints:\n")
	for i := range 100 {
		fmt.Fprintf(&b, "- addresses: [10.244.200.%d]\n", 1+i)
	}
	return b.String()
}
