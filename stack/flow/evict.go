package flow

// list is a queue of flows by id, oldest first; 0 is none.
type list struct{ head, tail uint32 }

// enlist puts f at the end of the lists of its class.
func (t *Table) enlist(f *Flow) {
	if f.class == kept {
		return
	}
	all, own := &t.evictable[f.class], &t.port(f.Orig.Port).evictable[f.class]
	f.all = links{prev: all.tail}
	if all.tail != 0 {
		t.store.at(all.tail).all.next = f.id
	} else {
		all.head = f.id
	}
	all.tail = f.id
	f.port = links{prev: own.tail}
	if own.tail != 0 {
		t.store.at(own.tail).port.next = f.id
	} else {
		own.head = f.id
	}
	own.tail = f.id
}

// unlist takes f out of the lists of its class.
func (t *Table) unlist(f *Flow) {
	if f.class == kept {
		return
	}
	all, own := &t.evictable[f.class], &t.port(f.Orig.Port).evictable[f.class]
	if f.all.prev != 0 {
		t.store.at(f.all.prev).all.next = f.all.next
	} else {
		all.head = f.all.next
	}
	if f.all.next != 0 {
		t.store.at(f.all.next).all.prev = f.all.prev
	} else {
		all.tail = f.all.prev
	}
	if f.port.prev != 0 {
		t.store.at(f.port.prev).port.next = f.port.next
	} else {
		own.head = f.port.next
	}
	if f.port.next != 0 {
		t.store.at(f.port.next).port.prev = f.port.prev
	} else {
		own.tail = f.port.prev
	}
}

// evict forgets the oldest embryonic flow of the lists, or the flow that
// finished first, and says whether there was one.
func (t *Table) evict(lists *[numClasses]list) bool {
	for _, l := range lists {
		if l.head != 0 {
			t.remove(t.store.at(l.head), Evicted)
			return true
		}
	}
	return false
}
