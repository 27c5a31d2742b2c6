// Who wrote and read each byte last, and what has happened before what: two accesses to a byte, one of them a write, that no barrier or
// flag puts in order are a race. The order is kept by vector clocks (Lamport 1978; FastTrack, Flanagan & Freund 2009, for the cells).
//
// g++ -fsanitize=thread calls __tsan_read4 and the like before each access that could be seen by others; these are answered here.
#pragma once
#include <cstdint>
#include <cstring>
#include <unordered_map>
#include <vector>

namespace races {

typedef std::vector<uint32_t> Clock;

struct Stamp {
    uint32_t who, when, where;  // a thread of the launch from 1 on, its clock, and the low half of the instruction's address
};
struct Cell {
    Stamp write, read[2];
};
struct Page {
    unsigned long launch;
    Cell cell[256];
};
// What was released through a counter or flag.
struct Flag {
    Clock clock;
    std::vector<bool> blocks;
};
struct Found {
    Stamp other;
    bool other_wrote;
};

inline void join(Clock &to, const Clock &from) {
    uint32_t *a = to.data();
    const uint32_t *b = from.data();
    for (size_t i = 0, n = to.size(); i < n; i++) a[i] = a[i] > b[i] ? a[i] : b[i];
}

class Table {
    std::unordered_map<uintptr_t, Page *> pages;
    std::unordered_map<const void *, Flag> flags;
    uintptr_t last_number = 0;
    Page *last = nullptr;
    unsigned long launch = 0;

    Cell &cell(uintptr_t address) {
        uintptr_t number = address >> 8;
        if (!last || number != last_number) {
            Page *&page = pages[number];
            if (!page) page = static_cast<Page *>(calloc(1, sizeof(Page)));
            last = page;
            last_number = number;
        }
        if (last->launch != launch) {
            memset(last, 0, sizeof *last);
            last->launch = launch;
        }
        return last->cell[address & 255];
    }

  public:
    void begin() {  // of a launch: all before it has happened before
        launch++;
        flags.clear();
    }
    void forget(const void *bytes, size_t size) {  // shared memory that belongs to another block now
        for (uintptr_t a = uintptr_t(bytes), end = a + size; a < end; a++) cell(a) = Cell();
    }
    Flag &flag(const void *address) { return flags[address]; }

    void set(uintptr_t address, Stamp write) { cell(address) = {write, {}}; }

    // ordered(stamp): whether that access happened before this one.
    template <class Ordered> bool access(uintptr_t address, bool writes, Stamp now, Ordered ordered, Found &found) {
        Cell &c = cell(address);
        if (c.write.who && !ordered(c.write)) {
            found = {c.write, true};
            return false;
        }
        if (!writes) {
            if (!(c.read[0].who == now.who || !c.read[0].who || ordered(c.read[0]))) c.read[1] = c.read[0];
            c.read[0] = now;
            return true;
        }
        for (Stamp &read : c.read)
            if (read.who && !ordered(read)) {
                found = {read, false};
                return false;
            }
        c = {now, {}};
        return true;
    }
};

}  // namespace races
