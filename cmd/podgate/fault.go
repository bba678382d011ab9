package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"

	"podgate/control"
	"podgate/kube"
	"podgate/stack"
	"podgate/stack/link"
)

// faultAnnotation makes a pod's link bad, for example "loss=10%,delay=20ms".
const faultAnnotation = "podgate.dev/fault"

var faultFlags = []struct{ key, usage string }{
	{"loss", "packets that are lost, in `PERCENT`"},
	{"delay", "how much longer packets take, a `DURATION`"},
	{"jitter", "by how much the delay varies, a `DURATION`"},
	{"duplicate", "packets that come twice, in `PERCENT`"},
	{"reorder", "packets that others overtake, in `PERCENT`"},
	{"corrupt", "packets of which a bit is flipped, in `PERCENT`"},
	{"rate", "bits a second, such as 8mbit: `RATE`"},
	{"rate-from", "bits a second from the pod, whatever the direction: `RATE`"},
	{"queue", "how long packets may wait for the rate before they are lost, a `DURATION`"},
	{"direction", "`to` the pod, from it, or both"},
}

func newFaultCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "fault [NS/POD [--loss PERCENT] [--delay DURATION] ...]",
		Short: "Make the link of a pod bad: loss, delay, reordering and more",
		Long: `Make the link between a pod and the gateway bad, from now on and until --clear
or the pod is replaced. What is given replaces what was. Faults are about the
packets to the pod; --direction says otherwise. Without a pod, bad links are
listed. The annotation podgate.dev/fault of a pod does the same from its start:
"loss=10%,delay=20ms".`,
		Example: `  podgate fault default/web --loss 10% --delay 20ms
  podgate fault default/web --rate 8mbit --jitter 5ms --direction both
  podgate fault default/web --clear`,
		Args: cobra.MaximumNArgs(1),
	}
	ns := cmd.Flags().StringP("namespace", "n", "default", "namespace of the pod")
	for _, f := range faultFlags {
		cmd.Flags().String(f.key, "", f.usage)
	}
	clear := cmd.Flags().Bool("clear", false, "make the link good again")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		faults, err := faultsOf(cmd.Flags())
		switch {
		case err != nil:
			return usageError{err}
		case len(args) == 0 && (*clear || !faults.None()):
			return usageError{errors.New("fault: which pod? Give NAMESPACE/POD")}
		case len(args) == 0:
			return listFaults(cmd)
		case *clear != faults.None():
			return usageError{errors.New("fault: say what is to go wrong, such as --loss 10%, or --clear")}
		}
		pod := strings.TrimPrefix(args[0], "pod/")
		if !strings.Contains(pod, "/") {
			pod = *ns + "/" + pod
		}
		said, err := call[string](cmd, "fault", control.FaultRequest{Pod: pod, Faults: faults.String()})
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), said)
		return err
	}
	return cmd
}

func faultsOf(flags *pflag.FlagSet) (f link.Faults, err error) {
	for _, ff := range faultFlags {
		if value, _ := flags.GetString(ff.key); value != "" {
			err = errors.Join(err, f.Set(ff.key, value))
		}
	}
	return f, err
}

func listFaults(cmd *cobra.Command) error {
	res, err := call[control.GetResult](cmd, "get", control.GetRequest{Kind: "ports"})
	if err != nil {
		return err
	}
	ports, err := decodeAll[stack.PortRecord](res.Items)
	if err != nil {
		return err
	}
	t := newTable(cmd.OutOrStdout(), "POD", "FAULTS")
	for _, p := range ports {
		if p.Faults != "" {
			t.row(p.Pod, p.Faults)
		}
	}
	return t.flush()
}

// fault makes a pod's link as bad as q says.
func (g *gateway) fault(q control.FaultRequest) (string, error) {
	f, err := link.ParseFaults(q.Faults)
	if err != nil {
		return "", err
	}
	ns, name, _ := strings.Cut(q.Pod, "/")
	if _, err := findPod(g.store.State(), ns, name); err != nil {
		return "", err
	}
	if err := g.plane.SetFaults(q.Pod, f); err != nil {
		return "", err
	}
	if f.None() {
		return fmt.Sprintf("pod/%s: its link is good", q.Pod), nil
	}
	return fmt.Sprintf("pod/%s: %s", q.Pod, f), nil
}

// followFault sets what a pod's annotation says, where that is not what it said
// when it was last looked at: what `podgate fault` did stays.
func (g *gateway) followFault(p *corev1.Pod) {
	name := kube.Name{Namespace: p.Namespace, Name: p.Name}
	said := p.Annotations[faultAnnotation]
	g.mu.Lock()
	_, attached := g.ports[name]
	changed := attached && g.faults[name] != said
	if changed {
		g.faults[name] = said
	}
	g.mu.Unlock()
	if !changed {
		return
	}
	f, err := link.ParseFaults(said)
	if err == nil {
		err = g.plane.SetFaults(name.String(), f)
	}
	if err != nil {
		g.log.Warn("annotation is not followed", "pod", name, "annotation", faultAnnotation, "err", err)
	}
}

// faultProblems are the annotations that cannot be read.
func faultProblems(st *kube.State) (out []kube.Problem) {
	for _, name := range sortedNames(st.Pods) {
		if _, err := link.ParseFaults(st.Pods[name].Annotations[faultAnnotation]); err != nil {
			out = append(out, kube.Problem{Severity: kube.Warning, Kind: "Pod", Object: name, Field: "metadata.annotations[" + faultAnnotation + "]", Err: err.Error()})
		}
	}
	return out
}
