package watch

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

var discard = logr.Discard()

// trouble remembers what was said about requests that fail, so that it is said
// once. That the API server cannot be reached is one thing, not one a kind.
type trouble struct {
	mu    sync.Mutex
	since time.Time         // when the API server went away; zero: it is there
	said  map[string]string // by kind and verb
}

// note takes the outcome of a request.
func (c *Cluster) note(k kind, verb string, err error) {
	t := &c.trouble
	t.mu.Lock()
	defer t.mu.Unlock()
	id := verb + " " + k.name
	status := apierrors.APIStatus(nil)
	switch {
	case errors.Is(err, context.Canceled), apierrors.IsResourceExpired(err), apierrors.IsGone(err), apierrors.IsInvalid(err):
		return // a list follows
	case err == nil || errors.As(err, &status):
		if !t.since.IsZero() {
			c.log.Info("the API server is back", "server", c.rest.Host, "after", time.Since(t.since).Round(time.Millisecond))
			t.since = time.Time{}
		}
		text := ""
		if err != nil {
			text = sayError(k.name+" objects", verb, err).Error()
		}
		switch {
		case t.said[id] == text:
		case text == "":
			c.log.Info("the API server lets us again", "verb", verb, "kind", k.name)
		default:
			c.log.Error("API server", "err", text)
		}
		if t.said == nil {
			t.said = map[string]string{}
		}
		t.said[id] = text
	case t.since.IsZero():
		t.since = time.Now()
		c.log.Warn("the API server cannot be reached; what it said last stays in force", "server", c.rest.Host, "err", err)
	}
}

// Away is since when the API server cannot be reached; zero: it can.
func (c *Cluster) Away() time.Time {
	c.trouble.mu.Lock()
	defer c.trouble.mu.Unlock()
	return c.trouble.since
}
