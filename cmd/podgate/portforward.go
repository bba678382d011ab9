package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/spf13/cobra"

	"podgate/control"
)

// Theory of operation
//
// The command listens; for every connection it asks the instance for a socket
// that is connected to the port on the pod's loopback, and copies. Neither the
// data path nor the gateway's own stack has a part in it, so it works where a
// policy denies everything and for what listens on loopback alone.
//
// A Service or workload is looked up once, as by kubectl, and again when its pod
// is not there any more: so that forwarding goes on when a Deployment rolls.

// forwarder is one run of the command.
//
// Goroutines: one for each listener, two for each connection; run waits for all.
type forwarder struct {
	client   *control.Client
	q        control.ForwardRequest
	out, err io.Writer

	mu     sync.Mutex // of target and of the writers
	target control.ForwardTarget
}

// forwardPort is an argument: [LOCAL:]REMOTE.
type forwardPort struct {
	local  string // a number; "0": any; "": the remote one's
	remote string // a number or a name
}

func newPortForwardCmd() *cobra.Command {
	f := forwarder{}
	var addresses []string
	cmd := &cobra.Command{
		Use:   "port-forward [-n NS] POD|TYPE/NAME [LOCAL:]REMOTE...",
		Short: "Make TCP ports of a pod reachable on this host, whatever policies say",
		Long: `Make TCP ports of a pod reachable on this host, whatever policies say. They are
those of the pod's loopback. TYPE is pod, service, deployment, replicaset,
statefulset or daemonset: one of its pods is taken, and another when that is gone.`,
		Example: `  podgate port-forward -n shop svc/web 8000:80
  podgate port-forward -n shop deploy/api :http
  podgate port-forward batch 5000 6000`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) < 2 {
				return usageError{errors.New("port-forward: name a pod, or TYPE/NAME, and at least one port")}
			}
			return nil
		},
		ValidArgsFunction: completePod(),
	}
	cmd.Flags().StringVarP(&f.q.Namespace, "namespace", "n", "default", "namespace of the pod")
	completeNamespaces(cmd)
	cmd.Flags().StringSliceVar(&addresses, "address", []string{"localhost"}, "addresses to listen on; localhost is 127.0.0.1 and, where there is IPv6, ::1")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		f.q.Target = args[0]
		var ports []forwardPort
		for _, a := range args[1:] {
			p, err := parseForwardPort(a)
			if err != nil {
				return usageError{fmt.Errorf("port-forward: %w", err)}
			}
			ports = append(ports, p)
			f.q.Ports = append(f.q.Ports, p.remote)
		}
		ips, err := listenAddresses(addresses)
		if err != nil {
			return usageError{fmt.Errorf("port-forward: %w", err)}
		}
		c, name, err := client(cmd)
		if err != nil {
			return err
		}
		f.client, f.out, f.err = c, cmd.OutOrStdout(), cmd.ErrOrStderr()
		ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
		defer stop()
		return explain(f.run(ctx, ips, ports), name)
	}
	return cmd
}

func parseForwardPort(word string) (forwardPort, error) {
	local, remote, both := strings.Cut(word, ":")
	if !both {
		local, remote = "", word
	} else if local == "" {
		local = "0"
	}
	number := func(s string) bool { n, err := strconv.Atoi(s); return err == nil && n >= 0 && n <= 65535 }
	_, notNumber := strconv.Atoi(remote)
	if remote == "" || remote == "0" || notNumber == nil && !number(remote) || local != "" && !number(local) {
		return forwardPort{}, fmt.Errorf("%q is not [LOCAL:]REMOTE such as 8000:80, :80 or 80", word)
	}
	return forwardPort{local, remote}, nil
}

// listenAddresses reads --address.
func listenAddresses(words []string) (ips []netip.Addr, err error) {
	for _, w := range words {
		if w == "localhost" {
			ips = append(ips, netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback())
			continue
		}
		ip, err := netip.ParseAddr(w)
		if err != nil {
			return nil, fmt.Errorf("--address %s: want an IP address or localhost", w)
		}
		ips = append(ips, ip)
	}
	return ips, nil
}

func (f *forwarder) run(ctx context.Context, ips []netip.Addr, ports []forwardPort) (err error) {
	if err := f.client.Call(ctx, "forward", f.q, &f.target); err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for i, p := range ports {
		local := cmp.Or(p.local, strconv.Itoa(int(f.target.Ports[i].Asked)))
		listeners, err := listenAll(ips, local)
		if err != nil {
			return err
		}
		for _, ln := range listeners {
			context.AfterFunc(ctx, func() { ln.Close() })
			fmt.Fprintf(f.out, "Forwarding from %s -> %d\n", ln.Addr(), f.target.Ports[i].Port)
			wg.Go(func() {
				for {
					c, err := ln.Accept()
					if err != nil {
						return
					}
					wg.Go(func() { f.serve(ctx, c, i) })
				}
			})
		}
	}
	<-ctx.Done()
	return nil
}

// listenAll listens at one port of all addresses, the same where any will do. Of
// the loopback pair one is enough.
func listenAll(ips []netip.Addr, port string) (listeners []net.Listener, err error) {
	defer func() {
		if err != nil {
			for _, ln := range listeners {
				ln.Close()
			}
		}
	}()
	var failed error
	for _, ip := range ips {
		ln, err := net.Listen("tcp", net.JoinHostPort(ip.String(), port))
		if err != nil {
			if !ip.IsLoopback() {
				return listeners, err
			}
			failed = err
			continue
		}
		listeners = append(listeners, ln)
		if port == "0" {
			_, port, _ = net.SplitHostPort(ln.Addr().String())
		}
	}
	if len(listeners) == 0 {
		if errors.Is(failed, syscall.EACCES) {
			return nil, fmt.Errorf("%w: choose another local port, as in 8000:80", failed)
		}
		return nil, failed
	}
	return listeners, nil
}

// serve forwards one connection to the i-th port.
func (f *forwarder) serve(ctx context.Context, c net.Conn, i int) {
	defer c.Close()
	_, port, _ := net.SplitHostPort(c.LocalAddr().String())
	f.say(f.out, "Handling connection for "+port)
	to, err := f.dial(ctx, i)
	if err != nil {
		if ctx.Err() == nil {
			f.say(f.err, fmt.Sprintf("podgate: port %s: %v", port, err))
		}
		return
	}
	splice(ctx, c, to)
}

func (f *forwarder) say(to io.Writer, line string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fmt.Fprintln(to, line)
}

// dial connects to the pod, or to the one that is there in its place.
func (f *forwarder) dial(ctx context.Context, i int) (net.Conn, error) {
	f.mu.Lock()
	at := f.target
	f.mu.Unlock()
	to, err := f.client.Dial(ctx, control.DialRequest{Namespace: f.q.Namespace, Pod: at.Pod, Port: at.Ports[i].Port})
	if err == nil {
		return to, nil
	}
	var now control.ForwardTarget
	if e := f.client.Call(ctx, "forward", f.q, &now); e != nil || now.Pod == at.Pod && slices.Equal(now.Ports, at.Ports) {
		return nil, err
	}
	f.mu.Lock()
	f.target = now
	f.mu.Unlock()
	f.say(f.err, fmt.Sprintf("podgate: pod %s is not there any more, forwarding to %s", at.Pod, now.Pod))
	return f.client.Dial(ctx, control.DialRequest{Namespace: f.q.Namespace, Pod: now.Pod, Port: now.Ports[i].Port})
}
