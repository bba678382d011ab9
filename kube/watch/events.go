package watch

// Theory of operation
//
// Each problem of an object is an Event of that object, once as long as it lasts:
// `kubectl describe` shows it. One that comes back within an hour raises the count
// of the Event that is there. There are at most eventBurst Events at once and one
// each eventEvery after that, whatever goes wrong; what has to wait is written
// later, if it is still so.

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"podgate/kube"
)

const (
	eventBurst = 50
	eventEvery = time.Second
	eventLasts = time.Hour // the API server's --event-ttl
	maxMessage = 1024      // bytes, the API server's limit
)

// events are those of one leadership.
type events struct {
	cluster *Cluster
	said    map[string]*event
	tokens  float64
	filled  time.Time
}

// event is one that was written.
type event struct {
	name    string
	count   int32
	last    time.Time
	present bool // the problem is there still
}

func newEvents(c *Cluster) *events {
	return &events{cluster: c, said: map[string]*event{}, tokens: eventBurst, filled: time.Now()}
}

// say writes Events for the problems that are new, and says whether all are written.
func (e *events) say(ctx context.Context, r Report) (done bool) {
	done = true
	now := time.Now()
	there := map[string]bool{}
	for _, p := range r.Problems {
		if p.Kind == "" || p.Object.Name == "" {
			continue
		}
		o := r.State.Object(p.Kind, p.Object)
		if o == nil || o.GetUID() == "" || o.GetResourceVersion() == "" {
			continue // podgate's own, or gone meanwhile
		}
		id := string(o.GetUID()) + p.Field + p.Err
		there[id] = true
		old := e.said[id]
		if old != nil && old.present {
			continue
		}
		if !e.allowed(now) {
			done = false
			continue
		}
		written, err := e.write(ctx, p, o, old, now)
		e.cluster.note(kind{name: "Event"}, "write", err)
		if err != nil {
			done = false
			continue
		}
		e.said[id] = written
	}
	for id, ev := range e.said {
		ev.present = there[id]
		if !ev.present && now.Sub(ev.last) > eventLasts {
			delete(e.said, id)
		}
	}
	return done
}

// allowed takes one of the tokens, if there is one.
func (e *events) allowed(now time.Time) bool {
	e.tokens = min(eventBurst, e.tokens+float64(now.Sub(e.filled))/float64(eventEvery))
	e.filled = now
	if e.tokens < 1 {
		return false
	}
	e.tokens--
	return true
}

func (e *events) write(ctx context.Context, p kube.Problem, o kube.API, old *event, now time.Time) (*event, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	namespace := p.Object.Namespace
	if namespace == "" {
		namespace = metav1.NamespaceDefault
	}
	request := e.cluster.clients[corev1.SchemeGroupVersion]
	if old != nil && now.Sub(old.last) < eventLasts {
		body, err := json.Marshal(map[string]any{"count": old.count + 1, "lastTimestamp": metav1.NewTime(now)})
		if err != nil {
			return nil, err
		}
		err = request.Patch(types.MergePatchType).Namespace(namespace).Resource("events").Name(old.name).Body(body).Do(ctx).Error()
		if err == nil {
			return &event{old.name, old.count + 1, now, true}, nil
		}
		if !apierrors.IsNotFound(err) {
			return nil, err
		}
	}
	gvk := o.GetObjectKind().GroupVersionKind()
	h := fnv.New64a()
	fmt.Fprint(h, p, now.UnixNano())
	ev := &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("%.200s.%x", p.Object.Name, h.Sum64())},
		InvolvedObject: corev1.ObjectReference{
			APIVersion: gvk.GroupVersion().String(), Kind: gvk.Kind, Namespace: p.Object.Namespace, Name: p.Object.Name,
			UID: o.GetUID(), ResourceVersion: o.GetResourceVersion(), FieldPath: p.Field,
		},
		Reason: "Note", Type: corev1.EventTypeNormal, Message: p.Err,
		Source: corev1.EventSource{Component: "podgate"}, ReportingController: "podgate.dev/podgate",
		FirstTimestamp: metav1.NewTime(now), LastTimestamp: metav1.NewTime(now), Count: 1,
	}
	if p.Field != "" {
		ev.Message = p.Field + ": " + p.Err
	}
	ev.Message = ev.Message[:min(len(ev.Message), maxMessage)]
	switch p.Severity {
	case kube.Error:
		ev.Type, ev.Reason = corev1.EventTypeWarning, "NotApplied"
	case kube.Warning:
		ev.Type, ev.Reason = corev1.EventTypeWarning, "PartlyApplied"
	}
	err := request.Post().Namespace(namespace).Resource("events").Body(ev).Do(ctx).Error()
	if apierrors.IsNotFound(err) || apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		err = nil // it went with its namespace
	}
	return &event{ev.Name, 1, now, true}, err
}
