package main

import (
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"podgate/ingress"
	"podgate/kube"
	"podgate/nat"
	"podgate/policy"
)

func newCheckCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check PATH...",
		Short: "Validate manifests and configuration; print every problem with file, object and field",
		Example: `  podgate check examples/shop
  kubectl kustomize . | podgate check -`,
		Args: cobra.MinimumNArgs(1),
	}
	addConfigFlags(cmd.Flags())
	out := outputFlag(cmd.Flags(), "text", "json")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		file, _ := cmd.Flags().GetString("config")
		cfg, _, err := loadConfig(cmd.Flags(), file, args)
		if err != nil {
			return err
		}
		m, problems := kube.Load(args, cmd.InOrStdin())
		problems, _ = checkObjects(cfg, m, problems)
		bad := 0
		for _, p := range problems {
			if p.Severity == kube.Error {
				bad++
			}
		}
		if *out == "json" {
			if problems == nil {
				problems = []kube.Problem{}
			}
			if err := printJSON(cmd.OutOrStdout(), problems); err != nil {
				return err
			}
		} else {
			for _, p := range problems {
				fmt.Fprintln(cmd.OutOrStdout(), sayProblem(p))
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s in %s, %s, %s\n",
				count(len(m.Objects), "object"), count(len(m.Files), "file"), count(bad, "error"), count(len(problems)-bad, "warning"))
		}
		if bad > 0 {
			return exitCode(1)
		}
		return nil
	}
	return cmd
}

// sayProblem is a line for people; the text of a warning says itself that it is one.
func sayProblem(p kube.Problem) string {
	if p.Severity == kube.Error {
		return "error: " + p.String()
	}
	return p.String()
}

// checkObjects finds what `up` would find before anything runs, loaded included,
// and says how many of the objects are usable.
func checkObjects(cfg config, m *kube.Manifests, loaded []kube.Problem) (problems []kube.Problem, usable int) {
	kcfg := cfg.Kube.WithDefaults()
	problems = kube.Check(kcfg, m, loaded)
	store := kube.NewStore(kcfg, time.Now)
	for _, c := range store.Sync(m.Objects, loaded) {
		if c.Action != kube.Rejected {
			usable++
		}
	}
	st := store.State()
	own := ownAddrs(kcfg.PodCIDRs)
	_, fromNAT := nat.Compile(nil, st, nat.Config{NodeName: kcfg.NodeName, NodeAddrs: own.node, ServiceCIDRs: kcfg.ServiceCIDRs})
	_, fromPolicy := policy.Compile(nil, st, policy.Config{NodeAddrs: own.node})
	_, fromIngress := ingress.Compile(nil, st, ingress.Config{Gateway: cfg.gatewayConfig(own)})
	return dedupe(slices.Concat(problems, fromNAT, fromPolicy, fromIngress, faultProblems(st))), usable
}

// dedupe leaves what says the same of the same field once, the first: those who
// compile do not know the file that those who read the manifests name.
func dedupe(problems []kube.Problem) (out []kube.Problem) {
	seen := map[kube.Problem]bool{}
	for _, p := range problems {
		said := p
		said.File, said.Line = "", 0
		if !seen[said] || p.Kind == "" {
			seen[said] = true
			out = append(out, p)
		}
	}
	return out
}

// count is "1 file", "2 files".
func count(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprint(n, " ", what)
}
