// The scheduler's face: what a kernel's source sees of it (through emulator.h), and what Python calls.
//
// A CUDA thread is a fiber: a function on a stack of its own, which runs until it has to wait for others. One fiber runs at a time, on
// the caller's operating system thread.
#pragma once
#include "types.h"

namespace emu {

struct Launch {
    unsigned grid[3], block[3];
    unsigned long long shared;  // bytes of dynamic shared memory
    int cooperative;            // all blocks live at once; else one after another
    int backward;               // blocks and threads start from the last: what only works in order is then seen
    void (*call)(void **);      // one thread's run of the kernel
    void **arguments;           // as cuLaunchKernel takes them
};

// What a running thread knows of itself.
struct Self {
    uint3 thread_index, block_index;
    unsigned lane;
    unsigned char *shared;
};

// Called by the last lane to arrive, with what each lane of `lanes` brought and where its result goes.
typedef void (*Finish)(void *context, const void *const *deposits, void *const *results, unsigned lanes);

enum Vote { SYNC, OR, AND, COUNT };  // of the barrier's threads

extern "C" {
extern Self *emu_self;
extern dim3 emu_grid, emu_block;

// Waits until all threads of `mask` in the warp that still run are here, under the same name.
void emu_warp(const char *name, unsigned mask, const void *deposit, void *result, Finish finish, void *context);
// A barrier of the block: `threads` of them, or all that still run where that is 0. One that does not wait only arrives.
int emu_barrier(const char *name, int id, int threads, int waits, int vote, int value);
void emu_poll(const char *name);  // lets all others run before a value is read that they may be about to write
void emu_progress(void);          // a value was written that others may wait for
// What puts accesses of different threads in order: fences with atomics, and flags. keeps: adds to what was released through it before.
void emu_fence(void);
void emu_atomic_order(const void *address);
void emu_order(const void *flag, int acquires, int releases, int keeps);
void emu_access(const void *address, unsigned size, int writes, const void *pc);
// Asynchronous copies: done when their group is waited for, so that what is read before is still what it was; or, in a launch that goes
// backward, at once, so that what others still read is gone.
void emu_copy(const char *name, void *to, const void *from, int size, int read);
void emu_copy_commit(void);
void emu_copy_wait(int but_last);  // groups
void emu_check_shared(const char *name, const void *p, unsigned size, unsigned alignment);
void emu_fail(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

const char *emu_run(const Launch *launch);  // null, or what went wrong
}

// result = compute(deposits of all lanes)[this lane], for the instructions to which a warp's lanes bring registers each.
// compute(const Deposit *const *lane, Result *const *result, unsigned lanes) fills the results of the lanes in the bit mask `lanes`.
template <class Result, class Deposit, class Compute>
Result warp_exchange(const char *name, unsigned mask, const Deposit &deposit, Compute compute) {
    Result result;
    emu_warp(
        name, mask, &deposit, &result,
        [](void *context, const void *const *deposits, void *const *results, unsigned lanes) {
            (*static_cast<Compute *>(context))(
                reinterpret_cast<const Deposit *const *>(deposits), reinterpret_cast<Result *const *>(results), lanes);
        },
        &compute);
    return result;
}

}  // namespace emu
