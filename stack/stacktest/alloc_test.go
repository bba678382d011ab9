package stacktest

import (
	"math/rand/v2"
	"testing"

	"podgate/stack"
	"podgate/stack/link"
	"podgate/stack/packet"
)

// webAndAPI are the pods of small Worlds.
const webAndAPI = `
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
`

const shop = webAndAPI + `
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

// With many conversations a packet costs the memory that its flow lies in.
func BenchmarkManyFlows(b *testing.B) {
	w := New(b, stack.Config{})
	w.Apply(shop)
	web, api := w.Pod("web"), w.Pod("api")
	const flows = 100_000
	frame := func(i int) packet.Frame {
		return Packet{
			Tuple: packet.Tuple{
				Src: packet.AddrFrom(web.IP()), Dst: packet.AddrFrom(api.IP()),
				SrcPort: uint16(1024 + i%50_000), DstPort: uint16(1 + i/50_000), Proto: packet.UDP,
			},
			SrcMAC: web.MAC, DstMAC: api.MAC, Payload: make([]byte, 18),
		}.Frame()
	}
	drain := make([]packet.Frame, 64)
	for i := range drain {
		drain[i] = make(packet.Frame, link.MaxFrame)
	}
	send := func(batch []packet.Frame) {
		web.dev.WriteBatch(batch)
		w.Plane.Poll()
		api.dev.ReadBatch(drain)
	}
	batch := make([]packet.Frame, 0, 64)
	for i := range flows {
		if batch = append(batch, frame(i)); len(batch) == 64 {
			send(batch)
			batch = batch[:0]
		}
	}
	r := rand.New(rand.NewPCG(1, 2))
	var batches [256][]packet.Frame
	for i := range batches {
		for range 64 {
			batches[i] = append(batches[i], frame(r.IntN(flows-64)))
		}
	}
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		send(batches[n%len(batches)])
		n++
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*64), "ns/packet")
}
