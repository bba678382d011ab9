package pod_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// workload is what containers of these tests run: the test binary itself, so
// that no other program is needed.
func workload(args []string) int {
	switch args[0] {
	case "sleep": // until a signal
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM)
		fmt.Println("sleeping")
		<-c
		fmt.Println("terminated")
	case "stubborn": // SIGTERM is not enough
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("stubborn")
		select {}
	case "daemon": // leaves a process in a session of its own, and ends with a code
		cmd := exec.Command("/proc/self/exe", "workload", "stubborn")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := cmd.Start(); err != nil {
			fmt.Println(err)
			return 1
		}
		return atoi(args[1])
	case "exit":
		fmt.Println("exit", args[1])
		return atoi(args[1])
	case "echo":
		fmt.Println(strings.Join(args[1:], " "))
	case "env":
		for _, e := range os.Environ() {
			fmt.Println(e)
		}
	case "cat":
		for _, f := range args[1:] {
			b, err := os.ReadFile(f)
			if err != nil {
				fmt.Println(err)
				return 1
			}
			os.Stdout.Write(b)
		}
	case "write":
		if err := os.WriteFile(args[1], []byte(args[2]), 0o644); err != nil {
			fmt.Println(err)
			return 1
		}
	case "stat": // fails unless the file exists
		if _, err := os.Stat(args[1]); err != nil {
			fmt.Println(err)
			return 1
		}
	case "readdress": // gives eth0 an address that is not the pod's
		eth0, err := netlink.LinkByName("eth0")
		if err == nil {
			err = netlink.AddrAdd(eth0, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 244, 9, 9), Mask: net.CIDRMask(32, 32)}})
		}
		if err != nil {
			fmt.Println(err)
			return 1
		}
	case "suicide":
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	case "ps": // in the PID namespace that all pods share
		procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, p := range procs {
			if b, err := os.ReadFile(p); err == nil && len(b) > 0 {
				fmt.Println(strings.ReplaceAll(string(b), "\x00", " "))
			}
		}
	case "health": // gRPC
		ln, err := net.Listen("tcp", args[1])
		if err != nil {
			fmt.Println(err)
			return 1
		}
		s := grpc.NewServer()
		grpc_health_v1.RegisterHealthServer(s, health.NewServer())
		fmt.Println(s.Serve(ln))
	case "readlink":
		l, err := os.Readlink(args[1])
		if err != nil {
			fmt.Println(err)
			return 1
		}
		fmt.Println(l)
	case "upper": // stdin
		for s := bufio.NewScanner(os.Stdin); s.Scan(); {
			fmt.Println(strings.ToUpper(s.Text()))
		}
	case "tty":
		ws, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ)
		if err != nil {
			fmt.Println(err)
			return 1
		}
		fmt.Println("tty", ws.Row, ws.Col, os.Getenv("TERM"))
		if _, err := os.OpenFile("/dev/tty", os.O_RDWR, 0); err != nil {
			fmt.Println(err)
			return 1
		}
		for s := bufio.NewScanner(os.Stdin); s.Scan(); {
			fmt.Println("got", s.Text())
			if s.Text() == "quit" {
				return 3
			}
		}
	case "addrs":
		return addrs()
	case "hostname":
		h, _ := os.Hostname()
		fmt.Println(h)
	case "serve": // HTTP: what a GET of a file says is 200 if it exists, else 503
		http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
			if _, err := os.Stat(r.URL.Path); err != nil {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
			fmt.Fprintln(w, r.RemoteAddr, r.UserAgent())
		})
		fmt.Println(http.ListenAndServe(args[1], nil))
		return 1
	case "get":
		res, err := http.Get(args[1])
		if err != nil {
			fmt.Println(err)
			return 1
		}
		io.Copy(os.Stdout, res.Body)
	case "dial":
		c, err := net.Dial(args[1], args[2])
		if err != nil {
			fmt.Println(err)
			return 1
		}
		c.Close()
	case "proxy":
		return proxy(args[1])
	case "lines":
		for i := range atoi(args[1]) {
			fmt.Println("line", i)
		}
		workload([]string{"sleep"})
	}
	return 0
}

func atoi(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		return 99
	}
	return n
}

func addrs() int {
	ifs, err := net.Interfaces()
	if err != nil {
		fmt.Println(err)
		return 1
	}
	for _, i := range ifs {
		as, _ := i.Addrs()
		fmt.Println(i.Name, i.MTU, i.HardwareAddr, i.Flags&net.FlagUp != 0, as)
	}
	return 0
}

// proxy connects whoever comes by a unix socket to the address that it asks for.
func proxy(path string) int {
	ln, err := net.Listen("unix", path)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	for {
		c, err := ln.Accept()
		if err != nil {
			return 1
		}
		go func() {
			defer c.Close()
			r := bufio.NewReader(c)
			addr, _ := r.ReadString('\n')
			to, err := net.Dial("tcp", strings.TrimSpace(addr))
			if err != nil {
				fmt.Fprintln(c, err)
				return
			}
			defer to.Close()
			fmt.Fprintln(c, "connected")
			go io.Copy(to, r)
			io.Copy(c, to)
		}()
	}
}
