package watch

// Theory of operation
//
// What the API server said last is written down, so that a gateway that starts
// while the API server is away can serve it: its pods, Services and policies are
// still there. The file is replaced as a whole, some time after a change, so that
// a cluster in which something changes all the time costs a bounded share of a
// CPU. It begins with a line that says whose it is, has a line for each object, as
// trimmed for memory, and ends with a line that counts them: a file without its
// end is none.
//
//	podgate-cluster {"version":1,"server":"https://192.0.2.1:6443","node":"node-1",...}
//	Pod {"metadata":{...},...}
//	end 1234
//
// When the API server is back, its lists replace what was read like any relisting:
// objects that did not change stay the same to whom they were compiled for.

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"podgate/kube"
)

// Memory is a state of a cluster that was written down.
type Memory struct {
	Written      time.Time
	ServiceCIDRs []netip.Prefix // as the gateway had them

	objs map[string][]kube.API // by kind; every kind is there
}

// memoryHead is the first line of the file.
type memoryHead struct {
	Version      int            `json:"version"`
	Server       string         `json:"server"`
	Node         string         `json:"node"`
	Written      time.Time      `json:"written"`
	ServiceCIDRs []netip.Prefix `json:"serviceCIDRs"`
}

const (
	memoryMagic   = "podgate-cluster "
	memoryEnd     = "end"
	memoryVersion = 1

	memoryAfter = 2 * time.Second // how soon a change is written down
	memoryShare = 50              // of the time that writing takes so much passes before the next
)

// remembered are the kinds that are written down.
var remembered = append(slices.Clone(kinds), secretKind, configMapKind)

// Keep writes down what the store has of the API server, some time after it
// changed, until ctx ends. The file is for its owner alone: there are Secrets in
// it.
func (c *Cluster) Keep(ctx context.Context, store *kube.Store, file, node string, serviceCIDRs []netip.Prefix) {
	changed, cancel := store.Subscribe()
	defer cancel()
	head := memoryHead{Version: memoryVersion, Server: c.rest.Host, Node: node, ServiceCIDRs: serviceCIDRs}
	pause, said := memoryAfter, ""
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-changed:
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
			began := time.Now()
			head.Written = began.UTC()
			err := writeMemory(file, head, store)
			pause = max(memoryAfter, memoryShare*time.Since(began))
			if err != nil && err.Error() != said {
				said = err.Error()
				c.log.Warn("a gateway that starts while the API server is away will not know the cluster", "err", err)
			}
		}
	}
}

// writeMemory replaces the file.
func writeMemory(file string, head memoryHead, store *kube.Store) (err error) {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return fmt.Errorf("write the cluster's state down: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(file), filepath.Base(file)+".*") // with mode 0600
	if err != nil {
		return fmt.Errorf("write the cluster's state down: %w", err)
	}
	defer func() {
		f.Close()
		if err != nil {
			os.Remove(f.Name())
			err = fmt.Errorf("write the cluster's state down: %w", err)
		}
	}()
	w := bufio.NewWriterSize(f, 64<<10)
	line := json.NewEncoder(w) // it ends lines
	w.WriteString(memoryMagic)
	if err := line.Encode(head); err != nil {
		return err
	}
	count := 0
	for _, k := range remembered {
		for _, o := range store.Copies(k.name) {
			w.WriteString(k.name + " ")
			if err := line.Encode(o); err != nil {
				return fmt.Errorf("%s %s/%s: %w", k.name, o.GetNamespace(), o.GetName(), err)
			}
			count++
		}
	}
	fmt.Fprintln(w, memoryEnd, count)
	if err := errors.Join(w.Flush(), f.Sync()); err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}

// Recall reads what Keep wrote about this API server for a node. Without a file
// the error is fs.ErrNotExist.
func (c *Cluster) Recall(file, node string) (*Memory, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	m, err := readMemory(f, c.rest.Host, node)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return m, nil
}

func readMemory(from io.Reader, server, node string) (*Memory, error) {
	r := bufio.NewReaderSize(from, 64<<10)
	first, err := r.ReadString('\n')
	text, ok := strings.CutPrefix(first, memoryMagic)
	var head memoryHead
	switch {
	case err != nil || !ok:
		return nil, errors.New("not the state of a cluster")
	case json.Unmarshal([]byte(text), &head) != nil || head.Version != memoryVersion:
		return nil, errors.New("the state of a cluster as another version of podgate writes it")
	case head.Server != server || head.Node != node:
		return nil, fmt.Errorf("it is about node %s of %s, not %s of %s", head.Node, head.Server, node, server)
	}
	m := &Memory{Written: head.Written, ServiceCIDRs: head.ServiceCIDRs, objs: map[string][]kube.API{}}
	make := map[string]func() kube.API{}
	for _, k := range remembered {
		m.objs[k.name], make[k.name] = nil, k.new
	}
	for count := 0; ; count++ {
		line, err := r.ReadBytes('\n')
		if err != nil {
			return nil, fmt.Errorf("it ends after %d objects: %w", count, io.ErrUnexpectedEOF)
		}
		name, data, _ := strings.Cut(strings.TrimSuffix(string(line), "\n"), " ")
		if name == memoryEnd {
			if n, err := strconv.Atoi(data); err != nil || n != count {
				return nil, fmt.Errorf("it has %d objects, and says %q", count, data)
			}
			return m, nil
		}
		if make[name] == nil {
			return nil, fmt.Errorf("object %d: unknown kind %q", count, name)
		}
		o := make[name]()
		if err := json.Unmarshal([]byte(data), o); err != nil {
			return nil, fmt.Errorf("object %d: %s: %w", count, name, err)
		}
		m.objs[name] = append(m.objs[name], trim(o))
	}
}

// Node is the Node of that name; nil: there was none.
func (m *Memory) Node(name string) *corev1.Node {
	for _, o := range m.objs["Node"] {
		if o.GetName() == name {
			return o.(*corev1.Node)
		}
	}
	return nil
}

// Batch is all of it, for Store.Follow, once.
func (m *Memory) Batch() kube.Batch { return kube.Batch{Whole: m.objs} }
