package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"podgate/control"
)

func newDownCmd() *cobra.Command {
	return &cobra.Command{
		Use: "down", Short: "Stop an instance; returns when nothing of it is left", Args: cobra.NoArgs,
		Example: `  podgate down
  podgate down --name test`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, name, err := client(cmd)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
			defer cancel()
			st, err := c.Status(ctx)
			if err == nil {
				err = c.Call(ctx, "shutdown", struct{}{}, &struct{}{})
			}
			if err != nil {
				return explain(err, name)
			}
			if err := awaitRelease(ctx, name); err != nil {
				return fmt.Errorf("instance %q (pid %d) is still stopping: %w", name, st.PID, err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "instance %q is down\n", name)
			return nil
		},
	}
}

// awaitRelease waits until nobody holds the instance's lock: releasing it is the
// last thing that an instance does.
func awaitRelease(ctx context.Context, name string) error {
	dir, err := instanceDir(name)
	if err != nil {
		return err
	}
	f, err := os.Open(filepath.Join(dir, "lock"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	got := make(chan error, 1)
	go func() { got <- unix.Flock(int(f.Fd()), unix.LOCK_SH) }() // ends with the process at the latest
	select {
	case err := <-got:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func newStatusCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "status", Short: "Health, listeners and counters of an instance", Args: cobra.NoArgs,
		Example: `  podgate status
  podgate status --name test -o json`}
	out := outputFlag(cmd.Flags(), "table", "json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, name, err := client(cmd)
		if err != nil {
			return err
		}
		st, err := c.Status(cmd.Context())
		if err != nil {
			return explain(err, name)
		}
		if *out == "json" {
			return printJSON(cmd.OutOrStdout(), st)
		}
		printStatus(cmd, st)
		return nil
	}
	return cmd
}

func printStatus(cmd *cobra.Command, st control.Status) {
	w := cmd.OutOrStdout()
	how := "as root"
	if st.Rootless {
		how = "unprivileged"
	}
	fmt.Fprintf(w, "instance   %s (pid %d, up %s, %s, pods on %s, %d MiB resident)\n", st.Instance, st.PID, age(st.Started, time.Now()), how, st.Attach, st.Resident>>20)
	fmt.Fprintf(w, "version    %s\n", st.Version)
	if c := st.Cluster; c != nil {
		fmt.Fprintf(w, "cluster    node %s of %s%s\n", c.Node, c.Server, strings.TrimSuffix("; "+c.Trouble, "; "))
	}
	fmt.Fprintf(w, "pods       %d, %d ready\n", st.Pods.Total, st.Pods.Ready)
	fmt.Fprintf(w, "services   %d\n", st.Services)
	fmt.Fprintf(w, "flows      %d\n", st.Flows)
	if len(st.Listeners) > 0 {
		fmt.Fprintln(w)
		t := newTable(w, "LISTENER", "FOR", "PROBLEM")
		for _, l := range st.Listeners {
			t.row(l.Address, l.For, l.Problem)
		}
		t.flush()
	}
	if len(st.Counters) > 0 {
		fmt.Fprintln(w)
		t := newTable(w, "COUNTER", "VALUE")
		for _, k := range sortedKeys(st.Counters) {
			t.row(k, fmt.Sprint(st.Counters[k]))
		}
		t.flush()
	}
	for _, p := range st.Problems {
		fmt.Fprintln(w, "problem:", p)
	}
}
