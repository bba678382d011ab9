package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"podgate/control"
)

// kind is one thing that `get` knows: its plural, its other names, how its API
// calls it (nothing: it is podgate's own), and how a table of it looks.
type kind struct {
	name       string
	aliases    []string
	apiKind    string
	apiVersion string
	namespaced bool
	print      func(p *getPrinter, items []json.RawMessage) error
}

var kinds = []kind{
	{"pods", []string{"pod", "po"}, "Pod", "v1", true, (*getPrinter).pods},
	{"services", []string{"service", "svc"}, "Service", "v1", true, (*getPrinter).services},
	{"endpointslices", []string{"endpointslice"}, "EndpointSlice", "discovery.k8s.io/v1", true, (*getPrinter).endpointSlices},
	{"ingresses", []string{"ingress", "ing"}, "Ingress", "networking.k8s.io/v1", true, (*getPrinter).ingresses},
	{"networkpolicies", []string{"networkpolicy", "netpol"}, "NetworkPolicy", "networking.k8s.io/v1", true, (*getPrinter).policies},
	{"namespaces", []string{"namespace", "ns"}, "Namespace", "v1", false, (*getPrinter).namespaces},
	{"backends", []string{"backend"}, "", "", true, (*getPrinter).backendTable},
	{"flows", []string{"flow"}, "", "", false, (*getPrinter).flows},
	{"routes", []string{"route"}, "", "", false, (*getPrinter).routes},
	{"ports", []string{"port"}, "", "", false, (*getPrinter).ports},
}

func newGetCmd() *cobra.Command {
	var namespace string
	var all bool
	var names []string
	for _, k := range kinds {
		names = append(names, k.name)
	}
	cmd := &cobra.Command{
		Use:   "get KIND [NAME] [-n NS|-A]",
		Short: "Show objects: " + strings.Join(names, ", "),
		Example: `  podgate get pods -A -o wide
  podgate get svc -n shop
  podgate get flows`,
		Args:      cobra.RangeArgs(1, 2),
		ValidArgs: names,
	}
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "default", "namespace")
	cmd.Flags().BoolVarP(&all, "all-namespaces", "A", false, "in all namespaces")
	out := outputFlag(cmd.Flags(), "table", "wide", "json", "yaml", "name")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		word, name, _ := strings.Cut(strings.ToLower(args[0]), "/")
		if len(args) == 2 {
			name = args[1]
		}
		i := slices.IndexFunc(kinds, func(k kind) bool { return k.name == word || slices.Contains(k.aliases, word) })
		if i < 0 {
			return usageError{fmt.Errorf("get: unknown kind %q; known are %s", args[0], strings.Join(names, ", "))}
		}
		k := kinds[i]
		q := control.GetRequest{Kind: k.name, Name: name, Namespace: namespace}
		if all || !k.namespaced {
			q.Namespace = ""
		}
		res, err := call[control.GetResult](cmd, "get", q)
		if err != nil {
			return err
		}
		w := cmd.OutOrStdout()
		switch *out {
		case "json", "yaml":
			v := any(res.Items)
			if name != "" && len(res.Items) == 1 {
				v = res.Items[0]
			} else if k.apiKind != "" {
				v = map[string]any{"apiVersion": "v1", "kind": "List", "items": nonNil(res.Items)}
			}
			if *out == "yaml" {
				return printYAML(w, v)
			}
			return printJSON(w, v)
		case "name":
			for _, item := range res.Items {
				var o struct{ Metadata struct{ Name string } }
				if err := json.Unmarshal(item, &o); err != nil {
					return err
				}
				fmt.Fprintf(w, "%s/%s\n", strings.ToLower(k.apiKind), o.Metadata.Name)
			}
			return nil
		}
		if len(res.Items) == 0 {
			where := " in " + namespace + " namespace"
			if q.Namespace == "" {
				where = ""
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "No %s found%s.\n", k.name, where)
			return nil
		}
		p := &getPrinter{w: w, wide: *out == "wide", namespace: all}
		if p.wide && k.name == "services" {
			q.Kind = "backends"
			more, err := call[control.GetResult](cmd, "get", q)
			if err != nil {
				return err
			}
			if p.backends, err = decodeAll[backendRecord](more.Items); err != nil {
				return err
			}
		}
		return k.print(p, res.Items)
	}
	return cmd
}

func nonNil(items []json.RawMessage) []json.RawMessage {
	if items == nil {
		return []json.RawMessage{}
	}
	return items
}
