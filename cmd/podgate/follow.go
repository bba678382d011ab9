package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"podgate/control"
	"podgate/stack"
)

// followEvery is how often `flows --follow` asks. A conversation that is over
// is remembered for longer.
const followEvery = 250 * time.Millisecond

// event is a conversation that opened, changed its state or was forgotten.
type event struct {
	Event string `json:"event"` // open, state, end
	stack.FlowRecord
}

// followFlows prints what is new until it is interrupted.
func followFlows(cmd *cobra.Command, q control.FlowsRequest, asJSON bool) error {
	ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	c, name, err := client(cmd)
	if err != nil {
		return err
	}
	f := follower{w: cmd.OutOrStdout(), json: asJSON, known: map[string]stack.FlowRecord{}}
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for {
		if err := f.ask(ctx, c, q); ctx.Err() != nil {
			return nil
		} else if err != nil {
			return explain(err, name)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

type follower struct {
	w     io.Writer
	json  bool
	known map[string]stack.FlowRecord
	seq   uint64 // of the last drop
}

func (f *follower) ask(ctx context.Context, c *control.Client, q control.FlowsRequest) error {
	if q.Dropped {
		var list []stack.DropRecord
		if err := c.Call(ctx, "flows", q, &list); err != nil {
			return err
		}
		return f.drops(list)
	}
	var list []stack.FlowRecord
	if err := c.Call(ctx, "flows", q, &list); err != nil {
		return err
	}
	return f.flows(list)
}

func (f *follower) drops(list []stack.DropRecord) error {
	for _, d := range list {
		if d.Seq <= f.seq {
			continue
		}
		f.seq = d.Seq
		err := f.print(d, fmt.Sprintf("%s  %-6s  %s > %s  %s  %s  %s", d.Time.Format("15:04:05.000"), d.Verdict,
			orAddr(d.SrcPod, d.Src), orAddr(d.DstPod, d.Dst), d.Proto, d.Reason, strings.Join(d.Policies, ",")))
		if err != nil {
			return err
		}
	}
	return nil
}

// flows prints the difference between what is and what was known.
func (f *follower) flows(list []stack.FlowRecord) error {
	now := map[string]stack.FlowRecord{}
	var events []event
	for _, r := range list {
		key := fmt.Sprint(r.Proto, r.Src, r.Dst, r.Started.UnixNano())
		now[key] = r
		old, known := f.known[key]
		if !known {
			events = append(events, event{"open", r})
		} else if old.State != r.State {
			events = append(events, event{"state", r})
		}
	}
	for key, r := range f.known {
		if _, still := now[key]; !still {
			events = append(events, event{"end", r})
		}
	}
	f.known = now
	slices.SortFunc(events, func(a, b event) int {
		return cmp.Or(a.Started.Compare(b.Started), strings.Compare(a.Src, b.Src), strings.Compare(a.Dst, b.Dst))
	})
	for _, e := range events {
		service := ""
		if e.Service != "" {
			service = " via " + e.Service
		}
		err := f.print(e, fmt.Sprintf("%s  %-5s  %s > %s  %s%s  %s  %d/%d packets  %d/%d bytes", e.Started.Add(e.Age).Format("15:04:05.000"), e.Event,
			orAddr(e.SrcPod, e.Src), orAddr(e.DstPod, e.Dst), e.Proto, service, e.State, e.Packets, e.ReplyPackets, e.Bytes, e.ReplyBytes))
		if err != nil {
			return err
		}
	}
	return nil
}

func (f *follower) print(v any, text string) error {
	if f.json {
		return json.NewEncoder(f.w).Encode(v)
	}
	_, err := fmt.Fprintln(f.w, strings.TrimRight(text, " "))
	return err
}
