package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"podgate/stack/link/ns"
)

// frontDoors are who is compared, podgate first.
var frontDoors = []struct {
	name string
	run  func(f *frontDoor, r *rig, dir string) error
}{
	{"podgate", startPodgateDoor},
	{"nginx", peerDoor{tool: "nginx", pkg: "nginx-light", file: "nginx.conf", config: nginxConfig,
		args: func(file string) []string { return []string{"-c", file, "-g", "daemon off;"} }}.start},
	{"HAProxy", peerDoor{tool: "haproxy", pkg: "haproxy", file: "haproxy.cfg", config: haproxyConfig,
		args: func(file string) []string { return []string{"-q", "-db", "-f", file} }}.start},
	{"Caddy", peerDoor{tool: "caddy", pkg: "caddy", file: "Caddyfile", config: caddyConfig,
		args: func(file string) []string { return []string{"run", "--config", file, "--adapter", "caddyfile"} }}.start},
	{"Traefik", peerDoor{tool: "traefik", module: "bench/peers/traefik", build: "github.com/traefik/traefik/v3/cmd/traefik", file: "traefik.yml", config: traefikConfig,
		args: func(file string) []string { return []string{"--configFile=" + file} }}.start},
}

// frontCertificate makes front.crt and front.key, and front.pem of both.
func frontCertificate(dir string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"*.bench.example"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, // what wrk asks for by SNI, and Caddy looks for
		NotBefore:   time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	der, err1 := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	private, err2 := x509.MarshalPKCS8PrivateKey(key)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	crt := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	pk := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "front.crt"), crt, 0o644), os.WriteFile(filepath.Join(dir, "front.key"), pk, 0o644),
		os.WriteFile(filepath.Join(dir, "front.pem"), append(crt, pk...), 0o644),
	)
}

// startPodgateDoor builds and starts the program with two pods.
func startPodgateDoor(f *frontDoor, r *rig, dir string) (err error) {
	exe := filepath.Join(dir, "podgate.exe")
	if _, err := os.Stat(exe); err != nil {
		if out, err := exec.Command("go", "build", "-o", exe, "./cmd/podgate").CombinedOutput(); err != nil {
			return fmt.Errorf("build podgate: %w\n%s", err, out)
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	manifests := filepath.Join(dir, fmt.Sprintf("front-%d.yaml", f.routes))
	text, err := frontManifests(dir, self, f.routes)
	if err != nil {
		return err
	}
	if err := os.WriteFile(manifests, []byte(text), 0o644); err != nil {
		return err
	}
	if f.host, err = r.frontHost(); err != nil {
		return err
	}
	runtime := filepath.Join(dir, fmt.Sprintf("run-%d", f.routes))
	if err := os.Mkdir(runtime, 0o700); err != nil {
		return err
	}
	cmd := f.host.Command(exe, "up", manifests, "--set", "ingress.http="+frontHTTP, "--set", "ingress.https="+frontHTTPS)
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+runtime)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		return err
	}
	f.pid = cmd.Process.Pid
	return f.answers(cmd, &said)
}

// frontManifests are pods, their Service and an Ingress of so many hosts.
func frontManifests(dir, self string, routes int) (string, error) {
	crt, err1 := os.ReadFile(filepath.Join(dir, "front.crt"))
	key, err2 := os.ReadFile(filepath.Join(dir, "front.key"))
	if err := errors.Join(err1, err2); err != nil {
		return "", err
	}
	var b strings.Builder
	for i := range frontPods {
		fmt.Fprintf(&b, "apiVersion: v1\nkind: Pod\nmetadata: {name: web-%d, labels: {app: web}}\nspec: {containers: [{name: c, image: none, command: [%q, httpd, \"0.0.0.0:%s\"]}]}\n---\n", i, self, podPort)
	}
	fmt.Fprintf(&b, "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {selector: {app: web}, ports: [{port: 80, targetPort: %s}]}\n", podPort)
	fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Secret\nmetadata: {name: front}\ntype: kubernetes.io/tls\ndata: {tls.crt: %s, tls.key: %s}\n",
		base64.StdEncoding.EncodeToString(crt), base64.StdEncoding.EncodeToString(key))
	b.WriteString("---\napiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: web, annotations: {nginx.ingress.kubernetes.io/ssl-redirect: \"false\"}}\nspec:\n  tls: [{hosts: [\"*.bench.example\"], secretName: front}]\n  rules:\n")
	for i := range routes {
		fmt.Fprintf(&b, "  - {host: %s, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}\n", frontHost(i))
	}
	return b.String(), nil
}

