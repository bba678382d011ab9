package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"podgate/control"
)

func newExecCmd() *cobra.Command {
	var q control.ExecRequest
	var stdin bool
	cmd := &cobra.Command{
		Use:   "exec [-n NS] POD|TYPE/NAME [-c CONTAINER] [-it] -- CMD [ARG...]",
		Short: "Run a command in a pod's namespaces",
		Long: `Run a command in a pod's namespaces, with the pod's environment, and exit with
its exit code. The command's files are those of the host.`,
		Example: `  podgate exec -n shop batch -- curl -s http://web
  podgate exec -n shop -it deploy/web -- sh`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{errors.New("exec: name a pod")}
			}
			if cmd.ArgsLenAtDash() != 1 || len(args) < 2 {
				return usageError{errors.New("exec: put `--` and a command after the one pod's name")}
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&q.Namespace, "namespace", "n", "default", "namespace of the pod")
	cmd.ValidArgsFunction = completePod()
	completeNamespaces(cmd)
	cmd.Flags().StringVarP(&q.Container, "container", "c", "", "container whose environment is taken (default: the first)")
	completeContainers(cmd)
	cmd.Flags().BoolVarP(&stdin, "stdin", "i", false, "pass standard input")
	cmd.Flags().BoolVarP(&q.TTY, "tty", "t", false, "give the command a terminal")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		q.Pod, q.Command = args[0], args[1:]
		c, name, err := client(cmd)
		if err != nil {
			return err
		}
		ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
		defer stop()
		code, err := execIn(ctx, c, q, stdin)
		if ctx.Err() != nil {
			return exitCode(130)
		}
		if err != nil && code > 1 { // 126, 127: not run, not found
			fmt.Fprintf(cmd.ErrOrStderr(), "podgate: %v\n", err)
			return exitCode(code)
		}
		if err != nil {
			return explain(err, name)
		}
		if code != 0 {
			return exitCode(code)
		}
		return nil
	}
	return cmd
}

// execIn passes the caller's own files. With a terminal, the command gets the
// caller's, in raw mode while it runs.
func execIn(ctx context.Context, c *control.Client, q control.ExecRequest, stdin bool) (int, error) {
	in := os.Stdin
	if !stdin {
		null, err := os.Open(os.DevNull)
		if err != nil {
			return 0, err
		}
		defer null.Close()
		in = null
	}
	if q.TTY && stdin && !term.IsTerminal(int(os.Stdin.Fd())) {
		fmt.Fprintln(os.Stderr, "podgate: exec: standard input is no terminal: -t has no effect")
		q.TTY = false
	}
	if !q.TTY {
		return c.Exec(ctx, q, in, os.Stdout, os.Stderr)
	}
	if !stdin {
		return 0, usageError{errors.New("exec: -t needs -i")}
	}
	cols, rows, err := term.GetSize(int(os.Stdin.Fd()))
	if err != nil {
		return 0, fmt.Errorf("exec: terminal size: %w", err)
	}
	q.Rows, q.Cols, q.Term = uint16(rows), uint16(cols), os.Getenv("TERM")
	old, err := term.MakeRaw(int(os.Stdin.Fd()))
	if err != nil {
		return 0, fmt.Errorf("exec: %w", err)
	}
	defer term.Restore(int(os.Stdin.Fd()), old)
	return c.Exec(ctx, q, os.Stdin, os.Stdout, os.Stderr)
}

func newLogsCmd() *cobra.Command {
	q := control.LogsRequest{}
	cmd := &cobra.Command{
		Use: "logs [-f] [-n NS] POD|TYPE/NAME [-c CONTAINER]", Short: "Print what a container wrote", Args: cobra.ExactArgs(1),
		Example: `  podgate logs -n shop batch
  podgate logs -f --tail 5 -n shop batch`,
	}
	cmd.Flags().StringVarP(&q.Namespace, "namespace", "n", "default", "namespace of the pod")
	cmd.Flags().StringVarP(&q.Container, "container", "c", "", "container (default: the first)")
	cmd.ValidArgsFunction = completePod()
	completeNamespaces(cmd)
	completeContainers(cmd)
	cmd.Flags().BoolVarP(&q.Follow, "follow", "f", false, "go on as more comes")
	cmd.Flags().IntVar(&q.Tail, "tail", -1, "only the last `N` lines")
	cmd.Flags().BoolVarP(&q.Previous, "previous", "p", false, "of the container's run before the last restart")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		q.Pod = args[0]
		c, name, err := client(cmd)
		if err != nil {
			return err
		}
		ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		out, err := c.Stream(ctx, "logs", q)
		if err != nil {
			return explain(err, name)
		}
		defer out.Close()
		if _, err := io.Copy(cmd.OutOrStdout(), out); err != nil && ctx.Err() == nil {
			return err
		}
		return nil
	}
	return cmd
}
