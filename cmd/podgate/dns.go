package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strings"

	mdns "github.com/miekg/dns"
	"github.com/spf13/cobra"

	"podgate/control"
	"podgate/dns"
)

// dnsAnswer is what a pod's resolver gets for a name, step by step.
type dnsAnswer struct {
	Pod         string          `json:"pod"`
	Nameservers []string        `json:"nameservers"`
	Searches    []string        `json:"searches"`
	Ndots       int             `json:"ndots"`
	Hosts       string          `json:"hosts,omitempty"` // the address in the pod's /etc/hosts, which is asked first
	Steps       []dns.Explained `json:"steps"`
	Elsewhere   bool            `json:"elsewhere,omitempty"` // the pod's nameservers are not the cluster's
}

// found says whether the name has data of that type.
func (a *dnsAnswer) found() bool {
	return a.Hosts != "" || len(a.Steps) > 0 && a.Steps[len(a.Steps)-1].Found
}

func newDNSCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "dns", Short: "Ask the cluster's DNS as a pod does",
		Example: `  podgate dns query web api`,
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newDNSQueryCmd())
	return cmd
}

func newDNSQueryCmd() *cobra.Command {
	q := control.DNSRequest{}
	cmd := &cobra.Command{
		Use:   "query [-n NS] POD NAME [TYPE]",
		Short: "Say what a pod's resolver gets for a name, and why",
		Long: `Say what a pod's resolver gets for a name, and why: the names of its search list
in the order in which it asks for them, the zone and the object that each is of,
what the cache knows, and the answer. A name with a dot at its end is asked for
as it is. TYPE is A unless it is given, PTR for an address. The queries run as
real ones do, and are not counted. Exits with 1 if there is no such data.`,
		Example: `  podgate dns query -n shop batch web
  podgate dns query -n shop batch _http._tcp.web.shop.svc.cluster.local SRV
  podgate dns query -n shop batch 10.96.0.10
  podgate dns query -n shop batch www.example.com AAAA -o json`,
		Args: cobra.RangeArgs(2, 3),
	}
	cmd.Flags().StringVarP(&q.Namespace, "namespace", "n", "default", "namespace of the pod")
	cmd.ValidArgsFunction = completePod()
	completeNamespaces(cmd)
	out := outputFlag(cmd.Flags(), "text", "json")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		q.Pod, q.Name, q.Type = strings.TrimPrefix(args[0], "pod/"), args[1], "A"
		if addr, err := netip.ParseAddr(q.Name); err == nil {
			q.Type = "PTR"
			if q.Name, err = mdns.ReverseAddr(addr.String()); err != nil {
				return usageError{fmt.Errorf("dns query: %w", err)}
			}
		}
		if len(args) == 3 {
			q.Type = strings.ToUpper(args[2])
		}
		if _, ok := mdns.StringToType[q.Type]; !ok {
			return usageError{fmt.Errorf("dns query: %q is no type of records such as A, AAAA, SRV, PTR, TXT", args[2])}
		}
		if _, ok := mdns.IsDomainName(q.Name); !ok || strings.HasPrefix(q.Name, ".") && q.Name != "." {
			return usageError{fmt.Errorf("dns query: %q is no domain name", q.Name)}
		}
		a, err := call[dnsAnswer](cmd, "dns", q)
		if err != nil {
			return err
		}
		if *out == "json" {
			err = printJSON(cmd.OutOrStdout(), a)
		} else {
			a.print(cmd.OutOrStdout())
		}
		if err == nil && !a.found() {
			return exitCode(1)
		}
		return err
	}
	return cmd
}

// print writes the steps for people.
func (a *dnsAnswer) print(w io.Writer) {
	fmt.Fprintf(w, "Pod %s asks %s; search %s; ndots %d\n", a.Pod, cmp.Or(strings.Join(a.Nameservers, ", "), "nobody"), cmp.Or(strings.Join(a.Searches, " "), "none"), a.Ndots)
	switch {
	case a.Hosts != "":
		fmt.Fprintf(w, "  %s, from the pod's /etc/hosts: DNS is not asked\n", a.Hosts)
		return
	case a.Elsewhere:
		fmt.Fprintln(w, "  its nameservers are not the cluster's: podgate does not answer it")
		return
	}
	for _, e := range a.Steps {
		fmt.Fprintf(w, "%s %s: %s", e.Name, e.Type, e.Rcode)
		if e.Rcode == "NOERROR" && !e.Found {
			fmt.Fprint(w, ", no data of this type")
		}
		fmt.Fprintln(w)
		for _, l := range []struct{ what, text string }{
			{"Corefile", e.Block}, {"rewritten", e.Rewritten}, {"zone", e.Zone}, {"object", e.Why},
			{"upstreams", strings.Join(e.Upstreams, ", ")}, {"cache", e.Cache}, {"from", fmt.Sprintf("%s, %d us", e.From, e.Micros)}, {"error", e.Error},
		} {
			if l.text != "" {
				fmt.Fprintf(w, "  %-10s %s\n", l.what, l.text)
			}
		}
		for _, rr := range e.Answers {
			fmt.Fprintf(w, "  %s\n", rr)
		}
	}
}

// dnsRecord is a line of `get dns`: a pod that asked, or a name that does not exist.
type dnsRecord struct {
	Pod string `json:"pod,omitempty"` // of the client, or that asked for the name last
	*dns.Asked
	*dns.Miss
}

// dns prints who asked, and below it the names that were asked for in vain.
func (p *getPrinter) dns(items []json.RawMessage) error {
	all, err := decodeAll[dnsRecord](items)
	if err != nil {
		return err
	}
	t := newTable(p.w, "POD", "CLIENT", "QUERIES", "FAST", "CACHED", "FORWARDED", "NXDOMAIN", "FAILED")
	var names []dnsRecord
	for _, r := range all {
		switch {
		case r.Asked != nil:
			a := r.Asked
			t.row(r.Pod, a.Client.String(), fmt.Sprint(a.Queries), fmt.Sprint(a.Fast), fmt.Sprint(a.Cached), fmt.Sprint(a.Forwarded), fmt.Sprint(a.Missing), fmt.Sprint(a.Failed))
		case r.Miss != nil:
			names = append(names, r)
		}
	}
	if err := t.flush(); err != nil || len(names) == 0 {
		return err
	}
	fmt.Fprintln(p.w)
	t = newTable(p.w, "NXDOMAIN", "COUNT", "LAST-ASKED-BY")
	for _, r := range names {
		count := fmt.Sprint(r.Miss.Least)
		if r.Miss.Count > r.Miss.Least {
			count += "-" + fmt.Sprint(r.Miss.Count)
		}
		t.row(r.Miss.Name, count, cmp.Or(r.Pod, r.Miss.Last.String()))
	}
	return t.flush()
}