// frontHost makes a namespace whose ports return quickly.
func (r *rig) frontHost() (*ns.NS, error) {
	host, err := r.ns("front")
	if err != nil {
		return nil, err
	}
	return host, errors.Join(host.Sysctl("net.ipv4.ip_local_port_range", "1024 65535"), host.Sysctl("net.ipv4.tcp_tw_reuse", "1"))
}

// peerDoor is a peer from Debian, or with a module built from that.
type peerDoor struct {
	tool, pkg, file string
	module, build   string // the folder that pins it, and what is built there
	config          func(dir string, routes int, pods []string) string
	args            func(file string) []string
}

// find returns the peer's program.
func (p peerDoor) find(dir string) (string, error) {
	if p.module == "" {
		path, err := exec.LookPath(p.tool)
		if err != nil {
			err = fmt.Errorf("%s is missing; install it: apt-get install -y --no-install-recommends %s", p.tool, p.pkg)
		}
		return path, err
	}
	exe := filepath.Join(dir, p.tool)
	if _, err := os.Stat(exe); err == nil {
		return exe, nil
	}
	cmd := exec.Command("go", "build", "-o", exe, p.build)
	cmd.Dir, cmd.Env = p.module, append(os.Environ(), "GOPROXY=off", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("it cannot be built: run `go build -o /dev/null %s` in %s (%s)", p.build, p.module, firstLine(out))
	}
	return exe, nil
}

// start makes the peer's host, two pods beside it on a bridge, and the peer.
func (p peerDoor) start(f *frontDoor, r *rig, dir string) error {
	path, err := p.find(dir)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if f.host, err = r.frontHost(); err != nil {
		return err
	}
	var ports, pods []string
	for i := range frontPods {
		pod, err := r.ns("pod")
		if err != nil {
			return err
		}
		port, addr := fmt.Sprintf("port%d", i), netip.AddrFrom4([4]byte{10, 244, 0, byte(4 + i)})
		if err := errors.Join(wire(pod, f.host, port, 1500), pod.Addr("eth0", netip.PrefixFrom(addr, 16))); err != nil {
			return err
		}
		ports, pods = append(ports, port), append(pods, addr.String()+":"+podPort)
		cmd := pod.Command(self, "httpd", "0.0.0.0:"+podPort)
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			return err
		}
		r.closers = append(r.closers, func() { cmd.Process.Kill(); cmd.Wait() })
	}
	if err := errors.Join(f.host.Bridge("br0", ports...), f.host.Addr("br0", netip.MustParsePrefix("10.244.0.1/16"))); err != nil {
		return err
	}
	home := filepath.Join(dir, fmt.Sprintf("%s-%d", p.tool, f.routes))
	if err := os.Mkdir(home, 0o755); err != nil {
		return err
	}
	file := filepath.Join(home, p.file)
	if err := os.WriteFile(file, []byte(p.config(dir, f.routes, pods)), 0o644); err != nil {
		return err
	}
	cmd := f.host.Command(path, p.args(file)...)
	cmd.Dir, cmd.Env = home, append(os.Environ(), "HOME="+home, "XDG_DATA_HOME="+home, "XDG_CONFIG_HOME="+home)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID} // its workers end with it
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		return err
	}
	f.pid = cmd.Process.Pid
	return f.answers(cmd, &said)
}

