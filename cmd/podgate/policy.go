package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"podgate/control"
	"podgate/stack"
)

func newPolicyCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "policy", Short: "Ask what network policies say: who reaches whom, what new ones would change, what was denied",
		Example: `  podgate policy matrix -n shop --port 80
  podgate policy test -f deny-all.yaml
  podgate policy denials`,
	}
	cmd.AddCommand(newPolicyMatrixCmd(), newPolicyTestCmd(), newPolicyDenialsCmd())
	return cmd
}

func newPolicyMatrixCmd() *cobra.Command {
	q := control.PolicyRequest{What: "matrix"}
	cmd := &cobra.Command{
		Use: "matrix [-n NS] --port P", Short: "Print who may reach whom, as policies have it", Args: cobra.NoArgs,
		Long: `Print who may reach whom on a port, as policies have it: a row for each pod that
asks, a column for each that answers. Whether anybody listens is not looked at.`,
		Example: `  podgate policy matrix --port 80
  podgate policy matrix -n shop --port 53 --proto udp -o json`,
	}
	cmd.Flags().StringVarP(&q.Namespace, "namespace", "n", "", "only pods of this namespace as those that are reached")
	cmd.Flags().Uint16Var(&q.Port, "port", 0, "port of the pods")
	cmd.Flags().StringVar(&q.Proto, "proto", "tcp", "tcp, udp or sctp")
	cmd.MarkFlagRequired("port")
	out := outputFlag(cmd.Flags(), "table", "json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if q.Port == 0 {
			return usageError{errors.New("policy matrix: --port takes a port from 1 to 65535")}
		}
		cells, err := call[[]matrixCell](cmd, "policy", q)
		if err != nil {
			return err
		}
		if *out == "json" {
			return printJSON(cmd.OutOrStdout(), cells)
		}
		return printMatrix(cmd, cells)
	}
	return cmd
}

// printMatrix prints cells, which come column by column.
func printMatrix(cmd *cobra.Command, cells []matrixCell) error {
	var columns, rows []string
	marks := map[[2]string]string{}
	for _, c := range cells {
		if !slices.Contains(columns, c.To) {
			columns = append(columns, c.To)
		}
		if !slices.Contains(rows, c.From) {
			rows = append(rows, c.From)
		}
		marks[[2]string{c.From, c.To}] = map[bool]string{true: "yes", false: "-"}[c.Allowed]
	}
	slices.Sort(rows)
	t := newTable(cmd.OutOrStdout(), append([]string{"FROM \\ TO"}, columns...)...)
	for _, from := range rows {
		row := []string{from}
		for _, to := range columns {
			mark := marks[[2]string{from, to}]
			if from == to {
				mark = "."
			}
			row = append(row, mark)
		}
		t.row(row...)
	}
	return t.flush()
}

func newPolicyTestCmd() *cobra.Command {
	var paths []string
	cmd := &cobra.Command{
		Use: "test -f PATH", Short: "Say what policies would change, without applying them", Args: cobra.NoArgs,
		Long: `Say what policies would change if they were applied: the conversations that go
on now and would be cut, and the pairs of pods that may or may no longer reach
each other, on the ports that pods declare or policies name (port 1 stands for
all others).`,
		Example: `  podgate policy test -f deny-all.yaml`,
	}
	cmd.Flags().StringArrayVarP(&paths, "filename", "f", nil, "`file`, folder or - (standard input); may be repeated")
	cmd.MarkFlagRequired("filename")
	out := outputFlag(cmd.Flags(), "text", "json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		files, err := readManifests(paths, cmd.InOrStdin())
		if err != nil {
			return err
		}
		res, err := call[policyTest](cmd, "policy", control.PolicyRequest{What: "test", Files: files})
		if err != nil {
			return err
		}
		w := cmd.OutOrStdout()
		if *out == "json" {
			return printJSON(w, res)
		}
		for _, f := range res.Flows {
			fmt.Fprintf(w, "would cut %s %s > %s (%s)\n", f.Proto, orAddr(f.SrcPod, f.Src), orAddr(f.DstPod, f.Dst), strings.Join(f.Policies, ", "))
		}
		for _, p := range res.Pairs {
			verb := "would deny"
			if p.After {
				verb = "would allow"
			}
			fmt.Fprintf(w, "%s %s > %s:%d/%s (%s)\n", verb, p.From, p.To, p.Port, p.Proto, strings.Join(p.Policies, ", "))
		}
		_, err = fmt.Fprintf(w, "%d conversations would be cut, %d pairs would change\n", len(res.Flows), len(res.Pairs))
		return err
	}
	return cmd
}

func newPolicyDenialsCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "denials", Short: "Print what was denied, by policy, direction, pod and peer", Args: cobra.NoArgs,
		Example: `  podgate policy denials`,
	}
	out := outputFlag(cmd.Flags(), "table", "json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		list, err := call[[]stack.DenialRecord](cmd, "policy", control.PolicyRequest{What: "denials"})
		if err != nil {
			return err
		}
		if *out == "json" {
			return printJSON(cmd.OutOrStdout(), list)
		}
		t := newTable(cmd.OutOrStdout(), "BY", "DIRECTION", "POD", "PEER", "PACKETS", "VERDICT", "LAST")
		for _, d := range list {
			verdict := "denied"
			if d.Audit {
				verdict = "audited"
			}
			t.row(d.By, d.Direction, d.Pod, d.Peer, fmt.Sprint(d.Packets), verdict, d.Last.Format("15:04:05.000"))
		}
		return t.flush()
	}
	return cmd
}
