package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"podgate/control"
	"podgate/ingress"
	"podgate/stack"
)

func newTraceCmd() *cobra.Command {
	q := control.TraceRequest{}
	cmd := &cobra.Command{
		Use:   "trace [-n NS] POD tcp|udp|sctp|icmp DST[:PORT] | URL",
		Short: "Say what happens to such a packet, or to a request to Ingress, and why",
		Long: `Say what happens to a packet of a pod, stage by stage, by running the decision
that real packets get. DST is an address, or a Service's or pod's name. Exits
with 0 if the packet would be delivered, with 1 if not.

With a URL of http or https, say which rule of which Ingress a request for it
matches, why the others do not, and where it goes. Exits with 1 if podgate
answers it itself.`,
		Example: `  podgate trace -n shop batch tcp web:80
  podgate trace -n shop batch tcp 10.244.0.9:5432
  podgate trace -n shop batch icmp 192.0.2.1
  podgate trace http://shop.example/cart`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				if u, err := url.Parse(args[0]); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
					return fmt.Errorf("trace: %q is not a URL such as http://shop.example/cart", args[0])
				}
				return nil
			}
			return cobra.ExactArgs(3)(cmd, args)
		},
	}
	cmd.Flags().StringVarP(&q.Namespace, "namespace", "n", "default", "namespace of the pod")
	cmd.Flags().StringVar(&q.Interface, "interface", "", "interface of the pod that sends, such as `net1`; default: as its routes would have it")
	cmd.ValidArgsFunction = completePod("tcp", "udp", "sctp", "icmp")
	completeNamespaces(cmd)
	out := outputFlag(cmd.Flags(), "text", "json")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 1 {
			return traceURL(cmd, args[0], *out == "json")
		}
		q.Pod, q.Proto = strings.TrimPrefix(args[0], "pod/"), strings.ToLower(args[1])
		var err error
		if q.Target, q.Port, err = splitTarget(q.Proto, args[2]); err != nil {
			return usageError{err}
		}
		res, err := call[stack.TraceResult](cmd, "trace", q)
		if err != nil {
			return err
		}
		if *out == "json" {
			err = printJSON(cmd.OutOrStdout(), res)
		} else {
			_, err = fmt.Fprintln(cmd.OutOrStdout(), strings.TrimRight(res.String(), "\n"))
		}
		if err == nil && !res.Delivered() {
			return exitCode(1)
		}
		return err
	}
	return cmd
}

func traceURL(cmd *cobra.Command, target string, asJSON bool) error {
	res, err := call[ingress.Trace](cmd, "trace", control.TraceRequest{URL: target})
	if err != nil {
		return err
	}
	if asJSON {
		err = printJSON(cmd.OutOrStdout(), res)
	} else {
		_, err = fmt.Fprintln(cmd.OutOrStdout(), strings.Join(res.Lines, "\n"))
	}
	if err == nil && res.Status != 0 {
		return exitCode(1)
	}
	return err
}

func splitTarget(proto, target string) (string, uint16, error) {
	if !slices.Contains([]string{"tcp", "udp", "sctp", "icmp"}, proto) {
		return "", 0, fmt.Errorf("trace: %q is none of tcp, udp, sctp, icmp", proto)
	}
	if proto == "icmp" {
		return strings.Trim(target, "[]"), 0, nil
	}
	host, port, err := net.SplitHostPort(target)
	if err != nil {
		return "", 0, fmt.Errorf("trace: %s needs DST:PORT, [IPV6]:PORT for an IPv6 address; got %q", proto, target)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return "", 0, fmt.Errorf("trace: %q is not a port from 1 to 65535", port)
	}
	return host, uint16(n), nil
}

