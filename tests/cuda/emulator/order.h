// What puts accesses to memory in order: barriers, flags, fences with atomics; and the search for accesses that nothing does.
#pragma once
#include "fibers.h"

namespace {

// A thread of the launch by its number, as the others' clocks count it: from the first of the clock's scope on.
unsigned scope_begin(const Fiber *fiber) { return launch->cooperative ? 1 : fiber->home->number * threads_of_block() + 1; }

bool ordered(const Fiber *fiber, races::Stamp before) {
    if (before.who == fiber->number) return true;
    unsigned index = before.who - scope_begin(fiber);
    if (index < fiber->clock.size()) return fiber->clock[index] >= before.when;
    return fiber->home->known[(before.who - 1) / threads_of_block()];
}

void tick(Fiber *fiber) { fiber->clock[fiber->number - scope_begin(fiber)]++; }

void come(races::Clock &meeting, Fiber *fiber) {
    if (!RACES) return;
    if (meeting.empty()) meeting.resize(fiber->clock.size());
    races::join(meeting, fiber->clock);
    tick(fiber);
}

// A write behind another thread's is no fault if it changes nothing: known once it is done.
struct Rewrite {
    const unsigned char *bytes = nullptr;
    unsigned size;
    unsigned char before[64];
    char text[1024];
} rewrite;

void settle() {
    if (!RACES || !rewrite.bytes) return;
    bool same = !memcmp(rewrite.bytes, rewrite.before, rewrite.size);
    rewrite.bytes = nullptr;
    if (!same) emu::emu_fail("%s", rewrite.text);
}

}  // namespace

extern "C" {

void emu::emu_fence(void) { self()->fenced = true; }

void emu::emu_order(const void *flag, int acquires, int releases, int keeps) {
    settle();
    polls = releases ? 0 : polls;
    if (!RACES) return;
    Fiber *fiber = self();
    races::Flag &known = table.flag(flag);
    if (known.blocks.empty()) known.blocks.resize(fiber->home->known.size());
    if (known.clock.size() != fiber->clock.size() || (!launch->cooperative && !known.clock.empty() && !known.blocks[fiber->home->number]))
        known.clock.assign(fiber->clock.size(), 0);  // of another block's threads, which its bit in `blocks` stands for
    if (acquires) {
        races::join(fiber->clock, known.clock);
        for (size_t i = 0; i < known.blocks.size(); i++)
            if (known.blocks[i]) fiber->home->known[i] = true;
    }
    if (releases) {
        if (!keeps) {
            known.clock.assign(fiber->clock.size(), 0);
            known.blocks.assign(known.blocks.size(), false);
        }
        known.blocks[fiber->home->number] = true;
        races::join(known.clock, fiber->clock);
        tick(fiber);
    }
}

void emu::emu_atomic_order(const void *address) {
    bool fenced = self()->fenced;
    emu_order(address, 1, fenced, 1);
    self()->fenced = false;
    polls = 0;
}

void emu::emu_access(const void *address, unsigned size, int writes, const void *pc) {
    const unsigned char *bytes = static_cast<const unsigned char *>(address);
    Fiber *fiber = self();
    if (!RACES || !fiber) return;
    settle();
    if (stacks_hold(bytes)) return;
    races::Stamp now = {fiber->number, fiber->clock[fiber->number - scope_begin(fiber)], uint32_t(uintptr_t(pc))};
    races::Found found;
    for (unsigned i = 0; i < size; i++) {
        if (table.access(uintptr_t(bytes + i), writes, now, [=](races::Stamp before) { return ordered(fiber, before); }, found)) continue;
        char here[512], there[512], what[64];
        place(uintptr_t(pc), here, sizeof here);
        place((uintptr_t(pc) & ~uintptr_t(0xffffffff)) | found.other.where, there, sizeof there);
        unsigned other = (found.other.who - 1) % threads_of_block(), block = (found.other.who - 1) / threads_of_block();
        if (bytes >= fiber->shared && bytes < fiber->shared + launch->shared) snprintf(what, sizeof what, "byte %ld of shared memory", long(bytes + i - fiber->shared));
        else snprintf(what, sizeof what, "%p", static_cast<const void *>(bytes + i));
        char text[1024];
        snprintf(text, sizeof text, "race: %s %s%s, which thread %u of block %u %s%s; nothing puts the two in order", writes ? "writes" : "reads", what, here,
                 other, block, found.other_wrote ? "wrote" : "read", there);
        if (!writes || !found.other_wrote) emu_fail("%s", text);
        rewrite.bytes = bytes;
        rewrite.size = size < 64 ? size : 64;
        memcpy(rewrite.before, bytes, rewrite.size);
        memcpy(rewrite.text, text, sizeof text);
        table.set(uintptr_t(bytes + i), now);
    }
}

}  // extern "C"

#ifdef EMU_RACES
#define EMU_TSAN(size)                                                                                                                  \
    extern "C" void __tsan_read##size(void *p) { emu::emu_access(p, size, 0, __builtin_return_address(0)); }                            \
    extern "C" void __tsan_write##size(void *p) { emu::emu_access(p, size, 1, __builtin_return_address(0)); }                           \
    extern "C" void __tsan_unaligned_read##size(void *p) { emu::emu_access(p, size, 0, __builtin_return_address(0)); }                  \
    extern "C" void __tsan_unaligned_write##size(void *p) { emu::emu_access(p, size, 1, __builtin_return_address(0)); }
EMU_TSAN(1)
EMU_TSAN(2)
EMU_TSAN(4)
EMU_TSAN(8)
EMU_TSAN(16)
extern "C" void __tsan_read_range(void *p, unsigned long size) { emu::emu_access(p, unsigned(size), 0, __builtin_return_address(0)); }
extern "C" void __tsan_write_range(void *p, unsigned long size) { emu::emu_access(p, unsigned(size), 1, __builtin_return_address(0)); }
extern "C" void __tsan_func_entry(void *) {}
extern "C" void __tsan_func_exit(void) {}
extern "C" void __tsan_init(void) {}
#endif
