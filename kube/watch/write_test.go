package watch

import (
	"fmt"
	"net/netip"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"podgate/kube"
)

func parents(all ...string) (out []gatewayv1.RouteParentStatus) {
	for _, s := range all {
		controller := gatewayv1.GatewayController("example.com/other")
		if s[0] == '+' {
			controller, s = kube.GatewayController, s[1:]
		}
		out = append(out, gatewayv1.RouteParentStatus{ControllerName: controller, ParentRef: gatewayv1.ParentReference{Name: gatewayv1.ObjectName(s)}})
	}
	return out
}

// Other controllers' parents stay, ours are those that were found.
func TestRouteStatusKeepsOtherControllers(t *testing.T) {
	for _, c := range []struct {
		name              string
		have, found, want []gatewayv1.RouteParentStatus // want nil: nothing is written
	}{
		{name: "the first", found: parents("+a"), want: parents("+a")},
		{name: "as it is", have: parents("+a", "b"), found: parents("+a")},
		{name: "another was here first", have: parents("b"), found: parents("+a"), want: parents("b", "+a")},
		{name: "one of two is gone", have: parents("+a", "b", "+c"), found: parents("+c"), want: parents("b", "+c")},
		{name: "not ours any more", have: parents("+a", "b"), want: parents("b")},
		{name: "never was", have: parents("b")},
	} {
		o := &gatewayv1.HTTPRoute{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "r", ResourceVersion: "1"}}
		o.Status.Parents = c.have
		var got []gatewayv1.RouteParentStatus
		n := kube.Name{Namespace: "a", Name: "r"}
		r := Report{
			State:    &kube.State{HTTPRoutes: map[kube.Name]*gatewayv1.HTTPRoute{n: o}},
			Statuses: &kube.Statuses{HTTPRoutes: map[kube.Name]*gatewayv1.RouteStatus{n: {Parents: c.found}}},
		}
		gatewayStatuses(r, func(_ string, _ kube.API, shared bool, status any) {
			if got = status.(gatewayv1.RouteStatus).Parents; !shared {
				t.Errorf("%s: written over any version", c.name)
			}
		})
		if len(got) != len(c.want) {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
			continue
		}
		for i := range got {
			if got[i].ParentRef.Name != c.want[i].ParentRef.Name || got[i].ControllerName != c.want[i].ControllerName {
				t.Errorf("%s: got %v, want %v", c.name, got, c.want)
			}
		}
	}
}

func TestIngressStatusNamesThePorts(t *testing.T) {
	n := kube.Name{Namespace: "a", Name: "i"}
	r := Report{Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}, Ports: []uint16{80, 443}, Ingresses: map[kube.Name]bool{n: true}}
	got := ""
	for _, at := range r.ingressAt(n) {
		got += at.IP
		for _, p := range at.Ports {
			got += fmt.Sprintf(" %d/%s", p.Port, p.Protocol)
		}
		got += ", "
	}
	if want := "192.0.2.1 80/TCP 443/TCP, 2001:db8::1 80/TCP 443/TCP, "; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if at := r.ingressAt(kube.Name{Namespace: "a", Name: "other"}); at != nil {
		t.Errorf("one that is not served is at %v", at)
	}
}
