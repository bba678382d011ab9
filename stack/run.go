package stack

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"podgate/stack/flow"
)

// mailbox brings what the control plane wants to the worker, which does it
// between two rounds of frames: nothing else needs a lock. Without a running
// worker the caller does it itself.
type mailbox struct {
	mu      sync.Mutex
	running bool
	letters []func(*worker)
	poller  *poller // to wake, while running
}

// do has f done by the worker, and returns when it is.
func (p *Plane) do(f func(*worker)) {
	m := &p.mail
	m.mu.Lock()
	if !m.running {
		defer m.mu.Unlock()
		p.worker.begin(p.cfg.Now())
		f(p.worker)
		return
	}
	done := make(chan struct{})
	m.letters = append(m.letters, func(w *worker) { f(w); close(done) })
	m.poller.wake()
	m.mu.Unlock()
	<-done
}

// read does what is waiting.
func (p *Plane) read() {
	p.mail.mu.Lock()
	letters := p.mail.letters
	p.mail.letters = nil
	p.mail.mu.Unlock()
	for _, f := range letters {
		f(p.worker)
	}
}

// idleWait is how long, in milliseconds, the worker sleeps when nothing comes.
const idleWait = 200

// company is how long, in nanoseconds, after frames for the local port the
// goroutines behind it are expected to have work.
const company = 10e6

// Run forwards until ctx is done, and then detaches every port. It blocks, and is
// called once. Devices without a descriptor are looked at every millisecond.
func (p *Plane) Run(ctx context.Context) error {
	poller, err := newPoller()
	if err != nil {
		return err
	}
	defer poller.close()
	if err := p.start(poller); err != nil {
		return err
	}
	defer p.stop()
	defer context.AfterFunc(ctx, poller.wake)()

	w := p.worker
	for ctx.Err() == nil {
		ready, err := poller.wait(w.patience(), w.now-w.shared < company)
		if err != nil {
			return err
		}
		w.begin(p.cfg.Now())
		if len(ready) != 0 {
			w.gap, w.stirred = w.now-w.stirred, w.now
		}
		if len(w.faulty) != 0 {
			w.advance()
		}
		for _, ev := range ready {
			if id := flow.PortID(ev.Fd); id == 0 {
				p.read()
			} else if in := w.ports[id]; in != nil {
				w.receive(in)
			}
		}
		for _, in := range w.byHand {
			w.receive(in)
		}
		w.tick()
	}
	return nil
}

// spins says whether it pays to look again at once instead of sleeping: for
// Config.Spin after there was something to do, where that comes often.
func (w *worker) spins() bool {
	limit := int64(w.cfg.Spin)
	return w.now-w.stirred < limit && w.gap < often*limit && w.now-w.shared >= company
}

// often is how many times Config.Spin there may be between two rounds of frames for
// it to be likely that the next comes within it: waking up takes a part of it.
const often = 8

// start hands the worker over to the loop.
func (p *Plane) start(poller *poller) error {
	p.mail.mu.Lock()
	defer p.mail.mu.Unlock()
	for _, pt := range p.worker.ports {
		if pt != nil {
			if err := poller.add(pt.dev.FD(), pt.id); err != nil {
				return fmt.Errorf("port %d (%s): %w", pt.id, pt.label(), err)
			}
		}
	}
	p.worker.poller, p.mail.poller = poller, poller
	p.mail.running = true
	return nil
}

// stop takes the worker back, after the last letter.
func (p *Plane) stop() {
	p.mail.mu.Lock()
	defer p.mail.mu.Unlock()
	p.mail.running = false
	w := p.worker
	for _, f := range p.mail.letters {
		f(w)
	}
	p.mail.letters = nil
	for id, pt := range w.ports {
		if pt != nil {
			w.detach(flow.PortID(id))
		}
	}
	w.poller, p.mail.poller = nil, nil
}