func newFlowsCmd() *cobra.Command {
	q := control.FlowsRequest{}
	cmd := &cobra.Command{
		Use: "flows [--follow] [--dropped] [--pod NS/POD]", Short: "Conversations, or what was dropped lately, with names", Args: cobra.NoArgs,
		Example: `  podgate flows --pod shop/batch
  podgate flows --dropped
  podgate flows --follow --dropped`,
	}
	cmd.Flags().BoolVar(&q.Dropped, "dropped", false, "packets that were not forwarded instead")
	cmd.Flags().StringVar(&q.Pod, "pod", "", "only those of a pod, `NS/POD`")
	follow := cmd.Flags().BoolP("follow", "f", false, "go on with what is new: conversations that open, change their state or end, or drops")
	out := outputFlag(cmd.Flags(), "table", "wide", "json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if q.Pod != "" && strings.Count(q.Pod, "/") != 1 {
			return usageError{errors.New("flows: --pod takes NAMESPACE/POD")}
		}
		if *follow {
			return followFlows(cmd, q, *out == "json")
		}
		items, err := call[[]json.RawMessage](cmd, "flows", q)
		if err != nil {
			return err
		}
		p := &getPrinter{w: cmd.OutOrStdout(), wide: *out == "wide"}
		switch {
		case *out == "json":
			return printJSON(p.w, nonNil(items))
		case q.Dropped:
			return p.drops(items)
		}
		return p.flows(items)
	}
	return cmd
}

func (p *getPrinter) flows(items []json.RawMessage) error {
	flows, err := decodeAll[stack.FlowRecord](items)
	if err != nil {
		return err
	}
	heads := []string{"PROTO", "FROM", "TO", "SERVICE", "BACKEND", "STATE", "PACKETS", "BYTES", "IDLE"}
	if p.wide {
		heads = append(heads, "SOURCE", "DESTINATION", "VERDICT", "AGE")
	}
	t := newTable(p.w, heads...)
	for _, f := range flows {
		row := []string{f.Proto, orAddr(f.SrcPod, f.Src), orAddr(f.DstPod, f.Dst), f.Service, f.Backend, f.State,
			fmt.Sprintf("%d/%d", f.Packets, f.ReplyPackets), fmt.Sprintf("%d/%d", f.Bytes, f.ReplyBytes), f.Idle.Round(time.Second).String()}
		if p.wide {
			row = append(row, f.Src, f.Dst, f.Verdict, f.Age.Round(time.Second).String())
		}
		t.row(row...)
	}
	return t.flush()
}

// orAddr prefers a pod's name, with the port of its address.
func orAddr(pod, addr string) string {
	if pod == "" {
		return addr
	}
	if _, port, err := net.SplitHostPort(addr); err == nil {
		return pod + ":" + port
	}
	return pod
}

func (p *getPrinter) drops(items []json.RawMessage) error {
	drops, err := decodeAll[stack.DropRecord](items)
	if err != nil {
		return err
	}
	t := newTable(p.w, "TIME", "PROTO", "FROM", "TO", "VERDICT", "REASON", "POLICIES")
	for _, d := range drops {
		t.row(d.Time.Format("15:04:05.000"), d.Proto, orAddr(d.SrcPod, d.Src), orAddr(d.DstPod, d.Dst), d.Verdict, d.Reason, strings.Join(d.Policies, ","))
	}
	return t.flush()
}

func (p *getPrinter) ports(items []json.RawMessage) error {
	ports, err := decodeAll[stack.PortRecord](items)
	if err != nil {
		return err
	}
	t := newTable(p.w, "ID", "POD", "NAME", "MAC", "ADDRESSES", "MTU", "RX-FRAMES", "RX-BYTES", "TX-FRAMES", "TX-BYTES", "DROPPED", "TX-LOST", "NETWORK")
	for _, r := range ports {
		pod := r.Pod
		if r.Local {
			pod = "(gateway)"
		}
		t.row(fmt.Sprint(r.ID), pod, r.Name, r.MAC, strings.Join(r.Addrs, ","), fmt.Sprint(r.MTU), fmt.Sprint(r.RxFrames), fmt.Sprint(r.RxBytes),
			fmt.Sprint(r.TxFrames), fmt.Sprint(r.TxBytes), fmt.Sprint(r.Dropped), fmt.Sprint(r.TxLost), r.Network)
	}
	return t.flush()
}

func (p *getPrinter) routes(items []json.RawMessage) error {
	routes, err := decodeAll[routeRecord](items)
	if err != nil {
		return err
	}
	t := newTable(p.w, "DESTINATION", "VIA", "NOTE")
	for _, r := range routes {
		t.row(r.Destination, r.Via, r.Note)
	}
	return t.flush()
}
