package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/net/websocket"
)

// workloadImage is the image name that stands for `podgate workload`.
const workloadImage = "podgate.dev/workload"

// newWorkloadCmd is what the examples' pods run: servers that say who asked and
// who answers, and clients, in the way of Kubernetes' agnhost.
func newWorkloadCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "workload",
		Short: "Small servers and clients to run inside pods",
		Example: `  podgate workload http --port 8080 --upstream http://api.shop
  podgate workload echo --port 5432
  podgate workload connect db:5432 --timeout 2s
  podgate workload load http://web --every 1s`,
	}
	cmd.AddCommand(workloadHTTP(), workloadEcho(), workloadConnect(), workloadFetch(), workloadLoad(), workloadPause())
	return cmd
}

// reply is what the http workload answers. Client is the peer that the pod's own
// kernel saw.
type reply struct {
	Pod          string `json:"pod"`
	Namespace    string `json:"namespace,omitempty"`
	Server       string `json:"server"`
	Client       string `json:"client"`
	Host         string `json:"host"`
	Method       string `json:"method"`
	Path         string `json:"path"`
	ForwardedFor string `json:"forwardedFor,omitempty"`
	Proto        string `json:"forwardedProto,omitempty"`
	Upstream     *reply `json:"upstream,omitempty"`
	UpstreamErr  string `json:"upstreamError,omitempty"`
	Database     string `json:"database,omitempty"` // the greeting of an echo workload, or why there was none
}

func (r *reply) text(w io.Writer, indent string) {
	p := func(k, v string) {
		if v != "" {
			fmt.Fprintf(w, "%s%-14s %s\n", indent, k, v)
		}
	}
	p("pod", r.Pod)
	p("namespace", r.Namespace)
	p("server", r.Server)
	p("client", r.Client)
	p("host", r.Host)
	p("request", r.Method+" "+r.Path)
	p("forwarded-for", r.ForwardedFor)
	p("upstream-error", r.UpstreamErr)
	p("database", r.Database)
	if r.Upstream != nil {
		fmt.Fprintf(w, "%supstream\n", indent)
		r.Upstream.text(w, indent+"  ")
	}
}

func workloadHTTP() *cobra.Command {
	var port uint16
	var upstream, database string
	var delay time.Duration
	cmd := &cobra.Command{
		Use:   "http",
		Short: "Answer HTTP with who asked and who answers; /healthz, /readyz, /ws, /status/CODE",
		Args:  cobra.NoArgs,
	}
	cmd.Flags().Uint16Var(&port, "port", 8080, "port to listen on")
	cmd.Flags().StringVar(&upstream, "upstream", "", "`URL` to ask as well; its answer becomes part of ours")
	cmd.Flags().StringVar(&database, "database", "", "`HOST:PORT` of an echo workload to greet as well")
	cmd.Flags().DurationVar(&delay, "ready-after", 0, "answer /readyz with 503 for so long")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		ln, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "http on %s\n", ln.Addr())
		srv := &http.Server{Handler: whoami(upstream, database, time.Now().Add(delay)), ReadHeaderTimeout: 10 * time.Second}
		return serveUntil(ctx, srv, ln)
	}
	return cmd
}

// lameDuck is how long a server that is told to stop goes on accepting: who was
// sent here before the endpoint was taken out may still be on the way.
const lameDuck = 100 * time.Millisecond

// serveUntil serves until ctx ends, and then what has begun, for at most 5 s.
func serveUntil(ctx context.Context, srv *http.Server, ln net.Listener) error {
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-served:
		return err
	case <-time.After(lameDuck):
	}
	grace, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return srv.Shutdown(grace)
}

func whoami(upstream, database string, readyAt time.Time) http.Handler {
	pod, _ := os.Hostname()
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		if time.Now().Before(readyAt) {
			http.Error(w, "not yet", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("/hostname", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, pod) })
	mux.HandleFunc("/clientip", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.RemoteAddr) })
	mux.HandleFunc("/status/{code}", func(w http.ResponseWriter, r *http.Request) {
		code := 0
		if fmt.Sscanf(r.PathValue("code"), "%d", &code); code < 200 || code > 599 {
			code = http.StatusBadRequest
		}
		w.WriteHeader(code)
	})
	mux.Handle("/ws", websocket.Server{Handler: func(c *websocket.Conn) { io.Copy(c, c) }})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		a := reply{
			Pod: pod, Namespace: os.Getenv("POD_NAMESPACE"), Client: r.RemoteAddr, Host: r.Host, Method: r.Method, Path: r.URL.RequestURI(),
			ForwardedFor: r.Header.Get("X-Forwarded-For"), Proto: r.Header.Get("X-Forwarded-Proto"),
		}
		if local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
			a.Server = local.String()
		}
		if upstream != "" {
			a.ask(r.Context(), upstream)
		}
		if database != "" {
			a.Database = greet(database)
		}
		w.Header().Set("X-Pod", pod)
		if strings.Contains(r.Header.Get("Accept"), "json") {
			w.Header().Set("Content-Type", "application/json")
			json.NewEncoder(w).Encode(a)
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		a.text(w, "")
	})
	return mux
}

func (r *reply) ask(ctx context.Context, url string) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err == nil {
		req.Header.Set("Accept", "application/json")
		var resp *http.Response
		if resp, err = http.DefaultClient.Do(req); err == nil {
			defer resp.Body.Close()
			r.Upstream = new(reply)
			err = json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(r.Upstream)
		}
	}
	if err != nil {
		r.Upstream, r.UpstreamErr = nil, err.Error()
	}
}

// greet returns the first line that an echo workload says.
func greet(addr string) string {
	c, err := net.DialTimeout("tcp", addr, 3*time.Second)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(3 * time.Second))
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(line)
}