// poller is epoll with an eventfd to wake it. An event carries the PortID where
// epoll has room for a descriptor; 0 is the eventfd.
//
// There are two ways to wait. In the kernel the thread sleeps, and wakes the
// soonest; but it takes the scheduler's P along, and goroutines that the last
// batch made runnable wait until another thread notices. So while there are such,
// those of the local stack, the goroutine gives way instead, and the runtime's
// own poller watches the epoll descriptor, on the same thread if need be. It does
// so through a second one, which is empty otherwise: else every frame would wake
// the runtime's poller too, for nothing.
type poller struct {
	epoll, event int
	outer        int      // holds epoll while watched
	shared       *os.File // outer's, for the runtime's poller
	watched      bool
	raw          syscall.RawConn
	events       [128]unix.EpollEvent
}

func newPoller() (*poller, error) {
	p := &poller{epoll: -1, event: -1}
	if err := p.open(); err != nil {
		p.close()
		return nil, fmt.Errorf("epoll: %w", err)
	}
	return p, nil
}

func (p *poller) open() (err error) {
	if p.event, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return err
	}
	if p.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return err
	}
	if p.outer, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return err
	}
	err = unix.SetNonblock(p.outer, true) // or the runtime would not watch it
	p.shared = os.NewFile(uintptr(p.outer), "epoll")
	if err := errors.Join(err, p.add(p.event, 0)); err != nil {
		return err
	}
	p.raw, err = p.shared.SyscallConn()
	return err
}

func (p *poller) add(fd int, id flow.PortID) error {
	if fd < 0 {
		return nil
	}
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(id)}
	if err := unix.EpollCtl(p.epoll, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	return nil
}

func (p *poller) remove(fd int) {
	if fd >= 0 {
		unix.EpollCtl(p.epoll, unix.EPOLL_CTL_DEL, fd, nil) // closed already: gone from the set too
	}
}

// wake makes wait return, now or the next time.
func (p *poller) wake() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	unix.Write(p.event, one[:]) // EAGAIN: it is awake
}

// wait returns what is ready, after at most that many milliseconds. With company
// other goroutines run meanwhile on this thread.
func (p *poller) wait(ms int, company bool) ([]unix.EpollEvent, error) {
	var n int
	var err error
	if company {
		n, err = p.giveWay(ms)
	} else if err = p.watch(false); err == nil {
		n, err = unix.EpollWait(p.epoll, p.events[:], ms)
	}
	if errors.Is(err, unix.EINTR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	for _, ev := range p.events[:n] {
		if ev.Fd == 0 {
			var drained [8]byte
			unix.Read(p.event, drained[:])
		}
	}
	return p.events[:n], nil
}

func (p *poller) giveWay(ms int) (n int, err error) {
	if err := p.watch(true); err != nil {
		return 0, err
	}
	if err := p.shared.SetReadDeadline(time.Now().Add(time.Duration(ms) * time.Millisecond)); err != nil {
		return 0, err
	}
	late := p.raw.Read(func(uintptr) bool {
		n, err = unix.EpollWait(p.epoll, p.events[:], 0)
		return n != 0 || err != nil
	})
	if errors.Is(late, os.ErrDeadlineExceeded) {
		late = nil
	}
	return max(n, 0), errors.Join(err, late)
}

// watch has the runtime's poller woken by what wakes epoll, or not.
func (p *poller) watch(on bool) error {
	if on == p.watched {
		return nil
	}
	op := unix.EPOLL_CTL_ADD
	if !on {
		op = unix.EPOLL_CTL_DEL
	}
	ev := unix.EpollEvent{Events: unix.EPOLLIN}
	if err := unix.EpollCtl(p.outer, op, p.epoll, &ev); err != nil {
		return err
	}
	p.watched = on
	return nil
}

func (p *poller) close() {
	unix.Close(p.event)
	unix.Close(p.epoll)
	if p.shared != nil {
		p.shared.Close()
	}
}
