package stacktest

import (
	"testing"

	"podgate/stack"
	"podgate/stack/link"
	"podgate/stack/packet"
)

const shop = `
apiVersion: v1
kind: Pod
metadata: {name: web}
spec: {containers: [{name: c, image: x}]}
---
apiVersion: v1
kind: Pod
metadata: {name: api, labels: {app: api}}
spec: {containers: [{name: c, image: x}]}
---
apiVersion: v1
kind: Service
metadata: {name: api}
spec:
  selector: {app: api}
  clusterIP: 10.96.1.1
  ports: [{port: 80, targetPort: 8080}]
`

// hitPath is a World with an open conversation from web to the Service, and a
// function that takes a data packet of it all the way.
func hitPath(t testing.TB, gso int) (one func(), bytes int) {
	t.Helper()
	w := New(t, stack.Config{})
	w.Apply(shop)
	web, api := w.Pod("web"), w.Pod("api")
	vip := packet.AddrFrom(podCIDRs[0].Addr())
	vip[13], vip[14], vip[15] = 96, 1, 1
	p := Packet{
		Tuple: packet.Tuple{
			Src: packet.AddrFrom(web.IP()), Dst: vip,
			SrcPort: 40000, DstPort: 80, Proto: packet.TCP,
		},
		SrcMAC: web.MAC, DstMAC: GatewayMAC,
		TCPFlags: packet.SYN,
	}
	w.Send(web, p.Frame())
	if got := len(api.Received()); got != 1 {
		t.Fatalf("the SYN arrived %d times", got)
	}
	p.TCPFlags, p.Payload = packet.ACK, make([]byte, 1448)
	if gso > 0 {
		p.GSOSize, p.Payload = gso, make([]byte, 62000)
	}
	frames := []packet.Frame{p.Frame()}
	buf := []packet.Frame{make(packet.Frame, link.MaxFrame)}
	return func() {
		web.dev.WriteBatch(frames)
		w.Plane.Poll()
		buf[0] = buf[0][:link.MaxFrame]
		if n, _ := api.dev.ReadBatch(buf); n != 1 {
			t.Fatal("a data packet was lost")
		}
	}, len(p.Payload)
}

func TestHitPathDoesNotAllocate(t *testing.T) {
	one, _ := hitPath(t, 0)
	for range 2048 {
		one() // the pipes' memory is made as they fill
	}
	if n := testing.AllocsPerRun(1000, one); n != 0 {
		t.Errorf("a packet of an open conversation allocates %v times, want 0", n)
	}
}

func BenchmarkHitPath(b *testing.B) {
	one, bytes := hitPath(b, 0)
	b.ReportAllocs()
	b.SetBytes(int64(bytes))
	for b.Loop() {
		one()
	}
}