func workloadEcho() *cobra.Command {
	var port uint16
	cmd := &cobra.Command{Use: "echo", Short: "Echo TCP and UDP on one port, a greeting with the peer's address first (TCP)", Args: cobra.NoArgs}
	cmd.Flags().Uint16Var(&port, "port", 7, "port to listen on")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		ln, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		pc, err := net.ListenPacket("udp", fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "echo on %s, tcp and udp\n", ln.Addr())
		context.AfterFunc(ctx, func() { ln.Close(); pc.Close() })
		go echoPackets(pc)
		for {
			c, err := ln.Accept()
			if err != nil {
				return nil
			}
			go func() {
				defer c.Close()
				host, _ := os.Hostname()
				fmt.Fprintf(c, "%s answers %s\n", host, c.RemoteAddr())
				io.Copy(c, c)
			}()
		}
	}
	return cmd
}

func echoPackets(pc net.PacketConn) {
	buf := make([]byte, 65535)
	for {
		n, from, err := pc.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			pc.WriteTo(buf[:n], from)
		}
	}
}

// Exit codes of connect, as agnhost words them on stderr.
const (
	connectTimeout = "TIMEOUT"
	connectRefused = "REFUSED"
	connectDNS     = "DNS"
	connectOther   = "OTHER"
)

func workloadConnect() *cobra.Command {
	var timeout time.Duration
	var network string
	cmd := &cobra.Command{
		Use:   "connect HOST:PORT",
		Short: "Connect and say nothing, or print TIMEOUT, REFUSED, DNS or OTHER and exit 1",
		Args:  cobra.ExactArgs(1),
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 2*time.Second, "give up after")
	cmd.Flags().StringVar(&network, "protocol", "tcp", "tcp or udp (udp sends a datagram and waits for its echo)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		err := connectOnce(network, args[0], timeout)
		if err == nil {
			return nil
		}
		word := connectOther
		var dnsErr *net.DNSError
		var netErr net.Error
		switch {
		case errors.As(err, &dnsErr):
			word = connectDNS
		case errors.Is(err, syscall.ECONNREFUSED):
			word = connectRefused
		case errors.As(err, &netErr) && netErr.Timeout():
			word = connectTimeout
		}
		return fmt.Errorf("%s: %w", word, err)
	}
	return cmd
}

func connectOnce(network, addr string, timeout time.Duration) error {
	c, err := net.DialTimeout(network, addr, timeout)
	if err != nil {
		return err
	}
	defer c.Close()
	if network != "udp" {
		return nil
	}
	c.SetDeadline(time.Now().Add(timeout))
	if _, err := c.Write([]byte("podgate")); err != nil {
		return err
	}
	_, err = c.Read(make([]byte, 64))
	return err
}

func workloadFetch() *cobra.Command {
	var timeout time.Duration
	var host string
	cmd := &cobra.Command{Use: "fetch URL", Short: "GET a URL and print the body", Args: cobra.ExactArgs(1)}
	cmd.Flags().DurationVar(&timeout, "timeout", 5*time.Second, "give up after")
	cmd.Flags().StringVar(&host, "host", "", "Host header")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		req, err := http.NewRequestWithContext(cmd.Context(), "GET", args[0], nil)
		if err != nil {
			return err
		}
		req.Host = host
		resp, err := (&http.Client{Timeout: timeout}).Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if _, err := io.Copy(cmd.OutOrStdout(), resp.Body); err != nil {
			return err
		}
		if resp.StatusCode >= 400 {
			return fmt.Errorf("%s: %s", args[0], resp.Status)
		}
		return nil
	}
	return cmd
}

func workloadLoad() *cobra.Command {
	var every, report, timeout time.Duration
	var count int
	cmd := &cobra.Command{Use: "load URL", Short: "GET a URL again and again; report how it goes", Args: cobra.ExactArgs(1)}
	cmd.Flags().DurationVar(&every, "every", time.Second, "time between requests")
	cmd.Flags().DurationVar(&report, "report", 10*time.Second, "time between reports")
	cmd.Flags().DurationVar(&timeout, "timeout", 5*time.Second, "give a request up after")
	cmd.Flags().IntVar(&count, "count", 0, "stop after so many requests; 0: never")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		return load(ctx, cmd.OutOrStdout(), args[0], every, report, timeout, count)
	}
	return cmd
}

func load(ctx context.Context, out io.Writer, url string, every, report, timeout time.Duration, count int) error {
	client := &http.Client{Timeout: timeout}
	var good, bad atomic.Int64
	var lastErr atomic.Value
	var wg sync.WaitGroup
	say := func() {
		fmt.Fprintf(out, "%d ok, %d failed", good.Load(), bad.Load())
		if err := lastErr.Load(); err != nil {
			fmt.Fprintf(out, ", last: %v", err)
		}
		fmt.Fprintln(out)
	}
	defer func() { wg.Wait(); say() }()
	tick, tell := time.NewTicker(every), time.NewTicker(report)
	defer tick.Stop()
	defer tell.Stop()
	for n := 0; count == 0 || n < count; n++ {
		wg.Go(func() {
			resp, err := client.Get(url)
			if err == nil {
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if resp.StatusCode >= 400 {
					err = errors.New(resp.Status)
				}
			}
			if err != nil {
				bad.Add(1)
				lastErr.Store(err.Error())
				return
			}
			good.Add(1)
		})
		select {
		case <-ctx.Done():
			return nil
		case <-tell.C:
			say()
		case <-tick.C:
		}
	}
	return nil
}

func workloadPause() *cobra.Command {
	return &cobra.Command{
		Use: "pause", Short: "Do nothing until told to stop", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			<-ctx.Done()
			return nil
		},
	}
}
