package watch

// Theory of operation
//
// Several gateways follow one API server, and one of them writes to it: the one
// whose name is on the Lease. A Lease is renewed often; who sees it unchanged for
// as long as it says, by a clock of one's own, takes it. The API server accepts
// an update only of the version that was read, so two that take it at once do
// not both succeed. A holder that could not renew for renewWithin stops writing
// before anybody else may begin, and one that ends lets go.

import (
	"context"
	"math/rand/v2"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"podgate/kube"
)

const (
	leaseFor    = 15 * time.Second
	renewWithin = 10 * time.Second
	renewEvery  = 2 * time.Second
)

// leaseName is where the writer's name is.
var leaseName = kube.Name{Namespace: "podgate-system", Name: "podgate"}

// election is one candidate's view of the Lease.
type election struct {
	cluster  *Cluster
	identity string

	seen    string    // version of the Lease that was seen last
	since   time.Time // when it was seen first
	renewed time.Time // when this candidate last renewed it
}

// lead calls f, with a context that ends when the Lease is lost, each time that
// this candidate gets it. It returns when ctx has ended.
func (e *election) lead(ctx context.Context, f func(context.Context)) {
	var stop context.CancelFunc
	var done chan struct{}
	resign := func() {
		if stop != nil {
			stop()
			<-done
			stop = nil
		}
	}
	defer func() {
		held := stop != nil
		resign()
		if held {
			e.release()
		}
	}()
	for {
		holds, err := e.try(ctx)
		e.cluster.note(kind{name: "Lease"}, "update", ignoreConflict(err))
		switch {
		case holds && stop == nil:
			e.cluster.log.Info("this gateway writes to the API server", "lease", leaseName, "as", e.identity)
			of, cancel := context.WithCancel(ctx)
			stop, done = cancel, make(chan struct{})
			go func() { defer close(done); f(of) }()
		case !holds && stop != nil && (err == nil || time.Since(e.renewed) > renewWithin):
			e.cluster.log.Info("this gateway no longer writes to the API server", "lease", leaseName)
			resign()
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(renewEvery + rand.N(renewEvery/4)):
		}
	}
}

func ignoreConflict(err error) error {
	if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// try takes or renews the Lease, if it is free or ours.
func (e *election) try(ctx context.Context) (holds bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, renewWithin/2)
	defer cancel()
	client := e.cluster.clients[coordinationv1.SchemeGroupVersion]
	lease := new(coordinationv1.Lease)
	err = client.Get().Namespace(leaseName.Namespace).Resource("leases").Name(leaseName.Name).Do(ctx).Into(lease)
	now := time.Now()
	if apierrors.IsNotFound(err) {
		lease = &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: leaseName.Namespace, Name: leaseName.Name}}
		e.write(lease, now)
		if err = client.Post().Namespace(leaseName.Namespace).Resource("leases").Body(lease).Do(ctx).Error(); err == nil {
			e.renewed = now
		}
		return err == nil, err
	}
	if err != nil {
		return false, err
	}
	if lease.ResourceVersion != e.seen {
		e.seen, e.since = lease.ResourceVersion, now
	}
	holder, lasts := "", leaseFor
	if h := lease.Spec.HolderIdentity; h != nil {
		holder = *h
	}
	if s := lease.Spec.LeaseDurationSeconds; s != nil {
		lasts = time.Duration(*s) * time.Second
	}
	if holder != "" && holder != e.identity && now.Sub(e.since) < lasts {
		return false, nil
	}
	e.write(lease, now)
	if err := e.put(ctx, lease); err != nil {
		return false, err
	}
	e.renewed = now
	return true, nil
}

func (e *election) write(lease *coordinationv1.Lease, now time.Time) {
	s := &lease.Spec
	if s.HolderIdentity == nil || *s.HolderIdentity != e.identity {
		if s.LeaseTransitions == nil {
			s.LeaseTransitions = new(int32)
		} else {
			s.LeaseTransitions = new(*s.LeaseTransitions + 1)
		}
		s.AcquireTime = &metav1.MicroTime{Time: now}
	}
	s.HolderIdentity = &e.identity
	s.LeaseDurationSeconds = new(int32(leaseFor / time.Second))
	s.RenewTime = &metav1.MicroTime{Time: now}
}

func (e *election) put(ctx context.Context, lease *coordinationv1.Lease) error {
	return e.cluster.clients[coordinationv1.SchemeGroupVersion].Put().Namespace(lease.Namespace).Resource("leases").Name(lease.Name).Body(lease).Do(ctx).Into(lease)
}

// release lets go of the Lease, so that nobody has to wait for its end.
func (e *election) release() {
	ctx, cancel := context.WithTimeout(quiet(context.Background()), time.Second)
	defer cancel()
	lease := new(coordinationv1.Lease)
	client := e.cluster.clients[coordinationv1.SchemeGroupVersion]
	err := client.Get().Namespace(leaseName.Namespace).Resource("leases").Name(leaseName.Name).Do(ctx).Into(lease)
	if err != nil || lease.Spec.HolderIdentity == nil || *lease.Spec.HolderIdentity != e.identity {
		return
	}
	lease.Spec.HolderIdentity, lease.Spec.LeaseDurationSeconds = new(""), new(int32(1))
	if err := e.put(ctx, lease); err != nil {
		e.cluster.log.Debug("lease not released", "err", err)
	}
}
