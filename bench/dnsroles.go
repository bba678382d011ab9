package main

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	mdns "github.com/miekg/dns"
)

// dnsAsk is the role of the asker.
func dnsAsk(args []string) error {
	fs := flag.NewFlagSet("dnsask", flag.ExitOnError)
	server, file := fs.String("server", "", ""), fs.String("file", "", "")
	rate, seconds := fs.Int("rate", 1000, ""), fs.Int("seconds", 1, "")
	fs.Parse(args)
	data, err := os.ReadFile(*file)
	if err != nil {
		return err
	}
	var queries [][]byte
	for line := range strings.Lines(string(data)) {
		b, err := new(mdns.Msg).SetQuestion(mdns.Fqdn(strings.Fields(line)[0]), mdns.TypeA).Pack()
		if err != nil {
			return err
		}
		queries = append(queries, b)
	}
	c, err := net.Dial("udp", net.JoinHostPort(*server, "53"))
	if err != nil {
		return err
	}
	defer c.Close()
	var sent [1 << 16]time.Time
	total := *rate * *seconds
	took := make([]float64, 0, total)
	done := make(chan struct{})
	go func() {
		defer close(done)
		in := make([]byte, 4096)
		for len(took) < total {
			n, err := c.Read(in)
			if err != nil {
				return
			}
			if n >= 2 {
				took = append(took, float64(time.Since(sent[binary.BigEndian.Uint16(in)]).Nanoseconds())/1000)
			}
		}
	}()
	start := time.Now()
	for i := 0; i < total; {
		due := int(time.Since(start).Seconds() * float64(*rate))
		for ; i < min(due, total); i++ {
			q := queries[i%len(queries)]
			binary.BigEndian.PutUint16(q, uint16(i))
			sent[uint16(i)] = time.Now()
			c.Write(q)
		}
		time.Sleep(50 * time.Microsecond)
	}
	c.SetReadDeadline(time.Now().Add(time.Second))
	<-done
	if len(took) < total/2 {
		return fmt.Errorf("%d of %d queries were answered", len(took), total)
	}
	slices.Sort(took)
	fmt.Println(took[len(took)/2], took[len(took)*99/100])
	return nil
}

// dnsUpstream is the role of the server that both forward to.
func dnsUpstream([]string) error {
	return (&mdns.Server{Addr: "127.0.0.1" + dnsPort, Net: "udp", Handler: mdns.HandlerFunc(func(w mdns.ResponseWriter, q *mdns.Msg) {
		m := new(mdns.Msg).SetReply(q)
		m.Answer = []mdns.RR{&mdns.A{Hdr: mdns.RR_Header{Name: q.Question[0].Name, Rrtype: mdns.TypeA, Class: mdns.ClassINET, Ttl: 300}, A: net.IPv4(192, 0, 2, 80)}}
		w.WriteMsg(m)
	})}).ListenAndServe()
}

// dnsFreshPorts is how many names a fresh Service has to be asked by: each is
// asked once, so that no cache of denials stands between a change and its answer.
const dnsFreshPorts = 300

// dnsAwait is the role of who waits for a Service: it says "ready", then asks for
// one port after the other, and says when the first answer came, in Unix
// nanoseconds.
func dnsAwait(args []string) error {
	fs := flag.NewFlagSet("dnsawait", flag.ExitOnError)
	server, name := fs.String("server", "", ""), fs.String("name", "", "")
	fs.Parse(args)
	c, err := net.Dial("udp", net.JoinHostPort(*server, "53"))
	if err != nil {
		return err
	}
	defer c.Close()
	in := make([]byte, 4096)
	for i := range dnsFreshPorts {
		b, err := new(mdns.Msg).SetQuestion(fmt.Sprintf("_p%d._tcp.%s.many.svc.cluster.local.", i, *name), mdns.TypeA).Pack()
		if err != nil {
			return err
		}
		next := time.Now().Add(time.Millisecond)
		c.SetDeadline(time.Now().Add(time.Second))
		if _, err := c.Write(b); err != nil {
			return err
		}
		n, err := c.Read(in)
		if err != nil {
			return err
		}
		if n >= 12 && binary.BigEndian.Uint16(in[6:]) > 0 {
			fmt.Println(time.Now().UnixNano())
			return nil
		}
		if i == 0 {
			fmt.Println("ready")
		}
		time.Sleep(time.Until(next))
	}
	return errors.New("there is no answer")
}
