package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"podgate/control"
)

func newCaptureCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "capture [-n NS] POD|--all -w FILE|-",
		Short: "Write the live frames of a pod, or of all, as pcapng",
		Long: `Write the frames that pass between a pod and the gateway, or of every port, as
pcapng, until interrupted or --count is reached. tcpdump and Wireshark read it:
every port is an interface with its pod's name. Frames are as on a wire, with
complete checksums and without super-frames. Frames between two pods pass two
ports and are there twice with --all.`,
		Example: `  podgate capture -n shop batch -w batch.pcapng
  podgate capture --all -w - | tcpdump -n -r -`,
		Args: cobra.MaximumNArgs(1),
	}
	ns := cmd.Flags().StringP("namespace", "n", "default", "namespace of the pod")
	all := cmd.Flags().Bool("all", false, "every port, the gateway's own too")
	file := cmd.Flags().StringP("write", "w", "", "`FILE` to write, - for standard output")
	count := cmd.Flags().IntP("count", "c", 0, "stop after that many frames")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if *all == (len(args) == 1) {
			return usageError{errors.New("capture: give one POD, or --all")}
		}
		if *file == "" {
			return usageError{errors.New("capture: -w says where to: a FILE, or - for standard output")}
		}
		q := control.CaptureRequest{}
		if !*all {
			q.Pod = strings.TrimPrefix(args[0], "pod/")
			if !strings.Contains(q.Pod, "/") {
				q.Pod = *ns + "/" + q.Pod
			}
		}
		return captureTo(cmd, q, *file, *count)
	}
	return cmd
}

func captureTo(cmd *cobra.Command, q control.CaptureRequest, file string, count int) (err error) {
	ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if file == "-" && cmd.OutOrStdout() == os.Stdout && term.IsTerminal(int(os.Stdout.Fd())) {
		return usageError{errors.New("capture: pcapng is nothing for a terminal; give -w FILE, or pipe it into tcpdump -r -")}
	}
	c, name, err := client(cmd)
	if err != nil {
		return err
	}
	in, err := c.Stream(ctx, "capture", q)
	if err != nil {
		return explain(err, name)
	}
	defer in.Close()
	out := cmd.OutOrStdout()
	if file != "-" {
		f, err := os.Create(file)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		out = f
	}
	n, err := copyBlocks(out, bufio.NewReaderSize(in, 1<<17), count)
	if ctx.Err() != nil || errors.Is(err, syscall.EPIPE) {
		err = nil
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%d frames captured\n", n)
	return err
}

// copyBlocks copies whole blocks of pcapng, so that a file is well-formed
// whenever the capture ends, and returns how many frames there were.
func copyBlocks(w io.Writer, r *bufio.Reader, count int) (frames int, err error) {
	const enhancedPacket = 6
	buf := make([]byte, 1<<17)
	for count == 0 || frames < count {
		head, err := r.Peek(8)
		if err != nil {
			if err == io.EOF && len(head) == 0 {
				return frames, nil
			}
			return frames, fmt.Errorf("capture: the instance went away: %w", err)
		}
		kind, n := binary.LittleEndian.Uint32(head), int(binary.LittleEndian.Uint32(head[4:]))
		if n < 12 || n > len(buf) {
			return frames, fmt.Errorf("capture: a block of %d bytes", n)
		}
		if _, err := io.ReadFull(r, buf[:n]); err != nil {
			return frames, fmt.Errorf("capture: the instance went away: %w", err)
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return frames, err
		}
		if kind == enhancedPacket {
			frames++
		}
	}
	return frames, nil
}
