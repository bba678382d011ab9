package pod

import (
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// How often the window size of the caller's terminal is looked at, and how long
// output is awaited from processes that outlive the command.
const (
	windowPeriod = 300 * time.Millisecond
	lastWords    = 100 * time.Millisecond
)

// pump copies between a terminal and the caller's files. The function that it
// returns is called when the command has ended: it copies what is left of the
// output and gives the caller's files back, of which nothing more is read then.
func pump(master *os.File, files []*os.File) (finish func(), err error) {
	stopR, stopW, err := os.Pipe()
	if err != nil {
		master.Close()
		return nil, err
	}
	in, out := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(in)
		defer stopR.Close()
		if len(files) > 0 && files[0] != nil {
			pumpIn(master, files[0], stopR)
		}
	}()
	go func() {
		defer close(out)
		var w io.Writer = io.Discard
		if len(files) > 1 && files[1] != nil {
			w = files[1]
		}
		io.Copy(w, master) // EIO when nobody has the other side open
	}()
	return func() {
		stopW.Close()
		<-in
		master.SetReadDeadline(time.Now().Add(lastWords))
		<-out
		master.Close()
	}, nil
}

// pumpIn polls before it reads: a read that waits would take what the user
// types next from whoever reads the terminal after us.
func pumpIn(master, in, stop *os.File) {
	const endOfFile = 4 // ^D
	fds := []unix.PollFd{
		{Fd: int32(rawFD(in)), Events: unix.POLLIN},
		{Fd: int32(rawFD(stop)), Events: unix.POLLIN},
	}
	buf := make([]byte, 4<<10)
	var size unix.Winsize
	for {
		if ws, err := unix.IoctlGetWinsize(rawFD(in), unix.TIOCGWINSZ); err == nil && *ws != size && ws.Row > 0 {
			size = *ws
			unix.IoctlSetWinsize(rawFD(master), unix.TIOCSWINSZ, ws)
		}
		if _, err := unix.Poll(fds, int(windowPeriod.Milliseconds())); err != nil && err != unix.EINTR {
			return
		}
		if fds[1].Revents != 0 {
			return
		}
		if fds[0].Revents == 0 {
			continue
		}
		n, err := unix.Read(rawFD(in), buf)
		switch {
		case n > 0:
			if _, err := master.Write(buf[:n]); err != nil {
				return
			}
		case err == unix.EAGAIN, err == unix.EINTR:
		default: // the input has ended, the terminal has not
			master.Write([]byte{endOfFile})
			return
		}
	}
}