// nginxConfig is what nginx's own documentation gives for a proxy that keeps
// connections: as ingress-nginx configures it, without its Lua.
func nginxConfig(dir string, routes int, pods []string) string {
	var b strings.Builder
	home := filepath.Join(dir, fmt.Sprintf("nginx-%d", routes))
	fmt.Fprintf(&b, "user root;\nworker_processes auto;\npid %s/pid;\nerror_log %s/error.log;\nevents { worker_connections 4096; }\nhttp {\n access_log off; server_names_hash_max_size 8192; server_names_hash_bucket_size 128; keepalive_requests 1000000;\n", home, home)
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		fmt.Fprintf(&b, " %s_temp_path %s/%s;\n", kind, home, kind)
	}
	b.WriteString(" upstream web { keepalive 320; keepalive_requests 1000000;\n")
	for _, p := range pods {
		fmt.Fprintf(&b, "  server %s;\n", p)
	}
	b.WriteString(" }\n proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Host $host; proxy_set_header X-Real-IP $remote_addr; proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Host $host; proxy_set_header X-Forwarded-Port $server_port; proxy_set_header X-Forwarded-Proto $scheme; proxy_set_header X-Request-ID $request_id;\n")
	for i := range routes {
		fmt.Fprintf(&b, " server { listen %s; listen %s ssl http2; server_name %s; ssl_certificate %s/front.crt; ssl_certificate_key %s/front.key; location / { proxy_pass http://web; } }\n",
			frontHTTP, frontHTTPS, frontHost(i), dir, dir)
	}
	b.WriteString("}\n")
	return b.String()
}

func haproxyConfig(dir string, routes int, pods []string) string {
	var hosts, b strings.Builder
	for i := range routes {
		fmt.Fprintf(&hosts, "%s web%d\n", frontHost(i), i)
	}
	list := filepath.Join(dir, fmt.Sprintf("haproxy-%d", routes), "hosts.map")
	os.WriteFile(list, []byte(hosts.String()), 0o644) // HAProxy says so if it is not there
	fmt.Fprintf(&b, "global\n maxconn 4096\ndefaults\n mode http\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n http-reuse always\nfrontend front\n bind %s\n bind %s ssl crt %s/front.pem alpn h2,http/1.1\n option forwardfor\n http-request set-header X-Forwarded-Proto http\n http-request set-header X-Forwarded-Host %%[req.hdr(host)]\n use_backend %%[req.hdr(host),field(1,:),lower,map(%s)]\n",
		frontHTTP, frontHTTPS, dir, list)
	for i := range routes {
		fmt.Fprintf(&b, "backend web%d\n", i)
		for j, p := range pods {
			fmt.Fprintf(&b, " server pod%d %s\n", j, p)
		}
	}
	return b.String()
}

func caddyConfig(dir string, routes int, pods []string) string {
	var b strings.Builder
	b.WriteString("{\n admin off\n auto_https off\n default_sni h0.bench.example\n default_bind 127.0.0.1\n http_port 8080\n https_port 8443\n}\n")
	for i := range routes {
		for _, scheme := range []string{"http", "https"} {
			tls := ""
			if scheme == "https" {
				tls = fmt.Sprintf(" tls %s/front.crt %s/front.key\n", dir, dir)
			}
			fmt.Fprintf(&b, "%s://%s {\n%s reverse_proxy %s\n}\n", scheme, frontHost(i), tls, strings.Join(pods, " "))
		}
	}
	return b.String()
}

// traefikConfig is Traefik with its file provider.
func traefikConfig(dir string, routes int, pods []string) string {
	var b strings.Builder
	b.WriteString("http:\n  routers:\n")
	for i := range routes {
		rule := fmt.Sprintf("rule: \"Host(`%s`)\", service: web", frontHost(i))
		fmt.Fprintf(&b, "    http%d: {%s, entryPoints: [http]}\n    https%d: {%s, entryPoints: [https], tls: {}}\n", i, rule, i, rule)
	}
	b.WriteString("  services:\n    web:\n      loadBalancer:\n        servers:\n")
	for _, p := range pods {
		fmt.Fprintf(&b, "        - url: http://%s\n", p)
	}
	fmt.Fprintf(&b, "tls:\n  stores:\n    default:\n      defaultCertificate: {certFile: %s/front.crt, keyFile: %s/front.key}\n", dir, dir)
	rules := filepath.Join(dir, fmt.Sprintf("traefik-%d", routes), "rules.yml")
	os.WriteFile(rules, []byte(b.String()), 0o644) // Traefik says so if it is not there
	return fmt.Sprintf("global: {checkNewVersion: false, sendAnonymousUsage: false}\nlog: {level: ERROR}\nentryPoints:\n  http: {address: %q}\n  https: {address: %q}\nproviders: {file: {filename: %q, watch: false}}\n", frontHTTP, frontHTTPS, rules)
}
