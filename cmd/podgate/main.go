// Command podgate is a userspace packet gateway for Kubernetes-style pods.
//
// Each subcommand has a file of its own; gateway.go wires the rooms together.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"podgate/cni"
	"podgate/control"
	"podgate/pod"
)

func main() {
	if pod.IsKeeper() {
		os.Exit(pod.KeeperMain())
	}
	if filepath.Base(os.Args[0]) == "podgate-cni" { // installed as a link
		os.Exit(cni.Main("podgate " + version() + " as a CNI plugin"))
	}
	os.Exit(run(os.Args[1:]))
}

// exitCode ends the process with a code of a command that ran elsewhere (exec,
// trace); nothing more is printed.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

func run(args []string) int {
	root := newRootCmd()
	root.SetArgs(args)
	err := root.ExecuteContext(context.Background())
	var code exitCode
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	case errors.As(err, &usage) || isCobraUsage(err):
		fmt.Fprintf(os.Stderr, "podgate: %v\n", err)
		return 2
	}
	fmt.Fprintf(os.Stderr, "podgate: %v\n", err)
	return 1
}

// isCobraUsage recognises what cobra itself says of a wrong command line; it has
// no type of its own for that.
func isCobraUsage(err error) bool {
	for _, s := range []string{"unknown command", "unknown flag", "unknown shorthand", "accepts ", "requires ", "flag needs", "invalid argument", "required flag"} {
		if strings.HasPrefix(err.Error(), s) {
			return true
		}
	}
	return false
}

func newRootCmd() *cobra.Command {
	root := &cobra.Command{
		Use:   "podgate",
		Short: "A cluster network for Kubernetes-style pods, in one unprivileged process",
		Long: `podgate gives every Pod of Kubernetes manifests its own network namespace and
makes Services, DNS, Ingress and NetworkPolicy work between them. All frames
cross one userspace process: no root, no iptables, no bridge.`,
		Example: `  podgate up examples/shop
  podgate get pods -A -o wide
  podgate exec -n shop batch -- curl -s http://web
  podgate trace -n shop batch tcp api:80`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.PersistentFlags().String("name", "default", "instance to start or talk to")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w\nSee `%s --help`", err, c.CommandPath())}
	})
	root.AddCommand(newUpCmd(), newGatewayCmd(), newDownCmd(), newApplyCmd(), newDeleteCmd(), newExecCmd(), newLogsCmd(), newPortForwardCmd(), newGetCmd(),
		newTraceCmd(), newDNSCmd(), newFlowsCmd(), newPolicyCmd(), newCaptureCmd(), newFaultCmd(), newCheckCmd(), newStatusCmd(), newConfigCmd(), newVersionCmd(), newAttachCmd(), newDetachCmd(), newWorkloadCmd())
	return root
}

// version is that of the module, or of the commit it was built from.
func version() string {
	bi, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := bi.Main.Version
	for _, s := range bi.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 && (v == "" || v == "(devel)") {
			v = "devel-" + s.Value[:12]
		}
	}
	if v == "" {
		return "(devel)"
	}
	return v
}

func newVersionCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "version", Short: "Print the version of podgate and of what it is made of", Args: cobra.NoArgs,
		Example: `  podgate version
  podgate version -o json`}
	out := outputFlag(cmd.Flags(), "table", "json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		v := map[string]string{"podgate": version()}
		if bi, ok := debug.ReadBuildInfo(); ok {
			v["go"] = bi.GoVersion
			for _, d := range bi.Deps {
				switch d.Path {
				case "gvisor.dev/gvisor", "k8s.io/api", "github.com/miekg/dns":
					v[d.Path] = d.Version
				}
			}
		}
		if *out == "json" {
			return printJSON(cmd.OutOrStdout(), v)
		}
		fmt.Fprintf(cmd.OutOrStdout(), "podgate %s\n", v["podgate"])
		for _, k := range []string{"go", "gvisor.dev/gvisor", "k8s.io/api", "github.com/miekg/dns"} {
			if v[k] != "" {
				fmt.Fprintf(cmd.OutOrStdout(), "  %-22s %s\n", k, v[k])
			}
		}
		return nil
	}
	return cmd
}

// client finds the instance that --name picks.
func client(cmd *cobra.Command) (*control.Client, string, error) {
	name, _ := cmd.Flags().GetString("name")
	dir, err := instanceDir(name)
	if err != nil {
		return nil, name, err
	}
	return control.NewClient(socketPath(dir)), name, nil
}

// explain turns "not running" into what to do about it.
func explain(err error, name string) error {
	if errors.Is(err, control.ErrNotRunning) {
		hint := "podgate up PATH"
		if name != "default" {
			hint = "podgate --name " + name + " up PATH"
		}
		return fmt.Errorf("no instance %q is running; start one with `%s`", name, hint)
	}
	return err
}

// call asks the instance of cmd one thing.
func call[A any](cmd *cobra.Command, verb string, q any) (A, error) {
	var a A
	c, name, err := client(cmd)
	if err != nil {
		return a, err
	}
	return a, explain(c.Call(cmd.Context(), verb, q, &a), name)
}
