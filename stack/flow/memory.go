package flow

import (
	"syscall"
	"unsafe"
)

// Flows are kept outside of Go's heap. There a million of them would be 300 MB
// in pages of 4 KiB, of which each hit touches one that the TLB does not have;
// and reserving room for the most that a table may hold would have the
// collector reckon with memory that nobody uses. Here the kernel backs what is
// touched, in huge pages where it can (twice as fast at 100,000 flows), and
// takes back what is not needed.

const (
	hugePage     = 2 << 20
	madvHugepage = 14
	madvDontneed = 4
)

// reserve is room for n flows, zero, at a huge page boundary; release takes
// memory, of which flows are a part.
func reserve(n int) (memory []byte, flows []Flow) {
	size := n * int(unsafe.Sizeof(Flow{}))
	memory, err := syscall.Mmap(-1, 0, size+hugePage, syscall.PROT_READ|syscall.PROT_WRITE,
		syscall.MAP_ANON|syscall.MAP_PRIVATE|syscall.MAP_NORESERVE)
	if err != nil {
		return nil, make([]Flow, n) // an address space limit: the heap may still do
	}
	skip := -uintptr(unsafe.Pointer(unsafe.SliceData(memory))) & (hugePage - 1)
	_ = syscall.Madvise(memory[skip:], madvHugepage) // a kernel without them uses small ones
	return memory, unsafe.Slice((*Flow)(unsafe.Pointer(&memory[skip])), n)
}

func release(memory []byte) {
	if memory != nil {
		_ = syscall.Munmap(memory) // only a bad address is an error
	}
}

// giveBack lets the kernel have the pages of flows, which are whole huge pages
// and all zero. They are zero again when they are next used.
func giveBack(flows []Flow) {
	b := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(flows))), len(flows)*int(unsafe.Sizeof(Flow{})))
	_ = syscall.Madvise(b, madvDontneed) // they stay, and stay zero
}
