package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"podgate/control"
)

// follow prints objects, then those that change as they do, and those that go as
// they were last, as kubectl does, until it is told to end.
func (o *getOptions) follow(cmd *cobra.Command, k kind, name string) error {
	selector, err := labels.Parse(o.selector)
	if err != nil {
		return usageError{fmt.Errorf("get: -l %s: %w", o.selector, err)}
	}
	c, instance, err := client(cmd)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	q := o.request(k)
	q.Watch, q.Name = true, name // the first time: who is not there cannot be watched
	var last []watched
	for {
		var res control.GetResult
		if err := c.Call(ctx, "get", q, &res); ctx.Err() != nil {
			return nil
		} else if err != nil {
			return explain(err, instance)
		}
		items, err := selected(res.Items, selector)
		if err != nil {
			return err
		}
		now, err := watchedOf(items, name)
		if err != nil {
			return err
		}
		if err := o.printEach(cmd, k, q, news(last, now)); err != nil {
			return err
		}
		last, q.After, q.Name = now, res.Generation, ""
	}
}

// watched is an object as it was last printed.
type watched struct {
	key  [2]string // namespace and name
	item json.RawMessage
}

// watchedOf names objects; of those with other names than name, if that is not
// empty, nothing is shown.
func watchedOf(items []json.RawMessage, name string) (out []watched, err error) {
	for _, item := range items {
		var m metav1.PartialObjectMetadata
		if err := json.Unmarshal(item, &m); err != nil {
			return nil, err
		}
		if name == "" || m.Name == name {
			out = append(out, watched{[2]string{m.Namespace, m.Name}, item})
		}
	}
	return out, nil
}

// news are the objects of now that are not the same in last, and those of last
// that are gone.
func news(last, now []watched) (items []json.RawMessage) {
	was := map[[2]string]json.RawMessage{}
	for _, w := range last {
		was[w.key] = w.item
	}
	for _, w := range now {
		if !bytes.Equal(was[w.key], w.item) {
			items = append(items, w.item)
		}
		delete(was, w.key)
	}
	for _, w := range last {
		if _, gone := was[w.key]; gone {
			items = append(items, w.item)
		}
	}
	return items
}

// printEach prints tables with one first line in all, and other forms object by object.
func (o *getOptions) printEach(cmd *cobra.Command, k kind, q control.GetRequest, items []json.RawMessage) error {
	q.Watch = false
	if *o.out == "table" || *o.out == "wide" {
		if len(items) == 0 {
			return nil
		}
		err := o.print(cmd, k, q, items, false)
		o.noHeaders = true
		return err
	}
	for _, item := range items {
		if *o.out == "yaml" {
			fmt.Fprintln(cmd.OutOrStdout(), "---")
		}
		if err := o.print(cmd, k, q, []json.RawMessage{item}, true); err != nil {
			return err
		}
	}
	return nil
}
